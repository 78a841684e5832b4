"""Models of a few bytes in a real registry."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.schema import FinetuneConfig
from tasks.data.folders import sha256
from tasks.refs import ModelRef, PreparedRef
from tasks.registry import runs, versions

NAME = "shapes"


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedRef:
    """A dataset that is nowhere; only the report of its checks is there."""
    for name in ("report.html", "report.json", "quarantine.jsonl"):
        (tmp_path / name).write_text(f"all is well: {name}")
    return PreparedRef(
        uri="nowhere",
        digest="d" * 64,
        num_images=3,
        num_captions=9,
        rows_dvc_md5="d" * 32 + ".dir",
        report=str(tmp_path / "report.html"),
        dvc_md5="e" * 32 + ".dir",
        split_sizes={"train": 2, "val": 0, "test": 1},
    )


@pytest.fixture
def logged(var: Path, prepared: PreparedRef) -> Callable[[str], ModelRef]:
    """Logs a model folder whose weights are the given text, by a run of its own."""

    def log(weights: str) -> ModelRef:
        digest = sha256(weights.encode())
        folder = var / "models" / digest
        (folder / "golden").mkdir(parents=True)
        (folder / "model.safetensors").write_text(weights)
        (folder / "golden" / "golden.json").write_text("[]")
        sections = {"finetune": FinetuneConfig()}
        with runs.training(NAME, sections, prepared, 1, "tiny", key=digest) as run_id:
            return versions.log_model(run_id, folder, name=NAME, digest=digest)

    return log
