"""The Bento service: packaging, processes, health and metrics around the API.

The process that supervises the workers imports this module too, so torch stays out of it.
"""

import asyncio
import gc
import logging
import os
from pathlib import Path

import bentoml
import uvicorn.config

from bentos.captioner.api import create_app
from bentos.captioner.capture import backend_of
from bentos.captioner.challenge import shadow_log
from bentos.captioner.following import Follower
from bentos.captioner.guard import Entrance, access_log, log_as_json
from bentos.captioner.models import BAKED_MODEL, load_model
from bentos.captioner.runtime import Runtime
from bentos.captioner.settings import ServiceSettings, worker_count
from bentos.captioner.telemetry import Telemetry, forget_dead_workers
from bentos.captioner.tokens import Tokens
from bentos.captioner.tracing import Tracing, exporter_from_environment

# What BentoML's workers speak with clients: it has no setting for it.
uvicorn.config.HTTP_PROTOCOLS["auto"] = "bentos.captioner.connection:Connection"
logger = logging.getLogger(__name__)
entrance = Entrance()


@bentoml.asgi_app(entrance, path="/")
@bentoml.service(
    name="captioner",
    workers=worker_count(os.environ),
    # BentoML's own default is every interface; `--host` still wins.
    http={"host": "127.0.0.1"},
    # Our own deadlines stand before BentoML's, which knows no problem documents.
    traffic={"timeout": 3600},
    # BentoML's own metrics and log have a label or a line with the raw path, which has no bound.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    # Its tracing makes a span of each request even where nobody collects any: 0.1 ms.
    tracing={"excluded_urls": [".*"]},
    envs=[
        # Spinning OpenMP threads steal the cores from the decoders: 2 threads were 5 times slower.
        {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
        # Decoded pictures go back to the system when they are freed. By its own choice glibc keeps
        # them, in an arena a thread and up to 32 MiB a piece.
        {"name": "MALLOC_ARENA_MAX", "value": "2"},
        {"name": "MALLOC_MMAP_THRESHOLD_", "value": "4194304"},
    ],
)
class Captioner:
    """Captions pictures; follows the champion of a model registry if told to."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._following: asyncio.Task[None] | None = None

    @bentoml.on_deployment
    def prepare() -> None:
        """Runs in the process that supervises the workers, before there are any.

        What is wrong with the settings ends the server here, where a worker would fail again and
        again.
        """
        from circus.controller import Controller

        settings = ServiceSettings.from_environment(os.environ)
        Tokens.from_settings(settings)
        exporter_from_environment(os.environ)
        if settings.captures is not None:
            backend_of(settings.captures)  # its packages may be missing
        # Milliseconds between two looks for dead workers; BentoML looks every ten seconds.
        Controller.check_delay = property(lambda _: 250.0, lambda _, __: None)
        if settings.workers > 1:
            # In a container BentoML starts no worker anew, so that the container ends and is
            # started again; but it doesn't end while another worker lives.
            os.environ.pop("BENTOML_CONTAINERIZED", None)

    @bentoml.on_startup
    async def start(self) -> None:
        """Load and warm the baked model; the server answers nothing before this is done."""
        logging.getLogger("bentos").setLevel(logging.INFO)
        settings = ServiceSettings.from_environment(os.environ)
        tracing = Tracing.from_environment(os.environ)
        stored = bentoml.models.get(BAKED_MODEL)
        gc.disable()  # what torch and transformers import stays: 1 of 7 s went into looking at it
        model = await asyncio.to_thread(
            load_model,
            Path(stored.path),
            source=f"bentoml:{stored.tag}",
            name=stored.info.labels.get("model_name"),
            version=stored.info.labels.get("model_version"),
        )
        # What is loaded by now stays: else each full collection walks all of it, for a third of a
        # second in which nobody is answered.
        gc.collect()
        gc.freeze()
        gc.enable()
        forget_dead_workers()
        self._runtime = Runtime(model, settings, Telemetry(), tracing)
        if settings.follow is not None:
            follower = Follower(
                self._runtime,
                settings.follow,
                every_seconds=settings.follow_seconds,
                challenger=settings.challenger,
            )
            self._following = asyncio.create_task(follower.run())
        log_as_json(access_log, shadow_log)
        logger.info("%s %s answers; %s", model.name, model.version, settings)
        entrance.app = create_app(self._runtime)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Stop following, answer what is queued, write what was captured."""
        entrance.app = None
        if self._following is not None:
            self._following.cancel()
        if self._runtime is not None:
            await self._runtime.close()

    def __is_ready__(self) -> bool:
        return self._runtime is not None
