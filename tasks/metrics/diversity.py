"""What CIDEr misses: captions that are all alike, that loop, or that are empty.

A model that says one safe sentence of every image, or `a dog on a dog on a dog`, can keep a score
that looks like a small step back. `judge` says in words whether predictions have collapsed, by
themselves and beside what people wrote.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from tasks.metrics.overlap import Tokens
from tasks.metrics.tokenize import tokenize

# Each limit lies between what was measured of the healthy and of planted collapses. The healthy, in
# this order: people (one of five captions, 20 to 8,000 photos of Flickr8k), the demo's model, and
# the same after a third of its training.
MOST_REPEATED = 0.8  # images whose caption another has, too; 0.01, 0.22, 0.67, k captions of all: 1
MOST_SAME = 0.25  # images with the one commonest caption; 0.05, 0.005, 0.02, half of all alike: 0.5
MOST_LOOPING = 0.02  # 0.0001, 0, 0
MOST_EMPTY = 0.01  # 0, 0, 0
LENGTH_FACTOR = 3.0  # median length by people's, either way; 0.9, 1.18, 1.27, two words: 0.18
LEAST_OF_REFERENCES = 0.1  # distinct-n by people's; 0.93, 0.50, 0.29, one caption of all: 0.04
FEWEST = 20  # captions: below, shares of captions mean little
FEWEST_BROKEN = 3  # looping or empty captions: one in a small slice is an accident

_LOOP_TIMES = 3
_LONGEST_LOOP = 4
_FEWEST_BIGRAMS = 8


@dataclass(frozen=True)
class Lengths:
    """Words a caption: the distribution's shape."""

    shortest: int
    lower_quartile: float
    median: float
    upper_quartile: float
    longest: int

    @classmethod
    def of(cls, captions: Sequence[Tokens]) -> "Lengths":
        counts = [len(tokens) for tokens in captions]
        shortest, lower, median, upper, longest = np.quantile(counts, [0, 0.25, 0.5, 0.75, 1])
        return cls(int(shortest), float(lower), float(median), float(upper), int(longest))


@dataclass(frozen=True)
class Diversity:
    """How varied captions are; shares are of the captions, 0 to 1.

    `distinct`: distinct n-grams over all n-grams, for n = 1, 2 (Li et al. 2016). It falls with the
    number of captions, so compare it at the same number only.
    """

    captions: int
    distinct: tuple[float, float]
    repeated: float
    commonest: str
    commonest_share: float
    looping: float
    empty: float
    vocabulary: int
    lengths: Lengths


@dataclass(frozen=True)
class Verdict:
    """`collapsed` with the reasons in words; `references` is one human caption an image."""

    collapsed: bool
    reasons: tuple[str, ...]
    predictions: Diversity
    references: Diversity | None


def measure(captions: Sequence[str]) -> Diversity:
    """The diversity of at least one caption."""
    if not captions:
        raise ValueError("No captions to measure: give at least one.")
    tokens = [tokenize(caption) for caption in captions]
    sentences = Counter(" ".join(words) for words in tokens)
    commonest, times = sentences.most_common(1)[0]
    total = len(captions)
    return Diversity(
        captions=total,
        distinct=(distinct(tokens, 1), distinct(tokens, 2)),
        repeated=sum(count for count in sentences.values() if count > 1) / total,
        commonest=commonest,
        commonest_share=times / total,
        looping=sum(loops(words) for words in tokens) / total,
        empty=sentences[""] / total,
        vocabulary=len(set(chain.from_iterable(tokens))),
        lengths=Lengths.of(tokens),
    )


def distinct(captions: Sequence[Tokens], order: int) -> float:
    """Distinct n-grams over all n-grams; 0 where there is none."""
    grams = [
        tuple(words[start : start + order])
        for words in captions
        for start in range(len(words) - order + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def loops(words: Tokens) -> bool:
    """One to four words three times on end (`a dog a dog a dog`), or pairs coming back again."""
    bigrams = list(pairwise(words))
    if len(bigrams) >= _FEWEST_BIGRAMS and len(set(bigrams)) <= len(bigrams) / 2:
        return True
    for size in range(1, _LONGEST_LOOP + 1):
        run = 0
        for word, again in zip(words, words[size:], strict=False):
            run = run + 1 if word == again else 0
            if run == size * (_LOOP_TIMES - 1):
                return True
    return False


def judge(predictions: Sequence[str], references: Sequence[Sequence[str]] | None = None) -> Verdict:
    """Whether the predictions, one an image, have collapsed; `references` in the same order."""
    found = measure(predictions)
    human = measure([captions[0] for captions in references if captions]) if references else None
    reasons = (*_broken(found), *_alike(found, human), *_beside(found, human))
    return Verdict(bool(reasons), reasons, found, human)


def _broken(found: Diversity) -> list[str]:
    reasons = []
    fewest = FEWEST_BROKEN / found.captions
    if found.looping > MOST_LOOPING and found.looping >= fewest:
        reasons.append(f"{found.looping:.0%} of the captions repeat the same words over and over.")
    if found.empty > MOST_EMPTY and found.empty >= fewest:
        reasons.append(f"{found.empty:.0%} of the captions are empty.")
    return reasons


def _alike(found: Diversity, human: Diversity | None) -> list[str]:
    """Sameness counts beside people's: where the images are alike, so are good captions."""
    if found.captions < FEWEST:
        return []
    reasons = []
    commonest, repeated = (human.commonest_share, human.repeated) if human else (0.0, 0.0)
    if found.commonest_share > max(MOST_SAME, 2 * commonest):
        said = f"{found.commonest_share:.0%} of the images got the same caption"
        people = f" (people: {commonest:.0%})" if human else ""
        reasons.append(f"{said}, “{found.commonest}”{people}.")
    if found.repeated > max(MOST_REPEATED, 2 * repeated):
        people = f" (people: {repeated:.0%})" if human else ""
        reasons.append(f"{found.repeated:.0%} of the captions are another image's, too{people}.")
    return reasons


def _beside(found: Diversity, human: Diversity | None) -> list[str]:
    if human is None or found.captions < FEWEST:
        return []
    reasons = [
        f"distinct-{order} is {ours:.4f}, under a tenth of people's {theirs:.4f}."
        for order, (ours, theirs) in enumerate(zip(found.distinct, human.distinct, strict=True), 1)
        if ours < LEAST_OF_REFERENCES * theirs
    ]
    length, usual = found.lengths.median, human.lengths.median
    if usual and not usual / LENGTH_FACTOR <= length <= usual * LENGTH_FACTOR:
        reasons.append(f"the median caption has {length:g} words, people's {usual:g}.")
    return reasons
