"""Loss and CIDEr on the validation split, shared out over the processes of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from bentos.captioner.engine import Engine
from bentos.captioner.generation import Generation
from bentos.captioner.images import normalize
from tasks.data.prepared import Split
from tasks.metrics.scores import score
from tasks.training import loss
from tasks.training.dataset import Collator, Draw
from tasks.training.model import Parts

SAMPLES = 8


@dataclass(frozen=True)
class Validation:
    """Captions the first `images` of a split with the engine, and scores them."""

    split: Split
    collator: Collator
    generation: Generation
    images: int
    batch_size: int

    def __call__(
        self, parts: Parts, model: Any, rank: int, world: int
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """`val_loss` (nats a token, all references) and `val_cider`, and captions of the first.

        Each process takes every `world`-th image and all get the same answer, in which each image
        counts once. `model` is the one that `parts` was made with, maybe wrapped.
        """
        rows = range(rank, self.images, world)
        model.eval()
        with torch.inference_mode():
            told = self._captions(parts, rows)
            total, tokens = self._loss(parts, model, rows)
        model.train()
        everywhere = _gathered((dict(zip(rows, told, strict=True)), total, tokens), world)
        captions = {row: text for found, _, _ in everywhere for row, text in found.items()}
        assert len(captions) == self.images
        ordered = [captions[row] for row in range(self.images)]
        nats = sum(found for _, found, _ in everywhere)
        cider = score(ordered, self.split.references[: self.images]).corpus["cider"]
        count = sum(found for _, _, found in everywhere)
        return {"val_loss": nats / count, "val_cider": cider}, tuple(ordered[:SAMPLES])

    def _captions(self, parts: Parts, rows: range) -> list[str]:
        engine = Engine(
            parts.model,
            parts.tokenizer,
            mean=parts.processor.image_mean,
            std=parts.processor.image_std,
            card={},
            family=parts.family,
        )
        return [
            caption.text
            for chosen in _batches(rows, self.batch_size)
            for caption in engine.caption(self.split.pixels[chosen], self.generation)
        ]

    def _loss(self, parts: Parts, model: Any, rows: range) -> tuple[float, int]:
        """Sum of nats over all references of some rows, and the tokens that they are over."""
        draws = [Draw(0, row, i) for row in rows for i in range(len(self.split.references[row]))]
        # By length, so that little is padded.
        draws.sort(key=lambda draw: len(self.collator.tokens[draw.row][draw.reference]))
        total, tokens = 0.0, 0
        for start in range(0, len(draws), self.batch_size):
            batch = self.collator(draws[start : start + self.batch_size])
            labels = batch["labels"].to(parts.model.device)
            logits = parts.family.text_logits(model(**inputs(batch, parts)), labels.shape[1])
            total += float(loss.summed(logits, labels))
            tokens += int(loss.num_tokens(labels))
        return total, tokens


def inputs(batch: dict[str, torch.Tensor], parts: Parts) -> dict[str, Any]:
    """A collated batch as a model takes it, on its device; pixels travel there as bytes."""
    device, processor = parts.model.device, parts.processor
    return {
        "pixel_values": normalize(
            batch["pixels"].to(device, non_blocking=True),
            processor.image_mean,
            processor.image_std,
        ),
        "input_ids": batch["input_ids"].to(device, non_blocking=True),
        "attention_mask": batch["attention_mask"].to(device, non_blocking=True),
        "logits_to_keep": batch["input_ids"].shape[1],  # GIT's patches have logits too
        "use_cache": False,
    }


def _batches(rows: range, size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _gathered(mine: Any, world: int) -> list[Any]:
    """What each process found."""
    if world == 1:
        return [mine]
    everywhere: list[Any] = [None] * world
    distributed.all_gather_object(everywhere, mine)
    return everywhere


Validate = Callable[[Parts, Any, int, int], tuple[dict[str, float], tuple[str, ...]]]
