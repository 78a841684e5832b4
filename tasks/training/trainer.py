"""Hugging Face's Trainer with our loss, validation, atomic checkpoints, and news of itself."""

import errno
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from configs.schema import FinetuneConfig
from tasks.training import checkpoints, loss
from tasks.training.dataset import Collator, Draws
from tasks.training.errors import DiskFull, TrainingDiverged
from tasks.training.events import Evaluated, Event, Progress, Saved
from tasks.training.model import Parts
from tasks.training.validation import Validation, inputs

CIDER = "val_cider"
# Below this a failed write is blamed on the disk, whatever the library called it.
_LITTLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Run:
    """What a trainer is told about its run beside Hugging Face's arguments.

    `image_ids` names the images of the draws, in order.
    """

    parts: Parts
    settings: FinetuneConfig
    work: Path
    validate: Validation | None
    image_ids: Callable[[range], list[str]]
    emit: Callable[[Event], None]


class CaptionTrainer(Trainer):
    """One walk through the draws, whose order is the run's."""

    def __init__(
        self, run: Run, model: Any, args: TrainingArguments, draws: Draws, collator: Collator
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=draws, data_collator=collator)
        self.run = run
        # The loss is a sum over the tokens of all batches of a step, which are counted beforehand:
        # so a step is the same however it is cut into batches.
        self.model_accepts_loss_kwargs = True
        self._unchecked: list[torch.Tensor] = []
        self.remove_callback(PrinterCallback)
        self.add_callback(_Reporter(self))

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        assert isinstance(self.train_dataset, Draws)
        return SequentialSampler(self.train_dataset)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor:
        found = sum(loss.num_tokens(batch["labels"]) for batch in batch_samples)
        tokens = torch.as_tensor(found, device=device)
        return self.accelerator.gather(tokens).sum() if self.args.world_size > 1 else tokens

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs  # they go to the device as they are used: pixels as bytes

    def compute_loss(
        self,
        model: Any,
        batch: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        assert num_items_in_batch is not None
        parts = self.run.parts
        labels = batch["labels"].to(self.args.device, non_blocking=True)
        outputs = model(**inputs(batch, parts))
        logits = parts.family.text_logits(outputs, labels.shape[1])
        nats = loss.summed(logits, labels, self.run.settings.label_smoothing)
        # Gradients are averaged over the processes, the loss is a sum over them.
        mean = nats / num_items_in_batch * self.args.world_size
        self._unchecked.append(mean.detach())
        return (mean, outputs) if return_outputs else mean

    def check_losses(self) -> None:
        """Raises TrainingDiverged for the first step since last time with a loss that is no number.

        Looked at now and then, so that no step waits for the device.
        """
        if not self._unchecked:
            return
        finite = torch.stack(self._unchecked).isfinite().tolist()
        rounds, micro = self.args.gradient_accumulation_steps, self.args.train_batch_size
        first = self.state.global_step * rounds - len(finite)
        self._unchecked.clear()
        if all(finite):
            return
        batch = first + finite.index(False)
        start = (batch * self.args.world_size + self.args.process_index) * micro
        ids = ", ".join(self.run.image_ids(range(start, start + micro)))
        raise TrainingDiverged(
            f"the loss is not a finite number at step {batch // rounds + 1}, in the batch of the "
            f"images {ids}: lower finetune.learning_rate (now "
            f"{self.run.settings.learning_rate}), or look at these images and their captions."
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validates on all processes; a new best makes a checkpoint."""
        assert self.run.validate is not None
        with self.accelerator.autocast():
            scores, captions = self.run.validate(
                self.run.parts, self.model, self.args.process_index, self.args.world_size
            )
        before = best(self.state)
        is_best = before is None or scores[CIDER] > before[1]
        self.log(dict(scores))
        if is_best or self.state.global_step == self.state.max_steps:
            self.control.should_save = True
        if self._out_of_patience():
            self.control.should_training_stop = True
            self.control.should_save = True
        self._tell(
            Evaluated(step=self.state.global_step, scores=scores, captions=captions, best=is_best)
        )
        self.control.should_evaluate = False
        return scores

    def stopped_at(self, checkpoint: Path) -> bool:
        """Whether patience ended the run there; its state is this trainer's then."""
        before, self.state = (
            self.state,
            TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)),
        )
        stopped = self._out_of_patience()
        if not stopped:
            self.state = before
        return stopped

    def _out_of_patience(self) -> bool:
        patience, found = self.run.settings.patience, scores_by_step(self.state)
        found_best = best(self.state)
        if patience is None or found_best is None:
            return False
        return sum(step > found_best[0] for step in found) >= patience

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written aside by all processes, then there at once."""
        work, step = self.run.work, self.state.global_step
        if self.args.process_index == 0:
            shutil.rmtree(_partial(work), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with room_for_files(work):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.process_index == 0:
                checkpoints.publish(_partial(work) / f"checkpoint-{step}", work)
        if self.args.process_index == 0:
            found = best(self.state)
            keep = self.run.settings.keep_checkpoints
            checkpoints.prune(work, keep, found[0] if found else None)
            kept = tuple(checkpoints.steps(work))
            self._tell(Saved(step=step, folder=checkpoints.folder(work, step), steps=kept))
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(_partial(self.run.work))

    def _tell(self, event: Event) -> None:
        if self.args.process_index == 0:
            self.run.emit(event)


def best(state: TrainerState) -> tuple[int, float] | None:
    """Step and CIDEr of the best validation so far, the earliest of equals; None before any."""
    found = scores_by_step(state)
    if not found:
        return None
    step = max(found, key=lambda step: (found[step][CIDER], -step))
    return step, found[step][CIDER]


def scores_by_step(state: TrainerState) -> dict[int, dict[str, float]]:
    """The validations of a run; the state travels with each checkpoint."""
    return {
        int(entry["step"]): {name: entry[name] for name in ("val_loss", CIDER)}
        for entry in state.log_history
        if CIDER in entry
    }


@contextmanager
def room_for_files(folder: Path) -> Iterator[None]:
    """What a full disk makes libraries raise, as DiskFull."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and shutil.disk_usage(folder).free > _LITTLE_BYTES:
            raise
        raise DiskFull(
            f"the disk of {folder} is full: free some space and train again, it goes on from the "
            "last checkpoint; or lower finetune.keep_checkpoints."
        ) from error


