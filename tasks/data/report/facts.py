"""Everything that a report tells, as plain values: what the checks found, and what is left."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.data.profile import Profile


@dataclass(frozen=True)
class Example:
    """One image of the dataset; `path` is None if there is nothing to show."""

    image_id: str
    detail: str
    path: Path | None


@dataclass(frozen=True)
class Counts:
    """How many images, and how many captions of them."""

    images: int
    captions: int


@dataclass(frozen=True)
class Facts:
    """What there is to tell about one version of a dataset.

    `verdict` says why it is rejected (the rule, a colon, the count, the fix), None if it is not.
    `quarantined`, `noted` and `examples` are by rule; rules named `caption_…` count captions,
    the others images. `leak_pairs` are (the one set aside, the one it leaks from), `clusters` near-
    duplicates that were kept. `profile` is of what was accepted, `previous` of the last version.
    """

    name: str
    digest: str
    verdict: str | None
    read: Counts
    accepted: Counts
    quarantined: dict[str, int]
    noted: dict[str, int]
    examples: dict[str, tuple[Example, ...]]
    splits: dict[str, int]
    leaks: int
    leak_pairs: tuple[tuple[Example, Example], ...]
    clusters: tuple[tuple[Example, ...], ...]
    gallery: tuple[tuple[Example, tuple[str, ...]], ...]
    profile: Profile
    previous: Profile | None


def summary(facts: Facts) -> dict[str, Any]:
    """The numbers that a program reads."""
    return {
        "read": asdict(facts.read),
        "accepted": asdict(facts.accepted),
        "quarantined": dict(facts.quarantined),
        "noted": dict(facts.noted),
        "splits": dict(facts.splits),
        "leaks": facts.leaks,
        "digest": facts.digest,
    }
