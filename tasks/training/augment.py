"""Variations of an image under which its captions stay true."""

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Cut off a little, a little lighter or darker: what is said of things, colours and light holds.
_LEAST_SIDE = 0.9
_LEAST_LIGHT, _MOST_LIGHT = 0.9, 1.1
_SIDES = re.compile(r"left|right|clockwise|\bwest|\beast", re.IGNORECASE)
# Writing is mirrored too.
_WRITING = re.compile(
    r"\b(letter|word|text|sign|logo|number|written|writing|reads?|says?|jersey)", re.IGNORECASE
)


def may_be_mirrored(references: Sequence[str]) -> bool:
    """Whether no caption of an image tells left from right, or of writing."""
    return not any(_SIDES.search(told) or _WRITING.search(told) for told in references)


def vary(image: np.ndarray, *, mirror: bool, seed: tuple[int, int]) -> np.ndarray:
    """A variation, uint8 [H, W, 3] like the image, that is a function of the seed.

    Cropped to 90 to 100 % of each side and resized, 0.9 to 1.1 times as bright, and, if it may be,
    mirrored half of the time.
    """
    rng = np.random.default_rng(seed)
    height, width, _ = image.shape
    part_width, part_height = rng.uniform(_LEAST_SIDE, 1, 2) * (width, height)
    x, y = rng.uniform(0, 1, 2) * (width - part_width, height - part_height)
    box = (x, y, x + part_width, y + part_height)
    light = rng.uniform(_LEAST_LIGHT, _MOST_LIGHT)
    turn = mirror and rng.random() < 0.5
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box)
    varied = np.clip(np.asarray(picture, np.float32) * light, 0, 255).round().astype(np.uint8)
    return varied[:, ::-1] if turn else varied
