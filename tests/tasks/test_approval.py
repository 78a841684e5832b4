"""A person's answer decides, from wherever it comes, and stays on the version; none is a no."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect import flow, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus

from flows import approval as command
from flows.approval import approval
from tasks import approval as room
from tasks.approval import Answer, NothingWaits, NotTakenUp, give, waiting
from tasks.refs import ModelRef, Verdict, VersionRef
from tasks.registry import runs, versions

UNSURE = Verdict(decision="needs_approval", reasons=("test: only 9 images.", "golden: too few."))


@pytest.fixture(autouse=True)
def quick(prefect_server: None, var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_POLL_SECONDS", 0.2)


@pytest.fixture
def challenger() -> VersionRef:
    return registered()


def registered() -> VersionRef:
    """A version in a real registry, of a model without files."""
    mlflow = runs.client()
    run_id = mlflow.create_run(runs.experiment_id("shapes")).info.run_id
    logged = mlflow.create_logged_model(runs.experiment_id("shapes"), source_run_id=run_id)
    mlflow.finalize_logged_model(logged.model_id, "READY")
    model = ModelRef(uri="nowhere", digest="d" * 64, run_id=run_id, model_id=logged.model_id)
    return versions.register("shapes", model, {})


@pytest.fixture
def asked() -> Iterator[Callable[[VersionRef], "Asked"]]:
    """Asks in the background; whatever a test leaves unanswered is answered in the end."""
    under_way: list[Asked] = []

    def ask(challenger: VersionRef) -> Asked:
        under_way.append(Asked(challenger))
        return under_way[-1]

    yield ask
    for one in under_way:
        while one.thread.is_alive():
            with get_client(sync_client=True) as client:
                client.resume_flow_run(one.run().id, run_input=answer(False).model_dump())
            one.thread.join(2)


class Asked:
    """A run of the flow in a thread, known to wait."""

    def __init__(self, challenger: VersionRef) -> None:
        self.challenger = challenger
        self.verdicts: list[Verdict] = []
        before = {question.run.id for question in waiting(challenger.name)}
        self.thread = threading.Thread(target=self._ask)
        self.thread.start()
        until = time.monotonic() + 60
        while not (new := [q for q in waiting(challenger.name) if q.run.id not in before]):
            assert time.monotonic() < until, "the flow does not wait"
            time.sleep(0.1)
        (self.question,) = new

    def run(self) -> FlowRun:
        return self.question.run

    def verdict(self) -> Verdict:
        self.thread.join(60)
        (verdict,) = self.verdicts
        return verdict

    def _ask(self) -> None:
        self.verdicts.append(approval(self.challenger, UNSURE, 1.0))


def answer(approve: bool, name: str = "Ada", comment: str = "I looked at them") -> Answer:
    return Answer(approve=approve, name=name, comment=comment)


def tags(version: VersionRef) -> dict[str, str]:
    return runs.client().get_model_version(version.name, str(version.version)).tags


@pytest.mark.parametrize(
    ("approve", "decision", "said"), [(True, "promote", "approved"), (False, "reject", "rejected")]
)
def test_the_answer_decides_and_stays_on_the_version(challenger, asked, approve, decision, said):
    one = asked(challenger)
    assert one.question.verdict == UNSURE
    assert give(answer(approve), "shapes", None) == challenger
    verdict = one.verdict()
    assert (verdict.decision, verdict.by) == (decision, "Ada")
    assert verdict.reasons == (f"{said} by Ada: I looked at them", *UNSURE.reasons)
    kept = tags(challenger)
    assert kept["approval"] == said
    assert (kept["approval_by"], kept["approval_comment"]) == ("Ada", "I looked at them")
    assert kept["verdict"] == decision
    description = runs.client().get_model_version("shapes", "1").description
    assert description.splitlines()[0] == f"{decision}: {said} by Ada: I looked at them"
    assert all(reason in description for reason in UNSURE.reasons)


def test_the_form_of_the_user_interface_answers_as_the_command_does(challenger, asked):
    one = asked(challenger)
    with get_client(sync_client=True) as client:
        filled = {"approve": False, "name": "Grace", "comment": "circles are squares"}
        client.resume_flow_run(one.run().id, run_input=filled)
    assert one.verdict().reasons[0] == "rejected by Grace: circles are squares"


@pytest.mark.parametrize(
    "filled", [{}, {"name": "Grace"}, {"name": " ", "comment": "x"}, {"name": "G", "comment": ""}]
)
def test_an_answer_without_name_or_comment_is_refused_and_the_run_waits_on(
    challenger, asked, filled
):
    one = asked(challenger)
    with get_client(sync_client=True) as client:
        done = client.resume_flow_run(one.run().id, run_input={"approve": True, **filled})
    assert done.status is SetStateStatus.REJECT
    assert [question.run.id for question in waiting("shapes")] == [one.run().id]


def test_no_answer_in_time_is_a_rejection_and_no_failure(challenger):
    state = approval(challenger, UNSURE, 1 / 3600, return_state=True)
    assert state.is_completed()
    verdict = state.result()
    assert verdict.decision == "reject"
    assert verdict.reasons[0].startswith("rejected by nobody: no answer within")
    assert tags(challenger)["approval_by"] == "nobody"
    assert waiting("shapes") == []


def test_where_several_wait_the_version_must_be_named(challenger, asked):
    other = registered()
    first, second = asked(challenger), asked(other)
    assert [question.challenger for question in waiting("shapes")] == [other, challenger]
    with pytest.raises(NothingWaits, match="v1, v2 of shapes wait for an answer: name one"):
        give(answer(True), "shapes", None)
    give(answer(True), "shapes", 1)
    give(answer(False), "shapes", 2)
    assert (first.verdict().decision, second.verdict().decision) == ("promote", "reject")


def test_an_answer_that_nothing_waits_for_is_an_error(challenger, asked):
    with pytest.raises(NothingWaits, match=r"nothing waits for an answer about shapes$"):
        give(answer(True), "shapes", None)
    asked(challenger)
    with pytest.raises(NothingWaits, match="about shapes v7"):
        give(answer(True), "shapes", 7)
    with pytest.raises(NothingWaits, match="about another"):
        give(answer(True), "another", None)


def test_an_answer_to_a_process_that_is_gone_says_so(challenger, monkeypatch):
    class Gone(BaseException):
        """Stands for the end of the process."""

    sleep = time.sleep

    def die(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            raise Gone
        sleep(seconds)

    @flow(name=room.FLOW)
    def dies(challenger: VersionRef, verdict: Verdict, hours: float) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", die)
            with pytest.raises(Gone):
                room.ask(challenger, verdict, hours)
        with pytest.raises(NotTakenUp, match="Run the training flow again"):
            give(answer(True), "shapes", None)

    monkeypatch.setattr(room, "_TAKEN_UP_SECONDS", 1.0)
    dies(challenger, UNSURE, 1.0)


def test_the_command_lists_and_answers(challenger, asked, tmp_path, capsys, monkeypatch):
    config = tmp_path / "shapes.yaml"
    config.write_text("{name: shapes, data: {source: {format: scenes}}}")

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["approval", str(config), *arguments])
        return command.main()

    one = asked(challenger)
    assert run() == 0
    listed = capsys.readouterr().out
    assert "shapes v1 waits until" in listed
    assert all(reason in listed for reason in UNSURE.reasons)
    with pytest.raises(SystemExit) as ended:
        run("--approve")
    assert ended.value.code == 2
    assert "--comment" in capsys.readouterr().err
    assert run("--approve", "--by", "Ada", "--comment", "good") == 0
    assert "shapes v1 is approved; the flow goes on" in capsys.readouterr().out
    assert one.verdict().by == "Ada"
    assert run("--reject", "--comment", "late") == 1
    assert "nothing waits" in capsys.readouterr().err
    assert run() == 0
    assert "nothing of shapes waits" in capsys.readouterr().out
