"""Collapse is seen and told in words; varied captions, and worlds that are all alike, pass."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics import diversity

CAPTIONS = Path(__file__).parents[3] / "shared/data/flickr8k_1000/captions.txt"
COLOURS = ("red", "green", "blue", "white", "black", "brown")
THINGS = ("dog", "cat", "horse", "boat", "ball", "tree", "man", "girl")
PLACES = ("runs", "sits in the grass", "is by the sea", "waits near a house", "jumps over snow")
VARIED = [f"a {c} {t} {p}" for c in COLOURS for t in THINGS for p in PLACES]
REFERENCES = [[caption, "something else"] for caption in VARIED]


def test_varied_captions_have_not_collapsed():
    verdict = diversity.judge(VARIED[::-1], REFERENCES)
    assert not verdict.collapsed
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("predictions", "reason"),
    [
        (["a dog in the grass"] * len(VARIED), "100% of the images got the same caption, “a dog"),
        ([*VARIED[:8]] * 30, "100% of the captions are another image's, too (people: 0%)"),
        (["a a a a " + caption for caption in VARIED], "repeat the same words"),
        (["a man in a hat in a hat in a hat"] * 10 + VARIED[10:], "4% of the captions repeat"),
        ([""] * 12 + VARIED[12:], "5% of the captions are empty"),
        (["a dog in the grass"] * len(VARIED), "distinct-2 is"),
        (["dog"] * len(VARIED), "the median caption has 1 words, people's"),
    ],
)
def test_collapse_is_told_in_words(predictions, reason):
    verdict = diversity.judge(predictions, REFERENCES)
    assert verdict.collapsed
    assert any(reason in told for told in verdict.reasons), verdict.reasons


def test_sameness_counts_beside_people_who_say_the_same():
    same = ["a red circle"] * 90 + ["a blue square"] * 10
    assert not diversity.judge(same, [[caption] for caption in same]).collapsed
    assert diversity.judge(same).collapsed


def test_a_handful_of_equal_captions_is_no_collapse():
    assert not diversity.judge(
        ["a dog"] * 3, [["a dog runs"], ["a cat"], ["a boat at sea"]]
    ).collapsed


@pytest.mark.parametrize(
    ("caption", "looping"),
    [
        ("a a a", True),
        ("a a", False),
        ("the dog the dog the dog", True),
        ("the dog and the dog", False),
        ("on top of it on top of it on top of it", True),
        ("a big dog and a big cat and a big cow and a big dog and a big cat", True),
        ("two men and two women and two children walk along a very long road", False),
    ],
)
def test_loops(caption, looping):
    assert diversity.loops(caption.split()) is looping


def test_distinct_counts_n_grams_as_li_et_al_do():
    captions = [["a", "a", "b"], ["a", "b"]]
    assert diversity.distinct(captions, 1) == pytest.approx(2 / 5)
    assert diversity.distinct(captions, 2) == pytest.approx(2 / 3)
    assert diversity.distinct([[], ["a"]], 2) == 0


@given(st.lists(st.text(), min_size=1, max_size=30))
def test_shares_are_shares_of_any_captions(captions):
    found = diversity.measure(captions)
    shares = (*found.distinct, found.repeated, found.commonest_share, found.looping, found.empty)
    assert all(0 <= share <= 1 for share in shares)
    assert found.lengths.shortest <= found.lengths.median <= found.lengths.longest


def test_no_captions_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        diversity.measure([])


@pytest.mark.skipif(not CAPTIONS.exists(), reason="../shared/data/flickr8k_1000 is absent")
def test_what_people_wrote_has_not_collapsed():
    images = defaultdict(list)
    with CAPTIONS.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            images[row["image"]].append(row["caption"])
    found = list(images.values())
    verdict = diversity.judge([five[1] for five in found], [[five[0], *five[2:]] for five in found])
    assert verdict.reasons == ()
