"""Whatever carries the stack's mark is ended, however deep; nothing else is touched."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from configs.settings import ROOT
from infra import reaper

DEADLINE_SECONDS = 20
ENDLESS = "import signal; signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); signal.pause()"
# Starts the given code in a session of its own, says its id, and dies before it.
PARENT = (
    "import subprocess, sys; "
    "print(subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True,"
    " stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
)
OWNER = """
import subprocess, sys, time
from infra import reaper

reaper.guard(sys.argv[1])
child = [sys.executable, "-c", "import signal; signal.pause()"]
mark = {reaper.MARK: sys.argv[1]}
member = subprocess.Popen(child, env=mark, start_new_session=True, stdout=subprocess.DEVNULL)
print(member.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def started() -> Iterator[list[psutil.Process]]:
    """Processes to end when the test is over, whatever came of it."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        if process.is_running():
            process.kill()


def orphan(mark: Path | None, started: list[psutil.Process]) -> psutil.Process:
    """An endless process in its own session whose parent has died."""
    environment = dict(os.environ)
    environment.pop(reaper.MARK, None)
    if mark is not None:
        environment[reaper.MARK] = str(mark)
    said = subprocess.run(
        [sys.executable, "-c", PARENT, ENDLESS],
        env=environment,
        capture_output=True,
        check=True,
    )
    process = psutil.Process(int(said.stdout))
    started.append(process)
    return process


def alive(process: psutil.Process) -> bool:
    """A zombie is as good as gone: PID 1 of some containers reaps nobody."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(happens: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_marked_orphan_is_ended_and_its_neighbours_are_not(tmp_path, started):
    marked = orphan(tmp_path / "one", started)
    other, unmarked = orphan(tmp_path / "two", started), orphan(None, started)
    assert reaper.members(f"{tmp_path}/one") == [marked]
    reaper.reap(f"{tmp_path}/one")
    assert not alive(marked)
    assert alive(other)
    assert alive(unmarked)
    assert reaper.members(f"{tmp_path}/one") == []


def test_a_late_reaper_leaves_the_next_stack_on_the_same_folder_alone(tmp_path, started):
    old, new = orphan(f"{tmp_path}#1", started), orphan(f"{tmp_path}#2", started)
    reaper.reap(f"{tmp_path}#1")
    assert not alive(old)
    assert alive(new)
    reaper.reap(f"{tmp_path}#")
    assert not alive(new)


def test_a_process_that_ignores_the_polite_signal_is_ended_all_the_same(
    tmp_path, started, monkeypatch
):
    monkeypatch.setattr(reaper, "GRACE_SECONDS", 0.2)
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        env={**os.environ, reaper.MARK: str(tmp_path)},
        stdout=subprocess.PIPE,
    ) as stubborn:
        started.append(psutil.Process(stubborn.pid))
        assert stubborn.stdout is not None
        stubborn.stdout.readline()  # from here on it ignores SIGTERM
        reaper.reap(str(tmp_path))
        assert not psutil.pid_exists(stubborn.pid)


def test_the_owner_itself_is_not_ended_though_it_is_marked(tmp_path, monkeypatch):
    code = "import sys; from infra import reaper; reaper.reap(sys.argv[1]); print('still here')"
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, reaper.MARK: str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert said.stdout == "still here\n"


def test_the_guard_ends_the_members_when_their_owner_is_killed(tmp_path, started):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        member = psutil.Process(int(owner.stdout.readline()))
        started.append(member)
        (guard,) = (
            child
            for child in psutil.Process(owner.pid).children()
            if "infra.reaper" in child.cmdline()
        )
        started.append(guard)
        assert alive(member)
        owner.kill()
        owner.wait()
    assert eventually(lambda: not alive(member))
    assert eventually(lambda: not alive(guard))
