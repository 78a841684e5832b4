"""The lines of CSV and TSV files: their dialects, and the lines that are broken."""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator

from configs.schema import TableSource
from tasks.data.readers.columns import Layout
from tasks.data.readers.places import IMAGE_SUFFIXES
from tasks.data.readers.records import Line
from tasks.data.readers.text import text_lines


def csv_header(source: TableSource) -> tuple[list[str], str]:
    """Names of the columns, of which the second of one name gets a number, and the delimiter.

    Spreadsheets also write semicolons, and Flickr30k's results.csv has bars.
    """
    first = next((text for text in text_lines(source) if text.strip()), "")
    delimiter = "," if "," in first else max(";|\t", key=first.count)
    delimiter = "\t" if source.format == "tsv" else delimiter
    seen: Counter[str] = Counter()
    names = []
    for name in map(str.strip, next(csv.reader([first], delimiter=delimiter), [])):
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names, delimiter


def csv_lines(source: TableSource, layout: Layout) -> Iterator[Line]:
    header, delimiter = csv_header(source)
    records = _records(source, delimiter, header.index(layout.image))
    next(records)
    for number, cells, text in records:
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if not cells:
            yield Line(number, {}, "a quote is opened and not closed", text)
            continue
        if len(cells) > len(header) == 2 and layout.long:
            cells = _whole_caption(cells, text, delimiter, header.index(layout.captions[0]))
        problem = ""
        if len(cells) != len(header):
            problem = f"{len(cells)} cells, where the first line names {len(header)}"
        told = {} if len(cells) > len(header) else dict(zip(header, cells, strict=False))
        yield Line(number, told, problem, text)


def _records(
    source: TableSource, delimiter: str, before: int
) -> Iterator[tuple[int, list[str], str]]:
    """Number of the first line, cells and text of each record that isn't blank.

    A line whose quote isn't closed has no cells, and the lines that it would take in stay what they
    are. It is known by them: `before` cells, then the name of an image.
    """
    d = re.escape(delimiter)
    suffixes = "|".join(map(re.escape, IMAGE_SUFFIXES))
    taken_in = re.compile(rf'\n([^\n{d}]*{d}){{{before}}}[^\n{d}]*({suffixes})"?\s*{d}', re.I)
    lines = text_lines(source)
    again: deque[str] = deque()
    number = 1
    while True:
        read: list[str] = []
        try:
            # The space: `name, "caption"`, where CSV wants the quote to come first.
            feed = _recorded(lines, again, read)
            cells = next(csv.reader(feed, delimiter=delimiter, skipinitialspace=True), None)
        except csv.Error:  # longer than a cell may be
            cells = []
        if cells is None:
            return
        text = "".join(read)
        if len(read) > 1 and (not cells or taken_in.search(text)):
            again.extendleft(reversed(read[1:]))
            cells, text, read = [], read[0], read[:1]
        if text.strip(f'{delimiter}" \r\n'):
            yield number, cells, text.strip("\r\n")
        number += len(read)


def _recorded(lines: Iterator[str], again: deque[str], read: list[str]) -> Iterator[str]:
    while (line := again.popleft() if again else next(lines, None)) is not None:
        read.append(line)
        yield line


def _whole_caption(cells: list[str], text: str, delimiter: str, place: int) -> list[str]:
    """The two cells of a line whose caption holds unprotected delimiters."""
    if place:
        return [cells[0], text.partition(delimiter)[2]]
    return [text.rpartition(delimiter)[0], cells[-1]]
