"""Speed of training on a CPU: `python -m tests.benchmarks.bench_train`.

Our whole path (prepared pixels, our collator, Hugging Face's Trainer, fused attention) in turn with
each alternative, on the same threads; the best of each one's rounds counts:

- a bare loop of forward, loss, backward, clipping and the same fused AdamW on batches that lie
  ready in memory, with the same model and attention: what the Trainer and the data cost;
- the Trainer as tutorials use it: pictures opened from the disk and `BlipProcessor` called for each
  item, captions padded to the tokenizer's limit of 512, or only to the longest of the batch.

Then the padding of our batches with and without buckets, and fused against eager attention.
"""

import csv
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from bentos.captioner.families.registry import family_of
from configs.loader import load
from configs.schema import Config, FinetuneConfig, ModelConfig
from configs.settings import ROOT
from tasks.data.prepared import PreparedDataset
from tasks.data.records import image_path, read_records
from tasks.refs import DatasetRef
from tasks.training import attention, loss
from tasks.training import model as models
from tasks.training.dataset import bucketed, draw
from tasks.training.launch import TrainJob
from tasks.training.model import Parts
from tasks.training.run import trainer_of
from tasks.training.trainer import CaptionTrainer
from tasks.training.validation import inputs

PHOTOS = ROOT.parent / "shared" / "data" / "flickr8k_1000"
TINY_STEPS, ROUNDS = 24, 4
WARM_UP = 4  # steps that don't count
BERT_LIMIT = 512


class Clock(TrainerCallback):
    """Seconds of each step after the warm-up, ended before anything else happens."""

    def __init__(self, steps: int) -> None:
        self._last = steps
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.times.append(now())
        control.should_training_stop = state.global_step >= self._last
        control.should_evaluate = control.should_save = control.should_log = False

    def seconds_a_step(self, warm_up: int) -> float:
        return float(np.median(np.diff(self.times[warm_up - 1 :])))


def scenario(image_size: int = 96) -> Config:
    files = [f"data.source.images={PHOTOS}/images", f"data.source.captions={PHOTOS}/captions.txt"]
    return load("configs/flickr8k.yaml", [*files, f"data.image_size={image_size}"])


def prepared(scratch: Path, config: Config) -> tuple[PreparedDataset, DatasetRef]:
    """The photos as training reads them, and the files they are from."""
    from tasks.data import pipeline  # needs more libraries than a GPU's machine has

    accepted = pipeline.read_and_check(config, scratch).accepted()
    made = pipeline.prepare(accepted, config, scratch / "prepared")
    return PreparedDataset.open(made.folder), accepted


def ours(config: Config, dataset: PreparedDataset, scratch: Path, steps: int) -> CaptionTrainer:
    job = TrainJob(
        model=config.model,
        finetune=config.finetune,
        dataset=dataset.folder,
        work=scratch,
        out=scratch / "model",
        seed=0,
    )
    return ours_of(job, steps)


def ours_of(job: TrainJob, steps: int) -> CaptionTrainer:
    """The trainer of a job that neither validates nor saves, for so many steps."""
    quiet = {"max_steps": 10_000, "log_every_steps": 10_000}
    quiet |= {"evaluate_every_steps": 10_000, "checkpoint_every_steps": 10_000}
    finetune = job.finetune.model_copy(update=quiet)
    trainer = trainer_of(job.model_copy(update={"finetune": finetune}), lambda _: None)
    trainer.add_callback(Clock(steps))
    return trainer


def clock_of(trainer: Trainer) -> Clock:
    [clock] = [c for c in trainer.callback_handler.callbacks if isinstance(c, Clock)]
    return clock


def time_ours(make: Callable[[], Trainer], warm_up: int = WARM_UP) -> float:
    trainer = make()
    trainer.train()
    return clock_of(trainer).seconds_a_step(warm_up)


