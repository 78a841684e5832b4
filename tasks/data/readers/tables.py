"""Tables of images and captions (CSV, TSV, JSON Lines, Parquet), and what caption files share.

A table is long (one caption a row; an image's rows may lie anywhere) or wide (all captions of an
image in its row, in several columns or in a list). Long tables are read twice, first to count each
image's rows, so that only captions of images that are not complete yet are held, and come in the
order in which they get complete. Wide ones are streamed: two rows of one name stay two.
"""

import codecs
import csv
import json
import posixpath
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard

from configs.schema import CocoSource, FlickrTokenSource, KarpathySource, Place, TableSource
from tasks.data.readers.places import (
    IMAGE_SUFFIXES,
    open_binary,
    open_text,
    parent,
    uncaptioned,
    within,
)
from tasks.data.rows import Fault, Row, SourceError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

IMAGE_COLUMNS = (
    *("image", "file_name", "filename", "image_path", "image_file", "image_name"),
    *("img", "img_path", "path", "filepath", "file_path", "file"),
)
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences"),
    *("description", "descriptions", "comment", "references"),
)
NUMBERED_CAPTION = re.compile(r"(caption|text|sentence|description|comment)[ _-]?\d+")
RAW_CHARACTERS = 200
PARQUET_BATCH_ROWS = 64  # an image may be in each

Kind = Literal["text", "list", "image"]


class Folder:
    """The folder of a caption file's images: makes rows of names and keeps what was named."""

    def __init__(
        self, source: TableSource | FlickrTokenSource | CocoSource | KarpathySource
    ) -> None:
        place = source.images or parent(source.captions)
        self.place: Place = place.rstrip("/") if isinstance(place, str) else place.resolve()
        self.file = str(source.captions).rpartition("/")[2]
        self._whole = [f"{self.place}/"]  # how a name starts that is a whole path or URL
        if not isinstance(place, str):
            self._whole.append(f"{place.absolute()}/")
        self._locate = lru_cache(maxsize=1024)(
            self._located
        )  # an image's rows are mostly neighbours
        self._format = source.format
        self._named: set[str] = set()

    def row(self, name: str, references: tuple[str, ...], split: str | None, where: str) -> Row:
        """The row of an image by its name; its id is the normalised name within the folder."""
        image_id, image = self._locate(name)
        if isinstance(image, Fault):
            image = Fault(image.rule, f"{self.file}, {where}: {image.detail}")
        self._named.add(image_id)
        return Row(image_id, image, references, split, self._format)

    def malformed(
        self, entry: int | str, where: str, problem: str, told: tuple[str, ...], raw: object
    ) -> Row:
        """The row of what names no image: with the captions it tells, else with its own text."""
        fault = Fault("malformed_row", f"{self.file}, {where}: {problem}")
        references = told or (cut(raw),)
        return Row(f"{self.file}:{entry}", fault, references, None, self._format)

    def uncaptioned(self) -> Iterator[Row]:
        """The images of the folder that no row has named."""
        return uncaptioned(self.place, self._named, self._format)

    def _located(self, name: str) -> tuple[str, Place | Fault]:
        clean = name.strip().replace("\\", "/")
        for whole in self._whole:
            clean = clean.removeprefix(whole)
        image_id = clean if "://" in clean else posixpath.normpath(clean)
        return image_id, within(self.place, image_id)


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


