"""Content-addressed folders: written aside, then published under their digest in one step."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON, so that no key order or platform changes it."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return sha256(text.encode())


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A scratch folder on the final ones' file system, gone afterwards unless published."""
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=out))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, final: Path) -> Path:
    """Move a finished folder into place.

    Where the same content is there already, each of its files is replaced by the fresh one:
    that repairs a damaged copy, and readers of the old files keep what they have open.
    """
    try:
        staged.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        for path in staged.rglob("*"):
            if path.is_file():
                target = final / path.relative_to(staged)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    return final


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class JsonlWriter:
    """Writes a line a value and digests the values as they go by, so that none is kept."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._digest = hashlib.sha256()
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, value: Mapping[str, Any], content: Any = None) -> None:
        """`content` is what counts in the digest, where that isn't the value itself."""
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._digest.update(digest_of(value if content is None else content).encode())
        self.count += 1

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The values of a file, a line at a time."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(
        json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
    )
