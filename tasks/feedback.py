"""Feedback: what people sent, whether it is enough to retrain on, and a labelling batch if not.

    python -m tasks.feedback status CONFIG [key=value …]
    python -m tasks.feedback export CONFIG [key=value …] [--count 200] [--to FOLDER]
    python -m tasks.feedback import FOLDER [CONFIG [key=value …]] [--train]

`status` counts the captions that people sent; `export` makes a batch for people to caption;
`import` brings their answers back, from its folder or a file of answers, and with `--train` starts
the deployment `retrain.deployment`.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
from prefect import task
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from bentos.captioner.capture import read_feedback, read_window
from bentos.captioner.captured import BadCaptures, CaptureUnavailable
from configs.loader import ConfigError, load
from configs.schema import Config
from configs.settings import settings
from tasks.artifacts import publish, table
from tasks.data import answers, feedback, labelling, versioning
from tasks.data.feedback import Labels, Learnt
from tasks.drift import reference
from tasks.refs import VersionRef
from tasks.registry import history, lineage


class CannotDo(ValueError):
    """What can't be done from here; says what is missing."""


@task
def collect_labels(config: Config, champion: VersionRef | None) -> Labels:
    """The corrected requests as a source, if the config wants them and there are enough; else a
    labelling batch. Never cached: captions keep coming."""
    if not config.data.use_feedback:
        return Labels(needed=0)
    captures, known = settings().captures_url, learnt(champion)
    labels = feedback.decide(
        feedback.read(captures, config, known), config, known, settings().var / "feedback"
    )
    rows = told(labels)
    if labels.source is not None:
        folder = labels.source.folder
        rows["DVC md5"] = versioning.version(folder, f"feedback-{folder.name}")
        rows["folder"] = folder
    elif (batch := labelling_batch(config, champion)) is not None:
        rows[f"labelling batch of {batch.images:,} pictures"] = batch.folder / labelling.PAGE
        rows["with its captions"] = f"`python -m tasks.feedback import {batch.folder}`"
    publish("labels", table(rows), "Whether people's captions are enough to retrain on")
    return labels


def learnt(champion: VersionRef | None) -> Learnt:
    """What the champion has learnt from, by the rows that its dataset was read from."""
    md5 = lineage.dataset_rows(champion) if champion else None
    if md5 is None:
        return Learnt()
    folder = settings().var / "datasets" / "rows" / md5
    if not folder.exists():
        versioning.restore(md5, folder)
    return Learnt.read(folder)


def labelling_batch(
    config: Config, champion: VersionRef | None, count: int | None = None
) -> labelling.Batch | None:
    """Of the champion's last window; None where no picture wants a caption."""
    if champion is None:
        return None
    captures = settings().captures_url
    wanted = labelling.choose(
        read_window(
            captures, model_version=str(champion.version), limit=config.monitor.window_requests
        ),
        {request.request_id for request in read_feedback(captures)},
        reference.load(lineage.evaluation_folder(champion)).embeddings,
        count=count or config.retrain.batch_images,
        near_bits=config.data.checks.near_duplicate_bits,
    )
    if not wanted:
        return None
    return labelling.export(wanted, settings().var / "labelling", title=str(champion))


def told(labels: Labels) -> dict[str, object]:
    """The counts in words."""
    return {
        "enough to retrain on": "yes" if labels.enough else "no",
        "newly corrected requests": labels.new,
        "needed": labels.needed,
        "usable, old ones too": labels.usable,
        "of these, the model's own caption": labels.confirmed,
        **{f"captions held aside: {reason}": count for reason, count in labels.held.items()},
    }


def status(options: argparse.Namespace) -> None:
    """Prints the counts."""
    config, champion = _loaded(options)
    known = learnt(champion)
    judged = feedback.read(settings().captures_url, config, known)
    print(f"{'captures':34} {settings().captures_url}")
    print(f"{'champion':34} {champion or 'none yet'}")
    for name, value in told(feedback.count(judged, config, known)).items():
        print(f"{name:34} {value:,}" if isinstance(value, int) else f"{name:34} {value}")


