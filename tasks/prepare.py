"""Prepare: images at the model's size in memory-mapped shards, versioned by DVC."""

from prefect import task

from configs.settings import settings
from tasks.artifacts import progress, publish, table
from tasks.caching import BY_CONTENT
from tasks.data import shards, versioning
from tasks.refs import PreparedRef, ValidatedRef
from tasks.spread import on_task_runner


@task(cache_policy=BY_CONTENT, persist_result=True)
def prepare(validated: ValidatedRef, image_size: int) -> PreparedRef:
    """Writes the prepared dataset and pushes it to the DVC remote; raises `EmptySplit`."""
    dataset = shards.prepare(
        validated,
        image_size,
        settings().var / "datasets" / "prepared",
        mapper=on_task_runner,
        progress=progress("prepare-progress", f"Preparing {validated.num_images:,} images"),
    ).trainable()
    dvc_md5 = versioning.version(dataset.folder, dataset.digest)
    rows = {"digest": dataset.digest, "DVC md5": dvc_md5, **dataset.split_sizes}
    publish("prepare", table(rows), "The dataset that models are trained and judged on")
    return PreparedRef(
        uri=str(dataset.folder),
        digest=dataset.digest,
        num_images=dataset.num_images,
        num_captions=dataset.num_captions,
        rows_dvc_md5=validated.rows_dvc_md5,
        report=validated.report,
        dvc_md5=dvc_md5,
        split_sizes=dataset.split_sizes,
    )
