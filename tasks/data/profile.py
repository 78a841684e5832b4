"""What a dataset looks like, in numbers of bounded size, and how that moved since last time."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Letters and digits, with apostrophes and hyphens between them: "a man's t-shirt" is three words.
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_MOST_LETTERS = 40
_MOST_CAPTION_LETTERS = 200

_KEPT_WORDS = 50_000
_KEPT_CAPTIONS = 10_000
_COMMON_CAPTIONS = 20
_LONGEST_CAPTION = 200
_MOST_CAPTIONS = 100

ASPECT_STEPS = 5  # bins an octave: 4:3, 3:2, 16:9 and 2:1 each fall into the middle of one
MEGAPIXEL_STEPS = 2
_ASPECT_END = 3 * ASPECT_STEPS
_MEGAPIXEL_END = 10 * MEGAPIXEL_STEPS

_LISTED_WORDS = 24
_PRIOR_WORDS = 500.0
_CLEAR_SCORE = 3.0


@dataclass(frozen=True)
class Profile:
    """Statistics of a dataset; histograms map a bin to its count, the rest is most frequent first.

    `words_per_caption` and `captions_per_image` end in a bin for all above (200 and 100).
    `aspect_ratios` has bins round(5 log2(width / height)), `megapixels` round(2 log2(megapixels)).
    `vocabulary` holds the 50,000 most frequent words, lower-cased; up to 100,000 different words
    (20,000 different captions) the counts are exact, beyond that rare ones are too low and
    `num_different_words` is too high.
    """

    num_images: int
    num_captions: int
    num_words: int
    num_different_words: int
    words_per_caption: dict[int, int]
    captions_per_image: dict[int, int]
    aspect_ratios: dict[int, int]
    megapixels: dict[int, int]
    vocabulary: dict[str, int]
    common_captions: dict[str, int]

    @property
    def mean_words(self) -> float:
        return self.num_words / self.num_captions if self.num_captions else 0.0

    @property
    def median_words(self) -> float:
        """The lower median, which is a length that some caption has."""
        passed = 0
        for length, count in sorted(self.words_per_caption.items()):
            passed += count
            if 2 * passed >= self.num_captions:
                return float(length)
        return 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Profile":
        """The inverse of `to_json`, also after JSON has turned the bins into strings."""
        return cls(**{name: _restored(name, part) for name, part in value.items()})


class ProfileBuilder:
    """Takes a dataset one image at a time, in any order; its memory does not grow with it."""

    def __init__(self) -> None:
        self._images = self._captions = self._words = 0
        self._lengths: Counter[int] = Counter()
        self._per_image: Counter[int] = Counter()
        self._aspects: Counter[int] = Counter()
        self._megapixels: Counter[int] = Counter()
        self._vocabulary = _Tally(_KEPT_WORDS)
        self._common = _Tally(_KEPT_CAPTIONS)

    def add(self, references: Sequence[str], width: int, height: int) -> None:
        """One image; a width or height of 0 is unknown and counts in no histogram of sizes."""
        self._images += 1
        self._captions += len(references)
        self._per_image[min(len(references), _MOST_CAPTIONS)] += 1
        for caption in references:
            found = words(caption)
            self._words += len(found)
            self._lengths[min(len(found), _LONGEST_CAPTION)] += 1
            self._vocabulary.add(word[:_MOST_LETTERS] for word in found)
        self._common.add(
            " ".join(caption.lower().split())[:_MOST_CAPTION_LETTERS] for caption in references
        )
        if width and height:
            self._aspects[_bin(width / height, ASPECT_STEPS, _ASPECT_END)] += 1
            self._megapixels[_bin(width * height / 1e6, MEGAPIXEL_STEPS, _MEGAPIXEL_END)] += 1

    def profile(self) -> Profile:
        return Profile(
            num_images=self._images,
            num_captions=self._captions,
            num_words=self._words,
            num_different_words=self._vocabulary.different,
            words_per_caption=dict(sorted(self._lengths.items())),
            captions_per_image=dict(sorted(self._per_image.items())),
            aspect_ratios=dict(sorted(self._aspects.items())),
            megapixels=dict(sorted(self._megapixels.items())),
            vocabulary=self._vocabulary.most(_KEPT_WORDS),
            common_captions={
                caption: count
                for caption, count in self._common.most(_COMMON_CAPTIONS).items()
                if count > 1
            },
        )


@dataclass(frozen=True)
class Change:
    """A number in the previous version and in this one."""

    before: float
    after: float


@dataclass(frozen=True)
class WordChange:
    """How often a word was and is said; `score` is the z-score of its log-odds ratio, > 0 if more.

    With the informative Dirichlet prior of Monroe, Colaresi & Quinn, "Fightin' Words" (2008),
    equations 15, 20 and 22: the pooled frequencies, worth 500 words. 0 for a new or gone word.
    """

    word: str
    before: int
    after: int
    score: float = 0.0


@dataclass(frozen=True)
class DatasetDrift:
    """This version against the previous one.

    `length_distance` is the Jensen-Shannon distance of the caption lengths, the square root of
    the divergence to base 2 (Lin 1991; Endres & Schindelin 2003): 0 for the same histogram, 1 for
    histograms with no length in common; `length_distance_by_chance` is about what two samples of
    one population would give (the divergence is then χ² / (8 ln 2), to second order). Shares are
    of this version's different words and of all its words; `changed_words` are in both versions
    and at least 3 standard errors apart, the clearest first.
    """

    images: Change
    captions: Change
    mean_words: Change
    median_words: Change
    length_distance: float
    length_distance_by_chance: float
    new_share_of_vocabulary: float
    new_share_of_words: float
    new_words: tuple[WordChange, ...]
    gone_words: tuple[WordChange, ...]
    changed_words: tuple[WordChange, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(profile: Profile, previous: Profile) -> DatasetDrift:
    """What is different about `profile`."""
    now, was = profile.vocabulary, previous.vocabulary
    new = [WordChange(word, 0, count) for word, count in now.items() if word not in was]
    gone = [WordChange(word, count, 0) for word, count in was.items() if word not in now]
    return DatasetDrift(
        images=Change(previous.num_images, profile.num_images),
        captions=Change(previous.num_captions, profile.num_captions),
        mean_words=Change(previous.mean_words, profile.mean_words),
        median_words=Change(previous.median_words, profile.median_words),
        length_distance=_distance(profile.words_per_caption, previous.words_per_caption),
        length_distance_by_chance=_chance(profile, previous),
        new_share_of_vocabulary=len(new) / max(1, len(now)),
        new_share_of_words=sum(change.after for change in new) / max(1, sum(now.values())),
        new_words=_most_frequent(new),
        gone_words=_most_frequent(gone),
        changed_words=_changed(now, was),
    )


def growth(profile: Profile, points: int = 40) -> list[tuple[float, float]]:
    """(words read, different words among them) as expected if the captions came in random order.

    Each word is met by then with probability 1 - (1 - share read) ** count: rarefaction.
    """
    import numpy as np

    counts = np.fromiter(profile.vocabulary.values(), dtype=float)
    shares = np.linspace(0, 1, points)
    return [(s * counts.sum(), float((1 - (1 - s) ** counts).sum())) for s in shares]


def words(caption: str) -> list[str]:
    """The words of a caption, lower-cased, without punctuation."""
    return _WORD.findall(caption.lower())


class _Tally:
    """Counts of many keys, of which the rarest are forgotten whenever there are `2 * keep`."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._counts: Counter[str] = Counter()
        self._forgotten = 0

    @property
    def different(self) -> int:
        return len(self._counts) + self._forgotten

    def add(self, keys: Iterable[str]) -> None:
        self._counts.update(keys)
        if len(self._counts) > 2 * self._keep:
            self._forgotten += len(self._counts) - self._keep
            self._counts = Counter(self.most(self._keep))

    def most(self, count: int) -> dict[str, int]:
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return dict(ranked[:count])


