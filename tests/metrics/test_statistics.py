"""The paired bootstrap is deterministic, as wide as it should be, and sees pairing."""

import numpy as np
import pytest
from scipy import stats

from tasks.metrics.statistics import paired_bootstrap


def bootstrap(candidate, champion, confidence=0.95, resamples=1000, seed=0):
    return paired_bootstrap(
        np.asarray(candidate, float),
        np.asarray(champion, float),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def test_the_interval_agrees_with_scipys_percentile_bootstrap():
    random = np.random.default_rng(3)
    candidate, champion = random.gamma(2, size=400), random.gamma(1.5, size=400)
    ours = bootstrap(candidate, champion, resamples=20_000)
    theirs = stats.bootstrap(
        (candidate - champion,), np.mean, n_resamples=20_000, method="percentile", rng=5
    ).confidence_interval
    assert ours.mean == (candidate - champion).mean()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_interval_covers_the_true_difference_as_often_as_students_interval():
    # Against Student's on the same draws, so that an unlucky stream of data counts for neither.
    random = np.random.default_rng(0)
    ours = students = 0
    for seed in range(300):
        champion = random.normal(size=100)
        candidate = champion + 0.2 + random.normal(scale=0.5, size=100)
        interval = bootstrap(candidate, champion, confidence=0.9, resamples=400, seed=seed)
        ours += interval.low <= 0.2 <= interval.high
        students += stats.ttest_1samp(candidate - champion, 0.2).pvalue >= 0.1
    assert abs(ours - students) <= 12


def test_the_same_seed_gives_the_same_interval_whatever_the_chunks(monkeypatch):
    random = np.random.default_rng(1)
    candidate, champion = random.normal(size=(2, 50))
    whole = bootstrap(candidate, champion)
    monkeypatch.setattr("tasks.metrics.statistics._CHUNK", 777)
    assert bootstrap(candidate, champion) == whole


def test_an_image_hard_for_both_models_adds_no_width():
    hard = np.random.default_rng(2).normal(scale=100, size=60)
    interval = bootstrap(hard + 1, hard)
    assert (interval.low, interval.high) == pytest.approx((1, 1))


@pytest.mark.parametrize(("candidate", "champion"), [([], []), ([1], [1, 2]), ([[1]], [[1]])])
def test_scores_that_are_no_pairs_are_refused(candidate, champion):
    with pytest.raises(ValueError, match="no pairs"):
        bootstrap(candidate, champion)
