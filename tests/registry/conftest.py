"""Models of a few bytes in a real registry."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from configs.schema import FinetuneConfig
from tasks.data.folders import sha256
from tasks.drift import reference
from tasks.metrics.evaluation import Evaluation, SliceEvaluation
from tasks.refs import EvaluationRef, ModelRef, PreparedRef
from tasks.registry import runs, versions
from tests.registry import backends

NAME = "shapes"


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedRef:
    """A dataset that is nowhere; only the report of its checks is there."""
    for name in ("report.html", "quarantine.jsonl"):
        (tmp_path / name).write_text(f"all is well: {name}")
    (tmp_path / "report.json").write_text('{"summary": {"read": {"images": 3}}}')
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


@pytest.fixture
def evaluation() -> Evaluation:
    said = ["a red circle", "two blue squares", "a star"]
    part = SliceEvaluation.of(
        ["a", "b", "c"], said, [["a red circle"], ["blue squares"], ["a dog"]], [-1.0, -2.0, -3.0]
    )
    return Evaluation(slices={"test": part})


@pytest.fixture
def evaluated(var, evaluation) -> EvaluationRef:
    folder = var / "evaluations" / evaluation.digest
    evaluation.save(folder)
    rows = np.zeros(3)
    reference.save(
        folder, reference.Reference(["a", "b", "c"], np.eye(3, dtype=np.float32), rows, rows)
    )
    cider = {"test": evaluation.slices["test"].corpus["cider"]}
    return EvaluationRef(uri=str(folder), digest=evaluation.digest, cider=cider)


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The tracking URI of MLflow on a backend, started when first asked for."""
    folder = tmp_path_factory.mktemp("backends")
    with ExitStack() as running:

        @cache
        def uri(kind: str) -> str:
            store = kind.removeprefix("server on ")
            if store == "postgresql":  # each time an empty one
                found = running.enter_context(backends.postgres())
            else:
                found = f"sqlite:///{folder / kind.replace(' ', '-')}.db"
            if store == kind:
                return found
            return running.enter_context(backends.mlflow_server(found, folder / store))

        yield uri


@pytest.fixture(
    params=[
        "sqlite",
        "server on sqlite",
        *(
            pytest.param(
                kind,
                marks=pytest.mark.skipif(
                    backends.postgres_programs() is None and os.environ.get("CI") != "true",
                    reason="no PostgreSQL here: apt-get install postgresql",
                ),
            )
            for kind in ("postgresql", "server on postgresql")
        ),
    ]
)
def backend(
    request: pytest.FixtureRequest,
    stores: Callable[[str], str],
    var: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The tracking URI of a real backend, where `runs.client` looks."""
    uri = stores(request.param)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="session")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Four processes, which have MLflow imported."""
    with ProcessPoolExecutor(4, get_context("spawn"), backends.import_mlflow) as pool:
        yield pool
