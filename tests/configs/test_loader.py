"""A scenario is read whole or refused in one line that names the file and the key."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.loader import ConfigError, from_command_line, load
from configs.settings import ROOT

SCENARIO = """
name: shapes
seed: 3
data:
  source: {format: scenes, count: 50}
  splits: {val: 0.1}
finetune:
  max_steps: 40
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.yaml"
    path.write_text(SCENARIO)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_scenario_of_the_project_loads(path):
    assert load(path).name


@pytest.mark.parametrize("path", [*sorted((ROOT / "configs").glob("*.yaml")), None])
def test_the_least_feedback_that_retrains_can_fill_a_slice_that_the_gate_judges(path, scenario):
    config = load(path or scenario)
    expected = config.retrain.min_labels * config.data.splits.test
    assert expected > 1.5 * config.gate.min_images  # images fall into splits by chance


def test_a_relative_path_is_looked_up_in_the_current_folder_then_in_the_project(
    scenario, monkeypatch
):
    monkeypatch.chdir(scenario.parent)
    assert load("shapes.yaml").name == "shapes"
    assert load("configs/demo.yaml") == load(ROOT / "configs" / "demo.yaml")


def test_what_the_file_leaves_out_has_its_default(scenario):
    config = load(scenario)
    assert (config.data.splits.val, config.data.splits.test) == (0.1, 0.12)
    assert config.evaluate.num_beams == 1


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("finetune.max_stepz=3", "finetune.max_stepz", "finetune.max_steps"),
        ("data.source.cuont=3", "data.source.cuont", "data.source.count"),
        ("model.tiny.head=3", "model.tiny.head", "model.tiny.heads"),
        ("fintune={}", "fintune", "finetune"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(scenario, override, key, meant):
    assert f"{key}: no such key; did you mean {meant}?" in refusal(scenario, override)


def test_an_unknown_key_like_no_other_gets_no_suggestion(scenario):
    assert "qqqqqqqq: no such key" in refusal(scenario, "qqqqqqqq=1")
    assert "did you mean" not in refusal(scenario, "qqqqqqqq=1")


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("finetune.max_steps=many", "finetune.max_steps", "integer"),
        ("finetune.max_steps=0", "finetune.max_steps", "greater than 0"),
        ("finetune.max_steps=2.5", "finetune.max_steps", "integer"),
        ("data.splits.val=0", "data.splits.val", "greater than 0"),
        ("data.splits.test=0", "data.splits.test", "greater than 0"),
        ("data.splits.val=1.5", "data.splits.val", "less than or equal to 1"),
        ("data.source.world=dusk", "data.source.world", "'day'"),
        ("data.source.format=parket", "data.source.format", "jsonl, parquet"),
        ("data=3", "data", "dictionary"),
        ("name=Not A Name", "name", "pattern"),
        ("gate.floors={clarity: 3}", "gate.floors.clarity", "'cider'"),
        ("gate.resamples=10", "gate", "set resamples to 2000 or more"),
        ("gate.superior_on=goldn", "gate", "no slice goldn: expected current, golden, test"),
        ("gate.margins={dark: 0.1}", "gate", "no slice dark: expected current, golden, test"),
        ("gate.ignored=[test]", "gate", "test can't be ignored: expected golden"),
        ("data.splits={val: 0.5, test: 0.5}", "data.splits", "leave some images to train on"),
    ],
)
def test_a_wrong_value_names_its_key_what_was_expected_and_what_was_given(
    scenario, override, key, expected
):
    message = refusal(scenario, override)
    assert f" {key}" in message
    assert expected in message
    assert "got" in message


def test_the_gate_may_name_the_slices_that_the_evaluation_defines(scenario):
    dark = "evaluate.slices={dark: {brightness: {max: 0.3}}, bright: {brightness: {min: 0.7}}}"
    config = load(scenario, [dark, "gate.margins={dark: 0.1}", "gate.ignored=[bright]"])
    assert config.gate.margins == {"dark": 0.1}
    told = refusal(scenario, dark, "gate.superior_on=dark", "gate.ignored=[dark]")
    assert "dark can't be ignored: expected bright, golden" in told


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text("name: bare\ndata: {source: {format: csv, images: here}}\n")
    assert "data.source.captions: missing" in refusal(path)
    path.write_text("name: bare\n")
    assert "data: missing" in refusal(path)


