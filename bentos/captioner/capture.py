"""What production sent and what people corrected: one SQLite file, written by the service,
read by the monitor and the feedback export in other processes."""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

FILE_NAME = "captures.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY, time REAL NOT NULL, model_version TEXT NOT NULL,
    caption TEXT NOT NULL, log_probability REAL NOT NULL, embedding BLOB NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, brightness REAL NOT NULL, image BLOB
);
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (time);
CREATE INDEX IF NOT EXISTS requests_by_version ON requests (model_version, time);
CREATE TABLE IF NOT EXISTS feedback (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, caption TEXT NOT NULL,
    request_id TEXT NOT NULL REFERENCES requests (request_id)
);
CREATE INDEX IF NOT EXISTS feedback_by_request ON feedback (request_id);
"""
_REQUEST_COLUMNS = (
    "request_id, time, model_version, caption, log_probability, "
    "embedding, width, height, brightness, image"
)


class UnknownRequest(KeyError):
    """No captured request has this id."""

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id

    def __str__(self) -> str:
        return f"No captured request has the id {self.request_id!r}."


class CaptureUnavailable(RuntimeError):
    """The store can't take this now; try again later."""


@dataclass(frozen=True)
class CapturedRequest:
    """A request the captioner answered; `time` in unix seconds, `brightness` from 0 to 1."""

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


@dataclass(frozen=True)
class LabelledRequest:
    """A captured picture, as it was received, and the captions people sent for it, oldest first."""

    request_id: str
    image: bytes
    captions: list[str]
    time: float
    model_version: str


@dataclass(frozen=True)
class _Feedback:
    request_id: str
    caption: str
    time: float
    stored: "Future[None]"


@dataclass(frozen=True)
class _Deletion:
    request_id: str
    stored: "Future[None]"


_Entry = CapturedRequest | _Feedback | _Deletion


