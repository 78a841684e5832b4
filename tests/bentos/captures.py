"""Records of requests for tests, and processes that capture."""

import sys
import time

import numpy as np

from bentos.captioner.capture import CaptureStore
from bentos.captioner.captured import CapturedRequest
from bentos.captioner.request_ids import new_request_id

START = 1_700_000_000.0


def request_id(number: int) -> str:
    """Of a request that came `number` seconds after START."""
    return f"{int(1000 * START) + 1000 * number:012x}{number:020x}"


def request(number: int, version: str = "1", image: bytes | None = b"png") -> CapturedRequest:
    return CapturedRequest(
        request_id=request_id(number),
        time=START + number,
        model_version=version,
        caption=f"caption {number}",
        log_probability=-0.5 * number,
        embedding=np.full(4, number, np.float32),
        width=10,
        height=20,
        brightness=0.25,
        image=image,
        num_tokens=number,
        sharpness=10.5,
        image_bytes=3,
        options={"prompt": "a \ud800 of", "num_beams": 3} if number % 2 else {},
    )


def now(image: bytes | None = b"png") -> CapturedRequest:
    """A request as the service would put it."""
    return CapturedRequest(**{**vars(request(1, image=image)), "request_id": new_request_id()})


def capture_until_killed(place: str, image_bytes: int) -> None:
    """Say on stdout the id of each request that was put."""
    store = CaptureStore(place)
    while True:
        captured = now(bytes(image_bytes))
        if store.put(captured):
            print(captured.request_id, flush=True)
        time.sleep(0.001)


def capture(place: str, count: int) -> None:
    """Capture, correct every tenth and delete every twentieth; fail if anything does."""
    store = CaptureStore(place)
    for number in range(count):
        captured = now()
        while not store.put(captured):
            store.flush()
        if number % 10 == 0:
            store.feedback(captured.request_id, "truth")
        if number % 20 == 0:
            store.delete(captured.request_id)
    store.close()
    assert store.dropped == 0


if __name__ == "__main__":
    {"kill": capture_until_killed, "share": capture}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
