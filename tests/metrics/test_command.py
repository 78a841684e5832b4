"""`python -m tasks.metrics`: published scores to every digit, and files that don't serve."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.metrics import java
from tasks.metrics.__main__ import main

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared/data/reference_scores"
NAMES = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "cider_d"]
REFERENCES = [
    {"image_id": 1, "caption": "A dog runs."},
    {"image_id": 1, "caption": "The dog is running."},
    {"image_id": 2, "caption": "A cat sleeps on a mat"},
]
PREDICTIONS = [{"image_id": "1", "caption": "a dog runs"}, {"image_id": 2, "caption": "a cat"}]

needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="../shared/data/reference_scores is absent"
)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command on these files' contents (text as it is): status, output, errors."""

    def call(references: Any, predictions: Any, *options: str) -> tuple[int, str, str]:
        paths = []
        for name, content in (("r.json", references), ("p.json", predictions)):
            paths.append(tmp_path / name)
            text = content if isinstance(content, str) else json.dumps(content)
            paths[-1].write_text(text, encoding="utf-8")
        given = ["--references", str(paths[0]), "--predictions", str(paths[1]), *options]
        status = main(given)
        return status, *capsys.readouterr()

    return call


@needs_published
def test_nlg_eval_published_scores_to_every_digit_on_tokens_as_they_are(run):
    folder = PUBLISHED / "nlg_eval"
    lines = {n: (folder / f"{n}.txt").read_text().splitlines() for n in ("hyp", "ref1", "ref2")}
    references = [
        {"image_id": i, "caption": caption}
        for name in ("ref1", "ref2")
        for i, caption in enumerate(lines[name])
    ]
    predictions = [{"image_id": i, "caption": caption} for i, caption in enumerate(lines["hyp"])]
    status, output, _ = run(references, predictions, "--json", "--tokenized")
    found = json.loads(output)
    assert (status, found["num_images"], found["missing"]) == (0, 2, [])
    assert [f"{found['scores'][name]:.6f}" for name in NAMES] == [
        *("0.550000", "0.428174", "0.284043", "0.201143", "0.522104", "1.242192", "1.242192")
    ]


@needs_published
@pytest.mark.parametrize(
    ("kind", "published"),
    [
        ("good", ["0.6667", "0.4899", "0.3469", "0.0000", "0.4280", "0.5637"]),
        ("bad", ["0.4815", "0.2404", "0.1359", "0.0000", "0.3121", "0.2790"]),
    ],
)
def test_clipscore_published_scores_to_every_digit_after_tokenisation(run, kind, published):
    folder = PUBLISHED / "clipscore"
    captions = json.loads((folder / "refs.json").read_text())
    predictions = json.loads((folder / f"{kind}_captions.json").read_text())
    references = {
        "images": [{"id": image} for image in captions],
        "annotations": [
            {"image_id": image, "caption": caption}
            for image, several in captions.items()
            for caption in several
        ],
    }
    results = [{"image_id": image, "caption": caption} for image, caption in predictions.items()]
    status, output, _ = run(references, results, "--json")
    scores = json.loads(output)["scores"]
    assert status == 0
    assert [f"{scores[name]:.4f}" for name in NAMES[:-1]] == published


def test_the_json_has_every_score_and_ids_are_compared_as_text(run):
    status, output, errors = run(REFERENCES, PREDICTIONS, "--json")
    found = json.loads(output)
    assert (status, errors) == (0, "")
    assert list(found) == ["scores", "num_images", "missing"]
    assert list(found["scores"]) == NAMES
    assert (found["num_images"], found["missing"]) == (2, [])
    assert found["scores"]["cider_d"] == found["scores"]["cider"]


def test_images_that_cannot_be_scored_are_named_not_guessed(run):
    references = {"images": [{"id": 9}], "annotations": [*REFERENCES]}
    predictions = [PREDICTIONS[0], {"image_id": "new", "caption": "a bird"}]
    _, output, _ = run(references, predictions, "--json")
    assert json.loads(output)["missing"] == ["2", "9", "new"]
    _, output, _ = run(references, predictions)
    assert "1 without a prediction: 2" in output
    assert "2 without a reference: 9, new" in output


