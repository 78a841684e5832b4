"""What people corrected comes back as a source: once, judged, and when there is enough of it."""

import json

import numpy as np
import pytest
from conftest import picture

from bentos.captioner.capture import CapturedRequest, CaptureStore
from bentos.captioner.request_ids import new_request_id
from configs.schema import ChecksConfig, Config, RetrainConfig, SplitsConfig
from tasks.data import feedback
from tasks.data.checks import run as checks
from tasks.data.feedback import Learnt
from tasks.data.raw import ingest
from tasks.data.records import read_records
from tasks.data.versioning import restore, version_rows


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


def config(minimum: int = 1) -> Config:
    data = {"source": {"format": "scenes"}, "use_feedback": True}
    return Config(name="mine", data=data, retrain=RetrainConfig(min_labels=minimum))


def decide(captures, out, minimum: int = 1, learnt: Learnt | None = None) -> feedback.Labels:
    learnt = learnt or Learnt()
    judged = feedback.read(captures, config(minimum), learnt)
    return feedback.decide(judged, config(minimum), learnt, out)


def test_fewer_corrections_than_needed_export_nothing_and_say_both_numbers(tmp_path):
    labels = decide(tmp_path / "nowhere", tmp_path / "out")
    assert not labels.enough
    assert labels.message == "0 newly corrected requests, at least 1 are needed"
    store = CaptureStore(tmp_path / "captures")
    requests = [captured(picture(shade=shade), 1.0) for shade in range(2)]
    for request in requests:
        store.put(request)
    store.feedback(requests[0].request_id, "a small red circle")
    store.feedback(requests[1].request_id, "see www.example.com for more")
    store.close()
    labels = decide(tmp_path / "captures", tmp_path / "out", minimum=2)
    assert (labels.enough, labels.new, labels.source) == (False, 1, None)
    assert labels.message == (
        "1 newly corrected requests, at least 2 are needed; captions held aside: 1 caption_url"
    )
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
    store.feedback(requests[2].request_id, "<b>a large blue star</b>", "token:app")
    store.close()

    source = decide(captures, tmp_path / "out").source
    raw = ingest([source], tmp_path / "r")
    report = checks.run(raw, ChecksConfig(), SplitsConfig(), 0, tmp_path / "v", name="mine")
    dataset = report.accepted()
    assert {(r.image_id, r.references, r.source) for r in read_records(dataset)} == {
        (requests[1].request_id, ("a small red circle", "one small red circle"), "feedback"),
        (requests[2].request_id, ("a large blue star",), "feedback"),
    }
    assert {path.suffix for path in (source.folder / "images").iterdir()} == {".png", ".webp"}
    [held] = map(json.loads, (source.folder / "held.jsonl").read_text().splitlines())
    assert held.pop("time") > 0
    assert held == {
        "request_id": requests[2].request_id,
        "caption": "<b>a large blue star</b>",
        "client": "token:app",
        "reason": "caption_markup",
        "detail": "'<b>'",
    }


def test_the_same_corrections_are_the_same_folder_and_one_more_is_another(tmp_path):
    store = CaptureStore(tmp_path / "captures")
    request = captured(picture(), 1.0)
    store.put(request)
    store.feedback(request.request_id, "a small red circle")
    first = decide(tmp_path / "captures", tmp_path / "out").source
    assert decide(tmp_path / "captures", tmp_path / "out").source == first
    store.feedback(request.request_id, "one small red circle")
    second = decide(tmp_path / "captures", tmp_path / "out").source
    store.close()
    assert second != first
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_what_the_champion_has_learnt_from_is_exported_again_but_is_not_new(var, tmp_path):
    store = CaptureStore(tmp_path / "captures")
    requests = [captured(picture(shade=shade), float(shade)) for shade in range(3)]
    for request in requests:
        store.put(request)
    for request in requests[:2]:
        store.feedback(request.request_id, "a small red circle")
    first = decide(tmp_path / "captures", tmp_path / "out", minimum=2)
    assert (first.new, first.enough) == (2, True)

    raw = ingest([first.source], tmp_path / "r")  # as a retraining does
    restore(version_rows(raw), tmp_path / "rows")
    learnt = Learnt.read(tmp_path / "rows")
    assert learnt.request_ids == {request.request_id for request in requests[:2]}
    assert learnt.vocabulary == {"small", "red", "circle"}
    again = decide(tmp_path / "captures", tmp_path / "out", 1, learnt)
    assert (again.new, again.usable, again.enough) == (0, 2, False)

    store.feedback(requests[0].request_id, "one small red circle")  # a known picture
    store.feedback(requests[2].request_id, "a red square")
    store.close()
    later = decide(tmp_path / "captures", tmp_path / "out", 1, learnt)
    assert (later.new, later.usable, later.enough) == (1, 3, True)
    lines = (later.source.folder / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == [r.request_id for r in requests]


def test_a_deleted_request_is_in_no_later_export(captures, tmp_path):
    store = CaptureStore(captures)
    requests = [captured(picture(shade=shade), float(shade)) for shade in range(2)]
    for request in requests:
        store.put(request)
        store.feedback(request.request_id, "a small red circle")
    before = decide(captures, tmp_path / "out").source
    store.delete(requests[0].request_id)
    after = decide(captures, tmp_path / "out").source
    store.close()
    assert len(list((before.folder / "images").iterdir())) == 2
    [image] = (after.folder / "images").iterdir()
    assert image.stem == requests[1].request_id
    assert requests[0].request_id not in (after.folder / "metadata.jsonl").read_text()
