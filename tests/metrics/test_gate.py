"""The gate's verdict follows its rules on every combination of evaluations, and never raises."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import GateConfig
from tasks.metrics.evaluation import Evaluation, SliceEvaluation
from tasks.metrics.gate import compare, judge

CONFIG = GateConfig(floors={"cider": 4.0, "bleu_4": 0.5}, resamples=200, min_images=10)


def part(cider, ids=None, corpus=None) -> SliceEvaluation:
    cider = np.asarray(cider, float)
    ids = [str(i) for i in range(len(cider))] if ids is None else list(ids)
    mean = float(cider.mean()) if len(cider) else math.nan
    return SliceEvaluation(
        image_ids=ids,
        predictions=["a dog"] * len(ids),
        references=[["a dog"]] * len(ids),
        log_probabilities=[-1.0] * len(ids),
        corpus={"cider": mean, "bleu_4": 0.9} if corpus is None else corpus,
        per_image={"cider": cider},
    )


def evaluation(**slices) -> Evaluation:
    return Evaluation(
        slices={
            name: value if isinstance(value, SliceEvaluation) else part(value)
            for name, value in slices.items()
        }
    )


def noisy(mean, n=40, seed=0):
    return mean + np.random.default_rng(seed).normal(scale=0.3, size=n)


def decide(candidate, champion=None, exists=None, config=CONFIG):
    exists = champion is not None if exists is None else exists
    return judge(candidate, champion, config, champion_exists=exists)


@pytest.mark.parametrize(
    ("cider", "corpus", "decision"),
    [
        (5.0, None, "promote"),
        (4.0, {"cider": 4.0, "bleu_4": 0.5}, "promote"),
        (5.0, {"cider": 3.99, "bleu_4": 0.9}, "reject"),
        (5.0, {"cider": math.nan, "bleu_4": 0.9}, "reject"),
        (5.0, {"cider": 5.0}, "reject"),
    ],
)
def test_a_first_model_must_clear_every_floor(cider, corpus, decision):
    verdict = decide(evaluation(test=part(noisy(cider), corpus=corpus)))
    assert verdict.decision == decision
    assert len(verdict.reasons) == 3


def test_without_floors_the_first_model_needs_a_person():
    verdict = decide(evaluation(test=noisy(1)), config=GateConfig())
    assert verdict.decision == "needs_approval"
    assert "gate.floors is empty" in verdict.reasons[0]


@pytest.mark.parametrize(("cider", "decision"), [(5.0, "needs_approval"), (3.0, "reject")])
def test_a_first_model_on_too_few_images_is_never_promoted(cider, decision):
    verdict = decide(evaluation(test=noisy(cider, n=9)))
    assert verdict.decision == decision
    assert "test: only 9 images, gate.min_images asks for 10." in verdict.reasons


@pytest.mark.parametrize(
    ("test", "current", "decision"),
    [
        (5.0, 4.0, "promote"),  # better where the world moved, as good on the old world
        (4.9, 4.0, "promote"),  # a little worse on the old world, within the margin
        (4.0, 4.0, "reject"),  # forgot the old world
        (5.0, 1.0, "reject"),  # no better where it matters
        (6.0, 0.5, "reject"),
    ],
)
def test_a_retrained_model_must_win_current_and_keep_test(test, current, decision):
    champion = evaluation(test=noisy(5, seed=1), current=noisy(1, seed=1))
    candidate = evaluation(test=noisy(test, seed=1), current=noisy(current, seed=1))
    assert decide(candidate, champion).decision == decision


@pytest.mark.parametrize(("mean", "decision"), [(5.5, "promote"), (5.0, "reject"), (4, "reject")])
def test_without_current_a_model_must_win_on_test(mean, decision):
    champion = evaluation(test=noisy(5, seed=1))
    assert decide(evaluation(test=noisy(mean, seed=1)), champion).decision == decision


def test_the_reason_gives_both_scores_the_difference_and_its_interval():
    champion = evaluation(test=np.full(40, 5.0), current=np.full(40, 0.41))
    candidate = evaluation(test=np.full(40, 5.25), current=np.full(40, 3.92))
    assert decide(candidate, champion).reasons == (
        "current: CIDEr 0.41 → 3.92, difference +3.51 (95 % interval +3.51 to +3.51): better.",
        "test: CIDEr 5.00 → 5.25, difference +0.25 "
        "(95 % interval +0.25 to +0.25): not worse than the margin 0.3.",
    )


def test_too_few_images_need_a_person():
    verdict = decide(evaluation(test=noisy(6, n=9)), evaluation(test=noisy(5, n=9)))
    assert verdict.decision == "needs_approval"
    assert "only 9 shared images, 10 are needed" in verdict.reasons[0]


def test_a_clear_failure_is_rejected_even_if_another_slice_is_too_small():
    champion = evaluation(test=noisy(5, n=5), current=noisy(1))
    assert decide(evaluation(test=noisy(5, n=5), current=noisy(0)), champion).decision == "reject"


def test_different_images_are_compared_on_the_shared_ones_and_it_says_so():
    champion = evaluation(test=part(noisy(5), ids=[str(i) for i in range(40)]))
    candidate = evaluation(test=part(noisy(6, n=40), ids=[str(i) for i in range(20, 60)]))
    verdict = decide(candidate, champion)
    assert verdict.decision == "promote"
    assert "compared on the 20 shared" in verdict.reasons[0]
    assert compare(candidate, champion, CONFIG)["test"].num_shared == 20


def test_no_shared_image_needs_a_person():
    champion = evaluation(test=part(noisy(5), ids=[f"old-{i}" for i in range(40)]))
    assert decide(evaluation(test=noisy(6)), champion).decision == "needs_approval"


def test_an_unreadable_champion_needs_a_person():
    assert decide(evaluation(test=noisy(6)), None, exists=True).decision == "needs_approval"


def test_a_champion_with_scores_that_are_no_numbers_needs_a_person():
    champion = evaluation(test=[math.nan, *noisy(5)[1:]])
    assert decide(evaluation(test=noisy(6)), champion).decision == "needs_approval"


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    "candidate",
    [
        None,
        evaluation(test=[math.nan, *noisy(9)[1:]]),
        evaluation(test=noisy(9), current=[math.inf] * 40),
        evaluation(current=noisy(9)),
        evaluation(test=[]),
    ],
)
def test_a_candidate_that_can_not_be_judged_is_rejected(candidate, exists):
    champion = evaluation(test=noisy(1)) if exists else None
    assert decide(candidate, champion).decision == "reject"


scores = st.one_of(
    st.floats(0, 10), st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308])
)
slices = st.lists(
    st.tuples(st.integers(0, 30), scores), max_size=20, unique_by=lambda pair: pair[0]
).map(lambda pairs: part([value for _, value in pairs], ids=[str(key) for key, _ in pairs]))
bare = slices.map(lambda value: value.model_copy(update={"per_image": {}, "corpus": {}}))
evaluations = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from(["test", "current", "other"]), st.one_of(slices, bare), min_size=1
    ).map(lambda chosen: Evaluation(slices=chosen)),
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(evaluations, evaluations, st.booleans(), st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_every_combination_has_one_repeatable_verdict(candidate, champion, exists, min_images):
    config = CONFIG.model_copy(update={"min_images": min_images, "resamples": 20})
    verdict = judge(candidate, champion, config, champion_exists=exists)
    assert verdict.reasons
    assert verdict == judge(candidate, champion, config, champion_exists=exists)
    if candidate is None:
        assert verdict.decision == "reject"
    if exists and champion is None:
        assert verdict.decision != "promote"
