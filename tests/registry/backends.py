"""Real servers that MLflow keeps a registry on, and processes that write to it at one moment."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from bentos.packaging import free_port
from tasks.refs import VersionRef

START_SECONDS = 120


def postgres_programs() -> Path | None:
    """Debian's folder of PostgreSQL's programs, which is on nobody's PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database of a PostgreSQL of its own, on a Unix socket."""
    programs = postgres_programs()
    assert programs, "no PostgreSQL here: apt-get install postgresql"
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # short: a socket's path has a limit
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses root
        user = "postgres"
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    try:
        create = [programs / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust"]
        subprocess.run([*create, "--no-sync"], user=user, check=True, stdout=subprocess.DEVNULL)
        serve = [programs / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F"]
        with subprocess.Popen(serve, user=user, stderr=subprocess.DEVNULL) as server:
            try:
                _wait(lambda: (folder / ".s.PGSQL.5432").exists(), server)
                yield f"postgresql://postgres@/postgres?host={folder}"
            finally:
                server.send_signal(signal.SIGINT)  # SIGTERM would wait for every client to leave
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mlflow_server(store: str, artifacts: Path) -> Iterator[str]:
    """The URL of `mlflow server` on a store."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--no-serve-artifacts", "--default-artifact-root", artifacts.as_uri()]
    command += ["--workers", "1", "--host", "127.0.0.1", "--port", url.rsplit(":", 1)[1]]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=env, **quiet) as server:
        try:
            _wait(lambda: _answers(f"{url}/health"), server)
            yield url
        finally:
            server.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def _wait(ready, server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        assert server.poll() is None, f"{server.args[0]} ended with {server.returncode}"
        assert time.monotonic() < deadline, f"{server.args[0]} is not ready"
        time.sleep(0.1)


# --- what runs in processes of their own ----------------------------------------------------------


def import_mlflow() -> None:
    import mlflow  # noqa: F401, seconds, which no promotion should wait for

    from tasks.registry import history  # noqa: F401


def promote_at(
    moment: float, uri: str, version: VersionRef, over: VersionRef | None, why: str
) -> str | None:
    """Promotes at a moment, as others do; None, or what ChampionChanged says."""
    from tasks.registry import history

    os.environ["MLFLOW_TRACKING_URI"] = uri
    time.sleep(max(0.0, moment - time.time()))
    try:
        history.promote(version, over=over, why=why, by=f"process {os.getpid()}")
    except history.ChampionChanged as error:
        return str(error)
    return None


def die_after(writes: int, var: str, work, *arguments: object) -> None:
    """Does the work, and is killed once so many transactions that wrote something are committed."""
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    os.environ["CAPTIONLOOP_VAR"] = var
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    done = 0

    def flushed(session, _) -> None:
        session.info["wrote"] = True

    def committed(session) -> None:
        nonlocal done
        done += session.info.pop("wrote", False)
        if done == writes:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Session, "after_flush", flushed)
    event.listen(Session, "after_commit", committed)
    work(*arguments)
