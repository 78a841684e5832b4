"""A labelling batch: the pictures of production whose captions would teach most, for people."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bentos.captioner.captured import CapturedRequest
from bentos.captioner.images import BadImage, decode
from tasks.data import folders, markup
from tasks.data.duplicates import SIGNATURE, near_pairs, signature
from tasks.data.feedback import image_name
from tasks.drift.kernel import Floats, gaussian, median_bandwidth, squared_distances

log = logging.getLogger(__name__)

METADATA, COCO, PAGE = "metadata.jsonl", "captions.json", "index.html"
_TEMPLATE = Path(__file__).with_name("labelling.html.j2")


@dataclass(frozen=True)
class Wanted:
    """A request whose picture wants a caption; `novelty` is 1 less its mean kernel with the
    reference, as the drift report has it."""

    request: CapturedRequest
    novelty: float


@dataclass(frozen=True)
class Batch:
    """A folder for people, with so many pictures."""

    folder: Path
    images: int


def choose(
    requests: Sequence[CapturedRequest],
    labelled: Collection[str],
    reference: NDArray[np.floating],
    *,
    count: int,
    near_bits: int,
) -> list[Wanted]:
    """At most `count` of the requests that are not `labelled` yet, the most novel first.

    By maximal marginal relevance (Carbonell and Goldstein 1998, doi:10.1145/290941.291025, with
    lambda 1/2): each is novel and unlike those before it and those that are labelled. None is a
    near-duplicate of another one, or of a labelled one. `reference` [n, d] are the embeddings of
    what the champion knows; requests without a picture that can be shown are left out.
    """
    shown = _shown(requests)
    if not shown:
        return []
    novelty, likeness = _novelty(np.stack([one.embedding for one, _ in shown]), reference)
    near = _near([found for _, found in shown], near_bits)
    closest = np.zeros(len(shown))
    free = np.ones(len(shown), bool)

    def take(place: int) -> None:
        np.maximum(closest, likeness[place], out=closest)
        free[place] = False
        free[near[place]] = False

    for place, (request, _) in enumerate(shown):
        if request.request_id in labelled:
            take(place)
    chosen: list[Wanted] = []
    while free.any() and len(chosen) < count:
        place = int(np.argmax(np.where(free, novelty - closest, -np.inf)))
        take(place)
        chosen.append(Wanted(shown[place][0], float(novelty[place])))
    return chosen


def export(wanted: Sequence[Wanted], out: Path, *, title: str) -> Batch:
    """Write a batch to `out/<digest>/`; one that is there stays, as people may be at work in it.

    It holds `images/`, the same as `metadata.jsonl` (fill in each `caption`) and as COCO captions
    (the model's are `suggested`), and a page to type captions into, which needs no server.
    """
    ids = [one.request.request_id for one in wanted]
    folder = (out / folders.digest_of(ids)[:16]).resolve()
    if not folder.exists():
        with folders.staging(out) as staged:
            _write(wanted, staged, title)
            folders.publish(staged, folder)
        log.info("exported a labelling batch of %d pictures to %s", len(wanted), folder)
    return Batch(folder, len(wanted))


def _write(wanted: Sequence[Wanted], staged: Path, title: str) -> None:
    (staged / "images").mkdir()
    lines = []
    for one in wanted:
        request = one.request
        assert request.image is not None
        name = f"images/{image_name(request.request_id, request.image)}"
        (staged / name).write_bytes(request.image)
        lines.append(
            {
                "file_name": name,
                "request_id": request.request_id,
                "suggestion": request.caption,
                "novelty": round(one.novelty, 4),
                "caption": "",
            }
        )
    folders.write_jsonl(staged / METADATA, lines)
    folders.write_json(staged / COCO, _coco(wanted, [str(line["file_name"]) for line in lines]))
    page = markup.template(_TEMPLATE).render(title=title, pictures=lines)
    (staged / PAGE).write_text(page, encoding="utf-8")


def _coco(wanted: Sequence[Wanted], names: Sequence[str]) -> dict[str, object]:
    requests = [one.request for one in wanted]
    images = [
        {
            "id": number,
            "file_name": name,
            "width": request.width,
            "height": request.height,
            "request_id": request.request_id,
        }
        for number, (request, name) in enumerate(zip(requests, names, strict=True), 1)
    ]
    annotations = [
        {"id": number, "image_id": number, "caption": request.caption, "suggested": True}
        for number, request in enumerate(requests, 1)
    ]
    about = "Correct each caption; what is left as it was suggested is no answer."
    return {"info": {"description": about}, "images": images, "annotations": annotations}


def _shown(requests: Sequence[CapturedRequest]) -> list[tuple[CapturedRequest, np.void]]:
    """With the signature of its picture, each request whose picture was kept and can be read."""
    shown = []
    for request in requests:
        try:
            shown.append((request, signature(decode(request.image or b""))))
        except BadImage:
            continue
    return shown


def _novelty(current: NDArray[np.floating], reference: NDArray[np.floating]) -> tuple[Floats, ...]:
    """Of each row of `current` [m, d], and its kernel with the others [m, m]."""
    distances = squared_distances(pooled := np.concatenate([current, reference]), pooled)
    kernel = gaussian(distances, median_bandwidth(distances))[: len(current)]
    return 1 - kernel[:, len(current) :].mean(axis=1), kernel[:, : len(current)]


def _near(signatures: Sequence[np.void], bits: int) -> list[list[int]]:
    """The near-duplicates of each picture."""
    near: list[list[int]] = [[] for _ in signatures]
    for one, other in near_pairs(np.array(signatures, SIGNATURE), bits).tolist():
        near[one].append(other)
        near[other].append(one)
    return near
