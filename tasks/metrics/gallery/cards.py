"""Which images are worth a look: the best, the worst, the most changed and some ordinary ones."""

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, takewhile, zip_longest

import numpy as np
from markupsafe import escape
from PIL import Image

from tasks.data.markup import plain
from tasks.data.prepared import PreparedDataset
from tasks.metrics import diversity, slices
from tasks.metrics.evaluation import Evaluation, SliceEvaluation

SIDE = 192  # pixels of a picture's longer side, at most
PAGE_BYTES = 4_500_000  # of all cards together
ORDERS = ("worst", "best", "lost", "gained", "others")

_QUALITY = 82
_REFERENCES = 5
_MARKUP_BYTES = 1_200  # around the texts of a card
_SEED = 4  # any fixed number: the same evaluations always give the same gallery


@dataclass(frozen=True)
class Said:
    """One model's caption of an image, and its scores by metric."""

    caption: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Card:
    """One image; `picture` is a data: URI, `champion` None where it has no caption of it."""

    image_id: str
    picture: str
    slices: tuple[str, ...]
    references: list[str]
    candidate: Said
    champion: Said | None

    @property
    def change(self) -> float | None:
        """CIDEr gained over the champion."""
        if self.champion is None:
            return None
        return self.candidate.scores["cider"] - self.champion.scores["cider"]

    @property
    def size(self) -> int:
        """About how many bytes it takes on a page."""
        said = [self.candidate.caption, self.champion.caption if self.champion else ""]
        texts = escape(" ".join([*said, *self.references, self.references[0]]))
        return _MARKUP_BYTES + len(self.picture) + len(texts.encode())


@dataclass(frozen=True)
class Gallery:
    """Two evaluations of a dataset, and the images chosen from them.

    `picks` are places in `cards` by slice and order, the first the most of its kind. `names` say
    for people what the model, the champion (if any) and the dataset are.
    """

    names: dict[str, str]
    candidate: Evaluation
    champion: Evaluation | None
    cards: list[Card]
    picks: dict[str, dict[str, list[int]]]
    diversity: dict[str, diversity.Verdict]


def collect(
    dataset: PreparedDataset,
    candidate: Evaluation,
    champion: Evaluation | None,
    count: int,
    names: dict[str, str],
) -> Gallery:
    """The first `count` images of every slice in every order, or as many as there is room for."""
    old = {} if champion is None else _said(champion)
    ranked = {
        name: _ranked(part, {image: said.scores["cider"] for image, said in old.items()}, count)
        for name, part in candidate.slices.items()
    }
    cards = list(_fitting(_cards(dataset, candidate, old, ranked)))
    place = {card.image_id: number for number, card in enumerate(cards)}
    return Gallery(
        names=names,
        candidate=candidate,
        champion=champion,
        cards=cards,
        picks={
            name: {
                # No gaps: up to the first for which there was no room.
                order: [place[image] for image in takewhile(place.__contains__, images)]
                for order, images in orders.items()
            }
            for name, orders in ranked.items()
        },
        diversity={name: part.diversity() for name, part in candidate.slices.items()},
    )


def _ranked(part: SliceEvaluation, old_cider: dict[str, float], count: int) -> dict[str, list[str]]:
    """`count` image ids by order; lost and gained are only those that did."""
    cider = dict(zip(part.image_ids, part.per_image["cider"].tolist(), strict=True))
    rising = sorted(cider, key=cider.__getitem__)
    change = {image: cider[image] - old_cider[image] for image in cider if image in old_cider}
    changed = sorted(change, key=change.__getitem__)
    drawn = np.random.default_rng(_SEED).permutation(len(part.image_ids))
    found = {
        "worst": rising,
        "best": rising[::-1],
        "lost": [image for image in changed if change[image] < 0],
        "gained": [image for image in changed[::-1] if change[image] > 0],
        "others": [part.image_ids[place] for place in drawn],
    }
    return {order: images[:count] for order, images in found.items()}


def _cards(
    dataset: PreparedDataset,
    candidate: Evaluation,
    old: dict[str, Said],
    ranked: dict[str, dict[str, list[str]]],
) -> Iterator[Card]:
    """The first of every slice and order, then the second ones, …; each image once."""
    every = zip_longest(*(images for orders in ranked.values() for images in orders.values()))
    wanted = dict.fromkeys(image for image in chain.from_iterable(every) if image is not None)
    sources = {
        image: (split, place)
        for split in slices.parts(dataset).values()
        for place, image in enumerate(split.image_ids)
        if image in wanted
    }
    new, homes = _said(candidate), _homes(candidate)
    for image in wanted:
        split, place = sources[image]
        picture = thumbnail(split.pixels[place], split.sizes[place])
        references = [plain(reference) for reference in split.references[place][:_REFERENCES]]
        yield Card(image, picture, homes[image], references, new[image], old.get(image))


def _fitting(cards: Iterable[Card]) -> Iterator[Card]:
    """As many as a page has room for."""
    left = PAGE_BYTES
    for card in cards:
        left -= card.size
        if left < 0:
            return
        yield card


def thumbnail(pixels: np.ndarray, size: tuple[int, int]) -> str:
    """uint8 [H, W, 3] as a data: URI, in the shape that the picture of `size` had if that is known.

    It has no more pixels a side than the model saw.
    """
    width, height = size if min(size) else (1, 1)
    side = min(SIDE, len(pixels))
    scale = side / max(width, height)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    jpeg = io.BytesIO()
    Image.fromarray(pixels).resize(shape, Image.Resampling.LANCZOS).save(
        jpeg, "JPEG", quality=_QUALITY, subsampling=0
    )
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def _said(evaluation: Evaluation) -> dict[str, Said]:
    """By image: an image has the same caption and scores in all of its slices."""
    return {
        image: Said(plain(caption), dict(zip(part.per_image, map(float, scores), strict=True)))
        for part in evaluation.slices.values()
        for image, caption, *scores in zip(
            part.image_ids, part.predictions, *part.per_image.values(), strict=True
        )
    }


def _homes(evaluation: Evaluation) -> dict[str, tuple[str, ...]]:
    """The slices that each image is in."""
    homes: dict[str, tuple[str, ...]] = {}
    for name, part in evaluation.slices.items():
        for image in part.image_ids:
            homes[image] = (*homes.get(image, ()), name)
    return homes
