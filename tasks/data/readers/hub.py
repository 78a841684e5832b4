"""Whatever `datasets` loads: by its name on the hub, or from a folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import HfSource, Place
from tasks.data.readers import places
from tasks.data.readers.columns import Layout, layout_of
from tasks.data.readers.records import captions_of, record_row
from tasks.data.readers.text import cut, is_text
from tasks.data.rows import Fault, Row, SourceError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in its folder


def read_hf(source: HfSource) -> Iterator[Row]:
    """All rows of all splits, or of `splits`; nothing is decoded, and little of it is in memory.

    A saved dataset is mapped, any other one streamed. Splits go by a column, else by their names.
    """
    found = _load(source)
    unknown = set(source.splits) - set(found)
    if unknown or not found:
        raise SourceError(
            f"{source.dataset}: no split {', '.join(sorted(unknown)) or 'at all'}; "
            f"data.source.splits may name {', '.join(found)}."
        )
    hints = places.split_hints(found)
    for name in source.splits or found:
        yield from _rows(found[name], name, hints[name], source)


def _load(source: HfSource) -> Mapping[str, "Dataset | IterableDataset"]:
    """Splits by name, in the dataset's order."""
    import datasets

    place = _root(source) or source.dataset
    with _loading(source):
        if _is_saved(place):
            saved = datasets.load_from_disk(str(place))
            return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        if isinstance(place, str):
            raise FileNotFoundError("at a URL it reads only what save_to_disk wrote.")
        return datasets.load_dataset(
            str(place), name=source.subset, revision=source.revision, streaming=True
        )


def _root(source: HfSource) -> Place | None:
    """The dataset's folder, here or at a URL; None for a name on the hub."""
    if isinstance(source.dataset, Path) and not source.dataset.is_dir():
        return None
    return places.resolved(source.dataset)


def _is_saved(place: Place) -> bool:
    fs, path = places.file_system(place)
    return any(fs.exists(f"{path}/{name}") for name in SAVED)


@contextmanager
def _loading(source: HfSource) -> Iterator[None]:
    """What `datasets` raises, as a SourceError with the fix."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, DatasetsError) as error:
        raise SourceError(
            f"{source.dataset}: datasets can't read it: {error} Correct data.source.dataset, "
            "subset or revision; without a network, name a folder that save_to_disk wrote."
        ) from error


def _rows(
    dataset: "Dataset | IterableDataset", split: str, hint: str | None, source: HfSource
) -> Iterator[Row]:
    root = _root(source)
    with _loading(source):  # a stream of JSON knows its columns only by its first record
        there = dataset.column_names or list(next(iter(dataset), {}))
    layout = _layout(dataset, there, source)
    for index, record in enumerate(_undecoded(dataset, layout, source)):
        image_id = f"{split}/{index}"
        image = _image(record[layout.image], image_id, root)
        references, problem = captions_of(record, layout.captions, layout.long)
        told = record[layout.split] if layout.split else None
        own_split = cut(told) if told else hint
        yield record_row(image_id, image, references, problem, own_split, source.format)


def _layout(dataset: "Dataset | IterableDataset", there: list[str], source: HfSource) -> Layout:
    """The columns that the config names; else the image's is known by its type first."""
    from datasets import Image

    pictures = [name for name, kind in (dataset.features or {}).items() if isinstance(kind, Image)]
    image = source.columns.image or next(iter(pictures), None)
    columns = source.columns.model_copy(update={"image": image})
    return layout_of(source.dataset, dict.fromkeys(there, "text"), columns)


def _undecoded(
    dataset: "Dataset | IterableDataset", layout: Layout, source: HfSource
) -> Iterator[dict[str, Any]]:
    """The records with these columns alone: to decode a broken picture would end the stream."""
    from datasets import Image

    with _loading(source):
        dataset = dataset.select_columns(layout.columns)
        if dataset.features and isinstance(dataset.features[layout.image], Image):
            dataset = dataset.cast_column(layout.image, Image(decode=False))
        yield from dataset


def _image(value: object, where: str, root: Place | None) -> Path | str | bytes | Fault:
    """An image's bytes, or its place: in the dataset's folder, or in its repository on the hub."""
    data, name = value, value
    if isinstance(value, dict):
        data, name = value.get("bytes"), value.get("path")
    if isinstance(data, bytes):
        return data
    if not is_text(name) or not name:
        return Fault("missing", f"{where}: the row has no image")
    container = name.rpartition("::")[2]  # zip://a.jpg::/folder/photos.zip
    if container.startswith(("hf://", f"{root}/" if isinstance(root, str) else "hf://")):
        return name
    if root is None:
        return Fault("outside_folder", f"{where}: {name!r} is not in the dataset")
    place = places.within(root, container)
    return place if isinstance(place, Fault) or container == name else name
