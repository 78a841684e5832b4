"""Ingest: the sources' rows as one content-addressed folder, nothing judged and nothing dropped.

`rows.jsonl` holds a record a line, `uncaptioned.jsonl` the images that no caption names. Nothing is
kept in memory but the ids, so a source may be of any size.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

from configs.schema import Source
from tasks.data import folders
from tasks.data.parallel import on_threads
from tasks.data.readers.places import file_system
from tasks.data.readers.registry import read
from tasks.data.records import DatasetWriter, Record
from tasks.data.rows import Fault, Row
from tasks.refs import DatasetRef

log = logging.getLogger(__name__)


def ingest(
    sources: Sequence[Source], out: Path, progress: Callable[[int], None] | None = None
) -> DatasetRef:
    """Read all sources, in order, into `out/<digest>/`; `progress` is told the number of images.

    Files on this machine stay where they are; bytes from archives and remote places are stored.
    """
    rows = chain.from_iterable(read(source) for source in sources)
    with (
        folders.staging(out) as staged,
        DatasetWriter(staged) as writer,
        folders.JsonlWriter(staged / "uncaptioned.jsonl") as uncaptioned,
    ):
        taken: Counter[str] = Counter()
        for record in on_threads(partial(_store, staged=staged), rows):
            if not record.references:
                uncaptioned.write(asdict(record), record.content)
                continue
            writer.add(_with_own_id(record, taken))
            if progress and writer.count % 100 == 0:
                progress(writer.count)
        ref = writer.publish(staged, out, uncaptioned)
    log.info("ingested %d images, %d captions", ref.num_images, ref.num_captions)
    return ref


def _store(row: Row, staged: Path) -> Record:
    """The row's record; the bytes of an image without captions are not looked at."""
    fault, image, sha = None, "", None
    try:
        if isinstance(row.image, Fault):
            fault = row.image
        elif isinstance(row.image, Path):
            image = str(row.image)
            sha = folders.sha256_file(row.image) if row.references else None
        elif row.references:
            image, sha = _keep(_bytes(row.image), staged)
    except FileNotFoundError:
        fault = Fault("missing", f"no file {row.image!s}")
    except OSError as error:
        fault = Fault("unreadable", f"{row.image!s}: {error.strerror or error}")
    return Record(row.image_id, image, sha, row.references, row.split, row.source, fault)


def _bytes(image: str | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    fs, path = file_system(image)
    return bytes(fs.cat_file(path))


def _keep(data: bytes, staged: Path) -> tuple[str, str]:
    sha = folders.sha256(data)
    image = f"images/{sha[:2]}/{sha}"
    target = staged / image
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return image, sha


def _with_own_id(record: Record, taken: Counter[str]) -> Record:
    """Of several rows with one id the later ones get a number: `a.jpg~2`."""
    taken[record.image_id] += 1
    number = taken[record.image_id]
    if number == 1:
        return record
    return _with_own_id(replace(record, image_id=f"{record.image_id}~{number}"), taken)
