"""Closed-loop load: each client sends its next picture when the last one is answered.

    python -m tests.benchmarks.load URL PICTURES [--clients N] [--seconds S] [--requests N]

A process of its own, so that it takes no part of the server's; on bare sockets, so that it leaves
the cores to it. Prints one JSON object.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from subprocess import PIPE, run
from urllib.parse import urlsplit

import numpy as np

BOUNDARY = b"b0undary"


@dataclass(frozen=True)
class Load:
    """What the clients saw, requests of the warm-up left out; latencies in seconds.

    `statuses` has 0 for connections that broke, `versions` the models that answered.
    """

    throughput: float
    p50: float
    p95: float
    p99: float
    statuses: dict[str, int]
    versions: dict[str, int]

    @property
    def failed(self) -> int:
        return sum(self.statuses.values()) - self.statuses.get("200", 0)


def drive(
    url: str, pictures: Path, *, clients: int, seconds: float = 0.0, requests: int = 0
) -> Load:
    """The load of one process, with as long a warm-up as a fifth of it."""
    arguments = [url, str(pictures), f"--clients={clients}", f"--seconds={seconds}"]
    command = [sys.executable, "-m", "tests.benchmarks.load", *arguments, f"--requests={requests}"]
    return Load(**json.loads(run(command, check=True, stdout=PIPE, timeout=1800).stdout))


class _Clients:
    """What all clients share: the requests to send, the time left, and what came back."""

    def __init__(self, bodies: list[bytes], requests: int) -> None:
        self._bodies = cycle(bodies)
        self._left = requests or sys.maxsize
        self.answers: list[tuple[float, float, int, str]] = []
        self.stopped = False

    def next_request(self) -> bytes | None:
        if self.stopped or not self._left:
            return None
        self._left -= 1
        return next(self._bodies)


class _Client(asyncio.Protocol):
    """One connection; `done` is set when it has nothing more to send."""

    def __init__(self, shared: _Clients) -> None:
        self._shared = shared
        self.done = asyncio.get_running_loop().create_future()
        self._received = b""
        self._sent: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        status = int(head[9:12])
        version = json.loads(body)["model"]["version"] if status == 200 else ""
        self._note(status, version)
        self._received = b""
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._sent is not None:
            self._note(0, "")
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        request = self._shared.next_request()
        if request is None:
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def _note(self, status: int, version: str) -> None:
        self._shared.answers.append((self._sent, time.perf_counter(), status, version))
        self._sent = None


async def _drive(
    url: str, bodies: list[bytes], clients: int, seconds: float, requests: int
) -> Load:
    host, port = urlsplit(url).netloc.split(":")
    loop = asyncio.get_running_loop()
    shared = _Clients(bodies, requests)

    async def one() -> None:
        while not shared.stopped:
            try:
                _, client = await loop.create_connection(lambda: _Client(shared), host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            await client.done
            if requests:
                return

    started = time.perf_counter()
    everyone = asyncio.gather(*(one() for _ in range(clients)))
    if requests:
        await everyone
        return _told(shared, started, time.perf_counter())
    await asyncio.sleep(seconds * 1.2)
    shared.stopped, ended = True, time.perf_counter()
    await everyone
    return _told(shared, started + seconds / 5, ended)


def _told(shared: _Clients, since: float, until: float) -> Load:
    counted = [one for one in shared.answers if since <= one[1] <= until]
    latencies = [end - start for start, end, _, _ in counted]
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return Load(
        throughput=len(counted) / (until - since),
        p50=p50,
        p95=p95,
        p99=p99,
        statuses=dict(Counter(str(status) for _, _, status, _ in counted)),
        versions=dict(Counter(version for _, _, _, version in counted)),
    )


def request(host: str, picture: Path) -> bytes:
    """A multipart POST of a picture."""
    part = f'Content-Disposition: form-data; name="image"; filename="{picture.name}"\r\n'
    body = b"--%b\r\n" % BOUNDARY + part.encode() + b"\r\n" + picture.read_bytes()
    body += b"\r\n--%b--\r\n" % BOUNDARY
    head = f"POST /v1/caption HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\n\r\n"
    return head.encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--requests", type=int, default=0, help="as many in all, without a warm-up")
    args = parser.parse_args()
    host = urlsplit(args.url).netloc
    bodies = [request(host, picture) for picture in sorted(args.pictures.iterdir())]
    load = asyncio.run(_drive(args.url, bodies, args.clients, args.seconds, args.requests))
    print(json.dumps(asdict(load)))


if __name__ == "__main__":
    main()
