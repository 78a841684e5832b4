"""`python -m tasks.feedback`: what came, a batch for people, their answers; what can't be done."""

import json

import numpy as np
import pytest
import yaml

from bentos.captioner.capture import CapturedRequest, CaptureStore, read_feedback
from bentos.captioner.request_ids import new_request_id
from tasks import feedback
from tasks.data import labelling
from tasks.data.scenes import scene


@pytest.fixture
def scenario(var, monkeypatch, tmp_path) -> str:
    monkeypatch.setenv("CAPTIONLOOP_CAPTURES", str(tmp_path / "captures"))
    path = tmp_path / "shapes.yaml"
    path.write_text(
        yaml.safe_dump({"name": "shapes", "data": {"source": {"format": "scenes", "count": 9}}})
    )
    return str(path)


@pytest.fixture
def requests(scenario, tmp_path) -> list[CapturedRequest]:
    """What a service captured of drawn scenes."""
    import io

    store = CaptureStore(tmp_path / "captures")
    made = []
    for number in range(4):
        png = io.BytesIO()
        scene(5, number, "day").image.save(png, "PNG")
        made.append(
            CapturedRequest(
                request_id=new_request_id(),
                time=float(number),
                model_version="1",
                caption="a small red circle",
                log_probability=-1.0,
                embedding=np.eye(4, dtype=np.float32)[number],
                width=72,
                height=72,
                brightness=0.5,
                image=png.getvalue(),
            )
        )
        store.put(made[-1])
    store.feedback(made[0].request_id, "a small red circle")
    store.feedback(made[1].request_id, "see www.example.com for more", "token:app")
    store.close()
    return made


@pytest.fixture
def batch(requests, tmp_path):
    wanted = [labelling.Wanted(one, 0.5) for one in requests[2:]]
    return labelling.export(wanted, tmp_path / "out", title="shapes v1").folder


def test_status_counts_what_is_usable_and_what_is_held_aside(scenario, requests, capsys) -> None:
    assert feedback.main(["status", scenario, "retrain.min_labels=2"]) == 0
    said = {line[:35].strip(): line[35:] for line in capsys.readouterr().out.splitlines()}
    assert said["champion"] == "none yet"
    assert said["enough to retrain on"] == "no"
    assert (said["newly corrected requests"], said["needed"]) == ("1", "2")
    assert said["of these, the model's own caption"] == "1"
    assert said["captions held aside: caption_url"] == "1"
    assert feedback.main(["status", scenario, "retrain.min_labels=1"]) == 0
    assert "enough to retrain on               yes" in capsys.readouterr().out


def test_answers_of_a_batch_are_imported_once(batch, requests, tmp_path, capsys) -> None:
    lines = [json.loads(line) for line in (batch / labelling.METADATA).read_text().splitlines()]
    lines[0]["caption"] = "a blue star"
    filled = tmp_path / "answers.jsonl"
    filled.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert feedback.main(["import", str(filled)]) == 0
    assert "1 captions added, 0 were there, 0 requests gone" in capsys.readouterr().out
    before = read_feedback(tmp_path / "captures")
    assert feedback.main(["import", str(filled)]) == 0
    assert "0 captions added, 1 were there, 0 requests gone" in capsys.readouterr().out
    assert read_feedback(tmp_path / "captures") == before
    assert before[2].captions == ["a blue star"]


def test_what_cannot_be_done_is_told_in_one_line_with_exit_code_2(
    batch, scenario, monkeypatch, tmp_path, capsys
) -> None:
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text(json.dumps({"request_id": new_request_id(), "caption": "a red star"}))
    for arguments, said in (
        (["import", str(tmp_path / "nowhere")], "nowhere: No such file"),
        (["import", str(batch)], "no caption is filled in yet"),
        (["import", str(elsewhere)], "set CAPTIONLOOP_CAPTURES"),
        (["import", str(batch), "--train"], "--train: needs a CONFIG"),
        (["import", str(batch), scenario, "--train"], "--train: needs a CONFIG"),
        (["status", str(tmp_path / "none.yaml")], "no such file"),
        (["status", scenario, "retrain.min_label=3"], "did you mean retrain.min_labels?"),
        (["export", scenario], "shapes has no champion yet"),
    ):
        assert feedback.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert said in error
        assert error.count("\n") == 1
