import concurrent.futures
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from packaging.requirements import Requirement

from bentos import packaging
from bentos.captioner.capture import read_feedback, read_window
from bentos.captioner.golden import read_golden
from bentos.captioner.images import decode, to_pixels
from tests.bentos import hostile
from tests.bentos.collector import collecting
from tests.bentos.serving import processes_of
from tests.bentos.test_connection import sent_until_closed


def test_golden_pictures_are_read_back_pixel_by_pixel(golden_folder, picture) -> None:
    golden = read_golden(golden_folder)
    assert len(golden) == 3
    for seed, one in enumerate(golden):
        decoded = np.asarray(decode(one.path.read_bytes()))
        assert np.array_equal(decoded, to_pixels(picture(seed), 72))


def test_the_requirements_are_pinned_lean_and_free_of_urls() -> None:
    lines = packaging.service_requirements()
    names = {Requirement(line).name.lower() for line in lines}
    assert all("==" in line and "://" not in line and "+cpu" not in line for line in lines)
    assert {"torch", "transformers", "bentoml", "fastapi", "starlette", "pillow"} <= names
    assert not names & {"prefect", "alibi-detect", "dvc", "mlflow", "pytest", "evaluate"}
    assert not any(name.startswith("nvidia-cu") for name in names)


@pytest.mark.e2e
def test_a_bento_ships_the_captioner_and_nothing_else(tag) -> None:
    import bentoml

    source = Path(bentoml.bentos.get(tag).path) / "src"
    kinds = {".py", ".html", ".css", ".js", ".svg"}

    def files(folder: Path, root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in folder.rglob("*") if path.suffix in kinds}

    shipped = files(source, source)
    expected = files(packaging.ROOT / "bentos" / "captioner", packaging.ROOT)
    assert shipped == expected | {"bentos/__init__.py"}


@pytest.mark.e2e
def test_a_bento_listens_on_loopback_unless_told_otherwise(tag) -> None:
    import bentoml

    (service,) = bentoml.bentos.get(tag).info.services
    assert service.config["http"]["host"] == "127.0.0.1"


