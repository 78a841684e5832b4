"""Prepared data is the validated data, decoded once, under a digest of its content alone."""

import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from bentos.captioner.images import decode, to_pixels
from configs.schema import ChecksConfig, SplitsConfig, TableSource
from configs.settings import ROOT
from tasks.data import folders, raw, shards
from tasks.data.checks import run as checks
from tasks.data.prepared import EmptySplit, PreparedDataset
from tasks.data.records import DatasetWriter, Record
from tasks.data.splits import SPLITS
from tasks.refs import DatasetRef

SIDE = 16
ONE_EACH = ("train", "val", "test")
# Seven shards at SIDE pixels: five of train, one each of the others.
MANY = ["train"] * 2100 + ["val"] * 30 + ["test"] * 40


def validated(folder: Path, splits: Iterable[str], images: list[bytes]) -> DatasetRef:
    """A validated dataset with a row for each split named; the images come round and round."""
    folder.mkdir(parents=True)
    files = [(folder / f"{number}", data) for number, data in enumerate(images)]
    for path, data in files:
        path.write_bytes(data)
    with folders.staging(folder / "v") as staged, DatasetWriter(staged) as writer:
        for number, split in enumerate(splits):
            path, data = files[number % len(files)]
            captions = ("A dog .", "A dog runs .")[: 1 + number % 2]
            sha256 = folders.sha256(data)
            writer.add(Record(f"i{number}", str(path), sha256, captions, split, "csv"))
        return writer.publish(staged, folder / "v")


def noise(seed: int, kind: str = "PNG", width: int = 40, height: int = 30) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> DatasetRef:
    splits = random.Random(0).sample(MANY, len(MANY))
    return validated(tmp_path_factory.mktemp("many") / "d", splits, [noise(i) for i in range(7)])


@pytest.fixture(scope="module")
def whole(many, tmp_path_factory) -> Path:
    """What an undisturbed run makes of `many`."""
    return shards.prepare(many, SIDE, tmp_path_factory.mktemp("whole"), mapper=map).folder


def interrupted_after(count: int) -> Callable[..., Iterator[object]]:
    def mapper(function, items):
        yield from map(function, islice(items, count))
        raise KeyboardInterrupt

    return mapper


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_processes(function, items):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        yield from processes.map(function, items)


def on_two_threads(function, items):
    with ThreadPoolExecutor(2) as threads:
        yield from threads.map(function, items)


@given(
    splits=st.lists(st.sampled_from(SPLITS), max_size=9).map(lambda more: [*ONE_EACH, *more]),
    image_size=st.integers(1, 40),
)
@settings(max_examples=15, deadline=None)
def test_every_image_lies_in_its_split_in_order_decoded_as_it_is_served(
    tmp_path_factory, splits, image_size
):
    folder = tmp_path_factory.mktemp("one")
    kinds = ["PNG", "JPEG", "WEBP", "GIF"]
    images = [
        noise(number, kinds[number % 4], 20 + 30 * number, 90 - 5 * number)
        for number in range(len(splits))
    ]
    prepared = shards.prepare(validated(folder / "d", splits, images), image_size, folder / "out")
    opened = PreparedDataset.open(prepared.folder)
    assert opened.digest == prepared.digest == prepared.folder.name
    assert list(opened.sizes) == [name for name in SPLITS if name in splits]
    assert opened.sizes == prepared.split_sizes
    for name in opened.sizes:
        split = opened.split(name)
        numbers = [number for number, at in enumerate(splits) if at == name]
        assert split.image_ids == [f"i{number}" for number in numbers]
        assert [len(captions) for captions in split.references] == [1 + n % 2 for n in numbers]
        expected = [to_pixels(decode(images[n], side=image_size), image_size) for n in numbers]
        np.testing.assert_array_equal(split.pixels[:], expected)
    assert prepared.num_images == len(splits)
    assert prepared.num_captions == len(splits) + len(splits) // 2


def test_many_shards_hold_every_image_once_in_order(many, whole):
    opened = PreparedDataset.open(whole)
    images = [to_pixels(decode(noise(i), side=SIDE), SIDE) for i in range(7)]
    for name in ONE_EACH:
        split = opened.split(name)
        expected = [images[int(image_id[1:]) % 7] for image_id in split.image_ids]
        np.testing.assert_array_equal(split.pixels[:], expected)
        assert len(list(whole.glob(f"{name}-*.npy"))) == (5 if name == "train" else 1)


