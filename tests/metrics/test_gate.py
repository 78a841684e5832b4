"""The gate's verdict follows its rules on every combination of evaluations, and never raises."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.schema import GateConfig
from tasks.metrics.evaluation import Cost, Evaluation, SliceEvaluation
from tasks.metrics.gate import compare, judge, table

CONFIG = GateConfig(floors={"cider": 4.0, "bleu_4": 0.5}, resamples=2000, min_images=10)
RANKED = ["reject", "needs_approval", "promote"]


def part(cider, ids=None, corpus=None, predictions=None) -> SliceEvaluation:
    cider = np.asarray(cider, float)
    ids = [str(i) for i in range(len(cider))] if ids is None else list(ids)
    return SliceEvaluation(
        image_ids=ids,
        predictions=["a dog"] * len(ids) if predictions is None else predictions,
        references=[["a dog"]] * len(ids),
        log_probabilities=[-1.0] * len(ids),
        corpus={"cider": 5.0, "bleu_4": 0.9} if corpus is None else corpus,
        per_image={"cider": cider},
    )


def evaluation(cost=None, **slices) -> Evaluation:
    return Evaluation(
        slices={
            name: value if isinstance(value, SliceEvaluation) else part(value)
            for name, value in slices.items()
        },
        cost=cost,
    )


def noisy(mean, n=60, seed=0):
    return mean + np.random.default_rng(seed).normal(scale=0.3, size=n)


def decide(candidate, champion=None, exists=None, config=CONFIG):
    exists = champion is not None if exists is None else exists
    return judge(candidate, champion, config, champion_exists=exists)


def having(**keys):
    return CONFIG.model_copy(update=keys)


@pytest.mark.parametrize(
    ("corpus", "decision"),
    [
        (None, "promote"),
        ({"cider": 4.0, "bleu_4": 0.5}, "promote"),
        ({"cider": 3.99, "bleu_4": 0.9}, "reject"),
        ({"cider": math.nan, "bleu_4": 0.9}, "reject"),
        ({"cider": 5.0}, "reject"),
    ],
)
def test_every_candidate_must_clear_every_floor(corpus, decision):
    candidate = evaluation(test=part(noisy(5), corpus=corpus))
    first, later = decide(candidate), decide(candidate, evaluation(test=noisy(1, seed=1)))
    assert first.decision == later.decision == decision
    assert len(first.reasons) == len(later.reasons) == 3
    if decision == "reject":
        assert "floor" in first.reasons[0]
        assert "floor" in later.reasons[0]


def test_without_floors_the_first_model_needs_a_person():
    verdict = decide(evaluation(test=noisy(1)), config=having(floors={}))
    assert verdict.decision == "needs_approval"
    assert "gate.floors is empty" in verdict.reasons[0]


@pytest.mark.parametrize(("cider", "decision"), [(5.0, "needs_approval"), (3.0, "reject")])
def test_a_first_model_on_too_few_images_is_never_promoted(cider, decision):
    corpus = {"cider": cider, "bleu_4": 0.9}
    verdict = decide(evaluation(test=part(noisy(cider, n=9), corpus=corpus)))
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
    candidate = evaluation(test=noisy(test, seed=2), current=noisy(current, seed=2))
    assert decide(candidate, champion).decision == decision


@pytest.mark.parametrize(("mean", "decision"), [(5.5, "promote"), (5.0, "reject"), (4, "reject")])
def test_without_current_a_model_must_win_on_test(mean, decision):
    champion = evaluation(test=noisy(5, seed=1))
    assert decide(evaluation(test=noisy(mean, seed=2)), champion).decision == decision


def test_another_slice_may_be_the_one_to_win():
    champion = evaluation(test=noisy(5, seed=1), current=noisy(5, seed=1), golden=noisy(5, seed=1))
    better = noisy(5.5, seed=2)
    candidate = evaluation(test=noisy(5, seed=2), current=noisy(5, seed=2), golden=better)
    assert decide(candidate, champion).decision == "reject"
    assert decide(candidate, champion, config=having(superior_on="golden")).decision == "promote"


def test_a_slice_to_win_that_nobody_was_evaluated_on_needs_a_person():
    config = having(superior_on="golden")
    verdict = decide(evaluation(test=noisy(6)), evaluation(test=noisy(5, seed=1)), config=config)
    assert verdict.decision == "needs_approval"
    assert verdict.reasons[0].startswith("golden: ")


def test_a_slice_may_have_a_margin_of_its_own():
    champion = evaluation(test=noisy(5, seed=1), current=noisy(1), golden=noisy(5, seed=1))
    candidate = evaluation(test=noisy(4.9, seed=1), current=noisy(5), golden=noisy(4.9, seed=1))
    assert decide(candidate, champion).decision == "promote"
    verdict = decide(candidate, champion, config=having(margins={"golden": 0.05}))
    assert verdict.decision == "reject"
    assert verdict.reasons[0].startswith("golden: ")
    assert verdict.reasons[0].endswith("probably worse than the margin 0.05.")


def test_an_ignored_slice_decides_nothing_and_costs_the_others_nothing():
    champion = evaluation(test=noisy(5, seed=1), small=noisy(5, 5))
    candidate = evaluation(test=noisy(6, seed=2), small=noisy(1, 5))
    assert decide(candidate, champion).decision == "needs_approval"
    config = having(ignored=("small",))
    assert decide(candidate, champion, config=config).decision == "promote"
    alone = evaluation(test=noisy(6, seed=2)), evaluation(test=noisy(5, seed=1))
    assert compare(candidate, champion, config) == compare(*alone, config)


def test_the_reason_gives_both_scores_the_difference_its_interval_p_and_the_images():
    champion = evaluation(test=np.full(60, 5.0), current=np.full(60, 0.41))
    candidate = evaluation(test=np.full(60, 5.25), current=np.full(60, 3.92))
    assert decide(candidate, champion).reasons[:2] == (
        "current: CIDEr 0.410 → 3.920, difference +3.510 on 60 images "
        "(95 % interval +3.510 to +3.510, p ≤ 0.001, needed 0.025): better.",
        "test: CIDEr 5.000 → 5.250, difference +0.250 on 60 images "
        "(99 % interval +0.250 to +0.250, p ≤ 0.0005, needed 0.005): "
        "not worse than the margin 0.3.",
    )


def test_what_decided_comes_first():
    champion = evaluation(test=noisy(5, n=9), current=noisy(1), golden=noisy(5))
    candidate = evaluation(test=noisy(5, n=9), current=noisy(2), golden=noisy(3))
    reasons = decide(candidate, champion).reasons
    starts = [reason.partition(":")[0] for reason in reasons]
    assert starts == ["golden", "test", "current", "test", "test"]


def test_not_being_better_is_told_with_what_could_have_been_detected():
    champion, candidate = evaluation(test=noisy(5, seed=1)), evaluation(test=noisy(5, seed=2))
    detectable = compare(candidate, champion, CONFIG)["test"].detectable
    reason = decide(candidate, champion).reasons[0]
    assert reason.endswith(
        f"not shown to be better; 60 images like these detect {detectable:.3f} with 90 % power."
    )
    # Two normal means of 0.3 apart by (z(0.975) + z(0.9)) times the error of their difference.
    assert detectable == pytest.approx(3.24 * 0.3 * math.sqrt(2 / 60), rel=0.25)


def test_a_clearly_worse_model_is_called_worse():
    verdict = decide(evaluation(test=noisy(4, seed=2)), evaluation(test=noisy(5, seed=1)))
    assert "worse; " in verdict.reasons[0]


def test_a_model_that_scores_the_same_everywhere_is_no_different():
    same = evaluation(test=noisy(5), current=noisy(1))
    verdict = decide(same, same)
    assert verdict.decision == "reject"
    assert verdict.reasons[0].endswith("no different, both score the same on every image.")


def test_better_on_too_few_images_that_differ_needs_a_person():
    scores = noisy(5)
    better = scores + np.where(np.arange(60) < 9, 1, 0)
    verdict = decide(evaluation(test=better), evaluation(test=scores))
    assert verdict.decision == "needs_approval"
    assert verdict.reasons[0].endswith(
        "better, but only 9 of 60 images differ in score, 10 should."
    )


def test_what_few_differing_images_could_show_is_not_claimed():
    scores, production = noisy(5), noisy(1)
    worse = scores - np.where(np.arange(60) < 20, 0.6, 0)
    champion = evaluation(test=scores, current=production)
    verdict = decide(evaluation(test=worse, current=production + noisy(2, seed=3)), champion)
    assert verdict.decision == "needs_approval"
    assert verdict.reasons[0].endswith(
        "too few to tell of the margin 0.3; only 20 of 60 images differ in score: "
        "too few to say more."
    )


def test_too_few_images_need_a_person():
    verdict = decide(evaluation(test=noisy(6, n=9)), evaluation(test=noisy(5, n=9)))
    assert verdict.decision == "needs_approval"
    assert "only 9 shared images, 10 are needed" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("golden", "images", "decision", "told"),
    [
        (5.0, 2000, "promote", "not worse than the margin 0.1"),
        (4.92, 900, "reject", "may be worse than the margin 0.1; 900 images like these detect 0.0"),
        (5.0, 60, "needs_approval", "too few to tell of the margin 0.1; 60 images like these det"),
        (4.0, 60, "reject", "probably worse than the margin 0.1"),
    ],
)
def test_not_shown_to_be_harmless_is_a_no_only_where_the_slice_could_have_shown_it(
    golden, images, decision, told
):
    champion = evaluation(test=noisy(5, seed=1), golden=noisy(5, images, seed=1))
    candidate = evaluation(test=noisy(6, seed=2), golden=noisy(golden, images, seed=4))
    verdict = decide(candidate, champion, config=having(margins={"golden": 0.1}))
    assert verdict.decision == decision
    assert told in next(reason for reason in verdict.reasons if reason.startswith("golden"))


def test_more_slices_ask_for_stronger_evidence():
    champion, candidate = noisy(5, 200, seed=1), noisy(5.06, 200, seed=2)
    alone = compare(evaluation(test=candidate), evaluation(test=champion), CONFIG)["test"]
    assert alone.adjusted == alone.p_value
    among = compare(
        evaluation(test=candidate, a=champion - 1, b=champion - 1),
        evaluation(test=champion, a=champion, b=champion),
        CONFIG,
    )["test"]
    assert among.p_value == alone.p_value
    assert among.adjusted == pytest.approx(3 * alone.p_value)
    assert among.detectable > alone.detectable


def test_a_clear_failure_is_rejected_even_if_another_slice_is_too_small():
    champion = evaluation(test=noisy(5, n=5), current=noisy(1))
    assert decide(evaluation(test=noisy(5, n=5), current=noisy(0)), champion).decision == "reject"


def test_different_images_are_compared_on_the_shared_ones_and_it_says_so():
    champion = evaluation(test=part(noisy(5), ids=[str(i) for i in range(60)]))
    candidate = evaluation(test=part(noisy(6), ids=[str(i) for i in range(20, 80)]))
    verdict = decide(candidate, champion)
    assert verdict.decision == "promote"
    assert "compared on the 40 shared" in verdict.reasons[1]
    assert compare(candidate, champion, CONFIG)["test"].num_shared == 40


@pytest.mark.parametrize("config", [CONFIG, having(floors={})])
def test_no_shared_image_needs_a_person(config):
    champion = evaluation(test=part(noisy(5), ids=[f"old-{i}" for i in range(60)]))
    assert decide(evaluation(test=noisy(6)), champion, config=config).decision == "needs_approval"


@pytest.mark.parametrize("only", ["candidate", "champion"])
def test_a_slice_that_only_one_side_has_needs_a_person(only):
    champion, candidate = evaluation(test=noisy(5)), evaluation(test=noisy(6, seed=1))
    golden = {"golden": part(noisy(5))}
    if only == "champion":
        champion = Evaluation(slices=champion.slices | golden)
    else:
        candidate = Evaluation(slices=candidate.slices | golden)
    verdict = decide(candidate, champion)
    assert verdict.decision == "needs_approval"
    assert verdict.reasons[0] == f"golden: only the {only} was evaluated on it."


def test_an_unreadable_champion_needs_a_person():
    assert decide(evaluation(test=noisy(6)), None, exists=True).decision == "needs_approval"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_champion_with_scores_that_are_no_numbers_needs_a_person(bad):
    champion = evaluation(test=[bad, *noisy(5)[1:]])
    verdict = decide(evaluation(test=noisy(6)), champion)
    assert verdict.decision == "needs_approval"
    assert verdict.reasons[0].endswith("the champion's scores are not all numbers.")


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


@pytest.mark.parametrize("exists", [True, False])
def test_collapsed_captions_need_a_person_whatever_their_score(exists):
    # Every reference is the same, so a person is the only measure of what captions may repeat.
    said = ["dog " * 12] * 60
    champion = evaluation(test=noisy(1, seed=1)) if exists else None
    verdict = decide(evaluation(test=part(noisy(6), predictions=said)), champion)
    assert verdict.decision == "needs_approval"
    assert verdict.reasons[0].startswith("test: the captions have collapsed: ")


@pytest.mark.parametrize(
    ("cost", "decision", "told"),
    [
        (Cost(latency_seconds=0.05, size_bytes=4_000_000, device="cpu"), "promote", "0.05 seconds"),
        (Cost(latency_seconds=0.051, size_bytes=1, device="cpu"), "reject", "0.051 seconds"),
        (Cost(latency_seconds=0.01, size_bytes=4_000_001, device="cpu"), "reject", "4,000,000"),
        (Cost(latency_seconds=math.nan, size_bytes=1, device="cpu"), "needs_approval", "measured"),
        (None, "needs_approval", "not measured"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_budget_is_kept_missed_or_unmeasured(cost, decision, told, exists):
    config = having(max_latency_seconds=0.05, max_size_bytes=4_000_000)
    champion = evaluation(test=noisy(5, seed=1)) if exists else None
    verdict = decide(evaluation(cost=cost, test=noisy(6)), champion, config=config)
    assert verdict.decision == decision
    told_first = verdict.reasons if decision == "promote" else verdict.reasons[:2]
    assert told in " ".join(told_first)


def test_levels_that_so_few_resamples_can_not_tell_are_refused():
    with pytest.raises(ValidationError, match="set resamples to 2000 or more"):
        GateConfig(resamples=1999)
    assert GateConfig(resamples=1000, margin_alpha=0.01)


def test_the_figures_are_plain_json_whatever_the_scores():
    champion = evaluation(test=noisy(5, seed=1), current=[math.nan] * 60)
    found = compare(evaluation(test=noisy(5), current=noisy(5)), champion, CONFIG)
    figures = {name: comparison.figures() for name, comparison in found.items()}
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["test"].keys() >= {"champion", "candidate", "difference", "low", "high"}
    assert figures["test"]["low"] <= figures["test"]["difference"] <= figures["test"]["high"]
    assert figures["current"]["low"] is None
    assert not figures["current"]["shown"]


def test_the_table_has_a_row_a_slice_and_none_without_a_comparison():
    champion = evaluation(test=noisy(5, seed=1), current=noisy(1, seed=1))
    candidate = evaluation(test=noisy(5, seed=2), current=noisy(4, seed=2))
    lines = table(compare(candidate, champion, CONFIG)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| current", "| test"]
    assert lines[2].endswith("| better |")
    assert lines[3].endswith("| not worse by 0.3 |")
    assert table({}) == ""


scores = st.one_of(
    st.floats(0, 10), st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 1e100])
)
slices = st.lists(
    st.tuples(st.integers(0, 30), scores), max_size=20, unique_by=lambda pair: pair[0]
).map(lambda pairs: part([value for _, value in pairs], ids=[str(key) for key, _ in pairs]))
bare = slices.map(lambda value: value.model_copy(update={"per_image": {}, "corpus": {}}))
silent = slices.map(
    lambda value: value.model_copy(update={"predictions": [""] * len(value.image_ids)})
)
costs = st.one_of(
    st.none(),
    st.builds(Cost, latency_seconds=scores, size_bytes=st.integers(0), device=st.just("cpu")),
)
names = st.sampled_from(["test", "current", "golden", "other"])
evaluations = st.one_of(
    st.none(),
    st.builds(
        Evaluation,
        slices=st.dictionaries(names, st.one_of(slices, bare, silent), min_size=1),
        cost=costs,
    ),
)
configs = st.builds(
    GateConfig,
    floors=st.sampled_from([{}, {"cider": 4.0, "bleu_4": 0.5}]),
    superior_on=st.one_of(st.none(), names),
    margins=st.dictionaries(names, st.floats(0.01, 20)),
    ignored=st.lists(names).map(tuple),
    resamples=st.just(2000),
    min_images=st.integers(1, 12),
    max_latency_seconds=st.one_of(st.none(), st.floats(0.01, 1)),
    max_size_bytes=st.one_of(st.none(), st.integers(1, 1000)),
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(evaluations, evaluations, st.booleans(), configs)
@settings(max_examples=300, deadline=None)
def test_every_combination_has_one_repeatable_verdict(candidate, champion, exists, config):
    verdict = judge(candidate, champion, config, champion_exists=exists)
    assert verdict.reasons
    assert all(reason[-1] == "." and "\n" not in reason for reason in verdict.reasons)
    assert verdict == judge(candidate, champion, config, champion_exists=exists)
    if candidate is None:
        assert verdict.decision == "reject"
    if exists and champion is None:
        assert verdict.decision != "promote"
    if candidate is not None and champion is not None:
        for comparison in compare(candidate, champion, config).values():
            json.dumps(comparison.figures(), allow_nan=False)


@given(
    st.integers(0, 99),
    st.floats(4, 6),
    st.floats(4, 6),
    st.integers(5, 80),
    st.floats(0, 3),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_candidate_that_is_better_by_the_same_everywhere_is_never_judged_worse(
    seed, test, current, images, more, only_test
):
    champion = {"test": noisy(5, seed=1), "current": noisy(5, images, seed=1)}
    candidate = {"test": noisy(test, seed=seed), "current": noisy(current, images, seed=seed)}
    if only_test:
        del champion["current"], candidate["current"]
    better = {name: cider + more for name, cider in candidate.items()}
    # Shifted, equal scores would differ: another case than the same one, better.
    assume(all((cider != champion[name]).all() for name, cider in (candidate | better).items()))
    before = decide(evaluation(**candidate), evaluation(**champion)).decision
    after = decide(evaluation(**better), evaluation(**champion)).decision
    assert RANKED.index(after) >= RANKED.index(before)
