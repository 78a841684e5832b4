"""Whatever `datasets` loads: by its name on the hub, or from a folder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import HfSource, Place
from tasks.data.readers import places
from tasks.data.readers.captions import caption_names, captions_of
from tasks.data.readers.tables import cut, is_text
from tasks.data.rows import Fault, Row, SourceError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in its folder


def read_hf(source: HfSource) -> Iterator[Row]:
    """All rows of all splits, or of `splits`; nothing is decoded, and little of it is in memory.

    A saved dataset is mapped, any other one streamed. Splits go by their names, or by a column;
    a lone `train` is what `datasets` calls a dataset without splits, so it is no hint.
    """
    found = _load(source)
    unknown = set(source.splits) - set(found)
    if unknown or not found:
        raise SourceError(
            f"{source.dataset}: no split {', '.join(sorted(unknown)) or 'at all'}; "
            f"data.source.splits may name {', '.join(found)}."
        )
    split_less = list(found) == ["train"]
    for name in source.splits or found:
        hint = None if split_less else places.split_of(name)
        yield from _rows(found[name], name, hint, source)


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
    if isinstance(source.dataset, Path):
        return source.dataset.resolve() if source.dataset.is_dir() else None
    return source.dataset.rstrip("/")


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
    with _loading(source):  # a stream of JSON knows its columns only by its first record
        there = dataset.column_names or list(next(iter(dataset), {}))
    image, captions = _columns(dataset, there, source)
    own_split = source.columns.split or ("split" if "split" in there else None)
    for index, record in enumerate(_undecoded(dataset, image, captions, own_split, source)):
        image_id = f"{split}/{index}"
        found = _image(record[image], image_id, _root(source))
        references, problem = captions_of(record, captions)
        if problem and not isinstance(found, Fault):
            found = Fault("malformed_row", f"{image_id}: {problem}")
        if isinstance(found, Fault):
            references = references or ("",)
        told = record[own_split] if own_split else None
        yield Row(image_id, found, references, cut(told) if told else hint, source.format)


def _undecoded(
    dataset: "Dataset | IterableDataset",
    image: str,
    captions: Sequence[str],
    split: str | None,
    source: HfSource,
) -> Iterator[dict[str, Any]]:
    """The records with these columns alone: to decode a broken picture would end the stream."""
    from datasets import Image

    with _loading(source):
        dataset = dataset.select_columns([image, *captions, *([split] if split else [])])
        if dataset.features and isinstance(dataset.features[image], Image):
            dataset = dataset.cast_column(image, Image(decode=False))
        yield from dataset


def _columns(
    dataset: "Dataset | IterableDataset", there: list[str], source: HfSource
) -> tuple[str, tuple[str, ...]]:
    """The image's column, by its type unless it is named, and those of the captions."""
    from datasets import Image

    pictures = [name for name, kind in (dataset.features or {}).items() if isinstance(kind, Image)]
    images = [source.columns.image] if source.columns.image else pictures
    captions = caption_names(there, source.columns)
    for key, names in (("image", images[:1]), ("caption", captions)):
        if not names or not set(names) <= set(there):
            raise SourceError(
                f"{source.dataset}: no {key} column {', '.join(map(repr, names)) or 'that I know'};"
                f" its columns are {', '.join(map(repr, there))}. Set data.source.columns.{key}."
            )
    return images[0], captions


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
