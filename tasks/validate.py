"""Validate: what is wrong with the raw dataset goes to quarantine, too much of it rejects it."""

from prefect import task

from configs.schema import ChecksConfig
from configs.settings import settings
from tasks.artifacts import publish
from tasks.caching import BY_CONTENT
from tasks.data import checks
from tasks.refs import DatasetRef


@task(cache_policy=BY_CONTENT, persist_result=True)
def validate(raw: DatasetRef, config: ChecksConfig) -> DatasetRef:
    """Raises `DatasetRejected` with the rule, the count and examples."""
    report = checks.run(raw, config, settings().var / "datasets" / "validated")
    publish("validate", report.markdown(), "What was accepted and what was not")
    return report.accepted(config)
