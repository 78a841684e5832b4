"""The profile of a dataset: exact numbers, bounded size, and a drift that is one of distances."""

import json
import math
import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.profile import Profile, ProfileBuilder, compare, growth, words

WORDS = st.sampled_from(["a", "dog", "cat", "runs", "sits", "snow", "on", "Grass", "it's", "été"])
CAPTIONS = st.lists(WORDS, max_size=8).map(" ".join)
SIDES = st.integers(0, 5000)
DATASETS = st.lists(st.tuples(st.lists(CAPTIONS, max_size=4), SIDES, SIDES), max_size=12)


def profiled(dataset) -> Profile:
    builder = ProfileBuilder()
    for references, width, height in dataset:
        builder.add(references, width, height)
    return builder.profile()


def said(*captions: str) -> Profile:
    return profiled([([caption], 4, 3) for caption in captions])


def test_every_number_is_counted_as_a_person_would():
    profile = profiled(
        [
            (["A man's t-shirt.", "a  MAN's t-shirt.", "Dog , dog !"], 640, 480),
            (["a dog"], 480, 640),
            ([], 0, 0),
        ]
    )
    assert (profile.num_images, profile.num_captions) == (3, 4)
    assert (profile.num_words, profile.num_different_words) == (10, 4)
    assert profile.words_per_caption == {2: 2, 3: 2}
    assert profile.captions_per_image == {0: 1, 1: 1, 3: 1}
    assert list(profile.vocabulary.items()) == [
        ("a", 3),
        ("dog", 3),
        ("man's", 2),
        ("t-shirt", 2),
    ]
    assert profile.aspect_ratios == {2: 1, -2: 1}  # 4:3 and 3:4, in fifths of an octave
    assert profile.megapixels == {round(2 * math.log2(0.3072)): 2}
    assert profile.common_captions == {"a man's t-shirt.": 2}
    assert (profile.mean_words, profile.median_words) == (2.5, 2.0)


@given(DATASETS)
@settings(max_examples=40, deadline=None)
def test_totals_agree_with_the_histograms(dataset):
    profile = profiled(dataset)
    captions = [caption for references, _, _ in dataset for caption in references]
    assert profile.vocabulary == Counter(word for caption in captions for word in words(caption))
    assert sum(profile.words_per_caption.values()) == profile.num_captions == len(captions)
    assert sum(k * n for k, n in profile.words_per_caption.items()) == profile.num_words
    assert sum(profile.captions_per_image.values()) == profile.num_images == len(dataset)
    assert sum(profile.vocabulary.values()) == profile.num_words
    known = sum(1 for _, width, height in dataset if width and height)
    assert sum(profile.aspect_ratios.values()) == sum(profile.megapixels.values()) == known


@given(DATASETS.flatmap(lambda dataset: st.tuples(st.just(dataset), st.permutations(dataset))))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_images_changes_nothing(datasets):
    one, other = datasets
    assert json.dumps(profiled(one).to_json()) == json.dumps(profiled(other).to_json())


@given(DATASETS)
@settings(max_examples=40, deadline=None)
def test_a_profile_survives_json(dataset):
    profile = profiled(dataset)
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


@given(DATASETS)
@settings(max_examples=40, deadline=None)
def test_a_dataset_has_not_drifted_from_itself(dataset):
    drift = compare(profiled(dataset), profiled(dataset))
    for change in (drift.images, drift.captions, drift.mean_words, drift.median_words):
        assert change.before == change.after
    assert drift.length_distance == 0
    assert drift.new_share_of_vocabulary == drift.new_share_of_words == 0
    assert drift.new_words == drift.gone_words == drift.changed_words == ()


@given(DATASETS, DATASETS)
@settings(max_examples=60, deadline=None)
def test_drift_looks_the_same_from_either_side(one, other):
    there = compare(profiled(one), profiled(other))
    back = compare(profiled(other), profiled(one))
    assert 0 <= there.length_distance <= 1
    assert there.length_distance == back.length_distance
    assert 0 <= there.new_share_of_vocabulary <= 1
    assert 0 <= there.new_share_of_words <= 1
    assert {c.word: c.after for c in there.new_words} == {c.word: c.before for c in back.gone_words}
    assert {c.word: pytest.approx(-c.score) for c in there.changed_words} == {
        c.word: c.score for c in back.changed_words
    }


