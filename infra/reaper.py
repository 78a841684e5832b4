"""Ends every process of a local stack: when asked, and when the stack's owner dies.

Each process of a stack, however deep, carries `CAPTIONLOOP_STACK=<var folder>#<stack>` in its
environment. That mark survives new sessions and dead parents, so nothing can be orphaned out of
reach; the part before the # finds the processes of all stacks that ever ran on a folder.
"""

import contextlib
import os
import subprocess
import sys

import psutil

from configs.settings import ROOT

MARK = "CAPTIONLOOP_STACK"
GRACE_SECONDS = 8.0


def guard(mark: str) -> "subprocess.Popen[bytes]":
    """Starts a reaper that ends the processes of `mark` as soon as this process is gone."""
    environment = {k: v for k, v in os.environ.items() if k != MARK}
    command = [sys.executable, "-m", "infra.reaper", mark]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, start_new_session=True
    )


def members(mark: str) -> list[psutil.Process]:
    """The living processes whose mark begins with `mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK, "").startswith(mark):
                found.append(process)
        except psutil.Error:
            continue
    return found


def reap(mark: str) -> None:
    """Ends the processes of `mark`: politely, then, after a grace time, at once."""
    processes = members(mark)
    for process in processes:
        _signal(process, "terminate")
    psutil.wait_procs(processes, timeout=GRACE_SECONDS)
    while processes := members(mark):
        for process in processes:
            _signal(process, "kill")
        psutil.wait_procs(processes, timeout=GRACE_SECONDS)


def _signal(process: psutil.Process, name: str) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        getattr(process, name)()


if __name__ == "__main__":
    sys.stdin.buffer.read()  # ends when the owner closes the pipe, or dies and the system does
    reap(sys.argv[1])
