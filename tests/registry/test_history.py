"""The log says who is champion, whoever wrote at the same moment; the aliases follow it."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.registry import history, runs, versions
from tasks.registry.history import ChampionChanged, Event, HistoryDamaged, chain
from tasks.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, NoSuchVersion

NAME = "shapes"
LOG = f"{NAME}-history"
GATE = {"why": "promoted by the gate", "by": "the training flow"}


@pytest.fixture
def register(logged):
    def registered(weights: str):
        return versions.register(NAME, logged(weights), {"reason": "test"})

    return registered


def put_in_charge(version) -> None:
    history.promote(version, over=history.champion(NAME), **GATE)


def told() -> list[tuple[int | None, int | None, str]]:
    """The events that count."""
    return [(event.version, event.over, event.why) for event in history.settled(NAME)]


def move_by_hand(alias: str, version: int | None) -> None:
    versions.point(NAME, alias, version)


# --- the log alone --------------------------------------------------------------------------------

NOBODY_OR_ONE = st.one_of(st.none(), st.integers(1, 4))
EVENTS = st.builds(
    Event,
    version=NOBODY_OR_ONE,
    over=NOBODY_OR_ONE,
    why=st.just("why"),
    by=st.just("who"),
    at=st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    key=st.text("abcdef", min_size=3, max_size=3),
)


@given(st.lists(EVENTS, max_size=20))
def test_what_counts_is_one_chain_and_what_does_not_count_fits_nowhere(log):
    counted = chain(log)
    for event, after in zip([None, *counted], counted, strict=False):
        assert after.over == (event.version if event else None)
    # Each that is void would have replaced another than who was champion then, or came twice.
    for place, event in enumerate(log):
        before = chain(log[:place])
        if event not in chain(log[: place + 1])[len(before) :]:
            twice = event.key in {each.key for each in log[:place]}
            assert twice or event.over != history.champion_of(before)


@given(st.lists(EVENTS, max_size=20), st.lists(EVENTS, max_size=5))
def test_what_counted_once_counts_for_ever(log, later):
    assert chain(log + later)[: len(chain(log))] == chain(log)


@given(st.lists(EVENTS, min_size=1, max_size=20), st.data())
def test_an_event_that_was_sent_twice_is_one(log, data):
    again = data.draw(st.integers(0, len(log) - 1))
    assert chain([*log, log[again]]) == chain(log)


@given(st.permutations(range(1, 6)))
def test_of_promotions_over_the_same_champion_the_first_in_the_log_counts(order):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    log = [Event(version, None, "why", "who", at, str(version)) for version in order]
    assert chain(log) == log[:1]


# --- in a registry --------------------------------------------------------------------------------


def test_without_a_champion_there_is_nothing_to_go_back_to_and_nothing_is_written(var):
    assert history.champion(NAME) is None
    with pytest.raises(NoSuchVersion, match="no previous champion"):
        history.restorable(NAME, None)
    history.retire(NAME, why="why", by="who")
    assert runs.client().search_registered_models() == []


def test_promotion_moves_the_aliases_and_is_safe_to_repeat(register):
    first = register("first")
    put_in_charge(first)
    assert versions.aliases(NAME) == {CHAMPION: 1}
    second, third = register("second"), register("third")
    put_in_charge(second)
    moved = {CHAMPION: 2, PREVIOUS: 1, CHALLENGER: 3}
    assert versions.aliases(NAME) == moved
    history.promote(second, over=first, **GATE)
    assert versions.aliases(NAME) == moved
    assert len(history.read(NAME)) == 2
    put_in_charge(third)
    assert versions.aliases(NAME) == {CHAMPION: 3, PREVIOUS: 2}


def test_a_challenger_is_not_promoted_over_a_champion_it_was_not_judged_against(register):
    first, second, third = register("first"), register("second"), register("third")
    with pytest.raises(ChampionChanged, match="v2 was to replace v1, but no champion is"):
        history.promote(second, over=first, **GATE)
    put_in_charge(first)
    put_in_charge(second)
    for judged_against in (first, None):
        with pytest.raises(ChampionChanged, match="v2 is champion over v1, promoted by the gate"):
            history.promote(third, over=judged_against, **GATE)
    assert versions.aliases(NAME) == {CHAMPION: 2, PREVIOUS: 1, CHALLENGER: 3}
    assert len(history.read(NAME)) == 2


def test_rollback_goes_to_the_previous_champion_and_never_forward_again_by_itself(register):
    first, second = register("first"), register("second")
    put_in_charge(first)
    put_in_charge(second)
    assert history.restorable(NAME, None) == first
    history.promote(first, over=second, why="rolled back: it lies", by="ann")
    assert versions.aliases(NAME) == {CHAMPION: 1, PREVIOUS: 2}
    with pytest.raises(NoSuchVersion, match=r"rolled back: it lies \(ann.*name the version"):
        history.restorable(NAME, None)
    assert history.restorable(NAME, 2) == second


def test_rollback_takes_only_what_was_champion_once(register):
    first = register("first")
    register("second")
    put_in_charge(first)
    with pytest.raises(NoSuchVersion, match="no previous champion"):
        history.restorable(NAME, None)
    with pytest.raises(NoSuchVersion, match="v1 is champion already"):
        history.restorable(NAME, 1)
    with pytest.raises(NoSuchVersion, match="v2 was never champion"):
        history.restorable(NAME, 2)
    with pytest.raises(NoSuchVersion, match="no version 9"):
        history.restorable(NAME, 9)


def test_a_retired_champion_serves_no_more_and_can_be_put_back(register):
    first = register("first")
    put_in_charge(first)
    register("second")
    history.retire(NAME, why="the demo starts over", by="the demo")
    assert versions.aliases(NAME) == {PREVIOUS: 1, CHALLENGER: 2}
    assert history.champion(NAME) is None
    history.retire(NAME, why="again", by="the demo")
    assert told() == [(1, None, GATE["why"]), (None, 1, "the demo starts over")]
    assert history.restorable(NAME, None) == first


def test_a_person_reads_on_a_version_when_it_was_champion_and_why(register):
    first, second = register("first"), register("second")
    put_in_charge(first)
    history.promote(second, over=first, why="approved: looks fine", by="ann")
    replaced, serving = (
        runs.client().get_model_version(NAME, str(version)).description for version in (1, 2)
    )
    assert "promoted by the gate (the training flow), until 20" in replaced
    assert "v2 approved: looks fine (ann)" in replaced
    assert "approved: looks fine (ann)" in serving
    assert "until" not in serving
    log = runs.client().search_model_versions(f"name = '{LOG}'", order_by=["version_number ASC"])
    assert log[1].description.startswith("v2 is champion over v1, approved: looks fine (ann, 20")
    assert "Don't edit" in runs.client().get_registered_model(LOG).description


# --- what people do in MLflow's own pages ---------------------------------------------------------


@pytest.mark.parametrize("to", [1, 3, None])
def test_an_alias_that_a_person_moved_is_put_on_record_and_stays(register, to):
    first, second = register("first"), register("second")
    register("third")
    put_in_charge(first)
    put_in_charge(second)
    move_by_hand(CHAMPION, to)
    champion = history.champion(NAME)
    assert (champion.version if champion else None) == to
    how = "found removed by hand" if to is None else "found set by hand"
    assert told()[2:] == [(to, 2, how)]
    assert versions.aliases(NAME).get(PREVIOUS) == 2
    assert len(history.read(NAME)) == 3  # put on record once
    with pytest.raises(ChampionChanged):
        history.promote(first if to == 3 else register("fourth"), over=second, **GATE)


def test_a_registry_from_before_the_log_keeps_its_champion_and_the_one_before(register):
    for weights in ("first", "second", "third"):
        register(weights)
    move_by_hand(CHAMPION, 3)
    move_by_hand(PREVIOUS, 1)
    assert history.champion(NAME).version == 3
    assert versions.aliases(NAME) == {CHAMPION: 3, PREVIOUS: 1}
    assert history.restorable(NAME, None).version == 1


def test_a_deleted_champion_leaves_none_and_the_one_before_can_be_put_back(register):
    first, second, third = register("first"), register("second"), register("third")
    for version in (first, second, third):
        put_in_charge(version)
    runs.client().delete_model_version(NAME, "3")
    assert history.champion(NAME) is None
    assert told()[3:] == [(None, 3, "found removed by hand")]
    assert history.restorable(NAME, None) == second
    history.promote(second, over=None, why="rolled back", by="ann")
    assert versions.aliases(NAME) == {CHAMPION: 2, PREVIOUS: 1}


@pytest.mark.parametrize("deleted", ["1", "2", "3"])
def test_without_one_of_its_events_the_log_still_has_the_champion_that_serves(register, deleted):
    for weights in ("first", "second", "third"):
        put_in_charge(register(weights))
    runs.client().delete_model_version(LOG, deleted)
    assert history.champion(NAME).version == 3
    fourth = register("fourth")
    put_in_charge(fourth)
    assert versions.aliases(NAME)[CHAMPION] == 4


def test_without_its_log_a_champion_stays_and_begins_another(register):
    put_in_charge(register("first"))
    put_in_charge(register("second"))
    runs.client().delete_registered_model(LOG)
    assert history.champion(NAME).version == 2
    assert [each[:2] for each in told()] == [(1, None), (2, 1)]


def test_an_event_that_was_tampered_with_is_told_with_the_way_out(register):
    put_in_charge(register("first"))
    runs.client().set_model_version_tag(LOG, "1", "version", "the best")
    with pytest.raises(HistoryDamaged, match=r"shapes-history v1 is no event.*delete that version"):
        history.champion(NAME)
    runs.client().delete_model_version(LOG, "1")
    assert history.champion(NAME).version == 1


# --- what a process that died or dawdled leaves ---------------------------------------------------


def mark(age: timedelta = timedelta()) -> None:
    """What a process leaves that means to move aliases."""
    since = datetime.now(UTC) - age
    runs.client().set_registered_model_tag(LOG, "moving.other", since.isoformat())


def marks() -> set[str]:
    return {key for key in versions.model_tags(LOG) if key.startswith("moving.")}


def test_an_alias_that_a_slow_process_set_too_late_is_put_right_and_not_on_record(register):
    put_in_charge(register("first"))
    put_in_charge(register("second"))
    mark()
    move_by_hand(CHAMPION, 1)  # it read the log before the second promotion
    assert history.champion(NAME).version == 2
    assert versions.aliases(NAME) == {CHAMPION: 2, PREVIOUS: 1}
    assert len(history.read(NAME)) == 2
    assert marks() == {"moving.other"}  # it may still be at work


def test_the_mark_of_a_process_that_died_is_cleared_and_people_are_heard_again(register):
    put_in_charge(register("first"))
    put_in_charge(register("second"))
    mark(timedelta(hours=1))
    assert history.champion(NAME).version == 2
    assert marks() == set()
    move_by_hand(CHAMPION, 1)
    assert history.champion(NAME).version == 1


def test_a_deleted_champion_is_no_obstacle_to_settle_after_a_crash(register):
    put_in_charge(register("first"))
    put_in_charge(register("second"))
    mark()
    runs.client().delete_model_version(NAME, "2")
    assert history.champion(NAME) is None
    assert told()[2:] == [(None, 2, "found deleted")]
