"""Following aliases of the MLflow model registry: a new version is fetched, loaded, warmed and
checked beside the old one, then takes over; a bad one is refused and the old one stays."""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bentos.captioner.golden import check_golden
from bentos.captioner.models import ServedModel, give_memory_back, load_model
from bentos.captioner.runtime import Runtime
from bentos.captioner.settings import name_and_alias

logger = logging.getLogger(__name__)

MAX_DELAY_SECONDS = 30.0
# What loading raises of files that came whole but are wrong (BadModelFolder, GoldenMismatch, … are
# ValueErrors); all else, of the disk, the memory or the registry, may pass.
VERSION_FAULTS = (ValueError, LookupError, TypeError, FileNotFoundError)


class BadVersion(ValueError):
    """A version that would fail again however often it is loaded."""


class Follower:
    """Polls `models:/<name>@<alias>` and swaps the runtime's model when the alias moves; puts what
    a second alias of that model names beside it as the challenger, until it is gone or names the
    champion too.

    Both are looked up at once and loaded one after the other, so that a challenger that becomes
    champion is taken over as it is.
    """

    def __init__(
        self, runtime: Runtime, uri: str, *, every_seconds: float, challenger: str | None = None
    ) -> None:
        self._name, self._champion = name_and_alias(uri)
        self._challenger = None if challenger is None else name_and_alias(challenger)[1]
        self._challenging: str | None = None  # also after the runtime took it out
        self._not_before = 0.0
        self._left_over = False  # memory of a model that is gone when its last answer is
        self._uri = uri
        self._runtime = runtime
        self._every = every_seconds
        self._delay = every_seconds
        self._trouble: type[BaseException] | None = None
        self._refused: set[tuple[str, str]] = set()  # an alias and its version
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
        """Look once; take up what the aliases name by now, unless it was refused."""
        if self._left_over:
            self._left_over = False
            await self._settle(give_memory_back)
        versions, error = await self._settle(self._aliased_versions)
        if error is None:
            error = await self._follow_champion(versions[self._champion])
        self._pace(error)
        if error is None and self._challenger is not None:
            await self._follow_challenger(self._challenger, versions.get(self._challenger))

    async def _follow_champion(self, version: str) -> BaseException | None:
        if self._is_champion(version):
            return None
        challenger = self._runtime.challenger
        if challenger is not None and challenger.version == version:
            model, error = await self._runtime.dismiss(), None
            self._challenging = None
        else:
            model, error = await self._load_once(self._champion, version)
        if model is not None:
            self._runtime.swap(model)
            logger.info("version %s of %s answers from now on", version, self._name)
        return error

    async def _follow_challenger(self, alias: str, version: str | None) -> None:
        if version is not None and self._is_champion(version):
            version = None
        if version == self._challenging or time.monotonic() < self._not_before:
            return
        # The one before goes first, so that no three models are in memory.
        await self._runtime.dismiss()
        self._challenging = None
        self._left_over = True
        if version is None:
            logger.info("no version of %s is tried out any more", self._name)
            return
        model, error = await self._load_once(alias, version)
        if error is not None:
            self._not_before = time.monotonic() + MAX_DELAY_SECONDS
            self._runtime.telemetry.follow_errors.inc()
            logger.warning("challenger version %s can't be had now: %r", version, error)
            return
        self._challenging = version
        if model is not None:
            self._runtime.challenge(model)
            logger.info(
                "version %s of %s is tried out as %s",
                *(version, self._name, self._runtime.settings.role),
            )

    def _is_champion(self, version: str) -> bool:
        return (self._runtime.model.name, self._runtime.model.version) == (self._name, version)

    async def _load_once(
        self, alias: str, version: str
    ) -> tuple[ServedModel | None, BaseException | None]:
        """The version's model; None if it is refused, now or before, or for the error beside."""
        if (alias, version) in self._refused:
            return None, None
        model, error = await self._settle(self._bring, version)
        self._left_over = True
        if isinstance(error, BadVersion):
            self._refused.add((alias, version))
            self._runtime.telemetry.swap_failures.inc()
            logger.error(
                "version %s of %s is refused as %s, version %s keeps answering: %s",
                *(version, self._name, alias, self._runtime.model.version, error),
            )
            error = None
        return model, error

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

    def _aliased_versions(self) -> dict[str, str]:
        """The versions that aliases of the model name. Raises LookupError without a champion."""
        if self._client is None:
            # MLflow's own defaults retry for minutes; we come back anyway.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            from mlflow import MlflowClient

            self._client = MlflowClient()
        aliases = self._client.get_registered_model(self._name).aliases
        if self._champion not in aliases:
            raise LookupError(f"{self._name} has no alias {self._champion} now.")
        return {alias: str(version) for alias, version in aliases.items()}

    def _bring(self, version: str) -> ServedModel:
        """Fetch, load, warm and check a version. Raises BadVersion, or what may pass as it is."""
        with tempfile.TemporaryDirectory(prefix="captioner-") as scratch:
            return self._load(version, fetch(self._name, version, Path(scratch)))

    def _load(self, version: str, folder: Path) -> ServedModel:
        source = f"models:/{self._name}/{version}"
        try:
            model = load_model(folder, source=source, name=self._name, version=version)
            check_golden(model, folder)
        except VERSION_FAULTS as error:
            raise BadVersion(str(error)) from error
        return model


def fetch(name: str, version: str, into: Path) -> Path:
    """The model folder of a version, which may lie some levels down in its artifacts."""
    from mlflow.artifacts import download_artifacts

    root = Path(download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=str(into)))
    if not any(root.iterdir()):  # so MLflow tells of artifacts that are away
        raise FileNotFoundError(f"Version {version} of {name} came without a file.")
    configs = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
    return configs[0].parent if configs else root
