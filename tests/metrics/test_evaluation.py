"""Evaluations survive the disk unchanged, and what is no evaluation is refused by name."""

import hashlib
import math

import numpy as np
import pytest
from pydantic import ValidationError

from tasks.metrics.evaluation import FILE, Cost, Evaluation, EvaluationUnreadable, SliceEvaluation
from tasks.metrics.statistics import Interval


@pytest.fixture
def evaluated() -> Evaluation:
    part = SliceEvaluation.of(
        ["a", "b"],
        ["a red circle", "two dogs"],
        [["a red circle", "one red disc"], ["two dogs run"]],
        [-0.1 - 0.2, -math.inf],
    )
    return Evaluation(slices={"test": part})


def test_an_evaluation_read_back_is_the_same_to_the_last_bit(evaluated, tmp_path):
    evaluated.save(tmp_path / "new")
    again = Evaluation.load(tmp_path / "new")
    assert again.digest == evaluated.digest
    before, after = evaluated.slices["test"], again.slices["test"]
    assert after.log_probabilities == before.log_probabilities
    assert after.corpus == before.corpus
    np.testing.assert_array_equal(after.per_image["cider"], before.per_image["cider"])


def test_the_cost_survives_the_disk_and_is_no_part_of_the_digest(evaluated, tmp_path):
    cost = Cost(latency_seconds=0.02, size_bytes=4_000_000, device="cpu")
    measured = evaluated.model_copy(update={"cost": cost})
    assert measured.digest == evaluated.digest
    measured.save(tmp_path)
    assert Evaluation.load(tmp_path).cost == cost


def test_the_digest_follows_the_content(evaluated):
    part = evaluated.slices["test"]
    other = SliceEvaluation.of(
        part.image_ids, ["a red disc", "two dogs"], part.references, part.log_probabilities
    )
    assert Evaluation(slices={"test": other}).digest != evaluated.digest


def test_an_evaluation_of_an_earlier_release_is_read_and_keeps_its_digest(evaluated, tmp_path):
    text = evaluated.model_dump_json(exclude={"cost": True, "slices": {"test": {"intervals"}}})
    (tmp_path / FILE).write_text(text)
    found = Evaluation.load(tmp_path)
    assert found.cost is None
    assert found.slices["test"].intervals == {}
    assert found.digest == hashlib.sha256(text.encode()).hexdigest()


def test_intervals_survive_the_disk(evaluated, tmp_path):
    evaluated.save(tmp_path)
    found = Evaluation.load(tmp_path).slices["test"].intervals
    assert found == evaluated.slices["test"].intervals
    assert isinstance(found["cider"], Interval)


def test_not_a_number_survives_the_disk(evaluated, tmp_path):
    part = evaluated.slices["test"].model_copy(
        update={"per_image": {"cider": np.array([np.nan, 1])}}
    )
    Evaluation(slices={"test": part}).save(tmp_path)
    np.testing.assert_array_equal(
        Evaluation.load(tmp_path).slices["test"].per_image["cider"], [np.nan, 1]
    )


@pytest.mark.parametrize(
    "text", [None, "", "{}", "[1, 2", '{"slices": {}}', '{"slices": {"a": 1}}']
)
def test_what_is_no_evaluation_is_refused_with_its_path(tmp_path, text):
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(EvaluationUnreadable, match=FILE):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"image_ids": ["a"]},
        {"image_ids": ["a", "a"]},
        {"log_probabilities": [0.0]},
        {"per_image": {"cider": [1.0]}},
        {"per_image": {"cider": [[1.0], [2.0]]}},
    ],
)
def test_columns_that_do_not_line_up_are_refused(evaluated, change):
    with pytest.raises(ValidationError):
        SliceEvaluation.model_validate(evaluated.slices["test"].model_dump() | change)
