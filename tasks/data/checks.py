"""Validation: really decodes every image, reads every caption, and says what it set aside and why.

Nothing is dropped: images accepted + quarantined = read, and the same for captions. An exact copy
of an earlier image gives its captions to that one and goes to quarantine itself.
"""

import base64
import html
import io
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bentos.captioner.images import BadImage, decode
from configs.schema import ChecksConfig
from tasks.data import folders
from tasks.data.raw import (
    Record,
    carry_images,
    image_path,
    read_records,
    write_dataset,
)
from tasks.refs import DatasetRef

log = logging.getLogger(__name__)

COPY = "copy_of_another_image"
_EXAMPLES = 3
_THUMBNAILS = 8
_THUMBNAIL_SIDE = 96


class DatasetRejected(ValueError):
    """The data as a whole is not fit to train on; names the rule, the count and examples."""


@dataclass(frozen=True)
class Finding:
    """Why an image (or, if `only_captions`, some captions of an accepted one) was set aside."""

    record: Record
    rule: str
    detail: str
    only_captions: bool = False


@dataclass(frozen=True)
class Report:
    """What the checks found. `dataset` is the folder of what passed."""

    dataset: DatasetRef
    accepted_records: tuple[Record, ...]
    quarantined: tuple[Finding, ...]

    @property
    def images_quarantined(self) -> int:
        return sum(not finding.only_captions for finding in self.quarantined)

    @property
    def captions_quarantined(self) -> int:
        return sum(len(finding.record.references) for finding in self.quarantined)

    @property
    def images_read(self) -> int:
        return self.dataset.num_images + self.images_quarantined

    @property
    def captions_read(self) -> int:
        return self.dataset.num_captions + self.captions_quarantined

    def accepted(self, config: ChecksConfig) -> DatasetRef:
        """The validated dataset, or DatasetRejected with the reasons.

        Copies don't count against the share: their captions are kept with the first of them.
        """
        bad = [f for f in self.quarantined if not f.only_captions and f.rule != COPY]
        if self.images_read and len(bad) / self.images_read > config.max_quarantined_share:
            raise DatasetRejected(
                f"max_quarantined_share: {len(bad)} of {self.images_read} images are unusable, "
                f"more than the {config.max_quarantined_share:.0%} allowed. {_summary(bad)} "
                "Repair the source, or raise data.checks.max_quarantined_share."
            )
        if self.dataset.num_images < config.min_images:
            raise DatasetRejected(
                f"min_images: {self.dataset.num_images} of {self.images_read} images are usable, "
                f"at least {config.min_images} are needed. {_summary(bad)}".rstrip()
                + " Add images, or lower data.checks.min_images."
            )
        return self.dataset

    def markdown(self) -> str:
        """The report as a person reads it in the Prefect UI."""
        rows = [
            "| | read | accepted | quarantined |",
            "| --- | ---: | ---: | ---: |",
            f"| images | {self.images_read} | {self.dataset.num_images} "
            f"| {self.images_quarantined} |",
            f"| captions | {self.captions_read} | {self.dataset.num_captions} "
            f"| {self.captions_quarantined} |",
        ]
        return "\n".join(
            [
                "# Dataset checks",
                "",
                *rows,
                "",
                *_lengths(self.accepted_records),
                *_findings_table(self.quarantined),
                *_gallery(self.dataset, self.accepted_records),
                f"Folder: `{self.dataset.uri}` (what was set aside: `quarantine.jsonl`)",
            ]
        )


def run(raw: DatasetRef, config: ChecksConfig, out: Path) -> Report:
    """Check every row of `raw`; write what passed and what did not to `out/<digest>/`."""
    records = list(read_records(raw))
    with ThreadPoolExecutor() as threads:
        faults = list(threads.map(lambda record: _image_fault(raw, record, config), records))
    accepted, quarantined = _sort_out(records, faults, config)
    with folders.staging(out) as staged:
        folders.write_jsonl(
            staged / "quarantine.jsonl",
            (
                {
                    **asdict(f.record),
                    "rule": f.rule,
                    "detail": f.detail,
                    "only_captions": f.only_captions,
                }
                for f in quarantined
            ),
        )
        carry_images(raw, accepted, staged)
        dataset = write_dataset(staged, accepted, out)
    report = Report(dataset, tuple(accepted), tuple(quarantined))
    log.info(
        "accepted %d of %d images, %d of %d captions",
        dataset.num_images,
        report.images_read,
        dataset.num_captions,
        report.captions_read,
    )
    return report


def _image_fault(raw: DatasetRef, record: Record, config: ChecksConfig) -> tuple[str, str] | None:
    """(rule, detail) of what is wrong with the image, or None."""
    path = image_path(raw, record)
    if record.sha256 is None or not path.is_file():
        return "missing", f"no file {record.image}"
    data = path.read_bytes()
    if folders.sha256(data) != record.sha256:
        return "changed", "the file is no longer what it was when it was ingested"
    try:
        width, height = decode(data, max_pixels=config.max_pixels).size
    except BadImage as error:
        return error.reason, str(error)
    if min(width, height) < config.min_side_pixels:
        return "too_small", f"{width} × {height}, a side under {config.min_side_pixels} pixels"
    if max(width, height) > config.max_aspect_ratio * min(width, height):
        return "extreme_aspect", f"{width} × {height}, over {config.max_aspect_ratio:g} : 1"
    return None


