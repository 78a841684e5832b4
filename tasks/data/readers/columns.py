"""Which columns of a table, or fields of a record, hold the image, the captions and the split."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from configs.schema import Columns, Place
from tasks.data.rows import SourceError

IMAGE_COLUMNS = (
    *("image", "file_name", "filename", "image_path", "image_file", "image_name"),
    *("img", "img_path", "path", "filepath", "file_path", "file"),
)
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences"),
    *("description", "descriptions", "comment", "references"),
)
NUMBERED_CAPTION = re.compile(r"(caption|text|sentence|description|comment)[ _-]?\d+")

Kind = Literal["text", "list", "image"]


@dataclass(frozen=True)
class Layout:
    """Which columns hold what; `long` tables have one caption a row."""

    image: str
    captions: tuple[str, ...]
    split: str | None
    long: bool
    images_in_cells: bool

    @property
    def columns(self) -> list[str]:
        return [self.image, *self.captions, *([self.split] if self.split else [])]


def layout_of(place: Place, kinds: Mapping[str, Kind], given: Columns) -> Layout:
    """The columns that the config names, else those of the usual names.

    SourceError where one that is named isn't there, or none is known.
    """
    there = ", ".join(map(repr, kinds)) or "none"
    for key, names in given.model_dump(exclude_none=True).items():
        for name in (names,) if isinstance(names, str) else names:
            if name not in kinds:
                raise SourceError(
                    f"{place}: no column {name!r}; its columns are {there}. "
                    f"Correct data.source.columns.{key}."
                )
    usual = _usual(kinds)
    image = given.image or next((usual[name] for name in IMAGE_COLUMNS if name in usual), None)
    if image is None:
        raise _no_column(place, "image", there)
    captions = caption_names((name for name in kinds if name != image), given)
    if not captions:
        raise _no_column(place, "caption", there)
    long = len(captions) == 1 and kinds[captions[0]] != "list"
    split = given.split or usual.get("split")
    return Layout(image, captions, split, long, kinds[image] == "image")


def caption_names(there: Iterable[str], given: Columns) -> tuple[str, ...]:
    """The columns that the config names, else the first of the usual names and all numbered."""
    if named := (*([given.caption] if given.caption else []), *given.captions):
        return named
    usual = _usual(there)
    plain = [usual[name] for name in CAPTION_COLUMNS if name in usual][:1]
    return (*plain, *(usual[name] for name in usual if NUMBERED_CAPTION.fullmatch(name)))


def _usual(names: Iterable[str]) -> dict[str, str]:
    return {name.strip().lower(): name for name in names}


def _no_column(place: Place, key: str, there: str) -> SourceError:
    several = ", or data.source.columns.captions to their names" if key == "caption" else ""
    return SourceError(
        f"{place}: no {key} column that I know; its columns are {there}. "
        f"Set data.source.columns.{key} to its name{several}."
    )
