"""How sure a difference between two models is: two paired tests, an interval, and Holm's rule."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

_CHUNK = 2**22  # draws at a time: 32 MiB
_TIES = 1e-12  # sums that differ by less, relative to all that is summed, are the same sum


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class BootstrapT:
    """The studentized bootstrap of a mean (Efron 1979; Hall 1992): bounds and one-sided tests.

    It resamples t = (mean* - mean) / error*, not the mean itself, so it knows that skewed values
    put the mean's bounds at unequal distances; the percentile bootstrap and BCa err there
    (tests/benchmarks/RESULTS.md). A resample of equal values has no error: its t is infinite, away
    from the mean. Bounds end at the outermost value seen, so they are finite.
    """

    mean: float
    error: float
    doubt: float  # the standard error of `error`, as a share of it
    lowest: float
    highest: float
    count: int
    pivots: np.ndarray
    deviations: np.ndarray  # of each resample's mean, and its error
    errors: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, *, resamples: int, seed: int) -> Self:
        """Resamples `values`, a float array [n] of at least one finite number."""
        n, lowest, highest = len(values), float(values.min()), float(values.max())
        mean = min(max(float(values.mean()), lowest), highest)  # rounding may leave the range
        centred = values - mean
        spread = float(centred.std())
        kurtosis = float(((centred / spread) ** 4).mean()) if spread else 0.0
        random = np.random.default_rng(seed)
        pivots, deviations, all_errors = [], [], []
        for rows in _chunks(resamples, n):
            drawn = centred[random.integers(0, n, (rows, n), dtype=np.uint32)]
            means = drawn.mean(1)
            variances = np.einsum("ij,ij->i", drawn, drawn) / n - means**2
            # What a division by no error leaves, where it is not 0 by 0.
            ts = np.where(np.abs(means) > _TIES * spread, np.copysign(np.inf, means), 0.0)
            varied = variances > _TIES * spread**2
            errors = np.sqrt(np.maximum(variances, 0) / n)
            pivots.append(np.divide(means, errors, out=ts, where=varied))
            deviations.append(means)
            all_errors.append(errors)
        return cls(
            mean=mean,
            error=spread / n**0.5,
            doubt=math.sqrt(max(0.0, kurtosis - 1) / (4 * n)),
            lowest=lowest,
            highest=highest,
            count=n,
            pivots=np.sort(np.concatenate(pivots)),
            deviations=np.concatenate(deviations),
            errors=np.concatenate(all_errors),
        )

    def low(self, level: float) -> float:
        """The true mean lies below this with probability `level` at most."""
        return max(self.lowest, self._bound(-1 - self._beyond(level)))

    def high(self, level: float) -> float:
        """The true mean lies above this with probability `level` at most."""
        return min(self.highest, self._bound(self._beyond(level)))

    def interval(self, level: float) -> Interval:
        """Both bounds, `level` beyond each."""
        return Interval(self.mean, self.low(level), self.high(level))

    def p_value(self, bound: float) -> float:
        """Of "the mean is at most `bound`": within a level exactly when `low(level)` is above."""
        if self.lowest > bound:
            return 1 / (len(self.pivots) + 1)
        if not self.error:
            return 1.0
        reached = (self.mean - bound) / self.error
        as_far = len(self.pivots) - np.searchsorted(self.pivots, reached)
        return float(1 + as_far) / (len(self.pivots) + 1)

    def detectable(self, level: float, power: float) -> float:
        """How far above a bound a mean must truly lie to be shown there at `level`, by this test
        and by flipping signs, with probability `power`: as many values, spread like these.

        Each resample says how far that would be for it: skewed values move its mean and its error
        together. The answer is a standard error wider, since the spread is itself an estimate.
        """
        from scipy.special import stdtrit

        if not self.error:
            return 0.0
        sure = stdtrit(max(1, self.count - 1), 1 - level)  # Student's quantile
        critical = max((self.mean - self.low(level)) / self.error, sure)
        alone = np.quantile(critical * self.errors - self.deviations, power)
        # Signs are flipped about the bound, so that a mean far above it widens their sums, too.
        flipped = sure * np.hypot(self.errors, alone / self.count**0.5)
        needed = np.maximum(critical * self.errors, flipped) - self.deviations
        return float(np.quantile(needed, power) * (1 + self.doubt))

    def _beyond(self, level: float) -> int:
        """How many pivots lie beyond a bound."""
        return max(0, int(level * (len(self.pivots) + 1)) - 1)

    def _bound(self, index: int) -> float:
        # Infinite times no error at all is no distance.
        return float(self.mean - self.error * self.pivots[index]) if self.error else self.mean


def sign_flip_p_value(values: np.ndarray, *, resamples: int, seed: int) -> float:
    """Of "the mean is at most 0", by flipping the signs of `values`, a float array [n], at random.

    Exact where either model is as likely to be ahead on an image by as much (Fisher 1935). The
    observed signs count as one of the draws (Phipson & Smyth 2010), so p is never 0.
    """
    words = -(-len(values) // 64)
    padded = np.pad(values, (0, 64 * words - len(values)))
    # The sums of eight images by all their 256 signs: a draw is then a byte for eight images.
    signs = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    sums = signs @ padded.reshape(-1, 8).T
    least = values.sum() - _TIES * np.abs(values).sum()
    random = np.random.default_rng(seed)
    as_high = 0
    for rows in _chunks(resamples, 8 * words):
        drawn = random.integers(0, 2**64, (rows, words), dtype=np.uint64).view(np.uint8)
        as_high += int((sums[drawn, np.arange(8 * words)].sum(1) >= least).sum())
    return (1 + as_high) / (resamples + 1)


def holm(p_values: Mapping[str, float], levels: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted so that each may be held against its own level (Holm 1979).

    Ordered by p / level, the k-th smallest of m is multiplied by m - k + 1, and none ends below
    one before it. The first true hypothesis that is rejected, one of t, was multiplied by t or
    more, so a false rejection has at most the mean of the true hypotheses' levels as probability.
    """
    adjusted = {}
    reached = 0.0
    order = sorted(p_values, key=lambda name: p_values[name] / levels[name])
    for left, name in zip(range(len(order), 0, -1), order, strict=True):
        reached = max(reached, left * p_values[name] / levels[name])
        adjusted[name] = min(1.0, reached * levels[name])
    return adjusted


def _chunks(total: int, width: int) -> Iterator[int]:
    """Rows at a time of `width` draws each, `total` in all."""
    rows = max(1, _CHUNK // width)
    for done in range(0, total, rows):
        yield min(rows, total - done)
