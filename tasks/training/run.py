"""The training process: `python -m tasks.training.run job.json`, an event a line on stdout.

Started by `launch.train` through `accelerate`, one or several at once; `--watch` names the process
that they end with.
"""

import argparse
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from transformers import GenerationConfig, TrainingArguments
from transformers.utils import logging as transformers_logging

from bentos.captioner.generation import Generation
from configs.schema import FinetuneConfig
from tasks.data.prepared import PreparedDataset, Split
from tasks.training import attention, checkpoints, methods
from tasks.training import model as models
from tasks.training.dataset import Collator, Draws, bucketed, draw, num_steps
from tasks.training.errors import OutOfMemory, SettingsMismatch, TrainingError
from tasks.training.events import Done, Event, Failed, Told
from tasks.training.launch import TrainJob
from tasks.training.model import Parts
from tasks.training.trainer import CaptionTrainer, Run, best, room_for_files, scores_by_step
from tasks.training.validation import Validation

_POLL_SECONDS = 0.5
_WORKERS_OF_A_GPU = 4
Emit = Callable[[Event], None]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.training.run")
    parser.add_argument("job", type=Path, help="a TrainJob as JSON")
    parser.add_argument("--watch", help="PID:CREATION_TIME of the process to end with")
    options = parser.parse_args(arguments)
    if options.watch:
        _end_with(options.watch)
    job = TrainJob.model_validate_json(options.job.read_text(encoding="utf-8"))
    emit = _json_lines()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _use_all_cores(job.finetune.num_processes)
    try:
        run(job, emit)
    except TrainingError as error:
        emit(Failed(error=type(error).__name__, message=str(error)))
        return 2
    return 0


def run(job: TrainJob, emit: Emit) -> None:
    """Train, from the last checkpoint if there is one, and write `job.out`; raises a TrainingError
    for what the user can put right."""
    trainer = trainer_of(job, emit)
    done = _fit(trainer, job, emit)
    if trainer.args.process_index == 0:
        with room_for_files(job.work):
            _write(trainer, job)
        emit(done)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def trainer_of(job: TrainJob, emit: Emit) -> CaptionTrainer:
    """A job's trainer, with nothing trained yet."""
    data = PreparedDataset.open(job.dataset)
    train, val = data.split("train"), data.split("val")
    if not len(train):
        raise SettingsMismatch(f"the train split of {job.dataset} is empty: give it images.")
    captions = [caption for references in train.references for caption in references]
    parts = models.build(job.model, captions, data.image_size, job.seed)
    return _trainer(job, parts, train, val, num_steps(train, job.finetune), emit)


def _trainer(
    job: TrainJob, parts: Parts, train: Split, val: Split, steps: int, emit: Emit
) -> CaptionTrainer:
    settings = job.finetune
    collator = Collator.of(train, parts, settings, seed=job.seed)
    draws = draw(
        train.sources,
        [len(references) for references in train.references],
        count=steps * settings.batch_size,
        feedback_share=settings.feedback_share,
        seed=job.seed,
        references=settings.references,
    )
    draws = bucketed(draws, collator.lengths(draws), settings.batch_size, job.seed)
    arguments = _arguments(job, steps)
    attention.use_sdpa(parts.model)
    if settings.gradient_checkpointing:
        parts.model.gradient_checkpointing_enable({"use_reentrant": False})
    model = methods.prepare(parts, settings)
    validate = None
    if images := min(settings.val_images, len(val)):
        validate = Validation(
            val,
            Collator.of(val, parts, settings),
            Generation(max_new_tokens=settings.max_caption_tokens, prompt=settings.prompt),
            images,
            arguments.per_device_train_batch_size,
        )
    told = Run(
        parts=parts,
        settings=settings,
        work=job.work,
        validate=validate,
        image_ids=lambda places: [train.image_ids[row] for row, _ in draws[places]],
        emit=emit,
    )
    return CaptionTrainer(told, model, arguments, Draws(draws), collator)


