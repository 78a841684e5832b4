"""Tables of images and captions: CSV, TSV, JSON Lines, Parquet.

A table is long (one caption a row; an image's rows may lie anywhere) or wide (all captions of an
image in its row, in several columns or in a list). Long tables are read twice, first to count each
image's rows, so that only captions of images that are not complete yet are held, and come in the
order in which they get complete. Wide ones are streamed: two rows of one name stay two.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from configs.schema import TableSource
from tasks.data.readers.caption_file import Folder, gathered
from tasks.data.readers.columns import Kind, Layout, layout_of
from tasks.data.readers.csv_lines import csv_header, csv_lines
from tasks.data.readers.places import open_binary
from tasks.data.readers.records import Line, captions_of
from tasks.data.readers.text import cut, is_text, text_lines
from tasks.data.rows import Row, SourceError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

PARQUET_BATCH_ROWS = 64  # an image may be in each


def read_table(source: TableSource) -> Iterator[Row]:
    """A table's images, then those of the folder that it doesn't name.

    An empty caption is a reference "" in a long table and no reference in a wide one. Images in the
    cells are streamed, neighbouring rows of the same one together; the folder is then only looked
    into when the source names it.
    """
    found, folder = table_layout(source), Folder(source)
    yield from named_rows(source, found, folder)
    if source.images is not None or not found.images_in_cells:
        yield from folder.uncaptioned()


def table_layout(source: TableSource) -> Layout:
    kinds: dict[str, Kind]
    match source.format:
        case "parquet":
            kinds = _parquet_kinds(source)
        case "jsonl":
            kinds = _jsonl_kinds(source)
        case _:
            kinds = dict.fromkeys(csv_header(source)[0], "text")
    return layout_of(source.captions, kinds, source.columns)


def named_rows(source: TableSource, layout: Layout, folder: Folder) -> Iterator[Row]:
    """The images that the table names or holds."""

    def rows() -> Iterator[Row]:
        return (_row(line, source, layout, folder) for line in _lines(source, layout))

    if layout.images_in_cells:
        return _neighbours(rows())
    return gathered(rows) if layout.long else rows()


def _lines(source: TableSource, layout: Layout) -> Iterator[Line]:
    match source.format:
        case "parquet":
            return _parquet_lines(source, layout)
        case "jsonl":
            return _jsonl_lines(source)
        case _:
            return csv_lines(source, layout)


def _neighbours(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows next to each other that hold the same image become one."""
    for _, group in groupby(rows, key=lambda row: (row.image, row.split)):
        first, *others = group
        references = chain(first.references, *(row.references for row in others))
        yield replace(first, references=tuple(references))


def _row(line: Line, source: TableSource, layout: Layout, folder: Folder) -> Row:
    where = f"{'row' if source.format == 'parquet' else 'line'} {line.number}"
    cells = line.cells
    cell = cells.get(layout.image)
    data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, cell)
    split = cells.get(layout.split) if layout.split else None
    split = None if split is None else cut(split) or None
    if layout.long and cells.get(layout.captions[0]) is None:
        cells = {layout.captions[0]: ""}
    references, problem = captions_of(cells, layout.captions, layout.long)
    problem = line.problem or problem
    if not problem and isinstance(data, bytes):
        named = name if is_text(name) and name else f"{folder.file}:{line.number}"
        return Row(named, data, references, split, source.format)
    if not problem and not is_text(name):
        problem = f"{layout.image!r} is no file name but {cut(json.dumps(cell, default=str))}"
    if not problem and not str(name).strip():
        problem = f"{layout.image!r} is empty"
    if problem:
        return folder.malformed(line.number, where, problem, references, line.raw or line.cells)
    return folder.row(str(name), references, split, where)


def _jsonl_kinds(source: TableSource) -> dict[str, Kind]:
    """The keys of all lines: one that comes late holds captions too."""
    kinds: dict[str, Kind] = {}
    for line in _jsonl_lines(source):
        for name, value in line.cells.items():
            if isinstance(value, list):
                kinds[name] = "list"
            else:
                kinds.setdefault(name, "text")
    return kinds


def _jsonl_lines(source: TableSource) -> Iterator[Line]:
    for number, text in enumerate(text_lines(source), 1):
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


def _parquet_kinds(source: TableSource) -> dict[str, Kind]:
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
