"""Prepare: every image decoded once, at the model's size, in shards to be memory-mapped.

Each shard is made by itself, in any order and by any process that sees the disk. What is finished
stays in a work folder until all of it is published, so a killed run goes on where it was.
"""

import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from bentos.captioner.images import decode, to_pixels
from tasks.data import folders
from tasks.data.parallel import Mapper, on_threads
from tasks.data.prepared import Prepared
from tasks.data.records import Record, image_path, read_records
from tasks.data.splits import SPLITS
from tasks.refs import DatasetRef

log = logging.getLogger(__name__)

_SHARD_IMAGES = 512
_SHARD_BYTES = 64 * 2**20
# Work begun with other pixels or another layout in mind is not gone on with.
_WORK_VERSION = f"1, Pillow {PIL.__version__}"


class ImageChanged(ValueError):
    """An image's file is no longer the one that was validated."""


class DiskFull(OSError):
    """No room for the prepared dataset; the shards that were finished are kept."""


@dataclass(frozen=True)
class Shard:
    """A file of consecutive images of one split; the work folder lists them in `name`.json."""

    name: str
    num_images: int


@dataclass(frozen=True)
class Made:
    """A finished shard: the SHA-256 of its file, and whether an earlier run had made it."""

    digest: str
    reused: bool


def prepare(
    validated: DatasetRef,
    image_size: int,
    out: Path,
    *,
    mapper: Mapper = on_threads,
    progress: Callable[[float], None] | None = None,
) -> Prepared:
    """Decode and resize the images of a validated dataset into `out/<digest>/`.

    The digest is of the written content: machine, paths, mapper and interruptions don't enter it.
    `mapper` makes the shards; `progress` is told the share of the images that are done.
    Raises: ImageChanged, DiskFull.
    """
    key = folders.digest_of([validated.digest, image_size, _WORK_VERSION])
    with _ours_alone(out / f".work-{key}") as work:
        try:
            prepared = _prepare(validated, image_size, work, out, mapper, progress)
        except ImageChanged:  # running again won't help
            shutil.rmtree(work, ignore_errors=True)
            raise
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DiskFull(
                error.errno,
                "the disk is full; free some space and prepare again: finished shards are kept",
                str(out),
            ) from error
        shutil.rmtree(work)
    return prepared


def _prepare(
    validated: DatasetRef,
    image_size: int,
    work: Path,
    out: Path,
    mapper: Mapper,
    progress: Callable[[float], None] | None,
) -> Prepared:
    staged = work / "dataset"
    staged.mkdir(exist_ok=True)
    for left in work.glob("*.partial"):
        left.unlink()
    splits = _list(validated, work, images_per_shard(image_size))
    sizes = {name: split.rows.count for name, split in splits.items()}
    shards = [shard for split in splits.values() for shard in split.shards]
    made: list[Made] = []
    done = 0
    results = mapper(partial(_make, work=work, image_size=image_size), shards)
    for shard, result in zip(shards, results, strict=True):
        _sync(staged / f"{shard.name}.npy")
        made.append(result)
        done += shard.num_images
        if progress:
            progress(done / sum(sizes.values()))
    card: dict[str, Any] = {
        "image_size": image_size,
        "splits": {
            name: {"images": split.rows.count, "captions": split.num_captions}
            for name, split in splits.items()
        },
    }
    rows = [split.rows.digest for split in splits.values()]
    card["digest"] = folders.digest_of([card, rows, [shard.digest for shard in made]])
    folders.write_json(staged / "dataset.json", card)
    folder = folders.publish(staged, (out / card["digest"]).resolve())
    reused = sum(shard.reused for shard in made)
    log.info("prepared %s in %s: %d of %d shards reused", sizes, folder, reused, len(made))
    return Prepared(
        folder=folder,
        digest=card["digest"],
        num_images=sum(sizes.values()),
        num_captions=sum(split.num_captions for split in splits.values()),
        split_sizes=sizes,
        shards_reused=reused,
    )


