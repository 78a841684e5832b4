"""Which images each slice holds: `test`, `golden`, `current`, and those that the config defines."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from configs.schema import Range, SliceConfig
from tasks.data.prepared import PreparedDataset, Split
from tasks.metrics.tokenize import tokenize


def parts(dataset: PreparedDataset) -> dict[str, Split]:
    """All images to be captioned, each in one part; a part without images is left out.

    `test` is the test split but for feedback, `current` the feedback in it (what production sent
    and people corrected), `golden` the frozen set.
    """
    test = dataset.split("test")
    found = {
        "test": test.where(exclude_source="feedback"),
        "current": test.where(source="feedback"),
    }
    if "golden" in dataset.sizes:
        found["golden"] = dataset.split("golden")
    return {name: split for name, split in found.items() if len(split)}


def chosen(images: Split, slices: Mapping[str, SliceConfig]) -> dict[str, np.ndarray]:
    """The places in `images`, rising, of each slice; a slice may have none."""
    return {
        name: np.flatnonzero(np.logical_and.reduce([*_conditions(images, config)]))
        for name, config in slices.items()
    }


def brightness(images: Split) -> np.ndarray:
    """The mean pixel of every image, 0 black to 1 white, as the service captures it."""
    return np.array([image.mean() for image in images.pixels]) / 255


def _conditions(images: Split, config: SliceConfig) -> Iterator[np.ndarray]:
    """Which images meet each of the conditions given, bool [images]."""
    if config.caption_words:
        lengths = [np.mean([len(tokenize(r)) for r in refs]) for refs in images.references]
        yield _within(np.array(lengths), config.caption_words)
    if config.words:
        phrases = [_spaced(phrase) for phrase in config.words]
        yield np.array([_says(references, phrases) for references in images.references])
    if config.source:
        yield np.isin(images.sources, config.source)
    if config.image_side:
        side = np.array([min(size) for size in images.sizes])
        yield (side > 0) & _within(side, config.image_side)
    if config.brightness:
        yield _within(brightness(images), config.brightness)


def _within(values: np.ndarray, bounds: Range) -> np.ndarray:
    low = -np.inf if bounds.min is None else bounds.min
    high = np.inf if bounds.max is None else bounds.max
    return (low <= values) & (values <= high)


def _says(references: Sequence[str], phrases: Sequence[str]) -> bool:
    captions = [_spaced(reference) for reference in references]
    return any(phrase in caption for caption in captions for phrase in phrases)


def _spaced(text: str) -> str:
    """Its words with a space on both sides of each, so that `cat` is not in `catch`."""
    return f" {' '.join(tokenize(text))} "
