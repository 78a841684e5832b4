"""One generator of rows a source format, in one registry: what differs between formats ends here.

A reader yields every image that its source names, also one that is missing or damaged: to find and
tell that is the checks' work, and a reader that skips would hide it.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import CsvSource, FeedbackSource, ScenesSource
from tasks.data.folders import read_jsonl
from tasks.data.scenes import scene


class SourceError(ValueError):
    """A source cannot be read at all; the message says what to change."""


@dataclass(frozen=True)
class Row:
    """One image with its captions; `image` is a file, or the bytes of one that never was a file."""

    image_id: str
    image: Path | bytes
    references: tuple[str, ...]
    split: str | None
    source: str


def read_scenes(source: ScenesSource) -> Iterator[Row]:
    """`count` scenes of a world, as PNG."""
    for index in range(source.count):
        drawn = scene(source.seed, index, source.world)
        png = io.BytesIO()
        drawn.image.save(png, "PNG", compress_level=1)
        image_id = f"{source.world}-{source.seed}-{index:06d}"
        yield Row(image_id, png.getvalue(), drawn.references, None, source.format)


def read_csv(source: CsvSource) -> Iterator[Row]:
    """Flickr's `image,caption` file: one caption a line, an image's lines in any place."""
    if not source.captions.is_file():
        raise SourceError(f"{source.captions}: no such file; set data.source.captions to the CSV.")
    folder = source.images.resolve()
    try:
        captions = _captions(source.captions, folder)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{source.captions}: not a CSV in UTF-8: {error}") from error
    for name, references in captions.items():
        yield Row(name, folder / name, tuple(references), None, source.format)


def _captions(path: Path, folder: Path) -> dict[str, list[str]]:
    """Names of images in `folder` -> captions, both in the order of the file."""
    captions: dict[str, list[str]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        header = [name.strip().lower() for name in next(lines, [])]
        if header != ["image", "caption"]:
            raise SourceError(
                f"{path}: the first line is {','.join(header)!r}; "
                "it has to be the header 'image,caption'."
            )
        for line in lines:
            if not line:
                continue
            name = line[0].strip()
            if not Path(os.path.normpath(folder / name)).is_relative_to(folder):
                raise SourceError(
                    f"{path}, line {lines.line_num}: {name!r} is outside the images' folder; "
                    "name images by their place in data.source.images."
                )
            captions.setdefault(name, []).append(_caption(line[1:]))
    return captions


def _caption(fields: list[str]) -> str:
    """The rest of a line, put together again where a comma or a quote stood unprotected."""
    caption = ",".join(fields)
    if re.fullmatch(r'\s+".*"\s*', caption):  # `name, "caption"`: CSV wants the quote to come first
        return caption.strip()[1:-1].replace('""', '"')
    return caption.strip()


def read_feedback(source: FeedbackSource) -> Iterator[Row]:
    """A folder that `feedback.export` wrote."""
    metadata = source.folder / "metadata.jsonl"
    if not metadata.is_file():
        raise SourceError(f"{metadata}: no such file; data.source.folder is no feedback export.")
    folder = source.folder.resolve()
    for record in read_jsonl(metadata):
        yield Row(
            record["image_id"],
            folder / record["file_name"],
            tuple(record["references"]),
            None,
            source.format,
        )


READERS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "scenes": read_scenes,
    "csv": read_csv,
    "feedback": read_feedback,
}
