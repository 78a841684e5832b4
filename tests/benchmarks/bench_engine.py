"""Speed of the engine on a CPU: `python -m tests.benchmarks.bench_engine`.

`Engine.run` (normalization, captions, log-probabilities, embeddings) in turn with `model.generate`
as tutorials call it, on the same pixels, weights and threads, and with the engine on torch alone;
of each the best of the rounds counts, in time and in CPU seconds, which a busy machine bends less.
The tiny model is the demo's, with random weights made loud, and an end that it likes enough for
captions to end early, each in its own time; BLIP-base's never end.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from bentos.captioner.engine import Engine
from bentos.captioner.generation import Generation
from bentos.captioner.images import normalize
from configs.schema import ModelConfig
from tasks.training import model as models
from tasks.training.model import Parts
from tests.benchmarks.bench_train import base_parts

TINY_ROUNDS, BASE_ROUNDS = 40, 3
LOUDER = 4.0
HEADER = """
| {}: images, beams | `generate`, ms | engine on torch, ms | engine, ms | on torch, CPU | \
engine, CPU | the same | tokens |
| --- | --- | --- | --- | --- | --- | --- | --- |"""
TYPICAL_LENGTH = 12


def tiny_parts() -> Parts:
    colours, shapes = ("red", "green", "blue", "white"), ("circle", "square", "star", "triangle")
    captions = [
        f"a {size} {colour} {shape} {where} on a {ground} ground"
        for size, colour, shape in product(("large", "small"), colours, shapes)
        for where, ground in product(("left", "right", "above"), ("dark", "bright"))
    ]
    parts = models.build(ModelConfig(), captions, 72, seed=0)
    with torch.no_grad():
        for name, weight in parts.model.named_parameters():
            if weight.ndim == 2 and "word_embeddings" not in name:
                weight *= LOUDER
    end_early(parts)
    return parts


def end_early(parts: Parts) -> None:
    """Let the model like the end just enough for captions of about TYPICAL_LENGTH tokens."""
    bias = parts.model.text_decoder.cls.predictions.decoder.bias
    pixels = pictures(64, 72)
    while np.mean(lengths(engine_of(parts), pixels)) > TYPICAL_LENGTH:
        with torch.no_grad():
            bias[parts.family.token_ids(parts.model).end] += 0.05


def lengths(engine: Engine, pixels: np.ndarray) -> list[int]:
    return [caption.num_tokens for caption in engine.caption(pixels, Generation(30))]


def pictures(count: int, size: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    return coarse.repeat(size // 3, axis=1).repeat(size // 3, axis=2)


def engine_of(parts: Parts) -> Engine:
    """The engine on torch alone, as validation has it during training."""
    mean, std = parts.processor.image_mean, parts.processor.image_std
    model = parts.model.eval()
    return Engine(model, parts.tokenizer, family=parts.family, mean=mean, std=std, card={})


def generate(parts: Parts, pixels: np.ndarray, generation: Generation) -> list[str]:
    values = normalize(pixels, parts.processor.image_mean, parts.processor.image_std)
    with torch.inference_mode():
        tokens = parts.model.generate(
            pixel_values=values,
            max_new_tokens=generation.max_new_tokens,
            num_beams=generation.num_beams,
            do_sample=False,
        )
    return [text.strip() for text in parts.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def best(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """The least seconds and CPU seconds of each way, all by turns."""
    found = {name: (np.inf, np.inf) for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start, spent = time.perf_counter(), time.process_time()
            way()
            took = time.perf_counter() - start, time.process_time() - spent
            found[name] = min(found[name][0], took[0]), min(found[name][1], took[1])
    return found


def compare(parts: Parts, batches: tuple[int, ...], longest: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        models.save(parts, Path(scratch))
        engine = Engine.load(Path(scratch), device="cpu")
    on_torch = engine_of(parts)
    for batch, beams in product(batches, (1, 3)):
        pixels = pictures(batch, engine.image_size)
        generation = Generation(longest, num_beams=beams)
        ways: dict[str, Callable[[], object]] = {
            "model.generate": partial(generate, parts, pixels, generation),
            "engine on torch": partial(on_torch.run, pixels, generation),
            "engine": partial(engine.run, pixels, generation),
        }
        captions = engine.caption(pixels, generation)
        expected = generate(parts, pixels, generation)
        same = sum(one.text == text for one, text in zip(captions, expected, strict=True))
        tokens = np.mean([caption.num_tokens for caption in captions])
        found = best(ways, rounds)
        against = [np.divide(found["model.generate"], found[name]) for name in list(ways)[1:]]
        told = " | ".join(f"{ms:.1f}" for seconds in found.values() for ms in (seconds[0] * 1000,))
        ratios = " | ".join(f"{time:.2f}× ({cpu:.2f}×)" for time, cpu in against)
        print(
            f"| {batch}, {beams} | {told} | {ratios} | {same}/{batch} | {tokens:.1f} |",
            flush=True,
        )


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(HEADER.format("tiny BLIP, 72 px, at most 30 tokens"))
    compare(tiny_parts(), (1, 8, 32), 30, TINY_ROUNDS)
    print(HEADER.format("BLIP-base's size, 384 px, 20 tokens"))
    compare(base_parts(), (1, 4), 20, BASE_ROUNDS)


if __name__ == "__main__":
    main()
