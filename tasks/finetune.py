"""Finetune: the candidate, trained in a process of its own under an MLflow run."""

from prefect import get_run_logger, task

from configs.schema import EvaluateConfig, FinetuneConfig, ModelConfig
from configs.settings import settings
from tasks.artifacts import progress, publish, table
from tasks.caching import BY_CONTENT
from tasks.refs import ModelRef, PreparedRef
from tasks.registry import runs, versions
from tasks.training import candidate
from tasks.training.launch import Progress


@task(cache_policy=BY_CONTENT, persist_result=True)
def finetune(
    name: str,
    data: PreparedRef,
    model: ModelConfig,
    config: FinetuneConfig,
    generation: EvaluateConfig,
    base: ModelRef | None,
    seed: int,
) -> ModelRef:
    """Trains from `base`, or from what the config names; the model travels by MLflow."""
    start_from = str(versions.fetch(base)) if base else model.base
    job = candidate.job(data, model, config, generation, start_from, seed, settings().var / "models")
    move = progress("finetune-progress", f"Fine-tuning {name}, {config.max_steps} steps")
    with runs.training(name, {"model": model, "finetune": config}, data, seed=seed) as run:

        def report(now: Progress) -> None:
            move(now.step / now.max_steps)
            run.log(now)
            get_run_logger().info(now.line())

        trained = candidate.train(job, report)
        ref = versions.log_model(run.run_id, trained.folder, name=name, digest=trained.digest)
        run.log_metrics(trained.scores)
    rows = {"model digest": ref.digest, "MLflow run": runs.link(ref.run_id), **trained.scores}
    publish("finetune", table(rows), "The candidate")
    return ref
