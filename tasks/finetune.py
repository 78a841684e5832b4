"""Finetune: the candidate, trained in processes of its own under an MLflow run."""

from pathlib import Path
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun

from configs.schema import FinetuneConfig, GenerationConfig, ModelConfig
from configs.settings import settings
from tasks.artifacts import progress, publish, table
from tasks.caching import BY_CONTENT
from tasks.data import versioning
from tasks.refs import ModelRef, PreparedRef
from tasks.registry import runs, training, versions
from tasks.training import candidate
from tasks.training.errors import TrainingFailed
from tasks.training.events import Evaluated, Event, Progress, Told
from tasks.training.launch import TrainJob, key_of


def worth_another_try(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether the training's processes died: it goes on from the last checkpoint then."""
    return isinstance(state.result(raise_on_failure=False), TrainingFailed)


@task(
    cache_policy=BY_CONTENT,
    persist_result=True,
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=worth_another_try,
)
def finetune(
    name: str,
    data: PreparedRef,
    model: ModelConfig,
    config: FinetuneConfig,
    generation: GenerationConfig,
    base: ModelRef | Path | None,
    seed: int,
) -> ModelRef:
    """Trains from `base`, or from what the config names; goes on where the same training ended."""
    job = job_of(name, data, model, config, base, seed)
    follow = Follower(name)
    sections = {"model": model, "finetune": config}
    run_name = f"{Path(model.base).name}, {config.method}"
    with training.training_run(name, sections, data, job, run_name) as run:

        def on_event(event: Event) -> None:
            follow(event)
            run.record(event)

        trained = candidate.train(name, job, data.digest, generation, on_event)
        ref = versions.log_model(run.run_id, trained.folder, name=name, digest=trained.digest)
    candidate.forget(job)
    rows = {"model digest": ref.digest, "MLflow run": runs.link(run.run_id), **trained.scores}
    publish("finetune", table(rows), "The candidate")
    return ref


def job_of(
    name: str,
    data: PreparedRef,
    model: ModelConfig,
    config: FinetuneConfig,
    base: ModelRef | Path | None,
    seed: int,
) -> TrainJob:
    """The training with its files on this machine."""
    var = settings().var
    folder = versions.fetch(base) if isinstance(base, ModelRef) else base
    job = TrainJob(
        model=model.model_copy(update={"base": str(folder)}) if folder else model,
        finetune=config,
        dataset=versioning.fetch(data),
        work=var / "training",
        out=var / "models",
        seed=seed,
    )
    start = base.digest if isinstance(base, ModelRef) else str(base or model.base)
    key = key_of(name, job, data.digest, start)
    return job.model_copy(update={"work": job.work / key})


class Follower:
    """What a training tells, in the flow run's log and as a progress artifact."""

    def __init__(self, name: str) -> None:
        self._log = get_run_logger()
        self._name = name
        self._move = progress("finetune-progress", f"Fine-tuning {name}")

    def __call__(self, event: Event) -> None:
        match event:
            case Progress():
                self._move(event.step / event.max_steps, f"Fine-tuning {self._name}: {event.line}")
                self._log.info(event.line)
            case Evaluated():
                self._log.info(event.line)
            case Told():
                self._log.info(event.text)
