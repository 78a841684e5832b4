"""A slice holds the images that meet every condition, and no image is in two parts."""

import re
import statistics
from itertools import compress
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.schema import EvaluateConfig, Range, ShareRange, SliceConfig, SourceFormat
from tasks.data.prepared import Split
from tasks.data.readers.detect import FORMATS
from tasks.metrics import slices

VOCABULARY = ("a", "hot", "dog", "dogs", "hotdog", "runs", "Red", "sea")
CAPTIONS = st.lists(st.sampled_from(VOCABULARY), max_size=7).map(" ".join)
IMAGES = st.lists(
    st.tuples(
        st.lists(CAPTIONS, min_size=1, max_size=3),
        st.sampled_from(["coco", "csv", "hf"]),
        st.tuples(st.integers(0, 40), st.integers(0, 40)),
        st.integers(0, 255),
    ),
    max_size=8,
)


def ranges(kind: type[Range], numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Range]:
    ends = st.tuples(st.none() | numbers, st.none() | numbers).filter(any)
    ordered = ends.filter(lambda e: None in e or e[0] <= e[1])
    return ordered.map(lambda e: kind(min=e[0], max=e[1]))


PHRASES = st.sampled_from([*VOCABULARY, "hot dog", "a red"])
CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "caption_words": ranges(Range, st.integers(0, 8)),
        "words": st.lists(st.sampled_from([*VOCABULARY, "hot dog", "a red"]), min_size=1).map(
            tuple
        ),
        "source": st.lists(st.sampled_from(["coco", "hf"]), min_size=1).map(tuple),
        "image_side": ranges(Range, st.integers(0, 41)),
        "brightness": ranges(ShareRange, st.integers(0, 51).map(lambda n: 5 * n / 255)),
    },
).filter(len)


def split_of(images) -> Split:
    return Split(
        [f"i{n}" for n in range(len(images))],
        [captions for captions, *_ in images],
        [source for _, source, *_ in images],
        [size for _, _, size, _ in images],
        np.array([np.full((2, 2, 3), level, np.uint8) for *_, level in images]),
    )


def meets(image, conditions: SliceConfig) -> bool:
    """The conditions once more, in plain words about one image."""
    captions, source, size, level = image

    def within(value, bounds):
        return bounds is None or (
            (bounds.min is None or value >= bounds.min)
            and (bounds.max is None or value <= bounds.max)
        )

    said = [
        re.search(rf"\b{re.escape(phrase)}\b", caption, re.IGNORECASE)
        for phrase in conditions.words
        for caption in captions
    ]
    return (
        within(
            statistics.fmean(len(caption.split()) for caption in captions), conditions.caption_words
        )
        and (not conditions.words or any(said))
        and (not conditions.source or source in conditions.source)
        and (conditions.image_side is None or min(size) > 0)
        and within(min(size), conditions.image_side)
        and within(level / 255, conditions.brightness)
    )


@given(IMAGES, CONDITIONS)
def test_a_slice_holds_exactly_the_images_that_meet_every_condition(images, conditions):
    config = SliceConfig(**conditions)
    places = slices.chosen(split_of(images), {"some": config})["some"]
    expected = compress(range(len(images)), (meets(image, config) for image in images))
    assert places.tolist() == list(expected)


def test_words_are_whole_words_and_phrases_whatever_their_case():
    images = split_of(
        [([caption], "csv", (9, 9), 0) for caption in ("Hot dogs!", "A HOT, dog", "a shot dog", "")]
    )

    def found(*words):
        return slices.chosen(images, {"x": SliceConfig(words=words)})["x"].tolist()

    assert found("hot dog") == [1]
    assert found("dog") == [1, 2]
    assert found("dogs", "dog") == [0, 1, 2]


def test_every_image_is_in_one_part_and_parts_without_images_are_left_out(dataset):
    found = slices.parts(dataset("csv", "feedback", "coco", golden=2))
    assert {name: split.image_ids for name, split in found.items()} == {
        "test": ["i0", "i2"],
        "current": ["i1"],
        "golden": ["g0", "g1"],
    }


def test_data_without_feedback_and_golden_set_is_all_test(dataset):
    assert slices.parts(dataset("csv")).keys() == {"test"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"test": {"words": "dog"}}, "test: there always is such a slice"),
        ({"Dogs": {"words": "dog"}}, "String should match pattern"),
        ({"dogs": {}}, "give at least one of caption_words, words"),
        ({"dogs": {"words": []}}, "give at least one of"),
        ({"dogs": {"words": ["  "]}}, "at least 1 character"),
        ({"dogs": {"word": "dog"}}, "Extra inputs"),
        ({"dark": {"brightness": {"max": 25}}}, "less than or equal to 1"),
        ({"dark": {"brightness": {}}}, "give min, max or both"),
        ({"small": {"image_side": {"min": 2, "max": 1}}}, "min must not be above max"),
        ({"phones": {"source": "feedback"}}, "Input should be"),
    ],
)
def test_a_slice_that_means_nothing_is_refused_by_name(given, expected):
    with pytest.raises(ValidationError, match=expected):
        EvaluateConfig(slices=given)


def test_sources_are_those_that_images_of_test_carry():
    assert {*get_args(SourceFormat)} == {*FORMATS, "scenes"}
