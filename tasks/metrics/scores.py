"""Scores of predicted captions against human ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.metrics import overlap
from tasks.metrics.tokenize import tokenize


@dataclass(frozen=True)
class Scores:
    """`corpus`: bleu_1 … bleu_4, rouge_l, cider; `per_image`: float arrays [images] in order."""

    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]


def tokenized(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> overlap.Corpus:
    """The captions as tokens. Raises `overlap.NothingToScore` where they do not pair up."""
    return overlap.Corpus(
        [tokenize(caption) for caption in predictions],
        [[tokenize(caption) for caption in captions] for captions in references],
    )


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Scores one prediction an image against its references (at least one each)."""
    return score_tokens(tokenized(predictions, references))


def score_tokens(corpus: overlap.Corpus) -> Scores:
    """The same on tokens as they are."""
    bleu, cider = overlap.bleu_and_cider(corpus)
    rouge_l = overlap.rouge_l(corpus)
    return Scores(
        corpus={
            **{f"bleu_{order}": value for order, value in enumerate(bleu.corpus, start=1)},
            "rouge_l": float(rouge_l.mean()),
            "cider": float(cider.mean()),
        },
        per_image={"bleu_4": bleu.per_image[3], "rouge_l": rouge_l, "cider": cider},
    )
