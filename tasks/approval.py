"""Approval: a person decides where statistics can't, from the Prefect UI or a command line."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect import get_client, get_run_logger, pause_flow_run
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.states import Running
from pydantic import Field

from tasks.artifacts import publish
from tasks.refs import Verdict, VersionRef
from tasks.registry import lineage

FLOW = "approval"
_POLL_SECONDS = 2
_TAKEN_UP_SECONDS = 60.0
_SOMETHING = r"\S"


class NothingWaits(ValueError):
    """No run waits for the answer that was given."""


class NotTakenUp(RuntimeError):
    """The answer is stored, but the process that asked for it is gone."""


class Answer(RunInput):
    """What a person says; the form of the UI's Resume button."""

    # A switch, since a list of choices does not open by mouse in this form (Prefect 3.8).
    approve: bool = Field(
        False, title="Approve", description="On: it becomes the champion. Off: it is rejected."
    )
    name: str = Field(title="Your name", pattern=_SOMETHING, max_length=100)
    comment: str = Field(
        title="Why", description="Stays on the model version.", pattern=_SOMETHING, max_length=2000
    )


def ask(challenger: VersionRef, verdict: Verdict, hours: float) -> Verdict:
    """Pauses the flow run that calls this until somebody answers; no answer is a rejection.

    The answer is written on the challenger's version, and the verdict's first reason.
    """
    deadline = datetime.now(UTC) + timedelta(hours=hours)
    asked = _question(challenger, verdict, deadline)
    publish("approval", asked, f"{challenger} waits for a person")
    get_run_logger().warning("%s", asked)
    try:
        said = pause_flow_run(
            wait_for_input=Answer.with_initial_data(description=asked),
            timeout=round(3600 * hours),
            poll_interval=_POLL_SECONDS,
        )
    except FlowPauseTimeout:
        _go_on()
        said = Answer(approve=False, name="nobody", comment=f"no answer within {hours:g} hours")
    decided = _with(verdict, said)
    lineage.record_answer(challenger, decided, said.comment)
    get_run_logger().info("%s: %s", challenger, decided.reasons[0])
    publish("approval", f"{decided.reasons[0]}\n\n{asked}", f"{challenger} was decided on")
    return decided


@dataclass(frozen=True)
class Question:
    """What a paused flow run asks, and until when."""

    run: FlowRun
    challenger: VersionRef
    verdict: Verdict
    deadline: datetime

    @classmethod
    def of(cls, run: FlowRun) -> "Question":
        assert run.state is not None
        deadline = run.state.state_details.pause_timeout
        assert deadline is not None
        return cls(
            run,
            VersionRef.model_validate(run.parameters["challenger"]),
            Verdict.model_validate(run.parameters["verdict"]),
            deadline,
        )


def waiting(name: str) -> list[Question]:
    """What still waits for an answer about model `name`, the newest version first."""
    with get_client(sync_client=True) as client:
        paused = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
            ),
        )
    asked = [question for run in paused if (question := Question.of(run)).challenger.name == name]
    living = (question for question in asked if question.deadline > datetime.now(UTC))
    return sorted(living, key=lambda question: question.challenger.version, reverse=True)


def give(answer: Answer, name: str, version: int | None) -> VersionRef:
    """Answers what is asked about `version` of model `name`, or the one that is asked about.

    Returns when the flow goes on. Raises NothingWaits, also where several wait and none is named,
    and NotTakenUp.
    """
    found = [asked for asked in waiting(name) if version in (None, asked.challenger.version)]
    if not found:
        which = name if version is None else f"{name} v{version}"
        raise NothingWaits(f"nothing waits for an answer about {which}")
    if len(versions := {asked.challenger.version for asked in found}) > 1:
        named = ", ".join(f"v{number}" for number in sorted(versions))
        raise NothingWaits(f"{named} of {name} wait for an answer: name one with --version")
    _resume([asked.run for asked in found], answer)
    return found[0].challenger


def _resume(runs: list[FlowRun], answer: Answer) -> None:
    """All that ask the same: one may be left of a process that is gone."""
    with get_client(sync_client=True) as client:
        for run in runs:
            done = client.resume_flow_run(run.id, run_input=answer.model_dump())
            if done.status is not SetStateStatus.ACCEPT:
                reason = getattr(done.details, "reason", done.status.value)
                raise NothingWaits(f"flow run {run.name} took no answer: {reason}")
        until = time.monotonic() + _TAKEN_UP_SECONDS
        while time.monotonic() < until:
            states = [client.read_flow_run(run.id).state for run in runs]
            if any(state is not None and state.is_final() for state in states):
                return
            time.sleep(_POLL_SECONDS / 4)
    raise NotTakenUp(
        f"flow run {runs[0].name} does not go on: its process seems to be gone. Run the training "
        "flow again; what is done is a cache hit, and it will ask again."
    )


def _question(challenger: VersionRef, verdict: Verdict, deadline: datetime) -> str:
    return "\n".join(_question_lines(challenger, verdict, deadline))


def _question_lines(challenger: VersionRef, verdict: Verdict, deadline: datetime) -> Iterator[str]:
    yield f"Shall **{challenger}** become the champion? The gate can't tell:"
    yield ""
    yield from (f"- {reason}" for reason in verdict.reasons)
    yield ""
    yield (
        f"Answer until {deadline:%Y-%m-%d %H:%M} UTC by this run's Resume button, or by "
        f"`python -m flows.approval CONFIG --approve --comment WHY` (or `--reject`). "
        "Without an answer the champion stays."
    )


def _with(verdict: Verdict, answer: Answer) -> Verdict:
    how = "approved" if answer.approve else "rejected"
    return Verdict(
        decision="promote" if answer.approve else "reject",
        reasons=(f"{how} by {answer.name}: {answer.comment}", *verdict.reasons),
        by=answer.name,
    )


def _go_on() -> None:
    """Prefect fails whatever leaves a pause after its time; that nobody answered is no failure."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(context.flow_run.id, Running(), force=True)
