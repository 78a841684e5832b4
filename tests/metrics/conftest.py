"""An engine with random weights and a prepared dataset of noise, feedback among it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tasks.data import folders
from tasks.data.prepared import PreparedDataset

if TYPE_CHECKING:
    from bentos.captioner.engine import Engine

SIDE = 24
CAPTIONS = ["a large red circle", "two small blue squares", "a green star above a diamond"]


@pytest.fixture(scope="session")
def engine(tiny_model: Path) -> "Engine":
    from bentos.captioner.engine import Engine

    return Engine.load(tiny_model)


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., PreparedDataset]:
    """A dataset whose test split has one image of noise a source named."""

    def make(*sources: str) -> PreparedDataset:
        folder = tmp_path / "prepared"
        folder.mkdir()
        noise = np.random.default_rng(len(sources))
        pixels = noise.integers(0, 256, (len(sources), SIDE, SIDE, 3), dtype=np.uint8)
        np.save(folder / "test-00000.npy", pixels)
        folders.write_jsonl(
            folder / "test.jsonl",
            (
                {"image_id": f"i{n}", "references": CAPTIONS[: 1 + n % 3], "source": source}
                for n, source in enumerate(sources)
            ),
        )
        splits = {"test": {"images": len(sources), "captions": 1}}
        folders.write_json(
            folder / "dataset.json", {"image_size": SIDE, "digest": "0", "splits": splits}
        )
        return PreparedDataset.open(folder)

    return make
