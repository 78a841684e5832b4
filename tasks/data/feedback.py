"""Corrections from production as a source: what people wrote becomes a folder to ingest."""

import logging
from pathlib import Path

from bentos.captioner.capture import Captures, read_feedback
from bentos.captioner.captured import LabelledRequest
from configs.schema import FeedbackSource
from tasks.data import folders

log = logging.getLogger(__name__)

# The first bytes of a picture -> how its file is called.
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp"}


class NotEnoughFeedback(ValueError):
    """Too few people corrected captions for a retraining to help."""


def export(captures: Captures, out: Path, *, minimum: int = 1) -> FeedbackSource:
    """Write every corrected request to `out/<digest>/`.

    The folder holds `images/` and `metadata.jsonl`. The same corrections give the same folder.
    Raises NotEnoughFeedback below `minimum` corrected requests.
    """
    labelled = read_feedback(captures)
    if len(labelled) < minimum:
        raise NotEnoughFeedback(
            f"{len(labelled)} corrected requests in {captures}, at least {minimum} are needed: "
            "POST corrections to /v1/feedback, or lower retrain.min_labels."
        )
    lines = []
    with folders.staging(out) as staged:
        (staged / "images").mkdir()
        for request in labelled:
            name = f"images/{request.request_id}{_suffix(request.image)}"
            (staged / name).write_bytes(request.image)
            lines.append(_line(request, name))
        folders.write_jsonl(staged / "metadata.jsonl", lines)
        folder = folders.publish(staged, (out / folders.digest_of(lines)).resolve())
    log.info("exported %d corrected requests to %s", len(labelled), folder)
    return FeedbackSource(format="feedback", folder=folder)


def _line(request: LabelledRequest, file_name: str) -> dict[str, object]:
    return {
        "file_name": file_name,
        "image_id": request.request_id,
        "sha256": folders.sha256(request.image),
        "references": request.captions,
        "time": request.time,
        "model_version": request.model_version,
    }


def _suffix(image: bytes) -> str:
    return next((end for start, end in _SUFFIXES.items() if image.startswith(start)), ".bin")
