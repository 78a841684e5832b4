"""Ingest: every source of the config, read into one raw dataset."""

from prefect import task

from configs.schema import DataConfig, FeedbackSource, Source
from configs.settings import settings
from tasks.artifacts import publish, table
from tasks.caching import BY_CONTENT
from tasks.data import feedback, raw
from tasks.data.feedback import NotEnoughFeedback as NotEnoughFeedback
from tasks.refs import DatasetRef


@task
def collect_feedback(config: DataConfig) -> FeedbackSource | None:
    """The corrected requests as a source, when the config wants them. Never cached: they grow."""
    if not config.use_feedback:
        return None
    return feedback.export(
        settings().capture_folder, settings().var / "feedback", minimum=config.min_feedback
    )


@task(cache_policy=BY_CONTENT, persist_result=True)
def ingest(sources: list[Source]) -> DatasetRef:
    """Reads all sources into one content-addressed folder."""
    dataset = raw.ingest(sources, settings().var / "datasets" / "raw")
    rows: dict[str, object] = {"images": dataset.num_images, "captions": dataset.num_captions}
    rows |= {f"source {n}": s.model_dump_json() for n, s in enumerate(sources, 1)}
    publish("ingest", table(rows), "What was read")
    return dataset
