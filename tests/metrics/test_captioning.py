"""What is measured is what the serving engine says of the test images, slice by slice."""

import numpy as np
import pytest

from bentos.captioner.generation import Generation
from configs.schema import EvaluateConfig
from tasks.drift import reference
from tasks.metrics import captioning
from tasks.metrics.evaluation import Evaluation, SliceEvaluation

CONFIG = EvaluateConfig(batch_size=3, max_new_tokens=6, gallery_images=6)
MIXED = ("scenes", "feedback", "csv", "scenes", "feedback", "scenes", "scenes")


def evaluate(engine, dataset, shares=None):
    return captioning.evaluate(engine, dataset, CONFIG, [].append if shares is None else shares)


def test_feedback_is_judged_apart_from_all_other_sources(engine, dataset):
    slices = evaluate(engine, dataset(*MIXED)).evaluation.slices
    assert slices["test"].image_ids == ["i0", "i2", "i3", "i5", "i6"]
    assert slices["current"].image_ids == ["i1", "i4"]


def test_without_feedback_there_is_no_current_slice(engine, dataset):
    assert evaluate(engine, dataset("scenes", "csv")).evaluation.slices.keys() == {"test"}


def test_feedback_alone_makes_a_current_slice_and_no_empty_one(engine, dataset):
    assert evaluate(engine, dataset("feedback")).evaluation.slices.keys() == {"current"}


def test_what_is_scored_is_what_the_engine_says(engine, dataset):
    prepared = dataset(*MIXED)
    found = evaluate(engine, prepared)
    split = prepared.split("test").where(exclude_source="feedback")
    captions = engine.caption(np.asarray(split.pixels), Generation(6))
    part = found.evaluation.slices["test"]
    assert part.predictions == [caption.text for caption in captions]
    assert part.log_probabilities == pytest.approx([c.log_probability for c in captions], abs=1e-3)
    assert part.references == split.references
    independent = SliceEvaluation.of(
        split.image_ids, part.predictions, split.references, part.log_probabilities
    )
    assert part.corpus == independent.corpus
    _, embeddings = engine.run(np.asarray(split.pixels), Generation(1))
    np.testing.assert_allclose(found.embeddings["test"], embeddings, atol=1e-5)


def test_a_model_is_judged_by_the_limits_of_the_config_and_by_its_own_prompt(
    engine, dataset, monkeypatch
):
    prepared = dataset("scenes", "scenes", "scenes")
    monkeypatch.setattr(engine, "card", {"generation": {"max_new_tokens": 2, "prompt": "a large"}})
    said = evaluate(engine, prepared).evaluation.slices["test"].predictions
    prompted = engine.caption(prepared.split("test").pixels[:], Generation(6, prompt="a large"))
    assert said == [caption.text for caption in prompted]


def test_progress_rises_over_both_slices_to_one(engine, dataset):
    shares: list[float] = []
    evaluate(engine, dataset(*MIXED), shares.append)
    assert shares == [3 / 7, 5 / 7, 7 / 7]


def test_the_saved_folder_has_scores_galleries_and_the_drift_reference(engine, dataset, tmp_path):
    prepared = dataset(*MIXED)
    found = evaluate(engine, prepared)
    ref = found.save(tmp_path / "evaluations", CONFIG.gallery_images)
    assert {path.name for path in ref.path.iterdir()} == {
        "evaluation.json",
        "reference.npz",
        "gallery-test.html",
        "gallery-current.html",
    }
    assert ref.path == tmp_path / "evaluations" / ref.digest
    assert Evaluation.load(ref.path).digest == ref.digest == found.evaluation.digest
    assert ref.cider == {n: s.corpus["cider"] for n, s in found.evaluation.slices.items()}
    assert [path.name for path in (tmp_path / "evaluations").iterdir()] == [ref.digest]


@pytest.mark.parametrize(("sources", "production"), [(MIXED, "current"), (MIXED[2:4], "test")])
def test_the_drift_reference_is_what_production_should_look_like(
    engine, dataset, tmp_path, sources, production
):
    found = evaluate(engine, dataset(*sources))
    kept = reference.load(found.save(tmp_path / "out", 6).path)
    images = found.images[production]
    assert kept.image_ids == images.image_ids
    np.testing.assert_array_equal(kept.embeddings, found.embeddings[production])
    np.testing.assert_allclose(kept.brightness, [p.mean() / 255 for p in images.pixels])
    expected = found.evaluation.slices[production].log_probabilities
    np.testing.assert_array_equal(kept.log_probabilities, expected)


def test_saving_the_same_again_changes_nothing(engine, dataset, tmp_path):
    found = evaluate(engine, dataset(*MIXED))
    first = found.save(tmp_path / "out", 6)
    before = {path.name: path.read_bytes() for path in first.path.glob("*.html")}
    assert found.save(tmp_path / "out", 6) == first
    assert {path.name: path.read_bytes() for path in first.path.glob("*.html")} == before


def test_the_report_has_a_row_a_slice_and_a_gallery_each(engine, dataset):
    text = evaluate(engine, dataset(*MIXED)).markdown(6)
    assert "| test | 5 |" in text
    assert "| current | 2 |" in text
    assert text.count("### Worst") == 2
    header, rule = text.splitlines()[:2]
    assert header.count("|") == rule.count("|")
