"""ROUGE-L of captions for `evaluate.load("tasks/metrics/rouge_l")`, from the project's root.

The library copies this file elsewhere and finds its imports by a regex: one absolute import a line.
"""

from typing import Any

import datasets
import evaluate

from tasks.metrics import overlap
from tasks.metrics.scores import tokenized


class RougeL(evaluate.Metric):
    """F-score (beta 1.2) of the longest common subsequence with the references."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="Lin 2004, ROUGE: a package for automatic evaluation of summaries",
            inputs_description="predictions: a caption an image; references: its human captions",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.List(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        scores = overlap.rouge_l(tokenized(predictions, references))
        return {"rouge_l": float(scores.mean()), "rouge_l_per_image": scores.tolist()}
