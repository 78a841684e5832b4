"""Ingest: every source of the config, read into one raw dataset.

`python -m tasks.ingest CONFIG [key=value …] [--json]` goes on to validate and prepare, without
Prefect: 0 when the data is accepted, 3 when it is rejected, 2 for a wrong config.
"""

from pathlib import Path

from prefect import task

from configs.schema import Source
from configs.settings import settings
from tasks.artifacts import publish, table
from tasks.caching import BY_CONTENT
from tasks.data import pipeline, raw, versioning
from tasks.data.readers.contents import contents as contents
from tasks.refs import RawRef


@task(cache_policy=BY_CONTENT, persist_result=True)
def ingest(sources: list[Source], contents: list[Path | str]) -> RawRef:
    """Reads all sources into one content-addressed folder; `contents` keys what is elsewhere."""
    dataset = raw.ingest(sources, settings().var / "datasets" / "raw")
    rows_dvc_md5 = versioning.version_rows(dataset)
    rows: dict[str, object] = {
        "images": dataset.num_images,
        "captions": dataset.num_captions,
        "DVC md5 of the rows": rows_dvc_md5,
    }
    rows |= {f"source {n}": s.model_dump_json() for n, s in enumerate(sources, 1)}
    publish("ingest", table(rows), "What was read")
    return RawRef(**dataset.model_dump(), rows_dvc_md5=rows_dvc_md5)


if __name__ == "__main__":
    raise SystemExit(pipeline.main())
