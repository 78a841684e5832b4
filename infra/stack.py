"""The local stack on free loopback ports: Prefect server and worker, MLflow, the captioner."""

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import httpx

from bentos.packaging import free_port
from configs.settings import ROOT, settings
from infra import reaper

HOST = "127.0.0.1"
WORK_POOL, GPU_POOL = "local", "gpu"
START_TIMEOUT_SECONDS = 180.0
logger = logging.getLogger(__name__)


class StackError(RuntimeError):
    """A server of the stack did not come up, or died."""


class Stack:
    """Starts and ends the servers of one `var/` folder; only one can live on it at a time.

    Use as a context manager: leaving it, by whatever way, ends every process it started, and
    those that these started.
    """

    def __init__(
        self,
        model_name: str,
        preferred_ports: Mapping[str, int] | None = None,
        prefect_file: Path = ROOT / "prefect.yaml",
    ) -> None:
        ports = preferred_ports or {}
        self.prefect_file = str(prefect_file)
        self.var = settings().var.resolve()
        self.mark = f"{self.var}#{uuid.uuid4().hex}"
        self.model_name = model_name
        self.prefect_url = f"http://{HOST}:{_port(ports.get('prefect'))}"
        self.mlflow_url = f"http://{HOST}:{_port(ports.get('mlflow'))}"
        self.service_url = f"http://{HOST}:{_port(ports.get('service'))}"
        self.captures = self.var / "captures" / model_name
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> "Stack":
        with contextlib.ExitStack() as entering:
            for folder in ("logs", "mlflow", "prefect", "bentoml"):
                (self.var / folder).mkdir(parents=True, exist_ok=True)
            entering.enter_context(_only_one(self.var))
            reaper.reap(f"{self.var}#")  # what a killed stack left, if its reaper is not done
            guard = reaper.guard(self.mark)
            entering.callback(guard.wait)
            assert guard.stdin is not None
            entering.callback(guard.stdin.close)
            entering.callback(reaper.reap, self.mark)
            entering.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            signal.signal(signal.SIGTERM, _exit_on_signal)
            self._exit = entering.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the stack, and its owner, finds the servers by."""
        return {
            "CAPTIONLOOP_VAR": str(self.var),
            "CAPTIONLOOP_CAPTURES": str(self.captures),
            "CAPTIONLOOP_ROOT": str(ROOT),
            "CAPTIONLOOP_SERVICE_URL": self.service_url,
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_UI_URL": self.prefect_url,
            "PREFECT_HOME": str(self.var / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "BENTOML_HOME": str(self.var / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
        }

    def start_servers(self) -> None:
        """Starts Prefect and MLflow, and tells this process where they are.

        Returns when Prefect answers; MLflow takes longer, `start_worker` waits for it.
        """
        mlflow = self.var / "mlflow"
        store = ["--backend-store-uri", f"sqlite:///{mlflow / 'mlflow.db'}"]
        root = (mlflow / "artifacts").as_uri()
        artifacts = ["--no-serve-artifacts", "--default-artifact-root", root]
        self._start("prefect", ["prefect", "server", "start", *_listen_on(self.prefect_url)])
        self._start(
            "mlflow",
            [
                "mlflow",
                "server",
                *_listen_on(self.mlflow_url),
                "--workers",
                "1",
                *store,
                *artifacts,
            ],
        )
        os.environ.update(self.environment)
        self._wait("prefect", lambda: _answers(f"{self.prefect_url}/api/health"))

    def start_worker(self) -> None:
        """Deploys the flows of the Prefect file and starts a worker for those of a laptop."""
        for pool in (WORK_POOL, GPU_POOL):
            self._run("prefect", "work-pool", "create", pool, "--type", "process", "--overwrite")
        self._run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", self.prefect_file)
        worker = ["prefect", "worker", "start", "--pool", WORK_POOL]
        self._start("worker", worker, {"PYTHONPATH": str(ROOT)})
        self._wait("mlflow", lambda: _answers(f"{self.mlflow_url}/health"))

    def start_service(self, bento: str) -> None:
        """Serves `bento`, which then follows the registry's champion; returns when it is ready."""
        follow = {"CAPTIONLOOP_FOLLOW": f"models:/{self.model_name}@champion"}
        self._start("service", ["bentoml", "serve", bento, *_listen_on(self.service_url)], follow)
        self._wait("service", lambda: _answers(f"{self.service_url}/readyz"))

    def check(self) -> None:
        """Raises StackError when a server has died."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                code = process.returncode
                raise StackError(f"{name} ended with code {code}:\n{self._tail(name)}")

    def _start(self, name: str, command: list[str], extra: dict[str, str] | None = None) -> None:
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [_tool(command[0]), *command[1:]],
                cwd=ROOT,
                env=self._marked_environment(extra),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _run(self, *command: str) -> None:
        with self._log("deploy").open("ab") as log:
            done = subprocess.run(
                [_tool(command[0]), *command[1:]],
                cwd=ROOT,
                env=self._marked_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            raise StackError(f"{' '.join(command)} failed:\n{self._tail('deploy')}")

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{name} was not ready in time:\n{self._tail(name)}")
            time.sleep(0.25)

    def _marked_environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        mark = {reaper.MARK: self.mark}
        return {**os.environ, **self.environment, **mark, **(extra or {})}

    def _log(self, name: str) -> Path:
        return self.var / "logs" / f"{name}.log"

    def _tail(self, name: str, lines: int = 25) -> str:
        text = self._log(name).read_text(errors="replace").splitlines()
        return "\n".join([*text[-lines:], f"(all of it: {self._log(name)})"])


def _port(preferred: int | None) -> int:
    """The preferred port when nothing listens on it, else any free one."""
    if preferred is not None:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, preferred))
            return preferred
    return free_port()


@contextlib.contextmanager
def _only_one(var: Path) -> Iterator[None]:
    lock_file = var / "stack.lock"
    with lock_file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"process {lock.read().strip()} already runs a stack on {var}; "
                "end it first (Ctrl-C), or set CAPTIONLOOP_VAR to another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _exit_on_signal(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def _listen_on(url: str) -> list[str]:
    return ["--host", HOST, "--port", url.rsplit(":", 1)[1]]


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
