"""Golden pictures in a model folder: what a model must say wherever it is loaded."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bentos.captioner.images import decode, to_pixels
from bentos.captioner.models import ServedModel

FOLDER = "golden"
INDEX = "golden.json"


class GoldenMismatch(ValueError):
    """A model says something else than it said where it was made."""

    def __init__(self, file: str, expected: str, got: str) -> None:
        super().__init__(f"Golden picture {file}: expected {expected!r}, got {got!r}.")
        self.file, self.expected, self.got = file, expected, got


@dataclass(frozen=True)
class Golden:
    """A picture and the caption that the model gave it, alone, where it was made."""

    path: Path
    caption: str


def read_golden(model_folder: Path) -> list[Golden]:
    """The folder's golden pictures; none if it has no golden/golden.json."""
    index = model_folder / FOLDER / INDEX
    if not index.is_file():
        return []
    entries = json.loads(index.read_text(encoding="utf-8"))
    return [Golden(index.parent / entry["file"], entry["caption"]) for entry in entries]


def write_golden(model_folder: Path, pixels: Iterable[np.ndarray], captions: Sequence[str]) -> None:
    """Put golden PNGs into a model folder with the captions its engine gave each of them alone.

    `pixels` are uint8 [H, W, 3], already of the model's size.
    """
    folder = model_folder / FOLDER
    folder.mkdir(exist_ok=True)
    entries = []
    for number, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        Image.fromarray(image).save(folder / f"{number}.png")
        entries.append({"file": f"{number}.png", "caption": caption})
    (folder / INDEX).write_text(json.dumps(entries, indent=1, ensure_ascii=False), "utf-8")


def check_golden(model: ServedModel, model_folder: Path) -> int:
    """How many golden captions were compared; raises GoldenMismatch at the first that differs."""
    golden = read_golden(model_folder)
    for one in golden:
        size = model.engine.image_size
        pixels = to_pixels(decode(one.path.read_bytes(), side=size), size)[np.newaxis]
        caption = model.engine.caption(pixels, model.generation)[0]
        if caption.text != one.caption:
            raise GoldenMismatch(one.path.name, one.caption, caption.text)
    return len(golden)
