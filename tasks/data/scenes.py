"""The demo world: captioned scenes of coloured shapes, each drawn from (seed, index, world) alone.

One or two things stand on a 3 × 3 grid with jitter. Three worlds: `day`; `night`, dim and noisy
on black, where every caption says so; `novel`, with colours and shapes that `day` never shows.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

World = Literal["day", "night", "novel"]
Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

SIDE = 72
REFERENCES = 5
_CELL = 24
_ZOOM = 3  # drawn this much larger and averaged down, for smooth edges
_JITTER = 1.5
_RADIUS = {"small": 6.5, "large": 10.5}

_BACKGROUNDS: dict[str, Colour] = {
    "white": (244, 244, 244),
    "gray": (128, 128, 132),
    "beige": (226, 204, 160),
}
_BLACK: Colour = (6, 6, 10)
_COLOURS: dict[str, Colour] = {
    "red": (214, 32, 36),
    "green": (30, 150, 56),
    "blue": (36, 72, 214),
    "yellow": (246, 222, 20),
    "purple": (128, 36, 158),
    "orange": (246, 134, 16),
}
_NEW_COLOURS: dict[str, Colour] = {
    "pink": (252, 128, 190),
    "brown": (112, 66, 26),
    "cyan": (20, 206, 220),
}
_SHAPES = ("circle", "square", "triangle", "star", "diamond")
_NEW_SHAPES = ("heart", "hexagon")

_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_USUAL = 0.9  # how often the first of several synonyms is taken
_NIGHT_WORDS = ("at night", "in the dark")
# relation -> how it is said of the first thing, and of the second.
_RELATIONS = {
    "left": (("to the left of", "left of"), ("to the right of", "right of")),
    "above": (("above", "over"), ("below", "under")),
}


@dataclass(frozen=True)
class Thing:
    """One shape of a scene; `cell` counts rows and columns from the top left."""

    size: str
    colour: str
    shape: str
    cell: tuple[int, int]


@dataclass(frozen=True)
class Attributes:
    """The truth of a scene. Of two things the first is left of or above the second."""

    background: str
    things: tuple[Thing, ...]
    relation: str | None

    @property
    def alike(self) -> bool:
        """Whether the scene has two things that only their place tells apart."""
        kinds = {(thing.size, thing.colour, thing.shape) for thing in self.things}
        return len(kinds) < len(self.things)


@dataclass(frozen=True)
class Scene:
    image: Image.Image
    references: tuple[str, ...]
    attributes: Attributes


def scene(seed: int, index: int, world: str) -> Scene:
    """The scene at `index` of the world that `seed` makes: the same on every machine."""
    if world not in get_args(World):
        raise ValueError(f"no world named {world!r}; there are {', '.join(get_args(World))}")
    # Seeding by text goes through SHA-512, which no PYTHONHASHSEED or platform changes.
    rng = random.Random(f"{world}/{seed}/{index}")
    attributes = _imagine(rng, world)
    return Scene(_draw(rng, attributes, world), _describe(rng, attributes, world), attributes)


def _imagine(rng: random.Random, world: str) -> Attributes:
    background = "black" if world == "night" else rng.choice(tuple(_BACKGROUNDS))
    if rng.random() < 0.3:
        cell = (rng.randrange(3), rng.randrange(3))
        return Attributes(background, (_thing(rng, world, cell),), None)
    relation = rng.choice(tuple(_RELATIONS))
    # On the middle row or column one look at either thing tells the relation: a model of a million
    # parameters learns that in two minutes, and never learned it for pairs anywhere.
    cells = ((1, 0), (1, 2)) if relation == "left" else ((0, 1), (2, 1))
    first = _thing(rng, world, cells[0])
    if rng.random() < 0.15:
        second = Thing(first.size, first.colour, first.shape, cells[1])
    else:
        second = _thing(rng, world, cells[1])
    return Attributes(background, (first, second), relation)


def _thing(rng: random.Random, world: str, cell: tuple[int, int]) -> Thing:
    new_colour, new_shape = False, False
    if world == "novel":
        new_colour, new_shape = rng.choice(((True, False), (False, True), (True, True)))
    return Thing(
        size=rng.choice(tuple(_RADIUS)),
        colour=rng.choice(tuple(_NEW_COLOURS if new_colour else _COLOURS)),
        shape=rng.choice(_NEW_SHAPES if new_shape else _SHAPES),
        cell=cell,
    )


def _draw(rng: random.Random, attributes: Attributes, world: str) -> Image.Image:
    ground = _BLACK if world == "night" else _BACKGROUNDS[attributes.background]
    large = Image.new("RGB", (SIDE * _ZOOM, SIDE * _ZOOM), _shade(rng, ground, 6))
    canvas = ImageDraw.Draw(large)
    for thing in attributes.things:
        centre_y, centre_x = (
            (place + 0.5) * _CELL + rng.uniform(-_JITTER, _JITTER) for place in thing.cell
        )
        radius = _RADIUS[thing.size] * rng.uniform(0.9, 1.1)
        colour = _shade(rng, (_COLOURS | _NEW_COLOURS)[thing.colour], 12)
        outline = [
            ((centre_x + x * radius) * _ZOOM, (centre_y + y * radius) * _ZOOM)
            for x, y in _OUTLINES[thing.shape]
        ]
        canvas.polygon(outline, fill=colour)
    image = large.reduce(_ZOOM)
    return _darken(rng, image) if world == "night" else image


def _shade(rng: random.Random, colour: Colour, spread: int) -> Colour:
    red, green, blue = (min(255, max(0, c + rng.randint(-spread, spread))) for c in colour)
    return red, green, blue


def _darken(rng: random.Random, image: Image.Image) -> Image.Image:
    """Less light and a noisy sensor."""
    light = rng.uniform(0.35, 0.5)
    noise = np.random.default_rng(rng.getrandbits(64)).integers(-24, 25, (SIDE, SIDE, 3))
    pixels = np.asarray(image, dtype=np.float32) * light + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _ring(corners: int, turn: float, inner: float = 1.0) -> Points:
    """A regular polygon in the unit circle; every second corner at `inner` makes it a star."""
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    reach = [inner if corner % 2 else 1.0 for corner in range(corners)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(reach, angles, strict=True)]


def _heart() -> Points:
    turns = [2 * math.pi * step / 40 for step in range(40)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


_UP = -math.pi / 2
_OUTLINES: dict[str, Points] = {
    "circle": _ring(40, 0),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -0.95), (1, 0.8), (-1, 0.8)],
    "star": _ring(10, _UP, inner=0.42),
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "heart": _heart(),
    "hexagon": _ring(6, 0),
}


def _describe(rng: random.Random, attributes: Attributes, world: str) -> tuple[str, ...]:
    """Five different sentences; a template may come twice only if its words differ."""
    if attributes.relation is None:
        templates = _ONE
    elif attributes.alike:
        templates = _ALIKE
    else:
        templates = _TWO
    said: dict[str, None] = {}
    for template in _cycle(rng, templates):
        said.setdefault(template(_Words(rng, attributes)) + _place(rng, attributes, world))
        if len(said) == REFERENCES:
            break
    return tuple(said)


def _cycle(
    rng: random.Random, templates: tuple[Callable[["_Words"], str], ...]
) -> Iterator[Callable[["_Words"], str]]:
    while True:
        yield from rng.sample(templates, len(templates))


def _place(rng: random.Random, attributes: Attributes, world: str) -> str:
    """Night is always told, another background in most captions."""
    if world == "night":
        return f" {rng.choice(_NIGHT_WORDS)}"
    return f" on a {attributes.background} background" if rng.random() < 0.8 else ""


class _Words:
    """Draws the words for the things of one scene."""

    def __init__(self, rng: random.Random, attributes: Attributes) -> None:
        self._rng = rng
        self._attributes = attributes

    def bare(self, which: int = 0, *, sized: bool = True) -> str:
        """`small red circle`, or `red circle`."""
        thing = self._attributes.things[which]
        words = f"{thing.colour} {thing.shape}"
        if not sized:
            return words
        return f"{self._one_of(_SIZE_WORDS[thing.size])} {words}"

    def a(self, which: int = 0, *, sized: bool = True) -> str:
        """The same behind its article: `an orange circle`."""
        words = self.bare(which, sized=sized)
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def relation(self, *, inverse: bool = False) -> str:
        assert self._attributes.relation is not None
        return self._one_of(_RELATIONS[self._attributes.relation][inverse])

    def _one_of(self, synonyms: tuple[str, ...]) -> str:
        usual, *others = synonyms
        return usual if self._rng.random() < _USUAL else self._rng.choice(others)

    def near(self) -> str:
        return "next to" if self._attributes.relation == "left" else "near"


_ONE: tuple[Callable[[_Words], str], ...] = (
    lambda w: w.a(),
    lambda w: f"there is {w.a()}",
    lambda w: f"one {w.bare()}",
    lambda w: f"a picture of {w.a()}",
    lambda w: f"{w.a()} alone",
    lambda w: f"a single {w.bare(sized=False)}",
)
_TWO: tuple[Callable[[_Words], str], ...] = (
    lambda w: f"{w.a(0)} {w.relation()} {w.a(1)}",
    lambda w: f"{w.a(1)} {w.relation(inverse=True)} {w.a(0)}",
    lambda w: f"there is {w.a(0)} {w.relation()} {w.a(1)}",
    lambda w: f"{w.a(0)} is {w.relation()} {w.a(1)}",
    lambda w: f"a picture of {w.a(0)} {w.relation()} {w.a(1)}",
    lambda w: f"{w.a(0, sized=False)} {w.relation()} {w.a(1, sized=False)}",
    lambda w: f"{w.a(0)} {w.near()} {w.a(1)}",
)
_ALIKE: tuple[Callable[[_Words], str], ...] = (
    lambda w: f"two {w.bare()}s",
    lambda w: f"there are two {w.bare()}s",
    lambda w: f"a pair of {w.bare()}s",
    lambda w: f"a picture of two {w.bare()}s",
    lambda w: f"{w.a()} {w.relation()} another",
    lambda w: f"two {w.bare(sized=False)}s {w.near()} each other",
)