def images_per_shard(image_size: int) -> int:
    """By the image size alone, so that the same images make the same files everywhere."""
    return max(1, min(_SHARD_IMAGES, _SHARD_BYTES // (3 * image_size**2)))


def _list(validated: DatasetRef, work: Path, per_shard: int) -> "dict[str, _SplitWriter]":
    """Write each split's rows, and for each shard the list of its images; no image is read."""
    with ExitStack() as files:
        splits: dict[str, _SplitWriter] = {
            name: files.enter_context(_SplitWriter(name, work, per_shard)) for name in SPLITS
        }
        for record in read_records(validated):
            assert record.split is not None  # the checks place every image
            splits[record.split].add(record, image_path(validated, record))
    if splits["golden"].rows.count == 0:
        del splits["golden"]
        (work / "dataset" / "golden.jsonl").unlink()
    return splits


class _SplitWriter:
    """Writes the rows of a split, and the lists of its shards as they fill up."""

    def __init__(self, name: str, work: Path, per_shard: int) -> None:
        self._name, self._work, self._per_shard = name, work, per_shard
        self._images: list[tuple[str, str | None]] = []
        self.rows = folders.JsonlWriter(work / "dataset" / f"{name}.jsonl")
        self.num_captions = 0
        self.shards: list[Shard] = []

    def __enter__(self) -> "_SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.rows.__exit__()
        if self._images:
            self._close_shard()

    def add(self, record: Record, image: Path) -> None:
        references = record.references
        self.rows.write(
            {
                "image_id": record.image_id,
                "references": references,
                "source": record.source,
                "width": record.width,
                "height": record.height,
            }
        )
        self.num_captions += len(references)
        self._images.append((str(image), record.sha256))
        if len(self._images) == self._per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        shard = Shard(f"{self._name}-{len(self.shards):05d}", len(self._images))
        (self._work / f"{shard.name}.json").write_text(json.dumps(self._images), encoding="utf-8")
        self.shards.append(shard)
        self._images = []


def _make(shard: Shard, *, work: Path, image_size: int) -> Made:
    """Write one shard, unless it is there and its bytes are those that were recorded."""
    target, record = work / "dataset" / f"{shard.name}.npy", work / f"{shard.name}.sha256"
    if target.exists() and record.exists():
        digest = folders.sha256_file(target)
        if digest == record.read_text():
            return Made(digest, reused=True)
    images = json.loads((work / f"{shard.name}.json").read_text(encoding="utf-8"))
    scratch = work / f"{shard.name}.{uuid.uuid4().hex}.partial"
    try:
        pixels = (_pixels(Path(path), sha256, image_size) for path, sha256 in images)
        shape = (shard.num_images, image_size, image_size, 3)
        digest = _write_array(scratch, shape, pixels)
        scratch.rename(target)
    finally:
        scratch.unlink(missing_ok=True)
    record.write_text(digest)
    return Made(digest, reused=False)


def _write_array(path: Path, shape: Sequence[int], images: Iterable[np.ndarray]) -> str:
    """A .npy of uint8 images, written as they come, so that one is in memory; the file's digest.

    Not through a memory map: where the disk is full, that kills the process with SIGBUS.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
    )
    digest = hashlib.sha256(header.getvalue())
    with path.open("wb") as file:
        file.write(header.getvalue())
        for image in images:
            file.write(image.data)
            digest.update(image.data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file is on the disk; done here, while the next shards are being made."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _pixels(path: Path, sha256: str, image_size: int) -> np.ndarray:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageChanged(f"{path}: gone since it was validated; ingest again.") from None
    if folders.sha256(data) != sha256:
        raise ImageChanged(f"{path}: changed since it was validated; ingest it again.")
    image = decode(data, max_pixels=sys.maxsize, side=image_size)  # the checks have counted them
    return to_pixels(image, image_size)


@contextmanager
def _ours_alone(folder: Path) -> Iterator[Path]:
    """Hold a folder that is there until somebody removes it; a second run waits for the first."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # whoever held it has just removed it
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the kernel lets go of it if we are killed
            if folder.exists() and folder.stat().st_ino == os.fstat(handle).st_ino:
                yield folder
                return
        finally:
            os.close(handle)
