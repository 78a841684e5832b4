"""The word-overlap metrics on tokens: BLEU, ROUGE-L and CIDEr, as the COCO evaluation defines them.

Equal to `pycocoevalcap` on the same tokens, its quirks included; there is one n-gram count for
BLEU and CIDEr together. What it and the papers that use it call CIDEr *is* CIDEr-D of Vedantam et
al. 2015 (clipped, with a length penalty): its source and their `ciderD` are the same but for the
name. So both names give one number here; nobody publishes the paper's plain CIDEr.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

Tokens = Sequence[str]
ORDERS = 4

_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0


class NothingToScore(ValueError):
    """Predictions and references do not pair up, or there are none."""


@dataclass(frozen=True)
class Corpus:
    """Tokens of one prediction and of one or more references for every image."""

    predictions: Sequence[Tokens]
    references: Sequence[Sequence[Tokens]]

    def __post_init__(self) -> None:
        if len(self.predictions) != len(self.references):
            raise NothingToScore(
                f"{len(self.predictions)} predictions but references for {len(self.references)} "
                "images: give one prediction and one list of references an image."
            )
        if not self.predictions:
            raise NothingToScore("No predictions: give at least one image.")
        bare = [i for i, captions in enumerate(self.references) if not captions]
        if bare:
            raise NothingToScore(
                f"{len(bare)} images have no reference (first at index {bare[0]}): leave them out."
            )

    @property
    def captions(self) -> list[Tokens]:
        """The predictions, then every reference."""
        return [*self.predictions, *chain.from_iterable(self.references)]

    @property
    def owners(self) -> np.ndarray:
        """The image index of every reference, in order."""
        counts = [len(captions) for captions in self.references]
        return np.repeat(np.arange(len(counts)), counts)


@dataclass(frozen=True)
class _NGrams:
    """Counts of the n-grams of one order, one row per caption and distinct n-gram in it.

    `prediction_*` rows are sorted by (image, gram). For row r of the references,
    `match[r]` is the prediction row of the same image and gram, where `matched[r]`.
    """

    prediction_image: np.ndarray
    prediction_gram: np.ndarray
    prediction_count: np.ndarray
    reference: np.ndarray
    reference_gram: np.ndarray
    reference_count: np.ndarray
    match: np.ndarray
    matched: np.ndarray
    vocabulary: int


def _vocabulary(captions: Iterable[Tokens]) -> dict[str, int]:
    """A number for every word, in order of appearance, so that sums are the same every time."""
    distinct = dict.fromkeys(chain.from_iterable(captions))
    return {word: number for number, word in enumerate(distinct)}


def _split_at_spaces(corpus: Corpus) -> Corpus:
    """A token may hold a space (a mixed number): BLEU and CIDEr count words, ROUGE-L tokens."""
    if all(len(word.split()) == 1 for word in _vocabulary(corpus.captions)):
        return corpus
    return Corpus(
        [" ".join(tokens).split() for tokens in corpus.predictions],
        [[" ".join(ref).split() for ref in refs] for refs in corpus.references],
    )


def _ngrams(corpus: Corpus) -> Iterator[_NGrams]:
    """N-gram counts of order 1, 2, … `ORDERS`; n-grams are dense integers of no fixed meaning."""
    captions = corpus.captions
    lengths = np.array([len(caption) for caption in captions])
    vocabulary = _vocabulary(captions)
    every = chain.from_iterable(captions)
    words = np.fromiter(map(vocabulary.__getitem__, every), np.int64, count=lengths.sum())
    caption = np.repeat(np.arange(len(captions)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words to the end
    gram, size = words, len(vocabulary)
    for order in range(1, ORDERS + 1):
        starts = left >= order
        yield _count(gram[starts], size, caption[starts], corpus)
        follows = np.flatnonzero(left > order)
        pairs, dense = np.unique(
            gram[follows] * max(len(vocabulary), 1) + words[follows + order], return_inverse=True
        )
        gram, size = np.zeros_like(words), len(pairs)
        gram[follows] = dense


def _count(gram: np.ndarray, size: int, caption: np.ndarray, corpus: Corpus) -> _NGrams:
    width = max(size, 1)
    keys, counts = np.unique(caption * width + gram, return_counts=True)
    split = np.searchsorted(keys, len(corpus.predictions) * width)
    predicted = keys[:split]
    reference = keys[split:] // width - len(corpus.predictions)
    reference_gram = keys[split:] % width
    wanted = corpus.owners[reference] * width + reference_gram
    match = np.searchsorted(predicted, wanted)
    matched = np.zeros(len(wanted), bool)
    inside = match < len(predicted)
    matched[inside] = predicted[match[inside]] == wanted[inside]
    return _NGrams(
        prediction_image=predicted // width,
        prediction_gram=predicted % width,
        prediction_count=counts[:split],
        reference=reference,
        reference_gram=reference_gram,
        reference_count=counts[split:],
        match=match,
        matched=matched,
        vocabulary=size,
    )


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU is made of, for every image: of each order the n-grams said and those of them that
    a reference has (float [ORDERS, images]), the caption's length and the closest reference's."""

    correct: np.ndarray
    guessed: np.ndarray
    length: np.ndarray
    closest: np.ndarray

    @property
    def per_image(self) -> np.ndarray:
        """BLEU-1 … BLEU-4 of every image by itself [ORDERS, images]."""
        return _bleu_from(self.correct, self.guessed, self.length, self.closest)

    @property
    def corpus(self) -> list[float]:
        """BLEU-1 … BLEU-4 of all images together."""
        every = np.ones((len(self.length), 1))
        return [float(bleu) for bleu in self.resampled(every)[:, 0]]

    def resampled(self, times: np.ndarray) -> np.ndarray:
        """BLEU-1 … BLEU-4 [ORDERS, n] of n corpora, which hold each image `times` [images, n]."""
        parts = (self.correct, self.guessed, self.length, self.closest)
        return _bleu_from(*(part @ times for part in parts))

    def at(self, images: np.ndarray) -> "BleuCounts":
        """The counts of some of the images."""
        parts = (self.correct, self.guessed, self.length, self.closest)
        return BleuCounts(*(part[..., images] for part in parts))


