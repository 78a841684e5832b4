"""Records: rows of a table or a dataset, JSON objects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.data.readers.text import cut, is_text
from tasks.data.rows import Fault, Row


class Line(NamedTuple):
    """A row of a table: its cells by column, or what is wrong with it and its text."""

    number: int
    cells: dict[str, Any]
    problem: str = ""
    raw: str = ""


def captions_of(
    record: Mapping[str, object], names: Sequence[str], long: bool
) -> tuple[tuple[str, ...], str]:
    """A record's captions, and what is wrong with one that isn't text.

    Nulls are no captions; blank cells are, in lists and where there is one caption a row (`long`).
    """
    values: list[object] = []
    for name in names:
        value = record.get(name)
        listed = value if isinstance(value, list) else [value]
        blank_too = long or isinstance(value, list)
        values += [one for one in listed if one is not None and (blank_too or str(one).strip())]
    wrong = [value for value in values if not is_text(value)]
    told = tuple(value.strip() for value in values if is_text(value))
    return told, f"a caption is no text: {cut(wrong[0])!r}" if wrong else ""


def record_row(
    image_id: str,
    image: Path | str | bytes | Fault,
    captions: tuple[str, ...],
    problem: str,
    split: str | None,
    source: str,
) -> Row:
    """A record's row; a fault has a reference in any case: what has none is noted, not counted."""
    if problem and not isinstance(image, Fault):
        image = Fault("malformed_row", f"{image_id}: {problem}")
    if isinstance(image, Fault):
        captions = captions or ("",)
    return Row(image_id, image, captions, split, source)