def test_all_that_is_wrong_is_told_at_once(scenario):
    message = refusal(scenario, "finetune.max_stepz=3", "seed=x")
    assert "finetune.max_stepz" in message
    assert "seed: " in message


@pytest.mark.parametrize(
    ("text", "line", "shown"),
    [
        ("name: a\ndata: ]\nseed: 2\n", 2, "data: ]"),
        ("name: a\n\tseed: 1\n", 2, "seed: 1"),
        ("name: 'a\n", 2, "end of file"),
        ("name: a\nseed: 1\n  data: 2\n", 3, "data: 2"),
    ],
)
def test_broken_yaml_names_its_line(tmp_path, text, line, shown):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = refusal(path)
    assert f"line {line}, at '{shown}'" in message
    assert "not valid YAML" in message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n", "3\n"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "list.yaml"
    path.write_text(text)
    assert "expected keys such as" in refusal(path)


def test_other_encodings_and_control_characters_are_refused(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_bytes("name: caf\xe9\n".encode("latin-1"))
    assert "not UTF-8 text at byte 9" in refusal(path)
    path.write_bytes(b"name: \x00\n")
    assert "not valid YAML" in refusal(path)


def test_a_path_without_a_file_says_where_scenarios_lie(tmp_path):
    assert "no such file" in refusal(tmp_path / "nowhere.yaml")
    assert str(ROOT / "configs") in refusal(tmp_path)


def test_overrides_are_yaml_values(scenario):
    config = load(
        scenario,
        [
            "finetune.learning_rate=3e-5",
            "data.use_feedback=true",
            "gate.floors={cider: 2, bleu_4: 0.1}",
            "model.base=Salesforce/blip-image-captioning-base",
        ],
    )
    assert config.finetune.learning_rate == 3e-5
    assert config.data.use_feedback is True
    assert config.gate.floors == {"cider": 2.0, "bleu_4": 0.1}
    assert config.model.base == "Salesforce/blip-image-captioning-base"
    assert config.finetune.max_steps == 40  # its neighbours stay


def test_the_last_override_wins_and_a_section_can_be_replaced_then_refined(scenario):
    assert load(scenario, ["seed=1", "seed=2"]).seed == 2
    refined = load(scenario, ["finetune={batch_size: 5}", "finetune.max_steps=7"])
    assert (refined.finetune.batch_size, refined.finetune.max_steps) == (5, 7)
    replaced = load(scenario, ["finetune.max_steps=7", "finetune={batch_size: 5}"])
    assert replaced.finetune.max_steps == 1500


def test_a_value_may_hold_an_equals_sign(scenario):
    assert load(scenario, ["model.base=models/a=b"]).model.base == "models/a=b"


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("finetune.max_steps", "not of the form key.sub=value"),
        ("=3", "not of the form key.sub=value"),
        ("finetune.max_steps=[1", "not a YAML value"),
        ("seed.deep=1", "'seed' holds a value, not a section"),
        ("finetune.=1", "finetune."),
        ("finetune..max_steps=1", "finetune."),
    ],
)
def test_a_malformed_override_is_refused_by_its_text(scenario, override, why):
    message = refusal(scenario, override)
    assert why in message


def test_a_section_left_empty_in_the_file_can_be_overridden(scenario):
    scenario.write_text(SCENARIO.replace("finetune:\n  max_steps: 40\n", "finetune:\n"))
    assert load(scenario, ["finetune.max_steps=7"]).finetune.max_steps == 7


def test_a_loaded_scenario_is_frozen_all_the_way_down(scenario):
    config = load(scenario)
    for section, key in [(config, "seed"), (config.finetune, "max_steps"), (config.data, "source")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)


def test_the_command_line_gives_path_overrides_and_config(scenario):
    path, overrides, config = from_command_line("…", [str(scenario), "seed=9"])
    assert (path, overrides, config.seed) == (str(scenario), ["seed=9"], 9)


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        (SCENARIO, ["finetune.max_stepz=3"], "finetune.max_stepz"),
        ("name: [\n", [], "line 2"),
    ],
)
def test_a_wrong_scenario_ends_the_process_with_one_line_and_exit_code_2(
    tmp_path, text, overrides, told
):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "flows.train", str(path), *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {path}")
    assert told in line
    assert done.stdout == ""
