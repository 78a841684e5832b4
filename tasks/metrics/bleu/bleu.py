"""BLEU-1 … BLEU-4 of captions for `evaluate.load("tasks/metrics/bleu")`, from the project's root.

The library copies this file elsewhere and finds its imports by a regex: one absolute import a line.
"""

from typing import Any

import datasets
import evaluate

from tasks.metrics import overlap
from tasks.metrics.scores import tokenized


class Bleu(evaluate.Metric):
    """Clipped n-gram precision of the whole corpus with the closest reference's length."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="Papineni et al. 2002, BLEU: automatic evaluation of machine translation",
            inputs_description="predictions: a caption an image; references: its human captions",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.List(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        scores = overlap.bleu(tokenized(predictions, references))
        return {
            **{f"bleu_{order}": score for order, score in enumerate(scores.corpus, start=1)},
            **{
                f"bleu_{order}_per_image": values.tolist()
                for order, values in enumerate(scores.per_image, start=1)
            },
        }
