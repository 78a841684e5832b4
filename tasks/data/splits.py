"""Which split an image belongs to: a function of its bytes, so that new data never moves old."""

import hashlib
from typing import Literal

from configs.schema import SplitsConfig

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
# What sources call their splits; Karpathy's `restval` is folded into train.
_HINTS: dict[str, SplitName] = {"restval": "train", "dev": "val", "validation": "val"}


def assign(image_key: str, config: SplitsConfig, seed: int, hint: str | None = None) -> SplitName:
    """The source's own split if it names one, else by a seeded hash of the image's SHA-256."""
    if hint is not None:
        name = _HINTS.get(hint, hint)
        if name not in SPLITS:
            raise ValueError(
                f"split {hint!r} is unknown; sources may say {', '.join((*SPLITS, *_HINTS))}."
            )
        return name
    number = int.from_bytes(hashlib.sha256(f"{seed}/{image_key}".encode()).digest()[:8], "big")
    place = number / 2**64
    if place < config.test:
        return "test"
    return "val" if place < config.test + config.val else "train"
