"""Captures as segments under a URL: services without a common disk write to one prefix.

    requests/version=<version>/hour=<hour>/<least id>-<greatest id>-<count>-<its own id>.sqlite
    feedback/hour=<hour>/<request id>-<its own id>.json
    deleted/hour=<hour>/<request id>

The hour is the request id's, so that a request is found by its id without an index.

A segment that loses requests is written over, and two services may do so at the same time: one
writes what the other has just left out. So whoever deletes marks the request first, and whoever
writes over a segment looks at the marks afterwards, again and again until none is in what it wrote.
Readers leave out what is marked.
"""

import heapq
import itertools
import json
import logging
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from bentos.captioner.capture_file import connect, create_requests, insert, request_of
from bentos.captioner.captured import (
    BadCaptures,
    Bounds,
    CapturedRequest,
    CaptureUnavailable,
    Feedback,
    LabelledRequest,
)
from bentos.captioner.request_ids import new_request_id, seconds_of

logger = logging.getLogger(__name__)

_HOUR_SECONDS = 3600
_FETCHED_AT_ONCE = 16
# By default a request to an S3 that hangs ends after 25 minutes.
_S3_OPTIONS = {
    "config_kwargs": {"connect_timeout": 3, "read_timeout": 10, "retries": {"max_attempts": 2}}
}


@dataclass(frozen=True)
class _Segment:
    """Requests with ids from `first` to `last`, all of the `hour`; `count` when it was made."""

    last: str
    first: str
    count: int
    hour: str
    path: str
    size_bytes: int

    def may_hold(self, request_ids: Iterable[str]) -> bool:
        return any(self.first <= request_id <= self.last for request_id in request_ids)


@dataclass(frozen=True, order=True)
class _Entry:
    """Where what a person sent of a request lies."""

    hour: str
    request_id: str
    path: str


