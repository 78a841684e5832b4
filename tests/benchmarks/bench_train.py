"""Speed of training on a CPU: `python -m tests.benchmarks.bench_train`.

Our whole path (prepared pixels, our collator, Hugging Face's Trainer, fused attention) in turn with
each alternative, on the same threads; of each step the best of the rounds counts:

- a bare loop of forward, loss, backward, clipping and the same fused AdamW on the same batches,
  which lie ready in memory, with the same model and attention: what the Trainer and the data cost;
- the Trainer as tutorials use it: pictures opened from disk and `BlipProcessor` called for each
  item, captions padded to the tokenizer's limit (BERT's 512; a tiny model has fewer positions), or,
  which is stricter, only to the longest of the batch.

Then the padding of our batches with and without buckets, and fused against eager attention.
"""

import csv
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
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

from bentos.captioner.families.family import TokenIds
from bentos.captioner.families.registry import family_of
from configs.schema import Config, FinetuneConfig, ModelConfig, TinyBlipConfig
from tasks.data.prepared import PreparedDataset
from tasks.training import attention, loss
from tasks.training import model as models
from tasks.training import tokenizer as wordpiece
from tasks.training.dataset import bucketed, draw, encode
from tasks.training.launch import TrainJob
from tasks.training.model import Parts
from tasks.training.run import trainer_of
from tasks.training.trainer import CaptionTrainer
from tasks.training.validation import inputs

# What a GPU's machine lacks (settings, the data room's libraries) is imported where it is used.
if TYPE_CHECKING:
    from tasks.refs import DatasetRef

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "flickr8k_1000"
TINY_STEPS, TINY_ROUNDS, BASE_STEPS, BASE_ROUNDS = 24, 4, 3, 2
BARE_ROUNDS = 16  # the two are so near that with 6 a busy machine says anything from 0.90 to 1.09
WARM_UP = 4  # steps that don't count
BERT_LIMIT = 512
TINY = TinyBlipConfig(
    patch_size=16, vision_width=192, text_width=128, vision_layers=2, text_layers=2, vocab_size=2000
)


class Times:
    """When each step had ended; on a GPU by its own clock, so that no step waits for another."""

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def mark(self) -> None:
        if not torch.cuda.is_available():
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self, warm_up: int) -> np.ndarray:
        """Of each step after the first `warm_up`."""
        marks = self._marks[warm_up - 1 :]
        if not torch.cuda.is_available():
            return np.diff(marks)
        torch.cuda.synchronize()
        return np.array([start.elapsed_time(end) / 1000 for start, end in pairwise(marks)])


class Clock(TrainerCallback):
    """Times the steps of a training, and ends it before anything else happens."""

    def __init__(self, steps: int) -> None:
        self._last = steps
        self.times = Times()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.times.mark()
        control.should_training_stop = state.global_step >= self._last
        control.should_evaluate = control.should_save = control.should_log = False


def scenario(image_size: int = 96) -> Config:
    from configs.loader import load

    files = [f"data.source.images={PHOTOS}/images", f"data.source.captions={PHOTOS}/captions.txt"]
    return load("configs/flickr8k.yaml", [*files, f"data.image_size={image_size}"])


def prepared(scratch: Path, config: Config) -> "tuple[PreparedDataset, DatasetRef]":
    """The photos as training reads them, and the files they are from."""
    from tasks.data import pipeline

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


def time_ours(make: Callable[[], Trainer], warm_up: int = WARM_UP) -> np.ndarray:
    trainer = make()
    trainer.train()
    return clock_of(trainer).times.seconds(warm_up)


