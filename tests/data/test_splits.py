"""What came first keeps its split, near-duplicates follow it, and nothing is in two splits."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import SplitsConfig
from tasks.data.folders import sha256
from tasks.data.splits import SPLITS, assign, parse

KEYS = [sha256(str(number).encode()) for number in range(4000)]
SHARES = st.floats(0.001, 0.39)
CONFIG = SplitsConfig(val=0.3, test=0.3)
NO_PAIRS = np.zeros((0, 2), np.int64)
TRAIN, VAL, TEST, GOLDEN = range(4)


@st.composite
def datasets(draw):
    """Hints and near-duplicate pairs of a few images."""
    hints = draw(st.lists(st.sampled_from([None, None, *SPLITS]), min_size=2, max_size=14))
    place = st.integers(0, len(hints) - 1)
    pairs = draw(st.sets(st.tuples(place, place).filter(lambda pair: pair[0] < pair[1])))
    return hints, sorted(pairs)


def split(hints, pairs, config=CONFIG, seed=0):
    array = np.array(pairs, np.int64).reshape(-1, 2)
    return assign(KEYS[: len(hints)], hints, array, config, seed)


def drawn(key, config=CONFIG, seed=0):
    return assign([key], [None], NO_PAIRS, config, seed).splits[0]


@given(datasets())
def test_no_two_near_duplicates_stand_in_different_splits(dataset):
    hints, pairs = dataset
    made = split(hints, pairs)
    for one, other in pairs:
        if one not in made.leaks and other not in made.leaks:
            assert made.splits[one] == made.splits[other]


@given(datasets())
def test_a_leak_is_a_near_duplicate_of_an_image_in_a_dearer_split(dataset):
    hints, pairs = dataset
    made = split(hints, pairs)
    for leaked, other in made.leaks.items():
        assert (min(leaked, other), max(leaked, other)) in pairs
        assert SPLITS.index(made.splits[leaked]) < SPLITS.index(made.splits[other])


@given(datasets(), st.integers(1, 13))
def test_rows_that_arrive_later_move_nothing_and_only_dearer_hints_make_leaks(dataset, count):
    hints, pairs = dataset
    before = split(hints[:count], [pair for pair in pairs if pair[1] < count])
    after = split(hints, pairs)
    assert after.splits[: len(before.splits)] == before.splits
    assert before.leaks.items() <= after.leaks.items()
    for leaked in after.leaks.keys() - before.leaks.keys():
        other = after.leaks[leaked]
        if leaked < count:
            assert other >= count
            assert hints[other] == after.splits[other]


@given(datasets())
def test_hints_are_kept_and_golden_has_none_but_its_own(dataset):
    hints, pairs = dataset
    made = split(hints, pairs)
    for place, hint in enumerate(hints):
        assert made.splits[place] == hint or (hint is None and made.splits[place] != "golden")


@given(datasets())
def test_whatever_resembles_the_golden_set_leaks(dataset):
    hints, pairs = dataset
    made = split(hints, pairs)
    for one, other in pairs:
        golden = [place for place in (one, other) if hints[place] == "golden"]
        if len(golden) == 1:
            assert ({one, other} - set(golden)) <= made.leaks.keys()


@pytest.mark.parametrize(
    ("hints", "pairs", "splits", "leaks"),
    [
        # Without a hint: with what came before, even if it came with a hint.
        (["val", None, None], [(0, 1), (1, 2)], [VAL, VAL, VAL], {}),
        # Hints that disagree: the cheaper leaks, whichever came first.
        (["train", "test"], [(0, 1)], [TRAIN, TEST], {0: 1}),
        (["test", "train", "val"], [(0, 1), (0, 2)], [TEST, TRAIN, VAL], {1: 0, 2: 0}),
        # One that leaked makes no other leak.
        (["golden", "test", "train"], [(0, 1), (1, 2)], [GOLDEN, TEST, TRAIN], {1: 0}),
        # A bridge between two splits leaks.
        (["train", "test", None], [(0, 2), (1, 2)], [TRAIN, TEST, TRAIN], {2: 1}),
        # What resembles the golden set doesn't join it, nor does what resembles that train.
        (["golden", None, None], [(0, 1), (1, 2)], [GOLDEN, TEST, TEST], {1: 0}),
    ],
)
def test_who_follows_and_who_leaks(hints, pairs, splits, leaks):
    made = split(hints, pairs)
    assert [SPLITS.index(name) for name in made.splits] == splits
    assert made.leaks == leaks


def test_near_duplicates_follow_the_first_of_them_whose_own_hash_decides():
    for start in range(0, 60, 3):
        keys = KEYS[start : start + 3]
        made = assign(keys, [None] * 3, np.array([[0, 1], [1, 2]]), CONFIG, 0)
        assert made.splits == [drawn(keys[0])] * 3
        assert not made.leaks


def test_shares_come_out_as_configured():
    config = SplitsConfig(val=0.1, test=0.25)
    pairs = np.array([[place, place + 1] for place in range(0, 1000, 2)])
    counts = Counter(assign(KEYS, [None] * len(KEYS), pairs, config, 0).splits)
    assert counts["val"] / len(KEYS) == pytest.approx(0.1, abs=0.02)
    assert counts["test"] / len(KEYS) == pytest.approx(0.25, abs=0.03)
    assert "golden" not in counts


@given(st.sampled_from(KEYS), SHARES, SHARES, st.floats(0, 0.2), st.integers())
def test_larger_val_and_test_only_take_images_out_of_train(key, val, test, more, seed):
    old = drawn(key, SplitsConfig(val=val, test=test), seed)
    new = drawn(key, SplitsConfig(val=val + more, test=test), seed)
    assert new == old or (old, new) == ("train", "val")


def test_another_seed_makes_another_split():
    none = [None] * 50
    assert split(none, [], seed=0).splits == split(none, [], seed=0).splits
    assert split(none, [], seed=0).splits != split(none, [], seed=1).splits


@pytest.mark.parametrize(
    ("hint", "name"),
    [("restval", "train"), ("dev", "val"), ("validation", "val"), *((s, s) for s in SPLITS)],
)
def test_what_sources_call_their_splits_is_understood(hint, name):
    assert parse(hint) == name


def test_an_unknown_hint_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="'tset' is unknown; sources may say train, val, test"):
        parse("tset")