class CaptureStore:
    """The writing side: `put` never waits; one thread writes, in the order things came."""

    def __init__(
        self, folder: Path, *, queue_size: int = 1024, on_drop: Callable[[int], None] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.dropped = 0
        self._on_drop = on_drop
        self._path = folder / FILE_NAME
        with closing(_connect(self._path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)
        self._queue: queue.Queue[_Entry | None] = queue.Queue(queue_size)
        self._thread = threading.Thread(target=self._write_all, name="capture", daemon=True)
        self._thread.start()

    def put(self, request: CapturedRequest) -> bool:
        """Queue a request for writing; False if it was dropped because the writer is behind."""
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            self._drop(1)
            return False
        return True

    def feedback(self, request_id: str, caption: str, *, timeout_seconds: float = 10.0) -> None:
        """Store what a person would have written; returns when it is on disk.

        Raises UnknownRequest, or CaptureUnavailable when the writer is behind or can't write.
        """
        self._settle(_Feedback(request_id, caption, time.time(), Future()), timeout_seconds)

    def delete(self, request_id: str, *, timeout_seconds: float = 10.0) -> None:
        """Remove a request with its picture and feedback; returns when they are gone from disk.

        Raises UnknownRequest, or CaptureUnavailable when the writer is behind or can't write.
        """
        self._settle(_Deletion(request_id, Future()), timeout_seconds)

    def close(self) -> None:
        """Write what is queued and stop."""
        self._queue.put(None)
        self._thread.join()

    def _settle(self, entry: _Feedback | _Deletion, timeout_seconds: float) -> None:
        try:
            self._queue.put(entry, timeout=timeout_seconds)
            entry.stored.result(timeout=timeout_seconds)
        except (queue.Full, TimeoutError, sqlite3.Error) as error:
            raise CaptureUnavailable("Captures can't be changed now; send it again.") from error

    def _drop(self, count: int) -> None:
        self.dropped += count
        if self._on_drop is not None:
            self._on_drop(count)

    def _write_all(self) -> None:
        with closing(_connect(self._path)) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, too
            while True:
                entries = self._take()
                self._write(connection, [entry for entry in entries if entry is not None])
                if None in entries:
                    return

    def _take(self) -> list[_Entry | None]:
        """Wait for an entry, then take what else is there, so that a burst is one transaction."""
        entries = [self._queue.get()]
        while entries[-1] is not None and len(entries) < 64:
            try:
                entries.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return entries

    def _write(self, connection: sqlite3.Connection, entries: list[_Entry]) -> None:
        waiting = [entry for entry in entries if not isinstance(entry, CapturedRequest)]
        unknown: list[_Feedback | _Deletion] = []
        try:
            with connection:
                for entry in entries:
                    if isinstance(entry, CapturedRequest):
                        _insert_request(connection, entry)
                    elif not _change(connection, entry):
                        unknown.append(entry)
        except sqlite3.Error as error:
            logger.exception("captures could not be written to %s", self._path)
            self._drop(len(entries) - len(waiting))
            _answer(waiting, {entry.stored: error for entry in waiting})
        else:
            _answer(waiting, {entry.stored: UnknownRequest(entry.request_id) for entry in unknown})


def read_window(folder: Path, *, model_version: str | None, limit: int) -> list[CapturedRequest]:
    """The last `limit` captured requests, newest first; all versions if `model_version` is None."""
    with _reading(folder) as connection:
        if connection is None:
            return []
        rows = connection.execute(
            f"SELECT {_REQUEST_COLUMNS} FROM requests "
            "WHERE ?1 IS NULL OR model_version = ?1 ORDER BY time DESC, rowid DESC LIMIT ?2",
            (model_version, limit),
        )
        return [
            CapturedRequest(**{**row, "embedding": np.frombuffer(row["embedding"], np.float32)})
            for row in rows
        ]


def read_feedback(folder: Path) -> list[LabelledRequest]:
    """Every request that people captioned and whose picture was kept, oldest request first."""
    labelled: dict[str, LabelledRequest] = {}
    with _reading(folder) as connection:
        if connection is None:
            return []
        rows = connection.execute(
            "SELECT request_id, image, requests.time, model_version, feedback.caption "
            "FROM feedback JOIN requests USING (request_id) WHERE image IS NOT NULL "
            "ORDER BY requests.time, requests.rowid, feedback.id"
        )
        for request_id, image, captured, version, caption in rows:
            request = labelled.setdefault(
                request_id, LabelledRequest(request_id, image, [], captured, version)
            )
            request.captions.append(caption)
    return list(labelled.values())


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=30)


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    path = folder / FILE_NAME
    if not path.is_file():
        yield None
        return
    with closing(_connect(path)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.row_factory = sqlite3.Row
        yield connection


def _insert_request(connection: sqlite3.Connection, request: CapturedRequest) -> None:
    connection.execute(
        f"INSERT INTO requests ({_REQUEST_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)",
        (
            request.request_id,
            request.time,
            request.model_version,
            request.caption,
            request.log_probability,
            request.embedding.astype(np.float32).tobytes(),
            request.width,
            request.height,
            request.brightness,
            request.image,
        ),
    )


def _change(connection: sqlite3.Connection, entry: _Feedback | _Deletion) -> bool:
    """False if no request has the id, which may stand earlier in the same transaction."""
    if isinstance(entry, _Deletion):
        connection.execute("DELETE FROM feedback WHERE request_id = ?", (entry.request_id,))
        cursor = connection.execute(
            "DELETE FROM requests WHERE request_id = ?", (entry.request_id,)
        )
    else:
        cursor = connection.execute(
            "INSERT INTO feedback (request_id, caption, time) "
            "SELECT request_id, ?, ? FROM requests WHERE request_id = ?",
            (entry.caption, entry.time, entry.request_id),
        )
    return cursor.rowcount == 1


def _answer(waiting: list[_Feedback | _Deletion], errors: dict["Future[None]", Exception]) -> None:
    for entry in waiting:
        if (error := errors.get(entry.stored)) is None:
            entry.stored.set_result(None)
        else:
            entry.stored.set_exception(error)
