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
        version = await self._ask(self._aliased_version)
        if version is None or version in self._refused or self._is_current(version):
            return
        with tempfile.TemporaryDirectory(prefix="captioner-") as folder:
            fetched = await self._ask(self._fetch, version, Path(folder))
            if fetched is not None:
                await self._take_up(version, fetched)

    def _is_current(self, version: str) -> bool:
        return (self._runtime.model.name, self._runtime.model.version) == (self._name, version)

    async def _ask(self, question: Callable[..., Any], *args: object) -> Any:
        """The registry's answer, None if it failed: then the next look waits longer."""
        answer, error = await self._settle(question, *args)
        if error is None:
            if self._delay > self._every:
                logger.info("%s can be followed again", self._uri)
            self._delay = self._every
            return answer
        if self._delay == self._every:
            logger.warning("%s can't be followed now, trying on: %s", self._uri, error)
        self._runtime.telemetry.follow_errors.inc()
        self._delay = max(self._every, min(self._delay * 2, MAX_DELAY_SECONDS))
        return None

    async def _take_up(self, version: str, folder: Path) -> None:
        model, error = await self._settle(self._load, version, folder)
        if error is not None:
            self._refused.add(version)
            self._runtime.telemetry.swap_failures.inc()
            logger.error(
                "version %s of %s is refused, version %s keeps answering: %s",
                version,
                self._name,
                self._runtime.model.version,
                error,
            )
            return
        self._runtime.swap(model)
        logger.info("version %s of %s answers from now on", version, self._name)

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

    def _fetch(self, version: str, into: Path) -> Path:
        """The version's files; the model folder may lie some levels down in the artifacts."""
        from mlflow.artifacts import download_artifacts

        root = Path(
            download_artifacts(artifact_uri=f"models:/{self._name}/{version}", dst_path=str(into))
        )
        configs = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
        return configs[0].parent if configs else root

    def _load(self, version: str, folder: Path) -> ServedModel:
        source = f"models:/{self._name}/{version}"
        model = load_model(folder, source=source, name=self._name, version=version)
        check_golden(model, folder)
        return model
