"""Scores equal published ones, and `evaluate` finds the same numbers offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.metrics import overlap
from tasks.metrics.scores import score

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared/data/reference_scores"
METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")

needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="../shared/data/reference_scores is absent"
)


@needs_published
def test_nlg_eval_published_scores_on_whitespace_tokens():
    lines = {
        name: (PUBLISHED / "nlg_eval" / f"{name}.txt").read_text().splitlines()
        for name in ("hyp", "ref1", "ref2")
    }
    corpus = overlap.Corpus(
        [line.split() for line in lines["hyp"]],
        [[a.split(), b.split()] for a, b in zip(lines["ref1"], lines["ref2"], strict=True)],
    )
    assert overlap.bleu(corpus).corpus == pytest.approx(
        [0.55, 0.428174, 0.284043, 0.201143], abs=1e-6
    )
    assert overlap.rouge_l(corpus).mean() == pytest.approx(0.522104, abs=1e-6)
    assert overlap.cider(corpus).mean() == pytest.approx(1.242192, abs=1e-6)


@needs_published
@pytest.mark.parametrize(
    ("kind", "published"),
    [
        ("good", (0.6667, 0.4899, 0.3469, 0.0, 0.4280, 0.5637)),
        ("bad", (0.4815, 0.2404, 0.1359, 0.0, 0.3121, 0.2790)),
    ],
)
def test_clipscore_published_scores_after_tokenisation(kind, published):
    folder = PUBLISHED / "clipscore"
    predictions = json.loads((folder / f"{kind}_captions.json").read_text())
    references = json.loads((folder / "refs.json").read_text())
    corpus = score(list(predictions.values()), [references[i] for i in predictions]).corpus
    assert tuple(corpus[name] for name in METRICS) == pytest.approx(published, abs=5e-5)


def test_scores_of_every_image_line_up_with_the_corpus():
    scores = score(
        ["a red circle .", "nothing", "a blue square left of it"],
        [["A red circle."], ["A dog", "Dogs"], ["A blue square is left of it."]],
    )
    assert tuple(scores.corpus) == METRICS
    assert {name: len(values) for name, values in scores.per_image.items()} == {
        "bleu_4": 3,
        "rouge_l": 3,
        "cider": 3,
    }
    assert scores.corpus["cider"] == scores.per_image["cider"].mean()
    assert scores.corpus["rouge_l"] == scores.per_image["rouge_l"].mean()
    assert scores.per_image["rouge_l"][0] == pytest.approx(1)
    assert scores.per_image["cider"][1] == 0


def test_scores_do_not_load_the_slow_evaluate_library():
    code = "import sys, tasks.metrics.scores, tasks.metrics.gate; print('evaluate' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_evaluate_loads_the_metrics_offline_and_agrees(tmp_path):
    predictions = ["a red circle .", "a small green star"]
    references = [["A red circle.", "One red disc"], ["There's a small green star"]]
    code = f"""
import evaluate, json
found = {{}}
for name in ("bleu", "rouge_l", "cider", "cider_d"):
    metric = evaluate.load("tasks/metrics/" + name)
    found |= metric.compute(predictions={predictions!r}, references={references!r})
from tasks.metrics.cider_d.cider_d import CiderD
imported = CiderD().compute(predictions={predictions!r}, references={references!r})
assert imported.items() <= found.items(), imported
print("FOUND" + json.dumps(found))
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.split("FOUND")[1])
    scores = score(predictions, references)
    cider = {"cider_d": scores.corpus["cider"]}
    per_image = {name: values for name, values in found.items() if name.endswith("_per_image")}
    assert {n: v for n, v in found.items() if n not in per_image} == scores.corpus | cider
    assert set(per_image) == {f"{name}_per_image" for name in (*METRICS, "cider_d")}
    for name, values in scores.per_image.items():
        assert per_image[f"{name}_per_image"] == values.tolist()
