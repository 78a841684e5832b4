"""From the bytes a stranger sent to the pixels the model sees; the same in training and serving."""

import io
import re
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import ExifTags, Image
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

if TYPE_CHECKING:
    import torch

# What Pillow's decoders of these formats raise on damaged bytes (fuzzed in the tests).
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

UPRIGHT = 1
# What turns a picture of each EXIF orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# As in Pillow's thumbnail: what is left to shrink by bicubic looks as if it had been all of it.
_DRAFT_GAP = 2

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
# A HEIC may show a small part of a large coded picture: `ispe` boxes have the sizes of all of them.
_HEIF_SIZES = re.compile(rb"ispe\0.{3}(.{8})", re.DOTALL)
# An overlay may decode one picture thousands of times; no camera makes any.
_HEIF_OVERLAY = re.compile(rb"infe.{8,10}iovl", re.DOTALL)

Reason = Literal["empty", "unsupported_format", "undecodable", "too_many_pixels"]


class BadImage(ValueError):
    """The bytes are no picture we take; `reason` is a stable word, the message is for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: str = reason


def decode(data: bytes, *, max_pixels: int = 40_000_000, side: int | None = None) -> Image.Image:
    """The picture as upright opaque RGB (EXIF applied, alpha over white, first frame).

    `side` says that it will be shrunk to `side` × `side`: JPEGs are then decoded at a smaller
    scale, of at least twice that size, which changes pixels a little: give it both in training and
    in serving.
    """
    return render(open_image(data, max_pixels=max_pixels), side=side)


def open_image(data: bytes, *, max_pixels: int = 40_000_000) -> ImageFile:
    """The picture with only its header read, where its pixels are counted."""
    if not data:
        raise BadImage("empty", "The image is empty; send the bytes of a picture.")
    reader = _reader(data)
    if reader is None:
        raise BadImage("unsupported_format", f"{_not_read(data)} JPEG, PNG, WEBP, GIF.")
    try:
        # Image.open would warn of pictures that our own limit refuses.
        image = reader(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadImage("too_many_pixels", f"The picture is too large: {error}") from error
    except DECODER_ERRORS as error:
        raise BadImage("undecodable", f"The picture's header is damaged: {error}") from error
    width, height = _decoded_size(image, data)
    if width * height > max_pixels:
        raise BadImage(
            "too_many_pixels",
            f"The picture is {width} × {height}; at most {max_pixels} pixels are read.",
        )
    return image


def render(image: ImageFile, *, side: int | None = None) -> Image.Image:
    """What `decode` gives, of a picture that `open_image` opened; `image` itself is loaded too."""
    try:
        smaller = None
        if side and image.format != "HEIF":  # whose draft is a thumbnail, which may show anything
            smaller = image.draft(None, (_DRAFT_GAP * side, _DRAFT_GAP * side))
        image.load()
        picture: Image.Image = image
        if smaller is not None and smaller[1][2:] != image.size:
            # 1601 pixels at an eighth are 200.125, of 201 decoded: without this all would shift.
            width, height = smaller[1][2:]
            picture = image.resize(
                (int(width), int(height)), Image.Resampling.BICUBIC, box=smaller[1]
            )
        turn = _UPRIGHT.get(orientation(image))
        return _opaque_rgb(picture if turn is None else picture.transpose(turn))
    except DECODER_ERRORS as error:
        raise BadImage("undecodable", f"The picture is damaged: {error}") from error


def orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded picture: 1 is upright, from 5 on width and height are swapped.

    Damaged metadata are no reason to refuse the picture (Pillow's exif_transpose would).
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if found in _UPRIGHT else UPRIGHT
    except DECODER_ERRORS:
        return UPRIGHT


def to_pixels(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: bicubic, squashed to a square as BLIP's own processor does."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.uint8)


def normalize(
    pixels: "np.ndarray | torch.Tensor", mean: Sequence[float], std: Sequence[float]
) -> "torch.Tensor":
    """uint8 [n, H, W, 3] to float32 [n, 3, H, W] on the same device: (pixel / 255 - mean) / std."""
    import torch

    images = torch.as_tensor(pixels)
    scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float32))
    shift = -torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
    scale, shift = (each.to(images.device)[:, None, None] for each in (scale, shift))
    values = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return values.mul_(scale).add_(shift)


def _reader(data: bytes) -> type[ImageFile] | None:
    """Pillow's reader of the format that the first bytes show, whatever the client called it."""
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    return _heif_reader() if _is_heif(data) else None


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def _heif_reader() -> type[ImageFile] | None:
    """That of an optional package."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    return HeifImageFile


def _not_read(data: bytes) -> str:
    if _is_heif(data):
        return "HEIC is read only where pillow-heif is installed; send one of"
    return "Not a picture in one of"


def _decoded_size(image: ImageFile, data: bytes) -> tuple[int, int]:
    """Width and height of the largest picture that decoding holds in memory."""
    if image.format != "HEIF":
        return image.size
    if _HEIF_OVERLAY.search(data):
        raise BadImage("unsupported_format", "HEIC overlays are not read.")
    sizes = [image.size, *struct.iter_unpack(">II", b"".join(_HEIF_SIZES.findall(data)))]
    if grid := image.info.get("tiling"):
        sizes.append((grid["image_width"], grid["image_height"]))
    return max(sizes, key=lambda size: size[0] * size[1])


def _opaque_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it instead of scaling
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
