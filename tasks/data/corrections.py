"""Which of the captions that people send are used, and why the others are held aside."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations

import regex

from bentos.captioner.captured import Feedback, LabelledRequest
from bentos.captioner.clients import ADDRESS
from configs.schema import ChecksConfig, RetrainConfig
from tasks.data.checks import captions
from tasks.data.rows import Fault

# Where a word is used on so many pictures, it is no slip: a world that has changed has new words.
_ESTABLISHED_PICTURES = 3
# Of few pictures several may well look the same.
_REPEATED_PICTURES = 5

# Scripts that leave no spaces: there each character counts as a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_UNSPACED}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+", regex.V1)


@dataclass(frozen=True)
class Held:
    """A caption that is not used; `fault.rule` says why in a word."""

    request_id: str
    feedback: Feedback
    fault: Fault


@dataclass(frozen=True)
class Judged:
    """`usable` has the pictures with a caption to use, and only such captions, each once.

    `confirmed` counts those whose only caption is the model's own.
    """

    usable: list[LabelledRequest]
    held: list[Held]
    confirmed: int

    @property
    def reasons(self) -> dict[str, int]:
        """How many captions are held aside for which reason, the most frequent first."""
        return dict(Counter(one.fault.rule for one in self.held).most_common())


@dataclass(frozen=True)
class _Sent:
    request: LabelledRequest
    feedback: Feedback
    words: frozenset[str]

    @property
    def picture(self) -> str:
        return self.request.request_id


_Rule = Callable[[Sequence[_Sent]], Mapping[int, Fault]]  # by the place in the sequence


def judge(
    labelled: Iterable[LabelledRequest],
    vocabulary: Set[str],
    checks: ChecksConfig,
    limits: RetrainConfig,
) -> Judged:
    """Sort what people sent, whatever its order of arrival, by one rule after the other.

    `vocabulary` has the `content_words` of the captions that are trained on; where it is empty no
    caption is far from them. A caption that repeats the model's own confirms it, and is used.
    """
    sent = [
        _Sent(request, feedback, content_words(feedback.caption))
        for request in labelled
        for feedback in request.feedback
    ]
    rules: tuple[_Rule, ...] = (
        partial(_badly_written, checks=checks),
        partial(_repeated, share=limits.max_repeated_share),
        _conflicting,
        partial(_far, vocabulary=vocabulary, share=limits.max_unknown_share),
        partial(_from_one_client, share=limits.max_client_share),
    )
    held = []
    for rule in rules:
        faults = rule(sent)
        held += [Held(sent[at].picture, sent[at].feedback, fault) for at, fault in faults.items()]
        sent = [one for at, one in enumerate(sent) if at not in faults]
    usable = _usable(sent)
    confirmed = sum(
        {same(one) for one in request.captions} == {same(request.caption)} for request in usable
    )
    return Judged(usable, held, confirmed)


def content_words(caption: str) -> frozenset[str]:
    """The words of a caption that say what is in a picture; one and several of a thing are one."""
    found = (word.casefold() for word in _WORD.findall(caption))
    return frozenset(_singular(word) for word in found if word not in _function_words())


def _badly_written(sent: Sequence[_Sent], checks: ChecksConfig) -> dict[int, Fault]:
    """By the rules for a source's captions, but for those that only note."""
    found = {}
    for at, one in enumerate(sent):
        faults = captions.check(one.feedback.caption, checks)
        severe = [fault for fault in faults if getattr(checks.actions, fault.rule) != "note"]
        if severe:
            found[at] = severe[0]
    return found


def _repeated(sent: Sequence[_Sent], share: float) -> dict[int, Fault]:
    pictures: dict[str, set[str]] = defaultdict(set)
    for one in sent:
        pictures[same(one.feedback.caption)].add(one.picture)
    among = len({one.picture for one in sent})
    most = max(_REPEATED_PICTURES, share * among)
    return {
        at: Fault("repeated", f"sent for {len(pictures[said])} of {among} pictures")
        for at, one in enumerate(sent)
        if len(pictures[said := same(one.feedback.caption)]) > most
    }


def _conflicting(sent: Sequence[_Sent]) -> dict[int, Fault]:
    """Where captions of a picture have no word in common, those that nobody else agrees with."""
    found = {}
    for places in _by_picture(sent).values():
        told = [at for at in places if sent[at].words]
        pairs = list(combinations(told, 2))
        if all(sent[a].words & sent[b].words for a, b in pairs):
            continue
        agreed = {
            at
            for a, b in pairs
            if sent[a].words & sent[b].words and not _one_address(sent[a], sent[b])
            for at in (a, b)
        }
        for at in places:
            if at not in agreed:
                others = "; ".join(sent[b].feedback.caption for b in places if b != at)
                found[at] = Fault("conflicting", f"no word in common with: {others}")
    return found


def _far(sent: Sequence[_Sent], vocabulary: Set[str], share: float) -> dict[int, Fault]:
    if not vocabulary:
        return {}
    pictures: dict[str, set[str]] = defaultdict(set)
    for one in sent:
        for word in one.words:
            pictures[word].add(one.picture)
    established = {word for word, on in pictures.items() if len(on) >= _ESTABLISHED_PICTURES}
    found = {}
    for at, one in enumerate(sent):
        unknown = one.words - vocabulary - established
        near = one.words & content_words(one.request.caption)
        if not near and len(unknown) > share * len(one.words):
            found[at] = Fault("far", f"in no other caption: {', '.join(sorted(unknown))}")
    return found


def _from_one_client(sent: Sequence[_Sent], share: float) -> dict[int, Fault]:
    """All but the oldest captions of an address that sent too many.

    Tokens were given out by whoever runs the service, and what is not known can't be counted.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for at in sorted(range(len(sent)), key=lambda at: sent[at].feedback.time):
        client = sent[at].feedback.client or ""
        if client.startswith(ADDRESS):
            places[client].append(at)
    counts = [len(theirs) for theirs in places.values()]
    most = most_of_one(counts, len(sent) - sum(counts), share)
    return {
        at: Fault("one_client", f"{client} sent {len(theirs)} of {len(sent)}, {most} are used")
        for client, theirs in places.items()
        for at in theirs[most:]
    }


def most_of_one(counts: Sequence[int], others: int, share: float) -> int:
    """The largest limit on each of `counts` under which none exceeds `share` of all that stays."""
    most = max(counts, default=0)
    while most > (allowed := share * (others + sum(min(count, most) for count in counts))):
        most = math.floor(allowed)
    return most


def _usable(sent: Sequence[_Sent]) -> list[LabelledRequest]:
    usable = []
    for places in _by_picture(sent).values():
        once = {same(sent[at].feedback.caption): sent[at].feedback for at in reversed(places)}
        request = sent[places[0]].request
        usable.append(replace(request, feedback=list(reversed(once.values()))))
    return usable


def _by_picture(sent: Sequence[_Sent]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for at, one in enumerate(sent):
        places[one.picture].append(at)
    return places


def _one_address(one: _Sent, other: _Sent) -> bool:
    client = one.feedback.client
    return client == other.feedback.client and (client or "").startswith(ADDRESS)


def same(caption: str) -> str:
    """What captions that only differ in letters' case, spaces and punctuation have in common."""
    return " ".join(word.casefold() for word in _WORD.findall(caption))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.isascii() and word.endswith("s") else word


@cache
def _function_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)
