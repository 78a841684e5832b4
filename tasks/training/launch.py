"""Runs training in processes of its own, follows them, and never leaves them behind."""

import contextlib
import logging
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import psutil
from pydantic import BaseModel, ConfigDict, model_validator

from configs.schema import FinetuneConfig, ModelConfig
from tasks.data.folders import digest_of
from tasks.training import errors
from tasks.training.errors import OutOfMemory, SettingsMismatch, TrainingFailed
from tasks.training.events import Event, Failed, Told, parse

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_MODULE = "tasks.training.run"
_TAIL_LINES = 40
_GRACE_SECONDS = 5.0


class TrainJob(BaseModel):
    """All that decides the weights, where to put them, and where checkpoints lie meanwhile.

    `model.base` is `scratch`, a hub id or a local folder; a champion is passed as its folder. A job
    goes on from the last checkpoint in `work`, which outlives it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    finetune: FinetuneConfig
    dataset: Path
    work: Path
    out: Path
    seed: int

    @model_validator(mode="after")
    def _base_is_resolved(self) -> Self:
        if self.model.base == "champion":
            raise ValueError("model.base `champion` must be resolved to the champion's folder")
        return self


def key_of(name: str, job: TrainJob, dataset_digest: str, base_digest: str) -> str:
    """What two trainings must share for one to go on with the other's checkpoints, wherever their
    files lie; the name of a work folder."""
    model = job.model.model_dump(mode="json", exclude={"base"})
    finetune = job.finetune.model_dump(mode="json")
    return digest_of([name, model, finetune, job.seed, dataset_digest, base_digest])


def train(job: TrainJob, on_event: Callable[[Event], None]) -> Path:
    """Train by `accelerate`; returns `job.out`, a model folder that is there whole or not at all.

    Whatever ends this call early (an error in `on_event`, Ctrl-C, a cancelled flow) ends all its
    processes. Where memory runs out it goes on with half the micro-batch.
    Raises a TrainingError for what the user can put right, else TrainingFailed.
    """
    job = _absolute(job)
    job.work.mkdir(parents=True, exist_ok=True)
    remembered = job.work / "micro_batch_size"
    micro = int(remembered.read_text()) if remembered.exists() else _micro_batch(job.finetune)
    while True:
        finetune = job.finetune.model_copy(update={"micro_batch_size": micro})
        try:
            _run(job.model_copy(update={"finetune": finetune}), on_event)
            return job.out
        except OutOfMemory as error:
            micro = _smaller(job.finetune, micro, error)
            remembered.write_text(str(micro))
            rounds = job.finetune.batch_size // (micro * job.finetune.num_processes)
            on_event(
                Told(
                    text=f"Out of memory: going on with a micro-batch of {micro}, accumulated over "
                    f"{rounds} rounds (finetune.micro_batch_size)."
                )
            )


def _micro_batch(settings: FinetuneConfig) -> int:
    """How many images a device takes at once."""
    share, rest = divmod(settings.batch_size, settings.num_processes)
    micro = settings.micro_batch_size or share
    if rest or not share or share % micro:
        raise SettingsMismatch(
            f"finetune.batch_size {settings.batch_size} is no multiple of finetune.num_processes "
            f"{settings.num_processes} × finetune.micro_batch_size {micro}: change one of them."
        )
    return micro


def _smaller(settings: FinetuneConfig, micro: int, error: OutOfMemory) -> int:
    """Half the micro-batch, or the next below that divides a process's share of the batch."""
    share = settings.batch_size // settings.num_processes
    smaller = next((size for size in range(micro // 2, 0, -1) if share % size == 0), None)
    if smaller is None:
        raise OutOfMemory(
            f"not even one image at a time fits: {error} Set finetune.gradient_checkpointing, "
            "finetune.method to lora, or a smaller data.image_size."
        )
    return smaller


def _run(job: TrainJob, on_event: Callable[[Event], None]) -> None:
    """One start of the training processes, to their end."""
    failed: Failed | None = None
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    job_file = job.work / "job.json"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    with _process(_command(job.finetune, job_file)) as process:
        for line in _lines(process):
            event = parse(line)
            if isinstance(event, Failed):
                failed = failed or event
                continue
            if isinstance(event, Told):
                tail.append(event.text)
            on_event(event)
        code = process.wait()
    if failed is not None:
        raise errors.named(failed.error, failed.message)
    if code != 0:
        raise TrainingFailed(f"training ended with exit code {code}:\n" + "\n".join(tail))


def _command(settings: FinetuneConfig, job_file: Path) -> list[str]:
    """`accelerate launch` of the training module, which ends when this process does."""
    mine = psutil.Process()
    script = ["-m", _MODULE, str(job_file), "--watch", f"{mine.pid}:{mine.create_time()}"]
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    if settings.accelerate_config:
        return [*launch, "--config_file", str(settings.accelerate_config), *script]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--num_processes", str(settings.num_processes)]
    # So named, but it starts processes that talk by gloo where there is no GPU (see _environment);
    # with `--cpu` accelerate silently starts one.
    return [*launch, *(["--multi_gpu"] if settings.num_processes > 1 else []), *script]


def _environment() -> dict[str, str]:
    import torch

    # Threads that spin while they wait cost several times the work on a shared machine.
    mine = {"OMP_WAIT_POLICY": "PASSIVE"}
    if not torch.cuda.is_available():
        mine["ACCELERATE_USE_CPU"] = "true"
    return mine | os.environ


def _absolute(job: TrainJob) -> TrainJob:
    """The job with this process's relative paths resolved: the child works in the project root."""
    paths = {name: getattr(job, name).absolute() for name in ("dataset", "work", "out")}
    if Path(job.model.base).is_dir():
        base = str(Path(job.model.base).absolute())
        paths["model"] = job.model.model_copy(update={"base": base})
    if job.finetune.accelerate_config:
        file = job.finetune.accelerate_config.absolute()
        paths["finetune"] = job.finetune.model_copy(update={"accelerate_config": file})
    return job.model_copy(update=paths)


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, with all that it starts ended on any way out but the ordinary one."""
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    log.info("training runs as process %d", process.pid)
    try:
        with process:
            try:
                yield process
            except BaseException:
                _end(process.pid)
                raise
    finally:
        log.info("training process %d ended with %s", process.pid, process.returncode)


def _lines(process: "subprocess.Popen[bytes]") -> Iterator[str]:
    """Lines of both streams as they come; stdout has the events."""
    with selectors.DefaultSelector() as ready:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            ready.register(stream, selectors.EVENT_READ, bytearray())
        while ready.get_map():
            for key, _ in ready.select():
                read = os.read(key.fd, 1 << 16)
                if not read:
                    ready.unregister(key.fileobj)
                key.data.extend(read or b"\n")
                *whole, rest = key.data.split(b"\n")
                key.data[:] = rest
                yield from (
                    text for line in whole if (text := line.decode(errors="replace")).strip()
                )


def _end(pid: int) -> None:
    """End a process and all below it, wherever their sessions are: politely, then at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        family = [top, *top.children(recursive=True)]
        for process in family:
            _signal(process, "terminate")
        _, alive = psutil.wait_procs(family, timeout=_GRACE_SECONDS)
        for process in alive:
            _signal(process, "kill")


def _signal(process: psutil.Process, name: str) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        getattr(process, name)()
