"""Which format a source has, by the names of its files and the first bytes of its caption file."""

import codecs
import json
import posixpath
import re
from collections.abc import Sequence
from typing import IO, NamedTuple

from pydantic import TypeAdapter

from configs.schema import (
    AutoSource,
    HfSource,
    ImageFolderSource,
    Place,
    Source,
    WebDatasetSource,
)
from tasks.data.readers import places
from tasks.data.readers.columns import IMAGE_COLUMNS
from tasks.data.readers.hub import SAVED
from tasks.data.readers.imagefolder import METADATA
from tasks.data.readers.webdataset import SHARD_SUFFIXES
from tasks.data.rows import SourceError

FORMATS = (
    *("coco", "karpathy", "flickr_token", "csv", "tsv", "jsonl", "parquet"),
    *("imagefolder", "webdataset", "hf"),
)
CAPTION_SUFFIXES = (".csv", ".tsv", ".txt", ".token", ".json", ".jsonl", ".parquet")
HEAD_BYTES = 65_536
CHUNK_BYTES = 1 << 20
KEY_BYTES = 64  # a key, with the blanks before its colon
_FLICKR_LINE = re.compile(r"[^\t]+#\d+\s*\t")
_DOCUMENT_KEY = re.compile(rb'"(annotations|sentences)"\s*:')


class _Look(NamedTuple):
    """A caption file's format, None where it isn't one, and the text that it begins with."""

    format: str | None
    text: str


def detect(source: AutoSource) -> Source:
    """The source that `images` and `captions` are; SourceError where that isn't clear."""
    if source.captions is not None:
        if places.is_folder(source.captions):
            raise SourceError(f"{source.captions}: a folder; set it as data.source.images alone.")
        return _file_source(source.captions, _look(source.captions), source.images)
    if source.images is None:
        raise SourceError(
            "data.source names nothing to read; set data.source.images (a folder), "
            "data.source.captions (a file), or both."
        )
    if str(source.images).endswith(SHARD_SUFFIXES):
        return WebDatasetSource(format="webdataset", shards=(source.images,))
    return _folder(source.images)


def _folder(folder: Place) -> Source:
    """A folder on its own: what it holds has to say one thing."""
    if not places.is_folder(folder):
        raise SourceError(f"{folder}: no such folder; correct data.source.images.")
    names = places.names(folder)
    if set(SAVED).intersection(names):
        return HfSource(format="hf", dataset=folder)
    found: list[Source] = []
    if any(posixpath.basename(name) in METADATA for name in names):
        found.append(ImageFolderSource(format="imagefolder", images=folder))
    if any(name.endswith(SHARD_SUFFIXES) for name in names):
        found.append(WebDatasetSource(format="webdataset", shards=(folder,)))
    top = [name for name in names if "/" not in name and name not in METADATA]
    files = [name for name in top if name.lower().endswith(CAPTION_SUFFIXES)]
    looks = {name: _look(places.inside(folder, name)) for name in files}
    looks = {name: look for name, look in looks.items() if look.format}
    if len(found) == 1 and not looks:
        return found[0]
    if found or len(looks) != 1:
        seen = ", ".join([*(f"a {one.format}" for one in found), *looks]) or "no caption file"
        raise _unclear(folder, f"it holds {seen}")
    name, look = looks.popitem()
    return _file_source(places.inside(folder, name), look, _images_below(folder, names, look.text))


def _file_source(place: Place, look: _Look, images: Place | None) -> Source:
    if look.format is None:
        raise _unclear(place, "it looks like no caption file that I know")
    options = {"format": look.format, "captions": place, "images": images}
    return TypeAdapter[Source](Source).validate_python(options)


def _look(place: Place) -> _Look:
    """What a file is by its beginning, or by its keys where it is one JSON document."""
    with places.open_binary(place) as file:
        head = file.read(HEAD_BYTES)
        text = head.decode(_encoding(head), errors="replace").lstrip("\ufeff\r\n\t ")
        if head.startswith(b"PAR1"):
            return _Look("parquet", text)
        found = _of_lines(str(place).lower(), text.partition("\n")[0])
        if found is None and text.startswith("{"):
            found = _of_document(head, file)
        return _Look(found, text)


def _encoding(head: bytes) -> str:
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "utf-16" if marked else "utf-8"


def _of_lines(name: str, first: str) -> str | None:
    """The format of a file of lines, by the first of them, then by its suffix."""
    if first.startswith("{"):
        return "jsonl" if name.endswith(".jsonl") or _is_record(first) else None
    if _FLICKR_LINE.match(first):
        return "flickr_token"
    header = {cell.strip(' "\r').lower() for cell in re.split(r"[,;|\t]", first)}
    if name.endswith((".csv", ".tsv")) or (len(header) > 1 and header.intersection(IMAGE_COLUMNS)):
        return "tsv" if "\t" in first else "csv"
    return None


def _is_record(line: str) -> bool:
    """Whether a line is an image's JSON object of its own, and no whole document."""
    try:
        return bool(set(IMAGE_COLUMNS).intersection(json.loads(line)))
    except (ValueError, RecursionError):
        return False


def _of_document(head: bytes, file: IO[bytes]) -> str | None:
    """COCO or Karpathy, by the first key that only one of them has, wherever it comes."""
    window = head
    while window:
        if key := _DOCUMENT_KEY.search(window):
            return "coco" if key[1] == b"annotations" else "karpathy"
        chunk = file.read(CHUNK_BYTES)
        window = window[-KEY_BYTES:] + chunk if chunk else b""
    return None


def _images_below(folder: Place, names: Sequence[str], text: str) -> Place:
    """The folder that the captions' names start from: a lone subfolder, unless they name it too."""
    tops = {places.top_folder(name) for name in names if places.is_image(name)}
    top = tops.pop() if len(tops) == 1 else ""
    named = f"{top}/" in text or f'"{top}"' in text
    return places.inside(folder, top) if top and not named else folder


def _unclear(place: Place, why: str) -> SourceError:
    return SourceError(
        f"{place}: {why}, so its format isn't clear. Set data.source.format to one of "
        f"{', '.join(FORMATS)}, and data.source.captions to the file where there is one."
    )