def time_bare(make: Callable[[], CaptionTrainer], steps: int) -> np.ndarray:
    """The same batches, float and on the device, without anything around the steps."""
    trainer = make()
    parts, settings = trainer.run.parts, trainer.run.settings
    parts.model.to(trainer.args.device).train()
    parameters = [p for p in parts.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        settings.learning_rate,
        betas=(0.9, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    times = Times()
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
        times.mark()
    return times.seconds(WARM_UP)


def first(batches: Any, count: int) -> Iterator[dict[str, torch.Tensor]]:
    yield from (batch for batch, _ in zip(batches, range(count), strict=False))


def ready(batch: dict[str, torch.Tensor], parts: Parts) -> tuple[dict[str, Any], torch.Tensor]:
    return inputs(batch, parts), batch["labels"].to(parts.model.device)


class TutorialCollator:
    """Opens and processes each picture and caption by itself; labels are the ids, padding too."""

    def __init__(self, processor: Any, longest: bool) -> None:
        self._processor, self._padding = processor, "longest" if longest else "max_length"

    def __call__(self, items: list[tuple[Path, str]]) -> dict[str, torch.Tensor]:
        encoded = [
            self._processor(
                images=Image.open(path), text=text, padding=self._padding, return_tensors="pt"
            )
            for path, text in items
        ]
        joined = {"pixel_values": torch.cat([each["pixel_values"] for each in encoded])}
        for name in ("input_ids", "attention_mask"):
            rows = [each[name][0] for each in encoded]
            joined[name] = pad_sequence(rows, batch_first=True)  # BERT's padding is 0
        return joined | {"labels": joined["input_ids"]}


def time_tutorial(
    parts: Parts,
    files: list[tuple[Path, str]],
    scratch: Path,
    *,
    batch: int,
    steps: int,
    warm_up: int,
    longest: bool,
) -> np.ndarray:
    """The stock model and Trainer; `files` are pictures with a caption each."""
    model = BlipForConditionalGeneration(BlipConfig.from_dict(parts.model.config.to_dict()))
    limit = parts.model.config.text_config.max_position_embeddings
    tokenizer: Any = parts.tokenizer
    tokenizer.model_max_length = min(BERT_LIMIT, limit)
    collate = TutorialCollator(BlipProcessor(parts.processor, tokenizer), longest)
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
    return clock_of(trainer).times.seconds(warm_up)


def captioned_files(dataset: "DatasetRef") -> list[tuple[Path, str]]:
    from tasks.data.records import image_path, read_records

    records = list(read_records(dataset))
    return [(image_path(dataset, record), record.references[0]) for record in records]


def best(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds a step of each way; they take turns, and of each step the least disturbed counts."""
    found = [{name: work() for name, work in ways.items()} for _ in range(rounds)]
    return {name: float(np.min([each[name] for each in found], axis=0).mean()) for name in ways}


def tell(title: str, seconds: dict[str, float], batch: int) -> None:
    """A line for each way; the first is ours."""
    first_of_all = next(iter(seconds))
    print(title)
    for name, took in seconds.items():
        compared = f"  ({first_of_all} is {took / seconds[first_of_all]:.2f}×)"
        ratio = "" if name == first_of_all else compared
        print(f"  {name:38} {batch / took:8.2f} images/s{ratio}", flush=True)


def small(scratch: Path) -> None:
    config = scenario()
    dataset, accepted = prepared(scratch, config)
    batch, steps = config.finetune.batch_size, TINY_STEPS
    make = partial(ours, config, dataset, scratch, steps)
    parts, files = make().run.parts, captioned_files(accepted)
    tutorial = partial(time_tutorial, parts, files, scratch, batch=batch, steps=10, warm_up=WARM_UP)
    limit = parts.model.config.text_config.max_position_embeddings
    mine = partial(time_ours, make)
    bare = {"ours": mine, "bare loop, tensors in memory": partial(time_bare, make, steps)}
    tell(f"tiny BLIP, photos at 96 px, batch {batch}", best(bare, BARE_ROUNDS), batch)
    tutorials = {
        "ours": mine,
        f"tutorial, padded to the limit of {limit}": partial(tutorial, longest=False),
        "tutorial, padded to the longest": partial(tutorial, longest=True),
    }
    tell("the same against the tutorials' way", best(tutorials, TINY_ROUNDS), batch)


def base_parts(size: int = 384, layers: int = 12) -> Parts:
    """BLIP-base's size with random weights, and a vocabulary as large as BERT's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(30_519))]
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
    text = {"vocab_size": 30_524, "bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
    # The default range of 1e-10 leaves gradients so small that a CPU may compute them slowly.
    vision = {"image_size": size, "initializer_range": 0.02}
    depth = {"num_hidden_layers": layers}
    config = BlipConfig(text_config=text | depth, vision_config=vision | depth)
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
    make = partial(ours, config, dataset, scratch, BASE_STEPS)
    files = captioned_files(accepted)
    tutorial = partial(time_tutorial, parts, files, scratch, batch=2, steps=BASE_STEPS, warm_up=1)
    ways: dict[str, Callable[[], Any]] = {
        "ours": partial(time_ours, make, 1),
        f"tutorial, padded to the limit of {BERT_LIMIT}": partial(tutorial, longest=False),
        "tutorial, padded to the longest": partial(tutorial, longest=True),
    }
    tell("BLIP-base's size, photos at 384 px, batch 2", best(ways, BASE_ROUNDS), 2)


def padding() -> None:
    """Tokens that are computed for each that is real, in batches of like lengths and as drawn."""
    print("padding: tokens computed / tokens real, in buckets (and as drawn)")
    for name in ("captions.txt", "captions_full.txt"):
        counts, lengths = token_lengths(PHOTOS / name)
        starts = np.cumsum([0, *counts[:-1]])
        for batch in (32, 256):
            draws = draw(
                ["csv"] * len(counts),
                counts,
                count=len(lengths) // batch * batch,
                feedback_share=0,
                seed=0,
            )
            drawn = lengths[starts[draws[:, 0]] + draws[:, 1]]
            ordered = bucketed(draws, drawn, batch, 0)
            buckets = lengths[starts[ordered[:, 0]] + ordered[:, 1]]
            told = f"{waste(buckets, batch):.3f}  ({waste(drawn, batch):.3f})"
            print(f"  {len(lengths):6,} captions, batch {batch:3}  {told}")


def token_lengths(captions: Path) -> tuple[list[int], np.ndarray]:
    """Captions of each image, and tokens of each caption as training encodes them."""
    images: dict[str, list[str]] = {}
    with captions.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            images.setdefault(row["image"], []).append(row["caption"])
    flat = [caption for references in images.values() for caption in references]
    tokenizer = wordpiece.learn(flat, TINY.vocab_size)
    limit = FinetuneConfig().max_caption_tokens
    encoded = encode(tokenizer, TokenIds(start=2, end=3, padding=0), flat, max_tokens=limit)
    return [len(references) for references in images.values()], np.array(list(map(len, encoded)))


def waste(lengths: np.ndarray, batch: int) -> float:
    batches = lengths.reshape(-1, batch)
    return float(batches.max(axis=1).sum() * batch / batches.sum())


def fused_and_eager() -> None:
    """Forward and backward of one batch, by turns."""
    for name, size, batch, rounds in (("tiny", 96, 32, 12), ("base", 384, 2, 3)):
        kinds: dict[str, Callable[[], Any]] = {}
        for kind in ("fused", "eager"):
            parts = base_parts() if name == "base" else tiny_parts(size)
            if kind == "fused":
                attention.use_sdpa(parts.model)
            kinds[kind] = partial(forward_and_backward, parts, size, batch)
        tell(f"attention, {name}, batch {batch}", best(kinds, rounds), batch)


def tiny_parts(size: int) -> Parts:
    return models.build(ModelConfig(tiny=TINY), ["a dog runs over the grass"] * 3, size, 0)


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
