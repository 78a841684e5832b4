"""What is measured is what the serving engine says of the test images, slice by slice."""

import json
import shutil

import numpy as np
import pytest

from bentos.captioner.engine import CARD_FILE, Engine
from bentos.captioner.generation import Generation
from configs.schema import EvaluateConfig, SliceConfig
from tasks.drift import reference
from tasks.metrics import captioning, report
from tasks.metrics.evaluation import Evaluation, SliceEvaluation
from tasks.metrics.scores import score

CONFIG = EvaluateConfig(batch_size=3, max_new_tokens=6)
MIXED = ("scenes", "feedback", "csv", "scenes", "feedback", "scenes", "scenes")


@pytest.fixture
def evaluate(tiny_model):
    def run(dataset, shares=None, model=tiny_model, **changes):
        config = CONFIG.model_validate(CONFIG.model_dump() | changes)
        return captioning.evaluate(model, dataset, config, [].append if shares is None else shares)

    return run


@pytest.fixture
def seen(monkeypatch) -> list[bytes]:
    """Every image that any engine is shown."""
    images: list[bytes] = []
    run = Engine.run

    def watched(self, pixels, generation):
        images.extend(image.tobytes() for image in pixels)
        return run(self, pixels, generation)

    monkeypatch.setattr(Engine, "run", watched)
    return images


def test_feedback_is_judged_apart_from_all_other_sources(evaluate, dataset):
    slices = evaluate(dataset(*MIXED)).evaluation.slices
    assert slices["test"].image_ids == ["i0", "i2", "i3", "i5", "i6"]
    assert slices["current"].image_ids == ["i1", "i4"]


def test_without_feedback_there_is_no_current_slice(evaluate, dataset):
    assert evaluate(dataset("scenes", "csv")).evaluation.slices.keys() == {"test"}


def test_feedback_alone_makes_a_current_slice_and_no_empty_one(evaluate, dataset):
    assert evaluate(dataset("feedback")).evaluation.slices.keys() == {"current"}


def test_what_is_scored_is_what_the_engine_says(engine, evaluate, dataset):
    prepared = dataset(*MIXED)
    found = evaluate(prepared)
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
    evaluate, dataset, tiny_model, tmp_path
):
    model = shutil.copytree(tiny_model, tmp_path / "prompted")
    card = {"generation": {"max_new_tokens": 2, "prompt": "a large"}}
    (model / CARD_FILE).write_text(json.dumps(card))
    prepared = dataset("scenes", "scenes", "scenes")
    said = evaluate(prepared, model=model).evaluation.slices["test"].predictions
    prompted = Engine.load(model).caption(
        prepared.split("test").pixels[:], Generation(6, prompt="a large")
    )
    assert said == [caption.text for caption in prompted]


def test_beams_are_those_of_the_config(engine, evaluate, dataset):
    prepared = dataset(*["scenes"] * 12)
    pixels = prepared.split("test").pixels[:]
    for beams in (1, 3):
        part = evaluate(prepared, num_beams=beams).evaluation.slices["test"]
        expected = engine.caption(pixels, Generation(6, num_beams=beams))
        assert part.predictions == [caption.text for caption in expected]
    greedy = [caption.text for caption in engine.caption(pixels, Generation(6))]
    assert part.predictions != greedy  # else this would show nothing


def test_golden_images_are_a_slice_of_their_own(evaluate, dataset):
    found = evaluate(dataset("scenes", "scenes", golden=3)).evaluation.slices
    assert found["golden"].image_ids == ["g0", "g1", "g2"]
    assert found["test"].image_ids == ["i0", "i1"]


def test_each_image_is_captioned_once_whatever_slices_it_is_in(evaluate, dataset, seen):
    prepared = dataset(*MIXED, golden=2)
    slices = {"any": {"words": "red"}, "all": {"caption_words": {"min": 1}}}
    found = evaluate(prepared, slices=slices).evaluation.slices
    assert set(found["any"].image_ids) == set(found["all"].image_ids) == {*found["test"].image_ids}
    timed = captioning._WARM_UP + len(found["test"].image_ids)  # of the cost
    captioned = seen[:-timed]
    assert len(captioned) == len(set(captioned)) == len(MIXED) + 2