def _arguments(job: TrainJob, steps: int) -> TrainingArguments:
    settings, cuda = job.finetune, torch.cuda.is_available()
    micro = settings.micro_batch_size or settings.batch_size // settings.num_processes
    precision = _precision(settings)
    arguments = TrainingArguments(
        output_dir=str(job.work),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // (micro * settings.num_processes),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup_share * steps),
        optim="adamw_torch_fused",
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        seed=job.seed,
        use_cpu=not cuda,
        ddp_backend=None if cuda or settings.num_processes == 1 else "gloo",
        ddp_find_unused_parameters=False,
        logging_strategy="no",  # the trainer's own callback says when
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=_WORKERS_OF_A_GPU if cuda else 0,
        dataloader_persistent_workers=cuda,
        dataloader_pin_memory=cuda,
    )
    if arguments.world_size != settings.num_processes:
        raise SettingsMismatch(
            f"finetune.num_processes is {settings.num_processes}, but {arguments.world_size} were "
            "started: correct it, or num_processes in finetune.accelerate_config."
        )
    return arguments


def _precision(settings: FinetuneConfig) -> str:
    """What is computed in; weights and optimizer stay in float32."""
    if settings.precision != "auto":
        return settings.precision
    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _fit(trainer: CaptionTrainer, job: TrainJob, emit: Emit) -> Done:
    """Train to the end, and leave the best weights in the trainer's model."""
    main_process = trainer.args.process_index == 0
    found = checkpoints.steps(job.work)
    if main_process:
        emit(Told(text=_described(trainer, found)))
    last = checkpoints.folder(job.work, found[-1]) if found else None
    stopped = last is not None and trainer.stopped_at(last)
    try:
        if not stopped:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
            trainer.check_losses()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(str(error).splitlines()[0]) from error
    chosen = best(trainer.state)
    if chosen is None:
        return Done(step=trainer.state.global_step, scores={})
    step, _ = chosen
    if stopped or step != trainer.state.global_step:
        trainer._load_from_checkpoint(str(checkpoints.folder(job.work, step)))
    return Done(step=step, scores=scores_by_step(trainer.state)[step])


def _described(trainer: CaptionTrainer, found: list[int]) -> str:
    args, settings = trainer.args, trainer.run.settings
    trained, total = methods.count(trainer.model)
    what = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    told = (
        f"{settings.method}: trains {trained:,} of {total:,} parameters, "
        f"{args.world_size} process(es) on {what} in {_precision(settings)}, "
        f"{args.per_device_train_batch_size} images at once × "
        f"{args.gradient_accumulation_steps} × {args.world_size}"
    )
    return f"{told}; goes on from step {found[-1]}" if found else told


def _is_out_of_memory(error: Exception) -> bool:
    told = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        "can't allocate memory" in told or "not enough memory" in told
    )


def _write(trainer: CaptionTrainer, job: TrainJob) -> None:
    """The candidate's folder, in one step."""
    parts = trainer.run.parts._replace(model=methods.merge(trainer.model))
    ids = parts.family.token_ids(parts.model)
    # Generate from the start that training used, and no longer than its captions.
    parts.model.generation_config = GenerationConfig(
        bos_token_id=ids.start,
        eos_token_id=ids.end,
        pad_token_id=ids.padding,
        max_new_tokens=job.finetune.max_caption_tokens,
        num_beams=1,
    )
    with checkpoints.partial(job.work) as scratch:
        models.save(parts, scratch)
        shutil.rmtree(job.out, ignore_errors=True)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(scratch, job.out)


def _use_all_cores(num_processes: int) -> None:
    """Torch's threads, shared out where several processes run on one machine."""
    if "OMP_NUM_THREADS" not in os.environ or num_processes > 1:
        cores = psutil.cpu_count(logical=False) or 1
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, cores // here))


def _json_lines() -> Emit:
    """Writes to what was stdout; from here on whatever libraries print goes to stderr."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: Event) -> None:
        print(event.model_dump_json(), file=lines, flush=True)

    return emit


def _end_with(watched: str) -> None:
    """Kill this process as soon as the watched one, or its own parent, is gone."""
    pid, created = watched.split(":")
    parent = os.getppid()

    def is_there() -> bool:
        try:
            return bool(psutil.Process(int(pid)).create_time() == float(created))
        except psutil.NoSuchProcess:
            return False

    def watch() -> None:
        while is_there() and os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
