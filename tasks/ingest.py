"""Ingest: every source of the config, read into one raw dataset."""

from prefect import get_run_logger, task

from configs.schema import Config, DataConfig, FeedbackSource, Source
from configs.settings import settings
from tasks.artifacts import publish, table
from tasks.caching import BY_CONTENT
from tasks.data import feedback, raw
from tasks.refs import DatasetRef


@task
def collect_feedback(config: DataConfig) -> FeedbackSource | None:
    """The corrected requests as a source, when the config wants them. Never cached: they grow."""
    if not config.use_feedback:
        return None
    source, count = feedback.export(settings().capture_folder, settings().var / "feedback")
    get_run_logger().info("%d corrected requests in %s", count, settings().capture_folder)
    return feedback.require(source, count, config.min_feedback)


@task(cache_policy=BY_CONTENT, persist_result=True)
def ingest(sources: list[Source]) -> DatasetRef:
    """Reads all sources into one content-addressed folder."""
    dataset = raw.ingest(sources, settings().var / "datasets" / "raw")
    rows = {"images": dataset.num_images, "captions": dataset.num_captions}
    rows |= {f"source {n}": s.model_dump_json() for n, s in enumerate(sources, 1)}
    publish("ingest", table(rows), "What was read")
    return dataset
