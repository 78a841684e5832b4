import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import httpx
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from packaging.requirements import Requirement

from bentos import packaging
from bentos.captioner.capture import read_feedback, read_window
from bentos.captioner.golden import read_golden
from bentos.captioner.images import decode, to_pixels
from configs.schema import PackageConfig
from configs.settings import git_commit
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


def names(lines: list[str]) -> set[str]:
    return {Requirement(line).name.lower() for line in lines}


def test_the_requirements_are_pinned_lean_and_free_of_urls() -> None:
    lines = packaging.service_requirements(packaging.EXTRAS)
    assert all("==" in line and "://" not in line and "+cpu" not in line for line in lines)
    assert {"torch", "transformers", "bentoml", "fastapi", "starlette", "pillow"} <= names(lines)
    assert not names(lines) & {"prefect", "alibi-detect", "dvc", "mlflow", "pytest", "evaluate"}
    assert not any(name.startswith("nvidia-cu") for name in names(lines))


def test_every_package_that_is_required_is_pinned_for_the_python_of_the_image() -> None:
    held = [Requirement(line) for line in packaging.service_requirements()]
    here = {one.name.lower() for one in held if one.marker is None or one.marker.evaluate()}
    assert names(packaging.service_requirements()) == here  # networkx has a pin for each Python


