"""A version's card tells what it is, by figures that the registry holds, before and after."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from configs.loader import load
from configs.settings import ROOT
from tasks.metrics.gate import compare
from tasks.refs import Verdict
from tasks.registry import __main__ as command
from tasks.registry import card, history, lineage, runs, versions

NAME = "shapes"


@pytest.fixture
def config():
    return load(ROOT / "configs" / "demo.yaml", ["name=shapes"])


@pytest.fixture
def version(config, logged, prepared, evaluated):
    model = logged("weights")
    lineage.record(config, model, prepared, evaluated)
    tags = lineage.tags(config, model, prepared, evaluated, None, "by hand")
    made = versions.register(NAME, model, tags)
    lineage.describe(NAME, made.version)
    return made


def judged(version, evaluation, config) -> None:
    verdict = Verdict(decision="promote", reasons=("test: better.", "current: not worse | really."))
    lineage.record_verdict(version, verdict, compare(evaluation, evaluation, config.gate))


def test_a_card_tells_of_data_training_scores_and_lineage_before_any_verdict(
    version, evaluation, prepared
):
    text = card.render(version)
    part = evaluation.slices["test"]
    for metric, value in part.corpus.items():
        assert f"| test | {metric} | {value:.3f} |" in text
    for metric, bounds in part.intervals.items():
        assert (
            f"{metric} | {part.corpus[metric]:.3f} | {bounds.low:.3f} to {bounds.high:.3f}" in text
        )
    for told in (
        prepared.digest,
        prepared.dvc_md5,
        "train 2, val 0, test 1",
        "world day",
        '{"images": 3}',
    ):
        assert told in text
    assert f"digest `{version.model.digest}`" in text
    assert "not judged yet" in text
    assert "## As champion" not in text
    assert "No Bento was built" in text


def test_a_card_is_written_anew_when_the_verdict_falls_and_when_the_champion_changes(
    version, evaluation, config
):
    def stored() -> str:
        path = runs.client().download_artifacts(version.model.run_id, "card/v1.md")
        with open(path, encoding="utf-8") as file:
            return file.read()

    judged(version, evaluation, config)
    assert card.write(version) == stored()
    assert "- current: not worse | really." in stored()
    assert "Against the champion of that time" in stored()
    lineage.record_bento(version, "captioner:b")
    history.promote(version, over=None, why="approved: fine", by="ann")
    assert card.write(version) == stored()
    assert "approved: fine (ann)" in stored()
    assert "bentoml serve captioner:b" in stored()


def test_the_metadata_in_front_is_what_model_hubs_read(version, evaluation):
    read = ModelCard(card.render(version)).data
    assert (read.pipeline_tag, read.library_name) == ("image-to-text", "transformers")
    told = {result.metric_type: result.metric_value for result in read.eval_results}
    assert told == {m: round(v, 4) for m, v in evaluation.slices["test"].corpus.items()}
    assert yaml.safe_load(card.render(version).split("---")[1])["model-index"]


def test_a_card_without_its_evaluation_says_so(version, evaluated):
    shutil.rmtree(evaluated.path)
    run = runs.client().get_run(version.model.run_id)
    shutil.rmtree(f"{run.info.artifact_uri.removeprefix('file://')}/evaluation")
    assert "not in the registry any more" in card.render(version)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_tells_who_was_champion_why_and_who_serves_now(
    version, logged, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    second = versions.register(NAME, logged("second"), {})
    history.promote(version, over=None, why="promoted", by="the gate")
    history.promote(second, over=version, why="approved: looks fine", by="ann")
    assert command.main([NAME]) == 0
    said = capsys.readouterr().out
    assert "approved: looks fine" in said
    assert "shapes v2 is champion (no Bento)" in said
    assert command.main([NAME, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["champion"] == 2
    assert [(e["version"], e["over"], e["by"]) for e in told["history"]] == [
        (1, None, "the gate"),
        (2, 1, "ann"),
    ]


def test_the_command_prints_a_card_and_takes_a_scenario_for_a_name(version, capsys):
    assert command.main([NAME, "--card", "1"]) == 0
    assert "# shapes v1" in capsys.readouterr().out
    assert command.main(["configs/demo.yaml"]) == 0
    assert "demo-captioner has no champion: nobody serves" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["configs/none.yaml"], "no such file"), ([NAME, "--card", "9"], "no version 9")],
)
def test_the_command_tells_what_is_wrong_in_one_line(var, capsys, arguments, told):
    assert command.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert told in said
