"""The figures of a picture, and ids that tell the time, each against an independent reference."""

import time
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter, laplace

from bentos.captioner.request_ids import new_request_id, seconds_of
from bentos.captioner.statistics import picture_statistics

sizes = st.tuples(st.integers(3, 300), st.integers(3, 40), st.just(3))


@given(arrays(np.uint8, sizes))
def test_brightness_and_sharpness_equal_their_definitions(pixels) -> None:
    found = picture_statistics(pixels)
    edges = laplace(pixels[..., 1].astype(np.float64))[1:-1, 1:-1]
    assert found.brightness == pytest.approx(pixels.mean() / 255, rel=1e-12, abs=1e-12)
    assert found.sharpness == pytest.approx(edges.var(), rel=1e-4, abs=1e-2)


def test_a_white_picture_of_any_height_is_as_bright_as_can_be_and_has_no_edges() -> None:
    for height in (72, 256, 257, 1000):
        found = picture_statistics(np.full((height, 5, 3), 255, np.uint8))
        assert (found.brightness, found.sharpness) == (1.0, 0.0)


def test_a_blurred_picture_is_less_sharp() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (72, 72, 3), dtype=np.uint8)
    found = [
        picture_statistics(gaussian_filter(pixels, (sigma, sigma, 0))).sharpness
        for sigma in (0.0, 0.5, 1.0, 2.0)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > 100 * found[-1]


@given(st.floats(0, 2**47 / 1000))
def test_an_id_is_a_uuid7_of_its_time(seconds) -> None:
    made = uuid.UUID(hex=new_request_id(seconds))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert seconds_of(made.hex) == int(1000 * seconds) / 1000


def test_ids_sort_by_time_and_are_never_the_same() -> None:
    before = time.time()
    ids = [new_request_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [seconds_of(one) for one in ids] == sorted(seconds_of(one) for one in ids)
    assert before - 0.001 <= seconds_of(ids[0]) <= seconds_of(ids[-1]) <= time.time()


@pytest.mark.parametrize("foreign", ["", "x" * 32, "0" * 31, "0" * 33, "A" * 32, "../" + "0" * 29])
def test_what_is_no_id_of_ours_has_no_time(foreign) -> None:
    assert seconds_of(foreign) is None
