"""The registry says who is challenger, champion and previous, and gives back the exact files."""

import json
import shutil

import pytest

from configs.schema import FinetuneConfig, ModelConfig
from tasks.refs import ModelRef
from tasks.registry import history, runs, versions
from tasks.registry.versions import CHALLENGER, NoSuchVersion, UnsafeWeights

NAME = "shapes"


@pytest.fixture
def register(logged):
    def registered(weights: str):
        return versions.register(NAME, logged(weights), {"reason": "test"})

    return registered


def test_a_registry_without_the_model_has_no_version(var):
    assert versions.aliases(NAME) == {}
    with pytest.raises(NoSuchVersion, match="no version 1"):
        versions.by_number(NAME, 1)


def test_the_newest_registered_is_the_challenger_and_reads_back_as_it_was(register):
    register("first")
    second = register("second")
    assert versions.aliases(NAME) == {CHALLENGER: 2}
    assert versions.by_number(NAME, 2) == second


def test_to_register_again_takes_up_the_same_unless_it_was_rejected_or_champion(logged):
    model, other = logged("first"), logged("second")
    lineage = {"evaluation": "e", "parent_champion": "none", "reason": "by hand"}
    first = versions.register(NAME, model, lineage)
    second = versions.register(NAME, other, lineage)
    assert versions.register(NAME, model, {**lineage, "reason": "drift"}) == first
    assert versions.tags(NAME, 1)["reason"] == "drift"
    assert versions.aliases(NAME) == {CHALLENGER: 1}
    for changed in ({"evaluation": "f"}, {"parent_champion": "2"}):
        assert versions.register(NAME, model, lineage | changed).version > second.version
    versions.tag(NAME, 2, {"verdict": "needs_approval"})
    assert versions.register(NAME, other, lineage) == second
    versions.tag(NAME, 2, {"verdict": "reject"})
    assert versions.register(NAME, other, lineage).version == 5
    history.promote(first, over=None, why="approved", by="ann")
    assert versions.register(NAME, model, lineage).version == 6


@pytest.mark.parametrize("name", ["pytorch_model.bin", "deep/optimizer.pt"])
def test_weights_that_run_code_where_they_are_loaded_are_not_taken(var, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("pickled")
    with pytest.raises(UnsafeWeights, match="only safetensors"):
        versions.log_model("no run", tmp_path, name=NAME, digest="d")


def test_a_version_that_others_registered_is_refused_with_the_way_out(var):
    versions.ensure(NAME)
    runs.client().create_model_version(NAME, source="s3://somewhere/else")
    with pytest.raises(NoSuchVersion, match="v1 was not registered by the training flow"):
        versions.by_number(NAME, 1)
    assert versions.exists(NAME, 1)


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
    assert runs.link(first.info.run_id, "gallery/alone.html") == "gallery/alone.html"
