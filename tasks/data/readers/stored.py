"""Rows that the project made itself: drawn scenes, corrected requests, the frozen golden set."""

import io
from collections.abc import Iterator

from configs.schema import FeedbackSource, GoldenSource, ScenesSource
from tasks.data import folders
from tasks.data.rows import Row, SourceError
from tasks.data.scenes import scene


def read_scenes(source: ScenesSource) -> Iterator[Row]:
    """`count` scenes of a world, as PNG."""
    for index in range(source.count):
        drawn = scene(source.seed, index, source.world)
        png = io.BytesIO()
        drawn.image.save(png, "PNG", compress_level=1)
        image_id = f"{source.world}-{source.seed}-{index:06d}"
        yield Row(image_id, png.getvalue(), drawn.references, None, source.format)


def read_feedback(source: FeedbackSource) -> Iterator[Row]:
    """A folder that `feedback.export` wrote."""
    metadata = source.folder / "metadata.jsonl"
    if not metadata.is_file():
        raise SourceError(f"{metadata}: no such file; data.source.folder is no feedback export.")
    folder = source.folder.resolve()
    for record in folders.read_jsonl(metadata):
        references = tuple(record["references"])
        yield Row(record["image_id"], folder / record["file_name"], references, None, source.format)


def read_golden(source: GoldenSource) -> Iterator[Row]:
    """A folder that `golden.freeze` wrote; SourceError if it isn't what was frozen any more."""
    rows = source.folder / "rows.jsonl"
    if not rows.is_file():
        raise SourceError(
            f"{rows}: no such file; freeze one with python -m tasks.data.golden, or unset "
            "data.golden."
        )
    folder = source.folder.resolve()
    for record in folders.read_jsonl(rows):
        image = folder / record["file_name"]
        if not image.is_file() or folders.sha256_file(image) != record["sha256"]:
            raise SourceError(
                f"{image}: not what was frozen; restore {source.folder} (dvc checkout)."
            )
        references = tuple(record["references"])
        yield Row(record["image_id"], image, references, "golden", source.format)
