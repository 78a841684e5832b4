"""One training from end to end in this process: what it learns, keeps, and goes on with."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bentos.captioner.engine import Engine
from bentos.captioner.generation import Generation
from configs.schema import FinetuneConfig, ModelConfig, TinyBlipConfig
from tasks.training import checkpoints
from tasks.training import model as models
from tasks.training.errors import DiskFull, TrainingDiverged
from tasks.training.events import Done, Evaluated, Event, Progress, Saved, Told
from tasks.training.launch import TrainJob
from tasks.training.run import run

TINY = TinyBlipConfig(patch_size=8, vision_width=16, text_width=16, heads=2, vocab_size=150)


class Killed(BaseException):
    """Stands for whatever ends the process between two lines."""


@pytest.fixture
def job(dataset: Path, tmp_path: Path) -> Callable[..., TrainJob]:
    def make(name: str = "one", /, **settings: Any) -> TrainJob:
        finetune = {
            "max_steps": 8,
            "batch_size": 4,
            "log_every_steps": 1,
            "evaluate_every_steps": 4,
        }
        finetune |= {"checkpoint_every_steps": 4} | settings
        return TrainJob(
            model=ModelConfig(tiny=TINY),
            finetune=FinetuneConfig(**finetune),
            dataset=dataset,
            work=tmp_path / name / "work",
            out=tmp_path / name / "model",
            seed=5,
        )

    return make


def told(job: TrainJob, until: Callable[[Event], bool] = lambda _: False) -> list[Event]:
    """The events of a run, which is killed after the one that `until` is true of."""
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if until(event):
            raise Killed

    try:
        job.work.mkdir(parents=True, exist_ok=True)
        run(job, emit)
    except Killed:
        assert until(events[-1])
    return events


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def curve(events: list[Event]) -> dict[int, tuple[float, float]]:
    return {event.step: (event.loss, event.gradient_norm) for event in of(Progress, events)}


def weights(job: TrainJob) -> dict[str, torch.Tensor]:
    return load_file(job.out / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# --- it goes on where it was ----------------------------------------------------------------------


@pytest.mark.parametrize("died_at", [5, 6, 7])
def test_a_run_that_is_taken_up_again_is_the_run_that_never_stopped(job, died_at):
    settings = {"augment": True, "evaluate_every_steps": 3, "max_steps": 9}
    whole, broken = job("whole", **settings), job("broken", **settings)
    expected = told(whole)
    first = told(broken, until=lambda e: isinstance(e, Progress) and e.step == died_at)
    second = told(broken)
    resumed = of(Saved, first)[-1].step
    assert f"goes on from step {resumed}" in of(Told, second)[0].text
    assert min(curve(second)) == resumed + 1
    assert curve(first) | curve(second) == curve(expected)
    assert of(Evaluated, second)[-1] == of(Evaluated, expected)[-1]
    assert of(Done, second) == of(Done, expected)
    assert same(weights(broken), weights(whole))


def test_a_run_that_died_after_its_last_checkpoint_only_writes_the_model(job):
    whole, broken = job("whole"), job("broken")
    told(whole)
    told(broken, until=lambda e: isinstance(e, Saved) and e.step == 8)
    assert not broken.out.exists()
    assert curve(told(broken)) == {}
    assert same(weights(broken), weights(whole))


def test_a_run_that_patience_had_ended_is_not_trained_further(job):
    settings = {"max_steps": 60, "evaluate_every_steps": 2, "patience": 2, "learning_rate": 0.05}
    whole, broken = job("whole", **settings), job("broken", **settings)
    expected = told(whole)
    end = of(Progress, expected)[-1].step
    assert end < 60
    told(broken, until=lambda e: isinstance(e, Saved) and e.step == end)
    again = told(broken)
    assert curve(again) == {}
    assert of(Done, again) == of(Done, expected)
    assert same(weights(broken), weights(whole))


def test_half_a_checkpoint_is_never_gone_on_with(job, monkeypatch):
    broken = job()

    def die(made: Path, work: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish", die)
        with pytest.raises(Killed):
            run(broken, lambda _: None)
    assert checkpoints.steps(broken.work) == []
    assert min(curve(told(broken))) == 1


def test_only_the_newest_checkpoints_and_the_best_are_kept(job):
    one = job(max_steps=12, checkpoint_every_steps=2, evaluate_every_steps=2, keep_checkpoints=2)
    events = told(one)
    best_yet = None
    for event in of(Evaluated, events) + of(Saved, events):
        if isinstance(event, Evaluated) and event.best:
            best_yet = event.step
    kept = of(Saved, events)[-1].steps
    assert kept == tuple(sorted({10, 12, best_yet}))
    assert list(kept) == checkpoints.steps(one.work)


# --- it learns what it should ---------------------------------------------------------------------


@pytest.mark.parametrize("micro", [2, 1])
def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(job, micro):
    whole, cut = job("whole"), job("cut", micro_batch_size=micro)
    one, other = curve(told(whole)), curve(told(cut))
    assert one.keys() == other.keys()
    for step in one:
        assert other[step] == pytest.approx(one[step], rel=2e-3), step
    assert other[1] == pytest.approx(one[1], rel=1e-5)  # before rounding has grown


def test_gradient_checkpointing_changes_nothing_but_memory(job):
    plain, saving = job("plain"), job("saving", gradient_checkpointing=True)
    one, other = curve(told(plain)), curve(told(saving))
    assert all(other[step] == pytest.approx(one[step], rel=1e-4) for step in one)


def test_the_best_validation_is_the_candidate_and_patience_ends_the_run(job):
    # A rate at which it gets worse again.
    one = job(max_steps=60, evaluate_every_steps=2, patience=3, learning_rate=0.05)
    events = told(one)
    scored = {event.step: event.scores for event in of(Evaluated, events)}
    top = max(scores["val_cider"] for scores in scored.values())
    first_best = min(step for step, scores in scored.items() if scores["val_cider"] == top)
    [done] = of(Done, events)
    assert (done.step, done.scores) == (first_best, scored[first_best])
    assert max(scored) == first_best + 2 * 3
    assert max(scored) < 60
    saved = load_file(checkpoints.folder(one.work, first_best) / "model.safetensors")
    assert same(weights(one), saved)


def test_epochs_count_every_image_or_every_reference_once(job, dataset):
    lines = [json.loads(line) for line in (dataset / "train.jsonl").read_text().splitlines()]
    references = sum(len(line["references"]) for line in lines)
    for kind, count in (("random", len(lines)), ("all", references)):
        events = told(job(kind, epochs=2, batch_size=4, references=kind))
        assert of(Progress, events)[-1].step == round(2 * count / 4)


def test_mixed_precision_trains_and_writes_float32(job):
    one = job(precision="bfloat16")
    events = told(one)
    assert "in bfloat16" in of(Told, events)[0].text
    assert {tensor.dtype for tensor in weights(one).values()} == {torch.float32}


@pytest.mark.parametrize("method", ["full", "frozen_vision", "lora"])
def test_what_is_trained_is_what_was_asked_for_and_the_model_is_an_ordinary_one(
    job, dataset, method
):
    one = job(method=method, lora={"rank": 2})
    described = of(Told, told(one))[0].text
    [found] = re.findall(r"trains ([\d,]+) of ([\d,]+)", described)
    trained, total = (int(number.replace(",", "")) for number in found)
    rows = [json.loads(line) for line in (dataset / "train.jsonl").read_text().splitlines()]
    captions = [caption for row in rows for caption in row["references"]]
    start = models.build(one.model, captions, 24, one.seed).model.state_dict()
    made = weights(one)
    assert made.keys() <= start.keys()
    moved = {name for name in made if not torch.equal(made[name], start[name])}
    seeing = {name for name in moved if name.startswith("vision_model")}
    assert moved
    assert bool(seeing) == (method != "frozen_vision")
    assert (trained == total) == (method == "full")
    assert Engine.load(one.out).caption(np.zeros((1, 24, 24, 3), np.uint8), Generation(4))


def test_a_lora_run_goes_on_with_its_adapters(job):
    settings = {"method": "lora", "lora": {"rank": 2}}
    whole, broken = job("whole", **settings), job("broken", **settings)
    expected = told(whole)
    first = told(broken, until=lambda e: isinstance(e, Progress) and e.step == 6)
    assert curve(first) | curve(told(broken)) == curve(expected)
    assert same(weights(broken), weights(whole))


# --- what goes wrong is told with the fix ---------------------------------------------------------


def test_a_loss_that_is_no_number_ends_with_the_step_and_the_images(job):
    with pytest.raises(TrainingDiverged, match=r"at step \d+, .*images train-\d+.*learning_rate"):
        run(job(learning_rate=1e30, warmup_share=0.0, log_every_steps=100), lambda _: None)


def test_the_step_and_images_that_are_named_are_those_of_the_first_bad_loss(job, monkeypatch):
    from tasks.training import trainer

    real, calls = trainer.loss.summed, []

    def spoiled(logits: Any, labels: Any, smoothing: float = 0.0) -> torch.Tensor:
        calls.append(1)
        nats = real(logits, labels, smoothing)
        return nats * float("nan") if len(calls) == 2 * 2 + 2 else nats  # second half of step 3

    monkeypatch.setattr(trainer.loss, "summed", spoiled)
    one = job(micro_batch_size=2, log_every_steps=4)
    ids: list[str] = []
    original = trainer.CaptionTrainer.check_losses

    def spy(self: Any) -> None:
        ids.extend(self.run.image_ids(range(10, 12)))
        original(self)

    monkeypatch.setattr(trainer.CaptionTrainer, "check_losses", spy)
    with pytest.raises(TrainingDiverged, match=r"at step 3,") as caught:
        run(one, lambda _: None)
    assert f"images {', '.join(ids[:2])}:" in str(caught.value)
    assert checkpoints.steps(one.work) == []


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(job, monkeypatch):
    one = job(checkpoint_every_steps=2)
    first = told(one, until=lambda e: isinstance(e, Saved))
    assert of(Saved, first)[-1].step == 2
    full = Path("/dev/full")

    def write(tensors: Any, path: Any, **_: Any) -> None:
        with full.open("wb", buffering=0) as file:
            file.write(b"0" * 4096)

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", write)
        with pytest.raises(DiskFull, match="free some space"):
            told(one)
    assert checkpoints.steps(one.work) == [2]
    assert not one.out.exists()
    assert min(curve(told(one))) == 3
    assert one.out.exists()