def test_mlflow_and_heic_come_only_when_asked_for() -> None:
    lean = names(packaging.service_requirements())
    assert not lean & {"mlflow-skinny", "gitpython", "databricks-sdk", "pillow-heif"}
    assert names(packaging.service_requirements(["mlflow"])) - lean >= {"mlflow-skinny", "sqlparse"}
    assert names(packaging.service_requirements(["heic"])) - lean == {"pillow-heif"}
    allowed = PackageConfig.model_fields["extras"].annotation
    assert set(get_args(get_args(allowed)[0])) == packaging.EXTRAS.keys()


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
        'captioner_requests_total{route="other",status="404"} 1.0',
        "captioner_batch_size_count 43.0",
        "captioner_feedback_total 5.0",
        'captioner_images_total{outcome="captioned"} 43.0',
        "captioner_requests_in_progress 1.0",  # this one
        "captioner_capture_drops_total 0.0",
        "captioner_captures_expired_total 0.0",
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
@pytest.mark.parametrize("name", ["CAPTIONLOOP_TOKENS", "OTEL_TRACES_EXPORTER"])
def test_a_setting_that_no_worker_could_start_with_ends_the_server(tag, name) -> None:
    with (
        pytest.raises(packaging.ServeFailed, match=rf"The server ended[\s\S]*BadSetting: {name}"),
        packaging.serve(tag, port=packaging.free_port(), env={name: "[]"}),
    ):
        pytest.fail("it serves")


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
def test_a_bento_that_says_something_else_is_told_by_picture_and_not_kept(
    bento_home, golden_folder, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lying = shutil.copytree(golden_folder, tmp_path / "model")
    index = lying / "golden" / "golden.json"
    entries = json.loads(index.read_text())
    said, entries[1]["caption"] = entries[1]["caption"], "what nobody said"
    index.write_text(json.dumps(entries))
    before = bentos()
    assert packaging.main([str(lying)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    for words in ("error: ", "1.png", "what nobody said", said):
        assert words in line
    assert bentos() == before


def bentos() -> set[str]:
    import bentoml

    return {str(one.tag) for one in bentoml.bentos.list()}


def test_what_can_not_be_packaged_is_told_in_a_line(
    bento_home, tiny_blip, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = bentos()
    for asked, words in (
        (str(tmp_path / "nothing"), "has no config.json"),
        (str(tiny_blip), "no golden pictures"),
        ("models:/a@champion", "http://127.0.0.1:9"),
    ):
        assert packaging.main([asked]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert words in line
    assert bentos() == before


@pytest.mark.e2e
def test_a_version_of_the_registry_is_packaged_by_its_alias(
    bento_home, golden_folder, tmp_path, monkeypatch, capsys
) -> None:
    import bentoml
    import mlflow

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mlflow.set_tracking_uri(None)  # which also takes the variable out of the environment
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    logged = client.create_logged_model(experiment_id=experiment, name="tiny")
    client.log_model_artifacts(logged.model_id, str(golden_folder))
    client.finalize_logged_model(logged.model_id, "READY")
    client.create_registered_model("photos")
    source = f"models:/{logged.model_id}"
    client.create_model_version("photos", source, tags={"dataset_digest": "abc"})
    client.set_registered_model_alias("photos", "champion", "1")

    assert packaging.main(["models:/photos@champion", "--extra", "mlflow"]) == 0
    tag = capsys.readouterr().out.strip()
    labels = bentoml.bentos.get(tag).info.labels
    assert labels.pop("git_commit") == git_commit()
    assert labels == {"model_name": "photos", "model_version": "1", "dataset_digest": "abc"}


@pytest.mark.e2e
def test_a_model_that_does_not_load_fails_the_smoke_run_with_the_servers_log(
    bento_home, golden_folder, tmp_path
) -> None:
    broken = shutil.copytree(golden_folder, tmp_path / "model")
    (broken / "model.safetensors").write_bytes(b"not a tensor")
    tag = packaging.build(broken, labels={})
    with pytest.raises(packaging.SmokeFailed, match=r"The server ended[\s\S]*BadModelFolder"):
        packaging.smoke(tag, timeout_seconds=120)


@pytest.mark.e2e
def test_a_machine_with_nothing_but_the_bentos_requirements_serves_it(
    bento_home, golden_folder, tmp_path, monkeypatch
) -> None:
    import bentoml

    tag = packaging.build(golden_folder, labels={})  # the latest
    requirements = Path(bentoml.bentos.get(tag).path) / "env" / "python" / "requirements.txt"
    python = tmp_path / "venv" / "bin" / "python"
    find_links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
    for command in (
        ["venv", "--python", "3.11", str(tmp_path / "venv")],
        ["pip", "install", "--python", str(python), "-r", str(requirements)],
    ):
        uv = [sys.executable, "-m", "uv", "--quiet", *command]
        subprocess.run(uv, check=True, env={**os.environ, "UV_FIND_LINKS": find_links})
    code = "import importlib.util as u; print([n for n in {} if u.find_spec(n)])".format(
        ["prefect", "mlflow", "alibi_detect", "datasets", "dvc", "evaluate", "bentos", "tasks"]
    )
    said = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout == "[]\n", said.stderr

    monkeypatch.setattr(packaging, "SERVE_COMMAND", (str(python), "-m", "bentoml", "serve"))
    for name in os.environ.keys() - {"PATH", "HOME", "TMPDIR", "BENTOML_HOME"}:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    with packaging.serve(
        "captioner:latest", port=packaging.free_port(), env={"OMP_NUM_THREADS": "1"}
    ) as url:
        for one in read_golden(golden_folder):
            answer = httpx.post(f"{url}/v1/caption", files={"image": one.path.read_bytes()})
            assert answer.json()["caption"] == one.caption
    follow = {"CAPTIONLOOP_FOLLOW": "models:/a@champion", "MLFLOW_TRACKING_URI": "http://mlflow"}
    with (
        pytest.raises(packaging.ServeFailed, match="needs MLflow, which is not installed here"),
        packaging.serve(tag, port=packaging.free_port(), env=follow),
    ):
        pass


@pytest.mark.e2e
def test_the_image_installs_the_pins_and_pip_needs_no_overrides_for_them(
    bento_home, golden_folder, tmp_path
) -> None:
    import bentoml
    from bentoml.container import get_containerfile

    tag = packaging.build(golden_folder, labels={}, extras=packaging.EXTRAS)
    get_containerfile(tag, output_path=str(tmp_path / "Dockerfile"))
    assert "pip install -r $BENTO_PATH/env/python/requirements.txt" in (
        (tmp_path / "Dockerfile").read_text()
    )
    requirements = Path(bentoml.bentos.get(tag).path) / "env" / "python" / "requirements.txt"
    pins = set(map(Requirement, packaging.service_requirements(packaging.EXTRAS)))
    assert set(map(Requirement, requirements.read_text().splitlines())) == pins
    find_links = os.environ.get("PIP_FIND_LINKS", "")
    resolve = [sys.executable, "-m", "uv", "pip", "compile", "--python-version", "3.11"]
    resolved = subprocess.run(
        [*resolve, str(requirements)],
        cwd=tmp_path,  # away from this project's overrides
        env={"UV_FIND_LINKS": find_links, **os.environ},
        capture_output=True,
        text=True,
    )
    assert resolved.returncode == 0, resolved.stderr
