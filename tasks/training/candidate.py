"""A trained model as the rest of the loop takes it: content-addressed, with its card and golden
captions, by which any later copy can prove that it is the same model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bentos.captioner.engine import CARD_FILE, Engine
from bentos.captioner.generation import CARD_KEY, Generation
from bentos.captioner.golden import write_golden
from configs.schema import GenerationConfig
from tasks.data import folders
from tasks.data.prepared import PreparedDataset
from tasks.training import launch
from tasks.training.digest import digest as model_digest
from tasks.training.events import Done, Event
from tasks.training.launch import TrainJob

GOLDEN_IMAGES = 8


@dataclass(frozen=True)
class Candidate:
    """A model folder, its digest, and the scores on the validation split."""

    folder: Path
    digest: str
    scores: dict[str, float]


def train(
    name: str,
    job: TrainJob,
    dataset_digest: str,
    generation: GenerationConfig,
    on_event: Callable[[Event], None],
) -> Candidate:
    """Trains in `job.work`, and leaves the result in `job.out`, a folder of models, under its
    digest. The checkpoints stay, until `forget`."""
    scores: dict[str, float] = {}

    def follow(event: Event) -> None:
        if isinstance(event, Done):
            scores.update(event.scores)
        on_event(event)

    folder = launch.train(job.model_copy(update={"out": job.work / "model"}), follow)
    said = Generation(**generation.model_dump(), prompt=job.finetune.prompt)
    card = {"name": name, "dataset_digest": dataset_digest, CARD_KEY: said.to_card()}
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2))
    _add_golden(folder, PreparedDataset.open(job.dataset), said)
    # The card too: the same weights with other limits say other things, golden ones included.
    digest = folders.digest_of([model_digest(folder), card])
    job.out.mkdir(parents=True, exist_ok=True)
    final = folders.publish(folder, (job.out / digest).resolve())
    return Candidate(final, digest, scores)


def forget(job: TrainJob) -> None:
    """Delete a training's checkpoints, once its candidate is where it won't be lost."""
    shutil.rmtree(job.work, ignore_errors=True)


def _add_golden(folder: Path, dataset: PreparedDataset, generation: Generation) -> None:
    pixels = dataset.split("val").pixels[:GOLDEN_IMAGES]
    engine = Engine.load(folder)
    # One at a time, as a lone request will be: a batch may round differently.
    captions = [engine.caption(image[np.newaxis], generation)[0].text for image in pixels]
    write_golden(folder, list(pixels), captions)