def _partial(work: Path) -> Path:
    return work / ".partial"


class _Reporter(TrainerCallback):
    """Says when to log, validate and save, and tells where the run is."""

    def __init__(self, trainer: CaptionTrainer) -> None:
        self._trainer, self._settings = trainer, trainer.run.settings
        self._step, self._time = 0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._step, self._time = state.global_step, time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step, settings = state.global_step, self._settings
        last = step >= state.max_steps
        control.should_evaluate = self._trainer.run.validate is not None and (
            last or step % settings.evaluate_every_steps == 0
        )
        control.should_save = last or step % settings.checkpoint_every_steps == 0
        # Also where the run may be taken up again, so that the lines come at the same steps then.
        control.should_log = (
            step % settings.log_every_steps == 0 or control.should_evaluate or control.should_save
        )
        if control.should_log:
            self._trainer.check_losses()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        now, step = time.monotonic(), state.global_step
        steps_per_second = (step - self._step) / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        if args.process_index == 0:
            self._trainer.run.emit(
                Progress(
                    step=step,
                    max_steps=state.max_steps,
                    loss=logs["loss"],
                    learning_rate=logs["learning_rate"],
                    gradient_norm=logs.get("grad_norm", math.nan),
                    images_per_second=steps_per_second * self._settings.batch_size,
                    seconds_left=(state.max_steps - step) / steps_per_second,
                )
            )

    def on_save(self, *_: Any, **__: Any) -> None:
        self._time = time.monotonic()  # neither validation nor saving is training
