"""Real servers: a captioner under traffic and a Pushgateway with what the loop told, scraped by a
Prometheus with our rules, whose alerts a real Alertmanager posts to a webhook."""

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import yaml
from PIL import Image
from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

from bentos import packaging
from tests.bentos.conftest import bento_home, encoded, save_tiny_blip  # noqa: F401
from tests.infra.monitoring import (
    DASHBOARDS,
    INFRA,
    RULES,
    expressions,
    filled,
    rules,
    selectors,
    with_webhooks,
)

pytestmark = pytest.mark.e2e
MODEL = "photos"
DEADLINE_SECONDS = 60
# There is no GPU here; tests/bentos/test_telemetry.py holds that a GPU's memory is told.
ELSEWHERE = {"captioner_gpu_memory_bytes"}


@dataclass
class Prometheus:
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=10)
        told = answer.json()
        assert told["status"] == "success", f"{expression}: {told}"
        return told["data"]["result"]

    def get(self, path: str, **params: object) -> Any:
        return httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=10).json()["data"]

    def has_data(self, expression: str) -> bool:
        return any(series["value"][1] != "NaN" for series in self.query(expression))

    def without_data(self, queries: set[str]) -> set[str]:
        """Those of the queries that still return no number when the deadline has passed."""
        missing = set(queries)

        def all_have_data() -> bool:
            missing.difference_update([one for one in missing if self.has_data(one)])
            return not missing

        eventually(all_have_data)
        return missing


