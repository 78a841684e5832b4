"""What production sent and what people corrected: written by the service off the request path,
read by the monitor and the feedback export in other processes."""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from bentos.captioner.capture_file import CaptureFile
from bentos.captioner.capture_segments import CaptureSegments
from bentos.captioner.captured import (
    Backend,
    Bounds,
    CapturedRequest,
    CaptureUnavailable,
    Feedback,
    LabelledRequest,
    UnknownRequest,
)
from bentos.captioner.request_ids import seconds_of

logger = logging.getLogger(__name__)

# A process that is killed loses what came since the last writing.
_PERIOD_SECONDS = 0.5
_BATCH_REQUESTS = 256
_BATCH_BYTES = 8 * 2**20
# How long another process may take to write a request that it has just answered.
_GRACE_SECONDS = 3 * _PERIOD_SECONDS
_YOUNG_SECONDS = 120.0
_FLUSH_SECONDS = 10.0
_RETRY_SECONDS = 0.1
# Between two slices of expiry the writer has its turn.
_PAUSE_SECONDS = 0.01

Captures = str | PathLike[str]


def backend_of(captures: Captures) -> Backend:
    """Where captures lie: a folder's SQLite file, or segments under a URL of an object store.

    Raises BadCaptures if this process has no way to the URL.
    """
    place = str(captures).removeprefix("file://")
    return CaptureSegments(place) if "://" in place else CaptureFile(Path(place))


class CaptureStore:
    """The writing side: `put` never waits; one thread writes, another one keeps the bounds.

    While the place is away, requests wait in a memory of `max_waiting_bytes`, and are then dropped.
    """

    def __init__(
        self,
        captures: Captures,
        *,
        bounds: Bounds | None = None,
        max_waiting_bytes: int = 64 * 2**20,
        on_drop: Callable[[int], None] = lambda count: None,
        on_expire: Callable[[int], None] = lambda count: None,
        on_size: Callable[[int], None] = lambda size_bytes: None,
    ) -> None:
        self.dropped = 0
        self._backend = backend_of(captures)
        self._bounds = bounds or Bounds()
        self._max_waiting_bytes = max_waiting_bytes
        self._on_drop, self._on_expire, self._on_size = on_drop, on_expire, on_size
        self._waiting: deque[CapturedRequest] = deque()
        self._waiting_bytes = 0
        self._come = self._written = 0
        self._changed = threading.Condition()
        self._hurry = False
        self._closed = threading.Event()
        self._away = False
        self._backend.open()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._write_on, "capture"), (self._keep_bounds, "capture-bounds"))
        ]
        for thread in self._threads:
            thread.start()

    def put(self, request: CapturedRequest) -> bool:
        """Leave a request to the writer; False if it was dropped because the writer is behind."""
        size = request.memory_bytes
        with self._changed:
            fits = self._waiting_bytes + size <= self._max_waiting_bytes
            if fits:
                self._waiting.append(request)
                self._waiting_bytes += size
                self._come += 1
                if 2 * self._waiting_bytes > self._max_waiting_bytes and not self._away:
                    self._hurry_up()
        if not fits:
            self._drop(1)
        return fits

    def feedback(self, request_id: str, caption: str, client: str | None = None) -> None:
        """Store what a person would have written; returns when it is kept for good.

        Raises UnknownRequest, or CaptureUnavailable when the writer is behind or can't write.
        """
        sent = Feedback(caption, time.time(), client)
        self._change(request_id, lambda: self._backend.add_feedback(request_id, sent))

    def delete(self, request_id: str) -> None:
        """Remove a request with its picture and feedback; returns when they are gone.

        Raises UnknownRequest, or CaptureUnavailable when the writer is behind or can't write.
        """
        self._change(request_id, lambda: self._backend.delete(request_id))

    def flush(self, timeout_seconds: float = _FLUSH_SECONDS) -> None:
        """Return when all that was put is written. Raises CaptureUnavailable if it can't be."""
        with self._changed:
            goal = self._come
            self._hurry_up()
            if not self._changed.wait_for(lambda: self._written >= goal, timeout_seconds):
                raise CaptureUnavailable("Captures can't be written now; send it again.")

    def close(self) -> None:
        """Write what waits and stop; what can't be written now is lost."""
        self._closed.set()
        with self._changed:
            self._hurry_up()
        for thread in self._threads:
            thread.join(_FLUSH_SECONDS)
        if self._waiting:
            logger.error("%d captures could not be written", len(self._waiting))
            self._drop(len(self._waiting))
        self._backend.close()

    def _change(self, request_id: str, change: Callable[[], bool]) -> None:
        if change():
            return
        self.flush()  # it may be among those that wait here, or in another process
        made = seconds_of(request_id)
        young = made is not None and abs(time.time() - made) < _YOUNG_SECONDS
        deadline = time.monotonic() + (_GRACE_SECONDS if young else 0.0)
        while not change():
            if time.monotonic() >= deadline:
                raise UnknownRequest(request_id)
            time.sleep(_RETRY_SECONDS)

    def _hurry_up(self) -> None:
        self._hurry = True
        self._changed.notify_all()

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._on_drop(count)

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._hurry, _PERIOD_SECONDS)
                self._hurry = False
                last = self._closed.is_set()
            self._write_waiting()
            if last:
                return

    def _write_waiting(self) -> None:
        while batch := self._batch():
            try:
                self._backend.write(batch)
            except CaptureUnavailable:
                if not self._away:
                    logger.exception("captures can't be written: they wait, then they are dropped")
                self._away = True
                return
            self._away = False
            with self._changed:
                for request in batch:
                    self._waiting.popleft()
                    self._waiting_bytes -= request.memory_bytes
                self._written += len(batch)
                self._changed.notify_all()

    def _batch(self) -> list[CapturedRequest]:
        with self._changed:
            first = list(itertools.islice(self._waiting, _BATCH_REQUESTS))
        sizes = itertools.accumulate(request.memory_bytes for request in first)
        fitting = sum(size <= _BATCH_BYTES for size in sizes)
        return first[: max(1, fitting)]

    def _keep_bounds(self) -> None:
        while not self._closed.wait(self._backend.expiry_seconds):
            try:
                while expired := self._backend.expire(self._bounds):
                    self._on_expire(expired)
                    if self._closed.wait(_PAUSE_SECONDS):
                        return
                self._on_size(self._backend.size_bytes())
            except CaptureUnavailable as error:
                logger.warning("captures can't be kept in bounds now: %s", error)


def read_window(
    captures: Captures, *, model_version: str | None, limit: int
) -> list[CapturedRequest]:
    """The last `limit` captured requests, newest first; all versions if `model_version` is None.

    Raises CaptureUnavailable.
    """
    return backend_of(captures).window(model_version, limit)


def read_feedback(captures: Captures) -> list[LabelledRequest]:
    """Every request that people captioned and whose picture was kept, oldest request first.

    Raises CaptureUnavailable.
    """
    return backend_of(captures).labelled()
