"""What a picture looks like, in two numbers that need no model; the monitor's reference has the
same ones of the champion's validation images."""

from dataclasses import dataclass

import numpy as np

# A column of so many bytes still fits 16 bits when it is summed, which is 3 times as fast as more.
_ROWS = 256


@dataclass(frozen=True)
class PictureStatistics:
    """`brightness`: the mean pixel, 0 black to 1 white. `sharpness`: the variance of the Laplacian
    (Pech-Pacheco et al., 2000), of the green channel, which carries most of the luminance."""

    brightness: float
    sharpness: float


def picture_statistics(pixels: np.ndarray) -> PictureStatistics:
    """Of uint8 [height, width, 3], at the model's size: sharpness depends on it."""
    rows = pixels.reshape(len(pixels), -1)
    columns = [
        np.add.reduce(rows[first : first + _ROWS], axis=0, dtype=np.uint16)
        for first in range(0, len(rows), _ROWS)
    ]
    total = sum(int(sums.sum(dtype=np.uint64)) for sums in columns)
    green = pixels[..., 1].astype(np.int16)
    edges = green[:-2, 1:-1] + green[2:, 1:-1]
    edges += green[1:-1, :-2]
    edges += green[1:-1, 2:]
    edges -= 4 * green[1:-1, 1:-1]
    flat = edges.astype(np.float32).ravel()
    mean = float(flat.sum()) / flat.size
    variance = float(flat @ flat) / flat.size - mean**2
    return PictureStatistics(total / pixels.size / 255, max(0.0, variance))
