"""The write pass: every row goes to the dataset or to quarantine, its captions likewise."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

from configs.schema import ChecksConfig
from tasks.data import folders
from tasks.data import records as rows
from tasks.data.checks.inspection import Inspection, caption_key, noted_rules, sort_captions
from tasks.data.checks.judgement import Judgement
from tasks.data.profile import Profile, ProfileBuilder
from tasks.data.records import DatasetWriter, Record
from tasks.data.report.facts import Counts, Example
from tasks.data.rows import Fault
from tasks.data.splits import SPLITS
from tasks.refs import DatasetRef

# What stays of a row's captions, and index -> why not of the others.
Captions = tuple[list[str], dict[int, Fault]]
_EXAMPLES = 6
_GALLERY = 12


class Sorting:
    """Takes the rows in order; counts and keeps a few examples of each rule as they go by."""

    def __init__(
        self,
        raw: DatasetRef,
        staged: Path,
        found: Inspection,
        judged: Judgement,
        config: ChecksConfig,
    ) -> None:
        self._raw, self._staged, self._config = raw, staged, config
        self._found, self._judged = found, judged
        self._recalled = _recall(raw, judged)
        self._shared = self._merged()
        self._profile = ProfileBuilder()
        staying = len(found.state) - len(judged.aside)
        self._gallery_step = max(1, staying // _GALLERY)
        self.quarantined: Counter[str] = Counter()
        self.images_aside: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.splits: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.examples: dict[str, list[Example]] = defaultdict(list)
        self.leak_pairs: list[tuple[Example, Example]] = []
        self.clusters: dict[int, list[Example]] = {}
        self.gallery: list[tuple[Example, tuple[str, ...]]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._accepted = stack.enter_context(DatasetWriter(self._staged))
            self._aside = stack.enter_context(_writer(self._staged, "quarantine"))
            self._notes = stack.enter_context(_writer(self._staged, "notes"))
            self._files = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def run(self) -> None:
        for place, record in enumerate(rows.read_records(self._raw)):
            if place in self._judged.aside:
                self._set_aside(place, record)
            else:
                self._accept(place, record)
        for record in rows.uncaptioned(self._raw):
            self._note(record, Fault("uncaptioned", "no caption names it"))

    def publish(self, out: Path) -> DatasetRef:
        return self._accepted.publish(self._staged, out, self._aside, self._notes)

    @property
    def accepted(self) -> Counts:
        return Counts(self._accepted.count, self._accepted.num_captions)

    @property
    def num_leaks(self) -> int:
        return len(self._judged.leaks)

    def profile(self) -> Profile:
        return self._profile.profile()

    def _accept(self, place: int, record: Record) -> None:
        if place in self._shared:
            good, bad = self._shared[place]
        else:
            good, bad = self._sorted(record)
        split = self._judged.split_of(place)
        state = self._found.state[place]
        width, height = int(state["width"]), int(state["height"])
        row = replace(record, references=tuple(good), split=split, width=width, height=height)
        self._accepted.add(row)
        rows.carry_images(self._raw, [row], self._staged)
        self._quarantine_captions(record, bad)
        self._profile.add(row.references, width, height)
        self.splits[split] += 1
        self._note_all(place, record)
        if self._accepted.count % self._gallery_step == 0 and len(self.gallery) < _GALLERY:
            self.gallery.append((self._example(record, split), row.references))

    def _set_aside(self, place: int, record: Record) -> None:
        """The image with its captions; a copy's have gone to the image that it repeats."""
        fault = self._found.faults.get(place) or self._why(place, record)
        if place in self._shared:
            _, bad = self._shared[place]
            self._quarantine_captions(record, bad)
            record = replace(record, references=())
        self._quarantine(record, fault, whole_image=True)
        self.images_aside[fault.rule] += 1

    def _sorted(self, record: Record, already: Sequence[str] = ()) -> Captions:
        good, bad, _ = sort_captions(record.references, self._config, already)
        if self._config.actions.caption_too_common != "note":
            for index, caption in enumerate(record.references):
                if index not in bad and caption_key(caption) in self._judged.common:
                    bad[index] = Fault("caption_too_common", f"{caption!r} is on very many images")
            good = [c for index, c in enumerate(record.references) if index not in bad]
        return good, bad

    def _merged(self) -> dict[int, Captions]:
        """Of images with exact copies, and of the copies: what they keep and what they don't."""
        groups: dict[int, list[int]] = defaultdict(list)
        for copy, first in sorted(self._judged.heirs.items()):
            groups[first].append(copy)
        merged: dict[int, Captions] = {}
        for first, copies in groups.items():
            good, bad = self._sorted(self._recalled[first])
            for copy in copies:
                more, merged_bad = self._sorted(self._recalled[copy], already=good)
                merged[copy] = [], merged_bad
                good = [*good, *more]
            merged[first] = good, bad
        return merged

    def _why(self, place: int, record: Record) -> Fault:
        """Why the judgement sets an image aside that is good by itself."""
        aside = self._judged.aside[place]
        if aside.other is None:
            return Fault(aside.rule, "each of its captions is on very many images")
        return self._like(aside.rule, record, aside.other)

    def _like(self, rule: str, record: Record, other: int) -> Fault:
        """What an image resembles; the first pairs are kept to be looked at."""
        near, split = self._recalled[other], self._judged.split_of(other)
        fault = Fault(rule, f"the same as {near.image_id}, or nearly, which is in {split}")
        example, first = self._example(record, fault.detail), self._example(near, f"in {split}")
        if rule == "leak" and len(self.leak_pairs) < _EXAMPLES:
            self.leak_pairs.append((example, first))
        if rule == "near_duplicate" and (other in self.clusters or len(self.clusters) < _EXAMPLES):
            group = self.clusters.setdefault(other, [first])
            if len(group) < _EXAMPLES:
                group.append(example)
        return fault

    def _note_all(self, place: int, record: Record) -> None:
        """What was found and stays."""
        for rule in noted_rules(int(self._found.state[place]["notes"])):
            self._note(record, Fault(rule, ""))
        if self._judged.common and any(
            caption_key(caption) in self._judged.common for caption in record.references
        ):
            self._note(record, Fault("caption_too_common", "a caption is on very many images"))
        for rule, likeness in (("near_duplicate", self._judged.near), ("leak", self._judged.leaks)):
            if place in likeness:
                self._note(record, self._like(rule, record, likeness[place]))

    def _note(self, record: Record, fault: Fault) -> None:
        self.noted[fault.rule] += 1
        self._notes.write({"image_id": record.image_id, **asdict(fault)})
        self._show(record, fault)

    def _quarantine_captions(self, record: Record, bad: Mapping[int, Fault]) -> None:
        """One entry a caption of an image that stays."""
        for index, fault in bad.items():
            one = replace(record, references=(record.references[index],))
            self._quarantine(one, fault, whole_image=False)

    def _quarantine(self, record: Record, fault: Fault, *, whole_image: bool) -> None:
        self.quarantined[fault.rule] += 1
        line = {**asdict(record), "fault": None, **asdict(fault), "whole_image": whole_image}
        self._aside.write(line, [record.content, fault.rule, whole_image])
        self._show(record, fault)

    def _show(self, record: Record, fault: Fault) -> None:
        if len(self.examples[fault.rule]) < _EXAMPLES:
            self.examples[fault.rule].append(self._example(record, fault.detail))

    def _example(self, record: Record, detail: str) -> Example:
        path = rows.image_path(self._raw, record) if record.image else None
        return Example(record.image_id, detail, path)


def _recall(raw: DatasetRef, judged: Judgement) -> dict[int, Record]:
    """The rows that others are told apart from, and those whose captions go elsewhere."""
    wanted = {other for aside in judged.aside.values() if (other := aside.other) is not None}
    wanted |= {*judged.near.values(), *judged.leaks.values(), *judged.heirs}
    if not wanted:
        return {}
    return {p: record for p, record in enumerate(rows.read_records(raw)) if p in wanted}


def _writer(staged: Path, name: str) -> folders.JsonlWriter:
    return folders.JsonlWriter(staged / f"{name}.jsonl")
