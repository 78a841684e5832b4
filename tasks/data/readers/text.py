"""Text as it comes from files: its encoding, its lines, what of it can be written."""

import codecs
import io
from collections.abc import Iterator
from typing import TypeGuard

from configs.schema import FlickrTokenSource, TableSource
from tasks.data.readers.places import open_binary
from tasks.data.rows import SourceError

RAW_CHARACTERS = 200


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is text that can be written too: JSON can escape half a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def cut(raw: object) -> str:
    """The beginning of something as text that can be written."""
    return str(raw).strip()[:RAW_CHARACTERS].encode(errors="replace").decode()


def text_lines(source: TableSource | FlickrTokenSource) -> Iterator[str]:
    """The lines of a caption file with their ends, without a byte order mark.

    SourceError where it isn't in the source's encoding.
    """
    try:
        file = io.TextIOWrapper(open_binary(source.captions), source.encoding, newline="")
    except LookupError as error:
        raise SourceError(f"{source.captions}: data.source.encoding: {error}") from error
    with file:
        try:
            for number, line in enumerate(file):
                if not number and "\0" in line:
                    raise UnicodeError("UTF-16 without a mark is good ASCII")
                yield line if number else line.removeprefix("\ufeff")
        except UnicodeError as error:
            raise _not_encoded(source) from error


def _not_encoded(source: TableSource | FlickrTokenSource) -> SourceError:
    """Names the first line that can't be decoded, and the encoding that it looks like."""
    decoder = codecs.getincrementaldecoder(source.encoding)()
    head, number, line = b"", 0, b""
    with open_binary(source.captions) as file:
        for line in file:
            number += 1
            head = head or line
            try:
                if "\0" in decoder.decode(line) and number == 1:
                    break
            except UnicodeError:
                break
    looks = _looks_like(head, line)
    return SourceError(
        f"{source.captions}, line {number}: not {source.encoding}; it looks like {looks}: "
        f"set data.source.encoding: {looks}"
    )


def _looks_like(head: bytes, line: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        return "utf-16-be" if head.startswith(b"\0") else "utf-16-le"
    for encoding in ("utf-8", "cp1252"):
        try:
            line.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"
