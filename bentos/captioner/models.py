"""A model ready to answer: loaded and warm."""

import ctypes
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bentos.captioner.engine import BadModelFolder, Engine
from bentos.captioner.generation import Generation

LEAST_BATCH, MOST_BATCH = 8, 64  # the smaller one always pays, the larger one fills every queue
# A batch keeps those waiting that come just after its start: they are not to notice.
BATCH_SECONDS = 0.25
BAKED_MODEL = "baked"  # the alias under which a Bento knows the model it was built with


@dataclass(frozen=True)
class ServedModel:
    """An engine with the name and version that every answer carries, where it came from, and how
    many pictures it takes at once."""

    engine: Engine
    name: str
    version: str
    source: str
    generation: Generation
    max_batch: int = LEAST_BATCH


def load_model(
    folder: Path, *, source: str, name: str | None = None, version: str | None = None
) -> ServedModel:
    """Load and warm a model folder; its card says what the arguments don't.

    Raises BadModelFolder.
    """
    engine = Engine.load(folder)
    model = ServedModel(
        engine=engine,
        name=name or str(engine.card.get("name", "unnamed")),
        version=version or str(engine.card.get("version", "unknown")),
        source=source,
        generation=Generation.from_card(engine.card),
    )
    return replace(model, max_batch=_warm(model, folder))


def give_memory_back() -> None:
    """Return what freed models held to the system: glibc keeps it, in each thread's arena, and
    another thread's next model would take as much again."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _warm(model: ServedModel, folder: Path) -> int:
    """The largest batch that takes about BATCH_SECONDS with the longest captions; run here, so that
    no request pays for first-time set-up."""
    _run(model, 1, folder)
    count = LEAST_BATCH
    while _run(model, count, folder) < BATCH_SECONDS / 2 and count < MOST_BATCH:
        count *= 2
    return count


def _run(model: ServedModel, count: int, folder: Path) -> float:
    """Seconds of a batch. Raises BadModelFolder."""
    size = model.engine.image_size
    longest = replace(model.generation, min_new_tokens=model.generation.max_new_tokens)
    started = time.perf_counter()
    captions, embeddings = model.engine.run(np.zeros((count, size, size, 3), np.uint8), longest)
    finite = np.isfinite([caption.log_probability for caption in captions]).all()
    if not finite or not np.isfinite(embeddings).all():
        raise BadModelFolder(f"{folder} gives values that are not finite; its weights are bad.")
    return time.perf_counter() - started
