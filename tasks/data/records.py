"""A dataset folder of rows: `rows.jsonl` with a record a line, and the images that are its own."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.data import folders
from tasks.data.rows import Fault
from tasks.refs import DatasetRef


@dataclass(frozen=True)
class Record:
    """A line of `rows.jsonl`; `sha256` is of the image's bytes, None where a `fault` says why not.

    `image` is relative to the dataset's folder, or absolute for a file that stays where it is.
    `width` and `height` are of the upright picture, 0 before the checks have looked at it.
    """

    image_id: str
    image: str
    sha256: str | None
    references: tuple[str, ...]
    split: str | None
    source: str
    fault: Fault | None = None
    width: int = 0
    height: int = 0

    @classmethod
    def of(cls, line: dict[str, Any]) -> "Record":
        fault = Fault(**line["fault"]) if line["fault"] else None
        return cls(**{**line, "references": tuple(line["references"]), "fault": fault})

    @property
    def content(self) -> list[object]:
        """What the record is wherever its image lies."""
        rule = self.fault.rule if self.fault else None
        told = [self.image_id, self.sha256, rule, list(self.references), self.split, self.source]
        return [*told, self.width, self.height]


@dataclass(frozen=True)
class Part:
    """Some consecutive lines of `rows.jsonl`: from a byte on, the first one's place, how many."""

    offset: int
    start: int
    count: int


class DatasetWriter(folders.JsonlWriter):
    """Writes the `rows.jsonl` of a staged folder and counts."""

    def __init__(self, staged: Path) -> None:
        super().__init__(staged / "rows.jsonl")
        self.num_captions = 0

    def add(self, record: Record) -> None:
        self.write(asdict(record), record.content)
        self.num_captions += len(record.references)

    def publish(self, staged: Path, out: Path, *others: folders.JsonlWriter) -> DatasetRef:
        """Close the folder and move it to `out/<digest>/`, digested over `others` as well."""
        self.__exit__()
        digest = folders.digest_of([writer.digest for writer in (self, *others)])
        folders.write_json(
            staged / "dataset.json",
            {"digest": digest, "num_images": self.count, "num_captions": self.num_captions},
        )
        folder = folders.publish(staged, (out / digest).resolve())
        return DatasetRef(
            uri=str(folder),
            digest=digest,
            num_images=self.count,
            num_captions=self.num_captions,
        )


def read_records(dataset: DatasetRef) -> Iterator[Record]:
    return map(Record.of, folders.read_jsonl(dataset.path / "rows.jsonl"))


def parts(dataset: DatasetRef, size: int) -> list[Part]:
    """The dataset in parts of at most `size` rows."""
    found: list[Part] = []
    offset = 0
    with (dataset.path / "rows.jsonl").open("rb") as file:
        for place, line in enumerate(file):
            if place % size == 0:
                found.append(Part(offset, place, min(size, dataset.num_images - place)))
            offset += len(line)
    return found


def read_part(dataset: DatasetRef, part: Part) -> Iterator[Record]:
    with (dataset.path / "rows.jsonl").open("rb") as file:
        file.seek(part.offset)
        for _ in range(part.count):
            yield Record.of(json.loads(file.readline()))


def uncaptioned(dataset: DatasetRef) -> Iterator[Record]:
    """The images that no caption names; their bytes were not read."""
    return map(Record.of, folders.read_jsonl(dataset.path / "uncaptioned.jsonl"))


def image_path(dataset: DatasetRef, record: Record) -> Path:
    return dataset.path / record.image  # an absolute `image` wins over the folder


def carry_images(dataset: DatasetRef, records: Iterable[Record], target: Path) -> None:
    """Link the images that lie inside the dataset's folder into another one."""
    for record in records:
        if not Path(record.image).is_absolute() and not (target / record.image).exists():
            folders.link_or_copy(dataset.path / record.image, target / record.image)
