"""The report for Prefect's UI: the tables, two plots, some pictures, well under a megabyte."""

from collections.abc import Iterator, Sequence

from tasks.data.markup import cell, table
from tasks.data.profile import DatasetDrift, WordChange, compare
from tasks.data.report.facts import Facts
from tasks.data.report.page import Finding, findings, number
from tasks.data.report.plots import plots
from tasks.data.report.thumbnails import Thumbnails

_PICTURES_BYTES = 500_000
_THUMBNAIL = 112
_EXAMPLES, _PHOTOS, _PHOTO_CAPTIONS, _PLOTS, _WORDS = 2, 6, 2, 2, 12


def markdown(facts: Facts) -> str:
    """The report as a person reads it in the Prefect UI."""
    thumbnails = Thumbnails(_PICTURES_BYTES)
    blocks = [
        f"# {'Accepted' if facts.verdict is None else 'Rejected'}: {cell(facts.name)}",
        *([cell(facts.verdict, 1200)] if facts.verdict else []),
        _counts(facts),
        *_gallery(facts, thumbnails),
        *_found("Set aside", findings(facts.quarantined, facts, thumbnails, _EXAMPLES)),
        *_found("Kept, and worth knowing", findings(facts.noted, facts, thumbnails, _EXAMPLES)),
        *(
            f"### {plot.title}\n\n![{plot.title}]({plot.data_uri()})"
            for plot in plots(facts.profile, facts.previous)[:_PLOTS]
            if plot.svg
        ),
        *(_drift(compare(facts.profile, facts.previous)) if facts.previous else []),
        f"Digest {cell(facts.digest)}",
    ]
    return "\n\n".join(blocks) + "\n"


def _counts(facts: Facts) -> str:
    read, accepted = facts.read, facts.accepted
    rows = [
        ("images", read.images, accepted.images, read.images - accepted.images),
        ("captions", read.captions, accepted.captions, read.captions - accepted.captions),
    ]
    counts = table(("", "read", "accepted", "set aside"), rows)
    splits = ", ".join(f"{cell(name)} {count:,}" for name, count in facts.splits.items())
    return f"{counts}\n\nSplits: {splits or 'none'}. Leaks between splits: {facts.leaks:,}."


def _found(title: str, found: Sequence[Finding]) -> Iterator[str]:
    if not found:
        return
    yield f"## {title}"
    rows = [
        (
            f"**{cell(f.rule.title)}**<br>{cell(f.rule.meaning)}",
            f"{f.count:,} {f.unit}",
            "<br>".join(
                _picture(e.image_id, e.uri) + f" {cell(e.image_id)}: {cell(e.detail)}"
                for e in f.examples
            ),
        )
        for f in found
    ]
    yield table(("", "count", "examples"), rows)


def _gallery(facts: Facts, thumbnails: Thumbnails) -> Iterator[str]:
    rows = [
        (_picture(example.image_id, thumbnails.uri(example, _THUMBNAIL)), _captions(captions))
        for example, captions in facts.gallery[:_PHOTOS]
    ]
    if rows:
        yield table(("image", "captions"), rows)


def _drift(drift: DatasetDrift) -> Iterator[str]:
    yield "## Since the previous version"
    changes = {
        "images": drift.images,
        "captions": drift.captions,
        "mean words in a caption": drift.mean_words,
        "median words in a caption": drift.median_words,
    }
    rows = [(name, number(of.before), number(of.after)) for name, of in changes.items()]
    yield table(("", "before", "now"), rows)
    yield (
        "Distance of the caption lengths (Jensen–Shannon, 0 the same to 1 nothing in common): "
        f"{drift.length_distance:.3f}, by chance about {drift.length_distance_by_chance:.3f}. "
        "In the plots the line is the previous version. "
        f"New words: {drift.new_share_of_vocabulary:.1%} of the vocabulary, "
        f"{drift.new_share_of_words:.1%} of all words said."
    )
    for title, words in (
        ("New", drift.new_words),
        ("Gone", drift.gone_words),
        ("Said more or less", drift.changed_words),
    ):
        if words:
            yield f"{title}: {_words(words)}."


def _words(changes: Sequence[WordChange]) -> str:
    shown = [f"{cell(c.word)} ({c.before:,} → {c.after:,})" for c in changes[:_WORDS]]
    return ", ".join(shown)


def _captions(captions: Sequence[str]) -> str:
    return "<br>".join(cell(caption) for caption in captions[:_PHOTO_CAPTIONS])


def _picture(name: str, uri: str | None) -> str:
    return f"![{cell(name)}]({uri})" if uri else ""
