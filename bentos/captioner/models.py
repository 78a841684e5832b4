"""A model ready to answer: loaded and warm."""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bentos.captioner.engine import BadModelFolder, Engine
from bentos.captioner.generation import Generation

MAX_BATCH = 8
BAKED_MODEL = "baked"  # the alias under which a Bento knows the model it was built with


@dataclass(frozen=True)
class ServedModel:
    """An engine with the name and version that every answer carries, and where it came from."""

    engine: Engine
    name: str
    version: str
    source: str
    generation: Generation


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
    _warm(model, folder)
    return model


def give_memory_back() -> None:
    """Return what freed models held to the system: glibc keeps it, in each thread's arena, and
    another thread's next model would take as much again."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _warm(model: ServedModel, folder: Path) -> None:
    """Run the batch sizes that come first, so that no request pays for first-time set-up."""
    size = model.engine.image_size
    for count in (1, MAX_BATCH):
        captions, embeddings = model.engine.run(
            np.zeros((count, size, size, 3), np.uint8), model.generation
        )
        finite = np.isfinite([caption.log_probability for caption in captions]).all()
        if not finite or not np.isfinite(embeddings).all():
            raise BadModelFolder(f"{folder} gives values that are not finite; its weights are bad.")