def test_the_length_distance_is_one_for_captions_with_no_length_in_common():
    assert compare(said("a dog"), said("a dog runs")).length_distance == 1
    assert compare(said("a dog"), said("cat runs")).length_distance == 0
    # p = (1, 0) and q = (½, ½), so their mean is (¾, ¼).
    half = compare(said("a dog"), said("a dog", "a dog runs")).length_distance
    by_hand = 0.5 * math.log2(4 / 3) + 0.5 * (0.5 * math.log2(2 / 3) + 0.5)
    assert half == pytest.approx(math.sqrt(by_hand))


def test_what_chance_gives_is_what_two_samples_of_one_population_show():
    draw = np.random.default_rng(0)
    share = np.array([1, 2, 4, 6, 7, 6, 4, 2, 1]) / 33

    def sample(captions: int) -> Profile:
        lengths = enumerate(draw.multinomial(captions, share), start=2)
        return replace(
            said("a dog"),
            num_captions=captions,
            words_per_caption={length: int(count) for length, count in lengths},
        )

    drifts = [compare(sample(4_000), sample(1_000)) for _ in range(60)]
    seen = np.sqrt(np.mean([drift.length_distance**2 for drift in drifts]))
    assert seen == pytest.approx(drifts[0].length_distance_by_chance, rel=0.15)


def test_new_and_gone_words_come_with_their_counts_and_the_most_frequent_first():
    drift = compare(said("fox owl", "owl elk", "dog dog"), said("dog cat", "cat"))
    assert [(c.word, c.before, c.after) for c in drift.new_words] == [
        ("owl", 0, 2),
        ("elk", 0, 1),
        ("fox", 0, 1),
    ]
    assert [(c.word, c.before, c.after) for c in drift.gone_words] == [("cat", 2, 0)]
    assert drift.new_share_of_vocabulary == 3 / 4
    assert drift.new_share_of_words == 4 / 6


def test_the_score_of_a_word_is_the_log_odds_of_monroe_and_others():
    now = said(*["dog runs"] * 200, *["cat runs"] * 100)
    was = said(*["dog runs"] * 100, *["cat runs"] * 200)
    dog, cat = compare(now, was).changed_words
    # Pooled: 300 of 1,200 words, so 125 of the prior's 500 are "dog".
    a, b, rest = 200 + 125, 100 + 125, 600 + 500
    expected = math.log(a / (rest - a)) - math.log(b / (rest - b))
    expected /= math.sqrt(1 / a + 1 / b)
    assert {cat.word: cat.score, dog.word: dog.score} == {
        "dog": pytest.approx(expected),
        "cat": pytest.approx(-expected),
    }
    assert (dog.before, dog.after) in {(100, 200), (200, 100)}


def test_a_larger_dataset_that_says_the_same_has_no_changed_words():
    captions = ["a dog runs", "a cat sits on grass", "snow on a dog"]
    drift = compare(said(*captions * 400), said(*captions))
    assert drift.changed_words == ()
    assert drift.length_distance == pytest.approx(0, abs=1e-7)


def test_the_vocabulary_grows_to_what_it_is_and_never_shrinks():
    profile = said("a dog runs", "a cat sits", "a dog sits on snow")
    curve = growth(profile)
    assert curve[0] == (0, 0)
    assert curve[-1] == (profile.num_words, profile.num_different_words)
    seen = [different for _, different in curve]
    assert seen == sorted(seen)


def test_memory_stays_flat_while_new_words_and_captions_keep_coming(monkeypatch):
    monkeypatch.setattr("tasks.data.profile._KEPT_WORDS", 500)
    monkeypatch.setattr("tasks.data.profile._KEPT_CAPTIONS", 100)

    def built(images: int) -> tuple[int, Profile]:
        tracemalloc.start()
        builder = ProfileBuilder()
        for i in range(images):
            builder.add([f"word{i}x{j} again and again" for j in range(5)], 640, 480 + i % 7)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, builder.profile()

    (small, _), (large, profile) = built(400), built(4_000)
    assert large < 1.2 * small
    assert len(profile.vocabulary) == 500
    assert profile.vocabulary["again"] == 40_000  # what is frequent stays exact
    assert profile.num_words == 80_000
    assert profile.num_different_words == 20_002


def test_an_endless_word_or_caption_is_cut_where_it_is_kept():
    profile = profiled([(["x" * 10_000, "x" * 10_000, "y " * 5_000], 1, 10**7)])
    assert max(map(len, profile.vocabulary)) == 40
    assert max(map(len, profile.common_captions)) == 200
    assert profile.words_per_caption == {1: 2, 200: 1}
    assert profile.num_words == 5_002
    assert profile.aspect_ratios == {-15: 1}
