"""The dataset as training reads it: decoded once, pixels in memory-mapped shards."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tasks.data import folders

# An open shard holds a file descriptor, and a process may have 1,024 on most machines.
_MOST_OPEN = 256


class PreparedError(ValueError):
    """A folder is not the prepared dataset that it should be."""


class EmptySplit(ValueError):
    """No image is left to train on, to validate with or to test on."""


@dataclass(frozen=True)
class Prepared:
    """What `shards.prepare` made: the folder, its content's digest, and counts."""

    folder: Path
    digest: str
    num_images: int
    num_captions: int
    split_sizes: dict[str, int]
    shards_reused: int

    def trainable(self) -> Self:
        """The same, if a model can be trained, validated and tested on it; else EmptySplit."""
        if empty := [name for name in ("train", "val", "test") if not self.split_sizes.get(name)]:
            counts = ", ".join(f"{name} {size}" for name, size in self.split_sizes.items())
            raise EmptySplit(
                f"no image is in {', '.join(empty)} (there are: {counts}): change data.splits, or "
                "add images."
            )
        return self


class Pixels:
    """Images as a read-only array, uint8 [n, H, W, 3], over shards that are memory-mapped.

    Indexed by a number, a slice or a list or array of numbers, along the first axis only; what is
    returned is a copy. A shard is opened when it is first needed, by each process for itself.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, shards: Sequence[Path], image_size: int) -> None:
        self._shards = list(shards)
        self._image_shape = (image_size, image_size, 3)
        self._open: dict[int, npt.NDArray[np.uint8]] = {}
        sizes = [len(self._opened(path)) for path in self._shards]
        self._starts = np.cumsum([0, *sizes])
        self._places = np.arange(self._starts[-1])

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self), *self._image_shape)

    def __getitem__(
        self, index: int | slice | Sequence[int] | npt.NDArray[np.integer]
    ) -> npt.NDArray[np.uint8]:
        places = np.asarray(self._places[index])
        shards = np.searchsorted(self._starts, places, side="right") - 1
        rows = places - self._starts[shards]
        if not places.ndim:
            return self._shard(int(shards))[int(rows)].copy()
        images = np.empty((len(places), *self._image_shape), np.uint8)
        for place, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            images[place] = self._shard(shard)[row]
        return images

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        return map(self.__getitem__, range(len(self)))

    def where(self, keep: Sequence[bool]) -> "Pixels":
        """Some of the images; none is read."""
        chosen = Pixels.__new__(Pixels)
        chosen.__dict__.update(self.__dict__, _places=self._places[np.flatnonzero(keep)])
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a pickled map would be the whole shard

    def _shard(self, number: int) -> npt.NDArray[np.uint8]:
        shard = self._open.get(number)
        if shard is None:
            if len(self._open) >= _MOST_OPEN:
                self._open.clear()
            shard = self._open[number] = self._opened(self._shards[number])
        return shard

    def _opened(self, path: Path) -> npt.NDArray[np.uint8]:
        try:
            # As a plain array: the map's own class makes every indexing slower.
            shard = np.asarray(np.load(path, mmap_mode="r"))
        except (OSError, EOFError, ValueError) as error:
            raise PreparedError(f"{path}: damaged ({error}); prepare it again.") from error
        if shard.dtype != self.dtype or shard.shape[1:] != self._image_shape:
            raise PreparedError(
                f"{path}: {shard.dtype} {list(shard.shape)} is not uint8 images of "
                f"{list(self._image_shape)}; prepare it again."
            )
        return shard


@dataclass(frozen=True)
class Split:
    """Images of one split: the lists and `pixels` are in the same order.

    `sizes` are the original width and height of each picture, 0 where they are not known.
    """

    image_ids: list[str]
    references: list[list[str]]
    sources: list[str]
    sizes: list[tuple[int, int]]
    pixels: Pixels

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
            list(compress(self.sizes, keep)),
            self.pixels.where(keep),
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
        """`train`, `val`, `test`, or `golden` if there is one; pixels are read when indexed."""
        if name not in self.sizes:
            raise PreparedError(f"no split named {name!r}; there are {', '.join(self.sizes)}.")
        rows = list(folders.read_jsonl(self.folder / f"{name}.jsonl"))
        pixels = Pixels(sorted(self.folder.glob(f"{name}-*.npy")), self.image_size)
        if not len(pixels) == len(rows) == self.sizes[name]:
            raise PreparedError(
                f"{self.folder}: split {name} has {len(pixels)} images and {len(rows)} rows, "
                f"dataset.json says {self.sizes[name]}; prepare it again."
            )
        return Split(
            [row["image_id"] for row in rows],
            [row["references"] for row in rows],
            [row["source"] for row in rows],
            # Older datasets don't say.
            [(row.get("width", 0), row.get("height", 0)) for row in rows],
            pixels,
        )
