"""What strangers do before their request has a head, over real sockets."""

import socket
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from bentos.captioner import connection
from tests.bentos.serving import site

HEAD = b"POST /v1/caption HTTP/1.1\r\nHost: a\r\n"
MEBIBYTE = 1 << 20


@pytest.fixture
def address(model) -> Iterator[tuple[str, int]]:
    with site(model) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


def sent_until_closed(address: tuple[str, int], first: bytes, more: bytes) -> tuple[int, bytes]:
    """How much the server took of what is sent for ever, at most 100 MiB, and what it said."""
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(first)
        sent = 0
        try:
            while sent < 100 * MEBIBYTE:
                client.sendall(more)
                sent += len(more)
            return sent, b""
        except ConnectionError:
            pass
        try:
            return sent, client.recv(1000)
        except ConnectionError:
            return sent, b""


@pytest.mark.parametrize(
    ("first", "more"),
    [
        pytest.param(HEAD, b"X-A: " + b"a" * 1000 + b"\r\n", id="headers"),
        pytest.param(HEAD + b"X-A: ", b"a" * 1000, id="a header"),
        pytest.param(b"GET /", b"a" * 1000, id="a path"),
        pytest.param(
            HEAD + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n5;",
            b"a" * 1000,
            id="a chunk's extension",
        ),
        pytest.param(
            HEAD + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
            b"X-A: " + b"a" * 1000 + b"\r\n",
            id="trailers",
        ),
        pytest.param(
            b"GET /v1/model HTTP/1.1\r\nHost: a\r\n\r\n" + HEAD,
            b"X-A: " + b"a" * 1000 + b"\r\n",
            id="headers of a second request",
        ),
    ],
)
def test_a_head_without_end_is_cut_and_fills_no_memory(address, first, more) -> None:
    before = psutil.Process().memory_info().rss
    sent, _ = sent_until_closed(address, first, more)
    # Buffers of both kernels take some of what the server never reads.
    assert sent < 20 * MEBIBYTE
    assert psutil.Process().memory_info().rss - before < 20 * MEBIBYTE


def test_a_large_head_is_answered_up_to_the_limit(address) -> None:
    url = f"http://{address[0]}:{address[1]}/v1/model"
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(url, headers={"x-a": "a" * 60_000}).status_code == 200


@pytest.mark.parametrize("first", [b"", b"GET /v1/model HTTP/1.1\r\nHost: a\r\n"])
def test_a_head_that_dribbles_is_ended_in_time(address, monkeypatch, first) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with socket.create_connection(address, timeout=10) as client:
        started = time.monotonic()
        client.sendall(first)
        try:
            while time.monotonic() - started < 5:
                if first:
                    client.sendall(b"X-A: a\r\n")
                client.settimeout(0.05)
                try:
                    if client.recv(100) == b"":
                        break
                except TimeoutError:
                    continue
        except ConnectionError:
            pass
    assert 0.2 < time.monotonic() - started < 3


def test_a_slow_head_of_a_later_request_is_ended_too_and_a_fast_one_answered(
    address, monkeypatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    request = b"GET /v1/model HTTP/1.1\r\nHost: a\r\n"
    with socket.create_connection(address, timeout=10) as client:
        for _ in range(3):
            client.sendall(request + b"\r\n")
            assert client.recv(10_000).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)  # longer than the clock in all, which runs for heads only
        client.sendall(request)
        started = time.monotonic()
        assert client.recv(100) == b""
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/caption HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/caption HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/caption HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
        b"POST /v1/caption HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    ],
)
def test_a_head_that_two_servers_could_read_differently_is_refused(address, head) -> None:
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(head)
        assert client.recv(100).startswith(b"HTTP/1.1 400")
        while client.recv(1000):
            pass  # and the connection ends: nothing of it is read as another request
