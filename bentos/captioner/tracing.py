"""OpenTelemetry traces of requests, where its standard variables ask for them.

BentoML's own tracing knows none of those variables, and names its spans by raw paths.
"""

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bentos.captioner.settings import BadSetting

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_FLUSH_SECONDS = 5.0


class Tracing:
    """Spans of requests and of their steps, sent in the background by a thread of the SDK.

    FastAPI makes a request's span by `provider`, after OpenTelemetry's HTTP conventions; it goes on
    a trace that the client began (W3C `traceparent`).
    """

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Tracing | None":
        """None where no traces are asked for. Raises BadSetting."""
        exporter = exporter_from_environment(environment)
        return None if exporter is None else cls(exporter)

    def __init__(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({SERVICE_NAME: "captioner"})
        self._exporter = exporter
        self.provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,  # closed by its owner
        )
        self.provider.add_span_processor(_without_query())
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self.provider.get_tracer("captioner")

    @property
    def trace_id(self) -> str:
        """That of the current request, in hexadecimal as logs have it."""
        from opentelemetry.trace import format_trace_id, get_current_span

        return format_trace_id(get_current_span().get_span_context().trace_id)

    def step(
        self,
        name: str,
        start: float,
        end: float,
        attributes: Mapping[str, str | int] | None = None,
    ) -> None:
        """A step of the current request that has ended; its times are `time.perf_counter`'s."""
        epoch = time.time_ns() - time.perf_counter_ns()
        span = self._tracer.start_span(
            name, start_time=epoch + int(start * 1e9), attributes=attributes
        )
        span.end(epoch + int(end * 1e9))

    def close(self) -> None:
        """Send what is left, for some seconds: a collector that is away holds no shutdown up."""
        limit = threading.Timer(_FLUSH_SECONDS, self._exporter.shutdown)
        limit.start()
        self.provider.shutdown()
        limit.cancel()


def exporter_from_environment(environment: Mapping[str, str]) -> "SpanExporter | None":
    """None where no traces are asked for; the exporter and the SDK read their own variables.

    Raises BadSetting.
    """
    asked = any(environment.get(name) for name in _ENDPOINTS)
    exporter = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if asked else "none")
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if exporter == "none" or disabled:
        return None
    if exporter != "otlp":
        raise BadSetting(f"OTEL_TRACES_EXPORTER must be otlp or none, not {exporter!r}.")
    for name in _PROTOCOLS:
        if environment.get(name, "") not in ("", "http/protobuf"):
            raise BadSetting(f"{name} must be http/protobuf, not {environment[name]!r}.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        from opentelemetry.sdk.version import __version__

        raise BadSetting(
            "OTEL_* ask for traces, and their exporter is not installed: pip install "
            f"opentelemetry-exporter-otlp-proto-http=={__version__}, or OTEL_TRACES_EXPORTER=none."
        ) from error
    return OTLPSpanExporter()


def _without_query() -> "SpanProcessor":
    from opentelemetry.sdk.trace import Span, SpanProcessor

    class WithoutQuery(SpanProcessor):
        """Keeps prompts, and what strangers append, out of the traces as out of the log."""

        def on_start(self, span: Span, parent_context: object = None) -> None:
            if "url.query" in (span.attributes or {}):
                span.set_attribute("url.query", "REDACTED")

    return WithoutQuery()
