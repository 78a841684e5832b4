"""What people corrected comes back as a source, once, with every caption."""

import numpy as np
import pytest
from conftest import picture

from bentos.captioner.capture import CapturedRequest, CaptureStore
from bentos.captioner.request_ids import new_request_id
from configs.schema import ChecksConfig, SplitsConfig
from tasks.data.checks import run as checks
from tasks.data.feedback import NotEnoughFeedback, export
from tasks.data.raw import ingest
from tasks.data.records import read_records


def captured(image: bytes | None, time: float) -> CapturedRequest:
    return CapturedRequest(
        request_id=new_request_id(),
        time=time,
        model_version="3",
        caption="a dog",
        log_probability=-1.0,
        embedding=np.zeros(4, np.float32),
        width=64,
        height=48,
        brightness=0.5,
        image=image,
    )


def test_fewer_corrections_than_needed_are_refused_with_both_numbers(tmp_path):
    with pytest.raises(NotEnoughFeedback, match=r"^0 corrected requests .* at least 1 are needed"):
        export(tmp_path / "nowhere", tmp_path / "out")
    store = CaptureStore(tmp_path / "captures")
    request = captured(picture(), 1.0)
    store.put(request)
    store.feedback(request.request_id, "a small red circle")
    store.close()
    with pytest.raises(NotEnoughFeedback, match=r"^1 corrected requests .* at least 2 are needed"):
        export(tmp_path / "captures", tmp_path / "out", minimum=2)
    assert not (tmp_path / "out").exists()


@pytest.fixture(params=["folder", "url"])
def captures(request, tmp_path) -> str:
    """Where the service captures: a folder, or an object store."""
    return str(tmp_path / "captures") if request.param == "folder" else f"memory:/{tmp_path}"


def test_corrections_travel_from_the_service_to_a_validated_dataset(captures, tmp_path):
    requests = [
        captured(picture(shade=i, kind=kind), float(i))
        for i, kind in enumerate(["JPEG", "PNG", "WEBP"])
    ]
    store = CaptureStore(captures)
    for request in requests:
        store.put(request)
    store.feedback(requests[1].request_id, "a small red circle")
    store.feedback(requests[1].request_id, "one small red circle")
    store.feedback(requests[2].request_id, "a large blue star")
    store.close()

    source = export(captures, tmp_path / "out")
    raw = ingest([source], tmp_path / "r")
    report = checks.run(raw, ChecksConfig(), SplitsConfig(), 0, tmp_path / "v", name="mine")
    dataset = report.accepted()
    assert {(r.image_id, r.references, r.source) for r in read_records(dataset)} == {
        (requests[1].request_id, ("a small red circle", "one small red circle"), "feedback"),
        (requests[2].request_id, ("a large blue star",), "feedback"),
    }
    assert {path.suffix for path in (source.folder / "images").iterdir()} == {".png", ".webp"}


def test_the_same_corrections_are_the_same_folder_and_one_more_is_another(tmp_path):
    store = CaptureStore(tmp_path / "captures")
    request = captured(picture(), 1.0)
    store.put(request)
    store.feedback(request.request_id, "a small red circle")
    first = export(tmp_path / "captures", tmp_path / "out")
    assert export(tmp_path / "captures", tmp_path / "out") == first
    store.feedback(request.request_id, "one small red circle")
    second = export(tmp_path / "captures", tmp_path / "out")
    store.close()
    assert second != first
    assert len(list((tmp_path / "out").iterdir())) == 2
