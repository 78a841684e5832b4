"""The registry says who is challenger, champion and previous, and gives back the exact files."""

import json
import shutil

import pytest

from configs.schema import FinetuneConfig, ModelConfig
from tasks.refs import ModelRef
from tasks.registry import lineage, runs, versions
from tasks.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    ChampionChanged,
    NoSuchVersion,
)

NAME = "shapes"


@pytest.fixture
def register(logged):
    def registered(weights: str):
        return versions.register(NAME, logged(weights), {"reason": "test"})

    return registered


def aliases() -> dict[str, int]:
    held = {alias: versions.by_alias(NAME, alias) for alias in (CHALLENGER, CHAMPION, PREVIOUS)}
    return {alias: found.version for alias, found in held.items() if found}


def put_in_charge(version) -> None:
    versions.promote(version, over=versions.by_alias(NAME, CHAMPION))
    lineage.record_promotion(version)


def test_a_registry_without_the_model_has_no_champion_and_nothing_to_go_back_to(var):
    assert versions.by_alias(NAME, CHAMPION) is None
    with pytest.raises(NoSuchVersion, match="no previous champion"):
        versions.restorable(NAME, None)
    with pytest.raises(NoSuchVersion, match="no version 1"):
        versions.by_number(NAME, 1)


def test_the_newest_registered_is_the_challenger_and_reads_back_as_it_was(register):
    register("first")
    second = register("second")
    assert aliases() == {CHALLENGER: 2}
    assert versions.by_alias(NAME, CHALLENGER) == second
    assert versions.by_number(NAME, 2) == second


def test_promotion_moves_the_aliases_and_is_safe_to_repeat(register):
    first = register("first")
    put_in_charge(first)
    assert aliases() == {CHAMPION: 1}
    second = register("second")
    third = register("third")
    put_in_charge(second)
    moved = {CHAMPION: 2, PREVIOUS: 1, CHALLENGER: 3}
    assert aliases() == moved
    versions.promote(second, over=first)
    assert aliases() == moved
    put_in_charge(third)
    assert aliases() == {CHAMPION: 3, PREVIOUS: 2}


def test_rollback_goes_to_the_previous_champion_and_back_again(register):
    first, second = register("first"), register("second")
    put_in_charge(first)
    put_in_charge(second)
    assert versions.restorable(NAME, None) == first
    versions.promote(versions.restorable(NAME, None), over=second)
    assert aliases() == {CHAMPION: 1, PREVIOUS: 2}
    assert versions.restorable(NAME, None) == second


def test_a_challenger_is_not_promoted_over_a_champion_it_was_not_judged_against(register):
    first, second, third = register("first"), register("second"), register("third")
    with pytest.raises(ChampionChanged, match="judged against v1, but no champion"):
        versions.promote(second, over=first)
    put_in_charge(first)
    put_in_charge(second)
    for judged_against in (first, None):
        with pytest.raises(ChampionChanged, match="v2 is champion by now"):
            versions.promote(third, over=judged_against)
    assert aliases() == {CHAMPION: 2, PREVIOUS: 1, CHALLENGER: 3}


def test_a_promotion_that_died_half_way_is_finished_by_another_try(register):
    first, second = register("first"), register("second")
    put_in_charge(first)
    runs.client().set_registered_model_alias(NAME, CHAMPION, "2")  # and no more
    versions.promote(second, over=first)
    assert aliases() == {CHAMPION: 2, PREVIOUS: 1}


def test_rollback_takes_only_what_was_promoted_once(register):
    first, second = register("first"), register("second")
    put_in_charge(first)
    with pytest.raises(NoSuchVersion, match="no previous champion"):
        versions.restorable(NAME, None)
    assert versions.restorable(NAME, 1) == first
    with pytest.raises(NoSuchVersion, match=r"v2 was never promoted"):
        versions.restorable(NAME, 2)
    with pytest.raises(NoSuchVersion, match="no version 9"):
        versions.restorable(NAME, 9)
    assert versions.by_number(NAME, 2) == second


def test_retired_aliases_leave_the_versions(register):
    put_in_charge(register("first"))
    put_in_charge(register("second"))
    register("third")
    versions.retire_aliases(NAME)
    assert aliases() == {}
    assert versions.by_number(NAME, 3).version == 3
    versions.retire_aliases("never-registered")


def test_a_model_whose_folder_is_gone_is_fetched_whole_from_the_registry(register, var):
    model = register("weights").model
    assert versions.fetch(model) == model.path
    shutil.rmtree(model.path)
    fetched = versions.fetch(model)
    assert (fetched / "model.safetensors").read_text() == "weights"
    assert json.loads((fetched / "golden" / "golden.json").read_text()) == []
    assert [path.name for path in (var / "models").iterdir()] == [fetched.name]


def test_a_model_from_another_machine_is_fetched_once(register, monkeypatch, var):
    model = register("weights").model.model_copy(update={"uri": "/not/on/this/machine"})
    shutil.rmtree(var / "models")
    fetched = versions.fetch(model)
    assert fetched == var / "models" / model.digest
    (fetched / "mark").touch()
    assert (versions.fetch(model) / "mark").exists()


def test_a_model_exists_as_long_as_the_registry_has_it(register):
    model = register("weights").model
    shutil.rmtree(model.path)
    assert model.exists()
    runs.client().delete_logged_model(model.model_id)
    assert not model.exists()
    assert not model.model_copy(update={"model_id": "m-" + "0" * 32}).exists()


def test_a_registry_that_cannot_answer_is_no_missing_model(register, monkeypatch):
    from mlflow.exceptions import MlflowException

    model = register("weights").model
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for ask in (model.exists, lambda: versions.by_number(NAME, 1)):
        with pytest.raises(MlflowException):
            ask()


def run_of(model: ModelRef):
    return runs.client().get_run(model.run_id)


def test_a_training_run_carries_its_config_and_dataset_and_ends_finished(logged, prepared):
    run = run_of(logged("weights"))
    assert run.info.status == "FINISHED"
    assert run.data.params["finetune.max_steps"] == str(FinetuneConfig().max_steps)
    assert run.data.params["seed"] == "1"
    assert run.data.tags["dataset_digest"] == prepared.digest
    assert run.data.tags["dataset_dvc_md5"] == prepared.dvc_md5
    assert run.data.tags["git_commit"] == runs.git_commit()


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_training_run_that_is_ended_early_says_how(var, prepared, error, status):
    started = []

    def train() -> None:
        sections = {"model": ModelConfig()}
        with runs.training(NAME, sections, prepared, 1, "tiny", key="k") as run_id:
            started.append(run_id)
            runs.log_metrics(run_id, {"loss": 2.0}, step=7)
            raise error

    with pytest.raises(error):
        train()
    (run_id,) = started
    run = runs.client().get_run(run_id)
    assert run.info.status == status
    assert run.data.params["model.tiny.heads"] == "4"
    (loss,) = runs.client().get_metric_history(run_id, "loss")
    assert (loss.value, loss.step) == (2.0, 7)


def test_two_trainings_share_the_experiment_whose_artifacts_lie_in_var(logged, var):
    first, second = run_of(logged("first")), run_of(logged("second"))
    assert first.info.experiment_id == second.info.experiment_id
    assert first.info.artifact_uri.startswith((var / "mlflow" / "artifacts" / NAME).as_uri())
    assert runs.link(first.info.run_id) == first.info.run_id
