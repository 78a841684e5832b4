"""What one look at each row tells: small numbers of fixed size, so that all rows' fit memory."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from configs.schema import Actions, ChecksConfig
from tasks.data import folders
from tasks.data.checks.captions import check
from tasks.data.checks.images import Inspected, inspect
from tasks.data.duplicates import SIGNATURE
from tasks.data.records import Part, Record, image_path, read_part
from tasks.data.rows import Fault
from tasks.data.splits import SPLITS, parse
from tasks.refs import DatasetRef

RULES: tuple[str, ...] = tuple(Actions.model_fields)
# By row: a bit a rule in `notes`; `captions` counts all of them, `good` those that may stay;
# `hint` is the place in SPLITS of the split that the source names, or NO_HINT.
NO_HINT = -1
STATE = np.dtype(
    [
        ("sha256", "S32"),
        ("signature", SIGNATURE),
        ("width", "u4"),
        ("height", "u4"),
        ("notes", "u8"),
        ("captions", "u4"),
        ("good", "u4"),
        ("hint", "i1"),
    ]
)


@dataclass
class Inspection:
    """Rows in the dataset's order. `faults` are of images that can't be used, by place;
    `said` are 64-bit hashes of the good captions, row after row."""

    state: np.ndarray
    said: np.ndarray
    faults: dict[int, Fault] = field(default_factory=dict)

    @classmethod
    def joined(cls, inspections: Iterable["Inspection"], count: int) -> "Inspection":
        """Those of `count` rows in all, each forgotten as the next one comes."""
        whole = cls(np.empty(count, STATE), np.empty(0, np.uint64))
        said = [whole.said]
        start = 0
        for one in inspections:
            whole.faults.update((start + place, fault) for place, fault in one.faults.items())
            whole.state[start : start + len(one.state)] = one.state
            said.append(one.said)
            start += len(one.state)
        assert start == count
        whole.said = np.concatenate(said)
        return whole


def inspect_part(part: Part, raw: DatasetRef, config: ChecksConfig) -> Inspection:
    """Decode every image of a part and read every caption."""
    state = np.zeros(part.count, STATE)
    said: list[int] = []
    faults: dict[int, Fault] = {}
    for place, record in enumerate(read_part(raw, part)):
        row = state[place]
        found = _look(raw, record, config)
        try:
            row["hint"] = SPLITS.index(parse(record.split)) if record.split else NO_HINT
        except ValueError as error:
            found = replace(found, fault=found.fault or Fault("malformed_row", str(error)))
        if found.fault:
            faults[place] = found.fault
        row["sha256"] = bytes.fromhex(record.sha256 or "")
        if found.signature is not None:
            row["signature"] = found.signature
        row["width"], row["height"] = found.width, found.height
        good, bad, noted = sort_captions(record.references, config)
        rules = {*found.notes, *(fault.rule for fault in noted)}
        row["notes"] = sum(1 << RULES.index(rule) for rule in rules)
        row["captions"], row["good"] = len(record.references), len(good)
        said += [caption_key(caption) for caption in good]
        if bad and not good and not found.fault:
            faults[place] = next(iter(bad.values()))
    return Inspection(state, np.array(said, np.uint64), faults)


def sort_captions(
    captions: Sequence[str], config: ChecksConfig, already: Sequence[str] = ()
) -> tuple[list[str], dict[int, Fault], list[Fault]]:
    """The captions that may stay, index -> why for the others, and what is only noted."""
    seen = {folded(caption) for caption in already}
    good: list[str] = []
    bad: dict[int, Fault] = {}
    noted: list[Fault] = []
    for index, caption in enumerate(captions):
        faults = list(check(caption, config))
        if folded(caption) in seen:
            faults.append(Fault("caption_duplicate", f"{caption!r} is given twice"))
        serious = [fault for fault in faults if getattr(config.actions, fault.rule) != "note"]
        if serious:
            bad[index] = serious[0]
        else:
            seen.add(folded(caption))
            good.append(caption)
            noted += faults
    return good, bad, noted


def folded(caption: str) -> str:
    """What two captions have in common that differ in case and spaces only."""
    return " ".join(caption.casefold().split())


def caption_key(caption: str) -> int:
    digest = hashlib.blake2b(folded(caption).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def noted_rules(bits: int) -> list[str]:
    return [rule for index, rule in enumerate(RULES) if bits >> index & 1]


def _look(raw: DatasetRef, record: Record, config: ChecksConfig) -> Inspected:
    if record.fault:
        return _unseen(record.fault)
    path = image_path(raw, record)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return _unseen(Fault("missing", f"no file {record.image}"))
    except OSError as error:
        return _unseen(Fault("unreadable", f"{record.image}: {error.strerror}"))
    if folders.sha256(data) != record.sha256:
        return _unseen(Fault("changed", f"{record.image} is not what it was when ingested"))
    name = record.image if Path(record.image).is_absolute() else record.image_id
    return inspect(data, name, config)


def _unseen(fault: Fault) -> Inspected:
    return Inspected(fault, (), 0, 0, None)
