"""The loop's stateless half as commands, `python -m tasks.stages STAGE CONFIG [key=value …]`, which
`dvc repro` runs from the project's folder: the same room functions, without servers or registry.

A stage imports what it uses itself, so that what it reaches is what `dvc.yaml` lists for it.
"""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from configs.loader import from_command_line
from configs.schema import Config
from configs.settings import settings
from tasks.data import folders
from tasks.data.prepared import PreparedDataset

if TYPE_CHECKING:
    from tasks.training.events import Event

log = logging.getLogger("tasks.stages")

# The outs of dvc.yaml.
PREPARED = Path("data/prepared")
METRICS = Path("data/metrics.json")
MODEL = Path("var/repro/model")
LOSS = Path("var/repro/loss.csv")
EVALUATION = Path("var/repro/evaluation")


def prepare(config: Config) -> None:
    """Ingest, validate and prepare the config's source."""
    from tasks.data import pipeline

    if config.data.use_feedback:
        _refuse("data.use_feedback: DVC can't repeat what people do; run python -m flows.train")
    report = pipeline.read_and_check(config, settings().var / "datasets")
    # Not in a scratch folder: what a killed run has finished is gone on with.
    made = pipeline.prepare(report.accepted(), config, MODEL.parent / "preparing")
    _put(made.trainable().folder, PREPARED)


def finetune(config: Config) -> None:
    """Train on the prepared dataset; the loss goes to a curve for `dvc plots`."""
    from tasks.training import candidate
    from tasks.training.events import Evaluated, Progress, Told
    from tasks.training.launch import TrainJob, key_of

    if config.model.base == "champion":
        _refuse("model.base: only the registry knows the champion; run python -m flows.train")
    losses: dict[int, float] = {}

    def report(event: "Event") -> None:
        if isinstance(event, Progress):
            losses[event.step] = event.loss
        if isinstance(event, Progress | Evaluated):
            log.info(event.line)
        if isinstance(event, Told):
            log.info(event.text)

    digest = PreparedDataset.open(PREPARED).digest
    with folders.staging(MODEL.parent) as scratch:
        job = TrainJob(
            model=config.model,
            finetune=config.finetune,
            dataset=PREPARED,
            work=MODEL.parent / "training",
            out=scratch,
            seed=config.seed,
        )
        work = job.work / key_of(config.name, job, digest, config.model.base)
        job = job.model_copy(update={"work": work})
        trained = candidate.train(config.name, job, digest, config.evaluate.generation, report)
        _put(trained.folder, MODEL)
    candidate.forget(job)
    curve = ["step,loss", *(f"{step},{loss}" for step, loss in losses.items())]
    LOSS.write_text("\n".join(curve) + "\n", encoding="utf-8")


def evaluate(config: Config) -> None:
    """Caption the test images and score them; the scores of every slice go to `dvc metrics`."""
    from tasks.metrics import captioning
    from tasks.metrics.gallery import cards, page

    def report(share: float) -> None:
        log.info("captioned %.0f %% of the test images", 100 * share)

    dataset = PreparedDataset.open(PREPARED)
    result = captioning.evaluate(MODEL, dataset, config.evaluate, report)
    names = {"model": str(MODEL), "dataset": dataset.digest}
    count = config.evaluate.gallery_images
    gallery = cards.collect(dataset, result.evaluation, None, count, names)
    with folders.staging(EVALUATION.parent) as scratch:
        saved = result.save(scratch)
        html = page.render(gallery, config.evaluate)
        (saved.path / "gallery.html").write_text(html, encoding="utf-8")
        _put(saved.path, EVALUATION)
    scores = {name: found.corpus for name, found in result.evaluation.slices.items()}
    folders.write_json(METRICS, scores)
    log.info(json.dumps(scores, indent=2))


STAGES: dict[str, Callable[[Config], None]] = {
    "prepare": prepare,
    "finetune": finetune,
    "evaluate": evaluate,
}


def main(arguments: list[str]) -> None:
    """Run one stage; a wrong stage or config ends with one line and exit code 2."""
    stage, *rest = arguments or [""]
    if stage not in STAGES:
        _refuse(f"expected a stage ({', '.join(STAGES)}) and a config, got {stage!r}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _, _, config = from_command_line(f"The stage {stage} of dvc.yaml.", rest)
    STAGES[stage](config)


def _put(folder: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    folder.rename(out)


def _refuse(why: str) -> NoReturn:
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
