"""What explains a version can be read back from the registry alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.loader import load
from configs.settings import ROOT
from tasks.drift import reference
from tasks.metrics.evaluation import Evaluation
from tasks.metrics.gate import compare
from tasks.refs import Verdict
from tasks.registry import lineage, runs, versions


@pytest.fixture
def config():
    return load(ROOT / "configs" / "demo.yaml", ["name=shapes", "seed=3"])


@pytest.fixture
def version(config, logged, prepared, evaluated):
    model = logged("weights")
    lineage.record(config, model, prepared, evaluated)
    told = lineage.tags(config, model, prepared, evaluated, None, "by hand")
    return versions.register("shapes", model, told)


def test_the_run_holds_the_resolved_config_and_the_scores(config, version, evaluation):
    mlflow = runs.client()
    run_id = version.model.run_id
    path = mlflow.download_artifacts(run_id, "config.yaml")
    with open(path, encoding="utf-8") as file:
        assert type(config).model_validate(yaml.safe_load(file)) == config
    metrics = mlflow.get_run(run_id).data.metrics
    for name, value in evaluation.slices["test"].corpus.items():
        assert metrics[f"test_{name}"] == pytest.approx(value)


def test_the_run_holds_what_the_checks_told_of_the_dataset(version, prepared):
    mlflow = runs.client()
    names = {
        Path(file.path).name for file in mlflow.list_artifacts(version.model.run_id, "dataset")
    }
    assert names == {"report.html", "report.json", "quarantine.jsonl"}
    page = mlflow.download_artifacts(version.model.run_id, "dataset/report.html")
    assert Path(page).read_text() == Path(prepared.report).read_text()


def test_a_version_says_what_it_was_made_of(config, version, prepared, evaluated):
    tags = runs.client().get_model_version("shapes", "1").tags
    expected = {
        "reason": "by hand",
        "dataset_digest": prepared.digest,
        "dataset_dvc_md5": prepared.dvc_md5,
        "git_commit": runs.git_commit(),
        "evaluation": evaluated.digest,
        "parent_champion": "none",
        "digest": version.model.digest,
    }
    assert expected.items() <= tags.items()
    again = lineage.tags(config, version.model, prepared, evaluated, version, "drift")
    assert (again["parent_champion"], again["reason"]) == ("1", "drift")
    assert lineage.labels(version) == {
        "model_name": "shapes",
        "model_version": "1",
        "dataset_digest": prepared.digest,
        "git_commit": runs.git_commit(),
    }


def test_scores_read_back_to_the_last_bit(version, evaluation):
    assert lineage.scores(version) == {"test": evaluation.slices["test"].corpus}


def test_the_verdict_and_its_figures_read_back(config, version, evaluation):
    found = compare(evaluation, evaluation, config.gate)
    reasons = ("test: better.", "current: not worse | really.")
    lineage.record_verdict(version, Verdict(decision="promote", reasons=reasons), found)
    told = lineage.comparisons(version)["test"]
    assert told == found["test"].figures()
    assert told["champion"] == told["candidate"] == found["test"].candidate
    assert told["difference"] == 0
    assert lineage.judged(version) == [f"promote: {reasons[0]}", *reasons[1:]]
    described = runs.client().get_model_version("shapes", "1").description
    assert all(reason in described for reason in reasons)
    assert runs.client().get_model_version("shapes", "1").tags["verdict"] == "promote"


def test_a_first_verdict_without_comparisons_reads_back_empty(version):
    lineage.record_verdict(version, Verdict(decision="reject", reasons=("no",)), {})
    assert lineage.comparisons(version) == {}


def test_who_is_rejected_is_challenger_no_more_and_who_is_not_stays_it(version, logged):
    doubtful = Verdict(decision="needs_approval", reasons=("too few",))
    rejected = Verdict(decision="reject", reasons=("no",), by="ann")
    lineage.record_verdict(version, doubtful, {})
    assert versions.aliases("shapes") == {versions.CHALLENGER: 1}
    lineage.record_answer(version, rejected, "no")
    assert versions.aliases("shapes") == {}
    second = versions.register("shapes", logged("second"), {})
    third = versions.register("shapes", logged("third"), {})
    lineage.record_verdict(second, rejected, {})
    assert versions.aliases("shapes") == {versions.CHALLENGER: third.version}
    lineage.record_verdict(third, rejected, {})
    assert versions.aliases("shapes") == {}


def test_the_bento_is_known_once_the_version_was_promoted(version):
    assert lineage.bento(version) is None
    lineage.record_bento(version, "captioner:abc")
    assert lineage.bento(version) == "captioner:abc"


def test_the_evaluation_is_found_here_or_fetched_when_it_is_gone(version, evaluated, evaluation):
    assert lineage.evaluation_folder(version) == evaluated.path
    shutil.rmtree(evaluated.path)
    fetched = lineage.evaluation_folder(version)
    assert fetched == evaluated.path
    assert Evaluation.load(fetched).digest == evaluation.digest
    np.testing.assert_array_equal(reference.load(fetched).embeddings, np.eye(3))


def test_the_recorded_config_is_plain_yaml_that_loads_again(config, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(lineage.config_yaml(config), encoding="utf-8")
    assert load(path) == config
    assert json.dumps(yaml.safe_load(path.read_text()))  # nothing but plain values