def time_bare(make: Callable[[], CaptionTrainer], steps: int) -> float:
    """The same batches, float and on the device, without anything around the steps."""
    trainer = make()
    parts, settings = trainer.run.parts, trainer.run.settings
    parts.model.to(trainer.args.device).train()
    parameters = [p for p in parts.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, fused=True)
    times = []
    batches = [ready(batch, parts) for batch in first(trainer.get_train_dataloader(), steps)]
    for batch, labels in batches:
        with trainer.accelerator.autocast():
            outputs = parts.model(**batch)
        logits = parts.family.text_logits(outputs, labels.shape[1])
        nats = loss.summed(logits, labels, settings.label_smoothing) / loss.num_tokens(labels)
        nats.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        times.append(now())
    return float(np.median(np.diff(times[WARM_UP - 1 :])))


def first(batches: Any, count: int) -> Iterator[dict[str, torch.Tensor]]:
    yield from (batch for batch, _ in zip(batches, range(count), strict=False))


def ready(batch: dict[str, torch.Tensor], parts: Parts) -> tuple[dict[str, Any], torch.Tensor]:
    return inputs(batch, parts), batch["labels"].to(parts.model.device)


def now() -> float:
    """Seconds, when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_tutorial(
    parts: Parts,
    files: list[tuple[Path, str]],
    scratch: Path,
    *,
    batch: int,
    steps: int,
    longest: bool,
) -> float:
    """The stock model and Trainer; `files` are pictures with a caption each."""
    model = BlipForConditionalGeneration(BlipConfig.from_dict(parts.model.config.to_dict()))
    limit = parts.model.config.text_config.max_position_embeddings
    tokenizer: Any = parts.tokenizer
    tokenizer.model_max_length = min(BERT_LIMIT, limit)
    processor = BlipProcessor(parts.processor, tokenizer)
    padding = "longest" if longest else "max_length"

    def collate(items: list[tuple[Path, str]]) -> dict[str, torch.Tensor]:
        encoded = [
            processor(images=Image.open(path), text=text, padding=padding, return_tensors="pt")
            for path, text in items
        ]
        width = max(each["input_ids"].shape[1] for each in encoded)
        joined = {"pixel_values": torch.cat([each["pixel_values"] for each in encoded])}
        for name in ("input_ids", "attention_mask"):
            rows = [each[name][0] for each in encoded]
            joined[name] = torch.stack(
                [torch.nn.functional.pad(row, (0, width - len(row))) for row in rows]
            )
        return joined | {"labels": joined["input_ids"]}

    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=10_000,
        per_device_train_batch_size=batch,
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=files, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Clock(steps))
    trainer.train()
    return clock_of(trainer).seconds_a_step(min(WARM_UP, steps - 1))


def captioned_files(dataset: DatasetRef) -> list[tuple[Path, str]]:
    records = list(read_records(dataset))
    return [(image_path(dataset, record), record.references[0]) for record in records]


def best(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The least seconds of each way, which take turns."""
    found = [{name: work() for name, work in ways.items()} for _ in range(rounds)]
    return {name: min(each[name] for each in found) for name in ways}


def tell(title: str, seconds: dict[str, float], batch: int) -> None:
    mine = seconds["ours"]
    print(title)
    for name, took in seconds.items():
        ratio = "" if name == "ours" else f"  (ours is {took / mine:.2f}×)"
        print(f"  {name:34} {batch / took:8.1f} images/s{ratio}", flush=True)


def small(scratch: Path) -> None:
    config = scenario()
    dataset, accepted = prepared(scratch, config)
    batch, steps = config.finetune.batch_size, TINY_STEPS
    make = partial(ours, config, dataset, scratch, steps)
    parts, files = make().run.parts, captioned_files(accepted)
    tutorial = partial(time_tutorial, parts, files, scratch, batch=batch, steps=10)
    ways: dict[str, Callable[[], float]] = {
        "ours": partial(time_ours, make),
        "bare loop, tensors in memory": partial(time_bare, make, steps),
        "tutorial, padded to its limit": partial(tutorial, longest=False),
        "tutorial, padded to the longest": partial(tutorial, longest=True),
    }
    tell(f"tiny BLIP, photos at 96 px, batch {batch}", best(ways, ROUNDS), batch)


