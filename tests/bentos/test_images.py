import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bentos.captioner.images import BadImage, decode, normalize, to_pixels

ORIENTATION = 0x0112


def reason_of(data: bytes, **limits: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **limits)
    return caught.value.reason


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "JPEG"])
def test_allowed_formats_are_read_as_opaque_rgb(picture, encode, image_format) -> None:
    image = decode(encode(picture(0, 40, 30), image_format))
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("image_format", ["BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_as_unsupported(picture, encode, image_format) -> None:
    assert reason_of(encode(picture(0), image_format)) == "unsupported_format"


def test_empty_text_and_truncated_bytes_are_refused(picture, encode) -> None:
    jpeg = encode(picture(0, 200, 200), "JPEG")
    assert reason_of(b"") == "empty"
    assert reason_of(b"<svg/>") == "unsupported_format"
    assert reason_of(jpeg[: len(jpeg) // 2]) == "undecodable"
    assert reason_of(b"\x89PNG\r\n\x1a\n") == "undecodable"


@pytest.mark.parametrize("side", [6_400, 10_000, 20_000])
def test_a_bomb_is_refused_from_its_header_without_a_warning(encode, side) -> None:
    bomb = encode(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason_of(bomb) == "too_many_pixels"


def test_the_pixel_limit_is_inclusive(picture, encode) -> None:
    data = encode(picture(0, 10, 10))
    assert decode(data, max_pixels=100).size == (10, 10)
    assert reason_of(data, max_pixels=99) == "too_many_pixels"


def test_exif_orientation_is_applied(picture, encode) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    sent = picture(3, 60, 40)
    upright = decode(encode(sent, "PNG", exif=exif))
    assert np.array_equal(
        np.asarray(upright), np.asarray(sent.transpose(Image.Transpose.ROTATE_270))
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(encode, mode) -> None:
    if mode == "P":
        clear = Image.new("P", (8, 8), 0)
        data = encode(clear, "PNG", transparency=0)
    else:
        data = encode(Image.new(mode, (8, 8), 0))
    assert np.asarray(decode(data)).min() == 255


def test_sixteen_bit_grey_is_scaled_not_clipped(encode) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    decoded = np.asarray(decode(encode(Image.fromarray(ramp))))[..., 0]
    assert np.array_equal(decoded, ramp >> 8)


def test_a_gif_gives_its_first_frame() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode(buffer.getvalue()).getpixel((0, 0)) == (255, 0, 0)


@settings(max_examples=300, deadline=None)
@given(
    image_format=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]),
    seed=st.integers(0, 3),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    kept=st.floats(0.02, 1),
)
def test_damaged_bytes_give_a_picture_or_bad_image_and_nothing_else(
    picture, encode, image_format, seed, edits, kept
) -> None:
    data = bytearray(encode(picture(seed, 24, 24), image_format))
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    try:
        image = decode(bytes(data[: int(kept * len(data))]))
    except BadImage:
        return
    assert image.mode == "RGB"


def test_pixels_and_values_equal_those_of_blips_own_processor(picture) -> None:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    processor = BlipImageProcessorPil(size={"height": 72, "width": 72})
    images = [picture(seed, 30 + 50 * seed, 90) for seed in range(4)]
    expected = processor(images, return_tensors="pt")["pixel_values"].numpy()
    pixels = np.stack([to_pixels(image, 72) for image in images])
    values = normalize(pixels, processor.image_mean, processor.image_std)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(values.numpy(), expected, atol=2e-6)
