"""Requests that nobody should send, in bytes as they go over the wire, and what must come back."""

import base64
import io
import json
import random
import re
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import psutil
from PIL import Image

BOUNDARY = b"b0undary"
PART = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
MULTIPART = b"multipart/form-data; boundary=" + BOUNDARY
JSON = b"application/json"
ALLOWED = {503}  # the only 5xx that is by design


@dataclass(frozen=True)
class Hostile:
    """A request; with `pause_seconds` its body comes a byte at a time, and never ends; one that
    hangs up has gone before its answer comes."""

    kind: str
    data: bytes
    pause_seconds: float = 0.0
    hangs_up: bool = False


@dataclass
class Outcome:
    """What a run saw: answers by kind and status, and what should not have been."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    slowest_good_seconds: float = 0.0


def pictures(image: Image.Image) -> list[bytes]:
    """The image as JPEG, progressive JPEG, PNG, WebP and GIF."""
    found = []
    for kind, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


def requests(seed: int, samples: Sequence[bytes]) -> Iterator[Hostile]:
    """Without end; mostly mutated pictures, the rest of all kinds in turn."""
    draw = random.Random(seed)
    others: list[Callable[[random.Random, Sequence[bytes]], Hostile]] = [
        *(bomb, broken_multipart, wrong_types, bad_options, broken_http, headers, large),
        *(feedback, paths, many, slow),
    ]
    while True:
        for other in others:
            yield mutated(draw, samples)
            yield mutated(draw, samples)
            yield other(draw, samples)


def post(
    body: bytes, content_type: bytes = MULTIPART, path: bytes = b"/v1/caption", length: int = -1
) -> bytes:
    size = len(body) if length < 0 else length
    return (
        b"POST %b HTTP/1.1\r\nHost: t\r\nConnection: close\r\n" % path
        + b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n" % (content_type, size)
        + body
    )


def form(picture: bytes, extra: bytes = b"") -> bytes:
    return b"--%b\r\n" % BOUNDARY + PART + picture + b"\r\n" + extra + b"--%b--\r\n" % BOUNDARY


def mutate(draw: random.Random, data: bytes) -> bytes:
    """Bits flipped, bytes cut out, doubled, swapped in from random ones; most in the headers."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 4, 16, 64))):
        reach = min(len(changed), draw.choice((64, 1024, len(changed)))) or 1
        at = draw.randrange(reach)
        match draw.randrange(5):
            case 0 if changed:
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at : at + draw.randrange(1, 64)] = b""
            case 2:
                changed[at:at] = changed[at : at + draw.randrange(1, 256)]
            case 3:
                changed[at : at + 4] = draw.randbytes(4)
            case 4 if draw.random() < 0.2:
                del changed[at:]
    return bytes(changed)


