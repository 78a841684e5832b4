"""Prepared data is the validated data, decoded once, under a digest of its content alone."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from bentos.captioner.images import decode, to_pixels
from configs.schema import ChecksConfig, DataConfig, ScenesSource, SplitsConfig
from tasks.data import checks
from tasks.data.folders import sha256, staging
from tasks.data.prepared import EmptySplit, PreparedDataset, PreparedError, prepare
from tasks.data.raw import Record, image_path, ingest, read_records, write_dataset
from tasks.data.splits import SPLITS, assign
from tasks.refs import DatasetRef

SCENES = ScenesSource(format="scenes", count=60, seed=4)
CONFIG = DataConfig(source=SCENES, image_size=48, splits=SplitsConfig(val=0.2, test=0.3))


def validated(folder: Path, *sources) -> DatasetRef:
    raw = ingest(sources or [SCENES], folder / "raw")
    config = ChecksConfig(min_images=1)
    return checks.run(raw, config, folder / "validated").accepted(config)


def test_every_image_is_in_the_split_of_its_hash_with_its_pixels_and_captions(tmp_path):
    dataset = validated(tmp_path)
    prepared = prepare(dataset, CONFIG, 0, tmp_path / "out")
    opened = PreparedDataset.open(prepared.folder)
    by_id = {record.image_id: record for record in read_records(dataset)}
    for name in ("train", "val", "test"):
        split = opened.split(name)
        assert len(split) == prepared.split_sizes[name] == opened.sizes[name] > 0
        assert (split.pixels.dtype, split.pixels.shape[1:]) == (np.uint8, (48, 48, 3))
        for place, image_id in enumerate(split.image_ids):
            record = by_id.pop(image_id)
            assert assign(record.sha256, CONFIG.splits, 0) == name
            assert tuple(split.references[place]) == record.references
            expected = to_pixels(decode(image_path(dataset, record).read_bytes()), 48)
            assert np.array_equal(split.pixels[place], expected)
    assert not by_id


def test_the_digest_is_the_same_elsewhere_and_again_and_with_one_thread(tmp_path, monkeypatch):
    here = prepare(validated(tmp_path / "a"), CONFIG, 0, tmp_path / "a")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 1, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    there = prepare(validated(tmp_path / "b"), CONFIG, 0, tmp_path / "b")
    again = prepare(validated(tmp_path / "a"), CONFIG, 0, tmp_path / "a")
    assert here.digest == there.digest == again.digest
    assert here == again
    for file in here.folder.iterdir():
        assert file.read_bytes() == (there.folder / file.name).read_bytes()


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        (CONFIG.model_copy(update={"image_size": 32}), 0),
        (CONFIG.model_copy(update={"splits": SplitsConfig(val=0.3, test=0.3)}), 0),
        (CONFIG, 1),
    ],
)
def test_another_size_seed_or_share_is_another_dataset(tmp_path, config, seed):
    dataset = validated(tmp_path)
    digests = {prepare(dataset, c, s, tmp_path).digest for c, s in [(CONFIG, 0), (config, seed)]}
    assert len(digests) == 2


def test_adding_data_moves_no_image_to_another_split(tmp_path):
    def places(prepared) -> dict[str, str]:
        opened = PreparedDataset.open(prepared.folder)
        return {i: name for name in opened.sizes for i in opened.split(name).image_ids}

    more = SCENES.model_copy(update={"count": 90})
    before = places(prepare(validated(tmp_path / "a"), CONFIG, 0, tmp_path))
    after = places(prepare(validated(tmp_path / "b", more), CONFIG, 0, tmp_path))
    assert before.items() <= after.items()
    assert len(after) == 90


def test_where_selects_by_source_with_everything_in_step(tmp_path, write_csv):
    source = write_csv({"a.png": (picture(kind="PNG"), ["A dog runs ."])})
    prepared = prepare(validated(tmp_path, source, SCENES), CONFIG, 0, tmp_path)
    opened = PreparedDataset.open(prepared.folder)
    split = next(s for s in map(opened.split, SPLITS) if "a.png" in s.image_ids)
    only = split.where(source="csv")
    assert (only.image_ids, only.references) == (["a.png"], [["A dog runs ."]])
    assert np.array_equal(only.pixels, split.pixels[:1])
    rest = split.where(exclude_source="csv")
    assert set(rest.sources) == {"scenes"}
    assert np.array_equal(rest.pixels, split.pixels[1:])
    assert split.where() is split
    assert len(split.where(source="feedback")) == 0
    assert split.where(source="feedback").pixels.shape == (0, 48, 48, 3)


@pytest.mark.parametrize("empty", SPLITS)
def test_a_split_without_images_stops_it_with_the_counts_and_the_key(tmp_path, empty):
    dataset = hinted(tmp_path, [(name, "csv") for name in SPLITS if name != empty])
    with pytest.raises(EmptySplit, match=rf"{empty} 0.*data\.splits") as error:
        prepare(dataset, CONFIG, 0, tmp_path / "out")
    assert all(f"{name} {int(name != empty)}" in str(error.value) for name in SPLITS)
    assert not (tmp_path / "out").exists()


def hinted(folder: Path, images: list[tuple[str, str]]) -> DatasetRef:
    """A validated dataset with an image for each (split the source says, source)."""
    records = []
    for number, (hint, source) in enumerate(images):
        data = picture(shade=number)
        path = folder / f"{number}.jpg"
        path.write_bytes(data)
        records.append(Record(str(number), str(path), sha256(data), ("A dog .",), hint, source))
    with staging(folder / "v") as staged:
        return write_dataset(staged, records, folder / "v")


def test_the_sources_own_split_and_feedback_are_told(tmp_path):
    dataset = hinted(tmp_path, [("restval", "csv"), ("dev", "csv"), ("test", "feedback")])
    prepared = prepare(dataset, CONFIG, 0, tmp_path / "out")
    assert prepared.split_sizes == {"train": 1, "val": 1, "test": 1}
    assert PreparedDataset.open(prepared.folder).split("test").sources == ["feedback"]


def test_an_image_that_changed_since_validation_stops_it(tmp_path, write_csv):
    source = write_csv({"a.png": (picture(kind="PNG"), ["A dog runs ."])})
    dataset = validated(tmp_path, source, SCENES)
    Image.new("RGB", (64, 64), "red").save(source.images / "a.png")
    with pytest.raises(PreparedError, match="changed since it was validated"):
        prepare(dataset, CONFIG, 0, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_opening_what_is_no_prepared_dataset_says_what_to_do(tmp_path):
    with pytest.raises(PreparedError, match="run prepare, or restore it"):
        PreparedDataset.open(tmp_path)
    opened = PreparedDataset.open(prepare(validated(tmp_path), CONFIG, 0, tmp_path).folder)
    with pytest.raises(PreparedError, match="no split named 'dev'; there are train, val, test"):
        opened.split("dev")
    (opened.folder / "val.jsonl").write_text("")
    with pytest.raises(PreparedError, match="prepare it again"):
        opened.split("val")
