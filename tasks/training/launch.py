"""Runs training in a process of its own, follows it, and never leaves it behind."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Self

from pydantic import BaseModel, ConfigDict, model_validator

from configs.schema import FinetuneConfig, ModelConfig
from tasks.training.errors import TrainingFailed

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_TAIL_BYTES = 4000
_GRACE_SECONDS = 5.0


class TrainJob(BaseModel):
    """All that decides the weights, and where to put them.

    `model.base` is `scratch`, a hub id or a local folder; a champion is passed as its folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    finetune: FinetuneConfig
    dataset: Path
    out: Path
    seed: int

    @model_validator(mode="after")
    def _base_is_resolved(self) -> Self:
        if self.model.base == "champion":
            raise ValueError("model.base `champion` must be resolved to the champion's folder")
        return self


class Progress(BaseModel):
    """One line of a run; the last is `done` and has `scores` on the val split, if there is one.

    `loss` and `images_per_second` are means since the line before. `scores` are `val_loss` (nats a
    token) and `val_cider`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    max_steps: int
    loss: float
    learning_rate: float
    images_per_second: float
    seconds_left: float
    done: bool = False
    scores: dict[str, float] = {}

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers worth a curve."""
        rates = {"learning_rate", "loss", "images_per_second"}
        return self.model_dump(include=rates) | self.scores

    @property
    def line(self) -> str:
        """One line of a log."""
        told = f"step {self.step}/{self.max_steps}, loss {self.loss:.3f}"
        if self.done:
            return ", ".join(
                [told, *(f"{name} {value:.3f}" for name, value in self.scores.items())]
            )
        return f"{told}, {self.images_per_second:.0f} images/s, {self.seconds_left:.0f} s left"


def train(job: TrainJob, on_progress: Callable[[Progress], None]) -> Path:
    """Train in a subprocess; returns `job.out`, a model folder that is there whole or not at all.

    Whatever ends this call early (an error in `on_progress`, Ctrl-C, a cancelled flow) ends the
    process and its children too. Raises TrainingFailed with the end of its stderr.
    """
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as stderr:
        job_file = Path(scratch) / "job.json"
        job_file.write_text(_absolute(job).model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "tasks.training.run", str(job_file)]
        command += ["--parent", str(os.getpid())]
        with _process(command, stderr) as process:
            assert process.stdout is not None
            for line in process.stdout:
                on_progress(Progress.model_validate_json(line))
            code = process.wait()
        if code != 0:
            raise TrainingFailed(f"training ended with exit code {code}:\n{_tail(stderr)}")
    return job.out


def _absolute(job: TrainJob) -> TrainJob:
    """The job with this process's relative paths resolved: the child works in the project root."""
    paths: dict[str, object] = {"dataset": job.dataset.absolute(), "out": job.out.absolute()}
    if Path(job.model.base).is_dir():
        base = str(Path(job.model.base).absolute())
        paths["model"] = job.model.model_copy(update={"base": base})
    return job.model_copy(update=paths)


@contextlib.contextmanager
def _process(command: list[str], stderr: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own, all of it killed on any way out but the ordinary one."""
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        # Threads that spin while they wait cost several times the work on a shared machine.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    log.info("training runs as process %d", process.pid)
    try:
        with process:
            try:
                yield process
            except BaseException:
                _end(process)
                raise
    finally:
        log.info("training process %d ended with %s", process.pid, process.returncode)


def _end(process: subprocess.Popen[str]) -> None:
    _signal_group(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)
    _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[str], number: int) -> None:
    # macOS answers PermissionError for a group in which only a zombie is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _TAIL_BYTES))
    return stderr.read().decode("utf-8", errors="replace").strip()
