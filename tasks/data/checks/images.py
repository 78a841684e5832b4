"""What is wrong with one image: really decodes it, and names every rule that it meets."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from bentos.captioner.images import (
    DECODER_ERRORS,
    UPRIGHT,
    BadImage,
    open_image,
    orientation,
    render,
)
from configs.schema import Actions, ChecksConfig
from tasks.data.rows import Fault

# Enough for the signature; all of a JPEG is read whatever the scale that it is decoded at.
_SIDE = 128
_TAKEN = "JPEG, PNG, WEBP and GIF are taken"
_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".svg": "SVG",
    ".heic": "HEIC",
    ".avif": "AVIF",
    ".ico": "ICO",
}
# The first bytes of what is often found where an image should be.
_OTHERS = {
    rb"BM.{4}\x00{4}": "a BMP picture",
    rb"II\*\x00|MM\x00\*": "a TIFF picture",
    rb".{4}ftyp(hei|mif1|msf1)": "a HEIC picture",
    rb".{4}ftypavi[fs]": "an AVIF picture",
    rb"\x00\x00\x01\x00": "an ICO picture",
    rb"8BPS": "a Photoshop file",
    rb"%PDF": "a PDF",
    rb"PK\x03\x04": "a ZIP archive",
    rb"\x1f\x8b": "a gzip archive",
    rb"version https://git-lfs": "a Git LFS pointer, the picture itself was not fetched",
    rb"\s*(<\?xml.{,500})?\s*<svg": "an SVG drawing",
    rb"\s*(<!doctype html|<html)": "an HTML page",
    rb"[\t\n\r\x20-\x7e]+\Z": "text",
}
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)


@dataclass(frozen=True)
class Inspected:
    """`width` and `height` are those of the upright picture, 0 if unknown.

    `fault` is the first finding that makes it unusable, `notes` the other rules that it meets.
    `signature` (`tasks/data/duplicates.py`) is None if it can't be decoded.
    """

    fault: Fault | None
    notes: tuple[str, ...]
    width: int
    height: int
    signature: np.void | None


def inspect(data: bytes, name: str, config: ChecksConfig) -> Inspected:
    """Everything about one encoded image; `name` is its file's. Never raises."""
    findings = dict(_of_name(data, name))
    width = height = 0
    signature = None
    try:
        sent = open_image(data, max_pixels=config.max_pixels)
        width, height = sent.size
        findings |= _of_header(sent)
        image = render(sent, side=_SIDE)
        turned = orientation(sent)
        if turned >= 5:
            width, height = height, width
        findings |= _of_picture(sent, turned) | _of_size(width, height, config)
        signature = _signature(image)
    except BadImage as error:
        rule, detail = _unusable(data, error)
        findings[rule] = detail
    fault = next(
        (
            Fault(rule, findings.pop(rule))
            for rule in Actions.model_fields
            if rule in findings and getattr(config.actions, rule) != "note"
        ),
        None,
    )
    notes = tuple(rule for rule in Actions.model_fields if rule in findings)
    return Inspected(fault, notes, width, height, signature)


def _signature(image: Image.Image) -> np.void:
    from tasks.data.duplicates import signature

    return signature(image)


def _unusable(data: bytes, error: BadImage) -> tuple[str, str]:
    """The rule and detail of a picture that can't be decoded."""
    if error.reason == "empty":
        return "empty_file", "the file has no bytes"
    if error.reason == "unsupported_format":
        return "not_an_image", f"{_kind(data)}; {_TAKEN}"
    if error.reason == "undecodable" and _is_cut(data):
        return "truncated", f"the file ends before the picture does, after {len(data)} bytes"
    return ("damaged" if error.reason == "undecodable" else error.reason), str(error)


def _of_name(data: bytes, name: str) -> Iterator[tuple[str, str]]:
    suffix = PurePosixPath(name).suffix.lower()
    named, shown = _FORMATS.get(suffix), _format(data)
    if named and shown and named != shown:
        yield "wrong_extension", f"named {suffix} and is {shown}"


