"""How sure a difference between two models is."""

from dataclasses import dataclass

import numpy as np

_CHUNK = 2**22  # drawn indices at a time: 32 MiB


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    candidate: np.ndarray, champion: np.ndarray, *, resamples: int, confidence: float, seed: int
) -> Interval:
    """Percentile interval of mean(candidate - champion) over images (Efron & Tibshirani 1993).

    Both arrays are [images] with the same images in the same order, at least one. The pairs are
    drawn together, so what makes an image hard for both models cancels out.
    """
    if candidate.shape != champion.shape or candidate.ndim != 1 or not len(candidate):
        raise ValueError(
            f"Scores of shapes {candidate.shape} and {champion.shape} are no pairs: "
            "give two equally long arrays of at least one image."
        )
    difference = candidate - champion
    images = len(difference)
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK // images)
    means = np.concatenate(
        [
            difference[random.integers(0, images, (min(rows, resamples - done), images))].mean(1)
            for done in range(0, resamples, rows)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(difference.mean()), float(low), float(high))