def gathered(rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """One row an image and split, with the references of all its rows; `rows` is called twice."""
    left = Counter((row.image_id, row.split) for row in rows())
    held: dict[tuple[str, str | None], list[str]] = {}
    for row in rows():
        key = (row.image_id, row.split)
        held.setdefault(key, []).extend(row.references)
        left[key] -= 1
        if not left[key]:
            yield replace(row, references=tuple(held.pop(key)))


def text_lines(place: Place, encoding: str) -> Iterator[str]:
    """The lines of a text file with their ends; SourceError where it isn't in that encoding."""
    with open_text(place, encoding) as file:
        try:
            for number, line in enumerate(file):
                if not number and "\0" in line:
                    raise UnicodeError("UTF-16 without a mark is good ASCII")
                yield line if number else line.removeprefix("\ufeff")
        except UnicodeError as error:
            raise _not_encoded(place, encoding) from error


def _not_encoded(place: Place, encoding: str) -> SourceError:
    """Names the first line that can't be decoded, and the encoding that it looks like."""
    decoder = codecs.getincrementaldecoder(encoding)()
    head, number, line = b"", 0, b""
    with open_binary(place) as file:
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
        f"{place}, line {number}: not {encoding}; it looks like {looks}: "
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


class Line(NamedTuple):
    """A row of a table: its cells by column, or what is wrong with it and its text."""

    number: int
    cells: dict[str, Any]
    problem: str = ""
    raw: str = ""


@dataclass(frozen=True)
class Layout:
    """Which columns hold what; `long` tables have one caption a row."""

    image: str
    captions: tuple[str, ...]
    split: str | None
    long: bool

    @property
    def columns(self) -> list[str]:
        return [self.image, *self.captions, *([self.split] if self.split else [])]


def read_table(source: TableSource) -> Iterator[Row]:
    """A table's images, then those of the folder that it doesn't name.

    An empty caption is a reference "" in a long table and no reference in a wide one. Images in the
    cells are streamed, neighbouring rows of the same one together; the folder is then only looked
    into when the source names it.
    """
    columns, lines = FORMATS[source.format]
    kinds = columns(source)
    layout = _layout(source, kinds)
    folder = Folder(source)
    unit = "row" if source.format == "parquet" else "line"

    def rows() -> Iterator[Row]:
        return (_row(line, unit, layout, folder) for line in lines(source, layout))

    if kinds[layout.image] == "image":
        yield from _neighbours(rows())
        if source.images is None:
            return
    else:
        yield from gathered(rows) if layout.long else rows()
    yield from folder.uncaptioned()


def _neighbours(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows next to each other that hold the same image become one."""
    for _, group in groupby(rows, key=lambda row: (row.image, row.split)):
        first, *others = group
        references = chain(first.references, *(row.references for row in others))
        yield replace(first, references=tuple(references))


def _row(line: Line, unit: str, layout: Layout, folder: Folder) -> Row:
    where = f"{unit} {line.number}"
    cell = line.cells.get(layout.image)
    data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, cell)
    split = line.cells.get(layout.split) if layout.split else None
    split = None if split is None else cut(split) or None
    references, problem = _references(line, layout)
    problem = line.problem or problem
    if not problem and isinstance(data, bytes):
        named = name if is_text(name) and name else f"{folder.file}:{line.number}"
        return Row(named, data, references, split, "parquet")
    if not problem and not is_text(name):
        problem = f"{layout.image!r} is no file name but {cut(json.dumps(cell, default=str))}"
    if not problem and not str(name).strip():
        problem = f"{layout.image!r} is empty"
    if problem:
        told = tuple(caption for caption in references if caption)
        return folder.malformed(line.number, where, problem, told, line.raw or line.cells)
    return folder.row(str(name), references, split, where)


def _references(line: Line, layout: Layout) -> tuple[tuple[str, ...], str]:
    """A row's captions, and what is wrong with one that isn't text."""
    values: list[object] = []
    for column in layout.captions:
        cell = line.cells.get(column)
        if isinstance(cell, list):
            values += [value for value in cell if value is not None]
        elif layout.long:
            values.append("" if cell is None else cell)
        elif cell is not None and not (isinstance(cell, str) and not cell.strip()):
            values.append(cell)
    told = tuple(value.strip() for value in values if is_text(value))
    wrong = [value for value in values if not is_text(value)]
    return told, f"a caption is no text: {cut(wrong[0])!r}" if wrong else ""


def _layout(source: TableSource, kinds: dict[str, Kind]) -> Layout:
    """The columns that the config names, else those of the usual names."""
    given, there = source.columns, ", ".join(map(repr, kinds)) or "none"
    for key, names in given.model_dump(exclude_none=True).items():
        for name in (names,) if isinstance(names, str) else names:
            if name not in kinds:
                raise SourceError(
                    f"{source.captions}: no column {name!r}; its columns are {there}. "
                    f"Correct data.source.columns.{key}."
                )
    usual = {name.strip().lower(): name for name in kinds}
    image = given.image or next((usual[name] for name in IMAGE_COLUMNS if name in usual), None)
    if image is None:
        raise _no_column(source, "image", there)
    captions = (*([given.caption] if given.caption else []), *given.captions)
    if not captions:
        captions = tuple(name for name in _usual_captions(usual) if name != image)
    if not captions:
        raise _no_column(source, "caption", there)
    long = len(captions) == 1 and kinds[captions[0]] != "list"
    return Layout(image, captions, given.split or usual.get("split"), long)


def _usual_captions(usual: dict[str, str]) -> list[str]:
    plain = [usual[name] for name in CAPTION_COLUMNS if name in usual][:1]
    return plain + [usual[name] for name in usual if NUMBERED_CAPTION.fullmatch(name)]


def _no_column(source: TableSource, key: str, there: str) -> SourceError:
    several = ", or data.source.columns.captions to their names" if key == "caption" else ""
    return SourceError(
        f"{source.captions}: no {key} column that I know; its columns are {there}. "
        f"Set data.source.columns.{key} to its name{several}."
    )


def _lines(source: TableSource) -> Iterator[str]:
    return text_lines(source.captions, source.encoding)


def _csv_columns(source: TableSource) -> dict[str, Kind]:
    return dict.fromkeys(_header(source)[0], "text")


def _header(source: TableSource) -> tuple[list[str], str]:
    """Names of the columns, of which the second of one name gets a number, and the delimiter.

    Spreadsheets also write semicolons, and Flickr30k's results.csv has bars.
    """
    first = next((text for text in _lines(source) if text.strip()), "")
    delimiter = "," if "," in first else max(";|\t", key=first.count)
    delimiter = "\t" if source.format == "tsv" else delimiter
    seen: Counter[str] = Counter()
    names = []
    for name in map(str.strip, next(csv.reader([first], delimiter=delimiter), [])):
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names, delimiter


def _csv_lines(source: TableSource, layout: Layout) -> Iterator[Line]:
    header, delimiter = _header(source)
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
    lines = _lines(source)
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


def _jsonl_columns(source: TableSource) -> dict[str, Kind]:
    """The keys of all lines: one that comes late holds captions too."""
    kinds: dict[str, Kind] = {}
    for line in _jsonl_lines(source):
        for name, value in line.cells.items():
            if isinstance(value, list):
                kinds[name] = "list"
            else:
                kinds.setdefault(name, "text")
    return kinds


def _jsonl_lines(source: TableSource, layout: Layout | None = None) -> Iterator[Line]:
    for number, text in enumerate(_lines(source), 1):
        if not text.strip():
            continue
        try:
            cells = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Line(number, {}, f"not JSON: {error}", text)
            continue
        if isinstance(cells, dict):
            yield Line(number, cells, "", text)
        else:
            yield Line(number, {}, "no JSON object", text)


def _parquet_columns(source: TableSource) -> dict[str, Kind]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def kind(cells: pa.DataType) -> Kind:
        if pa.types.is_list(cells) or pa.types.is_large_list(cells):
            return "list"
        if (
            pa.types.is_struct(cells)
            or pa.types.is_binary(cells)
            or pa.types.is_large_binary(cells)
        ):
            return "image"
        return "text"

    with open_binary(source.captions) as file:
        try:
            return {field.name: kind(field.type) for field in pq.read_schema(file)}
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{source.captions}: not a Parquet file: {error}") from error


def _parquet_lines(source: TableSource, layout: Layout) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_binary(source.captions) as file:
        number = 0
        try:
            table = pq.ParquetFile(file)
            for batch in table.iter_batches(PARQUET_BATCH_ROWS, columns=layout.columns):
                for cells in _cells(batch):
                    number += 1
                    yield Line(number, cells or {}, "" if cells else "text that isn't UTF-8")
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{source.captions}: damaged after row {number}: {error}") from error


def _cells(batch: "RecordBatch") -> Iterator[dict[str, Any] | None]:
    """A batch's rows; None for one whose text can't be decoded."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(batch.num_rows):
            try:
                yield batch.slice(place, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


FORMATS: dict[
    str,
    tuple[
        Callable[[TableSource], dict[str, Kind]],
        Callable[[TableSource, Layout], Iterator[Line]],
    ],
] = {
    "csv": (_csv_columns, _csv_lines),
    "tsv": (_csv_columns, _csv_lines),
    "jsonl": (_jsonl_columns, _jsonl_lines),
    "parquet": (_parquet_columns, _parquet_lines),
}
