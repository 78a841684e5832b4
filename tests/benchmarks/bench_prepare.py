"""Speed and memory of validation and preparation: `python -m tests.benchmarks.bench_prepare`.

On one core and on two, images/s of `shards.prepare` against `datasets.map` with BLIP's processor
(as its users call it, and without its rescaling and normalizing), on the same real photos, and of
`checks.run`. All decode from disk and leave pixels that can be memory-mapped; they take turns, and
the best of each one's rounds counts. Then the peak memory of ingest, validate and prepare over
10,000 and over 100,000 generated rows, each in a process of its own.
"""

import io
import multiprocessing
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.schema import ChecksConfig, SplitsConfig, TableSource, WebDatasetSource
from configs.settings import ROOT
from tasks.data import raw, shards
from tasks.data.checks import run as checks
from tasks.data.records import image_path, read_records
from tasks.refs import DatasetRef

PHOTOS = ROOT.parent / "shared" / "data" / "flickr8k_1000"
SIZE, SMALL_SIZE = 384, 32
ROUNDS = 3
ROWS = (10_000, 100_000)


def by_datasets_map(dataset: DatasetRef, scratch: Path, *, normalized: bool, cores: int) -> None:
    """The usual way: a datasets.Dataset of files, mapped through the processor, kept as Arrow."""
    from datasets import Array3D, Dataset, Features, disable_progress_bars
    from transformers import BlipImageProcessor

    disable_progress_bars()
    size = {"height": SIZE, "width": SIZE}
    processor = BlipImageProcessor(size=size, do_rescale=normalized, do_normalize=normalized)

    def process(batch: dict[str, list[str]]) -> dict[str, object]:
        images = [Image.open(path).convert("RGB") for path in batch["path"]]
        return {"pixels": processor(images, return_tensors="np")["pixel_values"]}

    paths = [str(image_path(dataset, record)) for record in read_records(dataset)]
    # Without features it is slower still.
    pixels = Array3D((3, SIZE, SIZE), "float32" if normalized else "uint8")
    Dataset.from_dict({"path": paths}).map(
        process,
        batched=True,
        batch_size=64,
        features=Features({"pixels": pixels}),
        num_proc=cores if cores > 1 else None,
        remove_columns=["path"],
        cache_file_name=str(scratch / "mapped.arrow"),
    )


def validate(dataset: DatasetRef, out: Path) -> checks.Report:
    return checks.run(dataset, ChecksConfig(), SplitsConfig(), 0, out, name="bench")


def timed(work: Callable[[Path], object]) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        work(Path(scratch))
        return time.perf_counter() - start


def speeds(cores: int) -> list[str]:
    """A line for each way, run on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    source = TableSource(format="csv", images=PHOTOS / "images", captions=PHOTOS / "captions.txt")
    with tempfile.TemporaryDirectory() as name:
        read = raw.ingest([source], Path(name))
        dataset = validate(read, Path(name)).accepted()
        mapped = partial(by_datasets_map, dataset, cores=cores)
        ways: dict[str, Callable[[Path], object]] = {
            "prepare": partial(shards.prepare, dataset, SIZE),
            "datasets.map": partial(mapped, normalized=True),
            "datasets.map, uint8": partial(mapped, normalized=False),
            "validate": partial(validate, read),
        }
        rounds = [{name: timed(work) for name, work in ways.items()} for _ in range(ROUNDS)]
    best = {name: min(seconds[name] for seconds in rounds) for name in ways}
    lines = [f"{dataset.num_images} photos to {SIZE} px, {cores} core(s), best of {ROUNDS}"]
    for name, seconds in best.items():
        ratio = f"  (prepare is {seconds / best['prepare']:.2f}×)" if "map" in name else ""
        images = read.num_images if name == "validate" else dataset.num_images
        lines.append(f"  {name:20} {images / seconds:8.0f} images/s{ratio}")
    return lines


def generate(folder: Path, count: int) -> None:
    """Tar shards of small pictures, no two alike, with captions from a fixed vocabulary."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    words = [f"word{number}" for number in range(2000)]
    for start in range(0, count, 5000):
        with tarfile.open(folder / f"{start:06d}.tar", "w") as shard:
            for number in range(start, min(start + 5000, count)):
                pixels = noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                data = io.BytesIO()
                Image.fromarray(pixels).resize((48, 48)).save(data, "JPEG")
                caption = " ".join(draw.choices(words, k=8)).encode()
                for name, content in (("jpg", data.getvalue()), ("txt", caption)):
                    member = tarfile.TarInfo(f"{number:06d}.{name}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))


def peaks(source: Path) -> dict[str, float]:
    """MiB in memory at most until the end of each stage."""
    found = {"start": peak_mib()}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        read = raw.ingest([WebDatasetSource(format="webdataset", shards=(source,))], out / "raw")
        found["ingest"] = peak_mib()
        dataset = validate(read, out / "validated").accepted()
        found["validate"] = peak_mib()
        shards.prepare(dataset, SMALL_SIZE, out / "prepared")
        found["prepare"] = peak_mib()
    return found


def peak_mib() -> float:
    """Not ru_maxrss, which starts from what the parent process had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(function, *arguments).result()


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    if PHOTOS.is_dir():
        for cores in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
            print("\n".join(in_fresh_process(speeds, cores)), flush=True)
    else:
        print(f"speed skipped: the real photos ({PHOTOS}) are not on this machine")
    found = []
    for count in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            in_fresh_process(generate, Path(folder), count)
            found.append(in_fresh_process(peaks, Path(folder)))
    few, many = ROWS
    print(f"peak memory until the end of each stage, {few:,} and {many:,} generated rows")
    for stage in found[0]:
        less, more = (peak[stage] for peak in found)
        print(f"  {stage:20} {less:5.0f} and {more:5.0f} MiB  ({more / less:.2f}×)")


if __name__ == "__main__":
    main()
