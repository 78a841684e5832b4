"""The training process: `python -m tasks.training.run job.json`, one JSON line per log on stdout.

Started by `launch.train`, which names itself with `--parent` so that this ends when it does.
"""

import argparse
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import SequentialSampler
from transformers import (
    BlipForConditionalGeneration,
    GenerationConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bentos.captioner.engine import Engine
from configs.schema import FinetuneConfig
from tasks.data.prepared import PreparedDataset, Split
from tasks.metrics.scores import score
from tasks.training import model as models
from tasks.training.dataset import Collator, Draws, draw
from tasks.training.errors import SettingsMismatch, TrainingDiverged, TrainingError
from tasks.training.launch import Progress, TrainJob

VAL_IMAGES = 200
_VAL_BATCH = 64
_PARENT_POLL_SECONDS = 0.5
Emit = Callable[[Progress], None]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.training.run")
    parser.add_argument("job", type=Path, help="a TrainJob as JSON")
    parser.add_argument("--parent", type=int, help="end with the process of this id")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        _end_with(options.parent)
    job = TrainJob.model_validate_json(options.job.read_text(encoding="utf-8"))
    emit = _json_lines()
    _use_one_device_and_all_cores()
    try:
        run(job, emit)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(job: TrainJob, emit: Emit) -> None:
    """Train and write `job.out`; raises a TrainingError for what the user can put right."""
    data = PreparedDataset.open(job.dataset)
    train, val = data.split("train"), data.split("val")
    if not train.image_ids:
        raise SettingsMismatch(f"the train split of {job.dataset} is empty: give it images.")
    captions = [caption for references in train.references for caption in references]
    parts = models.build(job.model, captions, data.image_size, job.seed)
    batches = [
        Collator.of(split, parts, max_tokens=job.finetune.max_caption_tokens)
        for split in (train, val)
    ]
    partial = job.out.with_name(f".{job.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model = parts.model
    last = _fit(model, train, batches[0], job, partial, emit)
    _set_generation(model, job.finetune)
    models.save(parts, partial)
    scores = _validate(model, partial, val, batches[1], job.finetune.max_caption_tokens)
    shutil.rmtree(job.out, ignore_errors=True)
    partial.rename(job.out)
    emit(last.model_copy(update={"scores": scores, "done": True, "seconds_left": 0.0}))


class _InOrder(Trainer):
    """The draws are random already; their order is the run's."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        assert isinstance(self.train_dataset, Draws)
        return SequentialSampler(self.train_dataset)


class _Reporter(TrainerCallback):
    """Turns the Trainer's logs into Progress; a loss that is no number ends the run."""

    last: Progress

    def __init__(self, settings: FinetuneConfig, emit: Emit) -> None:
        self._settings, self._emit = settings, emit
        self._step, self._time = 0, time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._time = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingDiverged(
                f"the loss is {logs['loss']} at step {state.global_step}: "
                f"lower finetune.learning_rate (now {self._settings.learning_rate})."
            )
        now, step = time.monotonic(), state.global_step
        steps_per_second = (step - self._step) / (now - self._time)
        self._step, self._time = step, now
        self.last = Progress(
            step=step,
            max_steps=state.max_steps,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            images_per_second=steps_per_second * self._settings.batch_size,
            seconds_left=(state.max_steps - step) / steps_per_second,
        )
        self._emit(self.last)


def _fit(
    model: BlipForConditionalGeneration,
    train: Split,
    collator: Collator,
    job: TrainJob,
    folder: Path,
    emit: Emit,
) -> Progress:
    """Train `model` in place; returns the last progress line."""
    settings = job.finetune
    draws = draw(
        train.sources,
        [len(references) for references in train.references],
        count=settings.max_steps * settings.batch_size,
        feedback_share=settings.feedback_share,
        seed=job.seed,
    )
    reporter = _Reporter(settings, emit)
    model.text_decoder.label_smoothing = settings.label_smoothing
    trainer = _InOrder(
        model=model,
        args=_arguments(settings, job.seed, folder),
        train_dataset=Draws(draws),
        data_collator=collator,
        callbacks=[reporter],
    )
    # The loss is each batch's own mean over its tokens, so they need no counting beforehand.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.text_decoder.label_smoothing = 0.0
    return reporter.last


def _arguments(settings: FinetuneConfig, seed: int, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_share * settings.max_steps),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=settings.log_every_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


def _set_generation(model: BlipForConditionalGeneration, settings: FinetuneConfig) -> None:
    """Generate from the start that training used, and no longer than its captions."""
    ids = models.token_ids(model)
    model.generation_config = GenerationConfig(
        bos_token_id=ids.start,
        eos_token_id=ids.end,
        pad_token_id=ids.padding,
        max_new_tokens=settings.max_caption_tokens,
        num_beams=1,
    )


def _validate(
    model: BlipForConditionalGeneration,
    folder: Path,
    val: Split,
    collator: Collator,
    max_new_tokens: int,
) -> dict[str, float]:
    """Loss per token over all references and CIDEr of at most VAL_IMAGES validation images."""
    references = val.references[:VAL_IMAGES]
    count = len(references)
    if count == 0:
        return {}
    engine = Engine.load(folder)
    predictions = [
        caption.text
        for start in range(0, count, _VAL_BATCH)
        for caption in engine.caption(
            val.pixels[start : min(start + _VAL_BATCH, count)], max_new_tokens=max_new_tokens
        )
    ]
    draws = [(row, i) for row in range(count) for i in range(len(references[row]))]
    return {
        "val_loss": _loss(model, collator, draws),
        "val_cider": score(predictions, references).corpus["cider"],
    }


def _loss(
    model: BlipForConditionalGeneration, collator: Collator, draws: list[tuple[int, int]]
) -> float:
    """Mean cross-entropy in nats over all predicted tokens of the draws."""
    total, tokens = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(draws), _VAL_BATCH):
            batch = collator(draws[start : start + _VAL_BATCH])
            predicted = int((batch["labels"][:, 1:] >= 0).sum())
            inputs = {key: value.to(model.device) for key, value in batch.items()}
            total += float(model(**inputs).loss) * predicted
            tokens += predicted
    return total / tokens


def _use_one_device_and_all_cores() -> None:
    # The Trainer splits every batch over all GPUs that it sees; one process trains on one.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(psutil.cpu_count(logical=False) or 1)


def _json_lines() -> Emit:
    """Writes to what was stdout; from here on whatever libraries print goes to stderr."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(progress: Progress) -> None:
        print(progress.model_dump_json(), file=lines, flush=True)

    return emit


def _end_with(parent: int) -> None:
    """Kill this process group as soon as `parent` is no longer the parent of this process."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
