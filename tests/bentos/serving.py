"""The API over a real runtime in the test's own process, and an engine that can be held."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import numpy as np
import psutil
import uvicorn
from prometheus_client import CollectorRegistry

from bentos.captioner.api import create_app
from bentos.captioner.connection import Connection
from bentos.captioner.generation import Generation
from bentos.captioner.models import ServedModel
from bentos.captioner.runtime import Runtime
from bentos.captioner.settings import ServiceSettings
from bentos.captioner.telemetry import Telemetry
from bentos.captioner.tracing import Tracing


class Served:
    """The API over a real runtime, in this process."""

    def __init__(self, client: httpx.AsyncClient, runtime: Runtime) -> None:
        self.client = client
        self.runtime = runtime
        self.registry = CollectorRegistry()

    async def caption(self, data: bytes, **options: object) -> httpx.Response:
        return await self.client.post("/caption", files={"image": data}, **options)

    def metric(self, name: str, /, **labels: str) -> float:
        return self.registry.get_sample_value(f"captioner_{name}", labels) or 0.0


@asynccontextmanager
async def served(
    model: ServedModel, *, host: str = "127.0.0.1", **options: object
) -> AsyncIterator[Served]:
    """For a client at the address `host`."""
    registry = CollectorRegistry()
    runtime = Runtime(model, ServiceSettings(**options), Telemetry(registry))
    transport = httpx.ASGITransport(create_app(runtime), client=(host, 123))
    async with httpx.AsyncClient(transport=transport, base_url="http://test/v1") as client:
        service = Served(client, runtime)
        service.registry = registry
        yield service
    await runtime.close()


@contextmanager
def site(model: ServedModel, tracing: Tracing | None = None, **options: object) -> Iterator[str]:
    """The same behind a socket; its URL."""
    telemetry = Telemetry(CollectorRegistry())
    runtime = Runtime(model, ServiceSettings(**options), telemetry, tracing)
    app = create_app(runtime)
    config = uvicorn.Config(app, port=0, http=Connection, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)

    def run() -> None:
        server.run()
        asyncio.run(runtime.close())

    thread = threading.Thread(target=run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def assert_problem(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body.keys() == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert body["detail"]


class HeldEngine:
    """The real engine, held until told to go on."""

    def __init__(self, model: ServedModel) -> None:
        self._engine = model.engine
        self.image_size = model.engine.image_size
        self.card = model.engine.card
        self.entered = threading.Event()
        self.go = threading.Event()
        self.seen = 0

    def run(self, pixels: np.ndarray, generation: Generation) -> object:
        self.entered.set()
        assert self.go.wait(30)
        self.seen += len(pixels)
        return self._engine.run(pixels, generation)


def held(model: ServedModel) -> tuple[ServedModel, HeldEngine]:
    engine = HeldEngine(model)
    return ServedModel(**{**vars(model), "engine": engine}), engine


def processes_of(url: str) -> list[psutil.Process]:
    """A server that `packaging.serve` started, then its workers."""
    port = url.rsplit(":", 1)[1]
    marked = [p for p in psutil.process_iter(["cmdline"]) if port in (p.info["cmdline"] or [])]
    return marked + [child for parent in marked for child in parent.children(recursive=True)]
