"""Builds the captioner into a Bento, starts it as a real process, and checks what it says."""

import argparse
import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import httpx
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bentos.captioner.engine import BadModelFolder, card_of, image_size_of
from bentos.captioner.following import fetch
from bentos.captioner.golden import read_golden
from bentos.captioner.models import BAKED_MODEL
from configs.settings import git_commit, settings

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
SERVICE = "bentos.captioner.service:Captioner"
# What the service imports.
SERVICE_PACKAGES = (
    "bentoml",
    "fastapi",
    "httptools",  # uvicorn takes it and uvloop where they are
    "numpy",
    "onnx",
    "onnxruntime",
    "pillow",
    "prometheus-client",
    "python-multipart",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "uvloop",
)
# What it can do besides: mlflow-skinny is enough to follow a registry over HTTP.
EXTRAS = {"mlflow": "mlflow-skinny", "heic": "pillow-heif", "s3": "s3fs"}
SERVE_COMMAND = (sys.executable, "-m", "bentoml", "serve")
STOP_SECONDS = 15.0


class SmokeFailed(RuntimeError):
    """The served model doesn't say what it said offline, or doesn't serve."""


class NoSuchModel(ValueError):
    """A model that the registry doesn't give."""


class ServeFailed(RuntimeError):
    """The server did not become ready; the message ends with its log."""


def package(
    model_folder: Path,
    *,
    labels: dict[str, str],
    extras: Iterable[str] = (),
    timeout_seconds: float,
) -> str:
    """Build a Bento and hold it to its golden pictures; returns its tag.

    One that fails is deleted, so that `captioner:latest` never names it. Raises SmokeFailed.
    """
    import bentoml

    if not read_golden(model_folder):
        raise SmokeFailed(f"{model_folder} has no golden pictures: nothing would be compared.")
    tag = build(model_folder, labels=labels, extras=extras)
    try:
        smoke(tag, timeout_seconds=timeout_seconds)
    except SmokeFailed:
        bentoml.bentos.delete(tag)
        raise
    return tag


def build(model_folder: Path, *, labels: dict[str, str], extras: Iterable[str] = ()) -> str:
    """Build a Bento with this model inside, in the store of BENTOML_HOME; returns its tag.

    The labels `model_name` and `model_version` are what the service will call the model; without
    them it is called what its card says. `extras` are keys of EXTRAS.
    """
    import bentoml

    with bentoml.models.create("captioner-model", labels=labels) as stored:
        shutil.copytree(model_folder, stored.path, dirs_exist_ok=True)
    bento = bentoml.bentos.build(
        SERVICE,
        name="captioner",
        labels=labels,
        models=[{"tag": str(stored.tag), "alias": BAKED_MODEL}],
        include=[
            "bentos/__init__.py",
            "bentos/captioner/*.py",
            "bentos/captioner/families/*.py",
            "bentos/captioner/static/*",
        ],
        # Locking would resolve anew and pin the NVIDIA packages; these pins are ours already.
        python={"packages": service_requirements(extras), "lock_packages": False},
        build_ctx=str(ROOT),
    )
    return str(bento.tag)


def use_default_home() -> None:
    """Bentos go to `var/bentoml` where BENTOML_HOME names no other place."""
    os.environ.setdefault("BENTOML_HOME", str(settings().var / "bentoml"))


def stored(tag: str) -> bool:
    """Whether the store of BENTOML_HOME has this Bento, and its model."""
    import bentoml

    try:
        (model,) = bentoml.bentos.get(tag).info.all_models
        bentoml.models.get(model.tag)
    except bentoml.exceptions.NotFound:
        return False
    return True


