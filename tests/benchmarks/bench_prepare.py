"""Images/s of `prepare` against `datasets.map` with BLIP's processor, on the same real photos.

    python tests/benchmarks/bench_prepare.py

All decode from disk and leave uint8 pixels that can be memory-mapped: `datasets.map` with typed
features (untyped ones are slower), in this process and with one process a core. They take turns,
and the best of each one's rounds counts.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs.schema import ChecksConfig, CsvSource, DataConfig
from configs.settings import ROOT
from tasks.data import checks
from tasks.data.prepared import prepare
from tasks.data.raw import image_path, ingest, read_records
from tasks.refs import DatasetRef

PHOTOS = ROOT.parent / "shared" / "data" / "flickr8k_1000"
SIZE = 384
ROUNDS = 3


def by_datasets_map(dataset: DatasetRef, scratch: Path, num_proc: int | None) -> None:
    """The usual way: a datasets.Dataset of files, mapped through the processor, kept as Arrow."""
    from datasets import Array3D, Dataset, Features, disable_progress_bars
    from PIL import Image
    from transformers import BlipImageProcessor

    disable_progress_bars()
    processor = BlipImageProcessor(
        size={"height": SIZE, "width": SIZE}, do_rescale=False, do_normalize=False
    )

    def process(batch: dict[str, list[str]]) -> dict[str, object]:
        images = [Image.open(path).convert("RGB") for path in batch["path"]]
        return {"pixels": processor(images, return_tensors="np")["pixel_values"]}

    paths = [str(image_path(dataset, record)) for record in read_records(dataset)]
    Dataset.from_dict({"path": paths}).map(
        process,
        batched=True,
        batch_size=64,
        features=Features({"pixels": Array3D((3, SIZE, SIZE), "uint8")}),
        num_proc=num_proc,
        remove_columns=["path"],
        cache_file_name=str(scratch / "mapped.arrow"),
    )


def timed(work: Callable[[Path], object]) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        work(Path(scratch))
        return time.perf_counter() - start


def main() -> None:
    if not PHOTOS.is_dir():
        print(f"skipped: the real photos ({PHOTOS}) are not on this machine")
        return
    source = CsvSource(format="csv", images=PHOTOS / "images", captions=PHOTOS / "captions.txt")
    config = DataConfig(source=source, image_size=SIZE)
    with tempfile.TemporaryDirectory() as name:
        raw = ingest([source], Path(name))
        dataset = checks.run(raw, ChecksConfig(), Path(name)).accepted(ChecksConfig())
        cores = os.cpu_count() or 1
        ways: dict[str, Callable[[Path], object]] = {
            "prepare": lambda out: prepare(dataset, config, 0, out),
            "datasets.map": lambda out: by_datasets_map(dataset, out, None),
            f"datasets.map num_proc={cores}": lambda out: by_datasets_map(dataset, out, cores),
        }
        rounds = [{name: timed(work) for name, work in ways.items()} for _ in range(ROUNDS)]
    best = {name: min(seconds[name] for seconds in rounds) for name in ways}
    images = dataset.num_images
    print(f"{images} photos to {SIZE} px, {cores} cores, best of {ROUNDS}")
    for name, seconds in best.items():
        ratio = f"  (prepare is {seconds / best['prepare']:.2f}×)" if name != "prepare" else ""
        print(f"{name:28} {images / seconds:8.0f} images/s{ratio}")


if __name__ == "__main__":
    main()
