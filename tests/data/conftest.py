"""Small real datasets for the data room's tests."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.schema import TableSource


def picture(width: int = 64, height: int = 48, shade: int = 0, kind: str = "JPEG") -> bytes:
    """An encoded picture; every `shade` is another one, near to none of the others."""
    data = io.BytesIO()
    blots = np.random.default_rng(shade).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC).save(data, kind)
    return data.getvalue()


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., TableSource]:
    """Writes images and their captions as a CSV source; bytes None make a missing file.

    `splits` maps names to what a column says of them.
    """

    def write(
        images: dict[str, tuple[bytes | None, list[str]]],
        at: str = "source",
        splits: Mapping[str, str] | None = None,
    ) -> TableSource:
        folder = tmp_path / at
        folder.mkdir()
        with (folder / "captions.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["image", "caption", *(["split"] if splits else [])])
            for name, (data, captions) in images.items():
                if data is not None:
                    (folder / name).write_bytes(data)
                split = [splits.get(name, "")] if splits else []
                lines.writerows([name, caption, *split] for caption in captions)
        return TableSource(format="csv", images=folder, captions=folder / "captions.csv")

    return write
