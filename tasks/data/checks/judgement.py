"""What only the whole dataset shows: copies, near-duplicates, leaks between splits, captions that
are everywhere. Works on the inspection's arrays alone; no image or caption is read again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema import ChecksConfig, SplitsConfig
from tasks.data import duplicates, splits
from tasks.data.checks.inspection import NO_HINT, Inspection
from tasks.data.splits import SPLITS, SplitName

COPY = "duplicate_image"
# Below this many images a caption is not called common, however small the dataset.
_COMMON_FLOOR = 10
_NO_SPLIT = -1


@dataclass(frozen=True)
class Aside:
    """Why a whole image leaves the dataset: a rule, and the place of the image it resembles."""

    rule: str
    other: int | None = None


@dataclass(frozen=True)
class Judgement:
    """By place: what leaves, the split of what stays, where copies' captions go.

    `near` and `leaks` are places (later or cheaper image -> the one that it resembles) whether or
    not the config sets them aside; `common` are the keys of captions that are everywhere.
    """

    aside: dict[int, Aside]
    split: np.ndarray
    heirs: dict[int, int]
    near: dict[int, int]
    leaks: dict[int, int]
    common: frozenset[int]

    def split_of(self, place: int) -> SplitName:
        return SPLITS[self.split[place]]


def judge(found: Inspection, config: ChecksConfig, shares: SplitsConfig, seed: int) -> Judgement:
    """Decide on every row."""
    common = _common(found, config)
    aside: dict[int, Aside] = {place: Aside(fault.rule) for place, fault in found.faults.items()}
    if config.actions.caption_too_common != "note":
        aside |= _left_without_caption(found, common, aside)
    heirs, copy_leaks = _copies(found, aside)
    stays = np.ones(len(found.state), bool)
    stays[list(aside)] = False
    kept = np.flatnonzero(stays)
    pairs = duplicates.near_pairs(found.state["signature"][kept], config.near_duplicate_bits)
    keys = _Digests(found.state["sha256"], kept)
    hints = [None if hint == NO_HINT else SPLITS[hint] for hint in found.state["hint"][kept]]
    assigned = splits.assign(keys, hints, pairs, shares, seed)
    split = np.full(len(found.state), _NO_SPLIT, np.int8)
    split[kept] = [SPLITS.index(name) for name in assigned.splits]
    leaks = {int(kept[a]): int(kept[b]) for a, b in assigned.leaks.items()}
    near: dict[int, int] = {}
    for first, later in kept[pairs]:
        if later not in leaks and first not in leaks:
            near.setdefault(int(later), int(first))
    # What resembles the golden set never trains, whatever is done about other leaks.
    quarantined = SPLITS if config.actions.leak != "note" else ("golden",)
    aside |= {
        place: Aside("leak", other)
        for place, other in leaks.items()
        if SPLITS[split[other]] in quarantined
    }
    if config.actions.near_duplicate != "note":
        aside |= {place: Aside("near_duplicate", other) for place, other in near.items()}
    return Judgement(aside, split, heirs, near, leaks | copy_leaks, common)


class _Digests(Sequence[str]):
    """SHA-256 in hex of some rows, made as they are asked for."""

    def __init__(self, raw: np.ndarray, places: np.ndarray) -> None:
        self._raw, self._places = raw, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        # NumPy drops the zeros at the end of a byte string.
        return bytes(self._raw[self._places[index]]).ljust(32, b"\0").hex()


def _common(found: Inspection, config: ChecksConfig) -> frozenset[int]:
    """Keys of the captions that more than the allowed share of the images have."""
    keys, counts = np.unique(found.said, return_counts=True)
    limit = max(_COMMON_FLOOR, config.max_common_share * len(found.state))
    return frozenset(keys[counts > limit].tolist())


def _left_without_caption(
    found: Inspection, common: frozenset[int], aside: dict[int, Aside]
) -> dict[int, Aside]:
    """Images whose every good caption is a common one."""
    is_common = np.isin(found.said, np.fromiter(common, np.uint64, len(common)))
    owners = np.repeat(np.arange(len(found.state)), found.state["good"])
    own = np.bincount(owners[~is_common], minlength=len(found.state))
    return {
        int(place): Aside("caption_too_common")
        for place in np.flatnonzero((own == 0) & (found.state["good"] > 0))
        if place not in aside
    }


def _copies(found: Inspection, aside: dict[int, Aside]) -> tuple[dict[int, int], dict[int, int]]:
    """Set the exact copies aside, keeping the first in the dearest split that a source names.

    Returns the heirs (copy -> the image that takes its captions) and the leaks (copies that their
    source puts into another split). A leak, and a copy of a golden image, keeps its captions.
    """
    hint = found.state["hint"]
    heirs: dict[int, int] = {}
    leaks: dict[int, int] = {}
    for places in _same_bytes(found, aside):
        first = min(places, key=lambda place: (-hint[place], place))
        for place in places:
            if place == first:
                continue
            aside[place] = Aside(COPY, first)
            if hint[first] == SPLITS.index("golden"):
                continue
            if hint[place] in (NO_HINT, hint[first]):
                heirs[place] = first
            else:
                leaks[place] = first
                aside[place] = Aside("leak", first)
    return heirs, leaks


def _same_bytes(found: Inspection, aside: dict[int, Aside]) -> Iterator[list[int]]:
    """Places, in order, of the usable images that have the same bytes as others."""
    order = np.argsort(found.state["sha256"], kind="stable")
    sha = found.state["sha256"][order]
    equal = np.concatenate([[False], sha[1:] == sha[:-1], [False]])
    # Runs of equal neighbours; a list of all the others would be the largest thing in memory.
    for start, end in np.flatnonzero(equal[1:] != equal[:-1]).reshape(-1, 2):
        usable = [int(place) for place in order[start : end + 1] if place not in aside]
        if len(usable) > 1:
            yield usable
