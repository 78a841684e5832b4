"""Captions of a record (a JSON object, a row of a dataset) by the names of its fields."""

from collections.abc import Iterable, Mapping, Sequence

from configs.schema import Columns
from tasks.data.readers.tables import CAPTION_COLUMNS, NUMBERED_CAPTION, cut, is_text


def caption_names(there: Iterable[str], columns: Columns) -> tuple[str, ...]:
    """The fields that the config names, else the first of the usual names and all numbered ones."""
    if given := (*([columns.caption] if columns.caption else []), *columns.captions):
        return given
    usual = {name.strip().lower(): name for name in there}
    plain = [usual[name] for name in CAPTION_COLUMNS if name in usual][:1]
    return (*plain, *(usual[name] for name in usual if NUMBERED_CAPTION.fullmatch(name)))


def captions_of(
    record: Mapping[str, object], names: Sequence[str]
) -> tuple[tuple[str, ...], str | None]:
    """A record's captions, and what is wrong with one that isn't text.

    Nulls are no captions; nor are blank ones where an image has a field for each.
    """
    values: list[object] = []
    for name in names:
        value = record.get(name)
        listed = value if isinstance(value, list) else [value]
        blank_too = len(names) == 1 or isinstance(value, list)
        values += [one for one in listed if one is not None and (blank_too or str(one).strip())]
    wrong = [value for value in values if not is_text(value)]
    told = tuple(value.strip() for value in values if is_text(value))
    return told, f"a caption is no text: {cut(wrong[0])!r}" if wrong else None
