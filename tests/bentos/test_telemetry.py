"""What Prometheus is told, by one worker and by several."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from bentos.captioner.telemetry import Telemetry
from tests.bentos.serving import served

# Answers a version and three captions, then what it is told, line by line, until its input ends.
WORKER = """
import sys
from bentos.captioner.telemetry import Telemetry
telemetry = Telemetry()
telemetry.in_progress.inc()
telemetry.model_info.labels("tiny", sys.argv[1]).set(1)
for tokens in (3, 7, 70):
    telemetry.requests.labels("/v1/caption", "200").inc()
    telemetry.caption_tokens.observe(tokens)
print("ready", flush=True)
for line in sys.stdin:
    name, version, value = line.split()
    telemetry.model_info.labels(name, version).set(int(value))
    print("done", flush=True)
"""
SCRAPE = """
import sys
from bentos.captioner.telemetry import Telemetry, forget_dead_workers
forget_dead_workers()
sys.stdout.buffer.write(Telemetry().exposition())
"""
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(exposition: bytes) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }


class Worker:
    def __init__(self, folder: Path, version: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, version],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def wait(self) -> None:
        assert self._process.stdout.readline()

    def set_model(self, version: str, value: int) -> None:
        self._process.stdin.write(f"tiny {version} {value}\n")
        self.wait()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def workers(tmp_path) -> Iterator[list[Worker]]:
    started = [Worker(tmp_path, "7"), Worker(tmp_path, "7")]
    for worker in started:
        worker.wait()
    yield started
    for worker in started:
        worker.end()


def scraped(folder: Path) -> Samples:
    """What a third worker tells when it is asked."""
    done = subprocess.run(
        [sys.executable, "-c", SCRAPE],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        check=True,
    )
    return samples(done.stdout)


def test_counters_histograms_and_what_is_in_progress_are_summed_over_workers(
    workers, tmp_path
) -> None:
    found = scraped(tmp_path)
    route = (("route", "/v1/caption"), ("status", "200"))
    assert found["captioner_requests_total", route] == 6
    assert found["captioner_caption_tokens_sum", ()] == 2 * (3 + 7 + 70)
    assert found["captioner_caption_tokens_bucket", (("le", "4.0"),)] == 2
    assert found["captioner_caption_tokens_bucket", (("le", "+Inf"),)] == 6
    assert found["captioner_requests_in_progress", ()] == 2
    workers[0].end()
    found = scraped(tmp_path)
    assert found["captioner_requests_total", route] == 6  # what it answered was answered
    assert found["captioner_requests_in_progress", ()] == 1


def test_a_model_counts_as_long_as_any_living_worker_answers_by_it(workers, tmp_path) -> None:
    def told() -> list[float]:
        found = scraped(tmp_path)
        labels = [(("name", "tiny"), ("version", version)) for version in ("7", "8")]
        return [found.get(("captioner_model_info", label), 0) for label in labels]

    first, second = workers
    assert told() == [1, 0]
    first.set_model("7", 0)
    first.set_model("8", 1)
    assert told() == [1, 1]
    second.set_model("7", 0)
    second.set_model("8", 1)
    assert told() == [0, 1]
    second.set_model("8", 0)
    first.end()
    assert told() == [0, 0]


def test_the_length_of_each_caption_is_counted_in_tokens(model, png) -> None:
    async def main() -> None:
        async with served(model) as service:
            for seed in range(3):
                await service.caption(png(seed))
            assert service.metric("caption_tokens_count") == 3
            assert 3 <= service.metric("caption_tokens_sum") <= 3 * 8

    asyncio.run(main())


@pytest.mark.skipif(
    shutil.which("promtool") is None and os.environ.get("CI") != "true",
    reason="promtool is not here: apt install prometheus",
)
def test_promtool_finds_nothing_against_the_metrics(model, png, tmp_path) -> None:
    async def main() -> bytes:
        async with served(model, captures=tmp_path) as service:
            body = (await service.caption(png(0))).json()
            sent = {"request_id": body["request_id"], "caption": "a star"}
            await service.client.post("/feedback", json=sent)
            await service.caption(b"no picture")
            return service.runtime.telemetry.exposition()

    exposition = asyncio.run(main())
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition, capture_output=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stderr == b""


def test_without_a_gpu_nothing_is_told_of_one() -> None:
    assert not torch.cuda.is_initialized()
    assert b"gpu" not in Telemetry(CollectorRegistry()).exposition()


def test_used_and_free_make_up_a_gpus_memory(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 << 30, 80 << 30))
    found = samples(Telemetry(CollectorRegistry()).exposition())
    assert found["captioner_gpu_memory_bytes", (("state", "free"),)] == 3 << 30
    assert found["captioner_gpu_memory_bytes", (("state", "used"),)] == 77 << 30
