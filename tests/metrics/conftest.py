"""An engine with random weights and prepared datasets of noise, feedback among it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
def prepared(tmp_path: Path) -> Callable[..., PreparedDataset]:
    """A dataset of rows by split, every image noise."""
    folder = tmp_path / "prepared"
    folder.mkdir()

    def make(splits: dict[str, list[dict[str, Any]]]) -> PreparedDataset:
        noise = np.random.default_rng(len(splits))
        sizes = {}
        for name, rows in splits.items():
            shape = (len(rows), SIDE, SIDE, 3)
            pixels = noise.integers(0, 256, shape, dtype=np.uint8)
            np.save(folder / f"{name}-00000.npy", pixels)
            folders.write_jsonl(folder / f"{name}.jsonl", rows)
            sizes[name] = {"images": len(rows), "captions": sum(len(r["references"]) for r in rows)}
        card = {"image_size": SIDE, "digest": "0", "splits": sizes}
        folders.write_json(folder / "dataset.json", card)
        return PreparedDataset.open(folder)

    return make


@pytest.fixture
def dataset(prepared: Callable[..., PreparedDataset]) -> Callable[..., PreparedDataset]:
    """A dataset whose test split has one image of noise a source named, and `golden` images."""

    def make(*sources: str, golden: int = 0) -> PreparedDataset:
        rows = {
            "test": [
                {"image_id": f"i{n}", "references": CAPTIONS[: 1 + n % 3], "source": source}
                for n, source in enumerate(sources)
            ],
            "golden": [
                {"image_id": f"g{n}", "references": CAPTIONS[1:], "source": "golden"}
                for n in range(golden)
            ],
        }
        return prepared({name: found for name, found in rows.items() if found})

    return make