class Webhook(BaseHTTPRequestHandler):
    received: ClassVar[list[tuple[str, dict[str, Any]]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, json.loads(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Monitored:
    prometheus: Prometheus
    pushgateway: str
    received: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def alerts(self, name: str, status: str) -> list[tuple[str, dict[str, Any]]]:
        """What the webhook was told of an alert: the path that was posted to, and the alert."""
        return [
            (path, alert)
            for path, message in self.received
            for alert in message["alerts"]
            if alert["labels"]["alertname"] == name and alert["status"] == status
        ]

    def tell(self, verdict: str) -> None:
        """Push what a check and the loop tell, in the agreed names."""
        registry = CollectorRegistry()

        def told(name: str, value: float, **labels: str) -> None:
            if name not in gauges:
                gauges[name] = Gauge(f"captionloop_{name}", name, list(labels), registry=registry)
            gauges[name].labels(**labels).set(value)

        gauges: dict[str, Gauge] = {}
        of = {"model": MODEL}
        for one in ("drift", "suspected", "no_drift", "too_few"):
            told("drift_verdict", one == verdict, **of, version="1", verdict=one)
        for feature in ("embedding", "brightness", "words"):
            told("drift_p_value", 0.004, **of, feature=feature)
            told("drift_effect", 0.3, **of, feature=feature)
        told("drift_window_requests", 300, **of)
        told("drift_last_check_timestamp_seconds", time.time(), **of)
        for kind in ("labelled", "estimated", "expected"):
            told("performance_cider", 1.1, **of, kind=kind)
        told("champion_timestamp_seconds", time.time(), **of, version="1")
        for age, outcome in enumerate(("promoted", "rejected", "failed", "labels_wanted")):
            at = time.time() - 60 * age
            told("retraining_last_timestamp_seconds", at, **of, outcome=outcome)
        push_to_gateway(self.pushgateway, job="captionloop", registry=registry)


@pytest.fixture(scope="module")
def monitored(bento_home, module_var: Path, tmp_path_factory) -> Iterator[Monitored]:  # noqa: F811
    folder = tmp_path_factory.mktemp("monitored")
    with ExitStack() as stack:
        webhook, received = stack.enter_context(receiving())
        captioner = stack.enter_context(captioning(folder, module_var))
        pushgateway = stack.enter_context(
            running("prometheus-pushgateway", "--web.listen-address={at}", log=folder)
        )
        alertmanager = stack.enter_context(
            running(
                "prometheus-alertmanager",
                f"--config.file={alertmanager_config(folder, webhook)}",
                f"--storage.path={folder / 'alertmanager'}",
                "--web.listen-address={at}",
                "--cluster.listen-address=",
                log=folder,
            )
        )
        targets = {"captioner": captioner, "pushgateway": pushgateway, "alertmanager": alertmanager}
        prometheus = stack.enter_context(
            running(
                "prometheus",
                f"--config.file={prometheus_config(folder, targets)}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                "--web.listen-address={at}",
                log=folder,
            )
        )
        site = Monitored(Prometheus(f"http://{prometheus}"), pushgateway, received)
        site.tell("drift")
        cause_traffic(f"http://{captioner}")
        stack.enter_context(steadily_asked(f"http://{captioner}"))
        yield site


@contextmanager
def running(*command: str, log: Path) -> Iterator[str]:
    """A server that says at /-/ready that it is; its host and port."""
    address = f"127.0.0.1:{packaging.free_port()}"
    filled = [part.replace("{at}", address) for part in command]
    with (
        (log / f"{command[0]}.log").open("w") as output,
        subprocess.Popen(filled, cwd=log, stdout=output, stderr=output) as process,
    ):
        try:
            assert eventually(lambda: answers(f"http://{address}/-/ready", process)), (
                log / f"{command[0]}.log"
            ).read_text()
            yield address
        finally:
            process.terminate()


def answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def eventually(happens: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@contextmanager
def receiving() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """A webhook: its URL, and what is posted to it."""
    handler = type("Receiver", (Webhook,), {"received": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.received
        server.shutdown()


def prometheus_config(folder: Path, targets: dict[str, str]) -> Path:
    """Ours, with these targets, and every second what else is every 15."""
    copied = shutil.copytree(INFRA / "prometheus", folder / "prometheus")
    for job, address in targets.items():
        (copied / "targets" / f"{job}.yml").write_text(f"- targets: ['{address}']\n")
    path = copied / "prometheus.yml"
    path.write_text(path.read_text().replace("_interval: 15s", "_interval: 1s"))
    return path


def alertmanager_config(folder: Path, webhook: str) -> Path:
    """Ours, with messages after a second."""
    told = yaml.safe_load(with_webhooks(webhook))
    for route in (told["route"], *told["route"]["routes"]):
        route |= {"group_wait": "1s", "group_interval": "1s"}
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(told))
    return path


@contextmanager
def captioning(folder: Path, var: Path) -> Iterator[str]:
    """A served Bento that follows a registry and tries out a shadow; its host and port."""
    tracking_uri = f"sqlite:///{var / 'mlflow' / 'mlflow.db'}"
    models = [save_tiny_blip(folder / f"model-{n}", seed=n, version=str(n)) for n in (1, 2)]
    register(tracking_uri, folder, models)
    tag = packaging.build(models[0], labels={"model_name": MODEL, "model_version": "1"})
    env = {
        "MLFLOW_TRACKING_URI": tracking_uri,
        "CAPTIONLOOP_FOLLOW": f"models:/{MODEL}@champion",
        "CAPTIONLOOP_SHADOW": f"models:/{MODEL}@challenger",
        "CAPTIONLOOP_CAPTURES": str(folder / "captures"),
        "CAPTIONLOOP_MAX_REQUESTS": "4",
        "CAPTIONLOOP_ANSWER_SECONDS": "2",
        "OMP_NUM_THREADS": "1",
    }
    with packaging.serve(tag, port=packaging.free_port(), env=env) as url:
        yield url.removeprefix("http://")


def register(tracking_uri: str, folder: Path, models: list[Path]) -> None:
    """The first as champion, the second as challenger."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri, tracking_uri)
    at = (folder / "artifacts").as_uri()
    experiment = client.create_experiment("monitored", artifact_location=at)
    client.create_registered_model(MODEL)
    for path, alias in zip(models, ("champion", "challenger"), strict=True):
        logged = client.create_logged_model(experiment_id=experiment, name="tiny")
        client.log_model_artifacts(logged.model_id, str(path))
        client.finalize_logged_model(logged.model_id, "READY")
        made = client.create_model_version(MODEL, logged.artifact_location)
        client.set_registered_model_alias(MODEL, alias, made.version)


def cause_traffic(url: str) -> None:
    """Captions until the shadow has judged one, a correction, too many at once, and a late one."""
    small, large = (encoded(Image.new("RGB", (side, side), "teal")) for side in (80, 6000))

    def caption(_: int) -> int:
        return httpx.post(f"{url}/v1/caption", files={"image": small}, timeout=30).status_code

    assert eventually(lambda: caption(0) == 200 and counted(url, "captioner_shadow_total"))
    answer = httpx.post(f"{url}/v1/caption", files={"image": small}, timeout=30).json()
    sent = {"request_id": answer["request_id"], "caption": "a teal square"}
    # Captures are written every half second.
    assert eventually(lambda: httpx.post(f"{url}/v1/feedback", json=sent).status_code == 201)
    with ThreadPoolExecutor(32) as pool:
        assert eventually(lambda: 429 in pool.map(caption, range(64)))
    files = [("images", large)] * 16
    assert httpx.post(f"{url}/v1/captions", files=files, timeout=60).status_code == 504


@contextmanager
def steadily_asked(url: str) -> Iterator[None]:
    """A caption every tenth of a second, so that no rate is 0."""
    small, over = encoded(Image.new("RGB", (80, 80), "teal")), threading.Event()

    def ask() -> None:
        while not over.wait(0.1):
            httpx.post(f"{url}/v1/caption", files={"image": small}, timeout=30)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            over.set()
            asking.result()


def counted(url: str, metric: str) -> bool:
    text = httpx.get(f"{url}/metrics", timeout=30).text
    return any(line.startswith(metric) for line in text.splitlines())


def test_every_series_that_a_rule_reads_exists(monitored: Monitored) -> None:
    read = {selector for rule in rules() for selector in selectors(rule["expr"])}
    assert len(read) > 20
    assert monitored.prometheus.without_data(read) == set()


def test_every_recording_rule_has_a_value(monitored: Monitored) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert monitored.prometheus.without_data(recorded) == set()


def test_every_rule_is_evaluated_without_an_error(monitored: Monitored) -> None:
    groups = monitored.prometheus.get("rules")["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert health == {rule.get("alert") or rule["record"]: "ok" for rule in rules()}
    assert {Path(group["file"]).name for group in groups} == {path.name for path in RULES}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_of_a_dashboard_returns_data(monitored: Monitored, dashboard: Path) -> None:
    queries = {
        expression
        for _, expression in expressions(dashboard)
        if not any(metric in expression for metric in ELSEWHERE)
    }
    assert len(queries) > 5
    assert monitored.prometheus.without_data(queries) == set()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_variable_of_a_dashboard_has_values(monitored: Monitored, dashboard: Path) -> None:
    for metric, label in variables(dashboard):
        values = monitored.prometheus.get(f"label/{label}/values", **{"match[]": metric})
        assert values, f"{metric} has no {label}"


def variables(dashboard: Path) -> list[tuple[str, str]]:
    """(series, label) of each variable that Prometheus is asked for."""
    listed = json.loads(dashboard.read_text())["templating"]["list"]
    queries = [one["query"] for one in listed if one["type"] == "query"]
    asked = [re.fullmatch(r"label_values\((.+), (\w+)\)", query) for query in queries]
    return [(filled(match[1]), match[2]) for match in asked]


def test_alertmanager_posts_a_drift_to_the_webhook_and_takes_it_back_when_it_is_over(
    monitored: Monitored,
) -> None:
    monitored.tell("drift")
    assert eventually(lambda: monitored.alerts("DriftDetected", "firing"))
    path, alert = monitored.alerts("DriftDetected", "firing")[0]
    assert path == "/tickets"
    assert alert["labels"] == {"alertname": "DriftDetected", "model": MODEL, "severity": "warning"}
    assert alert["annotations"]["summary"] == "What photos is asked has drifted."
    assert alert["annotations"]["runbook_url"] == "infra/RUNBOOK.md#driftdetected"
    assert not monitored.alerts("DriftDetected", "resolved")

    monitored.tell("no_drift")
    assert eventually(lambda: monitored.alerts("DriftDetected", "resolved"))
    firing = monitored.prometheus.query('ALERTS{alertname="DriftDetected", alertstate="firing"}')
    assert firing == []