def base_parts(size: int = 384) -> Parts:
    """BLIP-base's size with random weights, and a vocabulary as large as BERT's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(30_519))]
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
    config = BlipConfig(
        text_config={"vocab_size": 30_524, "bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0},
        vision_config={"image_size": size},
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    processor = BlipImageProcessorPil(size={"height": size, "width": size})
    return Parts(model, tokenizer, processor, family_of("blip"))


def base(scratch: Path) -> None:
    config = scenario(384)
    dataset, accepted = prepared(scratch, config)
    folder = scratch / "base"
    folder.mkdir()
    parts = base_parts()
    models.save(parts, folder)
    config = config.model_copy(
        update={
            "model": ModelConfig(base=str(folder)),
            "finetune": FinetuneConfig(batch_size=2, learning_rate=1e-5),
        }
    )
    make = partial(ours, config, dataset, scratch, 3)
    files = captioned_files(accepted)
    tutorial = partial(time_tutorial, parts, files, scratch, batch=2, steps=3)
    ways: dict[str, Callable[[], float]] = {
        "ours": partial(time_ours, make, 1),
        "tutorial, padded to its limit": partial(tutorial, longest=False),
        "tutorial, padded to the longest": partial(tutorial, longest=True),
    }
    tell("BLIP-base's size, photos at 384 px, batch 2", best(ways, 1), 2)


def padding() -> None:
    """Tokens that are computed for each that is real, in batches of like lengths and as drawn."""
    print("padding: tokens computed / tokens real, in buckets (and as drawn)")
    for name in ("captions.txt", "captions_full.txt"):
        with (PHOTOS / name).open(encoding="utf-8") as rows:
            lengths = np.array([len(row["caption"].split()) + 2 for row in csv.DictReader(rows)])
        for batch in (32, 256):
            count = len(lengths) // batch * batch
            ones = [1] * len(lengths)
            draws = draw(["csv"] * len(ones), ones, count=count, feedback_share=0, seed=0)
            ordered = bucketed(draws, lengths[draws[:, 0]], batch, 0)
            shares = [waste(lengths[each[:, 0]], batch) for each in (ordered, draws)]
            print(f"  {name:18} batch {batch:3}  {shares[0]:.3f}  ({shares[1]:.3f})")


def waste(lengths: np.ndarray, batch: int) -> float:
    batches = lengths.reshape(-1, batch)
    return float(batches.max(axis=1).sum() * batch / batches.sum())


def fused_and_eager() -> None:
    """Forward and backward of one batch, by turns."""
    for name, size, batch, rounds in (("tiny", 96, 32, 12), ("base", 384, 2, 2)):
        kinds: dict[str, Callable[[], float]] = {}
        for kind in ("ours", "eager attention"):
            parts = base_parts() if name == "base" else tiny_parts(size)
            if kind == "ours":
                attention.use_sdpa(parts.model)
            kinds[kind] = partial(forward_and_backward, parts, size, batch)
        tell(f"attention, {name}, batch {batch}", best(kinds, rounds), batch)


def tiny_parts(size: int) -> Parts:
    config = load("configs/flickr8k.yaml")
    return models.build(config.model, ["a dog runs over the grass"] * 3, size, 0)


def forward_and_backward(parts: Parts, size: int, batch: int) -> float:
    ids = torch.randint(5, 80, (batch, 14))
    pixels = torch.rand(batch, 3, size, size)
    start = time.perf_counter()
    outputs = parts.model(
        pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
    )
    loss.summed(outputs.logits, ids).backward()
    return time.perf_counter() - start


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if not PHOTOS.is_dir():
        print(f"skipped: the real photos ({PHOTOS}) are not on this machine")
        return
    padding()
    for work in (small, base):
        with tempfile.TemporaryDirectory() as scratch:
            work(Path(scratch))
    fused_and_eager()


if __name__ == "__main__":
    main()
