"""Validate: look at every row in parallel, judge the dataset as a whole, write what stays and
what does not. A row is either written or set aside, and so is a caption: nothing is lost."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs.schema import ChecksConfig, SplitsConfig
from tasks.data import folders, records
from tasks.data.checks.inspection import Inspection, inspect_part
from tasks.data.checks.judgement import judge
from tasks.data.checks.sorting import Sorting
from tasks.data.checks.verdict import DatasetRejected, verdict
from tasks.data.parallel import Mapper, on_threads
from tasks.data.profile import Profile
from tasks.data.report import page
from tasks.data.report.facts import Counts, Facts
from tasks.refs import DatasetRef

log = logging.getLogger(__name__)

_PART = 500


@dataclass(frozen=True)
class Report:
    """What the checks found. `dataset` is the folder of what passed, with the report in it."""

    raw: DatasetRef
    dataset: DatasetRef
    facts: Facts

    @property
    def page(self) -> Path:
        return self.dataset.path / "report.html"

    def accepted(self) -> DatasetRef:
        """The validated dataset, or DatasetRejected with the reasons."""
        if self.facts.verdict is not None:
            raise DatasetRejected(f"{self.facts.verdict} The report: {self.page}")
        return self.dataset


def run(
    raw: DatasetRef,
    config: ChecksConfig,
    shares: SplitsConfig,
    seed: int,
    out: Path,
    *,
    name: str,
    mapper: Mapper = on_threads,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Check `raw`, assign splits, and write `out/<digest>/` with `rows.jsonl` of what stays,
    `quarantine.jsonl` and `notes.jsonl` with reasons, and the report.

    `name` says which dataset's earlier version this one is compared with.
    """
    parts = records.parts(raw, _PART)
    looked = mapper(partial(inspect_part, raw=raw, config=config), parts)
    found = Inspection.joined(_tracked(looked, len(parts), progress), raw.num_images)
    judged = judge(found, config, shares, seed)
    with folders.staging(out) as staged, Sorting(raw, staged, found, judged, config) as sorting:
        sorting.run()
        dataset = sorting.publish(out)
    facts = _facts(raw, sorting, dataset, config, out.parent / "profiles" / f"{name}.json")
    page.write(facts, dataset.path)
    log.info(
        "accepted %d of %d images, %d of %d captions",
        *(facts.accepted.images, facts.read.images, facts.accepted.captions, facts.read.captions),
    )
    return Report(raw, dataset, facts)


def _tracked(
    results: Iterable[Inspection], total: int, progress: Callable[[float], None] | None
) -> Iterator[Inspection]:
    for done, result in enumerate(results, 1):
        if progress:
            progress(done / total)
        yield result


def _facts(
    raw: DatasetRef, sorting: Sorting, dataset: DatasetRef, config: ChecksConfig, history: Path
) -> Facts:
    read = Counts(raw.num_images, raw.num_captions)
    splits = {name: count for name, count in sorting.splits.items() if count or name != "golden"}
    decided = verdict(read, sorting, config)
    profile = sorting.profile()
    return Facts(
        name=history.stem,
        digest=dataset.digest,
        verdict=decided,
        read=read,
        accepted=sorting.accepted,
        quarantined=dict(sorting.quarantined.most_common()),
        noted=dict(sorting.noted.most_common()),
        examples={rule: tuple(examples) for rule, examples in sorting.examples.items()},
        splits=splits,
        leaks=sorting.num_leaks,
        leak_pairs=tuple(sorting.leak_pairs),
        clusters=tuple(tuple(group) for group in sorting.clusters.values()),
        gallery=tuple(sorting.gallery),
        profile=profile,
        previous=_previous(history, dataset.digest, profile if decided is None else None),
    )


def _previous(history: Path, digest: str, accepted: Profile | None) -> Profile | None:
    """The profile of the version before this one; an accepted one is remembered for the next.

    A version that is validated again is compared with the same predecessor as the first time.
    """
    known = json.loads(history.read_text(encoding="utf-8")) if history.is_file() else {}
    before = known.get("before") if known.get("digest") == digest else known.get("profile")
    if accepted is not None:
        history.parent.mkdir(parents=True, exist_ok=True)
        folders.write_json(
            history, {"digest": digest, "profile": accepted.to_json(), "before": before}
        )
    return Profile.from_json(before) if before else None