def mutated(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    picture = mutate(draw, draw.choice(samples))
    match draw.randrange(3):
        case 0:
            return Hostile("mutated picture, multipart", post(form(picture)))
        case 1:
            kind = draw.choice((b"image/jpeg", b"image/png", b"image/x", b"image/svg+xml"))
            return Hostile("mutated picture, bare", post(picture, kind))
    body = json.dumps({"image": base64.b64encode(picture).decode()}).encode()
    return Hostile("mutated picture, JSON", post(body, JSON))


def bomb(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    width, height = draw.choice(((20_000, 20_000), (65_500, 600), (6_000, 6_000)))
    png = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    )
    match draw.randrange(5):
        case 0:
            line = b"\0" * (width // 8 + 2)
            body = (
                png + chunk(b"IDAT", zlib.compress(line * min(height, 2000))) + chunk(b"IEND", b"")
            )
        case 1:
            text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 20_000_000))
            body = samples[2][:33] + text + samples[2][33:]
        case 2:
            profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(b"\0" * 20_000_000))
            body = samples[2][:33] + profile + samples[2][33:]
        case 3:
            at = samples[0].index(b"\xff\xc0") + 5
            body = samples[0][:at] + struct.pack(">HH", 65_500, 65_500) + samples[0][at + 4 :]
        case _:
            body = b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + samples[4][10:]
    return Hostile("bomb", post(form(body)))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def broken_multipart(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    whole = form(draw.choice(samples))
    cut = draw.randrange(len(whole))
    field = b'--%b\r\nContent-Disposition: form-data; name="a%d"\r\n\r\nx\r\n'
    charset = draw.choice(
        (b"utf-7", b"base64", b"zip", b"idna", b"punycode", b"\xff", b"none", b"rot13")
    )
    return Hostile(
        "broken multipart",
        draw.choice(
            (
                post(whole[:cut]),
                post(whole[:cut], length=len(whole)),
                post(mutate(draw, whole)),
                post(whole, b"multipart/form-data"),
                post(whole, b"multipart/form-data; boundary=" + b"x" * draw.choice((1, 70, 5000))),
                post(whole, MULTIPART + b"; charset=" + charset),
                post(form(samples[0], b"".join(field % (BOUNDARY, n) for n in range(2000)))),
                post(b"".join(b"--%b\r\n" % BOUNDARY + PART + b"x\r\n" for _ in range(3000))),
                post(whole.replace(b'name="image"', b'name="' + draw.randbytes(20) + b'"')),
                post(whole.replace(b"form-data;", b"form-data" * 5000)),
                post(
                    form(samples[0], field.replace(b"\nx", b"\n" + b"x" * 200_000) % (BOUNDARY, 1))
                ),
            )
        ),
    )


def wrong_types(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    picture = base64.b64encode(samples[0]).decode()
    bodies = [
        *(b"", b"{", b"null", b"[]", b'"a"', b"[" * 100_000, b'{"image":' * 50_000, b"\xff\xfe{"),
        b'{"image": "\\ud800"}',
        b'{"image": 1e999}',
        json.dumps({"image": picture, "num_beams": 10**400}).encode(),
        json.dumps({"image": picture, "max_new_tokens": -1}).encode(),
        json.dumps({"image": picture, "prompt": "\0" * 200}).encode(),
        json.dumps({"image": [picture]}).encode(),
        json.dumps({"image": picture[:-7]}).encode(),
        json.dumps({"image": "http://127.0.0.1/"}).encode(),
        json.dumps({"image": picture, "x" * 100_000: 1}).encode(),
    ]
    content_type = draw.choice(
        (JSON, JSON, JSON, b"text/plain", b"application/xml", b"", b"\xff/\0")
    )
    return Hostile("wrong types", post(draw.choice(bodies), content_type))


def bad_options(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    name = draw.choice(("prompt", "max_new_tokens", "num_beams", "num_captions", "url"))
    value = draw.choice(
        ("", "-1", "1e9", "9" * 5000, "%00", "%ff%fe", "[UNK]" * 40, "a " * 100, "NaN")
    )
    value = value.replace(" ", "%20")
    path = f"/v1/caption?{name}={value}&{draw.choice(('', 'num_beams=5&num_captions=5'))}"
    return Hostile("bad options", post(samples[0], b"image/jpeg", path.encode()))


def broken_http(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    line = draw.choice((b"POST", b"BREW", b"G\xffT", b"", b"OPTIONS", b"TRACE", b"CONNECT", b"PUT"))
    chunked = b"POST /v1/caption HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n"
    chunked += b"Content-Type: image/jpeg\r\n"
    return Hostile(
        "broken HTTP",
        draw.choice(
            (
                line + b" /v1/caption HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n",
                b"POST /v1/caption HTTP/9.9\r\nHost: t\r\n\r\n",
                draw.randbytes(200) + b"\r\n\r\n",
                post(b"x").replace(b"Content-Length: 1", b"Content-Length: -1"),
                post(b"x").replace(b"Content-Length: 1", b"Content-Length: " + b"9" * 500),
                post(b"x").replace(b"Content-Length: 1", b"Content-Length: 1\r\nContent-Length: 2"),
                chunked + b"\r\nzz\r\n",
                chunked + b"\r\nffffffffffffffff\r\nx",
                chunked + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
                chunked + b"\r\n" + b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n",
            )
        ),
    )


def headers(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    extra = draw.choice(
        (
            b"X-Long: " + b"x" * 200_000,
            b"\r\n".join(b"X-%d: y" % number for number in range(5000)),
            b"Authorization: Bearer " + draw.randbytes(30).hex().encode() * 500,
            b"Authorization: \xff\xfe",
            b"Expect: 100-continue",
            b"Content-Encoding: gzip",
            b"Bad Name: x",
            b"X: a\rb",
            b"Range: bytes=0-",
            b"Origin: null",
            b"Cookie: " + b"a=b; " * 2000,
        )
    )
    whole = post(form(samples[0]))
    return Hostile("headers", whole.replace(b"Host: t", b"Host: t\r\n" + extra, 1))


def large(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    body = samples[0] + b"\0" * (11 << 20)
    piece = b"100000\r\n" + b"\0" * (1 << 20) + b"\r\n"
    chunked = (
        b"POST /v1/caption HTTP/1.1\r\nHost: t\r\nContent-Type: image/jpeg\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + piece * 12 + b"0\r\n\r\n"
    )
    return Hostile(
        "too large",
        draw.choice(
            (post(body, b"image/jpeg"), chunked, post(b"x", length=10**15), post(form(body)))
        ),
    )


def feedback(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    body = draw.choice(
        (
            {"request_id": "x" * 64, "caption": "a"},
            {"request_id": "' OR 1=1 --", "caption": "a"},
            {"request_id": "\0", "caption": "\0"},
            {"request_id": 5, "caption": ["a"]},
            {"request_id": "a", "caption": "x" * 1_000_000},
            [],
        )
    )
    return Hostile("feedback", post(json.dumps(body).encode(), JSON, b"/v1/feedback"))


def paths(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    path = draw.choice(
        (
            b"/v1/captures/%2e%2e%2fetc%2fpasswd",
            b"/v1/captures/" + b"a" * 2000,
            b"/v1/captures/%00",
            b"/v1/captures/%ff%fe",
            b"/../../etc/passwd",
            b"/page.js/../../api.py",
            b"/static/index.html",
            b"//v1/model",
            b"/" + draw.randbytes(8).hex().encode(),
            b"http://elsewhere/v1/model",
        )
    )
    method = draw.choice((b"DELETE", b"GET", b"HEAD", b"POST"))
    head = b"%b %b HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    return Hostile("paths", head % (method, path))


def many(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    part = b"--%b\r\n" % BOUNDARY + PART.replace(b"image", b"images")
    parts = [part + mutate(draw, draw.choice(samples)) + b"\r\n" for _ in range(draw.randrange(60))]
    body = b"".join(parts) + b"--%b--\r\n" % BOUNDARY
    return Hostile("many pictures", post(body, path=b"/v1/captions"))


def slow(draw: random.Random, samples: Sequence[bytes]) -> Hostile:
    whole = post(form(samples[0]), length=10**6)
    return Hostile("slow body", whole[: draw.randrange(150, 400)], pause_seconds=0.2)


# --- sending them ----------------------------------------------------------------------------


def run(
    url: str, hostile: Iterator[Hostile], count: int, *, good: bytes, caption: str, pid: int
) -> Outcome:
    """Send `count` of them, eight at a time; after each hundred a good request must be answered."""
    outcome = Outcome()
    with ThreadPoolExecutor(8) as pool:
        for done in range(0, count, 100):
            batch = [next(hostile) for _ in range(min(100, count - done))]
            for one, (status, text) in zip(
                batch, pool.map(lambda h: send(url, h), batch), strict=True
            ):
                outcome.statuses[one.kind, status] += 1
                unanswered = status == 0 and not one.hangs_up
                broken = status >= 500 and status not in ALLOWED
                if unanswered or broken or b"Traceback" in text:
                    outcome.failures.append(f"{one.kind}: {status} {text[:300]!r}")
            started = time.perf_counter()
            answer = httpx.post(f"{url}/v1/caption", files={"image": good}, timeout=60)
            seconds = time.perf_counter() - started
            outcome.slowest_good_seconds = max(outcome.slowest_good_seconds, seconds)
            if answer.status_code != 200 or answer.json()["caption"] != caption:
                outcome.failures.append(f"good request after {done + 100}: {answer.text[:300]}")
            outcome.rss_bytes.append(resident(pid))
    return outcome


def resident(pid: int) -> int:
    """Bytes of a process and its children; what they share is counted for each."""
    parent = psutil.Process(pid)
    return sum(one.memory_info().rss for one in [parent, *parent.children(recursive=True)])


def send(url: str, hostile: Hostile, timeout: float = 60.0) -> tuple[int, bytes]:
    """The status, 0 if the connection ended without one, and the whole answer."""
    host, port = url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        try:
            connection.sendall(hostile.data)
            if hostile.pause_seconds:
                answer = dribble(connection, hostile.pause_seconds, timeout)
            if hostile.hangs_up:
                return 0, b""
            while not is_whole(answer) and (piece := connection.recv(65536)):
                answer += piece
        except ConnectionError:
            pass  # the server may close while we still send
    answer = answer.removeprefix(CONTINUE)
    return int(answer.split(b" ", 2)[1]) if answer else 0, answer


CONTINUE = b"HTTP/1.1 100 \r\n\r\n"


def is_whole(answer: bytes) -> bool:
    """Whether it is an answer as long as it says; one that doesn't say ends with its connection."""
    head, end, body = answer.removeprefix(CONTINUE).partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return bool(end and length) and len(body) >= int(length[1])


def dribble(connection: socket.socket, pause_seconds: float, timeout: float) -> bytes:
    """Send a byte now and then until an answer comes; raises TimeoutError if none does."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        connection.sendall(b"x")
        connection.settimeout(pause_seconds)
        try:
            piece = connection.recv(65536)
        except TimeoutError:
            continue
        connection.settimeout(timeout)
        return piece
    raise TimeoutError("the server let a body dribble")
