import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from configs.schema import FinetuneConfig, ModelConfig, TinyBlipConfig
from tasks.training.digest import digest
from tasks.training.errors import TrainingFailed
from tasks.training.launch import TrainJob, train

ROOT = Path(__file__).resolve().parents[2]
TINY = TinyBlipConfig(patch_size=8, vision_width=16, text_width=16, heads=2, vocab_size=150)
ENDLESS = FinetuneConfig(max_steps=1_000_000, batch_size=2, log_every_steps=1)


class Interrupted(BaseException):
    """Stands for Ctrl-C and a cancelled flow."""


def job(dataset: Path, out: Path, base: str = "scratch", **settings) -> TrainJob:
    finetune = FinetuneConfig(**{"max_steps": 2, "batch_size": 4, "log_every_steps": 1} | settings)
    model = ModelConfig(base=base, tiny=TINY)
    return TrainJob(model=model, finetune=finetune, dataset=dataset, out=out, seed=5)


def assert_gone(process: psutil.Process) -> None:
    """Ended; where nobody reaps orphans (PID 1 of some containers) a zombie is as good."""
    try:
        process.wait(timeout=20)
    except psutil.TimeoutExpired:
        assert process.status() == psutil.STATUS_ZOMBIE


def test_the_same_job_from_a_published_layout_gives_the_same_model_twice(
    dataset, salesforce_base, tmp_path
):
    lines = {"first": [], "second": []}

    def trained(name):
        return train(job(dataset, tmp_path / name, str(salesforce_base)), lines[name].append)

    with ThreadPoolExecutor() as threads:
        folders = list(threads.map(trained, lines))
    assert digest(folders[0]) == digest(folders[1])
    seen, again = lines.values()
    assert [(line.step, line.done) for line in seen] == [(1, False), (2, False), (2, True)]
    assert seen[-1].scores.keys() == {"val_loss", "val_cider"}
    assert seen[-1].scores == again[-1].scores
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}
    weights = (folders[0] / "model.safetensors").read_bytes()
    assert weights != (salesforce_base / "model.safetensors").read_bytes()
    generation = json.loads((folders[0] / "generation_config.json").read_text())
    assert generation["max_new_tokens"] == 32


def test_a_failing_job_raises_with_the_reason_and_leaves_no_folder(dataset, tmp_path):
    with pytest.raises(TrainingFailed, match=r"exit code 2[\s\S]*lower finetune\.learning_rate"):
        train(job(dataset, tmp_path / "out", learning_rate=1e30, warmup_share=0.0), print)
    assert not (tmp_path / "out").exists()


def test_what_interrupts_the_caller_ends_the_training(dataset, tmp_path):
    children = []

    def interrupt(_):
        mine = psutil.Process().children()
        children.extend(child for child in mine if "tasks.training.run" in child.cmdline())
        raise Interrupted

    endless = job(dataset, tmp_path / "out").model_copy(update={"finetune": ENDLESS})
    with pytest.raises(Interrupted):
        train(endless, interrupt)
    assert children
    for child in children:
        assert_gone(child)


def test_a_killed_parent_takes_the_training_with_it(dataset, tmp_path):
    endless = job(dataset, tmp_path / "out").model_copy(update={"finetune": ENDLESS})
    code = (
        "import sys; from tasks.training.launch import TrainJob, train; "
        "train(TrainJob.model_validate_json(sys.argv[1]), lambda p: print(p.step, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, endless.model_dump_json()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == "1"
        (training,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert_gone(training)


def test_champion_must_be_resolved_before_training(dataset, tmp_path):
    with pytest.raises(ValueError, match="resolved to the champion's folder"):
        job(dataset, tmp_path, base="champion")


def test_the_training_process_needs_none_of_the_orchestration():
    absent = ("prefect", "mlflow", "datasets", "dvc", "bentoml", "alibi_detect")
    block = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))"
    subprocess.run(
        [sys.executable, "-c", f"{block}; import tasks.training.run"], cwd=ROOT, check=True
    )
