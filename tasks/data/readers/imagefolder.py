"""A folder whose images are named by the `metadata.*` files in it, as `datasets` defines it."""

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from configs.schema import ImageFolderSource, TableSource
from tasks.data.readers import places
from tasks.data.readers.caption_file import Folder
from tasks.data.readers.tables import named_rows, table_layout
from tasks.data.rows import Row, SourceError

METADATA: dict[str, Literal["csv", "jsonl", "parquet"]] = {
    "metadata.csv": "csv",
    "metadata.jsonl": "jsonl",
    "metadata.parquet": "parquet",
}


def read_imagefolder(source: ImageFolderSource) -> Iterator[Row]:
    """The images that the metadata name, relative to their own folder, then all the others.

    A split comes from the metadata's column, else from the uppermost folder's name.
    """
    names = places.names(source.images)
    images = dict.fromkeys(filter(places.is_image, names))
    hints = places.split_hints({places.top_folder(name) for name in images})
    captioned = set()
    for name in _metadata(source, names):
        for row in _named(source, name):
            if row.references or row.image_id not in images:
                captioned.add(row.image_id)
                split = row.split or hints.get(places.top_folder(row.image_id))
                yield replace(row, split=split)
    folder = places.resolved(source.images)
    for name in images:
        if name not in captioned:
            place, split = places.within(folder, name), hints[places.top_folder(name)]
            yield Row(name, place, (), split, source.format)


def _metadata(source: ImageFolderSource, names: list[str]) -> list[str]:
    found = [name for name in names if posixpath.basename(name) in METADATA]
    if not found:
        raise SourceError(
            f"{source.images}: no metadata.jsonl, metadata.csv or metadata.parquet in it or below; "
            "add one with the columns file_name and text, or correct data.source.images."
        )
    folder, count = Counter(map(posixpath.dirname, found)).most_common(1)[0]
    if count > 1:
        raise SourceError(
            f"{places.inside(source.images, folder)}: {count} metadata files; keep one a folder."
        )
    return found


def _named(source: ImageFolderSource, metadata: str) -> Iterator[Row]:
    """The rows of one metadata file, by their place in the whole folder."""
    place = places.inside(source.images, metadata)
    folder = posixpath.dirname(metadata)
    columns = source.columns.model_copy(update={"image": source.columns.image or "file_name"})
    table = TableSource(
        format=METADATA[posixpath.basename(metadata)],
        captions=place,
        images=places.parent(place),
        columns=columns,
    )
    for row in named_rows(table, table_layout(table), Folder(table)):
        image_id = posixpath.join(folder, row.image_id)
        yield replace(row, image_id=image_id, source=source.format)
