"""Reads COCO's files: annotations with references, and results with one prediction an image."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class CocoFileError(ValueError):
    """A file that is absent or not of COCO's shape; names the file, the place and the fix."""


@dataclass(frozen=True)
class Paired:
    """What can be scored, in the references' order; and the images that can't."""

    image_ids: list[str]
    predictions: list[str]
    references: list[list[str]]
    without_prediction: list[str]
    without_reference: list[str]


def paired(references_path: Path, predictions_path: Path) -> Paired:
    """Pairs both files by image id, ints and strings alike. Raises `CocoFileError`."""
    references = read_references(references_path)
    predictions = read_predictions(predictions_path)
    known = [image for image, captions in references.items() if captions]
    scored = [image for image in known if image in predictions]
    if not scored:
        raise CocoFileError(
            f"{predictions_path}: none of its {len(predictions)} images has a reference in "
            f"{references_path}: give files with the same image ids."
        )
    everything = dict.fromkeys([*references, *predictions])
    return Paired(
        image_ids=scored,
        predictions=[predictions[image] for image in scored],
        references=[references[image] for image in scored],
        without_prediction=[image for image in known if image not in predictions],
        without_reference=[image for image in everything if not references.get(image)],
    )


def read_references(path: Path) -> dict[str, list[str]]:
    """Captions of every image; images that the file lists but doesn't caption have none."""
    found = _read(path)
    place, images = "", []
    if isinstance(found, dict):
        images = found.get("images", [])
        found, place = found.get("annotations"), "annotations"
    if not isinstance(found, list) or not isinstance(images, list):
        raise CocoFileError(
            f'{path}: not COCO annotations: expected {{"images": […], "annotations": '
            '[{"image_id": …, "caption": "…"}, …]} or the bare list of annotations.'
        )
    captions: dict[str, list[str]] = {
        _image_id(path, f"images[{i}]", image, "id"): [] for i, image in enumerate(images)
    }
    for i, entry in enumerate(found):
        image, caption = _entry(path, f"{place}[{i}]", entry)
        captions.setdefault(image, []).append(caption)
    return captions


def read_predictions(path: Path) -> dict[str, str]:
    """The one caption of every image of a results file."""
    found = _read(path)
    if not isinstance(found, list):
        raise CocoFileError(
            f'{path}: not COCO results: expected a list [{{"image_id": …, "caption": "…"}}, …].'
        )
    predictions: dict[str, str] = {}
    for i, entry in enumerate(found):
        image, caption = _entry(path, f"[{i}]", entry)
        if image in predictions:
            raise CocoFileError(
                f"{path}, [{i}]: a second prediction of image {image}: keep one an image."
            )
        predictions[image] = caption
    return predictions


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CocoFileError(f"{path}: {error.strerror}: give a JSON file of captions.") from error
    except json.JSONDecodeError as error:
        raise CocoFileError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})."
        ) from error
    except UnicodeDecodeError as error:
        raise CocoFileError(f"{path}, byte {error.start}: not UTF-8: save it as UTF-8.") from error


def _entry(path: Path, place: str, entry: Any) -> tuple[str, str]:
    image = _image_id(path, place, entry, "image_id")
    caption = entry.get("caption")
    if not isinstance(caption, str):
        raise CocoFileError(f'{path}, {place}: expected "caption" to be text, got {caption!r:.60}.')
    return image, caption


def _image_id(path: Path, place: str, entry: Any, key: str) -> str:
    image = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(image, int | str) or isinstance(image, bool):
        raise CocoFileError(
            f'{path}, {place}: expected an object with "{key}", a whole number or text, '
            f"got {entry!r:.60}."
        )
    return str(image)
