"""Pictures with their captions below, for a person who follows a training."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE, _COLUMNS, _LINES, _LINE = 192, 4, 3, 15


def sheet(pixels: np.ndarray, captions: Sequence[str]) -> Image.Image:
    """Images uint8 [n, H, W, 3] in rows of four, at most three lines of caption below each."""
    font = ImageFont.load_default(size=12)
    height = _SIDE + _LINES * _LINE + 10
    rows = -(-len(captions) // _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * (_SIDE + 8), rows * height), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        row, column = divmod(place, _COLUMNS)
        x, y = column * (_SIDE + 8) + 4, row * height + 4
        canvas.paste(Image.fromarray(image).resize((_SIDE, _SIDE)), (x, y))
        lines = textwrap.wrap(caption, 30, max_lines=_LINES, placeholder=" …")
        draw.multiline_text((x, y + _SIDE + 2), "\n".join(lines), fill="black", font=font)
    return canvas