def _sort_out(
    records: Sequence[Record], faults: Sequence[tuple[str, str] | None], config: ChecksConfig
) -> tuple[list[Record], list[Finding]]:
    """Accepted records and findings, both in the order of the source."""
    kept: dict[str, Record] = {}  # by sha256
    ids: set[str] = set()
    findings: list[Finding] = []
    for record, fault in zip(records, faults, strict=True):
        if fault is not None:
            findings.append(Finding(record, *fault))
            continue
        assert record.sha256 is not None
        first = kept.get(record.sha256)
        if first is None and record.image_id in ids:
            findings.append(Finding(record, "id_taken", "another image has the same id"))
            continue
        said = first.references if first else ()
        good, bad = _sort_captions(record.references, said, config)
        if first is None and not good:
            findings.append(Finding(record, "no_caption", "; ".join(bad.values()) or "none given"))
            continue
        if bad:
            told = replace(record, references=tuple(record.references[i] for i in bad))
            # Of a copy these captions are the rest, told apart from the copy's own line below.
            findings.append(Finding(told, "captions", "; ".join(bad.values()), only_captions=True))
        ids.add(record.image_id)
        if first is not None:
            empty = replace(record, references=())
            findings.append(Finding(empty, COPY, f"its captions went to {first.image_id}"))
        kept[record.sha256] = replace(first or record, references=(*said, *good))
    return list(kept.values()), findings


def _sort_captions(
    captions: Sequence[str], said: Iterable[str], config: ChecksConfig
) -> tuple[list[str], dict[int, str]]:
    """The good captions, and for the others their index -> what is wrong."""
    seen = {_folded(caption) for caption in said}
    good: list[str] = []
    bad: dict[int, str] = {}
    for index, caption in enumerate(captions):
        words = len(caption.split())
        if words == 0:
            bad[index] = "empty caption"
        elif words < config.min_caption_words or words > config.max_caption_words:
            bad[index] = f"caption of {words} words"
        elif _folded(caption) in seen:
            bad[index] = "caption given twice"
        else:
            seen.add(_folded(caption))
            good.append(caption)
    return good, bad


def _folded(caption: str) -> str:
    return " ".join(caption.lower().split())


def _summary(findings: Sequence[Finding]) -> str:
    """`missing: 12 (a.jpg, b.jpg, c.jpg, …).` by rule, the most frequent first."""
    parts = []
    for rule, count in Counter(finding.rule for finding in findings).most_common():
        examples = [f.record.image_id for f in findings if f.rule == rule][:_EXAMPLES]
        more = ", …" if count > len(examples) else ""
        parts.append(f"{rule}: {count} ({', '.join(examples)}{more})")
    return "; ".join(parts) + "." if parts else ""


def _lengths(records: Sequence[Record]) -> list[str]:
    lengths = sorted(len(caption.split()) for r in records for caption in r.references)
    if not lengths:
        return []
    vocabulary = {word for r in records for c in r.references for word in c.lower().split()}
    middle, high = lengths[len(lengths) // 2], lengths[int(0.95 * (len(lengths) - 1))]
    return [
        f"Words in a caption: {lengths[0]} to {lengths[-1]}, median {middle}, "
        f"95 % have at most {high}; {len(vocabulary)} different words; "
        f"{len(lengths) / len(records):.1f} captions an image.",
        "",
    ]


def _findings_table(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return ["Nothing was set aside.", ""]
    lines = ["## Set aside", "", "| rule | count | examples |", "| --- | ---: | --- |"]
    for rule, count in Counter(finding.rule for finding in findings).most_common():
        examples = [f for f in findings if f.rule == rule][:_EXAMPLES]
        shown = "<br>".join(_cell(f"{f.record.image_id}: {f.detail}") for f in examples)
        lines.append(f"| {rule} | {count} | {shown} |")
    return [*lines, ""]


def _gallery(dataset: DatasetRef, records: Sequence[Record]) -> list[str]:
    """A few images spread over the dataset, with a caption each."""
    if not records:
        return []
    step = max(1, len(records) // _THUMBNAILS)
    lines = ["## Examples", "", "| image | captions |", "| --- | --- |"]
    for record in records[::step][:_THUMBNAILS]:
        image = decode(image_path(dataset, record).read_bytes())
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=85)
        uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        captions = "<br>".join(_cell(caption) for caption in record.references)
        lines.append(f"| ![{_cell(record.image_id)}]({uri}) | {captions} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    """Text that neither ends a table cell nor becomes markup."""
    return html.escape(" ".join(text.split())).replace("|", "&#124;").replace("[", "&#91;")