def test_a_slice_keeps_its_scores_of_test_and_its_bleu_is_its_own(evaluate, dataset):
    prepared = dataset(*["scenes"] * 9)
    found = evaluate(prepared, slices={"squares": {"words": "squares"}}).evaluation.slices
    whole, part = found["test"], found["squares"]
    places = [whole.image_ids.index(image_id) for image_id in part.image_ids]
    assert part.image_ids == ["i1", "i2", "i4", "i5", "i7", "i8"]
    assert part.references == [whole.references[place] for place in places]
    assert part.predictions == [whole.predictions[place] for place in places]
    for metric, scores in whole.per_image.items():
        np.testing.assert_array_equal(part.per_image[metric], scores[places])
    alone = score(part.predictions, part.references)
    for order in (1, 2, 3, 4):
        assert part.corpus[f"bleu_{order}"] == pytest.approx(alone.corpus[f"bleu_{order}"])
    assert part.corpus["cider"] == pytest.approx(whole.per_image["cider"][places].mean())


def test_a_slice_without_images_is_told_and_absent(evaluate, dataset, caplog):
    found = evaluate(dataset("scenes", "csv"), slices={"coco": {"source": "coco"}}).evaluation
    assert found.slices.keys() == {"test"}
    assert "slice coco" in caplog.text
    config = EvaluateConfig(slices={"coco": SliceConfig(source=("coco",))})
    assert "Slice coco has no scores" in report.markdown(found, config)


def test_the_cost_is_of_single_images_on_this_device_and_of_all_files(
    evaluate, dataset, tiny_model
):
    cost = evaluate(dataset("scenes", "csv")).evaluation.cost
    assert cost.device == "cpu"
    assert cost.size_bytes == sum(path.stat().st_size for path in tiny_model.iterdir())
    assert 0 < cost.latency_seconds < 10


def test_progress_rises_over_both_slices_to_one(evaluate, dataset):
    shares: list[float] = []
    evaluate(dataset(*MIXED), shares.append)
    assert shares == [3 / 7, 5 / 7, 7 / 7]


def test_the_saved_folder_has_the_scores_and_the_drift_reference(evaluate, dataset, tmp_path):
    found = evaluate(dataset(*MIXED))
    ref = found.save(tmp_path / "evaluations")
    assert {path.name for path in ref.path.iterdir()} == {"evaluation.json", "reference.npz"}
    assert ref.path == tmp_path / "evaluations" / ref.digest
    assert Evaluation.load(ref.path).digest == ref.digest == found.evaluation.digest
    assert ref.cider == {n: s.corpus["cider"] for n, s in found.evaluation.slices.items()}
    assert [path.name for path in (tmp_path / "evaluations").iterdir()] == [ref.digest]


@pytest.mark.parametrize(("sources", "production"), [(MIXED, "current"), (MIXED[2:4], "test")])
def test_the_drift_reference_is_what_production_should_look_like(
    evaluate, dataset, tmp_path, sources, production
):
    found = evaluate(dataset(*sources))
    kept = reference.load(found.save(tmp_path / "out").path)
    images = found.images[production]
    assert kept.image_ids == images.image_ids
    np.testing.assert_array_equal(kept.embeddings, found.embeddings[production])
    np.testing.assert_allclose(kept.brightness, [p.mean() / 255 for p in images.pixels])
    expected = found.evaluation.slices[production].log_probabilities
    np.testing.assert_array_equal(kept.log_probabilities, expected)


def test_evaluating_and_saving_the_same_again_changes_no_score(evaluate, dataset, tmp_path):
    prepared = dataset(*MIXED)
    first = evaluate(prepared).save(tmp_path / "out")
    assert evaluate(prepared).save(tmp_path / "out") == first


def test_the_report_has_a_row_a_slice_with_intervals(evaluate, dataset):
    evaluation = evaluate(dataset(*MIXED)).evaluation
    text = report.markdown(evaluation, CONFIG)
    lines = text.splitlines()
    [row] = [line for line in lines if line.startswith("| test | 5 |")]
    interval = evaluation.slices["test"].intervals["cider"]
    assert f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})" in row
    assert "| current | 2 |" in text
    tables = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in tables[:4]}) == 1
