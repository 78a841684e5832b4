"""A prepared folder reads as one array a split, whatever its files, and is checked when opened."""

import multiprocessing
import pickle
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data import folders
from tasks.data.prepared import Pixels, PreparedDataset, PreparedError

SIDE = 6
SIZES = [3, 3, 1]
COUNT = sum(SIZES)
PORTRAIT = {"width": 30, "height": 40}
SOURCES = ["csv", "feedback", "csv", "scenes", "feedback", "csv", "csv"]


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def write_shards(folder: Path, sizes: list[int]) -> np.ndarray:
    whole = noise(sum(sizes))
    for number, part in enumerate(np.split(whole, np.cumsum(sizes)[:-1])):
        np.save(folder / f"val-{number:05d}.npy", part)
    return whole


@pytest.fixture
def folder(tmp_path) -> Path:
    write_shards(tmp_path, SIZES)
    folders.write_jsonl(
        tmp_path / "val.jsonl",
        [
            {"image_id": f"i{n}", "references": [f"a {n}", "b"], "source": source}
            | (PORTRAIT if n == 4 else {})  # older datasets don't say
            for n, source in enumerate(SOURCES)
        ],
    )
    card = {"image_size": SIDE, "splits": {"val": {"images": COUNT, "captions": 2 * COUNT}}}
    folders.write_json(tmp_path / "dataset.json", {**card, "digest": "0"})
    return tmp_path


PLACES = st.integers(-COUNT, COUNT - 1)
LIST = st.lists(PLACES, max_size=20)
INDICES = st.one_of(
    PLACES,
    st.slices(COUNT),
    LIST,
    LIST.map(lambda places: np.array(places, dtype=np.int64)),
    PLACES.map(np.int64),
)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Pixels:
    folder = tmp_path_factory.mktemp("indexed")
    write_shards(folder, SIZES)
    return Pixels(sorted(folder.iterdir()), SIDE)


@given(index=INDICES)
@settings(max_examples=100, deadline=None)
def test_pixels_are_indexed_as_one_array_would_be(pixels, index):
    whole = noise(COUNT)
    assert (pixels.shape, pixels.dtype, len(pixels)) == (whole.shape, whole.dtype, COUNT)
    found = pixels[index]
    np.testing.assert_array_equal(found, whole[index], strict=True)
    found[...] = 0  # a copy
    np.testing.assert_array_equal(pixels[:], whole)
    np.testing.assert_array_equal(list(pixels), whole)


def test_what_is_not_there_is_an_index_error_and_nothing_can_be_written(folder):
    pixels = PreparedDataset.open(folder).split("val").pixels
    for index in (COUNT, -COUNT - 1, [0, COUNT]):
        with pytest.raises(IndexError):
            pixels[index]
    with pytest.raises(TypeError):
        pixels[0] = 0


def test_a_split_has_its_lists_and_pixels_in_step(folder):
    split = PreparedDataset.open(folder).split("val")
    assert len(split) == len(split.pixels) == COUNT
    assert split.image_ids == [f"i{n}" for n in range(COUNT)]
    assert split.references[3] == ["a 3", "b"]
    assert split.sources == SOURCES
    assert split.sizes == [(0, 0)] * 4 + [(30, 40)] + [(0, 0)] * 2
    np.testing.assert_array_equal(split.pixels[:], noise(COUNT))


def test_where_selects_by_source_with_everything_in_step(folder):
    split = PreparedDataset.open(folder).split("val")
    only = split.where(source="feedback")
    assert (only.image_ids, only.references) == (["i1", "i4"], [["a 1", "b"], ["a 4", "b"]])
    assert only.sizes == [(0, 0), (30, 40)]
    np.testing.assert_array_equal(only.pixels[:], split.pixels[[1, 4]])
    rest = split.where(exclude_source="feedback")
    assert rest.sources == ["csv", "csv", "scenes", "csv", "csv"]
    np.testing.assert_array_equal(rest.pixels[:], split.pixels[[0, 2, 3, 5, 6]])
    np.testing.assert_array_equal(rest.where(source="scenes").pixels[0], split.pixels[3])
    assert split.where() is split
    nothing = split.where(source="coco")
    assert len(nothing) == 0
    assert nothing.pixels[:].shape == (0, SIDE, SIDE, 3)


def test_where_reads_no_pixels(folder):
    split = PreparedDataset.open(folder).split("val")
    for shard in folder.glob("*.npy"):
        shard.unlink()
    chosen = split.where(source="csv")
    assert chosen.pixels.shape == (4, SIDE, SIDE, 3)
    with pytest.raises(PreparedError, match="prepare it again"):
        chosen.pixels[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_read_what_their_parent_has_open(folder, start):
    split = PreparedDataset.open(folder).split("val").where(exclude_source="scenes")
    expected = split.pixels[:]
    batches = [[5, 0], [3], [1, 2, 4]]
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(2, context) as workers:
        found = list(workers.map(split.pixels.__getitem__, batches))
    for batch, images in zip(batches, found, strict=True):
        np.testing.assert_array_equal(images, expected[batch])


def test_pickled_pixels_leave_the_bytes_on_the_disk(tmp_path):
    write_shards(tmp_path, [1000])
    pixels = Pixels(sorted(tmp_path.iterdir()), SIDE)
    first = pixels[[1, 2]]
    data = pickle.dumps(pixels)
    assert len(data) < 1000 * 3 * SIDE**2 / 5
    np.testing.assert_array_equal(pickle.loads(data)[[1, 2]], first)


def test_more_shards_than_a_process_may_have_files_open(tmp_path):
    whole = write_shards(tmp_path, [1] * 600)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        pixels = Pixels(sorted(tmp_path.iterdir()), SIDE)
        np.testing.assert_array_equal(pixels[:], whole)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_opening_what_is_no_prepared_dataset_says_what_to_do(tmp_path, folder):
    with pytest.raises(PreparedError, match="run prepare, or restore it"):
        PreparedDataset.open(tmp_path / "nowhere")
    with pytest.raises(PreparedError, match="no split named 'dev'; there are val"):
        PreparedDataset.open(folder).split("dev")


def lose_rows(folder: Path) -> None:
    (folder / "val.jsonl").write_text("")


def lose_a_shard(folder: Path) -> None:
    (folder / "val-00001.npy").unlink()


def cut_a_shard(folder: Path) -> None:
    path = folder / "val-00001.npy"
    path.write_bytes(path.read_bytes()[:-1])


def empty_a_shard(folder: Path) -> None:
    (folder / "val-00001.npy").write_bytes(b"")


def other_pixels(folder: Path) -> None:
    np.save(folder / "val-00001.npy", np.zeros((3, SIDE, SIDE + 1, 3), np.uint8))


@pytest.mark.parametrize(
    "damage", [lose_rows, lose_a_shard, cut_a_shard, empty_a_shard, other_pixels]
)
def test_a_split_that_does_not_fit_its_card_is_refused(folder, damage):
    damage(folder)
    with pytest.raises(PreparedError, match="prepare it again"):
        PreparedDataset.open(folder).split("val")