def _of_header(sent: ImageFile) -> dict[str, str]:
    """Rules that the picture as sent meets, before it is decoded."""
    findings = {}
    if _is_animated(sent):
        findings["animated"] = "more than one frame; the first would be taken"
    if sent.mode in ("1", "L", "LA"):
        findings["grey"] = f"mode {sent.mode}"
    if sent.mode == "P":
        findings["palette"] = "colours from a palette"
    if sent.mode == "CMYK":
        findings["cmyk"] = "the four inks of print"
    if sent.mode.startswith("I"):
        findings["sixteen_bit"] = f"mode {sent.mode}"
    return findings


def _of_picture(sent: ImageFile, turned: int) -> dict[str, str]:
    """Rules for whose finding the picture must have been loaded."""
    findings = {}
    if turned != UPRIGHT:
        findings["rotated_by_exif"] = f"EXIF orientation {turned}"
    if sent.has_transparency_data:
        findings["transparent"] = "has an alpha channel or a transparent colour"
    return findings


def _of_size(width: int, height: int, config: ChecksConfig) -> dict[str, str]:
    findings = {}
    if min(width, height) < config.min_side_pixels:
        limit = config.min_side_pixels
        findings["too_small"] = f"{width} × {height}, a side is under {limit} pixels"
    if max(width, height) > config.max_aspect_ratio * min(width, height):
        limit_ratio = config.max_aspect_ratio
        findings["extreme_aspect_ratio"] = f"{width} × {height}, more than {limit_ratio:g} : 1"
    return findings


def _is_animated(sent: ImageFile) -> bool:
    try:
        return bool(getattr(sent, "is_animated", False))
    except DECODER_ERRORS:  # a second frame is begun, and damaged
        return True


def _format(data: bytes) -> str | None:
    """The format taken that the first bytes show."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG"):
        return "PNG"
    if data.startswith(b"GIF8"):
        return "GIF"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _kind(data: bytes) -> str:
    start = data[:512]
    for pattern, kind in _OTHERS.items():
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return kind
    return f"begins with the bytes {data[:8].hex(' ')}"


def _is_cut(data: bytes) -> bool:
    """Whether a picture's bytes end before its format's end; decoders call that damage."""
    shown = _format(data)
    if shown == "JPEG":
        return not _jpeg_ends(data)
    if shown == "PNG":
        return not _png_ends(data)
    if shown == "GIF":
        return not _gif_ends(data)
    return int.from_bytes(data[4:8], "little") + 8 > len(data)


def _jpeg_ends(data: bytes) -> bool:
    """Segments of a length each up to the end marker; after a scan's header comes its data."""
    place = 2
    while place + 4 <= len(data):
        kind = data[place + 1]
        if data[place] != 0xFF:
            return True  # the lengths are wrong: damaged rather than cut
        if kind == 0xD9:
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == 0xDA:
            after = _MARKER_AFTER_SCAN.search(data, place)
            if after is None:
                return False
            place = after.start()
    return data[place : place + 2] == b"\xff\xd9"


def _png_ends(data: bytes) -> bool:
    """Chunks of length, name, content and checksum up to IEND."""
    place = 8
    while place + 12 <= len(data):
        if data[place + 4 : place + 8] == b"IEND":
            return True
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False


def _gif_ends(data: bytes) -> bool:
    """Blocks up to the trailer: extensions and frames, both of sub-blocks that a 0 ends."""
    place = 13 + _palette_bytes(data[10:11])
    while place < len(data):
        kind = data[place]
        if kind == 0x21:
            place += 2
        elif kind == 0x2C:
            place += 11 + _palette_bytes(data[place + 9 : place + 10])
        else:
            return True  # the trailer, or damage
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return False


def _palette_bytes(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
