"""The dataset as training reads it: decoded once, one memory-mapped array of pixels a split."""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from bentos.captioner.images import decode, to_pixels
from configs.schema import DataConfig
from tasks.data import folders
from tasks.data.raw import Record, image_path, read_records
from tasks.data.splits import SPLITS, assign
from tasks.refs import DatasetRef

log = logging.getLogger(__name__)


class PreparedError(ValueError):
    """A folder is not the prepared dataset that it should be."""


class EmptySplit(ValueError):
    """No image is left to train on, to validate with or to test on."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made: the folder, its content's digest, and counts."""

    folder: Path
    digest: str
    num_images: int
    num_captions: int
    split_sizes: dict[str, int]


@dataclass(frozen=True)
class Split:
    """Images of one split: lists and `pixels` (uint8 [n, H, W, 3]) are in the same order."""

    image_ids: list[str]
    references: list[list[str]]
    sources: list[str]
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def where(self, source: str | None = None, exclude_source: str | None = None) -> "Split":
        """The images that came from `source`, or from any but `exclude_source`."""
        keep = [
            (source is None or name == source) and name != exclude_source for name in self.sources
        ]
        if all(keep):
            return self
        return Split(
            list(compress(self.image_ids, keep)),
            list(compress(self.references, keep)),
            list(compress(self.sources, keep)),
            self.pixels[np.flatnonzero(keep)],
        )


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared folder, opened: nothing is read before a split is asked for."""

    folder: Path
    digest: str
    image_size: int
    sizes: dict[str, int]

    @classmethod
    def open(cls, folder: Path) -> "PreparedDataset":
        card = folder / "dataset.json"
        if not card.is_file():
            raise PreparedError(f"{card}: no such file; run prepare, or restore it with DVC.")
        content = json.loads(card.read_text(encoding="utf-8"))
        sizes = {name: split["images"] for name, split in content["splits"].items()}
        return cls(folder, content["digest"], content["image_size"], sizes)

    def split(self, name: str) -> Split:
        """`train`, `val` or `test`; the pixels stay on disk until they are indexed."""
        if name not in self.sizes:
            raise PreparedError(f"no split named {name!r}; there are {', '.join(self.sizes)}.")
        pixels = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        rows = folders.read_jsonl(self.folder / f"{name}.jsonl")
        if not len(pixels) == len(rows) == self.sizes[name]:
            raise PreparedError(
                f"{self.folder}: split {name} has {len(pixels)} images and {len(rows)} rows, "
                f"dataset.json says {self.sizes[name]}; prepare it again."
            )
        return Split(
            [row["image_id"] for row in rows],
            [row["references"] for row in rows],
            [row["source"] for row in rows],
            pixels,
        )


def prepare(validated: DatasetRef, config: DataConfig, seed: int, out: Path) -> Prepared:
    """Decode, resize and split a validated dataset into `out/<digest>/`.

    The digest is of the written content, so machine, paths and number of threads don't enter it.
    Raises: EmptySplit, PreparedError.
    """
    by_split: dict[str, list[Record]] = {name: [] for name in SPLITS}
    for record in read_records(validated):
        assert record.sha256 is not None  # the checks let no missing image through
        by_split[assign(record.sha256, config.splits, seed, record.split)].append(record)
    sizes = {name: len(records) for name, records in by_split.items()}
    if not all(sizes.values()):
        counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise EmptySplit(
            f"every split needs images, there are: {counts}; change data.splits or add images."
        )
    with folders.staging(out) as staged:
        card: dict[str, Any] = {"image_size": config.image_size, "splits": {}}
        content = []
        for name, records in by_split.items():
            pixel_digests = _write_pixels(staged / f"{name}.npy", validated, records, config)
            rows = [_row(record) for record in records]
            folders.write_jsonl(staged / f"{name}.jsonl", rows)
            content.append([rows, pixel_digests])
            captions = sum(len(record.references) for record in records)
            card["splits"][name] = {"images": len(records), "captions": captions}
        card["digest"] = folders.digest_of([card, content])
        folders.write_json(staged / "dataset.json", card)
        folder = folders.publish(staged, (out / card["digest"]).resolve())
    log.info("prepared %s in %s", sizes, folder)
    return Prepared(
        folder=folder,
        digest=card["digest"],
        num_images=validated.num_images,
        num_captions=validated.num_captions,
        split_sizes=sizes,
    )


def _row(record: Record) -> dict[str, Any]:
    return {
        "image_id": record.image_id,
        "references": record.references,
        "source": record.source,
    }


def _write_pixels(
    path: Path, dataset: DatasetRef, records: Sequence[Record], config: DataConfig
) -> list[str]:
    """Fill the array on threads (Pillow and hashlib let go of the GIL); the images' digests."""
    size = config.image_size
    shape = (len(records), size, size, 3)
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)

    def fill(place: int) -> str:
        data = image_path(dataset, records[place]).read_bytes()
        if folders.sha256(data) != records[place].sha256:
            raise PreparedError(
                f"{records[place].image}: changed since it was validated; ingest it again."
            )
        image = decode(data, max_pixels=config.checks.max_pixels)
        pixels[place] = to_pixels(image, size)
        return folders.sha256(pixels[place].tobytes())

    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(fill, range(len(records))))
    pixels.flush()
    return digests
