"""What capturing costs a request, how fast captures are written, and that a store which hangs slows
nobody.

    python -m tests.benchmarks.bench_capture

Fails if a `put` takes more than 10 µs at the median or if one in a thousand takes more than 1 ms,
be the store well, locked, or an S3 endpoint that accepts connections and never answers.
"""

import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from bentos.captioner.capture import CaptureStore
from bentos.captioner.capture_file import FILE_NAME, CaptureFile
from bentos.captioner.captured import Bounds, CapturedRequest
from bentos.captioner.request_ids import new_request_id
from bentos.captioner.statistics import picture_statistics
from tests.bentos.captures import now

PUTS = 5_000
PUTS_A_SECOND = 1_000.0
MEDIAN_SECONDS = 10e-6
SLOW_SECONDS = 1e-3
AWS = {"AWS_ACCESS_KEY_ID": "b", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


def main() -> bool:
    os.environ |= AWS
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        features()
        print("\n| `put`, 1,000 a second | median | 99.9 % | slowest | dropped |")
        print("| --- | --- | --- | --- | --- |")
        kept = puts("a file", CaptureStore(folder / "well"))
        store = CaptureStore(folder / "locked")
        with locked(folder / "locked"):
            kept &= puts("a file that is locked", store)
        with silent_endpoint():
            kept &= puts("an S3 that never answers", CaptureStore("s3://bucket/captures"))
        print("\n| written | records/s | MB/s |\n| --- | --- | --- |")
        for kilobytes in (0, 20, 200):
            written(f"a file, {kilobytes} kB pictures", folder / f"write-{kilobytes}", kilobytes)
        with moto() as url:
            written("S3 (moto on this machine), 20 kB pictures", url, 20)
        expiry(folder / "bounds")
    return kept


def features() -> None:
    print("| of one request | µs |\n| --- | --- |")
    for side in (72, 384):
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        _microseconds(f"statistics of {side} px", lambda: picture_statistics(pixels))  # noqa: B023
    _microseconds("a request id", new_request_id)


def _microseconds(what: str, work: Callable[[], object]) -> None:
    seconds = min(timeit.repeat(work, number=200, repeat=7)) / 200
    print(f"| {what} | {1e6 * seconds:.1f} |")


def puts(what: str, store: CaptureStore) -> bool:
    """Requests at an even pace, as an event loop would put them."""
    requests = made(PUTS, kilobytes=20)
    seconds = []
    begun = time.perf_counter()
    for index, request in enumerate(requests):
        time.sleep(max(0.0, begun + index / PUTS_A_SECOND - time.perf_counter()))
        started = time.perf_counter()
        store.put(request)
        seconds.append(time.perf_counter() - started)
    seconds.sort()
    median, slow = statistics.median(seconds), seconds[int(0.999 * len(seconds))]
    told = " | ".join(f"{1e6 * one:.1f} µs" for one in (median, slow, seconds[-1]))
    print(f"| {what} | {told} | {store.dropped} |", flush=True)
    return median <= MEDIAN_SECONDS and slow <= SLOW_SECONDS


def written(what: str, place: Path | str, kilobytes: int) -> None:
    """As many as there are, in the writer's batches."""
    store = CaptureStore(place, max_waiting_bytes=2**30)
    requests = made(2_000, kilobytes)
    started = time.perf_counter()
    for request in requests:
        store.put(request)
    store.flush(timeout_seconds=120)
    seconds = time.perf_counter() - started
    store.close()
    size = sum(len(request.image or b"") + request.embedding.nbytes for request in requests)
    print(f"| {what} | {len(requests) / seconds:,.0f} | {size / seconds / 1e6:.0f} |", flush=True)


def expiry(folder: Path) -> None:
    """How long one slice of expiry lasts: so long a writer may wait."""
    backend = CaptureFile(folder)
    backend.open()
    for _ in range(20):
        backend.write(made(250, 20))
    slices = []
    while True:
        started = time.perf_counter()
        expired = backend.expire(Bounds(max_bytes=2 * 10**6))
        slices.append(time.perf_counter() - started)
        if not expired and slices[-1] < 1e-3:
            break
    backend.close()
    print(
        f"\n5,000 requests of 20 kB expire in {len(slices)} slices of "
        f"{1e3 * statistics.median(slices):.1f} ms (slowest {1e3 * max(slices):.0f}), "
        f"{5_000 / sum(slices):,.0f} requests/s; the file is then "
        f"{(folder / FILE_NAME).stat().st_size / 1e6:.1f} MB"
    )


def made(count: int, kilobytes: int) -> list[CapturedRequest]:
    picture = os.urandom(1000 * kilobytes)
    embedding = np.random.default_rng(0).random(768, np.float32)
    one = replace(now(picture), embedding=embedding)
    return [replace(one, request_id=new_request_id()) for _ in range(count)]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def silent_endpoint() -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}"
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                accepted.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield


@contextmanager
def moto() -> Iterator[str]:
    from s3fs import S3FileSystem

    from bentos.packaging import free_port

    port = free_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    S3FileSystem.clear_instance_cache()  # instances keep the endpoint they were made with
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.1)
        S3FileSystem().mkdir("bench")
        yield "s3://bench/captures"
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(not main())
