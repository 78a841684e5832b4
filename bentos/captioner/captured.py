"""What is kept of a request, and what a store of such records can do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class BadCaptures(ValueError):
    """A place for captures that this process has no way to."""


class UnknownRequest(KeyError):
    """No captured request has this id."""

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id

    def __str__(self) -> str:
        return f"No captured request has the id {self.request_id!r}."


class CaptureUnavailable(RuntimeError):
    """The store can't be reached or changed now; try again later."""


@dataclass(frozen=True)
class CapturedRequest:
    """A request the captioner answered; `time` in unix seconds.

    `brightness` and `sharpness` are the picture's statistics, `image_bytes` its size as it came,
    `options` what the request said of its caption: empty where the model's card decided alone.
    None: the record is older than the figure.
    """

    request_id: str
    time: float
    model_version: str
    caption: str
    log_probability: float
    embedding: np.ndarray
    width: int
    height: int
    brightness: float
    image: bytes | None
    num_tokens: int | None = None
    sharpness: float | None = None
    image_bytes: int | None = None
    options: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def memory_bytes(self) -> int:
        return len(self.image or b"") + self.embedding.nbytes + 1024


@dataclass(frozen=True)
class Feedback:
    """What a person would have written; `time` in unix seconds, `client` as `clients.py` names it,
    None where it isn't known."""

    caption: str
    time: float
    client: str | None = None


@dataclass(frozen=True)
class LabelledRequest:
    """A captured picture, as it was received, what the model said of it, and what people did,
    oldest first."""

    request_id: str
    image: bytes
    caption: str
    feedback: list[Feedback]
    time: float
    model_version: str

    @property
    def captions(self) -> list[str]:
        return [one.caption for one in self.feedback]


@dataclass(frozen=True)
class Bounds:
    """How much a store keeps, and for how long."""

    max_bytes: int = 10 * 2**30
    days: float = math.inf


class Backend(Protocol):
    """A place for records. Any call raises CaptureUnavailable while the place is away."""

    expiry_seconds: float

    def open(self) -> None:
        """Get ready for writing; reading needs no such thing."""

    def close(self) -> None: ...

    def write(self, requests: Sequence[CapturedRequest]) -> None:
        """Keep all of them before it returns; one that is there already stays as it is."""

    def add_feedback(self, request_id: str, feedback: Feedback) -> bool:
        """False if no request has the id."""

    def delete(self, request_id: str) -> bool:
        """Remove a request with its picture and feedback; False if there is none."""

    def expire(self, bounds: Bounds) -> int:
        """Remove some of what is beyond the bounds; how many requests, 0 when nothing is.

        The oldest go first, whole: a request without its picture could not be corrected any more.
        For room the corrected ones go last; when their days are over all go.
        """

    def size_bytes(self) -> int: ...

    def window(self, model_version: str | None, limit: int) -> list[CapturedRequest]:
        """The last `limit` requests, newest first; of all versions if `model_version` is None."""

    def labelled(self) -> list[LabelledRequest]:
        """Every request that people captioned and whose picture was kept, oldest first."""
