"""Two-sample tests by the maximum mean discrepancy (MMD), two backends behind one interface.

Gretton, Borgwardt, Rasch, Schölkopf and Smola, "A Kernel Two-Sample Test", JMLR 13, 2012.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.drift.kernel import Floats, gaussian, median_bandwidth, squared_distances

Backend = Literal["alibi-detect", "native"]


class DriftError(ValueError):
    """Samples that no test can be made of."""


class TooFewRows(DriftError):
    """A sample of fewer than two rows: MMD² compares rows of one sample with each other."""


class DimensionMismatch(DriftError):
    """Samples that aren't two matrices of the same width, such as embeddings of two models."""


class NotFinite(DriftError):
    """A sample holds NaN or infinity."""


class TooFewPermutations(DriftError):
    """So few relabellings that no p-value could fall to the threshold."""


@dataclass(frozen=True)
class Detection:
    """`statistic` is the unbiased MMD² (below 0 by chance), `p_value` is never 0.

    p = (k + 1) / (permutations + 1), k the relabellings with an MMD² at least as large (Phipson
    and Smyth 2010): a test that rejects at p ≤ α raises at most a share α of false alarms.
    """

    statistic: float
    p_value: float
    bandwidth: float


class Detector(Protocol):
    def detect(
        self,
        reference: NDArray[np.floating],
        current: NDArray[np.floating],
        *,
        permutations: int,
        seed: int,
    ) -> Detection:
        """Compare the rows of `reference` [n, d] and `current` [m, d]; raises DriftError."""


def detector(name: Backend) -> Detector:
    backends: dict[Backend, Detector] = {"native": NativeMMD(), "alibi-detect": AlibiMMD()}
    return backends[name]


class NativeMMD:
    """All relabellings in one matrix product."""

    def detect(
        self,
        reference: NDArray[np.floating],
        current: NDArray[np.floating],
        *,
        permutations: int,
        seed: int,
    ) -> Detection:
        distances, size = _pooled_distances(reference, current)
        bandwidth = median_bandwidth(distances)
        kernel = gaussian(distances, bandwidth)
        np.fill_diagonal(kernel, 0.0)

        labels = np.zeros((permutations + 1, len(kernel)))
        labels[:, :size] = 1.0
        labels[1:] = np.random.default_rng(seed).permuted(labels[1:], axis=1)
        observed, *permuted = _mmd2(kernel, labels.T, size)

        # Rounding must not tell apart relabellings that come to the same.
        exceeded = int(np.sum(np.array(permuted) >= observed - 1e-12))
        return Detection(float(observed), (exceeded + 1) / (permutations + 1), bandwidth)


class AlibiMMD:
    """`alibi_detect.cd.MMDDrift` on PyTorch, given our bandwidth and a corrected p-value."""

    def detect(
        self,
        reference: NDArray[np.floating],
        current: NDArray[np.floating],
        *,
        permutations: int,
        seed: int,
    ) -> Detection:
        import torch
        from alibi_detect.cd import MMDDrift

        distances, _ = _pooled_distances(reference, current)
        bandwidth = median_bandwidth(distances)
        # The library permutes by torch's global generator, so it is seeded and put back.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            drift = MMDDrift(
                np.asarray(reference, np.float64),
                backend="pytorch",
                sigma=np.array([bandwidth]),
                configure_kernel_from_x_ref=False,
                n_permutations=permutations,
                device="cpu",
            )
            found = drift.predict(np.asarray(current, np.float64))["data"]
        exceeded = round(found["p_val"] * permutations)
        return Detection(float(found["distance"]), (exceeded + 1) / (permutations + 1), bandwidth)


def _pooled_distances(
    reference: NDArray[np.floating], current: NDArray[np.floating]
) -> tuple[Floats, int]:
    """Squared distances of all rows [n+m, n+m], the reference's first, and n; checks both."""
    if reference.ndim != 2 or current.ndim != 2 or reference.shape[1] != current.shape[1]:
        raise DimensionMismatch(
            f"Reference {reference.shape} and current {current.shape} must be [n, d] and [m, d]: "
            "embed both with the same model."
        )
    if min(len(reference), len(current)) < 2:
        raise TooFewRows(
            f"{len(reference)} reference and {len(current)} current rows: wait for at least 2 each."
        )
    pooled = np.concatenate([reference, current]).astype(np.float64)
    if not np.isfinite(pooled).all():
        raise NotFinite("An embedding holds NaN or infinity: leave its request out of the window.")
    return squared_distances(pooled, pooled), len(reference)


def _mmd2(kernel: Floats, labels: Floats, size: int) -> Floats:
    """Unbiased MMD² (eq. 3 of the paper) for each column of `labels` [n+m, k], 1 = reference.

    `kernel` is symmetric with a zero diagonal; each column holds `size` ones.
    """
    other = len(kernel) - size
    towards = labels.T @ kernel.sum(axis=1)  # Kernel sums from the reference rows to all rows.
    within = (labels * (kernel @ labels)).sum(axis=0)
    across = towards - within
    within_other = kernel.sum() - 2 * towards + within
    return (
        within / (size * (size - 1))
        + within_other / (other * (other - 1))
        - 2 * across / (size * other)
    )
