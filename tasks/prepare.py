"""Prepare: images at the model's size in memory-mapped arrays, split, versioned by DVC."""

from prefect import task

from configs.schema import DataConfig
from configs.settings import settings
from tasks.artifacts import publish, table
from tasks.caching import BY_CONTENT
from tasks.data import prepared, versioning
from tasks.refs import DatasetRef, PreparedRef


@task(cache_policy=BY_CONTENT, persist_result=True)
def prepare(validated: DatasetRef, config: DataConfig, seed: int) -> PreparedRef:
    """Writes the prepared dataset and pushes it to the DVC remote."""
    dataset = prepared.prepare(validated, config, seed, settings().var / "datasets" / "prepared")
    dvc_md5 = versioning.version(dataset.folder, dataset.digest)
    rows = {"digest": dataset.digest, "DVC md5": dvc_md5, **dataset.split_sizes}
    publish("prepare", table(rows), "The dataset that models are trained and judged on")
    return PreparedRef(
        uri=str(dataset.folder),
        digest=dataset.digest,
        num_images=dataset.num_images,
        num_captions=dataset.num_captions,
        dvc_md5=dvc_md5,
        split_sizes=dataset.split_sizes,
    )
