"""Traces as a collector receives them, over OTLP/HTTP."""

import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from bentos.captioner.settings import BadSetting
from bentos.captioner.tracing import Tracing, exporter_from_environment
from tests.bentos.collector import Collector, collecting
from tests.bentos.serving import HeldEngine, ServedModel, site

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextlib.contextmanager
def traced(model: ServedModel, monkeypatch, **options: object) -> Iterator[tuple[str, Collector]]:
    """A service that sends its traces to a collector; all are there once it has been left."""
    with collecting() as (endpoint, collector):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        with site(model, tracing=Tracing.from_environment(os.environ), **options) as url:
            yield url, collector


def attributes(span: Span) -> dict[str, str | int]:
    return {
        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value")))
        for pair in span.attributes
    }


def test_a_clients_trace_goes_on_through_the_request_and_its_steps(
    model, png, monkeypatch, tmp_path
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    with traced(model, monkeypatch, captures=tmp_path) as (url, collector):
        before = time.time_ns()
        answer = httpx.post(f"{url}/v1/caption", files={"image": png(0)}, headers=headers)
        after = time.time_ns()
    assert collector.paths == {"/v1/traces"}
    (resource,) = {
        r.resource.SerializeToString() for c in collector.requests for r in c.resource_spans
    }
    assert b"service.name" in resource
    assert b"captioner" in resource
    (root,) = collector.named("POST /v1/caption")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert root.kind == Span.SPAN_KIND_SERVER
    assert root.status.code == Status.STATUS_CODE_UNSET
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/caption",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": int(url.rpartition(":")[2]),
        "url.path": "/v1/caption",
        "url.scheme": "http",
    }
    steps = [
        s for name in ("decode", "queue", "inference", "capture") for s in collector.named(name)
    ]
    assert len(steps) == 4 == len(collector.spans) - 1
    times = [before, root.start_time_unix_nano]
    for step in steps:
        assert (step.trace_id, step.parent_span_id) == (root.trace_id, root.span_id)
        times += [step.start_time_unix_nano, step.end_time_unix_nano]
    times += [root.end_time_unix_nano, after]
    # Each follows the one before, but for what the clocks of two calls differ by.
    assert all(late - early > -100_000 for early, late in itertools.pairwise(times))
    timings = answer.json()["timings"]
    for step in steps[:3]:
        seconds = (step.end_time_unix_nano - step.start_time_unix_nano) / 1e9
        assert seconds == pytest.approx(timings[f"{step.name}_seconds"], abs=1e-4)
    generated = attributes(steps[2])
    assert generated.pop("captioner.tokens") > 0
    assert generated == {
        "captioner.batch_size": 1,
        "captioner.model.name": "tiny",
        "captioner.model.version": "7",
    }


def test_each_picture_of_a_request_has_its_own_steps_below_it(model, png, monkeypatch) -> None:
    with traced(model, monkeypatch) as (url, collector):
        files = [("images", png(seed)) for seed in range(3)]
        httpx.post(f"{url}/v1/captions", files=files).raise_for_status()
    (root,) = collector.named("POST /v1/captions")
    for name in ("decode", "queue", "inference"):
        assert [span.parent_span_id for span in collector.named(name)] == [root.span_id] * 3


def test_what_the_log_says_of_a_request_leads_to_its_trace(model, png, monkeypatch, caplog) -> None:
    with (
        caplog.at_level(logging.INFO, logger="captioner.access"),
        traced(model, monkeypatch) as (url, collector),
    ):
        httpx.post(f"{url}/v1/caption", files={"image": png(0)})
        httpx.get(f"{url}/wp-admin", headers={"traceparent": "00-nonsense-01"})
    entries = [json.loads(r.message) for r in caplog.records if r.name == "captioner.access"]
    roots = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert [entry["trace_id"] for entry in entries] == [root.trace_id.hex() for root in roots]
    assert roots[0].trace_id != roots[1].trace_id


def test_spans_are_named_by_route_and_never_by_what_a_stranger_sent(model, monkeypatch) -> None:
    with traced(model, monkeypatch, token="sesame") as (url, collector):
        httpx.delete(f"{url}/v1/captures/some-id", headers={"authorization": "Bearer sesame"})
        httpx.get(f"{url}/some/path?secret=1")
        httpx.request("TRACE", f"{url}/v1/caption")
    assert [span.name for span in collector.spans] == [
        "DELETE /v1/captures/{request_id}",
        "GET",
        "TRACE",
    ]
    sent = b"".join(request.SerializeToString() for request in collector.requests)
    assert b"secret" not in sent
    assert b"sesame" not in sent


def test_a_failing_engine_is_an_error_in_the_trace(model, png, monkeypatch) -> None:
    class Broken(HeldEngine):
        def run(self, *_: object) -> object:
            raise RuntimeError

    broken = ServedModel(**{**vars(model), "engine": Broken(model)})
    with traced(broken, monkeypatch) as (url, collector):
        assert httpx.post(f"{url}/v1/caption", files={"image": png(0)}).status_code == 500
    (root,) = collector.named("POST /v1/caption")
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert attributes(root)["error.type"] == "500"


def test_a_client_that_does_not_sample_gets_no_spans(model, png, monkeypatch) -> None:
    with traced(model, monkeypatch) as (url, collector):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        httpx.post(f"{url}/v1/caption", files={"image": png(0)}, headers=headers)
    assert collector.spans == []


def test_a_collector_that_is_away_costs_no_request_and_few_seconds_at_the_end(
    model, png, monkeypatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with site(model, tracing=Tracing.from_environment(os.environ)) as url:
        assert httpx.post(f"{url}/v1/caption", files={"image": png(0)}).status_code == 200
        closing = time.monotonic()
    assert time.monotonic() - closing < 8


@pytest.mark.parametrize(
    ("variables", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_the_standard_variables_say_whether_there_are_traces(variables, on) -> None:
    assert (exporter_from_environment(variables) is not None) == on


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER must be otlp or none"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf",
        ),
    ],
)
def test_what_cannot_be_exported_is_told_at_the_start(variables, words) -> None:
    with pytest.raises(BadSetting, match=words):
        exporter_from_environment(variables)


def test_without_the_exporter_the_start_fails_with_its_name(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadSetting, match="pip install opentelemetry-exporter-otlp-proto-http=="):
        exporter_from_environment({"OTEL_TRACES_EXPORTER": "otlp"})


def test_without_the_variables_nothing_of_the_sdk_is_imported() -> None:
    code = """
import sys
from bentos.captioner.api import create_app
from bentos.captioner.tracing import exporter_from_environment
assert exporter_from_environment({}) is None
print([name for name in sys.modules if name.startswith("opentelemetry.sdk")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
