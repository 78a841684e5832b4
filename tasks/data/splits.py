"""Which split an image belongs to: what came first keeps its place, and its near-duplicates follow.

Images are placed in the order of the rows, each by what came before it alone: so data that arrives
later never moves an image from one split to another.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from configs.schema import SplitsConfig

SplitName = Literal["train", "val", "test", "golden"]
# From the cheapest to the dearest: between two splits, the dearer keeps the image.
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
# What sources call their splits; Karpathy's `restval` is folded into train.
_FOLDED: dict[str, SplitName] = {"restval": "train", "dev": "val", "validation": "val"}


@dataclass(frozen=True)
class Assignment:
    """The split of each image, and which of them must not be used.

    `leaks` leads from a leaked place to the one that it is (nearly) the same as, which lies in a
    dearer split. Without the leaked, no two near-duplicates lie in different splits.
    """

    splits: list[SplitName]
    leaks: dict[int, int]


def parse(hint: str) -> SplitName:
    """The split that a source means by `hint`; ValueError if it means none."""
    name = _FOLDED.get(hint, hint)
    if name not in SPLITS:
        raise ValueError(
            f"split {hint!r} is unknown; sources may say {', '.join((*SPLITS, *_FOLDED))}."
        )
    return name


def assign(
    keys: Sequence[str],
    hints: Sequence[SplitName | None],
    pairs: npt.NDArray[np.int64],
    config: SplitsConfig,
    seed: int,
) -> Assignment:
    """Split every image: by its source's hint, else with its near-duplicates, else by its key.

    `keys` are the images' SHA-256 in the order of the rows, `pairs` (int64 [m, 2]) the places in it
    of near-duplicates. Of a pair whose hints disagree the image in the cheaper split leaks. An
    image without a hint yields to all that came before it: it leaks if it resembles several splits,
    or the golden set, which never grows. What leaked binds nobody, but an image that resembles
    nothing else still goes along with it.
    """
    splits: list[SplitName] = []
    leaks: dict[int, int] = {}
    earlier = _earlier(pairs)
    for place in range(len(keys)):
        near = earlier.get(place, [])
        standing = [other for other in near if other not in leaks]
        split = hints[place]
        if split is None:
            followed = min(
                (splits[other] for other in standing or near), key=SPLITS.index, default=None
            )
            split = followed or _draw(keys[place], config, seed)
            split = "test" if split == "golden" else split
        splits.append(split)
        dearest = max(standing, key=lambda other: SPLITS.index(splits[other]), default=place)
        if SPLITS.index(splits[dearest]) > SPLITS.index(split):
            leaks[place] = dearest
        else:
            leaks.update((other, place) for other in standing if splits[other] != split)
    return Assignment(splits, leaks)


def _draw(key: str, config: SplitsConfig, seed: int) -> SplitName:
    """By a seeded hash of the image's SHA-256."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < config.test:
        return "test"
    return "val" if place < config.test + config.val else "train"


def _earlier(pairs: npt.NDArray[np.int64]) -> dict[int, list[int]]:
    """Place -> those before it that it is a near-duplicate of, if any."""
    near: dict[int, list[int]] = {}
    for first, second in pairs.tolist():
        near.setdefault(max(first, second), []).append(min(first, second))
    return near
