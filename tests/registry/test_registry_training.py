"""A training's run in MLflow: taken up where it was left, with its curves and checkpoints."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from configs.schema import FinetuneConfig, ModelConfig
from tasks.registry import runs
from tasks.registry.checkpoints import Uploads, fetch
from tasks.registry.training import training_run
from tasks.training import checkpoints as local
from tasks.training.events import Evaluated, Progress, Saved
from tasks.training.launch import TrainJob

NAME = "shapes"
ARTIFACTS = "checkpoints"
SECTIONS = {"model": ModelConfig(), "finetune": FinetuneConfig()}


class Killed(BaseException):
    """Stands for a cancelled flow or a signal."""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two validation images; nothing else of a dataset is looked at."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    np.save(folder / "val-00000.npy", np.zeros((2, 24, 24, 3), np.uint8))
    row = {"image_id": "a", "references": ["a red circle"], "source": "scenes"}
    (folder / "val.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    card = {"image_size": 24, "digest": "0", "splits": {"val": {"images": 2}}}
    (folder / "dataset.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def job(var: Path, dataset: Path) -> TrainJob:
    return TrainJob(
        model=ModelConfig(),
        finetune=FinetuneConfig(),
        dataset=dataset,
        work=var / "training" / "key",
        out=var / "models",
        seed=1,
    )


@pytest.fixture
def run_id(job: TrainJob) -> str:
    job.work.mkdir(parents=True)
    made: str = runs.client().create_run(runs.experiment_id(NAME)).info.run_id
    return made


def recording(job, prepared):
    return training_run(NAME, SECTIONS, prepared, job, "tiny")


def saved(work: Path, step: int, *older: int, weights: str | None = None) -> Saved:
    """A checkpoint as the trainer leaves it, and those that it keeps beside it."""
    folder = local.folder(work, step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(weights or f"weights of step {step}")
    (folder / "optimizer.pt").write_text(f"moments of step {step}")
    return Saved(step=step, folder=folder, steps=(*older, step))


def progress(step: int) -> Progress:
    return Progress(
        step=step,
        max_steps=9,
        loss=float(10 - step),
        learning_rate=0.1,
        gradient_norm=1.0,
        images_per_second=100.0,
        seconds_left=1.0,
    )


def evaluated(step: int) -> Evaluated:
    scores = {"val_loss": 1.0, "val_cider": float(step)}
    return Evaluated(step=step, scores=scores, captions=("a star", "a dog"), best=True)


def stored(run_id: str) -> dict[str, set[str]]:
    """The files of each checkpoint among the artifacts."""
    mlflow = runs.client()
    return {
        Path(folder.path).name: {
            Path(file.path).name for file in mlflow.list_artifacts(run_id, folder.path)
        }
        for folder in mlflow.list_artifacts(run_id, ARTIFACTS)
    }


def tag(run_id: str) -> list[int]:
    return [
        int(step) for step in runs.client().get_run(run_id).data.tags["checkpoint_steps"].split()
    ]


def curve(run_id: str, name: str) -> list[int]:
    return [point.step for point in runs.client().get_metric_history(run_id, name)]


def status(run_id: str) -> str:
    return str(runs.client().get_run(run_id).info.status)


@contextmanager
def ended_by(error: BaseException, what: AbstractContextManager[Any]) -> Iterator[Any]:
    """`what`, whose block is left by the error, which goes no further."""
    with suppress(type(error)), what as entered:
        yield entered
        raise error


def settle(uploads: Uploads) -> None:
    """Waits until all that was put before is uploaded."""
    uploads._thread.submit(lambda: None).result(20)


def leave(uploads: Uploads, error: BaseException) -> None:
    with ended_by(error, uploads):
        settle(uploads)


# --- uploads --------------------------------------------------------------------------------------


def test_uploads_keep_what_the_trainer_keeps(run_id, job):
    uploads = Uploads(run_id, job.work)
    for step, older in ((2, ()), (4, (2,)), (6, (2, 4)), (8, (2, 6))):
        event = saved(job.work, step, *older)
        uploads.put(event.folder, event.steps)
    leave(uploads, Killed())
    assert tag(run_id) == [2, 6, 8]
    both = {"model.safetensors", "optimizer.pt"}
    assert stored(run_id) == {f"checkpoint-{step}": both for step in (2, 6, 8)}
    assert local.steps(job.work) == [2, 4, 6, 8]  # its own are the trainer's business
    assert not list(job.work.glob(".*"))


def test_a_step_is_told_only_when_all_of_its_files_are_there(run_id, job, monkeypatch):
    there_when_told = []
    set_tag = MlflowClient.set_tag

    def spy(self, run_id, key, value, **rest):
        there_when_told.append((value, stored(run_id)))
        set_tag(self, run_id, key, value, **rest)

    monkeypatch.setattr(MlflowClient, "set_tag", spy)
    uploads = Uploads(run_id, job.work)
    event = saved(job.work, 2)
    uploads.put(event.folder, event.steps)
    leave(uploads, Killed())
    assert there_when_told == [("2", {"checkpoint-2": {"model.safetensors", "optimizer.pt"}})]


def test_a_checkpoint_that_the_trainer_deletes_meanwhile_is_uploaded_or_skipped_whole(
    run_id, job, monkeypatch
):
    go_on = threading.Event()
    log_artifacts = MlflowClient.log_artifacts

    def slow(self, *arguments, **rest):
        assert go_on.wait(20)
        log_artifacts(self, *arguments, **rest)

    monkeypatch.setattr(MlflowClient, "log_artifacts", slow)
    uploads = Uploads(run_id, job.work)
    for step in (2, 4, 6):
        event = saved(job.work, step)
        uploads.put(event.folder, event.steps)
        if step < 6:
            shutil.rmtree(event.folder)
    go_on.set()
    leave(uploads, Killed())
    assert tag(run_id) == [6]
    assert stored(run_id) == {"checkpoint-6": {"model.safetensors", "optimizer.pt"}}


def test_a_failed_upload_is_logged_and_the_next_one_is_made(run_id, job, monkeypatch, caplog):
    log_artifacts, failures = MlflowClient.log_artifacts, [MlflowException("the bucket is away")]

    def fails_once(self, *arguments, **rest):
        if failures:
            raise failures.pop()
        log_artifacts(self, *arguments, **rest)

    monkeypatch.setattr(MlflowClient, "log_artifacts", fails_once)
    uploads = Uploads(run_id, job.work)
    with caplog.at_level(logging.WARNING):
        for event in (saved(job.work, 2), saved(job.work, 4, 2)):
            uploads.put(event.folder, event.steps)
        leave(uploads, Killed())
    assert "training goes on: the bucket is away" in caplog.text
    assert tag(run_id) == [4]


def test_when_training_ends_well_nothing_of_its_checkpoints_stays(run_id, job):
    mlflow = runs.client()
    before = Uploads(run_id, job.work)
    before.put(saved(job.work, 2).folder, (2,))
    leave(before, Killed())
    half = job.work / "half"
    half.mkdir()
    (half / "optimizer.pt").write_text("it was killed while it uploaded this")
    mlflow.log_artifacts(run_id, str(half), f"{ARTIFACTS}/checkpoint-4")
    with Uploads(run_id, job.work) as uploads:
        uploads.put(saved(job.work, 6, 2).folder, (2, 6))
    assert stored(run_id) == {}
    assert tag(run_id) == []
    assert not list(job.work.glob(".*"))


def test_checkpoints_that_cannot_be_deleted_do_not_spoil_a_training(
    run_id, job, monkeypatch, caplog
):
    def away(*_: object) -> None:
        raise MlflowException("the bucket is away")

    monkeypatch.setattr(Uploads, "_delete", away)
    with Uploads(run_id, job.work) as uploads:
        uploads.put(saved(job.work, 2).folder, (2,))
    assert "the bucket is away" in caplog.text
    assert tag(run_id) == []


def test_an_error_waits_for_the_last_upload_and_a_cancel_does_not(run_id, job, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    log_artifacts = MlflowClient.log_artifacts

    def slow(self, *arguments, **rest):
        started.set()
        assert go_on.wait(20)
        log_artifacts(self, *arguments, **rest)

    monkeypatch.setattr(MlflowClient, "log_artifacts", slow)
    with ended_by(Killed(), Uploads(run_id, job.work)) as cancelled:
        cancelled.put(saved(job.work, 2).folder, (2,))
        assert started.wait(20)
    assert stored(run_id) == {}
    go_on.set()
    cancelled._thread.shutdown(wait=True)
    with ended_by(ValueError("diverged"), Uploads(run_id, job.work)) as failed:
        failed.put(saved(job.work, 4, 2).folder, (2, 4))
    assert tag(run_id) == [2, 4]


def test_what_a_killed_process_had_set_aside_to_upload_is_swept(run_id, job):
    left = job.work / ".upload-killed" / "checkpoint-2"
    left.mkdir(parents=True)
    (left / "optimizer.pt").write_text("large")
    Uploads(run_id, job.work)
    assert not left.parent.exists()


# --- fetching -------------------------------------------------------------------------------------


@pytest.fixture
def uploaded(run_id: str, job: TrainJob) -> str:
    """A run whose checkpoints 2 and 6 are in MLflow, left by a machine that is gone."""
    uploads = Uploads(run_id, job.work)
    for event in (saved(job.work, 2), saved(job.work, 6, 2)):
        uploads.put(event.folder, event.steps)
    leave(uploads, Killed())
    shutil.rmtree(job.work)
    return run_id


def test_another_machine_gets_every_checkpoint_byte_by_byte(uploaded, job):
    fetch(uploaded, job.work)
    assert local.steps(job.work) == [2, 6]
    for step in (2, 6):
        folder = local.folder(job.work, step)
        assert (folder / "model.safetensors").read_text() == f"weights of step {step}"
        assert (folder / "optimizer.pt").read_text() == f"moments of step {step}"
    assert not list(job.work.glob(".*"))


@pytest.mark.parametrize("step", [6, 8])
def test_checkpoints_on_this_machine_that_are_as_new_are_left_alone(uploaded, job, step):
    saved(job.work, step, weights="trained here")
    fetch(uploaded, job.work)
    assert local.steps(job.work) == [step]
    assert (local.folder(job.work, step) / "model.safetensors").read_text() == "trained here"


def test_older_checkpoints_on_this_machine_give_way(uploaded, job):
    saved(job.work, 2, weights="of an older try")
    saved(job.work, 4)
    fetch(uploaded, job.work)
    assert local.steps(job.work) == [2, 4, 6]
    assert (local.folder(job.work, 2) / "model.safetensors").read_text() == "weights of step 2"


def test_a_run_without_checkpoints_brings_none(run_id, job):
    fetch(run_id, job.work)
    assert local.steps(job.work) == []


def test_a_checkpoint_whose_files_are_gone_is_never_gone_on_with(
    uploaded, job, monkeypatch, caplog
):
    download = MlflowClient.download_artifacts

    def emptied(self, run_id, path, target):
        # What a server with an emptied bucket answers; a local store raises.
        if path.endswith("checkpoint-6"):
            (Path(target) / path).mkdir(parents=True)
            return str(Path(target) / path)
        return download(self, run_id, path, target)

    monkeypatch.setattr(MlflowClient, "download_artifacts", emptied)
    fetch(uploaded, job.work)
    assert local.steps(job.work) == [2]
    assert "no files of checkpoint-6" in caplog.text


# --- the run --------------------------------------------------------------------------------------


def test_a_training_that_went_well_is_finished_with_curves_and_pictures(job, prepared):
    with recording(job, prepared) as run:
        for event in (progress(2), evaluated(2), saved(job.work, 2)):
            run.record(event)
    assert status(run.run_id) == "FINISHED"
    found = runs.client().get_run(run.run_id)
    assert found.data.params["finetune.learning_rate"] == str(FinetuneConfig().learning_rate)
    assert found.data.tags["dataset_dvc_md5"] == prepared.dvc_md5
    for name in ("loss", "learning_rate", "gradient_norm", "images_per_second"):
        assert curve(run.run_id, name) == [2], name
    assert curve(run.run_id, "val_cider") == curve(run.run_id, "val_loss") == [2]
    assert any(file.path == "images" for file in runs.client().list_artifacts(run.run_id))
    assert stored(run.run_id) == {}


@pytest.mark.parametrize(("error", "ended"), [(ValueError(), "FAILED"), (Killed(), "KILLED")])
def test_an_unfinished_run_is_gone_on_with_by_any_machine(job, prepared, error, ended):
    with ended_by(error, recording(job, prepared)) as first:
        first.record(saved(job.work, 2))
        settle(first._uploads)
    assert status(first.run_id) == ended
    shutil.rmtree(job.work)
    with recording(job, prepared) as second:
        assert second.run_id == first.run_id
        assert status(second.run_id) == "RUNNING"
        assert local.steps(job.work) == [2]
    assert status(first.run_id) == "FINISHED"


def test_a_run_whose_process_was_killed_is_gone_on_with(job, prepared):
    with ended_by(Killed(), recording(job, prepared)) as killed:
        pass
    runs.client().update_run(killed.run_id, status="RUNNING")  # nobody was left to say otherwise
    with recording(job, prepared) as run:
        assert run.run_id == killed.run_id


def test_a_finished_run_and_one_of_another_training_are_left_alone(job, prepared):
    with recording(job, prepared) as finished:
        pass
    with recording(job, prepared) as again:
        assert again.run_id != finished.run_id
        other = job.model_copy(update={"work": job.work.with_name("other-key")})
        with recording(other, prepared) as beside:
            assert beside.run_id not in (finished.run_id, again.run_id)


def test_curves_are_not_doubled_by_what_is_trained_again(job, prepared):
    with ended_by(Killed(), recording(job, prepared)) as run:
        for event in (progress(1), progress(2), evaluated(2), progress(3)):
            run.record(event)
    with recording(job, prepared) as run:  # from the checkpoint of step 1
        for event in (progress(2), evaluated(2), progress(3), progress(4), evaluated(4)):
            run.record(event)
        for event in (progress(4), evaluated(4), progress(5)):  # memory ran out: once more, inside
            run.record(event)
    assert curve(run.run_id, "loss") == [1, 2, 3, 4, 5]
    assert curve(run.run_id, "val_cider") == [2, 4]


def test_the_meters_of_the_machine_are_on_the_run(job, prepared, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with recording(job, prepared) as run:
        deadline = time.monotonic() + 20
        while not runs.client().get_run(run.run_id).data.metrics and time.monotonic() < deadline:
            time.sleep(0.1)
    metrics = runs.client().get_run(run.run_id).data.metrics
    assert metrics["system/cpu_utilization_percentage"] >= 0
    assert metrics["system/system_memory_usage_megabytes"] > 0
