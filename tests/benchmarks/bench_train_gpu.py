"""Speed of training on one GPU: `python -m tests.benchmarks.bench_train_gpu`.

BLIP-base's size with random weights, 384 px, bfloat16, on a prepared dataset of noise.
It needs torch, transformers, accelerate, peft, numpy, Pillow, psutil and pydantic; where there is
no GPU it says so and ends. Each line tells images/s, the share of the matrix product's peak that
was measured in the same run, and the most memory that was taken (the bare loop's holds all its
batches too). The ways take turns, and of each step the best of the rounds counts.

FLOPs of an image, forward, of which training takes three times as many: a vision layer of n
patches and width d takes 24 n d² + 4 n² d; a text layer of t tokens, with its cross-attention,
28 t d² + 4 t² d + 4 n d² + 4 t n d; the patches 2 n d 768, the words 2 t d (d + V).
"""

import gc
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from configs.schema import FinetuneConfig, ModelConfig
from tasks.training import attention
from tasks.training import model as models
from tasks.training.launch import TrainJob
from tasks.training.model import Parts
from tasks.training.trainer import CaptionTrainer
from tests.benchmarks.bench_train import WARM_UP, base_parts, best, ours_of, time_bare, time_ours

CAPTION = "7 21 300 4 555 6 77 8 910 10 11 12"  # words of base_parts' vocabulary
IMAGES, STEPS, ROUNDS, BATCH, SIZE = 512, 24, 2, 64, 384
MATRIX = 8192


def noise(folder: Path, size: int, images: int) -> Path:
    """A prepared dataset of random pictures."""
    folder.mkdir()
    random, splits = np.random.default_rng(0), {}
    for name, count in (("train", images), ("val", 1), ("test", 1)):
        pixels = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        np.save(folder / f"{name}-00000.npy", pixels)
        rows = [
            {"image_id": f"{name}-{i}", "references": [CAPTION], "source": "noise"}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        splits[name] = {"images": count, "captions": count}
    card = {"image_size": size, "digest": "0", "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(card))
    return folder


def flops_of_an_image(parts: Parts, tokens: int) -> float:
    """Forward and backward, by the formula above."""
    vision, text = parts.model.config.vision_config, parts.model.config.text_config
    n, d = (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size
    seen = vision.num_hidden_layers * (24 * n * d**2 + 4 * n**2 * d)
    seen += 2 * n * d * 3 * vision.patch_size**2
    t, w = tokens, text.hidden_size
    layer = 28 * t * w**2 + 4 * t**2 * w + 4 * n * d * w + 4 * t * n * w
    return 3 * float(seen + text.num_hidden_layers * layer + 2 * t * w * (w + text.vocab_size))


def matmul_peak(side: int = MATRIX) -> float:
    """FLOP/s of a square bfloat16 matrix product."""
    one = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        one @ one
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        one @ one
    torch.cuda.synchronize()
    return 10 * 2 * side**3 / (time.perf_counter() - start)


def job_of(scratch: Path, size: int, images: int, batch: int, parts: Parts) -> TrainJob:
    base = scratch / "base"
    base.mkdir()
    models.save(parts, base)
    finetune = FinetuneConfig(batch_size=batch, learning_rate=1e-5)
    return TrainJob(
        model=ModelConfig(base=str(base)),
        finetune=finetune,
        dataset=noise(scratch / "noise", size, images),
        work=scratch,
        out=scratch / "model",
        seed=0,
    )


def eager(job: TrainJob, steps: int) -> CaptionTrainer:
    """Our trainer with the attention that transformers has for BLIP."""
    with patch.object(attention, "use_sdpa"):
        return ours_of(job, steps)


def compiled(job: TrainJob, steps: int) -> CaptionTrainer:
    trainer = ours_of(job, steps)
    trainer.run.parts.model.vision_model.compile()
    return trainer


def ways_of(job: TrainJob, steps: int) -> dict[str, Callable[[], np.ndarray]]:
    checkpointed = job.finetune.model_copy(update={"gradient_checkpointing": True})
    saving = job.model_copy(update={"finetune": checkpointed})
    return {
        "ours": partial(time_ours, partial(ours_of, job, steps)),
        "bare loop, tensors in memory": partial(time_bare, partial(ours_of, job, steps), steps),
        "ours, eager attention": partial(time_ours, partial(eager, job, steps)),
        "ours, vision tower compiled": partial(time_ours, partial(compiled, job, steps)),
        "ours, gradient checkpointing": partial(time_ours, partial(ours_of, saving, steps)),
    }


def measured(
    work: Callable[[], np.ndarray], name: str, steps: int, memory: dict[str, float]
) -> np.ndarray:
    """Seconds of each step, endless where memory runs out; the most GiB taken are noted."""
    gc.collect()  # a trainer and its callbacks know each other: the last one is there until now
    if not torch.cuda.is_available():
        return work()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        return work()
    except torch.OutOfMemoryError:
        return np.full(steps - WARM_UP, np.inf)
    finally:
        memory[name] = torch.cuda.max_memory_allocated() / 2**30


def bench(job: TrainJob, parts: Parts, steps: int, rounds: int, peak: float) -> None:
    """A line for each way; `peak` in FLOP/s."""
    flops, memory = flops_of_an_image(parts, len(CAPTION.split()) + 2), dict[str, float]()
    ways: dict[str, Callable[[], np.ndarray]] = {
        name: partial(measured, work, name, steps, memory)
        for name, work in ways_of(job, steps).items()
    }
    seconds = best(ways, rounds)
    for name, took in seconds.items():
        speed = job.finetune.batch_size / took
        told = f"{speed:8.1f} images/s  {speed * flops / peak:6.1%} of the peak"
        ratio = f"ours is {took / seconds['ours']:.2f}×"
        print(f"  {name:30} {told}  {memory.get(name, 0):5.1f} GiB  ({ratio})", flush=True)


def main() -> None:
    if not torch.cuda.is_available():
        print("skipped: no CUDA GPU on this machine")
        return
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    peak = matmul_peak()
    print(f"{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s in a bfloat16 product")
    print(f"BLIP-base's size, {SIZE} px, batch {BATCH}, bfloat16")
    with tempfile.TemporaryDirectory() as name:
        parts = base_parts(SIZE)
        bench(job_of(Path(name), SIZE, IMAGES, BATCH, parts), parts, STEPS, ROUNDS, peak)


if __name__ == "__main__":
    main()
