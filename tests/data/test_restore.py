"""The dataset of a past run comes back by the run's id, on a machine that has only the remote."""

import shutil
from pathlib import Path

import pytest

from configs.schema import ModelConfig
from tasks.data import pipeline, restore, versioning
from tasks.data.folders import sha256_file
from tasks.refs import PreparedRef
from tasks.registry import runs


@pytest.fixture
def dataset(tmp_path: Path, var: Path, capsys) -> PreparedRef:
    """Prepared and versioned, and the run of a model that was trained on it."""
    from configs.loader import load

    scenario = tmp_path / "mine.yaml"
    scenario.write_text(
        "name: mine\ndata: {source: {format: scenes, count: 60}, splits: {val: 0.2, test: 0.2}}\n"
    )
    config = load(scenario)
    report = pipeline.read_and_check(config, var / "datasets")
    made = pipeline.prepare(report.accepted(), config, var / "datasets" / "prepared")
    return PreparedRef(
        uri=str(made.folder),
        digest=made.digest,
        num_images=made.num_images,
        num_captions=made.num_captions,
        rows_dvc_md5=versioning.version_rows(report.raw),
        report=str(report.page),
        dvc_md5=versioning.version(made.folder, made.digest),
        split_sizes=made.split_sizes,
    )


def trained_on(dataset: PreparedRef) -> str:
    with runs.training("mine", {"model": ModelConfig()}, dataset, 7, "run", key="k") as run_id:
        return run_id


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def test_the_exact_bytes_come_back_from_the_remote(dataset: PreparedRef, var: Path, capsys):
    run_id, before = trained_on(dataset), content(dataset.path)
    shutil.rmtree(var / "dvc")
    shutil.rmtree(var / "datasets")
    assert restore.main([run_id]) == 0
    assert dataset.digest in capsys.readouterr().out
    assert content(dataset.path) == before


def test_it_can_go_to_another_folder_that_must_be_free(dataset, tmp_path, capsys):
    run_id = trained_on(dataset)
    assert restore.main([run_id, "--to", str(tmp_path / "back")]) == 0
    assert content(tmp_path / "back") == content(dataset.path)
    assert restore.main([run_id, "--to", str(tmp_path / "back")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_rows_that_were_read_are_versioned_too(dataset: PreparedRef, tmp_path: Path):
    run_id = trained_on(dataset)
    md5 = runs.client().get_run(run_id).data.tags["dataset_rows_dvc_md5"]
    versioning.restore(md5, tmp_path / "rows")
    names = {path.name for path in (tmp_path / "rows").iterdir()}
    assert names == {"rows.jsonl", "uncaptioned.jsonl", "dataset.json"}


def test_a_run_that_is_not_there_or_had_no_dataset_is_told(var: Path, capsys):
    assert restore.main(["0" * 32]) == 2
    assert "no run" in capsys.readouterr().err
    run = runs.client().create_run(runs.experiment_id("mine"))
    assert restore.main([run.info.run_id]) == 2
    assert "carries no dataset" in capsys.readouterr().err