def bleu_and_cider(corpus: Corpus) -> tuple[BleuCounts, np.ndarray]:
    """Both n-gram metrics from one count; CIDEr [images] (its mean is the corpus's)."""
    corpus = _split_at_spaces(corpus)
    orders = list(_ngrams(corpus))
    return _bleu(corpus, orders), _cider(corpus, orders)


def bleu(corpus: Corpus) -> BleuCounts:
    """Clipped n-gram precision with the closest reference's length (Papineni et al. 2002)."""
    corpus = _split_at_spaces(corpus)
    return _bleu(corpus, list(_ngrams(corpus)))


def cider(corpus: Corpus) -> np.ndarray:
    """CIDEr of every image, document frequencies from these references (Vedantam et al. 2015)."""
    corpus = _split_at_spaces(corpus)
    return _cider(corpus, list(_ngrams(corpus)))


def cider_d(corpus: Corpus) -> np.ndarray:
    """CIDEr-D of every image: what `cider` is, too (see the top)."""
    return cider(corpus)


def _bleu(corpus: Corpus, orders: list[_NGrams]) -> BleuCounts:
    images = len(corpus.predictions)
    length = np.array([len(tokens) for tokens in corpus.predictions])
    closest = _closest(corpus, length)
    guessed = np.maximum(length - np.arange(ORDERS)[:, None], 0)
    correct = np.zeros((ORDERS, images))
    for n, grams in enumerate(orders):
        most = np.zeros(len(grams.prediction_count))
        np.maximum.at(most, grams.match[grams.matched], grams.reference_count[grams.matched])
        clipped = np.minimum(most, grams.prediction_count)
        correct[n] = np.bincount(grams.prediction_image, clipped, minlength=images)
    return BleuCounts(correct, guessed, length, closest)