@pytest.mark.e2e
def test_a_real_server_captions_learns_counts_and_survives_bad_input(
    tag, golden_folder, encode, picture, tmp_path
) -> None:
    env = {"CAPTIONLOOP_CAPTURES": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with packaging.serve(tag, port=packaging.free_port(), env=env) as url:
        started = processes_of(url)
        assert len(started) >= 2
        with httpx.Client(base_url=url, timeout=60) as client:
            _captions_match(client, golden_folder)
            _bad_input_is_refused(client, encode, picture)
            request_ids = _many_at_once(url, encode, picture)
            for request_id in request_ids[:5]:
                sent = {"request_id": request_id, "caption": "a red star"}
                assert client.post("/v1/feedback", json=sent).status_code == 201
            _health_and_metrics(client)
    assert not any(process.is_running() for process in started)
    captured = read_window(tmp_path, model_version="12", limit=100)
    assert {one.request_id for one in captured} >= set(request_ids)
    assert [one.captions for one in read_feedback(tmp_path)] == [["a red star"]] * 5


def _captions_match(client: httpx.Client, folder: Path) -> None:
    for one in read_golden(folder):
        answer = client.post("/v1/caption", files={"image": one.path.read_bytes()})
        assert answer.status_code == 200
        assert answer.json()["caption"] == one.caption
        assert answer.json()["model"] == {"name": "tiny-model", "version": "12"}
    assert client.get("/v1/model").json()["source"].startswith("bentoml:captioner-model:")


def _bad_input_is_refused(client: httpx.Client, encode: Callable, picture: Callable) -> None:
    def post(data: bytes) -> int:
        return client.post("/v1/caption", files={"image": data}).status_code

    assert post(b"no picture") == 415
    assert post(encode(picture(0))[:90]) == 400
    assert post(b"x" * (11 << 20)) == 413
    assert client.post("/v1/caption").status_code == 415
    assert client.get("/v1/caption").status_code == 405
    unknown = {"request_id": "0" * 32, "caption": "a"}
    assert client.post("/v1/feedback", json=unknown).status_code == 404


def _many_at_once(url: str, encode: Callable, picture: Callable) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(8) as pool, httpx.Client(timeout=60) as client:

        def post(seed: int) -> httpx.Response:
            return client.post(f"{url}/v1/caption", files={"image": encode(picture(seed))})

        answers = list(pool.map(post, range(40)))
    assert [answer.status_code for answer in answers] == [200] * 40
    return [answer.json()["request_id"] for answer in answers]


def _health_and_metrics(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert client.get("/wp-admin/setup.php").status_code == 404
    text = client.get("/metrics").text
    assert "wp-admin" not in text  # strangers would make up labels without end
    metrics = text.splitlines()
    for line in (
        'captioner_requests_total{route="/v1/caption",status="200"} 43.0',
        'captioner_requests_total{route="/v1/caption",status="415"} 2.0',
        "captioner_batch_size_count 43.0",
        "captioner_feedback_total 5.0",
        'captioner_images_total{outcome="captioned"} 43.0',
        "captioner_requests_in_progress 1.0",  # this one
        "captioner_capture_drops_total 0.0",
        "captioner_swap_failures_total 0.0",
        'captioner_model_info{name="tiny-model",version="12"} 1.0',
    ):
        assert line in metrics


@pytest.mark.e2e
def test_bentomls_own_client_gets_in_by_a_token_and_its_request_is_traced(
    tag, golden_folder
) -> None:
    import bentoml

    golden = read_golden(golden_folder)[0]
    with collecting() as (endpoint, collector):
        env = {"CAPTIONLOOP_TOKEN": "sesame", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        with packaging.serve(tag, port=packaging.free_port(), env=env) as url:
            with bentoml.SyncHTTPClient(url, token="sesame") as client:
                files = {"image": golden.path.read_bytes()}
                answer = client.request("POST", "/v1/caption", files=files)
            assert answer.json()["caption"] == golden.caption
            port = int(url.rpartition(":")[2])
            sent, _ = sent_until_closed(
                ("127.0.0.1", port), b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 999
            )
            assert sent < 20 << 20
    roots = [span.name for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert roots == ["POST /v1/caption"]
    assert len(collector.named("inference")) == 1


@pytest.mark.e2e
def test_hostile_requests_make_no_server_error_and_good_ones_are_still_answered(
    tag, golden_folder, picture, tmp_path
) -> None:
    env = {"CAPTIONLOOP_CAPTURES": str(tmp_path), "OMP_NUM_THREADS": "1"}
    env["CAPTIONLOOP_BODY_SECONDS"] = "1"
    golden = read_golden(golden_folder)[0]
    with packaging.serve(tag, port=packaging.free_port(), env=env) as url:
        outcome = hostile.run(
            url,
            hostile.requests(0, hostile.pictures(picture(0, 200, 150))),
            300,
            good=golden.path.read_bytes(),
            caption=golden.caption,
            pid=processes_of(url)[0].pid,
        )
    assert outcome.failures == []
    statuses = {status for _, status in outcome.statuses}
    assert statuses >= {200, 400, 404, 405, 408, 413, 415, 422}


@pytest.mark.e2e
def test_the_smoke_run_names_the_picture_that_differs(
    bento_home, golden_folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lying = shutil.copytree(golden_folder, tmp_path / "model")
    index = lying / "golden" / "golden.json"
    entries = json.loads(index.read_text())
    said, entries[1]["caption"] = entries[1]["caption"], "what nobody said"
    index.write_text(json.dumps(entries))
    bad = packaging.build(lying, labels={})
    with pytest.raises(packaging.SmokeFailed) as caught:
        packaging.smoke(bad, timeout_seconds=120)
    for words in ("1.png", "what nobody said", said):
        assert words in str(caught.value)


@pytest.mark.e2e
def test_a_model_without_golden_pictures_fails_the_smoke_run(bento_home, tiny_blip) -> None:
    tag = packaging.build(tiny_blip, labels={})
    with pytest.raises(packaging.SmokeFailed, match="no golden pictures"):
        packaging.smoke(tag, timeout_seconds=1)


@pytest.mark.e2e
def test_a_model_that_does_not_load_fails_the_smoke_run_with_the_servers_log(
    bento_home, golden_folder, tmp_path
) -> None:
    broken = shutil.copytree(golden_folder, tmp_path / "model")
    (broken / "model.safetensors").write_bytes(b"not a tensor")
    tag = packaging.build(broken, labels={})
    with pytest.raises(packaging.SmokeFailed, match=r"The server ended[\s\S]*BadModelFolder"):
        packaging.smoke(tag, timeout_seconds=120)
