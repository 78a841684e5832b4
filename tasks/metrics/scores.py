"""Scores of predicted captions against human ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.metrics import overlap
from tasks.metrics.tokenize import tokenize


@dataclass(frozen=True)
class Scores:
    """What every image got, in order: BLEU's counts, ROUGE-L and CIDEr [images]."""

    bleu: overlap.BleuCounts
    rouge_l: np.ndarray
    cider: np.ndarray

    @property
    def corpus(self) -> dict[str, float]:
        """bleu_1 … bleu_4, rouge_l, cider of all images together."""
        return {
            **{f"bleu_{order}": value for order, value in enumerate(self.bleu.corpus, start=1)},
            "rouge_l": float(self.rouge_l.mean()),
            "cider": float(self.cider.mean()),
        }

    @property
    def per_image(self) -> dict[str, np.ndarray]:
        """bleu_4, rouge_l, cider as float arrays [images]."""
        return {"bleu_4": self.bleu.per_image[3], "rouge_l": self.rouge_l, "cider": self.cider}

    def at(self, images: np.ndarray) -> "Scores":
        """The same scores of some images: CIDEr keeps the document frequencies of all of them."""
        return Scores(self.bleu.at(images), self.rouge_l[images], self.cider[images])


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
    return Scores(bleu, overlap.rouge_l(corpus), cider)
