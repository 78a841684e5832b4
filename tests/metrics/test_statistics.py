"""The paired tests and the bounds hold what they claim, against SciPy and against enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.metrics.statistics import BootstrapT, holm, sign_flip_p_value


def bootstrap(values, resamples=1999, seed=0):
    return BootstrapT.of(np.asarray(values, float), resamples=resamples, seed=seed)


def flipped(values, resamples=1999, seed=0):
    return sign_flip_p_value(np.asarray(values, float), resamples=resamples, seed=seed)


def skewed(size, seed=3):
    """Mostly nothing, sometimes a loss: a candidate that fails on a few images."""
    random = np.random.default_rng(seed)
    return np.where(random.random(size) < 0.3, -random.gamma(2, size=size), 0.1)


def t_of(values, axis=-1):
    error = values.std(axis=axis) / values.shape[axis] ** 0.5
    return (values.mean(axis=axis) - skewed(80).mean()) / error


@pytest.mark.parametrize("level", [0.025, 0.005])
def test_the_bounds_agree_with_scipys_quantiles_of_the_studentized_mean(level):
    values = skewed(80)
    found = bootstrap(values, resamples=40_000)
    low, high = stats.bootstrap(
        (values,),
        t_of,
        n_resamples=40_000,
        confidence_level=1 - 2 * level,
        method="percentile",
        rng=5,
    ).confidence_interval
    error = values.std() / 80**0.5
    assert found.low(level) == pytest.approx(values.mean() - error * high, abs=0.03)
    assert found.high(level) == pytest.approx(values.mean() - error * low, abs=0.03)


def test_p_agrees_with_all_resamples_of_a_tiny_sample():
    values = np.array([0.3, -0.2, 0.9, 0.25, 0.4])
    drawn = np.array(list(itertools.product(values, repeat=5)))
    means, errors = drawn.mean(1), drawn.std(1) / 5**0.5
    with np.errstate(divide="ignore"):
        ts = (means - values.mean()) / np.where(errors < 1e-12, 0, errors)
    for bound in (-0.1, 0.0, 0.1, 0.2):
        exact = (ts >= (values.mean() - bound) / (values.std() / 5**0.5)).mean()
        assert bootstrap(values, 50_000).p_value(bound) == pytest.approx(exact, abs=0.01)


def test_on_skewed_values_the_bound_errs_less_than_students_and_the_percentile():
    # All three on the same draws, so that an unlucky stream of data counts for none.
    ours = students = percentiles = 0
    truth, draws = -0.3 * 2 + 0.7 * 0.1, 600
    for seed in range(draws):
        values = skewed(100, seed)
        ours += bootstrap(values, 400, seed).p_value(truth) <= 0.025
        students += stats.ttest_1samp(values, truth, alternative="greater").pvalue <= 0.025
        resampled = np.random.default_rng(seed).choice(values, (400, 100)).mean(1)
        percentiles += np.quantile(resampled, 0.025) > truth
    assert ours <= 0.045 * draws
    assert ours < students
    assert ours < percentiles


values_seen = st.lists(
    st.floats(-10, 10).map(lambda value: round(value, 3)), min_size=1, max_size=40
)


@given(values_seen, st.floats(0.005, 0.4), st.floats(-3, 3))
def test_the_p_value_is_within_a_level_where_the_lower_bound_is_above(values, level, bound):
    found = bootstrap(values, 399)
    assert (found.p_value(bound) <= level) == (found.low(level) > bound)


@given(values_seen, st.floats(0.005, 0.4))
def test_bounds_lie_around_the_mean_and_within_what_was_seen(values, level):
    found = bootstrap(values, 399).interval(level)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.mean == pytest.approx(np.mean(values))


def test_equal_values_have_no_width_and_decide_by_themselves():
    found = bootstrap([0.1] * 7)
    assert (found.low(0.01), found.mean, found.high(0.01)) == (0.1, 0.1, 0.1)
    assert found.p_value(0.05) == 1 / 2000
    assert found.p_value(0.1) == found.p_value(0.2) == 1


@pytest.mark.parametrize("failures", [1, 2, 3, 4])
def test_a_few_failures_among_equal_images_are_not_taken_for_all_there_are(failures):
    # With one in 33 failing, 100 images show as few as one in 33 times or oftener.
    values = np.array([-8.0] * failures + [0.0] * (100 - failures))
    assert bootstrap(values).p_value(-0.4) > 0.01
    # But where no image lost as much as the margin, the mean didn't.
    assert bootstrap(values / 100).p_value(-0.4) == 1 / 2000


def test_the_detectable_difference_is_detected_as_often_as_said():
    random = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        stated = bootstrap(random.normal(scale=0.5, size=60), 499).detectable(0.05, 0.9)
        values = random.normal(stated, 0.5, size=60)
        p_value = max(bootstrap(values, 499).p_value(0), flipped(values, 499))
        found += p_value <= 0.05
    assert 0.87 * 300 <= found <= 0.98 * 300


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
@settings(max_examples=50)
def test_flipping_signs_agrees_with_all_flips_of_a_tiny_sample(values):
    flips = np.array(list(itertools.product([-1, 1], repeat=len(values))))
    exact = (flips @ np.array(values) >= sum(values)).mean()
    # Tenths have ties that floating point tells apart.
    assert flipped([value / 10 for value in values], 20_000) == pytest.approx(exact, abs=0.02)


def test_flipping_signs_agrees_with_scipys_permutation_test():
    values = skewed(80) + 0.75
    theirs = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=20_000,
        rng=5,
    )
    assert 0.01 < theirs.pvalue < 0.5
    assert flipped(values, 20_000) == pytest.approx(theirs.pvalue, abs=0.012)


def test_flipping_signs_is_exact_where_the_models_are_exchangeable():
    random = np.random.default_rng(1)
    p_values = [flipped(random.choice([-1, 1], 60) * skewed(60, seed), 399) for seed in range(1500)]
    for level in (0.5, 0.1, 0.05):
        margin = 4 * math.sqrt(level * (1 - level) / 1500)
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=margin)


def test_no_p_value_is_below_one_over_all_draws():
    sure = np.linspace(1, 2, 60)
    assert flipped(sure, 999) == bootstrap(sure, 999).p_value(0) == 1 / 1000


@given(values_seen, st.floats(0, 5))
def test_adding_the_same_to_every_value_makes_no_p_value_larger(values, more):
    raised = np.array(values) + more
    assert flipped(raised, 199) <= flipped(values, 199)
    assert bootstrap(raised, 199).p_value(0) <= bootstrap(values, 199).p_value(0)


def test_the_same_seed_gives_the_same_whatever_the_chunks(monkeypatch):
    values = skewed(50)
    whole = bootstrap(values), flipped(values)
    monkeypatch.setattr("tasks.metrics.statistics._CHUNK", 777)
    in_parts = bootstrap(values), flipped(values)
    np.testing.assert_array_equal(in_parts[0].pivots, whole[0].pivots)
    assert in_parts[1] == whole[1]


def test_holm_agrees_with_a_worked_example():
    # Of four, at 0.05: 0.005 ≤ 0.05 / 4, 0.01 ≤ 0.05 / 3, 0.03 > 0.05 / 2, and no more.
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, dict.fromkeys("abcd", 0.05))
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


@given(
    st.lists(
        st.tuples(st.floats(1e-4, 1), st.sampled_from([0.05, 0.01, 0.005])), min_size=1, max_size=5
    )
)
def test_holm_rejects_what_closed_testing_rejects(hypotheses):
    """Marcus, Peritz & Gabriel 1976: a hypothesis is rejected when every set that holds it is, a
    set by Bonferroni's rule, with each one's level over the set's size."""
    names = range(len(hypotheses))
    p_values = {name: p for name, (p, _) in enumerate(hypotheses)}
    levels = {name: level for name, (_, level) in enumerate(hypotheses)}

    def rejected(chosen):
        return any(p_values[name] * len(chosen) <= levels[name] for name in chosen)

    sets = [s for size in names for s in itertools.combinations(names, size + 1)]
    adjusted = holm(p_values, levels)
    for name in names:
        closed = all(rejected(chosen) for chosen in sets if name in chosen)
        assert (adjusted[name] <= levels[name]) == closed
        assert p_values[name] * (1 - 1e-12) <= adjusted[name] <= 1
