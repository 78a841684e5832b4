"""Collapse is seen and told in words; varied captions, and worlds that are all alike, pass."""

import csv
import random
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.scenes import scene
from tasks.metrics import diversity

CAPTIONS = Path(__file__).parents[3] / "shared/data/flickr8k_1000/captions_full.txt"
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
@settings(deadline=None)
def test_shares_are_shares_of_any_captions(captions):
    found = diversity.measure(captions)
    shares = (*found.distinct, found.repeated, found.commonest_share, found.looping, found.empty)
    assert all(0 <= share <= 1 for share in shares)
    assert found.lengths.shortest <= found.lengths.median <= found.lengths.longest


def test_no_captions_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        diversity.measure([])


@pytest.fixture(scope="module")
def people() -> list[list[str]]:
    """Five captions of each of 8,091 photos."""
    if not CAPTIONS.exists():
        pytest.skip("../shared/data/flickr8k_1000 is absent")
    images = defaultdict(list)
    with CAPTIONS.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            images[row["image"]].append(row["caption"])
    return list(images.values())


@pytest.mark.parametrize("images", [20, 50, 200, 1000, 8000])
def test_what_people_wrote_is_far_from_every_limit(people, images):
    for drawn in range(10):
        some = random.Random(drawn).sample(people, images)
        verdict = diversity.judge([five[1] for five in some], [[five[0]] for five in some])
        found, others = verdict.predictions, verdict.references
        assert verdict.reasons == ()
        assert found.repeated < diversity.MOST_REPEATED / 10
        assert found.commonest_share <= max(diversity.MOST_SAME / 10, 2 / images)
        assert found.looping <= max(diversity.MOST_LOOPING / 10, 1 / images)
        assert found.empty == 0
        for ours, theirs in zip(found.distinct, others.distinct, strict=True):
            assert ours > 5 * diversity.LEAST_OF_REFERENCES * theirs
        assert 2 / 3 < found.lengths.median / others.lengths.median < 3 / 2


@pytest.mark.parametrize("images", [100, 700])
def test_the_drawn_world_s_captions_are_no_collapse(images):
    drawn = [scene(1, index, "day").references for index in range(images)]
    verdict = diversity.judge([five[1] for five in drawn], [[five[0]] for five in drawn])
    assert verdict.reasons == ()
    assert verdict.predictions.repeated < diversity.MOST_REPEATED / 2


def planted(captions: list[str]) -> dict[str, list[str]]:
    """Ways to collapse, from captions that are as people write them."""
    count = len(captions)
    return {
        "one caption of all": captions[:1] * count,
        **{
            f"{k} captions of all": [captions[n % k] for n in range(count)]
            for k in (2, 10, count // 4)
        },
        "half of the images alike": [captions[0] if n % 2 else captions[n] for n in range(count)],
        "a twentieth loops": [
            f"{said} and a dog and a dog and a dog" if n % 20 == 0 else said
            for n, said in enumerate(captions)
        ],
        "one in forty is empty": ["" if n % 40 == 0 else c for n, c in enumerate(captions)],
        "nothing but the start": [" ".join(caption.split()[:2]) for caption in captions],
    }


WAYS = [*planted(["a", "b", "c", "d"] * 60)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world", ["photos", "drawn"])
def test_planted_collapses_are_found_on_photos_and_in_the_drawn_world(world, way, request):
    if world == "photos":
        images = request.getfixturevalue("people")[:1000]
    else:
        images = [list(scene(1, index, "day").references) for index in range(700)]
    # The number of captions is in the name, and a quarter of all differs.
    ways = dict(zip(WAYS, planted([five[1] for five in images]).values(), strict=True))
    assert diversity.judge(ways[way], [[five[0], *five[2:]] for five in images]).collapsed


def test_one_broken_caption_of_a_small_slice_is_an_accident():
    for broken in ("", "a dog a dog a dog"):
        few = VARIED[:30]
        assert not diversity.judge([broken, *few[1:]], REFERENCES[:30]).collapsed
        assert diversity.judge([broken, broken, broken, *few[3:]], REFERENCES[:30]).collapsed
