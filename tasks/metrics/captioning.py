"""Captions a prepared dataset's test images with the engine that serves, and scores them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bentos.captioner.generation import Generation
from configs.schema import EvaluateConfig
from tasks.data import folders
from tasks.data.prepared import PreparedDataset, Split
from tasks.drift import reference
from tasks.metrics import gallery
from tasks.metrics.evaluation import Evaluation, SliceEvaluation
from tasks.refs import EvaluationRef

if TYPE_CHECKING:
    from bentos.captioner.engine import Engine


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with the pictures and the embeddings (float32 [n, d]) of each slice."""

    evaluation: Evaluation
    images: dict[str, Split]
    embeddings: dict[str, np.ndarray]

    def markdown(self, gallery_images: int) -> str:
        """Scores and a gallery, for a person."""
        corpus = {name: s.corpus for name, s in self.evaluation.slices.items()}
        metrics = list(next(iter(corpus.values())))
        header = ["slice", "images", *metrics]
        lines = [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
        for name, scores in corpus.items():
            values = " | ".join(f"{scores[metric]:.3f}" for metric in metrics)
            lines.append(f"| {name} | {len(self.images[name].image_ids)} | {values} |")
        for name, chosen in self._galleries(gallery_images).items():
            lines += ["", f"## {name}", "", gallery.markdown(chosen)]
        return "\n".join(lines)

    def save(self, out: Path, gallery_images: int) -> EvaluationRef:
        """Writes scores, galleries and the drift reference to `out/<digest>/`.

        The reference is what production should look like to this model: the corrected requests
        where it was judged on some, else the test images.
        """
        digest = self.evaluation.digest
        with folders.staging(out) as staged:
            self.evaluation.save(staged)
            production = "current" if "current" in self.images else "test"
            reference.save(staged, self._reference(production))
            for name, chosen in self._galleries(gallery_images).items():
                page = gallery.page(f"Captions of {name}", chosen)
                (staged / f"gallery-{name}.html").write_text(page, encoding="utf-8")
            folder = folders.publish(staged, (out / digest).resolve())
        cider = {name: s.corpus["cider"] for name, s in self.evaluation.slices.items()}
        return EvaluationRef(uri=str(folder), digest=digest, cider=cider)

    def _reference(self, slice_name: str) -> reference.Reference:
        images = self.images[slice_name]
        return reference.Reference(
            image_ids=images.image_ids,
            embeddings=self.embeddings[slice_name],
            brightness=np.array([image.mean() for image in images.pixels]) / 255,
            log_probabilities=np.array(self.evaluation.slices[slice_name].log_probabilities),
        )

    def _galleries(self, count: int) -> dict[str, dict[str, list[gallery.Example]]]:
        return {
            name: gallery.pick(self.images[name], evaluation, count)
            for name, evaluation in self.evaluation.slices.items()
        }


def evaluate(
    engine: "Engine",
    dataset: PreparedDataset,
    config: EvaluateConfig,
    on_progress: Callable[[float], None],
) -> Evaluated:
    """Scores on `test` (every source but feedback) and `current` (corrected requests), if any.

    Every model is judged by the config's limits, and by its own prompt: it learned to go on there.
    """
    test = dataset.split("test")
    slices = {
        "test": test.where(exclude_source="feedback"),
        "current": test.where(source="feedback"),
    }
    images = {name: s for name, s in slices.items() if s.image_ids}
    generation = Generation(
        **config.generation.model_dump(), prompt=Generation.from_card(engine.card).prompt
    )
    total = sum(len(s.image_ids) for s in images.values())
    evaluations, embeddings, done = {}, {}, 0
    for name, split in images.items():
        captions, vectors = [], []
        for start in range(0, len(split.image_ids), config.batch_size):
            found, seen = engine.run(split.pixels[start : start + config.batch_size], generation)
            captions += found
            vectors.append(seen)
            done += len(found)
            on_progress(done / total)
        evaluations[name] = SliceEvaluation.of(
            split.image_ids,
            [caption.text for caption in captions],
            split.references,
            [caption.log_probability for caption in captions],
        )
        embeddings[name] = np.concatenate(vectors)
    return Evaluated(Evaluation(slices=evaluations), images, embeddings)
