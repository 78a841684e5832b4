"""Captures in one SQLite file, which several processes of one machine may share."""

import json
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path

import numpy as np

from bentos.captioner.captured import (
    Bounds,
    CapturedRequest,
    CaptureUnavailable,
    Feedback,
    LabelledRequest,
)

FILE_NAME = "captures.sqlite"
_REQUESTS = """
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY, time REAL NOT NULL, model_version TEXT NOT NULL,
    caption TEXT NOT NULL, log_probability REAL NOT NULL, embedding BLOB NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, brightness REAL NOT NULL, image BLOB
)
"""
# Columns that files from before lack.
_ADDED_FEEDBACK = {"client": "TEXT"}
_ADDED = {
    "num_tokens": "INTEGER",
    "sharpness": "REAL",
    "image_bytes": "INTEGER",
    "options": "TEXT NOT NULL DEFAULT '{}'",
}
_FEEDBACK_AND_INDEXES = (
    """CREATE TABLE IF NOT EXISTS feedback (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, caption TEXT NOT NULL,
    request_id TEXT NOT NULL REFERENCES requests (request_id)
    )""",
    "CREATE INDEX IF NOT EXISTS requests_by_time ON requests (time)",
    "CREATE INDEX IF NOT EXISTS requests_by_version ON requests (model_version, time)",
    "CREATE INDEX IF NOT EXISTS feedback_by_request ON feedback (request_id)",
)
_ROWS = 64
_COLUMNS = tuple(each.name for each in fields(CapturedRequest))
_LOCK_SECONDS = 5.0
# One slice of expiry holds the file for some milliseconds.
_SLICE_REQUESTS = 16
_SLICE_PAGES = 512


