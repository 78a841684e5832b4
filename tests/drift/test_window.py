from pathlib import Path

import numpy as np
import pytest

from bentos.captioner.capture import CapturedRequest, CaptureStore
from configs.schema import MonitorConfig
from tasks.drift.detectors import DimensionMismatch
from tasks.drift.window import Window, read


def newest(requests: int) -> MonitorConfig:
    return MonitorConfig(window_requests=requests)


def captured(number: int, *, version: str = "2", width: int = 4) -> CapturedRequest:
    return CapturedRequest(
        request_id=f"{number:032x}",
        time=1_700_000_000.0 + number,
        model_version=version,
        caption=f"caption {number}",
        log_probability=-float(number),
        embedding=np.full(width, number, np.float32),
        width=8,
        height=8,
        brightness=0.5,
        image=None,
    )


@pytest.fixture(params=["folder", "url"])
def captures(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = str(tmp_path) if request.param == "folder" else f"memory:/{tmp_path}"
    store = CaptureStore(place)
    for number in range(9):
        store.put(captured(number, version="1" if number % 3 == 0 else "2"))
    store.close()
    return place


def test_only_the_newest_requests_of_the_champion_are_in_the_window(captures: str) -> None:
    window = read(captures, "2", newest(4))
    assert [request.caption for request in window.requests] == [
        f"caption {number}" for number in (8, 7, 5, 4)
    ]
    assert window.embeddings.shape == (4, 4)
    assert window.embeddings.dtype == np.float32
    assert window.span == (1_700_000_004.0, 1_700_000_008.0)


def test_a_version_that_answered_nothing_has_an_empty_window(captures: str, tmp_path: Path) -> None:
    for place in (captures, tmp_path / "nowhere"):
        window = read(place, "3", newest(4))
        assert (len(window), window.span) == (0, None)


def test_the_digest_is_the_requests_and_the_version(captures: str) -> None:
    window = read(captures, "2", newest(4))
    assert window.digest == read(captures, "2", newest(4)).digest
    others = [
        read(captures, "2", newest(3)),
        Window("3", window.requests),
        Window("2", window.requests[::-1]),
    ]
    assert len({window.digest, *(other.digest for other in others)}) == 4


def test_embeddings_of_two_models_under_one_version_are_refused() -> None:
    with pytest.raises(DimensionMismatch, match="two models"):
        _ = Window("2", (captured(1), captured(2, width=5))).embeddings