def service_requirements(extras: Iterable[str] = ()) -> list[str]:
    """The pins of requirements.lock that the service needs, with all that those need in turn."""
    pins: dict[str, list[str]] = {}  # several where they differ by Python's version
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name = canonicalize_name(re.split(r"[=\[ ;]", line, maxsplit=1)[0])
            pins.setdefault(name, []).append(line)
    found: set[str] = set()
    open_names = list(map(canonicalize_name, [*SERVICE_PACKAGES, *(EXTRAS[e] for e in extras)]))
    while open_names:
        name = open_names.pop()
        # A package that the lock leaves out comes with another: torch brings its CUDA packages.
        if name in found or name not in pins:
            continue
        found.add(name)
        open_names += [
            canonicalize_name(requirement.name)
            for requirement in map(Requirement, requires(name) or [])
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
    return sorted(line for name in found for line in pins[name])


@contextlib.contextmanager
def serve(
    tag: str, *, port: int, env: dict[str, str], ready_seconds: float = 120.0
) -> Iterator[str]:
    """Serve a Bento on 127.0.0.1 as a process of its own and yield its URL once it is ready.

    `env` is added to this process's environment. On leaving, the server and every process it
    started are ended. Raises ServeFailed with the end of the log.
    """
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="captioner-serve-") as scratch:
        log_path = Path(scratch) / "serve.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*SERVE_COMMAND, tag, "--host", "127.0.0.1", "--port", str(port)],
                cwd=scratch,  # so that the Bento's own code is imported, not this checkout's
                env=_environment(tag, env, Path(scratch)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _wait_until_ready(process, url, log_path, ready_seconds)
                yield url
            finally:
                _end_group(process)


def smoke(tag: str, *, timeout_seconds: float) -> None:
    """Serve the Bento and post its golden pictures; raises SmokeFailed on the first difference."""
    import bentoml

    stored = bentoml.bentos.get(tag).info.all_models[0]
    golden = read_golden(Path(bentoml.models.get(stored.tag).path))
    if not golden:
        raise SmokeFailed(f"The model in {tag} has no golden pictures: nothing would be compared.")
    # Nothing but the baked model speaks. In a "container" a server whose worker can't start ends
    # at once, where else it would start it again and again until the time is up.
    silenced = "TOKEN TOKENS TOKENS_FILE OPEN_METRICS CAPTURES FOLLOW SHADOW CANARY CANARY_SHARE"
    env = {f"CAPTIONLOOP_{name}": "" for name in silenced.split()}
    env["BENTOML_CONTAINERIZED"] = env["OTEL_SDK_DISABLED"] = "true"
    try:
        with serve(tag, port=free_port(), env=env, ready_seconds=timeout_seconds) as url:
            for one in golden:
                got = _caption(url, one.path, timeout_seconds)
                if got != one.caption:
                    raise SmokeFailed(
                        f"Golden picture {one.path.name}: expected {one.caption!r}, got {got!r}."
                    )
    except ServeFailed as error:
        raise SmokeFailed(str(error)) from error
    logger.info("%s said the same as offline on %d golden pictures", tag, len(golden))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _caption(url: str, image: Path, timeout_seconds: float) -> str:
    try:
        answer = httpx.post(
            f"{url}/v1/caption", files={"image": image.read_bytes()}, timeout=timeout_seconds
        )
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise SmokeFailed(f"Golden picture {image.name} was not captioned: {error}") from error
    return str(answer.json()["caption"])


def _environment(tag: str, env: dict[str, str], scratch: Path) -> dict[str, str]:
    """The child's environment, with a Bento home of its own that shows the real stores.

    Every `bentoml serve` empties <home>/prometheus_multiproc_dir when it starts, so two on one
    home would wipe each other's metrics.
    """
    import bentoml

    real = Path(bentoml.bentos.get(tag).path).absolute().parents[2]
    home = scratch / "home"
    home.mkdir()
    for store in ("bentos", "models"):
        (home / store).symlink_to(real / store, target_is_directory=True)
    merged = {**os.environ, **env, "BENTOML_HOME": str(home)}
    merged.pop("PYTHONPATH", None)  # it would let a checkout's code answer for the Bento's own
    return merged


def _wait_until_ready(
    process: "subprocess.Popen[Any]", url: str, log: Path, ready_seconds: float
) -> None:
    deadline = time.monotonic() + ready_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServeFailed(f"The server ended with {process.returncode}.\n{_tail(log)}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise ServeFailed(f"The server was not ready after {ready_seconds:g} s.\n{_tail(log)}")


def _end_group(process: "subprocess.Popen[Any]") -> None:
    """End the server's whole process group: kindly first, then surely."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path, lines: int = 150) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Packages what the command line names; prints the Bento's tag."""
    parser = argparse.ArgumentParser(
        prog="python -m bentos.packaging",
        description="Build a model into a Bento, hold it to its golden pictures, print its tag.",
    )
    parser.add_argument(
        "model", help="a folder, or models:/NAME@ALIAS or models:/NAME/VERSION of MLflow"
    )
    parser.add_argument("--name", help="what the service calls the model; default: as its card")
    parser.add_argument("--version", help="and its version")
    parser.add_argument(
        "--extra",
        action="append",
        default=[],
        choices=sorted(EXTRAS),
        dest="extras",
        help="what else it is to do: follow a registry (mlflow), read HEIC, put captures on S3",
    )
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    asked = parser.parse_args(arguments)
    use_default_home()
    try:
        with _model(asked.model) as (folder, known):
            given = {"model_name": asked.name, "model_version": asked.version}
            labels = _labels(folder) | known | {k: v for k, v in given.items() if v}
            tag = package(folder, labels=labels, extras=asked.extras, timeout_seconds=asked.timeout)
    except (BadModelFolder, NoSuchModel, SmokeFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tag)
    return 0


@contextlib.contextmanager
def _model(asked: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of what was asked for, and the labels that the registry knows."""
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/([^/@]+))", asked)
    if match is None:
        yield Path(asked), {}
        return
    import mlflow

    uri = settings().tracking_uri
    mlflow.set_tracking_uri(uri)
    name, alias, number = match.groups()
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory(prefix="captioner-") as scratch:
        try:
            if alias is not None:
                number = str(client.get_model_version_by_alias(name, alias).version)
            tags = client.get_model_version(name, number).tags
            folder = fetch(name, number, Path(scratch))
        except (mlflow.MlflowException, FileNotFoundError) as error:
            raise NoSuchModel(f"{asked} can't be had from {uri}: {error}") from error
        known = {"model_name": name, "model_version": number}
        yield folder, known | {k: tags[k] for k in ("dataset_digest",) if k in tags}


def _labels(folder: Path) -> dict[str, str]:
    """What the card says; the commit is that of the service's code."""
    image_size_of(folder)  # of nothing else is a Bento made
    card = card_of(folder)
    keys = {"name": "model_name", "version": "model_version", "dataset_digest": "dataset_digest"}
    labels = {label: str(card[key]) for key, label in keys.items() if key in card}
    return {**labels, "git_commit": git_commit()}


if __name__ == "__main__":
    sys.exit(main())
