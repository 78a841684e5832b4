"""HEIC pictures, read where pillow-heif is installed, within the limits of all others."""

import io
import re
import struct
import sys

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bentos.captioner.images import BadImage, decode
from tests.bentos.test_images import UPRIGHT, exif, reason_of


def heic(image: Image.Image, *more: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    file = pillow_heif.from_pillow(image)
    for one in more:
        file.add_from_pillow(one)
    file.save(buffer, **{"quality": -1, "chroma": 444, **options})
    return buffer.getvalue()


def with_sizes(data: bytes, said: tuple[int, int], instead: tuple[int, int]) -> bytes:
    return data.replace(
        b"ispe\0\0\0\0" + struct.pack(">II", *said), b"ispe\0\0\0\0" + struct.pack(">II", *instead)
    )


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_every_orientation_becomes_upright(picture, orientation) -> None:
    stored = picture(0, 48, 32)
    decoded = decode(heic(stored, exif=exif(orientation).tobytes()), side=4)
    expected = UPRIGHT[orientation](np.asarray(stored))
    assert decoded.size == expected.shape[1::-1]
    assert np.abs(np.asarray(decoded, dtype=float) - expected).mean() < 2


def test_the_embedded_thumbnail_is_not_what_is_captioned(picture) -> None:
    stored = picture(0, 640, 480)
    data = heic(stored, thumbnails=[64])
    assert decode(data, side=8).size == (640, 480)


def test_what_is_transparent_becomes_white_and_grey_stays_grey(picture) -> None:
    assert np.asarray(decode(heic(Image.new("RGBA", (64, 64))))).min() > 250
    grey = np.asarray(decode(heic(picture(0).convert("L"))), dtype=float)
    assert np.abs(grey - np.asarray(picture(0).convert("L"))[..., np.newaxis]).mean() < 1


def test_of_several_pictures_the_primary_one_is_taken(picture) -> None:
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    for primary, expected in ((0, (255, 0, 0)), (1, (0, 0, 255))):
        pixel = decode(heic(red, blue, primary_index=primary)).getpixel((5, 5))
        assert np.abs(np.subtract(pixel, expected)).max() < 4


def test_the_pixel_limit_is_inclusive(picture) -> None:
    data = heic(picture(0, 64, 64))
    assert decode(data, max_pixels=64 * 64).size == (64, 64)
    assert reason_of(data, max_pixels=64 * 64 - 1) == "too_many_pixels"


def test_a_small_part_of_a_large_picture_counts_as_the_whole() -> None:
    large = heic(Image.new("RGB", (2001, 2001)), chroma=420)
    start = large.index(b"clap") + 4
    clap = struct.pack(">8i", 64, 1, 64, 1, 0, 1, 0, 1)
    cut = large[:start] + clap + large[start + len(clap) :]
    assert decode(cut).size == (64, 64)
    assert reason_of(cut, max_pixels=2000 * 2000) == "too_many_pixels"


def test_a_grid_counts_as_what_its_tiles_make_up(picture) -> None:
    grid = heic(picture(0, 512, 512), tile_size=256)
    assert decode(grid, max_pixels=512 * 512).size == (512, 512)
    lying = with_sizes(grid, (512, 512), (64, 64))
    assert lying != grid
    assert reason_of(lying, max_pixels=512 * 512 - 1) == "too_many_pixels"


def test_a_picture_larger_than_it_says_is_refused_before_it_is_decoded() -> None:
    large = heic(Image.new("RGB", (2000, 2000)), chroma=420)
    lying = with_sizes(large, (2000, 2000), (64, 64))
    assert lying != large
    with pytest.raises(BadImage, match="Security limit exceeded"):
        decode(lying)


def test_overlays_are_refused(picture) -> None:
    data = heic(picture(0), picture(1))
    overlay = re.sub(rb"(infe.{8})hvc1", rb"\1iovl", data, count=1, flags=re.DOTALL)
    assert overlay != data
    assert reason_of(overlay) == "unsupported_format"


def test_without_the_library_the_answer_says_so(picture, monkeypatch) -> None:
    data = heic(picture(0))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImage, match=r"pillow-heif.*JPEG, PNG, WEBP, GIF") as caught:
        decode(data)
    assert caught.value.reason == "unsupported_format"


def test_avif_is_no_heic(encode, picture) -> None:
    assert reason_of(encode(picture(0), "AVIF")) == "unsupported_format"


@pytest.fixture(scope="module")
def whole(picture) -> dict[str, bytes]:
    image = picture(0, 128, 96)
    modes = {mode: heic(image.convert(mode)) for mode in ("RGB", "RGBA", "L")}
    return {**modes, "thumbnail": heic(image, thumbnails=[32]), "grid": heic(image, tile_size=64)}


@settings(max_examples=500, deadline=None)
@given(
    kind=st.sampled_from(["RGB", "RGBA", "L", "thumbnail", "grid"]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    kept=st.floats(0.02, 1),
    side=st.sampled_from([None, 16]),
)
def test_damaged_bytes_give_a_picture_or_bad_image_and_nothing_else(
    whole, kind, edits, kept, side
) -> None:
    data = bytearray(whole[kind])
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    try:
        decoded = decode(bytes(data[: int(kept * len(data))]), max_pixels=1_000_000, side=side)
    except BadImage:
        return
    assert decoded.mode == "RGB"