def _closest(corpus: Corpus, length: np.ndarray) -> np.ndarray:
    """The reference length nearest to each prediction's, the shorter of two."""
    counts = np.array([len(references) for references in corpus.references])
    lengths = np.array([len(ref) for refs in corpus.references for ref in refs])
    furthest = lengths.max() + 1
    ranked = np.abs(lengths - np.repeat(length, counts)) * furthest + lengths
    return np.minimum.reduceat(ranked, np.cumsum(counts) - counts) % furthest


def _bleu_from(
    correct: np.ndarray, guessed: np.ndarray, length: np.ndarray, closest: np.ndarray
) -> np.ndarray:
    """BLEU of orders 1 … n along the first axis; the tiny terms are those of the COCO scripts."""
    tiny, small = 1e-15, 1e-9
    orders = np.arange(1, ORDERS + 1).reshape(-1, *[1] * (correct.ndim - 1))
    precision = np.cumprod((correct + tiny) / (guessed + small), axis=0) ** (1 / orders)
    ratio = (length + tiny) / (closest + small)
    with np.errstate(over="ignore"):  # an empty prediction: the penalty is exp(-huge) = 0
        return precision * np.exp(np.minimum(1 - 1 / ratio, 0))


def _cider(corpus: Corpus, orders: list[_NGrams]) -> np.ndarray:
    images, owners = len(corpus.predictions), corpus.owners
    similarity = sum(
        (_cosine(grams, images, owners) for grams in orders), start=np.zeros(len(owners))
    )
    bigrams = np.array([max(len(tokens) - 1, 0) for tokens in corpus.predictions])
    reference_bigrams = np.array(
        [max(len(ref) - 1, 0) for refs in corpus.references for ref in refs]
    )
    delta = bigrams[owners] - reference_bigrams  # the COCO scripts measure length in bigrams
    similarity *= np.exp(-(delta**2) / (2 * _CIDER_SIGMA**2))
    return 10 / ORDERS * np.bincount(owners, similarity) / np.bincount(owners)


def _cosine(grams: _NGrams, images: int, owners: np.ndarray) -> np.ndarray:
    """Clipped TF-IDF cosine of every reference with its image's prediction, for one order."""
    size = max(grams.vocabulary, 1)
    seen = np.sort(owners[grams.reference] * size + grams.reference_gram)  # np.unique is far slower
    frequency = np.bincount(seen[np.diff(seen, prepend=-1) != 0] % size, minlength=size)
    idf = np.log(images) - np.log(np.maximum(frequency, 1))
    predicted = grams.prediction_count * idf[grams.prediction_gram]
    reference = grams.reference_count * idf[grams.reference_gram]
    shared = np.zeros(len(reference))
    at = grams.match[grams.matched]
    shared[grams.matched] = (
        np.minimum(predicted[at], reference[grams.matched]) * reference[grams.matched]
    )
    dot = np.bincount(grams.reference, shared, minlength=len(owners))
    norm = np.sqrt(np.bincount(grams.prediction_image, predicted**2, minlength=images))[owners]
    norm *= np.sqrt(np.bincount(grams.reference, reference**2, minlength=len(owners)))
    return np.divide(dot, norm, out=np.zeros(len(dot)), where=norm > 0)


def rouge_l(corpus: Corpus) -> np.ndarray:
    """ROUGE-L of every image: best recall and best precision over its references (Lin 2004)."""
    pairs = zip(corpus.predictions, corpus.references, strict=True)
    return np.array([_rouge_l(prediction, references) for prediction, references in pairs])


def _rouge_l(prediction: Tokens, references: Sequence[Tokens]) -> float:
    prediction = prediction or [""]  # the COCO scripts count an empty caption as one empty word
    precision = recall = 0.0
    for reference in references:
        reference = reference or [""]
        common = _common_subsequence(prediction, reference)
        precision = max(precision, common / len(prediction))
        recall = max(recall, common / len(reference))
    if precision == 0:
        return 0.0
    weight = _ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def _common_subsequence(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence, a column of the table per step (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        hit = row & places.get(word, 0)
        row = (row + hit) | (row - hit)
    return len(first) - (row & full).bit_count()