@pytest.mark.parametrize("mapper", [shards.on_threads, on_two_threads, in_processes])
def test_the_bytes_are_the_same_whoever_makes_the_shards(many, whole, tmp_path, mapper):
    prepared = shards.prepare(many, SIDE, tmp_path, mapper=mapper)
    assert contents(prepared.folder) == contents(whole)
    assert prepared.shards_reused == 0


def test_the_bytes_are_the_same_elsewhere_and_again(tmp_path):
    images = [picture(shade=shade) for shade in range(3)]
    here, there = (validated(tmp_path / at, ONE_EACH, images) for at in ("a", "b"))
    first = shards.prepare(here, SIDE, tmp_path / "out")
    (first.folder / "train-00000.npy").write_bytes(b"damaged later")
    assert shards.prepare(here, SIDE, tmp_path / "out") == first
    other = shards.prepare(there, SIDE, tmp_path / "elsewhere")
    assert contents(other.folder) == contents(first.folder)


def test_another_image_size_caption_or_picture_is_another_dataset(tmp_path):
    images = [picture(shade=shade) for shade in range(3)]
    datasets = [
        (validated(tmp_path / "a", ONE_EACH, images), SIDE),
        (validated(tmp_path / "b", ONE_EACH, images), SIDE + 1),
        (validated(tmp_path / "c", ["val", "train", "test"], images), SIDE),
        (validated(tmp_path / "d", ONE_EACH, [*images[:2], picture(shade=9)]), SIDE),
        (validated(tmp_path / "e", [*ONE_EACH, "golden"], images), SIDE),
    ]
    digests = {shards.prepare(*dataset, tmp_path / "out").digest for dataset in datasets}
    assert len(digests) == len(datasets)


@pytest.mark.parametrize("finished", [0, 1, 4, 7])
def test_an_interrupted_run_goes_on_where_it_was(many, whole, tmp_path, finished):
    with pytest.raises(KeyboardInterrupt):
        shards.prepare(many, SIDE, tmp_path, mapper=interrupted_after(finished))
    prepared = shards.prepare(many, SIDE, tmp_path)
    assert prepared.shards_reused == finished
    assert contents(prepared.folder) == contents(whole)
    assert list(tmp_path.iterdir()) == [prepared.folder]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("file", ["dataset/train-00001.npy", "train-00001.sha256"])
def test_a_finished_shard_is_trusted_only_while_it_fits_its_digest(
    many, whole, tmp_path, damage, file
):
    with pytest.raises(KeyboardInterrupt):
        shards.prepare(many, SIDE, tmp_path, mapper=interrupted_after(3))
    [work] = tmp_path.iterdir()
    damage(work / file)
    prepared = shards.prepare(many, SIDE, tmp_path, mapper=map)
    assert prepared.shards_reused == 2
    assert contents(prepared.folder) == contents(whole)


def run_in_python(code: str, dataset: DatasetRef, out: Path) -> list[str]:
    """A command that prepares on one thread; `code` follows the imports."""
    imports = (
        "import sys; from pathlib import Path; from tasks.data import shards\n"
        "from tasks.refs import DatasetRef\n"
        "dataset, out = DatasetRef.model_validate_json(sys.argv[1]), Path(sys.argv[2])\n"
    )
    return [sys.executable, "-c", imports + code, dataset.model_dump_json(), str(out)]


