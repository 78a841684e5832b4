"""`python -m tasks.ingest`: what it prints, how it ends, and that nothing needs a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import picture

from configs.settings import ROOT
from tasks.data import pipeline
from tasks.data.prepared import PreparedDataset

KEYS = {
    "read",
    "accepted",
    "quarantined",
    "noted",
    "splits",
    "leaks",
    "digest",
    "dvc_md5",
    "report",
}


@pytest.fixture
def scenario(tmp_path: Path, var: Path, write_csv) -> Path:
    """Forty good images, three of another kind, and one that no caption names."""
    images = {f"{n}.jpg": (picture(shade=n), [f"thing number {n}"]) for n in range(40)}
    images |= {"gone.jpg": (None, ["A dog runs ."]), "empty.jpg": (b"", ["A cat sits ."])}
    images["0.jpg"] = (images["0.jpg"][0], ["thing number 0", ""])
    source = write_csv(images)
    (tmp_path / "source" / "unnamed.jpg").write_bytes(picture(shade=99))
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\nseed: 3\ndata: {{source: {{captions: {source.captions}}}, image_size: 32, "
        "splits: {val: 0.3, test: 0.3}}\n"
    )
    return path


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tasks.ingest", *arguments],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )


def test_an_accepted_dataset_ends_with_0_and_its_counts_as_json(scenario: Path):
    done = run(str(scenario), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.keys() == KEYS
    assert told["read"] == {"images": 42, "captions": 43}
    assert told["accepted"] == {"images": 40, "captions": 40}
    assert told["quarantined"] == {"missing": 1, "empty_file": 1, "caption_empty": 1}
    assert told["noted"] == {"uncaptioned": 1}
    assert sum(told["splits"].values()) == 40
    assert told["dvc_md5"].endswith(".dir")
    assert Path(told["report"]).is_file()
    for stage in ("ingest 42 images", "validate", "prepare"):
        assert stage in done.stderr


def test_what_was_prepared_is_there_and_a_second_run_makes_the_same(scenario, var, capsys):
    runs = []
    for _ in range(2):
        assert pipeline.main([str(scenario), "--json"]) == 0
        runs.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert runs[0] == runs[1]
    folder = var / "datasets" / "prepared" / runs[0]["digest"]
    assert PreparedDataset.open(folder).sizes == runs[0]["splits"]


def test_a_rejected_dataset_ends_with_3_and_names_the_rule_on_stderr(scenario, capsys):
    options = ["data.checks.max_quarantined_share=0", "--json"]
    assert pipeline.main([str(scenario), *options]) == 3
    said = capsys.readouterr()
    assert "rejected: max_quarantined_share: 1 of the 41 images" in said.err
    told = json.loads(said.out.splitlines()[-1])
    assert (told["digest"], told["dvc_md5"]) == (None, None)
    assert told["quarantined"]["empty_file"] == 1
    assert Path(told["report"]).is_file()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.source.captions=nowhere.csv", "nowhere.csv: no such file"),
        ("data.source.capions=x.csv", "no such key; did you mean data.source.captions?"),
        ("data.source.format=karpaty", "expected one of auto, scenes, coco, karpathy"),
    ],
)
def test_a_wrong_config_ends_with_2_and_one_line(scenario, capsys, override, told):
    try:
        code = pipeline.main([str(scenario), override])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert told in error


def test_without_json_the_same_is_told_in_words(scenario, capsys):
    assert pipeline.main([str(scenario)]) == 0
    told = capsys.readouterr().out
    assert "images 42, captions 43" in told
    assert "missing 1" in told


def test_captions_of_photos_that_are_not_here_change_nothing_for_those_that_are(photos, var):
    told = []
    for captions in ("captions.txt", "captions_full.txt"):
        places = [f"data.source.images={photos / 'images'}"]
        places += [f"data.source.captions={photos / captions}"]
        done = run("configs/flickr8k.yaml", *places, "--json")
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout.splitlines()[-1]))
        assert Path(told[-1].pop("report")).is_file()
    here, all_named = told
    assert here == {
        "read": {"images": 1000, "captions": 5000},
        "accepted": {"images": 1000, "captions": 5000},
        "quarantined": {},
        "noted": {},
        "splits": {"train": 799, "val": 107, "test": 94},
        "leaks": 0,
        "digest": all_named["digest"],
        "dvc_md5": all_named["dvc_md5"],
    }
    assert all_named == here | {
        "read": {"images": 8091, "captions": 40455},
        "quarantined": {"missing": 7091},
    }
    folder = var / "datasets" / "prepared" / here["digest"]
    assert PreparedDataset.open(folder).sizes == here["splits"]
