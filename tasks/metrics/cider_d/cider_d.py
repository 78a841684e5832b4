"""CIDEr-D of captions for `evaluate.load("tasks/metrics/cider_d")`, from the project's root.

The library copies this file elsewhere and finds its imports by a regex: one absolute import a line.
"""

from typing import Any

import datasets
import evaluate

from tasks.metrics import overlap
from tasks.metrics.scores import tokenized


class CiderD(evaluate.Metric):
    """Clipped TF-IDF n-gram consensus with a length penalty; often just called CIDEr."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="Vedantam et al. 2015, CIDEr: consensus-based image description evaluation",
            inputs_description="predictions: a caption an image; references: its human captions",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.List(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        scores = overlap.cider_d(tokenized(predictions, references))
        return {"cider_d": float(scores.mean()), "cider_d_per_image": scores.tolist()}