def test_after_kill_9_only_the_missing_shards_are_made(tmp_path):
    """Killed amid the third of seven shards: an image in it comes from a pipe, and so never."""
    pictures = [noise(seed) for seed in range(7)]
    images = [pictures[number % 7] for number in range(len(MANY))]
    dataset, held = validated(tmp_path / "d", MANY, images), tmp_path / "d" / "1300"
    held.unlink()
    os.mkfifo(held)
    out = tmp_path / "out"
    code = f"shards.prepare(dataset, {SIDE}, out, mapper=map)"
    running = subprocess.Popen(run_in_python(code, dataset, out), cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list(out.glob(".work-*/train-00002.*.partial")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    [work] = out.iterdir()
    finished = {path.name: path.stat() for path in work.glob("dataset/*.npy")}
    assert finished.keys() == {"train-00000.npy", "train-00001.npy"}
    held.unlink()
    held.write_bytes(images[1300])
    prepared = shards.prepare(dataset, SIDE, out)
    assert prepared.shards_reused == 2
    for name, before in finished.items():
        after = (prepared.folder / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(out.iterdir()) == [prepared.folder]
    undisturbed = shards.prepare(dataset, SIDE, tmp_path / "undisturbed")
    assert contents(prepared.folder) == contents(undisturbed.folder)


def test_two_runs_at_once_make_one_dataset(many, whole, tmp_path):
    with ThreadPoolExecutor(2) as threads:
        runs = list(threads.map(partial(shards.prepare, many, SIDE), [tmp_path] * 2))
    assert [run.digest for run in runs] == [whole.name] * 2
    assert contents(runs[0].folder) == contents(whole)
    assert list(tmp_path.iterdir()) == [runs[0].folder]


def test_a_full_disk_is_told_and_what_was_finished_is_kept(many, whole, tmp_path):
    """On a real small disk, in a mount namespace of its own."""
    small = tmp_path / "small"
    small.mkdir()
    code = f"""
try:
    shards.prepare(dataset, {SIDE}, out, mapper=map)
except shards.DiskFull as error:
    print(error)
import subprocess
subprocess.run(["mount", "-o", "remount,size=30m", out], check=True)
prepared = shards.prepare(dataset, {SIDE}, out, mapper=map)
print(prepared.shards_reused, prepared.digest)
"""
    unshare = ["unshare", "--map-root-user", "--mount"]
    mount = ["sh", "-c", 'mount -t tmpfs -o size=2m none "$0" && exec "$@"', str(small)]
    if subprocess.run([*unshare, *mount, "true"], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    command = [*unshare, *mount, *run_in_python(code, many, small)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    told, done = said.splitlines()
    assert "the disk is full; free some space and prepare again" in told
    reused, digest = done.split()
    assert 1 <= int(reused) < 7
    assert digest == whole.name


@pytest.mark.parametrize("empty", ONE_EACH)
def test_a_split_without_images_is_prepared_but_not_fit_to_train_on(tmp_path, empty):
    splits = [name for name in ONE_EACH if name != empty]
    dataset = validated(tmp_path / "d", splits, [picture()])
    made = shards.prepare(dataset, SIDE, tmp_path / "out")
    assert len(PreparedDataset.open(made.folder).split(empty)) == 0
    with pytest.raises(EmptySplit, match=rf"{empty} 0.*data\.splits") as error:
        made.trainable()
    assert all(f"{name} {int(name != empty)}" in str(error.value) for name in splits)


@pytest.mark.parametrize("happens", [cut, Path.unlink])
def test_an_image_that_changed_since_validation_stops_it(tmp_path, happens):
    dataset = validated(tmp_path / "d", ONE_EACH, [picture(shade=i) for i in range(3)])
    happens(tmp_path / "d" / "1")
    with pytest.raises(shards.ImageChanged, match=r"1: .* since it was validated; ingest"):
        shards.prepare(dataset, SIDE, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_progress_is_the_share_of_images_done(many, tmp_path):
    told: list[float] = []
    shards.prepare(many, SIDE, tmp_path, mapper=map, progress=told.append)
    ends = np.cumsum([512, 512, 512, 512, 52, 30, 40])
    assert told == pytest.approx(ends / len(MANY))


@given(st.integers(1, 10_000))
def test_a_shard_stays_below_64_mib_and_512_images_but_has_one(image_size):
    count = shards.images_per_shard(image_size)
    assert 1 <= count <= 512
    assert count == 1 or count * 3 * image_size**2 <= 64 * 2**20
    assert count == 512 or (count + 1) * 3 * image_size**2 > 64 * 2**20


def test_rows_tell_ids_references_sources_and_sizes(many, whole):
    rows = (whole / "val.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 30
    assert json.loads(rows[0]).keys() == {"image_id", "references", "source", "width", "height"}


def test_the_upright_size_of_a_picture_comes_all_the_way_from_its_file(tmp_path):
    sideways = Image.new("RGB", (80, 50), "red")
    exif = sideways.getexif()
    exif[ExifTags.Base.Orientation] = 6
    data = io.BytesIO()
    sideways.save(data, "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a red picture\n")
    source = TableSource(format="csv", images=tmp_path, captions=tmp_path / "captions.csv")
    found = raw.ingest([source], tmp_path / "raw")
    report = checks.run(
        found, ChecksConfig(), SplitsConfig(val=0.001, test=0.998), 0, tmp_path / "v", name="one"
    )
    made = shards.prepare(report.accepted(), SIDE, tmp_path / "prepared")
    assert PreparedDataset.open(made.folder).split("test").sizes == [(50, 80)]