def export(options: argparse.Namespace) -> None:
    """Makes a labelling batch."""
    config, champion = _loaded(options)
    if champion is None:
        raise CannotDo(f"{config.name} has no champion yet: train one, so that there are captions")
    if options.to is not None and options.to.exists():
        raise CannotDo(f"--to {options.to}: is there already; name another folder")
    batch = labelling_batch(config, champion, options.count)
    if batch is None:
        print(f"no picture that {champion} captioned lately wants a caption")
        return
    folder = batch.folder
    if options.to is not None:
        folder = Path(shutil.copytree(folder, options.to))
    print(f"{batch.images:,} pictures: open {folder / labelling.PAGE}, or fill in the captions of")
    print(f"{folder / labelling.METADATA}; then python -m tasks.feedback import {folder}")


def import_answers(options: argparse.Namespace) -> None:
    """Brings answers back, and starts a retraining if it is asked to."""
    config = load(options.config, options.overrides) if options.config else None
    if options.train and (config is None or config.retrain.deployment is None):
        raise CannotDo(
            "--train: needs a CONFIG whose retrain.deployment names what retrains, such as "
            "train/demo-retrain; or run python -m flows.train CONFIG data.use_feedback=true"
        )
    found = answers.read(options.folder)
    if not found:
        raise CannotDo(f"{options.folder}: no caption is filled in yet; write some, then import")
    captures = settings().captures_url
    done = answers.store(captures, found)
    if done.gone == len(found):
        raise CannotDo(
            f"{options.folder}: none of its requests is in {captures}: set CAPTIONLOOP_CAPTURES to "
            "where the service captures, unless they were deleted or expired meanwhile"
        )
    print(f"{done.added:,} captions added, {done.known:,} were there, {done.gone:,} requests gone")
    if options.train and config is not None:
        print(f"started {_start(str(config.retrain.deployment), options.folder)}")


def _start(deployment: str, folder: Path) -> str:
    """Starts the deployment as a person would; the flow run's name."""
    reason = f"captions imported from {folder.resolve().name}"
    try:
        run = run_deployment(deployment, parameters={"reason": reason}, timeout=0)
    except (ObjectNotFound, httpx.HTTPError) as error:
        raise CannotDo(
            f"the captions are in, but {deployment} could not be started ({error}): is "
            "PREFECT_API_URL right, and did `prefect deploy` run there?"
        ) from error
    return str(run.name)  # type: ignore[union-attr]


def _loaded(options: argparse.Namespace) -> tuple[Config, VersionRef | None]:
    config = load(options.config, options.overrides)
    return config, history.champion(config.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.feedback",
        description=str(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, told: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=told, description=told)
        added.set_defaults(run=run)
        return added

    counted = command("status", status, "how many captions came, and how many are usable")
    made = command("export", export, "make a labelling batch of the most novel pictures")
    brought = command("import", import_answers, "bring captions back that people filled in")
    brought.add_argument("folder", type=Path, help="a batch's folder, or a file of answers")
    for each in (counted, made):
        each.add_argument("config", help="a scenario, such as configs/demo.yaml")
    brought.add_argument("config", nargs="?", help="a scenario, which --train needs")
    for each in (counted, made, brought):
        each.add_argument("overrides", nargs="*", metavar="key=value", default=[])
    made.add_argument("--count", type=_positive, help="pictures at most (retrain.batch_images)")
    made.add_argument("--to", type=Path, help="a folder that isn't there yet")
    brought.add_argument("--train", action="store_true", help="then start retrain.deployment")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1 on")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when done, 2 for wrong input."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except (
        *(ConfigError, CannotDo, answers.BadAnswers),
        *(BadCaptures, CaptureUnavailable, versioning.VersionError),
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