class CaptureFile:
    """`captures.sqlite` in a folder; a Backend. One connection writes, in one thread at a time."""

    expiry_seconds = 1.0

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._lock = threading.Lock()

    def open(self) -> None:
        """Make the file, or give one from before the columns it lacks."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._available("opened"):
            self._connection = connect(self._path)
            self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        with self._transaction() as connection:
            _create(connection)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def write(self, requests: Sequence[CapturedRequest]) -> None:
        with self._transaction() as connection:
            insert(connection, requests)

    def add_feedback(self, request_id: str, feedback: Feedback) -> bool:
        with self._transaction() as connection:
            added = connection.execute(
                "INSERT INTO feedback (request_id, caption, time, client) "
                "SELECT request_id, ?, ?, ? FROM requests WHERE request_id = ?",
                (feedback.caption, feedback.time, feedback.client, request_id),
            )
            return added.rowcount == 1

    def delete(self, request_id: str) -> bool:
        with self._transaction() as connection:
            return _delete(connection, [request_id]) == 1

    def expire(self, bounds: Bounds) -> int:
        with self._transaction() as connection:
            expired = _expire(connection, "time < ?", time.time() - 86400 * bounds.days)
            if not expired and _used_bytes(connection) > bounds.max_bytes:
                corrected = "(SELECT 1 FROM feedback WHERE request_id = requests.request_id)"
                expired = _expire(connection, f"NOT EXISTS {corrected}") or _expire(connection)
        with self._held() as connection:
            _shrink(connection)
        return expired

    def size_bytes(self) -> int:
        with self._held() as connection:
            return _used_bytes(connection)

    def window(self, model_version: str | None, limit: int) -> list[CapturedRequest]:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT * FROM requests "
                "WHERE ?1 IS NULL OR model_version = ?1 ORDER BY time DESC, rowid DESC LIMIT ?2",
                (model_version, limit),
            )
            return [request_of(row) for row in rows]

    def labelled(self) -> list[LabelledRequest]:
        feedback: dict[str, list[Feedback]] = defaultdict(list)
        with self._reading() as connection:
            connection.execute("BEGIN")  # both queries see the file as it is now
            for row in connection.execute("SELECT * FROM feedback ORDER BY id"):
                client = row["client"] if "client" in row.keys() else None  # noqa: SIM118
                feedback[row["request_id"]].append(Feedback(row["caption"], row["time"], client))
            rows = connection.execute(
                "SELECT request_id, image, caption, time, model_version FROM requests "
                "WHERE image IS NOT NULL AND request_id IN (SELECT request_id FROM feedback) "
                "ORDER BY time, rowid"
            )
            return [LabelledRequest(**row, feedback=feedback[row["request_id"]]) for row in rows]

    @contextmanager
    def _held(self) -> Iterator[sqlite3.Connection]:
        if not self._lock.acquire(timeout=_LOCK_SECONDS):
            raise CaptureUnavailable(f"{self._path} is in use.")
        try:
            with self._available("changed"):
                yield self._connection
        finally:
            self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._held() as connection:
            # One that first reads could not wait for another process that writes meanwhile.
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        path = self._path if self._path.is_file() else None
        with self._available("read"), closing(connect(path)) as connection:
            if path is None:
                _create(connection)
            connection.execute("PRAGMA query_only = ON")
            yield connection

    @contextmanager
    def _available(self, done: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise CaptureUnavailable(f"{self._path} can't be {done} now: {error}") from error


def connect(path: Path | None) -> sqlite3.Connection:
    """To a file, or to one in memory."""
    connection = sqlite3.connect(
        path or ":memory:", timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    return connection


def create_requests(connection: sqlite3.Connection) -> None:
    """The table of requests with all its columns."""
    connection.execute(_REQUESTS)
    _add_columns(connection, "requests", _ADDED)


def insert(connection: sqlite3.Connection, requests: Iterable[CapturedRequest]) -> None:
    """Add those that are not there yet."""
    row = f"({', '.join('?' * len(_COLUMNS))})"
    rows = map(_row_of, requests)
    # Many rows a statement: at each one the thread gives the interpreter up and asks for it again.
    while some := list(islice(rows, _ROWS)):
        connection.execute(
            f"INSERT OR IGNORE INTO requests ({', '.join(_COLUMNS)}) "
            f"VALUES {', '.join([row] * len(some))}",
            list(chain.from_iterable(some)),
        )


def request_of(row: sqlite3.Row) -> CapturedRequest:
    """The record in a row, of a file of any age."""
    found = {name: row[name] for name in row.keys() if name in _COLUMNS}  # noqa: SIM118
    found["embedding"] = np.frombuffer(found["embedding"], np.float32)
    found["options"] = json.loads(found.get("options", "{}"))
    return CapturedRequest(**found)


def _create(connection: sqlite3.Connection) -> None:
    create_requests(connection)
    for statement in _FEEDBACK_AND_INDEXES:
        connection.execute(statement)
    _add_columns(connection, "feedback", _ADDED_FEEDBACK)


def _add_columns(connection: sqlite3.Connection, table: str, columns: Mapping[str, str]) -> None:
    present = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
    for name in columns.keys() - present:
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {columns[name]}")


def _row_of(request: CapturedRequest) -> list[object]:
    values = {name: getattr(request, name) for name in _COLUMNS}
    values["embedding"] = request.embedding.astype(np.float32).tobytes()
    values["options"] = json.dumps(dict(request.options)) if request.options else "{}"
    return list(values.values())


def _expire(connection: sqlite3.Connection, which: str = "TRUE", *values: float) -> int:
    """Delete the oldest few of some requests; how many."""
    rows = connection.execute(
        f"SELECT request_id FROM requests WHERE {which} ORDER BY time LIMIT {_SLICE_REQUESTS}",
        values,
    )
    return _delete(connection, [row["request_id"] for row in rows])


def _delete(connection: sqlite3.Connection, request_ids: Sequence[str]) -> int:
    ids = [(request_id,) for request_id in request_ids]
    connection.executemany("DELETE FROM feedback WHERE request_id = ?", ids)
    return connection.executemany("DELETE FROM requests WHERE request_id = ?", ids).rowcount


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free = _value(connection, "page_count"), _value(connection, "freelist_count")
    return (pages - free) * _value(connection, "page_size")


def _shrink(connection: sqlite3.Connection) -> None:
    """Give free pages back to the disk, a slice of them; new requests will need a tenth soon.

    A file from before it could (auto_vacuum is chosen when it is made) only uses them again.
    """
    if 10 * _value(connection, "freelist_count") > _value(connection, "page_count"):
        # `execute` would stop after one page: each is a row without columns.
        connection.executescript(f"PRAGMA incremental_vacuum({_SLICE_PAGES})")


def _value(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
