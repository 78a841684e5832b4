"""Training in processes of its own: followed, taken up again after any death, never left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from configs.schema import FinetuneConfig, ModelConfig, TinyBlipConfig
from tasks.training import checkpoints
from tasks.training.digest import digest
from tasks.training.errors import SettingsMismatch, TrainingDiverged, TrainingFailed
from tasks.training.events import Done, Evaluated, Event, Progress, Told
from tasks.training.launch import TrainJob, key_of, train

ROOT = Path(__file__).resolve().parents[2]
TINY = TinyBlipConfig(patch_size=8, vision_width=16, text_width=16, heads=2, vocab_size=150)


class Interrupted(BaseException):
    """Stands for Ctrl-C and a cancelled flow."""


def job(dataset: Path, at: Path, base: str = "scratch", **settings: Any) -> TrainJob:
    finetune = {"max_steps": 2, "batch_size": 4, "log_every_steps": 1} | settings
    return TrainJob(
        model=ModelConfig(base=base, tiny=TINY),
        finetune=FinetuneConfig(**finetune),
        dataset=dataset,
        work=at / "work",
        out=at / "model",
        seed=5,
    )


def endless(dataset: Path, at: Path, **settings: Any) -> TrainJob:
    return job(dataset, at, max_steps=1_000_000, batch_size=2, val_images=1, **settings)


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def trainers() -> list[psutil.Process]:
    """Processes below this one that train, at whatever depth."""
    below = psutil.Process().children(recursive=True)
    return [each for each in below if "tasks.training.run" in each.cmdline()]


def assert_gone(processes: list[psutil.Process], seconds: float = 10) -> None:
    """Ended; where nobody reaps orphans (PID 1 of some containers) a zombie is as good."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_the_same_job_from_a_published_layout_gives_the_same_model_twice(
    dataset, salesforce_base, tmp_path
):
    lines: dict[str, list[Event]] = {"first": [], "second": []}

    def trained(name: str) -> Path:
        return train(job(dataset, tmp_path / name, str(salesforce_base)), lines[name].append)

    with ThreadPoolExecutor() as threads:
        folders = list(threads.map(trained, lines))
    assert digest(folders[0]) == digest(folders[1])
    seen, again = lines.values()
    assert [line.step for line in of(Progress, seen)] == [1, 2]
    assert of(Done, seen)[0].scores.keys() == {"val_loss", "val_cider"}
    assert of(Done, seen) == of(Done, again)
    weights = (folders[0] / "model.safetensors").read_bytes()
    assert weights != (salesforce_base / "model.safetensors").read_bytes()
    generation = json.loads((folders[0] / "generation_config.json").read_text())
    assert generation["max_new_tokens"] == 32


def test_a_job_that_cannot_succeed_raises_its_own_error_and_leaves_no_model(dataset, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"lower finetune\.learning_rate"):
        train(job(dataset, tmp_path, learning_rate=1e30, warmup_share=0.0), lambda _: None)
    assert not (tmp_path / "model").exists()


# --- any death, and on --------------------------------------------------------------------------


def test_after_kill_9_it_goes_on_from_the_checkpoint_to_the_same_end(dataset, tmp_path):
    settings = {"max_steps": 60, "checkpoint_every_steps": 5, "evaluate_every_steps": 30}
    whole = job(dataset, tmp_path / "whole", **settings)
    broken = job(dataset, tmp_path / "broken", **settings)
    expected: list[Event] = []
    train(whole, expected.append)
    before: list[Event] = []

    def kill(event: Event) -> None:
        before.append(event)
        if isinstance(event, Progress) and event.step == 33:
            for process in trainers():
                process.kill()

    with pytest.raises(TrainingFailed):
        train(broken, kill)
    left = checkpoints.steps(broken.work)[-1]
    after: list[Event] = []
    train(broken, after.append)
    assert 30 <= left < 60, "killed too early or too late to show anything"
    assert f"goes on from step {left}" in of(Told, after)[0].text

    def losses(events: list[Event]) -> dict[int, float]:
        return {line.step: line.loss for line in of(Progress, events)}

    assert losses(before) | losses(after) == losses(expected)
    assert of(Done, after) == of(Done, expected)
    assert digest(broken.out) == digest(whole.out)


def test_two_processes_train_and_validate_as_one_does(dataset, tmp_path):
    """Over gloo; three of the four images for the validation, so that they don't divide evenly."""
    settings = {"max_steps": 6, "batch_size": 4, "evaluate_every_steps": 3, "val_images": 3}
    one, two = job(dataset, tmp_path / "1", **settings), job(dataset, tmp_path / "2", **settings)
    two = two.model_copy(update={"finetune": two.finetune.model_copy(update={"num_processes": 2})})
    alone: list[Event] = []
    shared: list[Event] = []
    train(one, alone.append)
    train(two, shared.append)
    assert "2 process(es)" in of(Told, shared)[0].text
    for single, double in zip(of(Progress, alone), of(Progress, shared), strict=True):
        assert double.loss == pytest.approx(single.loss, rel=1e-4)
        assert double.gradient_norm == pytest.approx(single.gradient_norm, rel=1e-3)
    for single, double in zip(of(Evaluated, alone), of(Evaluated, shared), strict=True):
        assert double.scores == pytest.approx(single.scores, rel=1e-3, abs=1e-6)
        assert double.captions == single.captions
        assert len(double.captions) == 3


