"""Ingest keeps everything, names it by content and can be run again."""

import shutil

from conftest import picture

from configs.schema import ScenesSource
from tasks.data.folders import sha256, sha256_file
from tasks.data.raw import ingest
from tasks.data.records import image_path, read_records

SCENES = ScenesSource(format="scenes", count=30, seed=2)


def test_rows_are_kept_in_order_with_the_hash_of_their_bytes(tmp_path, write_csv):
    source = write_csv({"b.jpg": (picture(), ["A dog ."]), "a.jpg": (None, ["A cat .", "Gone ."])})
    ref = ingest([source, SCENES], tmp_path / "raw")
    records = list(read_records(ref))
    assert [r.image_id for r in records[:2]] == ["b.jpg", "a.jpg"]
    assert [r.sha256 for r in records[:2]] == [sha256(picture()), None]
    assert (
        (ref.num_images, ref.num_captions)
        == (32, 3 + 30 * 5)
        == (
            len(records),
            sum(len(r.references) for r in records),
        )
    )
    assert all(sha256_file(image_path(ref, r)) == r.sha256 for r in records[2:])


def test_the_digest_is_of_the_content_and_not_of_the_place(tmp_path, write_csv):
    images = {"a.jpg": (picture(), ["A dog ."]), "b.jpg": (picture(shade=1), ["A cat ."])}
    here = ingest([write_csv(images, at="here")], tmp_path / "one")
    there = ingest([write_csv(images, at="there")], tmp_path / "two")
    assert here.digest == there.digest
    images["b.jpg"] = (picture(shade=2), ["A cat ."])
    assert ingest([write_csv(images, at="edited")], tmp_path / "one").digest != here.digest


def test_a_second_run_repairs_the_same_folder_and_leaves_nothing_else(tmp_path):
    first = ingest([SCENES], tmp_path)
    shutil.rmtree(first.path / "images")
    second = ingest([SCENES], tmp_path)
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == [first.digest]
    assert all(sha256_file(image_path(second, r)) == r.sha256 for r in read_records(second))


def test_photos_that_moved_are_found_at_their_new_place(tmp_path, write_csv):
    images = {"a.jpg": (picture(), ["A dog ."])}
    old = write_csv(images, at="old")
    ingest([old], tmp_path / "raw")
    shutil.rmtree(old.images)
    moved = ingest([write_csv(images, at="new")], tmp_path / "raw")
    [record] = read_records(moved)
    assert image_path(moved, record).is_file()
