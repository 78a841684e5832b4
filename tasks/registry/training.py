"""A training's MLflow run: its curves, sample captions, system metrics and checkpoints."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from tasks.data.prepared import PreparedDataset
from tasks.refs import PreparedRef
from tasks.registry import checkpoints, runs
from tasks.training.events import Evaluated, Event, Progress, Saved

if TYPE_CHECKING:
    from tasks.training.launch import TrainJob


class TrainingRun:
    """Records what a training tells; what the run knows already is not told again."""

    def __init__(self, run_id: str, dataset: Path, uploads: checkpoints.Uploads) -> None:
        self.run_id = run_id
        self._dataset = dataset
        self._uploads = uploads
        self._logged = runs.last_step(run_id, "loss")
        self._validated = runs.last_step(run_id, "val_cider")

    def record(self, event: Event) -> None:
        match event:
            case Progress() if event.step > self._logged:
                runs.log_metrics(self.run_id, event.metrics, event.step)
                self._logged = event.step
            case Evaluated() if event.step > self._validated:
                runs.log_metrics(self.run_id, event.scores, event.step)
                self._show(event)
                self._validated = event.step
            case Saved():
                self._uploads.put(event.folder, event.steps)

    def _show(self, event: Evaluated) -> None:
        from tasks.registry.samples import sheet

        pixels = PreparedDataset.open(self._dataset).split("val").pixels[: len(event.captions)]
        picture = sheet(pixels, event.captions)
        runs.client().log_image(self.run_id, picture, key="validation", step=event.step)


@contextlib.contextmanager
def training_run(
    experiment: str,
    sections: Mapping[str, BaseModel],
    data: PreparedRef,
    job: "TrainJob",
    run_name: str,
    parent: str | None = None,
) -> Iterator[TrainingRun]:
    """The unfinished run of the same training, with its checkpoints brought to `job.work`, or a new
    one. Ends FINISHED, FAILED, or KILLED where a person or a signal ended it.

    The same training is one of the same work folder's name, on whatever machine.
    """
    with (
        runs.training(
            experiment, sections, data, job.seed, run_name, key=job.work.name, parent=parent
        ) as run_id,
        runs.system_metrics(run_id),
        checkpoints.Uploads(run_id, job.work) as uploads,
    ):
        job.work.mkdir(parents=True, exist_ok=True)
        checkpoints.fetch(run_id, job.work)
        yield TrainingRun(run_id, job.dataset, uploads)
