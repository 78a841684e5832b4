"""What sources hold that their own keys don't tell, so that a cache knows when to read again."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from configs.schema import AutoSource, CaptionFileSource, Place, Source
from tasks.data.readers import places
from tasks.data.readers.detect import detect


def contents(sources: Sequence[Source]) -> list[Path | str]:
    """The folders that sources leave to the default, and fingerprints of what is remote."""
    found: list[Path | str] = []
    for given in sources:
        source = detect(given) if isinstance(given, AutoSource) else given
        if isinstance(source, CaptionFileSource) and source.images is None:
            found.append(_content(places.parent(source.captions)))
        for _, value in source:
            found += [_content(url) for url in _urls(value)]
    return found


def _content(place: Place) -> Path | str:
    return place if isinstance(place, Path) else places.fingerprint(place)


def _urls(value: object) -> Iterable[str]:
    values = value if isinstance(value, tuple) else (value,)
    return (one for one in values if isinstance(one, str) and "://" in one)
