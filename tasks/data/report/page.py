"""The report as one self-contained HTML page, the same bytes for the same facts, and its JSON."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data.markup import template
from tasks.data.profile import DatasetDrift, Profile, compare
from tasks.data.report.facts import Example, Facts, summary
from tasks.data.report.plots import plots
from tasks.data.report.rules import Rule, counts_captions, rule_of
from tasks.data.report.thumbnails import Thumbnails

_PICTURES_BYTES = 1_000_000
_THUMBNAIL, _PHOTO = 132, 280
_EXAMPLES = 6
_PAIRS = 12
_CLUSTERS, _CLUSTER_IMAGES = 8, 6
_PHOTOS, _PHOTO_CAPTIONS = 12, 5
_WORDS, _CAPTIONS = 20, 10

# English words that are in every caption and tell nothing about a dataset.
_DULL = (
    "a an the of in on at to and is are with his her its their as by for from it that this two one "
    "up down out into over through while who there he she they"
)


@dataclass(frozen=True)
class Shown:
    """An example with its picture, if there is one to show."""

    image_id: str
    detail: str
    uri: str | None


@dataclass(frozen=True)
class Finding:
    """A rule that was met `count` times."""

    name: str
    rule: Rule
    count: int
    unit: str
    examples: list[Shown]


def write(facts: Facts, folder: Path) -> Path:
    """Write report.html and report.json into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    drift = compare(facts.profile, facts.previous) if facts.previous else None
    # What UTF-8 can't hold, half of a surrogate pair in a file's name, is written as \udc..
    lenient = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    text = json.dumps(_told(facts, drift), indent=2, ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text, **lenient)
    page = folder / "report.html"
    page.write_text(render(facts, drift), **lenient)
    return page


def render(facts: Facts, drift: DatasetDrift | None) -> str:
    """The page; everything that comes from the data is escaped."""
    path = Path(__file__).with_name("page.html.j2")
    thumbnails = Thumbnails(_PICTURES_BYTES)
    return template(path, number=number, percent=_percent).render(
        facts=facts, drift=drift, **_pictures(facts, thumbnails), **_words(facts.profile)
    )


def findings(
    counts: Mapping[str, int], facts: Facts, thumbnails: Thumbnails, examples: int = _EXAMPLES
) -> list[Finding]:
    """The rules that were met, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [
        Finding(
            name=name,
            rule=rule_of(name),
            count=count,
            unit=("caption" if counts_captions(name) else "image") + ("s" if count != 1 else ""),
            examples=_show(facts.examples.get(name, ())[:examples], thumbnails),
        )
        for name, count in ranked
        if count
    ]


def _told(facts: Facts, drift: DatasetDrift | None) -> dict[str, Any]:
    return {
        "name": facts.name,
        "summary": summary(facts),
        "verdict": facts.verdict,
        "profile": facts.profile.to_json(),
        "drift": drift.to_json() if drift else None,
    }


def _pictures(facts: Facts, thumbnails: Thumbnails) -> dict[str, Any]:
    """What of the page has pictures; the gallery comes first, so that no budget starves it."""
    blamed = (facts.verdict or "").partition(":")[0]
    return {
        "photos": [
            (shown, captions[:_PHOTO_CAPTIONS])
            for example, captions in facts.gallery[:_PHOTOS]
            for shown in _show([example], thumbnails, _PHOTO)
        ],
        "blamed": _show(facts.examples.get(blamed, ())[:_EXAMPLES], thumbnails),
        "set_aside": findings(facts.quarantined, facts, thumbnails),
        "noted": findings(facts.noted, facts, thumbnails),
        "pairs": [_show(pair, thumbnails) for pair in facts.leak_pairs[:_PAIRS]],
        "clusters": [
            (_show(cluster[:_CLUSTER_IMAGES], thumbnails), len(cluster) - _CLUSTER_IMAGES)
            for cluster in facts.clusters[:_CLUSTERS]
        ],
        "plots": plots(facts.profile, facts.previous),
    }


def _words(profile: Profile) -> dict[str, Any]:
    dull = set(_DULL.split())
    telling = [item for item in profile.vocabulary.items() if item[0] not in dull]
    return {
        "frequent": telling[:_WORDS],
        "common": list(profile.common_captions.items())[:_CAPTIONS],
    }


def _show(
    examples: Iterable[Example], thumbnails: Thumbnails, side: int = _THUMBNAIL
) -> list[Shown]:
    return [
        Shown(example.image_id, example.detail, thumbnails.uri(example, side))
        for example in examples
    ]


def number(value: float) -> str:
    """12,345 or 11.8, with a true minus."""
    text = f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
    return text.replace("-", "−")


def _percent(share: float) -> str:
    """Never 0 % of something, nor 100 % of less than all."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.3g} %" if share < 1 else f"{100 * share:,.0f} %"
