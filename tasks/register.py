"""Register: the candidate becomes the challenger, with all that explains it."""

from prefect import task

from configs.schema import Config
from tasks.artifacts import publish, table
from tasks.refs import EvaluationRef, ModelRef, PreparedRef, VersionRef
from tasks.registry import lineage, runs, versions


@task
def register(
    config: Config,
    model: ModelRef,
    data: PreparedRef,
    scores: EvaluationRef,
    champion: VersionRef | None,
    reason: str,
) -> VersionRef:
    """Writes lineage on the MLflow run and registers a version under the alias `challenger`."""
    lineage.record(config, model, data, scores)
    tags = lineage.tags(config, model, data, scores, champion, reason)
    version = versions.register(config.name, model, tags)
    lineage.describe(version.name, version.version)
    rows = {
        "version": version,
        "why": reason,
        "model digest": model.digest,
        "MLflow run": runs.link(model.run_id),
        "dataset": data.digest,
        "DVC md5": data.dvc_md5,
        **{f"CIDEr on {name}": value for name, value in scores.cider.items()},
    }
    publish("register", table(rows), "The challenger")
    return version
