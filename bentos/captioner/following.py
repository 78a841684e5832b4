"""Following an alias of the MLflow model registry: a new version is fetched, loaded, warmed and
checked beside the old one, then takes over; a bad one is refused and the old one stays."""

import asyncio
import logging
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bentos.captioner.golden import check_golden
from bentos.captioner.models import ServedModel, load_model
from bentos.captioner.runtime import Runtime
from bentos.captioner.settings import BadSetting

logger = logging.getLogger(__name__)

MAX_DELAY_SECONDS = 30.0
# What loading raises of files that came whole but are wrong (BadModelFolder, GoldenMismatch, … are
# ValueErrors); all else, of the disk, the memory or the registry, may pass.
VERSION_FAULTS = (ValueError, LookupError, TypeError, FileNotFoundError)


class BadVersion(ValueError):
    """A version that would fail again however often it is loaded."""


class Follower:
    """Polls `models:/<name>@<alias>` and swaps the runtime's model when the alias moves."""

    def __init__(self, runtime: Runtime, uri: str, *, every_seconds: float) -> None:
        match = re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri)
        if match is None:
            raise BadSetting(f"CAPTIONLOOP_FOLLOW must be models:/<name>@<alias>, not {uri!r}.")
        self._name, self._alias = match.groups()
        self._uri = uri
        self._runtime = runtime
        self._every = every_seconds
        self._delay = every_seconds
        self._trouble: type[BaseException] | None = None
        self._refused: set[str] = set()
        self._client: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="follow")

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            while True:
                await self.check()
                await asyncio.sleep(self._delay)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def check(self) -> None:
        """Look once; take the alias's version up if it is neither the current nor a refused one."""
        version, error = await self._settle(self._aliased_version)
        if error is None and version not in self._refused and not self._is_current(version):
            model, error = await self._settle(self._bring, version)
            if isinstance(error, BadVersion):
                self._refuse(version, error)
                error = None
            elif error is None:
                self._runtime.swap(model)
                logger.info("version %s of %s answers from now on", version, self._name)
        self._pace(error)

    def _is_current(self, version: str) -> bool:
        return (self._runtime.model.name, self._runtime.model.version) == (self._name, version)

    def _refuse(self, version: str, error: BadVersion) -> None:
        self._refused.add(version)
        self._runtime.telemetry.swap_failures.inc()
        logger.error(
            "version %s of %s is refused, version %s keeps answering: %s",
            version,
            self._name,
            self._runtime.model.version,
            error,
        )

    def _pace(self, error: BaseException | None) -> None:
        """Wait longer after each look that failed; log the first of each kind in a row."""
        if error is None:
            if self._trouble is not None:
                logger.info("%s can be followed again", self._uri)
            self._trouble, self._delay = None, self._every
            return
        if type(error) is not self._trouble:
            logger.warning("%s can't be followed now, trying on: %r", self._uri, error)
        self._trouble = type(error)
        self._runtime.telemetry.follow_errors.inc()
        self._delay = max(self._every, min(self._delay * 2, MAX_DELAY_SECONDS))

    async def _settle(
        self, function: Callable[..., Any], *args: object
    ) -> tuple[Any, BaseException | None]:
        """The function's result or its error, from the follower's thread."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        await asyncio.wait([future])
        error = future.exception()
        return (None, error) if error else (future.result(), None)

    def _aliased_version(self) -> str:
        if self._client is None:
            # MLflow's own defaults retry for minutes; we come back anyway.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            from mlflow import MlflowClient

            self._client = MlflowClient()
        return str(self._client.get_model_version_by_alias(self._name, self._alias).version)

    def _bring(self, version: str) -> ServedModel:
        """Fetch, load, warm and check a version. Raises BadVersion, or what may pass as it is."""
        with tempfile.TemporaryDirectory(prefix="captioner-") as scratch:
            return self._load(version, self._fetch(version, Path(scratch)))

    def _fetch(self, version: str, into: Path) -> Path:
        """The version's files; the model folder may lie some levels down in the artifacts."""
        from mlflow.artifacts import download_artifacts

        root = Path(
            download_artifacts(artifact_uri=f"models:/{self._name}/{version}", dst_path=str(into))
        )
        if not any(root.iterdir()):  # so MLflow tells of artifacts that are away
            raise FileNotFoundError(f"Version {version} of {self._name} came without a file.")
        configs = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
        return configs[0].parent if configs else root

    def _load(self, version: str, folder: Path) -> ServedModel:
        source = f"models:/{self._name}/{version}"
        try:
            model = load_model(folder, source=source, name=self._name, version=version)
            check_golden(model, folder)
        except VERSION_FAULTS as error:
            raise BadVersion(str(error)) from error
        return model
