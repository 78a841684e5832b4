"""Validate: what is wrong with the raw dataset goes to quarantine, too much of it rejects it."""

from prefect import task

from configs.schema import ChecksConfig, SplitsConfig
from configs.settings import settings
from tasks.artifacts import progress, publish
from tasks.caching import BY_CONTENT
from tasks.data.checks import run as checks
from tasks.data.report.markdown import markdown
from tasks.refs import RawRef, ValidatedRef
from tasks.spread import on_task_runner


@task(cache_policy=BY_CONTENT, persist_result=True)
def validate(
    raw: RawRef, config: ChecksConfig, splits: SplitsConfig, seed: int, name: str
) -> ValidatedRef:
    """Raises `DatasetRejected` with the rule, the count and examples."""
    report = checks.run(
        raw,
        config,
        splits,
        seed,
        settings().var / "datasets" / "validated",
        name=name,
        mapper=on_task_runner,
        progress=progress("validate-progress", f"Checking {raw.num_images:,} images"),
    )
    publish("validate", markdown(report.facts), "What was accepted and what was not")
    accepted = report.accepted()
    return ValidatedRef(
        **accepted.model_dump(), rows_dvc_md5=raw.rows_dvc_md5, report=str(report.page)
    )