def test_many_missing_images_are_cut_with_their_count(run):
    references = [{"image_id": i, "caption": "a dog"} for i in range(500)]
    _, output, _ = run(references, references[:1])
    assert "499 without a prediction: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 489 more" in output


def test_a_person_reads_a_table(run):
    _, output, _ = run(REFERENCES, PREDICTIONS)
    assert output.startswith("2 images scored\n\nBLEU-1 ")
    assert all(title in output for title in ("BLEU-4", "ROUGE-L", "CIDEr", "CIDEr-D"))


@pytest.mark.parametrize(
    ("references", "predictions", "told"),
    [
        ("{", PREDICTIONS, "r.json, line 1, column 2: not JSON"),
        ({"images": []}, PREDICTIONS, "r.json: not COCO annotations"),
        (3, PREDICTIONS, "r.json: not COCO annotations"),
        ([{"caption": "a"}], PREDICTIONS, 'r.json, [0]: expected an object with "image_id"'),
        ([{"image_id": 1.5, "caption": "a"}], PREDICTIONS, "r.json, [0]: expected an object"),
        (
            {"annotations": [*REFERENCES, {"image_id": 1, "caption": None}]},
            PREDICTIONS,
            'r.json, annotations[3]: expected "caption" to be text, got None',
        ),
        ({"images": [7], "annotations": REFERENCES}, PREDICTIONS, "r.json, images[0]: expected"),
        (REFERENCES, {"annotations": PREDICTIONS}, "p.json: not COCO results"),
        (REFERENCES, ["a dog"], "p.json, [0]: expected an object"),
        (
            REFERENCES,
            [*PREDICTIONS, {"image_id": 1, "caption": "b"}],
            "p.json, [2]: a second prediction of image 1: keep one an image",
        ),
        (REFERENCES, [{"image_id": 5, "caption": "a"}], "p.json: none of its 1 images has a"),
        (REFERENCES, [], "p.json: none of its 0 images has a reference"),
    ],
)
def test_a_file_that_does_not_serve_is_told_in_one_line(run, references, predictions, told):
    status, output, errors = run(references, predictions)
    assert (status, output) == (2, "")
    assert told in errors
    assert errors.count("\n") == 1


def test_a_file_that_is_absent_is_named(tmp_path, capsys):
    absent = str(tmp_path / "absent.json")
    assert main(["--references", absent, "--predictions", absent]) == 2
    assert f"{absent}: No such file or directory" in capsys.readouterr().err


def test_extras_that_cannot_run_say_why_and_the_rest_is_scored(run, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    status, output, _ = run(REFERENCES, PREDICTIONS, "--json", "--extra", "meteor,spice")
    found = json.loads(output)
    assert status == 0
    assert list(found["scores"]) == NAMES
    assert set(found["unavailable"]) == {"meteor", "spice"}
    assert "install default-jre-headless" in found["unavailable"]["meteor"]
    _, output, _ = run(REFERENCES, PREDICTIONS, "--extra", "meteor")
    assert "METEOR   not run: it is a Java program" in output


@pytest.mark.skipif(java.why_not("spice") is None, reason="SPICE's models are installed here")
def test_spice_downloads_nothing_unasked(run):
    _, output, _ = run(REFERENCES, PREDICTIONS, "--json", "--extra", "spice")
    assert "spice" in json.loads(output)["unavailable"]


@pytest.mark.skipif(
    java.why_not("meteor") is not None and os.environ.get("CI") != "true",
    reason=str(java.why_not("meteor")),
)
def test_meteor_runs_where_java_is(run):
    _, output, _ = run(REFERENCES, PREDICTIONS, "--json", "--extra", "meteor")
    assert 0 < json.loads(output)["scores"]["meteor"] < 1


def test_an_unknown_extra_is_refused(run):
    with pytest.raises(SystemExit) as refusal:
        run(REFERENCES, PREDICTIONS, "--extra", "bertscore")
    assert refusal.value.code == 2


def test_the_command_starts_without_the_heavy_libraries():
    code = (
        "import sys; from tasks.metrics.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'evaluate', 'prefect', 'pycocoevalcap'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--references R" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
