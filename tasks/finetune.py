"""Finetune: the candidate, trained in a process of its own under an MLflow run."""

from pathlib import Path

from prefect import get_run_logger, task

from configs.schema import FinetuneConfig, GenerationConfig, ModelConfig
from configs.settings import settings
from tasks.artifacts import progress, publish, table
from tasks.caching import BY_CONTENT
from tasks.data import versioning
from tasks.refs import ModelRef, PreparedRef
from tasks.registry import runs, versions
from tasks.training import candidate
from tasks.training.launch import Progress, TrainJob


@task(cache_policy=BY_CONTENT, persist_result=True)
def finetune(
    name: str,
    data: PreparedRef,
    model: ModelConfig,
    config: FinetuneConfig,
    generation: GenerationConfig,
    base: ModelRef | Path | None,
    seed: int,
) -> ModelRef:
    """Trains from `base`, or from what the config names."""
    start_from = versions.fetch(base) if isinstance(base, ModelRef) else base
    source = model.model_copy(update={"base": str(start_from)}) if start_from else model
    models = settings().var / "models"
    job = TrainJob(
        model=source, finetune=config, dataset=versioning.fetch(data), out=models, seed=seed
    )
    move = progress("finetune-progress", f"Fine-tuning {name}, {config.max_steps} steps")
    run_name = f"{Path(model.base).name}, {config.max_steps} steps"
    with runs.training(name, {"model": model, "finetune": config}, data, seed, run_name) as run_id:

        def report(now: Progress) -> None:
            move(now.step / now.max_steps)
            runs.log_metrics(run_id, now.metrics, now.step)
            get_run_logger().info(now.line)

        trained = candidate.train(name, job, data.digest, generation, report)
        ref = versions.log_model(run_id, trained.folder, name=name, digest=trained.digest)
    rows = {"model digest": ref.digest, "MLflow run": runs.link(run_id), **trained.scores}
    publish("finetune", table(rows), "The candidate")
    return ref
