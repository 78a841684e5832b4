"""Every kind of dirt in an image is made, and found by its name; fuzzed bytes never raise."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from configs.schema import Actions, ChecksConfig
from tasks.data.checks.images import Inspected, inspect
from tasks.data.rows import Fault

CONFIG = ChecksConfig()
NOTE_ALL = ChecksConfig(
    actions=Actions(too_small="note", extreme_aspect_ratio="note", animated="note")
)


def drawn(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def rotated(orientation: int, kind: str = "JPEG", image: Image.Image | None = None) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(image or drawn(), kind, exif=exif)


def animation(kind: str) -> bytes:
    frames = [drawn(seed=seed) for seed in range(3)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


def bomb(side: int) -> bytes:
    """A PNG whose header promises side² pixels, and that has none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def overwritten(data: bytes) -> bytes:
    """The same length and the same end, with the middle zeroed."""
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


PNG = encode(drawn(), "PNG")
JPEG = encode(drawn(), "JPEG")
WEBP = encode(drawn(), "WEBP")
SIXTEEN = encode(Image.fromarray(np.full((48, 64), 300, np.uint16)), "PNG")
LZW = encode(drawn().quantize(200), "GIF")

# data, file name, the fault's rule, the other rules that it meets
DIRT: dict[str, tuple[bytes, str, str | None, tuple[str, ...]]] = {
    "no bytes": (b"", "a.jpg", "empty_file", ()),
    "a page": (b"<!DOCTYPE html><html>", "a.jpg", "not_an_image", ()),
    "text": (b"not found\n", "a.jpg", "not_an_image", ()),
    "zeros": (bytes(500), "a.jpg", "not_an_image", ()),
    "BMP": (encode(drawn(), "BMP"), "a.bmp", "not_an_image", ()),
    "TIFF": (encode(drawn(), "TIFF"), "a.tif", "not_an_image", ()),
    "SVG": (b'<?xml version="1.0"?>\n<svg/>', "a.svg", "not_an_image", ()),
    "cut JPEG": (encode(drawn(), "JPEG")[:-9], "a.jpg", "truncated", ()),
    "cut PNG": (PNG[: len(PNG) // 2], "a.png", "truncated", ()),
    "cut GIF": (LZW[: len(LZW) // 2], "a.gif", "truncated", ("palette",)),
    "cut WebP": (encode(drawn(), "WEBP")[:-9], "a.webp", "truncated", ()),
    "cut and misnamed": (PNG[:300], "a.jpg", "truncated", ("wrong_extension",)),
    "damaged PNG": (overwritten(PNG), "a.png", "damaged", ()),
    "damaged WebP": (WEBP.replace(b"VP8 ", b"VP9 "), "a.webp", "damaged", ()),
    "damaged JPEG": (JPEG.replace(b"\xff\xdb", b"\xff\xfe"), "a.jpg", "damaged", ()),
    "damaged GIF": (overwritten(LZW), "a.gif", "damaged", ("palette",)),
    "bomb": (bomb(10_000), "a.png", "too_many_pixels", ()),
    "tiny": (encode(drawn(31, 40), "PNG"), "a.png", "too_small", ()),
    "strip": (encode(drawn(400, 40), "PNG"), "a.png", "extreme_aspect_ratio", ()),
    "tiny strip": (encode(drawn(8, 80), "PNG"), "a", "too_small", ("extreme_aspect_ratio",)),
    "moving GIF": (animation("GIF"), "a.gif", "animated", ("palette",)),
    "moving WebP": (animation("WEBP"), "a.webp", "animated", ()),
    "moving PNG": (animation("PNG"), "a.png", "animated", ()),
    "misnamed": (PNG, "a.JPG", None, ("wrong_extension",)),
    "misnamed as not taken": (PNG, "s3://b/a.bmp", None, ("wrong_extension",)),
    "turned": (rotated(6), "a.jpeg", None, ("rotated_by_exif",)),
    "mirrored": (rotated(2, "WEBP"), "a.webp", None, ("rotated_by_exif",)),
    "grey JPEG": (encode(drawn().convert("L"), "JPEG"), "a.jpe", None, ("grey",)),
    "bilevel": (encode(drawn().convert("1"), "PNG"), "a.png", None, ("grey",)),
    "grey, clear": (encode(drawn().convert("LA"), "PNG"), "a", None, ("grey", "transparent")),
    "palette": (encode(drawn().quantize(9), "PNG"), "a.png", None, ("palette",)),
    "clear colour": (
        *(encode(drawn().quantize(9), "PNG", transparency=2), "a.png"),
        *(None, ("palette", "transparent")),
    ),
    "RGBA": (encode(drawn().convert("RGBA"), "PNG"), "a.PNG", None, ("transparent",)),
    "inks": (encode(drawn().convert("CMYK"), "JPEG"), "a.jfif", None, ("cmyk",)),
    "deep": (SIXTEEN, "a.png", None, ("sixteen_bit",)),
    "several": (
        *(rotated(8, image=drawn().convert("CMYK")), "a.png"),
        *(None, ("wrong_extension", "rotated_by_exif", "cmyk")),
    ),
}


def rules(found: Inspected) -> tuple[str | None, tuple[str, ...]]:
    return (found.fault.rule if found.fault else None), found.notes


@pytest.mark.parametrize("case", DIRT)
def test_every_kind_of_dirt_is_found_by_its_name_and_nothing_else(case) -> None:
    data, name, rule, notes = DIRT[case]
    found = inspect(data, name, CONFIG)
    assert rules(found) == (rule, notes)
    assert found.fault is None or found.fault.detail
    unseen = {"empty_file", "not_an_image", "truncated", "damaged", "too_many_pixels"}
    assert (found.signature is None) == (rule in unseen)


def test_every_rule_about_one_image_has_its_dirt() -> None:
    made = {rule for _, _, rule, notes in DIRT.values() for rule in (rule, *notes) if rule}
    whole = ["missing", "unreadable", "changed", "malformed_row", "outside_folder"]
    whole += ["duplicate_image", "near_duplicate", "leak"]
    assert made == {
        rule
        for rule in Actions.model_fields
        if rule not in whole and not rule.startswith("caption_")
    }


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", ["", "README", "a.{}", "photos/a.b.{}", "a.jpg.download"])
def test_a_clean_picture_has_nothing_to_be_said_of(kind, name) -> None:
    found = inspect(encode(drawn(), kind), name.format(kind.lower()), CONFIG)
    assert rules(found) == (None, ())
    assert (found.width, found.height) == (64, 48)


def test_nothing_is_found_in_real_photographs(photos) -> None:
    paths = sorted((photos / "images").iterdir())[:150]
    assert {rules(inspect(path.read_bytes(), str(path), CONFIG)) for path in paths} == {(None, ())}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encode(drawn(), "BMP"), "BMP"),
        (encode(drawn(), "TIFF"), "TIFF"),
        (encode(drawn(), "ICO"), "ICO"),
        (b"\n <svg xmlns=''/>", "SVG"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (b"%PDF-1.7", "PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<html>", "HTML"),
        (b"404", "text"),
        (b"\1\2\3", "01 02 03"),
    ],
)
def test_what_is_no_image_is_told_what_it_is_and_what_is_taken(data, kind) -> None:
    fault = inspect(data, "a.jpg", CONFIG).fault
    assert fault is not None
    assert kind in fault.detail
    assert "JPEG, PNG, WEBP and GIF are taken" in fault.detail


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("JPEG", {"exif": b"Exif\0\0\xff\xd8\xff\xd9" + bytes(400)}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_wherever_a_file_is_cut_it_is_truncated_never_damaged(kind, options) -> None:
    data = encode(drawn(600, 600), kind, **options)
    lost = 22 if kind == "PNG" else 0  # its checksums and end mark: the picture is whole
    for kept in [*range(12, 60), *np.linspace(60, len(data) - lost - 1, 60).astype(int)]:
        fault = inspect(data[:kept], "a", CONFIG).fault
        assert fault is not None, kept
        assert fault.rule == "truncated", (kept, fault)


def test_a_gif_cut_in_its_first_frame_is_truncated_and_later_is_still_animated() -> None:
    still = encode(drawn(200, 150).quantize(200), "GIF")
    for kept in range(13, len(still) - 2, 97):
        assert rules(inspect(still[:kept], "a", CONFIG))[0] == "truncated", kept
    moving = animation("GIF")
    assert rules(inspect(moving[: len(moving) * 2 // 3], "a.gif", CONFIG))[0] == "animated"


def test_what_is_only_noted_is_no_fault_and_what_is_not_becomes_one() -> None:
    data = encode(drawn(8, 80).quantize(9), "GIF")
    assert rules(inspect(data, "a.png", NOTE_ALL)) == (
        None,
        ("too_small", "extreme_aspect_ratio", "wrong_extension", "palette"),
    )
    strict = ChecksConfig(actions=Actions(palette="reject", wrong_extension="quarantine"))
    assert rules(inspect(encode(drawn().quantize(9), "GIF"), "a.png", strict)) == (
        "wrong_extension",
        ("palette",),
    )
    assert rules(inspect(animation("WEBP"), "a.webp", NOTE_ALL)) == (None, ("animated",))


def test_limits_are_inclusive_and_counted_upright() -> None:
    exact = ChecksConfig(min_side_pixels=48, max_pixels=64 * 48, max_aspect_ratio=64 / 48)
    assert rules(inspect(PNG, "", exact)) == (None, ())
    for limit, value, rule in (
        ("min_side_pixels", 49, "too_small"),
        ("max_pixels", 64 * 48 - 1, "too_many_pixels"),
        ("max_aspect_ratio", 1.33, "extreme_aspect_ratio"),
    ):
        assert rules(inspect(PNG, "", exact.model_copy(update={limit: value})))[0] == rule
    for orientation in range(1, 9):
        found = inspect(rotated(orientation, image=drawn(1200, 900)), "a.jpg", CONFIG)
        assert (found.width, found.height) == ((1200, 900) if orientation < 5 else (900, 1200))


def test_details_say_what_was_found() -> None:
    assert inspect(encode(drawn(8, 40), "PNG"), "", CONFIG).fault == Fault(
        "too_small", "8 × 40, a side is under 32 pixels"
    )
    assert inspect(encode(drawn(500, 40), "PNG"), "", CONFIG).fault == Fault(
        "extreme_aspect_ratio", "500 × 40, more than 6 : 1"
    )


def test_the_signature_is_that_of_the_upright_opaque_picture() -> None:
    image = drawn(400, 300)
    expected = inspect(encode(image, "PNG"), "", CONFIG).signature
    turned = image.transpose(Image.Transpose.ROTATE_90)  # orientation 6 turns it back
    layer = image.convert("RGBA")
    for data in (rotated(6, "PNG", turned), encode(layer, "PNG")):
        assert inspect(data, "", CONFIG).signature == expected


@settings(max_examples=400, deadline=None)
@given(
    source=st.sampled_from(
        [
            *(encode(drawn(40, 40), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF")),
            *(animation(kind) for kind in ("PNG", "WEBP", "GIF")),
            *(rotated(5), rotated(5, "PNG"), rotated(5, "WEBP"), SIXTEEN),
            encode(drawn(40, 40).convert("CMYK"), "JPEG", progressive=True),
            encode(drawn(40, 40).quantize(9), "PNG", transparency=b"\0\x80\xff"),
        ]
    ),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    kept=st.floats(0, 1) | st.just(1.0),
    name=st.sampled_from(["a.jpg", "a.png", ""]),
)
def test_whatever_the_bytes_inspect_answers_and_never_raises(source, edits, kept, name) -> None:
    data = bytearray(source)
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    found = inspect(bytes(data[: int(kept * len(data))]), name, CONFIG)
    assert (found.signature is not None) or found.fault is not None
    assert {*found.notes, *((found.fault.rule,) if found.fault else ())} <= set(
        Actions.model_fields
    )
