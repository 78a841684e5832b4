"""Corrections from production: are there enough to learn from, and the usable ones as a source."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bentos.captioner.capture import Captures, read_feedback
from bentos.captioner.captured import LabelledRequest
from configs.schema import Config, FeedbackSource
from tasks.data import folders
from tasks.data.corrections import Held, Judged, content_words, judge
from tasks.data.records import Record

log = logging.getLogger(__name__)

# The first bytes of a picture -> how its file is called.
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp"}


@dataclass(frozen=True)
class Learnt:
    """What a champion has learnt from: corrected requests, and the words of all captions."""

    request_ids: frozenset[str] = frozenset()
    vocabulary: frozenset[str] = frozenset()

    @classmethod
    def read(cls, folder: Path) -> "Learnt":
        """From the rows that its dataset was read from, as `versioning.version_rows` has them."""
        requests: set[str] = set()
        words: set[str] = set()
        for row in map(Record.of, folders.read_jsonl(folder / "rows.jsonl")):
            if row.source == "feedback":
                requests.add(row.image_id)
            for caption in row.references:
                words |= content_words(caption)
        return cls(frozenset(requests), frozenset(words))


@dataclass(frozen=True)
class Labels:
    """Whether there are captions enough to retrain on.

    `new`, `usable` and `confirmed` count pictures: `new` ones the champion has not learnt from.
    `held` counts captions by the reason they are held aside. `source` has all usable pictures,
    where they are enough.
    """

    needed: int
    new: int = 0
    usable: int = 0
    confirmed: int = 0
    held: Mapping[str, int] = field(default_factory=dict)
    source: FeedbackSource | None = None

    @property
    def enough(self) -> bool:
        return self.new >= self.needed

    @property
    def message(self) -> str:
        aside = ", ".join(f"{count:,} {reason}" for reason, count in self.held.items())
        told = f"{self.new:,} newly corrected requests, at least {self.needed:,} are needed"
        return f"{told}; captions held aside: {aside}" if aside else told


def read(captures: Captures, config: Config, learnt: Learnt) -> Judged:
    """All that people sent, judged. Raises CaptureUnavailable."""
    labelled = read_feedback(captures)
    return judge(labelled, learnt.vocabulary, config.data.checks, config.retrain)


def count(judged: Judged, config: Config, learnt: Learnt) -> Labels:
    """How many there are of what; nothing is exported."""
    return Labels(
        needed=config.retrain.min_labels,
        new=sum(one.request_id not in learnt.request_ids for one in judged.usable),
        usable=len(judged.usable),
        confirmed=judged.confirmed,
        held=judged.reasons,
    )


def decide(judged: Judged, config: Config, learnt: Learnt, out: Path) -> Labels:
    """The same; where they are enough, all usable ones are exported below `out`."""
    labels = count(judged, config, learnt)
    return replace(labels, source=export(judged, out)) if labels.enough else labels


def export(judged: Judged, out: Path) -> FeedbackSource:
    """Write the usable corrections to `out/<digest>/`.

    The folder holds `images/`, `metadata.jsonl`, and in `held.jsonl` what is held aside, with the
    reason. The same usable corrections give the same folder.
    """
    lines = []
    with folders.staging(out) as staged:
        (staged / "images").mkdir()
        for request in judged.usable:
            name = f"images/{image_name(request.request_id, request.image)}"
            (staged / name).write_bytes(request.image)
            lines.append(_line(request, name))
        folders.write_jsonl(staged / "metadata.jsonl", lines)
        folders.write_jsonl(staged / "held.jsonl", map(_held_line, judged.held))
        folder = folders.publish(staged, (out / folders.digest_of(lines)).resolve())
    log.info("exported %d corrected requests to %s", len(judged.usable), folder)
    return FeedbackSource(format="feedback", folder=folder)


def image_name(request_id: str, image: bytes) -> str:
    """How the file of a request's picture is called."""
    suffix = next((end for start, end in _SUFFIXES.items() if image.startswith(start)), ".bin")
    return request_id + suffix


def _line(request: LabelledRequest, file_name: str) -> dict[str, object]:
    return {
        "file_name": file_name,
        "image_id": request.request_id,
        "sha256": folders.sha256(request.image),
        "references": request.captions,
        "time": request.time,
        "model_version": request.model_version,
    }


def _held_line(held: Held) -> dict[str, object]:
    return {
        "request_id": held.request_id,
        "caption": held.feedback.caption,
        "client": held.feedback.client,
        "time": held.feedback.time,
        "reason": held.fault.rule,
        "detail": held.fault.detail,
    }
