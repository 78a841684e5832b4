import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3 import served_bucket

from bentos.captioner.capture import CaptureStore, backend_of, read_feedback, read_window
from bentos.captioner.capture_file import FILE_NAME
from bentos.captioner.captured import (
    BadCaptures,
    Bounds,
    CapturedRequest,
    CaptureUnavailable,
    Feedback,
    UnknownRequest,
)
from bentos.captioner.images import decode, to_pixels
from bentos.captioner.request_ids import new_request_id
from bentos.captioner.statistics import picture_statistics
from bentos.packaging import free_port
from configs.settings import ROOT
from tests.bentos.captures import now, request, request_id
from tests.bentos.serving import served

EVERYTHING = 10_000
# As the service had it before there was more to keep.
OLD_SCHEMA = """
CREATE TABLE requests (
    request_id TEXT PRIMARY KEY, time REAL NOT NULL, model_version TEXT NOT NULL,
    caption TEXT NOT NULL, log_probability REAL NOT NULL, embedding BLOB NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, brightness REAL NOT NULL, image BLOB
);
CREATE INDEX requests_by_time ON requests (time);
CREATE INDEX requests_by_version ON requests (model_version, time);
CREATE TABLE feedback (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, caption TEXT NOT NULL,
    request_id TEXT NOT NULL REFERENCES requests (request_id)
);
CREATE INDEX feedback_by_request ON feedback (request_id);
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with served_bucket("captures") as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path) -> str:
    """Where captures lie: nothing yet, in a folder or on an S3 server."""
    if request.param == "folder":
        return str(tmp_path / "captures")
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


def everything(place: str) -> dict[str, CapturedRequest]:
    window = read_window(place, model_version=None, limit=EVERYTHING)
    found = {captured.request_id: captured for captured in window}
    assert len(found) == len(window)
    return found


def bytes_at(place: str) -> bytes:
    """All that is stored there."""
    if "://" not in place:
        with closing(sqlite3.connect(f"{place}/{FILE_NAME}")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    fs, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
    return b"".join(fs.cat_file(path) for path in fs.find(root))


def numbers(found: dict[str, CapturedRequest]) -> list[int]:
    return sorted(captured.num_tokens for captured in found.values())


def test_what_was_put_is_read_back_newest_first(place) -> None:
    store = CaptureStore(place)
    for number in range(5):
        assert store.put(request(number, version="12"[number % 2]))
    store.close()
    window = read_window(place, model_version=None, limit=3)
    assert [captured.caption for captured in window] == ["caption 4", "caption 3", "caption 2"]
    assert np.array_equal(window[1].embedding, np.full(4, 3, np.float32))
    expected = request(3, version="2")
    assert {**vars(window[1]), "embedding": None} == {**vars(expected), "embedding": None}
    only = read_window(place, model_version="2", limit=10)
    assert [captured.caption for captured in only] == ["caption 3", "caption 1"]


def test_feedback_finds_a_request_that_is_not_written_yet(place) -> None:
    store = CaptureStore(place)
    for number in range(10):
        store.put(request(number))
        store.feedback(request_id(number), f"truth {number}")
    store.feedback(request_id(7), "another truth")
    store.close()
    labelled = read_feedback(place)
    assert len(labelled) == 10
    assert labelled[7].captions == ["truth 7", "another truth"]
    assert (labelled[7].image, labelled[7].model_version) == (b"png", "1")
    assert labelled[7].time == request(7).time


def test_feedback_finds_what_another_process_has_just_answered(place) -> None:
    answering, correcting = CaptureStore(place), CaptureStore(place)
    captured = now()
    answering.put(captured)
    correcting.feedback(captured.request_id, "truth")
    answering.put(other := now())
    correcting.delete(other.request_id)
    answering.close()
    correcting.close()
    assert [one.captions for one in read_feedback(place)] == [["truth"]]
    assert everything(place).keys() == {captured.request_id}


def test_an_unknown_id_is_an_error_and_stores_nothing(place) -> None:
    store = CaptureStore(place)
    store.put(request(1))
    for unknown in ("nobody", "a/../b", "f" * 32, request_id(2), new_request_id()):
        with pytest.raises(UnknownRequest, match=unknown):
            store.feedback(unknown, "a caption")
    with pytest.raises(UnknownRequest):
        store.delete(request_id(2))
    store.close()
    assert read_feedback(place) == []
    assert numbers(everything(place)) == [1]


def test_feedback_without_a_kept_picture_trains_nobody(place) -> None:
    store = CaptureStore(place)
    store.put(request(0, image=None))
    store.feedback(request_id(0), "a caption")
    store.close()
    assert read_feedback(place) == []
    assert everything(place)[request_id(0)].image is None


def test_a_place_without_captures_reads_as_empty_and_stays_so(place) -> None:
    assert everything(place) == {}
    assert read_feedback(place) == []
    assert not os.path.exists(place)


def test_a_deleted_request_is_gone_with_its_picture_and_feedback(place) -> None:
    store = CaptureStore(place)
    for number in range(3):
        store.put(request(number, image=b"picture-%d" % number))
        store.feedback(request_id(number), f"truth {number}")
    store.delete(request_id(1))
    for change in (store.delete, lambda gone: store.feedback(gone, "late")):
        with pytest.raises(UnknownRequest):
            change(request_id(1))
    store.close()
    assert numbers(everything(place)) == [0, 2]
    assert [one.captions for one in read_feedback(place)] == [["truth 0"], ["truth 2"]]
    left = bytes_at(place)
    assert b"picture-2" in left
    assert b"truth 2" in left
    assert b"picture-1" not in left
    assert b"truth 1" not in left


def test_beyond_its_size_the_oldest_go_first_and_the_corrected_ones_last(place) -> None:
    backend = backend_of(place)
    backend.open()
    for first in range(0, 400, 20):
        backend.write([request(n, image=bytes(20_000)) for n in range(first, first + 20)])
    corrected = {5, 17, 111}
    for number in corrected:
        assert backend.add_feedback(request_id(number), Feedback("truth", 0.0))
    before = len(bytes_at(place))
    bounds = Bounds(max_bytes=3_000_000)
    expired = expire(place, backend, bounds)
    left = numbers(everything(place))
    assert expired == 400 - len(left)
    assert 60 < len(left) < 150
    newest = len(left) - len(corrected)
    assert left == sorted(corrected | set(range(400 - newest, 400)))
    assert before > 8_000_000
    assert len(bytes_at(place)) < 1.2 * bounds.max_bytes
    expire(place, backend, Bounds(max_bytes=100_000))
    assert set(numbers(everything(place))) <= corrected
    backend.close()


def expire(place: str, backend, bounds: Bounds) -> int:
    """All of it, and a few slices more, in which free pages come back."""
    total = 0
    while expired := backend.expire(bounds):
        total += expired
    for _ in range(5):
        assert backend.expire(bounds) == 0
    assert backend.size_bytes() <= bounds.max_bytes
    return total


def test_when_its_days_are_over_a_request_goes_even_if_it_was_corrected(place) -> None:
    backend = backend_of(place)
    backend.open()
    hours = [100, 51, 47, 1]
    at = [time.time() - 3600 * age for age in hours]
    aged = [
        replace(request(n), request_id=new_request_id(seconds), time=seconds)
        for n, seconds in enumerate(at)
    ]
    backend.write(aged)
    for one in aged:
        assert backend.add_feedback(one.request_id, Feedback(f"truth {one.num_tokens}", 0.0))
    assert expire(place, backend, Bounds(days=2)) == 2
    assert numbers(everything(place)) == [2, 3]
    assert [one.captions for one in read_feedback(place)] == [["truth 2"], ["truth 3"]]
    assert b"truth 0" not in bytes_at(place)
    backend.close()


def test_the_store_keeps_its_bounds_by_itself_and_tells_its_size(tmp_path) -> None:
    sizes: list[int] = []
    expired: list[int] = []
    store = CaptureStore(
        tmp_path,
        bounds=Bounds(max_bytes=1_000_000),
        on_expire=expired.append,
        on_size=sizes.append,
    )
    for number in range(200):
        store.put(request(number, image=bytes(20_000)))
    store.flush()
    deadline = time.monotonic() + 20
    while not sizes or sizes[-1] > 1_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    store.close()
    assert sum(expired) == 200 - len(everything(str(tmp_path)))


def test_a_store_that_is_away_makes_requests_wait_and_then_drops_and_counts(tmp_path) -> None:
    drops: list[int] = []
    store = CaptureStore(tmp_path, max_waiting_bytes=100_000, on_drop=drops.append)
    store.flush()
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        started = time.perf_counter()
        results = [store.put(request(number)) for number in range(200)]
        assert time.perf_counter() - started < 0.2
        assert results == sorted(results, reverse=True)  # what waits already is not given up
        assert 0 < results.count(True) < 200
        with pytest.raises(CaptureUnavailable):
            store.feedback(request_id(0), "caption")
        blocker.execute("ROLLBACK")
    store.flush()
    assert store.put(request(500))
    store.close()
    assert store.dropped == sum(drops) == results.count(False)
    assert numbers(everything(str(tmp_path))) == [*range(results.count(True)), 500]


def test_a_failed_write_is_tried_again(tmp_path) -> None:
    store = CaptureStore(tmp_path)
    store.put(request(1))
    store.flush()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON requests BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        store.put(request(2))
        with pytest.raises(CaptureUnavailable):
            store.flush(timeout_seconds=1.0)
        connection.execute("DROP TRIGGER full")
    store.flush()
    store.put(request(1))  # it is there already
    store.close()
    assert store.dropped == 0
    assert numbers(everything(str(tmp_path))) == [1, 2]


def test_many_threads_lose_nothing(tmp_path) -> None:
    store = CaptureStore(tmp_path)

    def work(first: int) -> None:
        for number in range(first, first + 50):
            store.put(request(number))
            store.feedback(request_id(number), "truth")

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert len(read_feedback(tmp_path)) == 400


def test_a_file_from_before_is_read_and_written_on(tmp_path) -> None:
    old = request(1)
    kept = (*["request_id", "time", "model_version", "caption", "log_probability"],)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.executescript(OLD_SCHEMA)
        values = [*(getattr(old, name) for name in kept), old.embedding.tobytes(), 10, 20, 0.25]
        connection.execute("INSERT INTO requests VALUES (?,?,?,?,?,?,?,?,?,?)", [*values, b"png"])
        feedback = (1, 7.0, "old truth", old.request_id)
        connection.execute("INSERT INTO feedback VALUES (?,?,?,?)", feedback)

    def reads_as_before(captured: CapturedRequest) -> None:
        assert (captured.caption, captured.image, captured.options) == ("caption 1", b"png", {})
        assert captured.num_tokens is captured.sharpness is captured.image_bytes is None

    reads_as_before(everything(str(tmp_path))[old.request_id])
    (labelled,) = read_feedback(tmp_path)
    assert labelled.feedback == [Feedback("old truth", 7.0)]
    store = CaptureStore(tmp_path)
    store.put(request(2))
    store.feedback(old.request_id, "truth", "token:app")
    store.close()
    found = everything(str(tmp_path))
    reads_as_before(found[old.request_id])
    assert found[request_id(2)].num_tokens == 2
    (labelled,) = read_feedback(tmp_path)
    said = [(one.caption, one.client) for one in labelled.feedback]
    assert said == [("old truth", None), ("truth", "token:app")]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(st.integers(0, 9000), min_size=1, max_size=9)),
        st.tuples(st.just("correct"), st.integers(0, 9000)),
        st.tuples(st.just("delete"), st.integers(0, 9000)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(operations, st.integers(1, 12))
def test_both_stores_do_what_a_dictionary_does(tmp_path_factory, operations, limit) -> None:
    for place in (tmp_path_factory.mktemp("model"), f"memory://{uuid.uuid4().hex}"):
        backend = backend_of(place)
        backend.open()
        kept: dict[int, list[Feedback]] = {}
        gone: set[int] = set()
        for step, (what, which) in enumerate(operations):
            if what == "write":  # an id is used once: never again after it was deleted
                new = set(which) - gone
                backend.write([request(number, version=str(number % 2)) for number in new])
                kept |= {number: kept.get(number, []) for number in new}
            elif what == "correct":
                sent = Feedback(f"{step}", step, f"token:{step}" if step % 2 else None)
                assert backend.add_feedback(request_id(which), sent) == (which in kept)
                kept.get(which, []).append(sent)
            else:
                assert backend.delete(request_id(which)) == (which in kept)
                gone |= {which} & kept.keys()
                kept.pop(which, None)
        for version in ("0", "1", None):
            expected = [n for n in kept if version in (None, str(n % 2))]
            found = [one.num_tokens for one in backend.window(version, limit)]
            assert found == sorted(expected, reverse=True)[:limit]
        corrected = [(n, kept[n]) for n in sorted(kept) if kept[n]]
        said = [(one.request_id, one.feedback) for one in backend.labelled()]
        assert said == [(request_id(n), feedback) for n, feedback in corrected]
        backend.close()


def test_a_service_captures_what_it_saw_and_was_asked(place, model, png) -> None:
    async def main() -> tuple[str, str]:
        async with served(model, captures=place) as service:
            answers = [await service.caption(png(seed)) for seed in (1, 2, 3)]
            plain, _, gone = [answer.json()["request_id"] for answer in answers]
            options = {"num_beams": "3", "prompt": "a"}
            asked = await service.client.post("/caption", data=options, files={"image": png(1)})
            sent = {"request_id": plain, "caption": "a red star"}
            assert (await service.client.post("/feedback", json=sent)).status_code == 201
            for status in (204, 404):
                answer = await service.client.delete(f"/captures/{gone}")
                assert answer.status_code == status
            return plain, asked.json()["request_id"]

    plain, asked = asyncio.run(main())
    found = everything(place)
    assert len(found) == 3
    assert found[asked].options == {"num_beams": 3, "prompt": "a"}
    captured = found[plain]
    assert captured.options == {}
    assert captured.image == png(1)
    assert captured.image_bytes == len(png(1))
    pixels = to_pixels(decode(png(1), side=72), 72)
    assert captured.num_tokens == model.engine.caption(pixels[None], model.generation)[0].num_tokens
    expected = picture_statistics(pixels)
    assert (captured.brightness, captured.sharpness) == (expected.brightness, expected.sharpness)
    assert [one.captions for one in read_feedback(place)] == [["a red star"]]


def test_no_picture_is_stored_when_it_is_told_so(place, model, png) -> None:
    async def main() -> None:
        async with served(model, captures=place, capture_images=False) as service:
            await service.caption(png(1))

    asyncio.run(main())
    (captured,) = everything(place).values()
    assert (captured.image, captured.image_bytes) == (None, len(png(1)))
    assert png(1)[-20:] not in bytes_at(place)


def test_services_that_delete_from_one_segment_at_once_lose_nothing_else(bucket) -> None:
    place = f"{bucket}/{uuid.uuid4().hex}"
    backend_of(place).write([request(n, image=b"picture-%03d" % n) for n in range(60)])
    gone = range(0, 60, 3)
    with ThreadPoolExecutor(4) as pool:
        deleted = list(pool.map(lambda n: backend_of(place).delete(request_id(n)), gone))
    assert all(deleted)
    assert numbers(everything(place)) == [n for n in range(60) if n % 3]
    left = bytes_at(place)
    assert not any(b"picture-%03d" % n in left for n in gone)


def test_a_bucket_that_is_away_for_a_while_loses_nothing_that_fits_in_memory(
    bucket, monkeypatch
) -> None:
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    S3FileSystem.clear_instance_cache()  # instances keep the endpoint they were made with
    place = f"{bucket}/{uuid.uuid4().hex}"
    store = CaptureStore(place, max_waiting_bytes=60_000)  # a service starts without its bucket
    results = [store.put(request(number)) for number in range(200)]
    assert 0 < results.count(True) < 200
    with pytest.raises(CaptureUnavailable):
        store.feedback(request_id(0), "caption")
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        store.flush(timeout_seconds=60)
        store.feedback(request_id(0), "caption")
        store.close()
        assert store.dropped == results.count(False)
        assert numbers(everything(place)) == [*range(results.count(True))]
    finally:
        server.stop()
        S3FileSystem.clear_instance_cache()


def test_a_url_without_its_packages_says_what_to_install() -> None:
    with pytest.raises(BadCaptures, match="CAPTIONLOOP_CAPTURES: nowhere://x"):
        CaptureStore("nowhere://x")
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from bentos.captioner.capture import backend_of\n"
        "backend_of('s3://bucket/prefix')"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "BadCaptures" in ran.stderr
    assert "pip install 'fsspec[s3]'" in ran.stderr


def start(what: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bentos.captures", what, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_share_one_file_and_lose_nothing(tmp_path) -> None:
    processes = [start("share", tmp_path, 400) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    found = everything(str(tmp_path))
    assert len(found) == 3 * 400 * 19 // 20
    assert len(read_feedback(tmp_path)) == 3 * 400 // 20


def test_a_killed_process_loses_at_most_the_last_second(place) -> None:
    for attempt in range(2):
        process = start("kill", place, 2_000)
        said: list[tuple[float, str]] = []
        for line in process.stdout:
            said.append((time.monotonic(), line.strip()))
            if said[-1][0] - said[0][0] > 1.7 + 0.3 * attempt:
                process.send_signal(signal.SIGKILL)
                break
        killed = time.monotonic()
        process.communicate(timeout=30)
        safe = {one for at, one in said if at < killed - 1}
        assert len(safe) > 100
        if "://" not in place:
            with closing(sqlite3.connect(f"{place}/{FILE_NAME}")) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert safe <= everything(place).keys()
