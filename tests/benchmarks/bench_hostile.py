"""A served Bento under requests that nobody should send: what it answers, and what it costs it.

    python -m tests.benchmarks.bench_hostile [COUNT]

Fails on a 5xx other than 503, on a good request that is not answered (one after each hundred), and
on memory that grows by more than a tenth after the first fifth. Mutates real photos where they are.
"""

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bentos import hostile
from tests.bentos.conftest import save_tiny_blip
from tests.conftest import PHOTOS


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["BENTOML_HOME"] = f"{scratch}/bentoml"
        os.environ["BENTOML_DO_NOT_TRACK"] = "True"
        from bentos import packaging
        from bentos.captioner.engine import Engine
        from bentos.captioner.generation import Generation
        from bentos.captioner.images import decode, to_pixels

        folder = save_tiny_blip(Path(scratch) / "model", seed=0, version="1")
        samples = hostile.pictures(sample())
        good = samples[0]
        pixels = to_pixels(decode(good, side=72), 72)[np.newaxis]
        caption = Engine.load(folder, device="cpu").caption(pixels, Generation(8))[0].text
        env = {"CAPTIONLOOP_BODY_SECONDS": "1", "CAPTIONLOOP_CAPTURES": f"{scratch}/captures"}
        tag = packaging.build(folder, labels={})
        shutil.rmtree(folder)
        port = packaging.free_port()
        with packaging.serve(tag, port=port, env=env) as url:
            started = time.perf_counter()
            outcome = hostile.run(
                url,
                hostile.requests(1, samples),
                count,
                good=good,
                caption=caption,
                pid=server_of(port),
            )
            report(outcome, count, time.perf_counter() - started)


def sample() -> Image.Image:
    photos = sorted((PHOTOS / "images").glob("*.jpg"))
    if photos:
        return Image.open(photos[0]).convert("RGB")
    coarse = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((480, 320))


def server_of(port: int) -> int:
    import psutil

    found = [
        p.pid for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or [])
    ]
    return min(found)


def report(outcome: hostile.Outcome, count: int, seconds: float) -> None:
    rows: dict[str, Counter[int]] = {}
    for (kind, status), number in sorted(outcome.statuses.items()):
        rows.setdefault(kind, Counter())[status] += number
    print(
        "| kind | requests | answers (0: the connection ended without one) |\n| --- | --- | --- |"
    )
    for kind, statuses in rows.items():
        answers = ", ".join(f"{number} × {status}" for status, number in statuses.items())
        print(f"| {kind} | {statuses.total()} | {answers} |")
    memory = [size / 2**20 for size in outcome.rss_bytes]
    warm = max(memory[: max(1, len(memory) // 5)])
    print(
        f"\n{count} requests in {seconds:.0f} s, {len(outcome.failures)} failures; memory "
        f"{memory[0]:.0f} MiB after the first hundred, at most {warm:.0f} in the first fifth and "
        f"{max(memory):.0f} in all, {memory[-1]:.0f} at the end; the slowest good request took "
        f"{outcome.slowest_good_seconds:.2f} s"
    )
    print(
        "memory after each tenth:", " ".join(f"{size:.0f}" for size in memory[:: len(memory) // 10])
    )
    for failure in outcome.failures[:20]:
        print(failure)
    if outcome.failures or max(memory) > 1.1 * warm:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
