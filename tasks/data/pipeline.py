"""Ingest → validate → prepare as plain calls, for commands, DVC and the notebook: no Prefect."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from configs.loader import command_line, parsed
from configs.schema import Config
from configs.settings import settings
from tasks.data import raw, shards, versioning
from tasks.data.checks import run as checks
from tasks.data.checks.verdict import DatasetRejected
from tasks.data.prepared import EmptySplit, Prepared
from tasks.data.report.facts import summary
from tasks.data.rows import SourceError
from tasks.refs import DatasetRef

WRONG_CONFIG, REJECTED = 2, 3


class Progress(Protocol):
    """Is told how far a stage is: a share in 0…1, None where the end isn't known."""

    def __call__(self, stage: str, share: float | None, told: str = "", /) -> None: ...


def read_and_check(config: Config, out: Path, progress: Progress | None = None) -> checks.Report:
    """Ingest and validate the config's sources, with folders `raw` and `validated` below `out`.

    Raises SourceError; a dataset that isn't fit has its verdict in the report.
    """
    data = config.data
    moved = progress or _silent
    dataset = raw.ingest(
        data.sources, out / "raw", lambda count: moved("ingest", None, f"{count:,} images")
    )
    moved("ingest", 1.0, f"{dataset.num_images:,} images")
    return checks.run(
        dataset,
        data.checks,
        data.splits,
        config.seed,
        out / "validated",
        name=config.name,
        progress=lambda share: moved("validate", share),
    )


def prepare(
    validated: DatasetRef, config: Config, out: Path, progress: Progress | None = None
) -> Prepared:
    """Prepare a validated dataset below `out`."""
    moved = progress or _silent
    return shards.prepare(
        validated, config.data.image_size, out, progress=lambda share: moved("prepare", share)
    )


def main(argv: list[str] | None = None) -> int:
    """`python -m tasks.ingest`: 0 when accepted, 3 when rejected, 2 for a wrong config."""
    parser = command_line("Ingest, validate and prepare a config's data, without any server.")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    options, config = parsed(parser, argv)
    out = settings().var / "datasets"
    digest = dvc_md5 = None
    try:
        with _bars() as progress:
            report = read_and_check(config, out, progress)
            prepared = prepare(report.accepted(), config, out / "prepared", progress)
        versioning.version_rows(report.raw)
        _warn_if_untrainable(prepared)
        digest, dvc_md5 = prepared.digest, versioning.version(prepared.folder, prepared.digest)
    except SourceError as error:
        print(f"error: {options.config}: {error}", file=sys.stderr)
        return WRONG_CONFIG
    except DatasetRejected as error:
        print(f"rejected: {error}", file=sys.stderr)
    told = summary(report.facts) | {
        "digest": digest,
        "dvc_md5": dvc_md5,
        "report": str(report.page),
    }
    print(json.dumps(told, ensure_ascii=False) if options.json else _in_words(told))
    return REJECTED if digest is None else 0


def _warn_if_untrainable(prepared: Prepared) -> None:
    try:
        prepared.trainable()
    except EmptySplit as error:
        print(f"warning: nothing can be trained on this yet: {error}", file=sys.stderr)


def _in_words(told: dict[str, Any]) -> str:
    return "\n".join(f"{name:12} {_words(value)}" for name, value in told.items())


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items()) or "nothing"
    return f"{value:,}" if isinstance(value, int) else str(value or "none")


@contextmanager
def _bars() -> Iterator[Progress]:
    """A progress bar a stage on stderr; where that is no terminal, once at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description:24}"), BarColumn(), TaskProgressColumn()
    with Bars(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def move(stage: str, share: float | None, told: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            total = None if share is None else 1.0
            text = f"{stage} {told}".strip()
            bars.update(tasks[stage], completed=share or 0.0, total=total, description=text)

        yield move


def _silent(stage: str, share: float | None, told: str = "") -> None: ...
