"""Small real datasets for the data room's tests."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from configs.schema import CsvSource

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "flickr8k_1000"


@pytest.fixture(scope="session")
def photos() -> Path:
    if not PHOTOS.is_dir():
        pytest.skip("the real photos (../shared/data/flickr8k_1000) are not on this machine")
    return PHOTOS


def picture(width: int = 64, height: int = 48, shade: int = 0, kind: str = "JPEG") -> bytes:
    """An encoded picture; every `shade` is another one."""
    data = io.BytesIO()
    Image.new("RGB", (width, height), (shade * 5 % 256, shade % 256, 90)).save(data, kind)
    return data.getvalue()


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., CsvSource]:
    """Writes images and their captions as a CSV source; bytes None make a missing file."""

    def write(images: dict[str, tuple[bytes | None, list[str]]], at: str = "source") -> CsvSource:
        folder = tmp_path / at
        folder.mkdir()
        lines = ["image,caption"]
        for name, (data, captions) in images.items():
            if data is not None:
                (folder / name).write_bytes(data)
            lines += [f'{name},"{caption}"' for caption in captions]
        (folder / "captions.csv").write_text("\n".join(lines) + "\n")
        return CsvSource(format="csv", images=folder, captions=folder / "captions.csv")

    return write
