import asyncio
import io
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from prometheus_client import CollectorRegistry

from bentos.captioner.capture import read_window
from bentos.captioner.generation import Generation
from bentos.captioner.images import BadImage, decode, normalize, to_pixels
from bentos.captioner.models import ServedModel, load_model
from bentos.captioner.options import CaptionOptions
from bentos.captioner.runtime import Runtime
from bentos.captioner.settings import ServiceSettings
from bentos.captioner.telemetry import Telemetry

# What a stored array [height, width, …] shows, by EXIF's own words on where row and column 0 are.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,  # top, left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.swapaxes(0, 1),  # left, top
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda stored: stored.swapaxes(0, 1)[::-1],  # left, bottom
}
LOSSLESS = {
    "PNG": ["1", "L", "LA", "P", "P with a clear colour", "RGB", "RGBA", "I;16"],
    "WEBP": ["RGB", "RGBA"],
}


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[ExifTags.Base.Orientation] = orientation
    return made


def stored_and_seen(mode: str, seed: int) -> tuple[Image.Image, dict[str, int], np.ndarray]:
    """A random picture in a mode, options to save it with, and the opaque RGB that it shows."""
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 9, 2)
    if mode == "I;16":
        deep = random.integers(0, 65536, (height, width), dtype=np.uint16)
        seen = np.repeat((deep >> 8).astype(np.uint8)[..., np.newaxis], 3, axis=2)
        return Image.fromarray(deep), {}, seen
    rgba = Image.fromarray(random.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode == "P with a clear colour":
        image = rgba.convert("RGB").quantize(4)
        colours = np.asarray(image.convert("RGB"))
        clear = np.asarray(image)[..., np.newaxis] == 0
        return image, {"transparency": 0}, np.where(clear, np.uint8(255), colours)
    image = rgba.convert(mode)
    colours, alpha = np.split(np.asarray(image.convert("RGBA"), dtype=float), [3], axis=2)
    return image, {}, (colours * alpha + 255 * (255 - alpha)) / 255


@pytest.fixture(scope="session")
def smooth(picture) -> Callable[..., Image.Image]:
    def draw(width: int, height: int) -> Image.Image:
        return picture(1, 8, 6).resize((width, height), Image.Resampling.BICUBIC)

    return draw


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


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from([(kind, mode) for kind, modes in LOSSLESS.items() for mode in modes]),
    orientation=st.sampled_from(sorted(UPRIGHT)),
    seed=st.integers(0, 1000),
)
def test_every_mode_in_every_orientation_becomes_upright_opaque_rgb(
    encode, kind, orientation, seed
) -> None:
    image_format, mode = kind
    image, options, seen = stored_and_seen(mode, seed)
    lossless = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    decoded = decode(
        encode(image, image_format, exif=exif(orientation), **options, **lossless), side=4
    )
    assert decoded.mode == "RGB"
    expected = UPRIGHT[orientation](seen)
    assert np.asarray(decoded).shape == expected.shape
    np.testing.assert_allclose(np.asarray(decoded, dtype=float), expected, atol=1)


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("side", [None, 40])
def test_jpegs_are_upright_at_every_scale(encode, smooth, mode, orientation, side) -> None:
    stored = smooth(400, 300).convert(mode)
    decoded = decode(encode(stored, "JPEG", quality=95, exif=exif(orientation)), side=side)
    expected = UPRIGHT[orientation](np.asarray(stored.convert("RGB")))
    assert decoded.mode == "RGB"
    assert decoded.size == tuple(length // (2 if side else 1) for length in expected.shape[1::-1])
    pixels = to_pixels(Image.fromarray(np.ascontiguousarray(expected)), 40).astype(float)
    assert np.abs(to_pixels(decoded, 40) - pixels).mean() < 2


def test_inks_are_read_in_adobes_polarity_with_and_without_ycck(encode, smooth) -> None:
    seen = smooth(64, 48)
    inks = np.dstack([255 - np.asarray(seen), np.zeros((48, 64), np.uint8)])
    cmyk = encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(decode(cmyk), dtype=float) - np.asarray(seen)).mean() < 1.5

    # YCCK is luma and chroma of R = 255 - C, and Adobe's C is 255 - ink: of the ink. Pillow inverts
    # what it writes; the last byte of Adobe's marker says which of the two it is.
    ycc = np.asarray(Image.fromarray(255 - np.asarray(seen)).convert("YCbCr"))
    planes = np.dstack([255 - ycc, np.zeros((48, 64), np.uint8)])
    data = bytearray(encode(Image.fromarray(planes, "CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    assert np.abs(np.asarray(decode(bytes(data)), dtype=float) - np.asarray(seen)).mean() < 1.5


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
def test_damaged_metadata_are_no_reason_to_refuse_a_picture(encode, picture) -> None:
    # The maker's name is said to be a number, which Pillow then can't write back.
    tags = b"\x01\x12\0\3\0\0\0\1\0\6\0\0" + b"\x01\x0f\0\2\0\0\0\xff\xff\xff\xff\xff"
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\2" + tags + b"\0\0\0\0"
    assert decode(encode(picture(0, 60, 40), "JPEG", exif=block)).size == (40, 60)
    assert decode(encode(picture(0, 60, 40), "JPEG", exif=b"Exif\0\0nonsense")).size == (60, 40)


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


def test_the_clear_colour_of_sixteen_bit_grey_becomes_white(encode) -> None:
    deep = Image.fromarray(np.array([[0x1234, 0x1235]], dtype=np.uint16))
    decoded = np.asarray(decode(encode(deep, transparency=0x1234)))[0, :, 0]
    assert decoded.tolist() == [255, 0x12]


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


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), side=st.integers(1, 200))
def test_a_jpeg_is_decoded_at_the_smallest_scale_of_twice_the_side(
    encode, width, height, side
) -> None:
    data = encode(Image.new("L", (width, height)), "JPEG")
    fits = [scale for scale in (8, 4, 2, 1) if min(width, height) >= 2 * side * scale]
    scale = fits[0] if fits else 1
    assert decode(data, side=side).size == (width // scale, height // scale)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF"])
def test_other_formats_are_decoded_whole_whatever_the_side(picture, encode, image_format) -> None:
    assert decode(encode(picture(0, 200, 160), image_format), side=8).size == (200, 160)


@pytest.mark.parametrize("side", [24, 72])
@pytest.mark.parametrize("size", [(1600, 1200), (1601, 1203), (1607, 1207)])
def test_a_smaller_scale_hardly_changes_the_pixels(encode, smooth, size, side) -> None:
    data = encode(smooth(*size), "JPEG", quality=90)
    whole, scaled = decode(data), decode(data, side=side)
    assert scaled.width < whole.width / 3
    difference = np.abs(to_pixels(whole, side).astype(float) - to_pixels(scaled, side))
    assert difference.mean() < 0.5


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_refused_at_every_scale(encode, smooth, progressive) -> None:
    data = encode(smooth(160, 120), "JPEG", progressive=progressive)
    for kept in range(3, len(data), 7):
        for side in (None, 8, 30):
            with pytest.raises(BadImage, match="damaged"):
                decode(data[:kept], side=side)


@settings(max_examples=200, deadline=None)
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_whether_a_picture_is_refused_does_not_depend_on_the_scale(encode, smooth, edits) -> None:
    data = bytearray(encode(smooth(96, 64), "JPEG"))
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    verdicts = set()
    for side in (None, 4, 16, 100):
        try:
            decode(bytes(data), max_pixels=1_000_000, side=side)
            verdicts.add("taken")
        except BadImage as error:
            verdicts.add(error.reason)
    assert len(verdicts) == 1


class Gate:
    """An engine that can be held at its first batch and keeps what pixels it was given."""

    def __init__(self, model: ServedModel) -> None:
        self._engine = model.engine
        self.image_size = model.engine.image_size
        self.seen: list[np.ndarray] = []
        self.entered, self.released = threading.Event(), threading.Event()

    def run(self, pixels: np.ndarray, generation: Generation) -> object:
        self.seen.append(pixels)
        self.entered.set()
        assert self.released.wait(30)
        return self._engine.run(pixels, generation)


@pytest.mark.parametrize("sizes", [(24, 192), (192, 24)])
def test_a_swap_to_another_image_size_shows_the_pixels_of_a_fresh_decode(
    encode, smooth, tmp_path: Path, make_tiny_blip, sizes
) -> None:
    data = encode(smooth(800, 600), "JPEG", quality=90, exif=exif(6))
    models, gates = [], []
    for size in sizes:
        folder = make_tiny_blip(tmp_path / str(size), seed=0, version=str(size), image_size=size)
        model = load_model(folder, source="test")
        gates.append(Gate(model))
        models.append(ServedModel(**{**vars(model), "engine": gates[-1]}))

    async def main() -> None:
        settings = ServiceSettings(captures=tmp_path / "captures")
        runtime = Runtime(models[0], settings, Telemetry(CollectorRegistry()))
        first = asyncio.ensure_future(runtime.caption(data, CaptionOptions()))
        assert await asyncio.to_thread(gates[0].entered.wait, 30)
        second = asyncio.ensure_future(runtime.caption(data, CaptionOptions()))
        await asyncio.sleep(0)  # the second has asked for the old model's size
        runtime.swap(models[1])
        for gate in gates:
            gate.released.set()
        answers = await asyncio.gather(first, second)
        assert [answer.model.version for answer in answers] == [str(size) for size in sizes]
        await runtime.close()

    asyncio.run(main())
    for gate, size in zip(gates, sizes, strict=True):
        (shown,) = gate.seen
        assert np.array_equal(shown[0], to_pixels(decode(data, side=size), size))
    captured = read_window(tmp_path / "captures", model_version=str(sizes[1]), limit=1)
    assert [(one.width, one.height) for one in captured] == [(600, 800)]


def test_pixels_and_values_equal_those_of_blips_own_processor(picture) -> None:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    processor = BlipImageProcessorPil(size={"height": 72, "width": 72})
    images = [picture(seed, 30 + 50 * seed, 90) for seed in range(4)]
    expected = processor(images, return_tensors="pt")["pixel_values"].numpy()
    pixels = np.stack([to_pixels(image, 72) for image in images])
    values = normalize(pixels, processor.image_mean, processor.image_std)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(values.numpy(), expected, atol=2e-6)
