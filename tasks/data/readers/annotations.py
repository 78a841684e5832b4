"""Caption files that are one JSON document: COCO's and Karpathy's."""

import json
from collections.abc import Iterator
from typing import Any

from configs.schema import CocoSource, KarpathySource, Place
from tasks.data.readers.caption_file import Folder
from tasks.data.readers.places import open_binary
from tasks.data.readers.text import cut, is_text
from tasks.data.rows import Fault, Row, SourceError

Captions = dict[str, list[str]]


def read_coco(source: CocoSource) -> Iterator[Row]:
    """A row an entry of `images`, then annotations of images that are not there, then the folder.

    `image_id` is the file's name in the folder. Ids are compared as text. An annotation without an
    image's id or a caption is a row of its own, and so is a later image of an id that is taken:
    whose captions they are can't be told.
    """
    document = _document(source.captions, ("images", "annotations"))
    notes = [note for note in document["annotations"] if isinstance(note, dict)]
    if notes and not any("caption" in note for note in notes):
        raise SourceError(
            f"{source.captions}: no annotation has a `caption`; data.source.captions has to be a "
            "captions_*.json, not an instances_*.json."
        )
    folder = Folder(source)
    captions: Captions = {}
    for place, annotation in enumerate(document["annotations"]):
        problem = _collect(annotation, captions)
        if problem:
            told = annotation.get("caption") if isinstance(annotation, dict) else None
            yield _malformed(folder, f"annotations[{place}]", problem, [told], annotation)
    seen: set[str] = set()
    for place, entry in enumerate(document["images"]):
        where = f"images[{place}]"
        problem = _image_problem(entry, "file_name") or _id_problem(entry.get("id"))
        if not problem and str(entry["id"]) in seen:
            problem = f"its id {entry['id']!r} is an earlier image's"
        if problem:
            yield _malformed(folder, where, problem, [], entry)
            continue
        seen.add(str(entry["id"]))
        references = tuple(captions.pop(str(entry["id"]), ()))
        yield folder.row(entry["file_name"], references, None, where)
    for image_id, orphans in captions.items():
        detail = f"{folder.file}: `images` has no id {image_id}, of which there are annotations"
        yield Row(image_id, Fault("missing", detail), tuple(orphans), None, source.format)
    yield from folder.uncaptioned()


def read_karpathy(source: KarpathySource) -> Iterator[Row]:
    """A row an entry, with its split as it is there; then the folder's other images."""
    folder = Folder(source)
    for place, entry in enumerate(_document(source.captions, ("images",))["images"]):
        where = f"images[{place}]"
        problem = _image_problem(entry, "filename")
        sentences = entry.get("sentences") or [] if isinstance(entry, dict) else []
        if not isinstance(sentences, list):
            problem, sentences = problem or "`sentences` is no list", []
        told: list[Any] = [s.get("raw") if isinstance(s, dict) else None for s in sentences]
        if not problem and not all(map(is_text, told)):
            problem = "a sentence has no text `raw`"
        path, split = (entry.get("filepath"), entry.get("split")) if not problem else (None, None)
        if not all(value is None or is_text(value) for value in (path, split)):
            problem = "`filepath` or `split` is no text"
        if problem:
            yield _malformed(folder, where, problem, told, entry)
            continue
        name = f"{path}/{entry['filename']}" if path else entry["filename"]
        yield folder.row(name, tuple(raw.strip() for raw in told), split, where)
    yield from folder.uncaptioned()


def _document(place: Place, keys: tuple[str, ...]) -> dict[str, list[Any]]:
    """The JSON object in a file, which has a list for each key."""
    expected = f"expected a JSON object with {' and '.join(f'a list `{key}`' for key in keys)}"
    with open_binary(place) as file:
        data = file.read()
    try:
        document = json.loads(data)
    except json.JSONDecodeError as error:
        raise SourceError(f"{place}, line {error.lineno}: {error.msg}; {expected}.") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{place}, line {line}: not in UTF-8; save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place}: not JSON that can be read: {error}; {expected}.") from error
    if not isinstance(document, dict):
        raise SourceError(f"{place}, line 1: {expected}, not a {type(document).__name__}.")
    for key in keys:
        if not isinstance(document.get(key), list):
            there = ", ".join(map(cut, document)) or "none"
            raise SourceError(f"{place}, line 1: {expected}; its keys are {there}.")
    return document


def _collect(annotation: Any, captions: Captions) -> str:
    """Add an annotation's caption to its image's; what is wrong with it otherwise."""
    if not isinstance(annotation, dict):
        return "no JSON object"
    problem = _id_problem(annotation.get("image_id"), "image_id")
    if not problem and not is_text(annotation.get("caption")):
        problem = "no text `caption`"
    if not problem:
        found = captions.setdefault(str(annotation["image_id"]), [])
        found.append(annotation["caption"].strip())
    return problem


def _image_problem(entry: Any, key: str) -> str:
    if not isinstance(entry, dict):
        return "no JSON object"
    if not is_text(entry.get(key)) or not entry[key].strip():
        return f"no text `{key}`"
    return ""


def _id_problem(value: object, key: str = "id") -> str:
    plain = is_text(value) or (isinstance(value, int) and not isinstance(value, bool))
    return "" if plain else f"`{key}` is no number and no text"


def _malformed(folder: Folder, where: str, problem: str, told: list[Any], entry: object) -> Row:
    return folder.malformed(where, where, problem, told, json.dumps(entry, ensure_ascii=False))
