"""Stand-ins for the users of an app: they send scenes to the captioner, and, since they know what
the scenes show, correct what it says."""

import io
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from PIL import Image

from tasks.data.scenes import Scene, scene

CLIENTS = 4


@dataclass(frozen=True)
class Answer:
    """What the captioner said of a scene."""

    scene: Scene
    request_id: str
    caption: str
    version: str


class Visitor:
    """One user with one connection to the service."""

    def __init__(self, service_url: str) -> None:
        self._client = httpx.Client(base_url=service_url, timeout=30)

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, shown: Scene) -> Answer:
        """Posts the scene's picture; raises httpx.HTTPStatusError for any other answer than 200."""
        files = {"image": ("scene.png", png(shown.image))}
        response = self._client.post("/v1/caption", files=files)
        response.raise_for_status()
        said = response.json()
        return Answer(shown, said["request_id"], said["caption"], said["model"]["version"])

    def correct(self, answer: Answer) -> None:
        """Posts the caption that a person would have written."""
        body = {"request_id": answer.request_id, "caption": answer.scene.references[0]}
        self._client.post("/v1/feedback", json=body).raise_for_status()


def send(
    service_url: str, world: str, seed: int, indices: Iterable[int], *, correcting: bool
) -> list[Answer]:
    """Several users send the scenes of a world, and correct each caption when `correcting`."""
    with Visitor(service_url) as visitor, ThreadPoolExecutor(CLIENTS) as pool:

        def visit(index: int) -> Answer:
            answer = visitor.ask(scene(seed, index, world))
            if correcting:
                visitor.correct(answer)
            return answer

        return list(pool.map(visit, indices))


@dataclass
class Traffic:
    """Steady requests in the background, for as long as the `with` block lasts."""

    service_url: str
    world: str
    seed: int
    pause_seconds: float = 0.1
    versions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "Traffic":
        self._running = self._pool.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._running.result()  # raises what the thread died of, if it did
        self._pool.shutdown()

    def _run(self) -> None:
        index = 0
        with Visitor(self.service_url) as visitor:
            while not self._stop.wait(self.pause_seconds):
                try:
                    answer = visitor.ask(scene(self.seed, index, self.world))
                    self.versions.append(answer.version)
                except httpx.HTTPError as error:
                    self.failures.append(str(error))
                index += 1


def png(image: Image.Image) -> bytes:
    """The image's PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
