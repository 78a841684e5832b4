"""From the bytes a stranger sent to the pixels the model sees; the same in training and serving."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

if TYPE_CHECKING:
    import torch

# What Pillow's decoders of these formats raise on damaged bytes (fuzzed in the tests).
_DECODER_ERRORS = (
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
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Reason = Literal["empty", "unsupported_format", "undecodable", "too_many_pixels"]


class BadImage(ValueError):
    """The bytes are no picture we take; `reason` is a stable word, the message is for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: str = reason


def decode(data: bytes, *, max_pixels: int = 40_000_000) -> Image.Image:
    """The picture as upright opaque RGB (EXIF applied, alpha over white, first frame).

    Pixels are counted from the header, before anything is decompressed.
    """
    if not data:
        raise BadImage("empty", "The image is empty; send the bytes of a picture.")
    reader = _reader(data)
    if reader is None:
        raise BadImage("unsupported_format", "Not a picture in one of JPEG, PNG, WEBP, GIF.")
    try:
        # Image.open would warn of pictures that our own limit refuses.
        image = reader(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadImage("too_many_pixels", f"The picture is too large: {error}") from error
    except _DECODER_ERRORS as error:
        raise BadImage("undecodable", f"The picture's header is damaged: {error}") from error
    if image.width * image.height > max_pixels:
        raise BadImage(
            "too_many_pixels",
            f"The picture is {image.width} × {image.height}; at most {max_pixels} pixels are read.",
        )
    try:
        image.load()
        return _opaque_rgb(ImageOps.exif_transpose(image))
    except _DECODER_ERRORS as error:
        raise BadImage("undecodable", f"The picture is damaged: {error}") from error


def to_pixels(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: bicubic, squashed to a square as BLIP's own processor does."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.uint8)


def normalize(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> "torch.Tensor":
    """uint8 [n, H, W, 3] to float32 [n, 3, H, W]: (pixel / 255 - mean) / std by channel."""
    import torch

    scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float32))
    shift = -torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
    values = torch.from_numpy(np.array(pixels, dtype=np.float32)) * scale + shift
    return values.permute(0, 3, 1, 2).contiguous()


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
    return None


def _opaque_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
