"""Captions that people wrote for a labelling batch: read from its files, kept as feedback."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bentos.captioner.capture import Captures, backend_of
from bentos.captioner.captured import Feedback
from bentos.captioner.request_ids import seconds_of
from tasks.data import labelling
from tasks.data.corrections import same

# Whoever answers was asked to.
CLIENT = "batch"


class BadAnswers(ValueError):
    """Answers that can't be read; names the file, the line and the fix."""


@dataclass(frozen=True)
class Answer:
    request_id: str
    caption: str


@dataclass(frozen=True)
class Imported:
    """How many captions were added, were there already, or belong to no request that is kept."""

    added: int
    known: int
    gone: int


def read(place: Path) -> list[Answer]:
    """The answers in a batch's folder, in its `metadata.jsonl` filled in, or in a COCO file.

    Raises BadAnswers; nothing is read half.
    """
    if place.is_dir():
        files = [place / labelling.METADATA, place / labelling.COCO]
        files = [file for file in files if file.is_file()]
        if not files:
            raise BadAnswers(
                f"{place}: neither {labelling.METADATA} nor {labelling.COCO} is in it; name the "
                "folder of a labelling batch, or the file of answers."
            )
    else:
        files = [place]
    found = [answer for file in files for answer in _read(file)]
    return list(dict.fromkeys(found))


def store(captures: Captures, answers: Sequence[Answer]) -> Imported:
    """Keep answers as feedback of their requests; what is kept already is not added again.

    Raises CaptureUnavailable.
    """
    backend = backend_of(captures)
    backend.open()
    try:
        said = defaultdict(set)
        for request in backend.labelled():
            said[request.request_id] = {same(caption) for caption in request.captions}
        added = known = gone = 0
        for answer in answers:
            if same(answer.caption) in said[answer.request_id]:
                known += 1
                continue
            sent = Feedback(answer.caption, time.time(), CLIENT)
            if backend.add_feedback(answer.request_id, sent):
                said[answer.request_id].add(same(answer.caption))
                added += 1
            else:
                gone += 1
    finally:
        backend.close()
    return Imported(added, known, gone)


def _read(file: Path) -> list[Answer]:
    if file.suffix != ".jsonl":
        return list(_coco(file))
    return [answer for where, line in _lines(file) for answer in _answer(line, line, where)]


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of `metadata.jsonl`, each with its place."""
    for number, line in enumerate(_text(file).split("\n"), 1):
        where = f"{file}: line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadAnswers(
                f"{where}: no JSON ({error.msg}); keep one object a line, or use {labelling.PAGE}."
            ) from error
        if not isinstance(record, dict):
            raise BadAnswers(f"{where}: expected an object with request_id and caption.")
        yield where, record


def _coco(file: Path) -> Iterator[Answer]:
    """What is left as the batch suggested it is no answer, unless it says so itself."""
    try:
        content = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise BadAnswers(f"{file}: line {error.lineno}: no JSON ({error.msg}).") from error
    shape = isinstance(content, dict) and all(
        isinstance(content.get(key), list) and all(isinstance(one, dict) for one in content[key])
        for key in ("images", "annotations")
    )
    if not shape:
        raise BadAnswers(f"{file}: no COCO captions: expected lists `images` and `annotations`.")
    images = {str(image.get("id")): image for image in content["images"]}
    suggested = _suggestions(file.with_name(labelling.METADATA))
    for number, annotation in enumerate(content["annotations"], 1):
        where = f"{file}: annotation {number}"
        image = images.get(str(annotation.get("image_id")))
        if image is None:
            raise BadAnswers(f"{where}: no image has the id {annotation.get('image_id')!r}.")
        mark = annotation.get("suggested")
        for answer in _answer(image, annotation, where):
            # Tools drop the mark, and people leave it where they change the caption.
            left = answer in suggested if suggested else mark
            if mark is False or not left:
                yield answer


def _suggestions(metadata: Path) -> set[Answer]:
    """What the batch beside a COCO file suggested, if there is one."""
    if not metadata.is_file():
        return set()
    lines = (line for _, line in _lines(metadata))
    return {Answer(str(line.get("request_id")), str(line.get("suggestion"))) for line in lines}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadAnswers(f"{file}: {error.strerror}; name a labelling batch's folder.") from error
    except UnicodeDecodeError as error:
        raise BadAnswers(f"{file}: not UTF-8 text at byte {error.start}.") from error


def _answer(image: dict[str, Any], told: dict[str, Any], where: str) -> Iterator[Answer]:
    """The answer, if a caption was given; an image is known by its id, else by its file's name."""
    caption = told.get("caption") or ""
    if not isinstance(caption, str):
        raise BadAnswers(f"{where}: caption is no text: {caption!r}.")
    request_id = image.get("request_id") or Path(str(image.get("file_name", ""))).stem
    if not isinstance(request_id, str) or seconds_of(request_id) is None:
        raise BadAnswers(
            f"{where}: {request_id!r} is no request's id; keep request_id or file_name as exported."
        )
    if caption.strip():
        yield Answer(request_id, caption.strip())
