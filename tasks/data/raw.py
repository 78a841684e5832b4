"""Ingest: the sources' rows as one content-addressed folder, nothing judged and nothing dropped."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.schema import Source
from tasks.data import folders
from tasks.data.readers import READERS, Row
from tasks.refs import DatasetRef

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """A line of `rows.jsonl`; `sha256` is of the image's bytes, None if the file is missing.

    `image` is relative to the dataset's folder, or absolute for a file that stays where it is.
    """

    image_id: str
    image: str
    sha256: str | None
    references: tuple[str, ...]
    split: str | None
    source: str

    @property
    def content(self) -> list[object]:
        """What the record is wherever its image lies."""
        return [self.image_id, self.sha256, list(self.references), self.split, self.source]


def ingest(sources: Sequence[Source], out: Path) -> DatasetRef:
    """Read all sources, in order, into `out/<digest>/`."""
    with folders.staging(out) as staged:
        records = [
            _store(row, staged) for source in sources for row in READERS[source.format](source)
        ]
        ref = write_dataset(staged, records, out)
    log.info("ingested %d images, %d captions", ref.num_images, ref.num_captions)
    return ref


def write_dataset(staged: Path, records: Sequence[Record], out: Path) -> DatasetRef:
    """Finish a staged folder with its rows and publish it as `out/<digest>/`."""
    digest = folders.digest_of([record.content for record in records])
    num_captions = sum(len(record.references) for record in records)
    folders.write_jsonl(staged / "rows.jsonl", map(asdict, records))
    folders.write_json(
        staged / "dataset.json",
        {"digest": digest, "num_images": len(records), "num_captions": num_captions},
    )
    folder = folders.publish(staged, (out / digest).resolve())
    return DatasetRef(
        uri=str(folder), digest=digest, num_images=len(records), num_captions=num_captions
    )


def read_records(dataset: DatasetRef) -> Iterator[Record]:
    for line in folders.read_jsonl(dataset.path / "rows.jsonl"):
        yield Record(**{**line, "references": tuple(line["references"])})


def image_path(dataset: DatasetRef, record: Record) -> Path:
    return dataset.path / record.image  # an absolute `image` wins over the folder


def carry_images(dataset: DatasetRef, records: Iterable[Record], target: Path) -> None:
    """Link the images that lie inside the dataset's folder into another one."""
    for relative in {record.image for record in records if not Path(record.image).is_absolute()}:
        folders.link_or_copy(dataset.path / relative, target / relative)


def _store(row: Row, staged: Path) -> Record:
    if isinstance(row.image, bytes):
        sha = folders.sha256(row.image)
        image = f"images/{sha[:2]}/{sha}.png"
        (staged / image).parent.mkdir(parents=True, exist_ok=True)
        (staged / image).write_bytes(row.image)
        return Record(row.image_id, image, sha, row.references, row.split, row.source)
    sha_or_none = folders.sha256_file(row.image) if row.image.is_file() else None
    return Record(row.image_id, str(row.image), sha_or_none, row.references, row.split, row.source)
