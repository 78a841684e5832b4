"""The newest requests that one version of the model answered in production."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bentos.captioner.capture import Captures, read_window
from bentos.captioner.captured import CapturedRequest
from configs.schema import MonitorConfig
from tasks.drift.detectors import DimensionMismatch


@dataclass(frozen=True)
class Window:
    """`requests`, newest first, that `champion_version` answered."""

    champion_version: str
    requests: tuple[CapturedRequest, ...]

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """[m, d]; embeddings of another model's width mean that a version's name was used twice."""
        widths = {request.embedding.shape for request in self.requests}
        if len(widths) > 1:
            raise DimensionMismatch(
                f"Version {self.champion_version} left embeddings of the shapes {sorted(widths)}: "
                "its captures come from two models. Start a new capture folder."
            )
        return np.stack([request.embedding for request in self.requests])

    @property
    def span(self) -> tuple[float, float] | None:
        """Unix seconds of the oldest and the newest request."""
        times = [request.time for request in self.requests]
        return (min(times), max(times)) if times else None

    @property
    def digest(self) -> str:
        """Identity of the window: two checks of one window have the same."""
        digest = hashlib.sha256(self.champion_version.encode())
        for request in self.requests:
            digest.update(request.request_id.encode() + request.embedding.tobytes())
        return digest.hexdigest()


def read(captures: Captures, champion_version: str, config: MonitorConfig) -> Window:
    """The newest captured requests that `champion_version` answered; none is no error."""
    requests = read_window(captures, model_version=champion_version, limit=config.window_requests)
    return Window(champion_version, tuple(requests))
