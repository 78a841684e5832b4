"""Intervals are those of scoring each resample anew, and hold the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.metrics import intervals as room
from tasks.metrics.evaluation import SliceEvaluation
from tasks.metrics.intervals import intervals
from tasks.metrics.scores import score

WORDS = ("a", "red", "blue", "dog", "cat", "runs", "sits", "on", "grass", "sea")


def captions(images: int, seed: int) -> tuple[list[str], list[list[str]]]:
    random = np.random.default_rng(seed)

    def sentence() -> str:
        return " ".join(random.choice(WORDS, random.integers(3, 10)))

    predictions = [sentence() for _ in range(images)]
    said = [[sentence(), " ".join([*p.split()[:3], sentence()])] for p in predictions]
    return predictions, said


def test_every_bound_is_that_of_scoring_the_drawn_captions_anew(monkeypatch):
    monkeypatch.setattr(room, "RESAMPLES", 60)
    predictions, references = captions(25, 1)
    scores = score(predictions, references)
    [times] = room.draws(25)
    assert times.shape == (25, 60)
    assert set(times.sum(0)) == {25}
    corpora: dict[str, list[float]] = {metric: [] for metric in scores.corpus}
    for column in times.T:
        drawn = np.repeat(np.arange(25), column.astype(int))
        anew = score([predictions[i] for i in drawn], [references[i] for i in drawn]).corpus
        for metric, values in corpora.items():
            # CIDEr of a resample keeps the whole's document frequencies: it is a mean.
            by_image = scores.per_image["cider"]
            values.append(by_image[drawn].mean() if metric == "cider" else anew[metric])
    for metric, found in intervals(scores).items():
        assert found.mean == scores.corpus[metric]
        low, high = np.quantile(corpora[metric], [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize("metric", ["cider", "rouge_l"])
def test_means_have_about_the_interval_that_scipy_gives(metric):
    scores = score(*captions(400, 2))
    values = scores.per_image[metric]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    ours = intervals(scores)[metric]
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)


def test_corpus_bleu_of_the_whole_lies_in_about_95_of_100_intervals_of_samples():
    predictions, references = captions(3000, 3)
    truth = score(predictions, references).corpus["bleu_2"]
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        drawn = random.choice(3000, 80, replace=False)
        part = score([predictions[i] for i in drawn], [references[i] for i in drawn])
        interval = intervals(part)["bleu_2"]
        held += interval.low <= truth <= interval.high
    assert 180 <= held <= 199


def test_chunks_draw_what_one_draw_would(monkeypatch):
    scores = score(*captions(30, 4))
    whole = intervals(scores)
    monkeypatch.setattr(room, "_CHUNK", 30 * 7)
    assert intervals(scores) == whole


@given(st.integers(1, 6), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_an_interval_holds_its_score_s_bounds_in_order_however_few_the_images(images, seed):
    scores = score(*captions(images, seed))
    for metric, found in intervals(scores).items():
        assert found.low <= found.high, metric
        if images == 1:
            assert found.low == pytest.approx(found.mean)
            assert found.high == pytest.approx(found.mean)


def test_an_evaluation_has_an_interval_a_corpus_metric_the_same_every_time():
    predictions, references = captions(12, 5)
    ids, nothing = [f"i{n}" for n in range(12)], [0.0] * 12
    first, again = (
        SliceEvaluation.of(ids, predictions, references, nothing).intervals for _ in range(2)
    )
    assert first == again
    assert first.keys() == score(predictions, references).corpus.keys()
