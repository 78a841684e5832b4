"""One stack a folder, on the ports that were asked for when they are free."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra import reaper
from infra.stack import Stack, StackError


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAPTIONLOOP_VAR", str(tmp_path / "var"))
    return tmp_path / "var"


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def test_a_second_stack_on_the_same_folder_is_told_who_holds_it(var):
    with (
        Stack("shapes"),
        pytest.raises(StackError, match=f"process {os.getpid()} already runs a stack on {var}"),
        Stack("shapes"),
    ):
        pass


def test_a_stack_that_was_left_makes_room_for_the_next(var):
    for _ in range(2):
        with Stack("shapes") as stack:
            assert stack.var == var


def test_a_stack_takes_the_handler_of_the_termination_signal_and_gives_it_back(var):
    before = signal.getsignal(signal.SIGTERM)
    with Stack("shapes"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stack_ends_what_a_killed_one_left_behind(var):
    with (
        subprocess.Popen(
            [sys.executable, "-c", "import signal; signal.pause()"],
            env={**os.environ, reaper.MARK: f"{var}#killed"},
        ) as left,
        Stack("shapes"),
    ):
        assert not psutil.pid_exists(left.pid)


def test_a_preferred_port_is_taken_when_it_is_free_and_another_when_it_is_not(var):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port_of(Stack("shapes", {"prefect": port}).prefect_url) != port
    assert port_of(Stack("shapes", {"prefect": port}).prefect_url) == port


def test_every_server_has_a_port_of_its_own(var):
    stack = Stack("shapes")
    assert len({stack.prefect_url, stack.mlflow_url, stack.service_url}) == 3


def test_a_dead_server_is_told_with_the_end_of_its_log(var):
    with Stack("shapes") as stack:
        stack._start("prefect", ["python", "-c", "print('out of luck'); raise SystemExit(3)"])
        stack._processes["prefect"].wait(20)
        with pytest.raises(StackError, match=r"prefect ended with code 3:\nout of luck") as caught:
            stack.check()
    assert str(var / "logs" / "prefect.log") in str(caught.value)


def test_the_environment_leads_every_process_to_the_same_state(var):
    stack = Stack("shapes")
    assert stack.environment["CAPTIONLOOP_VAR"] == str(var)
    assert stack.environment["MLFLOW_TRACKING_URI"] == stack.mlflow_url
    for name in ("PREFECT_HOME", "BENTOML_HOME", "CAPTIONLOOP_CAPTURES"):
        assert Path(stack.environment[name]).is_relative_to(var)
