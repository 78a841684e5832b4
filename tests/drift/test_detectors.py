from itertools import combinations
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import binom

from tasks.drift.detectors import (
    Backend,
    DimensionMismatch,
    NativeMMD,
    NotFinite,
    TooFewRows,
    detector,
)
from tasks.drift.kernel import gaussian, median_bandwidth, squared_distances

BACKENDS = get_args(Backend)


def normal(rows: int, width: int, *, mean: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.normal(mean, 1.0, (rows, width)).astype(np.float32)


def mmd2_by_definition(x: NDArray, y: NDArray, bandwidth: float) -> float:
    """Equation 3 of Gretton et al. 2012, a pair at a time."""

    def k(a: NDArray, b: NDArray) -> float:
        return float(np.exp(-((a.astype(float) - b.astype(float)) ** 2).sum() / 2 / bandwidth**2))

    within_x = np.mean([k(a, b) for a, b in combinations(x, 2)])
    within_y = np.mean([k(a, b) for a, b in combinations(y, 2)])
    return float(within_x + within_y - 2 * np.mean([k(a, b) for a in x for b in y]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mean", [0.0, 0.5, 100.0])
def test_the_statistic_is_the_unbiased_mmd_of_the_paper(backend: Backend, mean: float) -> None:
    x, y = normal(9, 4, mean=mean), normal(7, 4, mean=mean + 0.5, seed=1)
    found = detector(backend).detect(x, y, permutations=5, seed=0)
    assert found.statistic == pytest.approx(mmd2_by_definition(x, y, found.bandwidth), abs=1e-9)


def test_the_bandwidth_is_the_median_of_the_pooled_distances() -> None:
    x, y = normal(9, 4), normal(7, 4, mean=2.0, seed=1)
    pooled = np.concatenate([x, y])
    distances = [float(((a - b).astype(float) ** 2).sum()) for a, b in combinations(pooled, 2)]
    found = detector("native").detect(x, y, permutations=5, seed=0)
    assert 2 * found.bandwidth**2 == pytest.approx(np.median(distances), rel=1e-5)


@pytest.mark.parametrize(
    ("mean", "drifted"), [(0.0, False), (0.02, False), (0.3, True), (3.0, True)]
)
def test_both_backends_give_the_same_verdict_and_the_same_statistic(
    mean: float, drifted: bool
) -> None:
    reference, current = normal(120, 32), normal(80, 32, mean=mean, seed=1)
    found = [
        detector(backend).detect(reference, current, permutations=200, seed=3)
        for backend in BACKENDS
    ]
    assert [each.p_value < 0.01 for each in found] == [drifted] * len(BACKENDS)
    assert found[0].statistic == pytest.approx(found[1].statistic, abs=1e-9)
    assert found[0].p_value == pytest.approx(found[1].p_value, abs=0.12)


def test_false_alarms_stay_at_the_nominal_rate() -> None:
    windows, level = 400, 0.05
    alarms = sum(
        NativeMMD()
        .detect(
            normal(30, 6, seed=2 * window),
            normal(20, 6, seed=2 * window + 1),
            permutations=99,
            seed=window,
        )
        .p_value
        <= level
        for window in range(windows)
    )
    low, high = binom.interval(0.999, windows, level)
    assert low <= alarms <= high


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_fixes_the_p_value_and_leaves_the_global_generators_alone(backend: Backend) -> None:
    import torch

    reference, current = normal(30, 8), normal(20, 8, mean=0.1, seed=1)

    def p_value(seed: int) -> float:
        return detector(backend).detect(reference, current, permutations=99, seed=seed).p_value

    def global_states() -> tuple[list[int], list[int]]:
        numpy_state = np.random.get_state(legacy=False)["state"]["key"]
        return torch.random.get_rng_state().tolist(), numpy_state.tolist()

    before = global_states()
    assert p_value(7) == p_value(7)
    assert len({p_value(seed) for seed in range(6)}) > 1
    assert global_states() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_smallest_p_value_is_one_of_the_relabellings(backend: Backend) -> None:
    found = detector(backend).detect(normal(30, 8), normal(20, 8, mean=9), permutations=49, seed=0)
    assert found.p_value == 1 / 50


def test_samples_of_one_repeated_row_never_differ() -> None:
    row = np.ones((5, 3), np.float32)
    found = NativeMMD().detect(row, row, permutations=20, seed=0)
    assert (found.statistic, found.p_value) == (pytest.approx(0.0, abs=1e-12), 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_that_cannot_be_compared_are_refused(backend: Backend) -> None:
    test = detector(backend)
    with pytest.raises(TooFewRows, match="1 current"):
        test.detect(normal(5, 3), normal(1, 3), permutations=9, seed=0)
    with pytest.raises(DimensionMismatch, match=r"\(5, 3\).*\(5, 4\)"):
        test.detect(normal(5, 3), normal(5, 4), permutations=9, seed=0)
    with pytest.raises(DimensionMismatch):
        test.detect(normal(5, 3), normal(5, 3)[0], permutations=9, seed=0)
    with pytest.raises(NotFinite):
        test.detect(normal(5, 3), np.full((5, 3), np.nan), permutations=9, seed=0)


matrices = arrays(np.float64, (6, 3), elements=st.floats(-50, 50))
NO_SPREAD = np.eye(6, 3, k=-5) * 2e-157  # its squares are below the smallest float


@given(matrices, matrices)
@example(NO_SPREAD, NO_SPREAD)
@settings(deadline=None)
def test_distances_agree_with_scipy_and_kernels_lie_between_0_and_1(x: NDArray, y: NDArray) -> None:
    distances = squared_distances(x, y)
    np.testing.assert_allclose(distances, cdist(x, y, "sqeuclidean"), atol=1e-9)
    kernel = gaussian(distances, median_bandwidth(squared_distances(x, x)))
    assert ((kernel >= 0) & (kernel <= 1)).all()
