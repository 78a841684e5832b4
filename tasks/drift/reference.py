"""What the champion saw when it was judged: the side that production is compared with."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE_NAME = "reference.npz"
_PARTS = ("image_ids", "embeddings", "brightness", "log_probabilities")


class BadReference(ValueError):
    """A reference set that is missing, damaged or doesn't fit together."""


@dataclass(frozen=True)
class Reference:
    """One row an image: `embeddings` float32 [n, d] by the champion's engine, `brightness` from
    0 to 1 as the service captures it, `log_probabilities` of the champion's captions."""

    image_ids: list[str]
    embeddings: NDArray[np.float32]
    brightness: NDArray[np.float64]
    log_probabilities: NDArray[np.float64]

    def __post_init__(self) -> None:
        lengths = {
            "image_ids": len(self.image_ids),
            "embeddings": len(self.embeddings),
            "brightness": len(self.brightness),
            "log_probabilities": len(self.log_probabilities),
        }
        if len(set(lengths.values())) != 1 or self.embeddings.ndim != 2:
            raise BadReference(
                f"One row an image in each part, embeddings [n, d]; got {lengths} and "
                f"embeddings {self.embeddings.shape}."
            )

    def sample(self, count: int, seed: int) -> "Reference":
        """`count` rows drawn by `seed`, in the order they had; all of them if there are no more."""
        if count >= len(self.image_ids):
            return self
        drawn = np.random.default_rng(seed).choice(len(self.image_ids), count, replace=False)
        rows = np.sort(drawn)
        return Reference(
            [self.image_ids[row] for row in rows],
            self.embeddings[rows],
            self.brightness[rows],
            self.log_probabilities[rows],
        )


def save(folder: Path, reference: Reference) -> Path:
    """Write the reference into `folder`, which is made if need be; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / FILE_NAME,
        image_ids=np.array(reference.image_ids, dtype=np.str_),
        embeddings=reference.embeddings.astype(np.float32),
        brightness=reference.brightness.astype(np.float64),
        log_probabilities=reference.log_probabilities.astype(np.float64),
    )
    return folder / FILE_NAME


def load(folder: Path) -> Reference:
    """Read what `save` wrote; raises BadReference."""
    path = folder / FILE_NAME
    try:
        with np.load(path, allow_pickle=False) as archive:
            parts = {name: archive[name] for name in _PARTS}
    except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise BadReference(
            f"{path} is no reference set ({error}): promote a champion again to write it."
        ) from error
    return Reference(parts.pop("image_ids").tolist(), **parts)
