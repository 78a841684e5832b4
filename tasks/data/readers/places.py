"""Files here and behind fsspec URLs, by one set of words."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from configs.schema import Place
from tasks.data.rows import Fault, SourceError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def file_system(place: Place) -> tuple["AbstractFileSystem", str]:
    """The file system that a place lies on, and its path there; SourceError where there is none."""
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(place, Path):  # as it is: a file here may have `::` in its name
        return LocalFileSystem(), str(place.absolute())
    try:
        fs, path = url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise SourceError(f"{place}: {error}; correct data.source.") from error
    return fs, path


def open_binary(place: Place) -> IO[bytes]:
    """The file at a place; SourceError with the cause where it can't be opened."""
    fs, path = file_system(place)
    with _reached(place):
        return fs.open(path, "rb")


def parent(place: Place) -> Place:
    return place.parent if isinstance(place, Path) else place.rpartition("/")[0]


def inside(folder: Place, name: str) -> Place:
    """A file that was found in a folder; for names from a source, `within`."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def resolved(folder: Place) -> Place:
    """A folder as `within` takes it: without links, or a URL without a slash at its end."""
    return folder.resolve() if isinstance(folder, Path) else folder.rstrip("/")


def within(folder: Place, name: str) -> Place | Fault:
    """Where `name` lies in a `resolved` folder; a Fault if it leads out of it, or nowhere."""
    clean = posixpath.normpath(name.strip().replace("\\", "/"))
    if not name.strip() or clean == ".":
        return Fault("malformed_row", "the image has no name")
    leaves = clean.startswith(("/", "../")) or clean == ".." or "://" in name or "\0" in name
    if isinstance(folder, Path):
        if not leaves or ("\0" not in name and Path(clean).is_relative_to(folder)):
            return folder / clean
    elif not leaves and "::" not in name:  # `::` would chain a second file system to the URL
        return inside(folder, clean)
    return Fault("outside_folder", f"{name!r} is outside the images' folder {folder}")


def is_folder(place: Place) -> bool:
    fs, path = file_system(place)
    with _reached(place):
        return bool(fs.isdir(path))


def names(folder: Place) -> list[str]:
    """Names of all files in a folder and below it, relative to it, sorted; hidden ones left out."""
    fs, path = file_system(folder)
    root = path.rstrip("/") + "/"
    with _reached(folder):
        found = [name.removeprefix(root) for name in fs.find(path)]
    return sorted(name for name in found if "/." not in f"/{name}")


def image_names(folder: Place) -> Iterator[str]:
    """Names of the image files in a folder and below it, relative to it, sorted."""
    return filter(is_image, names(folder))


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def top_folder(name: str) -> str:
    """The uppermost folder in a relative name; "" for a file that lies in none."""
    return name.rpartition("/")[0].partition("/")[0]


def split_hints(names: Iterable[str]) -> dict[str, str | None]:
    """The split that each name tells; None for all where that is `train` for all.

    What has a train split alone is a dataset without splits: taken at its word, nothing would be
    left to validate and test with.
    """
    told = {name: _split_of(name) for name in names}
    return dict.fromkeys(told) if set(told.values()) == {"train"} else told


def _split_of(name: str) -> str | None:
    """The split that a name's words tell (`train2017`, `photos-val`); None for none or several."""
    words = re.split(r"[^a-z]+", name.lower())
    told = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    return told.pop() if len(told) == 1 else None


def fingerprint(place: Place) -> str:
    """What a remote place holds now: names, sizes and checksums of its files."""
    from tasks.data.folders import digest_of

    fs, path = file_system(place)
    fs.invalidate_cache()  # an older listing lacks what was added since
    with _reached(place):
        found = fs.find(path, detail=True)
        return digest_of(
            [[name, info["size"], fs.checksum(name)] for name, info in sorted(found.items())]
        )


@contextmanager
def _reached(place: Place) -> Iterator[None]:
    """What goes wrong on the way to a place, as a SourceError that names it."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise SourceError(f"{place}: no such file or folder; correct data.source.") from error
    except failures(place) as error:
        raise SourceError(f"{place}: can't be read: {error}") from error


def failures(place: Place) -> tuple[type[Exception], ...]:
    """What an unreachable store raises: S3's missing keys and dead endpoints are no OSErrors."""
    if isinstance(place, str) and place.startswith(("s3:", "s3a:")):
        from botocore.exceptions import BotoCoreError

        return OSError, BotoCoreError
    return (OSError,)
