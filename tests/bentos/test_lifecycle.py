"""Real servers that are killed and ended while clients, who try again as good clients do, ask."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from bentos import packaging
from bentos.captioner.capture import read_window
from bentos.captioner.golden import read_golden
from tests.bentos.serving import processes_of

pytestmark = pytest.mark.e2e
RETRIED = (429, 503)
CAPTURED_WITHIN_SECONDS = 1.0  # so much may be lost with a killed worker
SLOW_BODY = (
    b"POST /v1/caption HTTP/1.1\r\nHost: t\r\nContent-Type: image/png\r\n"
    b"Content-Length: 1000\r\n\r\n\x89PNG"
)


class Clients:
    """What a few clients got; one thread each."""

    def __init__(self, url: str, golden_folder: Path) -> None:
        self._url = url
        self._golden = [(one.path.read_bytes(), one.caption) for one in read_golden(golden_folder)]
        self.answered: dict[str, float] = {}  # request id -> when
        self.retried: Counter[str] = Counter()
        self.failures: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        # A connection a request: kept ones would stay with the worker that they began with.
        fresh = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=self._url, timeout=60, limits=fresh) as client:
            while not self.stopped.is_set():
                for image, caption in self._golden:
                    self._ask(client, image, caption)

    def _ask(self, client: httpx.Client, image: bytes, caption: str) -> None:
        while not self.stopped.is_set():
            try:
                answer = client.post("/v1/caption", files={"image": image})
            except httpx.TransportError as error:
                self._again(type(error).__name__)
                continue
            if answer.status_code in RETRIED:
                self._again(str(answer.status_code))
                continue
            if answer.status_code != 200 or answer.json()["caption"] != caption:
                self.failures.append(answer.text)
            else:
                self.answered[answer.json()["request_id"]] = time.monotonic()
            return

    def _again(self, why: str) -> None:
        self.retried[why] += 1
        self.stopped.wait(0.1)

    def until_answered(self, more: int, *, seconds: float = 60.0) -> None:
        wanted, deadline = len(self.answered) + more, time.monotonic() + seconds
        while len(self.answered) < wanted:
            assert time.monotonic() < deadline, (self.retried, self.failures)
            time.sleep(0.01)


@contextmanager
def asking(url: str, golden_folder: Path) -> Iterator[Clients]:
    clients = Clients(url, golden_folder)
    threads = [threading.Thread(target=clients.run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        clients.until_answered(100)
        yield clients
    finally:
        clients.stopped.set()
        for thread in threads:
            thread.join()


def settings(captures: Path, **more: str) -> dict[str, str]:
    return {"CAPTIONLOOP_CAPTURES": str(captures), "OMP_NUM_THREADS": "1", **more}


def captured(folder: Path) -> set[str]:
    return {one.request_id for one in read_window(folder, model_version=None, limit=10**6)}


def test_a_killed_worker_comes_back_and_those_who_ask_again_get_their_captions(
    tag, golden_folder, tmp_path
) -> None:
    with (
        packaging.serve(tag, port=packaging.free_port(), env=settings(tmp_path)) as url,
        asking(url, golden_folder) as clients,
    ):
        time.sleep(2 * CAPTURED_WITHIN_SECONDS)
        [_, worker] = processes_of(url)
        worker.kill()
        killed = time.monotonic()
        clients.until_answered(100)
        back = min(when for when in clients.answered.values() if when > killed + 0.5)
        print(f"answers again {back - killed:.1f} s after the kill; {dict(clients.retried)}")
    assert clients.failures == []
    assert clients.retried.keys() <= {"RemoteProtocolError", "ReadError", "ConnectError"}
    assert 0 < clients.retried.total() <= 8
    assert back - killed < 30
    lost = clients.answered.keys() - captured(tmp_path)
    assert all(0 < killed - clients.answered[one] < CAPTURED_WITHIN_SECONDS for one in lost)


def test_of_two_workers_one_answers_while_the_killed_one_comes_back(
    tag, golden_folder, tmp_path
) -> None:
    # In a container too, where BentoML itself starts none anew.
    env = settings(tmp_path, CAPTIONLOOP_WORKERS="2", BENTOML_CONTAINERIZED="true")
    with (
        packaging.serve(tag, port=packaging.free_port(), env=env) as url,
        asking(url, golden_folder) as clients,
    ):
        server, killed, other = processes_of(url)
        killed.kill()
        started = time.monotonic()
        while len(processes := processes_of(url)) < 3 or killed in processes:
            assert time.monotonic() < started + 10
            time.sleep(0.05)
        clients.until_answered(100, seconds=10)
        # Both are back when the new one has connections too, beside the socket that it listens on.
        [new] = set(processes) - {server, other}
        while not any(one.status == "ESTABLISHED" for one in new.net_connections("tcp")):
            assert time.monotonic() < started + 90
            clients.until_answered(1, seconds=5)
        print(f"two again {time.monotonic() - started:.1f} s after; {dict(clients.retried)}")
    assert clients.failures == []


def test_on_sigterm_what_was_taken_in_is_answered_and_the_server_ends(
    tag, golden_folder, tmp_path
) -> None:
    env = settings(tmp_path, CAPTIONLOOP_BODY_SECONDS="2")
    with (
        packaging.serve(tag, port=packaging.free_port(), env=env) as url,
        asking(url, golden_folder) as clients,
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=30) as slow,
    ):
        slow.sendall(SLOW_BODY)
        processes = processes_of(url)
        processes[0].terminate()
        started = time.monotonic()
        _, left = psutil.wait_procs(processes, timeout=20)
        print(f"ended {time.monotonic() - started:.1f} s after SIGTERM; {dict(clients.retried)}")
        assert left == []
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    assert clients.failures == []
    assert clients.answered.keys() == captured(tmp_path)
