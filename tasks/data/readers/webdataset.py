"""WebDataset: samples are runs of members of a tar, streamed from wherever the shard lies."""

import json
import posixpath
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from lzma import LZMAError

from configs.schema import Columns, Place, WebDatasetSource
from tasks.data.readers import places
from tasks.data.readers.columns import caption_names
from tasks.data.readers.records import captions_of, record_row
from tasks.data.readers.text import cut
from tasks.data.rows import Fault, Row, SourceError

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_SAMPLE_BYTES = 200_000_000
_READ = (*places.IMAGE_SUFFIXES, ".txt", ".json")


@dataclass
class _Sample:
    """Members with one key, by their extension; None for what nobody reads."""

    key: str
    members: dict[str, bytes | Fault | None] = field(default_factory=dict)
    size_bytes: int = 0


class _Header(tarfile.TarInfo):
    """A header; tarfile alone takes a damaged or missing one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(str(error)) from error


def read_webdataset(source: WebDatasetSource) -> Iterator[Row]:
    """The samples of all shards as they come, never more than one in memory.

    A sample's captions are its `.txt`, of which the whole is one caption, and those of its
    `.json`; where `columns` names captions, those alone. `columns.image` may name the image's
    extension; every other image of a sample is a row without captions. A split comes from the
    `.json`, else from the shard's name.
    """
    shards = _shards(source.shards)
    hints = places.split_hints(name for name, _ in shards)
    for name, shard in shards:
        for found in _samples(shard):
            if isinstance(found, Fault):
                yield Row(f"{name}/", found, ("",), None, source.format)
            else:
                yield from _rows(name, found, hints[name], source.columns)


def _shards(listed: Sequence[Place]) -> list[tuple[str, Place]]:
    """Names without suffix, and places; a folder's shards are sorted and named from it on."""
    shards: list[tuple[str, Place]] = []
    for place in listed:
        if places.is_folder(place):
            found = [name for name in places.names(place) if name.endswith(SHARD_SUFFIXES)]
            if not found:
                raise SourceError(f"{place}: no .tar in it; correct data.source.shards.")
            shards += [(name, places.inside(place, name)) for name in found]
        else:
            shards.append((posixpath.basename(str(place)), place))
    shards = [(re.sub(r"\.(tar|tar\.gz|tgz)$", "", name), place) for name, place in shards]
    name, count = Counter(name for name, _ in shards).most_common(1)[0]
    if count > 1:
        raise SourceError(
            f"data.source.shards: {count} shards are named {name!r}, so their samples can't be "
            "told apart; name the folder above them instead."
        )
    return shards


def _samples(shard: Place) -> Iterator[_Sample | Fault]:
    """A shard's samples, and a Fault in place of what a cut or damaged shard holds no more."""
    sample: _Sample | None = None
    damage = None
    last = "its start"
    try:
        with (
            places.open_binary(shard) as file,
            tarfile.open(
                fileobj=file, mode="r|*", tarinfo=_Header, encoding="utf-8", errors="replace"
            ) as archive,
        ):
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]
                last = f"{member.name!r} at byte {member.offset}"
                named = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", member.name)
                if member.isdir() or not named:
                    continue
                key, extension = posixpath.normpath(named[1]), named[2].lower()
                if sample is None or key != sample.key or extension in sample.members:
                    if sample:
                        yield sample
                    sample = _Sample(key)
                sample.members[extension] = _content(archive, member, sample)
    except (tarfile.TarError, zlib.error, LZMAError, EOFError, OSError) as error:
        damage = Fault("malformed_row", f"{shard} is cut off or damaged from {last} on: {error}")
    if sample and sample.members:  # it has none if the cut is in its first
        yield sample
    if damage:
        yield damage


def _content(
    archive: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample
) -> bytes | Fault | None:
    if not member.name.lower().endswith(_READ):
        return None
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        return Fault("malformed_row", f"{member.name!r} is no plain file of the shard")
    sample.size_bytes += member.size
    if sample.size_bytes > MAX_SAMPLE_BYTES:
        limit = f"{MAX_SAMPLE_BYTES:,} bytes, more than which a sample may not have"
        return Fault("malformed_row", f"{member.name!r} goes beyond {limit}")
    return file.read()


def _rows(shard: str, sample: _Sample, hint: str | None, columns: Columns) -> Iterator[Row]:
    """The sample's image with its captions, and a row for every image beside it."""
    image_id = f"{shard}/{sample.key}"
    images = [name for name in sample.members if places.is_image(f".{name}")]
    if columns.image:
        own = columns.image.lower().removeprefix(".")
    else:  # `key.depth.png` may come before `key.png`
        own = min(images, key=lambda name: name.count("."), default="")
    captions, split, problem = _captions(sample, columns)
    image = sample.members.get(own)
    if image is None:
        image = Fault("missing", f"{image_id}: the sample has no image")
    split = split or hint
    yield record_row(image_id, image, captions, problem, split, "webdataset")
    for name in images:
        beside = sample.members[name]
        if name != own and isinstance(beside, bytes):
            yield Row(f"{image_id}.{name}", beside, (), split, "webdataset")


def _captions(sample: _Sample, columns: Columns) -> tuple[tuple[str, ...], str | None, str]:
    """What a sample's `.json` and `.txt` tell: captions, split, what is wrong with them."""
    told: tuple[str, ...] = ()
    split, problem = None, ""
    described = sample.members.get("json")
    try:
        if isinstance(described, bytes):
            record = json.loads(described)
            if not isinstance(record, dict):
                return (), None, "its .json is no object"
            names = caption_names(record, columns)
            told, problem = captions_of(record, names, long=len(names) == 1)
            split = record.get(columns.split or "split")
        written = sample.members.get("txt")
        if isinstance(written, bytes) and not (columns.caption or columns.captions):
            caption = written.decode("utf-8-sig").strip()
            told = told if caption in told else (*told, caption)
    except (ValueError, RecursionError) as error:
        return told, None, f"its captions can't be read: {error}"
    faults = [one.detail for one in (described, written) if isinstance(one, Fault)]
    return told, cut(split) if split else None, problem or next(iter(faults), "")
