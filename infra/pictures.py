"""Small pictures in a terminal, two pixels a character."""

import numpy as np
from PIL import Image
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

WIDTH = 24


def beside(image: Image.Image, lines: list[str]) -> RenderableType:
    """The picture at the left, lines of markup at the right."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(" ", _blocks(image), Text.from_markup("\n".join(lines)))
    return grid


def _blocks(image: Image.Image) -> Text:
    pixels = np.asarray(image.resize((WIDTH, WIDTH), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            style = f"rgb({','.join(map(str, top))}) on rgb({','.join(map(str, bottom))})"
            text.append("▀", style)
        text.append("\n")
    return text
