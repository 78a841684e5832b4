"""What readers of caption files share: the folder of the images, and rows gathered by image."""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from configs.schema import CocoSource, FlickrTokenSource, KarpathySource, TableSource
from tasks.data.readers.places import image_names, parent, resolved, within
from tasks.data.readers.text import cut, is_text
from tasks.data.rows import Fault, Row


class Folder:
    """The folder of a caption file's images: makes rows of names and keeps what was named."""

    def __init__(
        self, source: TableSource | FlickrTokenSource | CocoSource | KarpathySource
    ) -> None:
        place = source.images or parent(source.captions)
        self.place = resolved(place)
        self.file = str(source.captions).rpartition("/")[2]
        self._whole = [f"{self.place}/"]  # how a name starts that is a whole path or URL
        if not isinstance(place, str):
            self._whole.append(f"{place.absolute()}/")
        self._format = source.format
        self._named: set[str] = set()

    def row(self, name: str, references: tuple[str, ...], split: str | None, where: str) -> Row:
        """The row of an image by its name; its id is the normalised name within the folder."""
        clean = name.strip().replace("\\", "/")
        for whole in self._whole:
            clean = clean.removeprefix(whole)
        image_id = clean if "://" in clean else posixpath.normpath(clean)
        image = within(self.place, image_id)
        if isinstance(image, Fault):
            image = Fault(image.rule, f"{self.file}, {where}: {image.detail}")
        self._named.add(image_id)
        return Row(image_id, image, references, split, self._format)

    def malformed(
        self, entry: int | str, where: str, problem: str, told: Iterable[object], raw: object
    ) -> Row:
        """The row of what names no image: with the captions it tells, else with its own text."""
        fault = Fault("malformed_row", f"{self.file}, {where}: {problem}")
        captions = tuple(value.strip() for value in told if is_text(value) and value.strip())
        return Row(f"{self.file}:{entry}", fault, captions or (cut(raw),), None, self._format)

    def uncaptioned(self) -> Iterator[Row]:
        """The images of the folder that no row has named."""
        for name in image_names(self.place):
            if name not in self._named:
                yield Row(name, within(self.place, name), (), None, self._format)


def gathered(rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """One row an image and split, with the references of all its rows; `rows` is called twice."""
    left = Counter((row.image_id, row.split) for row in rows())
    held: dict[tuple[str, str | None], list[str]] = {}
    for row in rows():
        key = (row.image_id, row.split)
        held.setdefault(key, []).extend(row.references)
        left[key] -= 1
        if not left[key]:
            yield replace(row, references=tuple(held.pop(key)))
