"""Which reader reads which format."""

from collections.abc import Callable, Iterator
from typing import Any

from configs.schema import AutoSource, Source
from tasks.data.readers.annotations import read_coco, read_karpathy
from tasks.data.readers.detect import detect
from tasks.data.readers.flickr import read_flickr_token
from tasks.data.readers.hub import read_hf
from tasks.data.readers.imagefolder import read_imagefolder
from tasks.data.readers.stored import read_feedback, read_golden, read_scenes
from tasks.data.readers.tables import read_table
from tasks.data.readers.webdataset import read_webdataset
from tasks.data.rows import Row

READERS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "coco": read_coco,
    "karpathy": read_karpathy,
    "flickr_token": read_flickr_token,
    "csv": read_table,
    "tsv": read_table,
    "jsonl": read_table,
    "parquet": read_table,
    "imagefolder": read_imagefolder,
    "webdataset": read_webdataset,
    "hf": read_hf,
    "feedback": read_feedback,
    "golden": read_golden,
    "scenes": read_scenes,
}


def read(source: Source) -> Iterator[Row]:
    """The rows of a source; SourceError where it can't be read as a whole."""
    found = detect(source) if isinstance(source, AutoSource) else source
    return READERS[found.format](found)