class CaptureSegments:
    """Segments under a URL of fsspec's; a Backend."""

    expiry_seconds = 60.0

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs

            options = _S3_OPTIONS if url.startswith(("s3://", "s3a://")) else {}
            self._fs, root = url_to_fs(url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise BadCaptures(
                f"CAPTIONLOOP_CAPTURES: {url} can't be used here ({error}): install what it needs, "
                f"such as: pip install 'fsspec[{url.partition(':')[0]}]'"
            ) from error
        self._failures: tuple[type[Exception], ...] = (OSError,)
        if options:
            from botocore.exceptions import BotoCoreError

            self._failures = (OSError, BotoCoreError)
            self._fs.retries = 1  # of s3fs's own, beside botocore's
        self._root = root.rstrip("/")
        self._url = url
        self._sizes: dict[tuple[str, str], int] = {}

    def open(self) -> None:
        """Nothing: the place may be away when a service starts."""

    def close(self) -> None:
        """Nothing is held."""

    def write(self, requests: Sequence[CapturedRequest]) -> None:
        with self._reached():
            for folder, those in itertools.groupby(sorted(requests, key=_key), key=_folder):
                self._put(folder, list(those))

    def add_feedback(self, request_id: str, feedback: Feedback) -> bool:
        with self._reached():
            hour = _hour(request_id)
            if hour is None or not self._find(hour, {request_id}):
                return False
            path = f"{self._root}/feedback/hour={hour}/{request_id}-{new_request_id()}.json"
            self._fs.pipe_file(path, json.dumps(asdict(feedback)).encode())
            if request_id in self._deleted(hour):  # while this was written
                self._remove(path)
                return False
            return True

    def delete(self, request_id: str) -> bool:
        with self._reached():
            hour = _hour(request_id)
            if hour is None or not (holders := list(self._holders(hour, {request_id}))):
                return False
            self._fs.pipe_file(f"{self._root}/deleted/hour={hour}/{request_id}", b"")
            for one in self._feedback(hour):
                if one.request_id == request_id:
                    self._remove(one.path)
            while holders:
                for segment, requests in holders:
                    self._keep(segment, [one for one in requests if one.request_id != request_id])
                holders = list(self._holders(hour, {request_id}))
            return True

    def expire(self, bounds: Bounds) -> int:
        since = max(0.0, time.time() - 86400 * bounds.days)
        least = new_request_id(since)[:12]  # of the ids that are young enough
        expired = 0
        with self._reached():
            folders = sorted(self._folders(None))
            self._sizes = {folder: self._size(folder) for folder in folders}
            if self._within(bounds) and not any(hour <= _hour_at(since) for hour, _ in folders):
                return 0
            for spared in (self._corrected(), None):
                for folder, segment in self._oldest(folders):
                    if self._within(bounds) and segment.last >= least:
                        break
                    requests, size_bytes = self._thin(segment, spared)
                    expired += requests
                    self._sizes[folder] -= size_bytes
            if expired:
                self._forget_marks()
        return expired

    def size_bytes(self) -> int:
        """As of the last `expire`."""
        return sum(self._sizes.values())

    def window(self, model_version: str | None, limit: int) -> list[CapturedRequest]:
        """Newest by id: of when the request came, not of when it was answered."""
        found: dict[str, CapturedRequest] = {}
        with self._reached():
            folders = sorted(self._folders(model_version), reverse=True)
            for hour, those in itertools.groupby(folders, key=lambda folder: folder[0]):
                segments = [one for _, path in those for one in self._segments(path)]
                segments.sort(key=lambda one: one.last, reverse=True)
                deleted = self._deleted(hour)
                for segment, requests in self._read(segments):
                    if len(found) >= limit and segment.last < heapq.nlargest(limit, found)[-1]:
                        break  # nor are the others' requests among the newest
                    for one in requests:
                        if one.request_id not in deleted:
                            found[one.request_id] = one
                if len(found) >= limit:
                    break
        return [found[request_id] for request_id in heapq.nlargest(limit, found)]

    def labelled(self) -> list[LabelledRequest]:
        labelled: dict[str, LabelledRequest] = {}
        with self._reached():
            for hour, those in itertools.groupby(self._feedback(), key=lambda one: one.hour):
                entries = list(those)
                requests = self._find(hour, {one.request_id for one in entries})
                for request_id, feedback in self._said(entries):
                    request = requests.get(request_id)
                    if request is not None and request.image is not None:
                        label = LabelledRequest(
                            *(request_id, request.image, request.caption, []),
                            *(request.time, request.model_version),
                        )
                        labelled.setdefault(request_id, label).feedback.append(feedback)
        return sorted(labelled.values(), key=lambda one: (one.time, one.request_id))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise CaptureUnavailable(f"{self._url} can't be reached now: {error}") from error

    # --- places ----------------------------------------------------------------------------------

    def _list(self, path: str) -> list[dict[str, Any]]:
        try:
            return self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []

    def _folders(self, model_version: str | None) -> list[tuple[str, str]]:
        """(hour, path) of what holds segments."""
        if model_version is None:
            versions = [entry["name"] for entry in self._list(f"{self._root}/requests")]
        else:
            versions = [f"{self._root}/requests/{_version(model_version)}"]
        paths = [entry["name"] for version in versions for entry in self._list(version)]
        return [(path.rpartition("hour=")[2], path) for path in paths]

    def _segments(self, folder: str) -> list[_Segment]:
        found = []
        for entry in self._list(folder):
            name = entry["name"].rpartition("/")[2]
            if name.endswith(".sqlite"):
                first, last, count, _ = name.split("-")
                hour = folder.rpartition("hour=")[2]
                found.append(_Segment(last, first, int(count), hour, entry["name"], entry["size"]))
        return found

    def _feedback(self, hour: str | None = None) -> list["_Entry"]:
        """What people sent, by hour; of one hour's requests or of all."""
        place = f"{self._root}/feedback" + (f"/hour={hour}" if hour else "")
        found = []
        for path in self._fs.find(place):
            folder, _, name = path.rpartition("/")
            found.append(_Entry(folder.rpartition("hour=")[2], name.partition("-")[0], path))
        return sorted(found)

    def _said(self, entries: Sequence["_Entry"]) -> list[tuple[str, Feedback]]:
        """(the request's id, what was sent), oldest first; without what was removed meanwhile."""
        contents = self._fs.cat([one.path for one in entries], on_error="omit")
        said = [
            (one.request_id, Feedback(**json.loads(contents[one.path])))
            for one in entries
            if one.path in contents
        ]
        return sorted(said, key=lambda one: one[1].time)

    def _corrected(self) -> frozenset[str]:
        return frozenset(one.request_id for one in self._feedback())

    def _deleted(self, hour: str) -> set[str]:
        entries = self._list(f"{self._root}/deleted/hour={hour}")
        return {entry["name"].rpartition("/")[2] for entry in entries}

    def _within(self, bounds: Bounds) -> bool:
        return self.size_bytes() <= bounds.max_bytes

    def _oldest(
        self, folders: Iterable[tuple[str, str]]
    ) -> Iterator[tuple[tuple[str, str], _Segment]]:
        """The segments as they are now, oldest first; others may have removed some."""
        for folder in folders:
            segments = self._segments(folder[1])
            self._sizes[folder] = sum(segment.size_bytes for segment in segments)
            for segment in sorted(segments, key=lambda one: one.last):
                yield folder, segment

    def _size(self, folder: tuple[str, str]) -> int:
        """Only the last hours still grow; what others removed of older ones is seen in `expire`."""
        settled = folder[0] < _hour_at(time.time() - _HOUR_SECONDS)
        if settled and folder in self._sizes:
            return self._sizes[folder]
        return sum(segment.size_bytes for segment in self._segments(folder[1]))

    # --- contents --------------------------------------------------------------------------------

    def _read(
        self, segments: Iterable[_Segment]
    ) -> Iterator[tuple[_Segment, list[CapturedRequest]]]:
        """Some at once; without those that others removed meanwhile."""
        remaining = iter(segments)
        while some := list(itertools.islice(remaining, _FETCHED_AT_ONCE)):
            contents = self._fs.cat([one.path for one in some], on_error="return")
            for segment in some:
                data = contents[segment.path]
                if isinstance(data, FileNotFoundError):
                    continue
                if isinstance(data, Exception):
                    raise data
                try:
                    yield segment, _unpack(data)
                except sqlite3.DatabaseError:
                    logger.warning("%s is no segment of captures: left out", segment.path)

    def _holders(
        self, hour: str, request_ids: Collection[str]
    ) -> Iterator[tuple[_Segment, list[CapturedRequest]]]:
        """The segments that hold any of these requests, deleted or not."""
        folders = [path for at, path in self._folders(None) if at == hour]
        segments = [one for folder in folders for one in self._segments(folder)]
        for segment, requests in self._read(one for one in segments if one.may_hold(request_ids)):
            if any(one.request_id in request_ids for one in requests):
                yield segment, requests

    def _find(self, hour: str, request_ids: Collection[str]) -> dict[str, CapturedRequest]:
        wanted = set(request_ids) - self._deleted(hour)
        return {
            one.request_id: one
            for _, requests in self._holders(hour, wanted)
            for one in requests
            if one.request_id in wanted
        }

    def _put(self, folder: str, requests: Sequence[CapturedRequest]) -> None:
        name = f"{requests[0].request_id}-{requests[-1].request_id}-{len(requests)}"
        path = f"{self._root}/{folder}/{name}-{new_request_id()}.sqlite"
        self._fs.pipe_file(path, _pack(requests))

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):  # another service was faster
            self._fs.rm_file(path)

    def _keep(self, segment: _Segment, requests: Sequence[CapturedRequest]) -> int:
        """Write over a segment with what is kept of it, if that is not marked as deleted.

        Its new size.
        """
        while True:
            size = 0
            if requests:
                data = _pack(requests)
                size = len(data)
                self._fs.pipe_file(segment.path, data)
            else:
                self._remove(segment.path)
            marked = self._deleted(segment.hour)
            if not any(one.request_id in marked for one in requests):
                return size
            requests = [one for one in requests if one.request_id not in marked]

    def _thin(self, segment: _Segment, spared: Collection[str] | None) -> tuple[int, int]:
        """Expire a segment but for the requests that are spared; how many went, and bytes."""
        if spared is not None and not segment.may_hold(spared):
            self._remove(segment.path)
            return segment.count, segment.size_bytes
        for _, requests in self._read([segment]):
            kept = [one for one in requests if one.request_id in (spared or ())]
            if len(kept) < len(requests):
                size = self._keep(segment, kept)
                return len(requests) - len(kept), segment.size_bytes - size
        return 0, 0

    def _forget_marks(self) -> None:
        """Remove feedback and marks of hours that nothing is left of."""
        hours = {hour for hour, _ in self._folders(None)}
        for kind in ("feedback", "deleted"):
            for entry in self._list(f"{self._root}/{kind}"):
                if entry["name"].rpartition("hour=")[2] not in hours:
                    self._fs.rm(entry["name"], recursive=True)


def _hour(request_id: str) -> str | None:
    """None for an id that is none of ours."""
    seconds = seconds_of(request_id)
    return None if seconds is None else _hour_at(seconds)


def _hour_at(seconds: float) -> str:
    """Such as 2026-11-24T16."""
    return str(np.datetime64(int(seconds) // _HOUR_SECONDS, "h"))


def _version(model_version: str) -> str:
    return f"version={quote(model_version, safe='')}"


def _folder(request: CapturedRequest) -> str:
    return f"requests/{_version(request.model_version)}/hour={_hour(request.request_id)}"


def _key(request: CapturedRequest) -> tuple[str, str]:
    return _folder(request), request.request_id


def _pack(requests: Sequence[CapturedRequest]) -> bytes:
    with closing(connect(None)) as connection:
        create_requests(connection)
        insert(connection, requests)
        return connection.serialize()


def _unpack(data: bytes) -> list[CapturedRequest]:
    with closing(connect(None)) as connection:
        connection.deserialize(data)
        return [request_of(row) for row in connection.execute("SELECT * FROM requests")]
