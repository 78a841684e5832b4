"""Captions a prepared dataset's test images with the engine that serves, and scores them."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bentos.captioner.generation import Generation
from configs.schema import EvaluateConfig, SliceConfig
from tasks.data import folders
from tasks.data.prepared import Pixels, PreparedDataset, Split
from tasks.drift import reference
from tasks.metrics import slices
from tasks.metrics.evaluation import Cost, Evaluation, SliceEvaluation
from tasks.metrics.scores import score
from tasks.refs import EvaluationRef

if TYPE_CHECKING:
    from bentos.captioner.engine import Caption, Engine

log = logging.getLogger(__name__)

_WARM_UP, _TIMED = 3, 32  # images


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with the images that were captioned and their embeddings (float32 [n, d]), by
    the slice that they come from: each is in one of `test`, `current` and `golden`."""

    evaluation: Evaluation
    images: dict[str, Split]
    embeddings: dict[str, np.ndarray]

    def save(self, out: Path) -> EvaluationRef:
        """Writes scores and the drift reference to `out/<digest>/`.

        The reference is what production should look like to this model: the corrected requests
        where it was judged on some, else the test images.
        """
        digest = self.evaluation.digest
        with folders.staging(out) as staged:
            self.evaluation.save(staged)
            production = "current" if "current" in self.images else "test"
            reference.save(staged, self._reference(production))
            folder = folders.publish(staged, (out / digest).resolve())
        cider = {name: s.corpus["cider"] for name, s in self.evaluation.slices.items()}
        return EvaluationRef(uri=str(folder), digest=digest, cider=cider)

    def _reference(self, slice_name: str) -> reference.Reference:
        images = self.images[slice_name]
        return reference.Reference(
            image_ids=images.image_ids,
            embeddings=self.embeddings[slice_name],
            brightness=slices.brightness(images),
            log_probabilities=np.array(self.evaluation.slices[slice_name].log_probabilities),
        )


def evaluate(
    model: Path,
    dataset: PreparedDataset,
    config: EvaluateConfig,
    on_progress: Callable[[float], None],
) -> Evaluated:
    """Scores of a model folder on every slice; each image is captioned once.

    Every model is judged by the config's limits, and by its own prompt: it learned to go on there.
    The config's slices are scored as parts of `test`: in a CIDEr of its own, a slice of dogs would
    not count the word dog. Raises BadModelFolder, WrongImageSize.
    """
    from bentos.captioner.engine import Engine

    engine = Engine.load(model)
    generation = Generation(
        **config.generation.model_dump(), prompt=Generation.from_card(engine.card).prompt
    )
    images = slices.parts(dataset)
    total = sum(len(split) for split in images.values())
    found: dict[str, SliceEvaluation] = {}
    embeddings: dict[str, np.ndarray] = {}
    done = 0
    for name, split in images.items():
        captions, vectors = [], []
        for start in range(0, len(split), config.batch_size):
            said, seen = engine.run(split.pixels[start : start + config.batch_size], generation)
            captions += said
            vectors.append(seen)
            done += len(said)
            on_progress(done / total)
        embeddings[name] = np.concatenate(vectors)
        found |= _scored(name, split, captions, config.slices if name == "test" else {})
    cost = _cost(engine, model, next(iter(images.values())).pixels, generation)
    return Evaluated(Evaluation(slices=found, cost=cost), images, embeddings)


def _scored(
    name: str,
    images: Split,
    captions: "Sequence[Caption]",
    inner: Mapping[str, SliceConfig],
) -> dict[str, SliceEvaluation]:
    """The slice `name`, and those slices inside it that hold an image."""
    texts = [caption.text for caption in captions]
    scores = score(texts, images.references)
    whole = SliceEvaluation.scored(
        images.image_ids,
        texts,
        images.references,
        [caption.log_probability for caption in captions],
        scores,
    )
    found = {name: whole}
    for part, places in slices.chosen(images, inner).items():
        if len(places):
            found[part] = whole.at(places, scores)
        else:
            log.warning("no %s image is in slice %s: it has no scores", name, part)
    return found


def _cost(engine: "Engine", model: Path, pixels: Pixels, generation: Generation) -> Cost:
    seconds = []
    for place in [0] * _WARM_UP + list(range(min(_TIMED, len(pixels)))):
        image = pixels[[place]]
        start = time.perf_counter()
        engine.caption(image, generation)
        seconds.append(time.perf_counter() - start)
    return Cost(
        latency_seconds=statistics.median(seconds[_WARM_UP:]),
        size_bytes=sum(file.stat().st_size for file in model.rglob("*") if file.is_file()),
        device=engine.device,
    )