LIMITED = """
import resource, sys
from tasks.training.launch import TrainJob, train
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
def tell(event):
    print(event.model_dump_json(), flush=True)
train(TrainJob.model_validate_json(sys.argv[1]), tell)
"""


def test_where_memory_runs_out_half_the_micro_batch_goes_on(tmp_path):
    """A real limit on the processes' memory: 64 images of 240 pixels don't fit, fewer do."""
    dataset = _large_pictures(tmp_path / "data")
    wide = TinyBlipConfig(patch_size=8, vision_width=128, vision_layers=4, heads=4, vocab_size=150)
    one = job(dataset, tmp_path, batch_size=64, val_images=1, max_steps=1)
    one = one.model_copy(update={"model": ModelConfig(tiny=wide)})
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, one.model_dump_json(), str(3300 << 20)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-3000:]
    halved = [e["text"] for e in events if e.get("text", "").startswith("Out of memory: going on")]
    assert halved
    assert "micro-batch of 32, accumulated over 2 rounds" in halved[0]
    assert [event["step"] for event in events if event["kind"] == "progress"] == [1]
    micro = int((one.work / "micro_batch_size").read_text())
    assert f"{micro} images at once × {64 // micro} × 1" in done.stdout
    assert (one.out / "model.safetensors").exists()


def _large_pictures(folder: Path) -> Path:
    folder.mkdir()
    draw, splits = np.random.default_rng(0), {}
    for name, count in (("train", 64), ("val", 1), ("test", 1)):
        pixels = draw.integers(0, 256, (count, 240, 240, 3), dtype=np.uint8)
        np.save(folder / f"{name}-00000.npy", pixels)
        rows = [
            {"image_id": f"{name}-{i}", "references": ["a red circle"], "source": "scenes"}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        splits[name] = {"images": count, "captions": count}
    card = {"image_size": 240, "digest": "0", "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(card))
    return folder


# --- never left behind --------------------------------------------------------------------------


@pytest.mark.parametrize("num_processes", [1, 2])
def test_what_interrupts_the_caller_ends_all_processes_in_seconds(dataset, tmp_path, num_processes):
    seen: list[psutil.Process] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress):
            seen.extend(trainers())
            raise Interrupted

    start = time.monotonic()
    with pytest.raises(Interrupted):
        train(endless(dataset, tmp_path, num_processes=num_processes), interrupt)
    assert time.monotonic() - start < 120
    assert len(seen) >= num_processes
    assert_gone(seen)


def test_a_killed_parent_takes_the_training_with_it(dataset, tmp_path):
    code = (
        "import sys; from tasks.training.launch import TrainJob, train; "
        "train(TrainJob.model_validate_json(sys.argv[1]), lambda e: print(e.kind, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, endless(dataset, tmp_path).model_dump_json()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert any(line.strip() == "progress" for line in parent.stdout)
        training = trainers()
        assert training
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert_gone(training)


def test_champion_must_be_resolved_before_training(dataset, tmp_path):
    with pytest.raises(ValueError, match="resolved to the champion's folder"):
        job(dataset, tmp_path, base="champion")


def test_the_key_is_the_same_wherever_files_lie_and_another_for_another_training(dataset, tmp_path):
    def key(one: TrainJob, data: str = "d", base: str = "b") -> str:
        return key_of("shapes", one, data, base)

    here, there = job(dataset, tmp_path / "here"), job(tmp_path, tmp_path / "there", base="/else")
    assert key(here) == key(there)
    others = [job(dataset, tmp_path, learning_rate=1e-5), here.model_copy(update={"seed": 6})]
    keys = {key(here), *map(key, others), key(here, data="e"), key(here, base="c")}
    assert len(keys) == 5


def test_a_batch_that_does_not_divide_names_the_keys(dataset, tmp_path):
    with pytest.raises(SettingsMismatch, match=r"batch_size 4 .*micro_batch_size 3"):
        train(job(dataset, tmp_path, micro_batch_size=3), print)


def test_the_training_process_needs_none_of_the_orchestration():
    absent = ("prefect", "mlflow", "datasets", "dvc", "bentoml", "alibi_detect")
    block = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))"
    subprocess.run(
        [sys.executable, "-c", f"{block}; import tasks.training.run"], cwd=ROOT, check=True
    )
