"""What readers yield and `ingest` stores: one image with its captions."""

from dataclasses import dataclass
from pathlib import Path


class SourceError(ValueError):
    """A source cannot be read at all; the message names the file, the place and the fix."""


@dataclass(frozen=True)
class Fault:
    """Why a row leads to no image; `rule` is a key of `data.checks.actions`."""

    rule: str
    detail: str


@dataclass(frozen=True)
class Row:
    """One image with its captions.

    `image` is a file here, an fsspec URL, the bytes of one that is no file of its own, or why there
    is none. No references at all means that no caption names the image: it is noted, not read;
    an empty caption is a reference.
    """

    image_id: str
    image: Path | str | bytes | Fault
    references: tuple[str, ...]
    split: str | None
    source: str
