"""How sure a model's scores are: what other images of the same kind would have given."""

from collections.abc import Iterator

import numpy as np

from tasks.metrics.scores import Scores
from tasks.metrics.statistics import Interval

CONFIDENCE = 0.95
RESAMPLES = 1000

_SEED = 95  # any fixed number: the same captions always get the same intervals
_CHUNK = 2**22  # drawn images at a time: 32 MiB


def intervals(scores: Scores) -> dict[str, Interval]:
    """Percentile bootstrap over images of every corpus metric (Efron & Tibshirani 1993).

    All metrics see the same draws; an image keeps the CIDEr that it has among all of them.
    """
    chunks = [_resampled(scores, times) for times in draws(len(scores.cider))]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(chunks, axis=1), [tail, 1 - tail], axis=1).tolist()
    bounds = zip(scores.corpus.items(), low, high, strict=True)
    return {metric: Interval(value, *around) for (metric, value), *around in bounds}


def draws(images: int) -> Iterator[np.ndarray]:
    """How often each resample holds each image, float [images, n]; `RESAMPLES` in all."""
    random = np.random.default_rng(_SEED)
    most = max(1, _CHUNK // images)
    for done in range(0, RESAMPLES, most):
        count = min(most, RESAMPLES - done)
        drawn = random.integers(0, images, (count, images))
        places = drawn + images * np.arange(count)[:, None]
        times = np.bincount(places.ravel(), minlength=count * images)
        yield times.reshape(count, images).T.astype(float)


def _resampled(scores: Scores, times: np.ndarray) -> np.ndarray:
    """The corpus metrics, float [metrics, n], of n resamples."""
    means = np.stack([scores.rouge_l, scores.cider]) @ times / len(scores.cider)
    return np.concatenate([scores.bleu.resampled(times), means])