def _bin(value: float, steps: int, end: int) -> int:
    return max(-end, min(end, round(steps * math.log2(value))))


def _restored(name: str, part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    key: Callable[[Any], Any] = str if name in ("vocabulary", "common_captions") else int
    return {key(name): int(count) for name, count in part.items()}


def _distance(one: Mapping[int, int], other: Mapping[int, int]) -> float:
    """The Jensen-Shannon distance of two histograms, in 0…1; an empty one is as far as can be."""
    if not one or not other:
        return float(bool(one) != bool(other))
    from scipy.spatial.distance import jensenshannon

    bins = sorted(one.keys() | other.keys())
    found = jensenshannon([one.get(b, 0) for b in bins], [other.get(b, 0) for b in bins], base=2)
    return min(1.0, float(found))


def _chance(one: Profile, other: Profile) -> float:
    """The distance to expect of two samples, with (bins - 1) degrees of freedom for χ²."""
    if not one.num_captions or not other.num_captions:
        return 0.0
    freedom = len(one.words_per_caption.keys() | other.words_per_caption.keys()) - 1
    spread = 1 / one.num_captions + 1 / other.num_captions
    return min(1.0, math.sqrt(freedom * spread / (8 * math.log(2))))


def _most_frequent(changes: Iterable[WordChange]) -> tuple[WordChange, ...]:
    ranked = sorted(changes, key=lambda change: (-change.before - change.after, change.word))
    return tuple(ranked[:_LISTED_WORDS])


def _changed(now: Mapping[str, int], was: Mapping[str, int]) -> tuple[WordChange, ...]:
    """The words of both versions whose frequency is clearly another; formulas at `WordChange`."""
    total_now, total_was = sum(now.values()), sum(was.values())
    prior = _PRIOR_WORDS / max(1, total_now + total_was)
    changes = []
    for word in now.keys() & was.keys():
        pseudo = prior * (now[word] + was[word])
        a, b = now[word] + pseudo, was[word] + pseudo
        rest_a, rest_b = total_now + _PRIOR_WORDS - a, total_was + _PRIOR_WORDS - b
        if rest_a < 1 or rest_b < 1:
            continue  # there is no other word to compare with
        log_odds = math.log(a / rest_a) - math.log(b / rest_b)
        score = log_odds / math.sqrt(1 / a + 1 / b)
        if abs(score) >= _CLEAR_SCORE:
            changes.append(WordChange(word, was[word], now[word], score))
    changes.sort(key=lambda change: (-abs(change.score), change.word))
    return tuple(changes[:_LISTED_WORDS])
