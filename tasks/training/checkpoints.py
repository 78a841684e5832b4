"""Checkpoints of a run: folders `checkpoint-<step>` in its work folder, each there whole or not."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = re.compile(r"checkpoint-(\d+)")


def folder(work: Path, step: int) -> Path:
    return work / f"checkpoint-{step}"


def steps(work: Path) -> list[int]:
    """Steps of the finished checkpoints, in order."""
    names = (_NAME.fullmatch(path.name) for path in work.glob("checkpoint-*"))
    return sorted(int(name[1]) for name in names if name)


@contextmanager
def partial(work: Path) -> Iterator[Path]:
    """A folder to write checkpoints into before they are published; what is left in it goes."""
    scratch = work / ".partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(made: Path, work: Path) -> None:
    """Move a checkpoint to its place once all of it is on the disk."""
    for path in (*made.iterdir(), made):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    target = work / made.name
    shutil.rmtree(target, ignore_errors=True)  # of an earlier try at the same step
    made.rename(target)


def prune(work: Path, keep: int, best: int | None) -> None:
    """Leave the newest `keep` and the best."""
    for step in steps(work)[:-keep]:
        if step != best:
            doomed = folder(work, step)
            # Under a name that is no checkpoint's first, so that half of one is never taken for it.
            doomed = doomed.rename(work / f".pruned-{step}")
            shutil.rmtree(doomed)
