"""The Gaussian kernel that both detectors and the report share; all in float64."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NO_SPREAD = 1e-200  # squared distances below this are no spread, and would underflow as a divisor


def squared_distances(x: NDArray[np.floating], y: NDArray[np.floating]) -> Floats:
    """Squared Euclidean distances [n, m] of the rows of `x` [n, d] and `y` [m, d]."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    # Distances don't depend on the origin, their rounding does: |x|² + |y|² - 2xy cancels.
    origin = x.mean(axis=0)
    x, y = x - origin, y - origin
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * x @ y.T
    return np.maximum(squares, 0.0)


def median_bandwidth(distances: Floats) -> float:
    """Sigma by the median heuristic (Gretton et al. 2012, section 8) from `distances` [n, n].

    2·sigma² is the median squared distance of the pooled rows. It must not know which row is
    whose, or permuting the labels would be no exact test. Where most rows are copies of each
    other the median is 0, and the mean stands in for it; where all are, any bandwidth will do.
    """
    pairs = distances[np.triu_indices_from(distances, k=1)]
    scales = (float(np.median(pairs)), float(pairs.mean()), 1.0)
    return float(np.sqrt(next(scale for scale in scales if scale > _NO_SPREAD) / 2))


def gaussian(distances: Floats, bandwidth: float) -> Floats:
    return np.exp(-distances / (2 * bandwidth**2))
