"""Checkpoints as artifacts of a run, so that another machine can go on with it."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.data import folders
from tasks.registry.runs import client
from tasks.training import checkpoints

log = logging.getLogger(__name__)

_ARTIFACTS = "checkpoints"
_TAG = "checkpoint_steps"
_LINKED = ".upload-"


class Uploads:
    """Copies checkpoints to a run's artifacts in the background, where the trainer keeps as many.

    A step is in the run's tag only while all of its files are there. Leaving without an error
    deletes them all: the model is there then. What fails is logged, and training goes on.
    """

    def __init__(self, run_id: str, work: Path) -> None:
        self._run_id = run_id
        self._wanted: set[int] = set()
        self._there = _told(run_id)  # also those of the process that died
        self._thread = ThreadPoolExecutor(1, "checkpoint-upload")
        for left in work.glob(f"{_LINKED}*"):  # by that process; it holds the files of a checkpoint
            shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            self._wanted = set()
            self._submit(self._clear)
        # After a cancel nothing is waited for; after an error the last upload may still be needed.
        stopped = error is not None and not isinstance(error, Exception)
        self._thread.shutdown(wait=not stopped, cancel_futures=stopped)

    def put(self, saved: Path, steps: tuple[int, ...]) -> None:
        """Upload a checkpoint; those of a run that are not among `steps` are deleted."""
        self._wanted = set(steps)
        # Links, which stay when the trainer deletes its own before they are uploaded.
        linked = Path(tempfile.mkdtemp(prefix=_LINKED, dir=saved.parent)) / saved.name
        for path in saved.iterdir():
            folders.link_or_copy(path, linked / path.name)
        self._submit(self._upload, int(saved.name.rpartition("-")[2]), linked)

    def _submit(self, work: Callable[..., None], *arguments: object) -> None:
        self._thread.submit(work, *arguments).add_done_callback(_log_failure)

    def _upload(self, step: int, linked: Path) -> None:
        try:
            if step not in self._wanted:
                return
            client().log_artifacts(self._run_id, str(linked), f"{_ARTIFACTS}/{linked.name}")
            self._there.add(step)
            kept = self._there & self._wanted
            self._tell(kept)
            for old in self._there - kept:
                self._delete(f"{_ARTIFACTS}/checkpoint-{old}")
            self._there = kept
        finally:
            shutil.rmtree(linked.parent, ignore_errors=True)

    def _clear(self) -> None:
        self._tell(set())
        self._delete(_ARTIFACTS)  # all of it: half a checkpoint of a killed process is in no tag

    def _tell(self, steps: set[int]) -> None:
        client().set_tag(self._run_id, _TAG, " ".join(map(str, sorted(steps))))

    def _delete(self, artifacts: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = client().get_run(self._run_id).info.artifact_uri
        get_artifact_repository(uri).delete_artifacts(artifacts)


def fetch(run_id: str, work: Path) -> None:
    """Bring a run's checkpoints to its work folder, if it has later ones than are there."""
    steps = sorted(_told(run_id))
    if not steps or steps[-1] <= max(checkpoints.steps(work), default=0):
        return
    log.info("fetching checkpoints %s of run %s", ", ".join(map(str, steps)), run_id)
    with folders.staging(work) as staged:
        for step in steps:
            name = f"checkpoint-{step}"
            made = Path(client().download_artifacts(run_id, f"{_ARTIFACTS}/{name}", str(staged)))
            if not made.is_dir() or not any(made.iterdir()):  # MLflow's answer where files are gone
                log.warning("MLflow has no files of %s of run %s any more", name, run_id)
                continue
            shutil.rmtree(work / name, ignore_errors=True)
            os.replace(made, work / name)


def _told(run_id: str) -> set[int]:
    """The steps whose checkpoints a run has whole."""
    return set(map(int, client().get_run(run_id).data.tags.get(_TAG, "").split()))


def _log_failure(done: "Future[None]") -> None:
    if not done.cancelled() and (error := done.exception()):
        log.warning("checkpoints in MLflow are not up to date, training goes on: %s", error)
