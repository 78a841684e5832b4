"""What the captioner counts. Made when the service starts, never at import: only then is the
multi-process folder known in which prometheus_client keeps its values."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Telemetry:
    """The metrics, one attribute each; all names start with `captioner_`."""

    def __init__(self, registry: "CollectorRegistry | None" = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        self._registry = into = registry or REGISTRY
        into.register(GpuMemory())
        self.requests = Counter(
            "captioner_requests", "Requests answered.", ["route", "status"], registry=into
        )
        self.latency = Histogram(
            "captioner_request_seconds",
            "Time from a request's first byte to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=into,
        )
        self.batch_size = Histogram(
            "captioner_batch_size",
            "Images in a batch.",
            buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
            registry=into,
        )
        self.queue_wait = Histogram(
            "captioner_queue_seconds",
            "Time an image waited for its batch to start.",
            buckets=_SECONDS,
            registry=into,
        )
        self.model_info = Gauge(
            "captioner_model_info",
            "1 for the models that answer now: during a swap each worker may have another.",
            ["name", "version"],
            multiprocess_mode="livemax",
            registry=into,
        )
        self.challenger_info = Gauge(
            "captioner_challenger_info",
            "1 for the model that is tried out beside it, as `canary` or as `shadow`.",
            ["name", "version", "role"],
            multiprocess_mode="livemax",
            registry=into,
        )
        self.canary_answers = Counter(
            "captioner_canary_answers", "Images captioned by the canary.", registry=into
        )
        self.canary_failures = Counter(
            "captioner_canary_failures",
            "Images on which the canary failed, so that the champion captioned them.",
            registry=into,
        )
        self.shadow = Counter(
            "captioner_shadow",
            "Answered images by how the shadow's caption compares: same, different, skipped when "
            "there was no time, failed.",
            ["outcome"],
            registry=into,
        )
        self.shadow_gain = Histogram(
            "captioner_shadow_log_probability_gain",
            "Log-probability a token of the shadow's caption less that of the answer.",
            buckets=(-1.0, -0.5, -0.25, -0.1, -0.05, 0.0, 0.05, 0.1, 0.25, 0.5, 1.0),
            registry=into,
        )
        self.swaps = Counter("captioner_swaps", "New models taken up.", registry=into)
        self.swap_failures = Counter(
            "captioner_swap_failures", "New models refused because they failed.", registry=into
        )
        self.follow_errors = Counter(
            "captioner_follow_errors",
            "Looks at the registry that failed and were tried again.",
            registry=into,
        )
        self.capture_drops = Counter(
            "captioner_capture_drops",
            "Captures lost because the store was away or the writer behind.",
            registry=into,
        )
        self.captures_expired = Counter(
            "captioner_captures_expired",
            "Captures removed because they were too old or too many.",
            registry=into,
        )
        self.capture_bytes = Gauge(
            "captioner_capture_store_bytes",
            "What is kept in the store of captures, by all who write to it.",
            multiprocess_mode="livemostrecent",
            registry=into,
        )
        self.feedback = Counter("captioner_feedback", "Corrections stored.", registry=into)
        self.in_progress = Gauge(
            "captioner_requests_in_progress",
            "Requests that are not answered yet.",
            multiprocess_mode="livesum",
            registry=into,
        )
        self.images = Counter(
            "captioner_images",
            "Images received, by what became of them.",
            ["outcome"],
            registry=into,
        )
        self.caption_tokens = Histogram(
            "captioner_caption_tokens",
            "Tokens of a caption answered.",
            buckets=(2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0),
            registry=into,
        )
        self.deletions = Counter(
            "captioner_captures_deleted", "Captures deleted on request.", registry=into
        )
        self.token_reload_errors = Counter(
            "captioner_token_reload_errors",
            "Changed token files that could not be taken up.",
            registry=into,
        )

    def exposition(self) -> bytes:
        """All metrics of all workers, in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
            registry.register(GpuMemory())
        return generate_latest(registry)


class GpuMemory:
    """Memory of the GPU, of all processes on it: the same whichever worker is asked. Nothing where
    no model lies on a GPU."""

    def collect(self) -> "Iterator[GaugeMetricFamily]":
        from prometheus_client.core import GaugeMetricFamily

        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return
        free, total = torch.cuda.mem_get_info()
        name = "captioner_gpu_memory_bytes"
        memory = GaugeMetricFamily(
            name, "Memory of the GPU, by whether it is used.", labels=["state"]
        )
        memory.add_metric(["used"], total - free)
        memory.add_metric(["free"], free)
        yield memory


def forget_dead_workers() -> None:
    """Drop the gauges of workers that were killed: nobody else counts what they had in hand."""
    from prometheus_client.multiprocess import mark_process_dead

    for file in Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", os.devnull)).glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)
        except PermissionError:
            continue  # somebody else's process: alive
