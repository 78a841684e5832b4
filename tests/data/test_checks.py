"""Checks find every kind of dirt, lose nothing, and say why they refuse."""

import io
import json
import struct
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.schema import ChecksConfig, CsvSource, ScenesSource
from tasks.data import checks
from tasks.data.raw import Record, image_path, ingest, read_records, write_dataset

LAX = ChecksConfig(max_quarantined_share=1.0, min_images=1)


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 100 megapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


DIRT = {
    "missing.jpg": (None, "missing"),
    "empty.jpg": (b"", "empty"),
    "page.jpg": (b"<html>not found</html>", "unsupported_format"),
    "cut.jpg": (picture(400, 300)[:600], "undecodable"),
    "bomb.png": (bomb(), "too_many_pixels"),
    "tiny.png": (picture(8, 8, kind="PNG"), "too_small"),
    "strip.png": (picture(400, 40, kind="PNG"), "extreme_aspect"),
}


def test_every_kind_of_dirt_is_found_by_name_and_the_good_image_stays(tmp_path, write_csv):
    images = {name: (data, ["A dog runs ."]) for name, (data, _) in DIRT.items()}
    raw = ingest([write_csv({**images, "good.jpg": (picture(), ["A dog runs ."])})], tmp_path / "r")
    report = checks.run(raw, LAX, tmp_path / "v")
    assert {f.record.image_id: f.rule for f in report.quarantined} == {
        name: rule for name, (_, rule) in DIRT.items()
    }
    assert [r.image_id for r in read_records(report.accepted(LAX))] == ["good.jpg"]
    lines = (report.dataset.path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["rule"] for line in lines] == [rule for _, rule in DIRT.values()]


def test_a_file_that_changed_after_ingest_is_found(tmp_path, write_csv):
    source = write_csv({"a.jpg": (picture(), ["A dog runs ."])})
    raw = ingest([source], tmp_path / "r")
    (source.images / "a.jpg").write_bytes(picture(shade=9))
    [finding] = checks.run(raw, LAX, tmp_path / "v").quarantined
    assert finding.rule == "changed"


def test_bad_captions_go_and_the_image_stays_while_one_is_left(tmp_path, write_csv):
    captions = ["A dog runs .", "", "dog", "a  DOG runs .", "word " * 61, "A cat sits ."]
    source = write_csv({"a.jpg": (picture(), captions), "b.jpg": (picture(shade=1), ["dog", ""])})
    report = checks.run(ingest([source], tmp_path / "r"), LAX, tmp_path / "v")
    [record] = read_records(report.dataset)
    assert record.references == ("A dog runs .", "A cat sits .")
    only_captions, whole = report.quarantined
    assert only_captions.only_captions
    assert len(only_captions.record.references) == 4
    assert (whole.rule, whole.record.image_id) == ("no_caption", "b.jpg")


def test_a_copy_gives_its_captions_to_the_first_and_does_not_count_as_dirt(tmp_path, write_csv):
    source = write_csv(
        {
            "a.jpg": (picture(), ["A dog runs ."]),
            "copy.jpg": (picture(), ["A dog runs .", "A brown dog ."]),
        }
    )
    report = checks.run(ingest([source], tmp_path / "r"), LAX, tmp_path / "v")
    [record] = read_records(report.accepted(ChecksConfig(max_quarantined_share=0.0, min_images=1)))
    assert (record.image_id, record.references) == ("a.jpg", ("A dog runs .", "A brown dog ."))
    assert (report.images_read, report.captions_read) == (2, 3)


def test_another_image_under_the_same_id_is_set_aside(tmp_path, write_csv):
    one = write_csv({"a.jpg": (picture(), ["A dog runs ."])}, at="one")
    two = write_csv({"a.jpg": (picture(shade=1), ["A cat sits ."])}, at="two")
    report = checks.run(ingest([one, two], tmp_path / "r"), LAX, tmp_path / "v")
    assert [f.rule for f in report.quarantined] == ["id_taken"]


PNGS = [picture(shade=shade, kind="PNG") for shade in range(4)] + [b"", picture(8, 8, kind="PNG")]
CAPTIONS = ["A dog runs .", "a dog runs .", "A cat sits .", "dog", "", "Two men ."]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"),
            st.integers(0, len(PNGS)),
            st.lists(st.sampled_from(CAPTIONS), max_size=5),
        ),
        max_size=8,
    )
)
def test_accepted_and_quarantined_together_are_what_was_read(rows):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = ingest_rows(folder, rows)
        report = checks.run(raw, LAX, folder / "v")
        assert report.images_read == len(rows)
        assert report.captions_read == sum(len(captions) for *_, captions in rows)
        read = Counter(caption for *_, captions in rows for caption in captions)
        kept = Counter(c for r in read_records(report.dataset) for c in r.references)
        aside = Counter(c for f in report.quarantined for c in f.record.references)
        assert kept + aside == read
        assert len({r.sha256 for r in read_records(report.dataset)}) == report.dataset.num_images
        assert report.markdown()


def ingest_rows(folder: Path, rows):
    """A raw dataset of hand-made rows; an image index past the end is a missing file."""
    from tasks.data.folders import sha256, staging

    records = []
    for number, (image_id, picked, captions) in enumerate(rows):
        path, sha = folder / f"{number}.png", None
        if picked < len(PNGS):
            path.write_bytes(PNGS[picked])
            sha = sha256(PNGS[picked])
        records.append(Record(image_id, str(path), sha, tuple(captions), None, "csv"))
    with staging(folder / "r") as staged:
        return write_dataset(staged, records, folder / "r")


def test_too_much_dirt_is_refused_with_rule_count_and_examples(tmp_path, write_csv):
    images = {f"{i}.jpg": (picture(shade=i), ["A dog runs ."]) for i in range(6)}
    images |= {f"bad{i}.jpg": (b"", ["A dog runs ."]) for i in range(4)}
    raw = ingest([write_csv(images)], tmp_path / "r")
    config = ChecksConfig(min_images=1)
    with pytest.raises(checks.DatasetRejected) as error:
        checks.run(raw, config, tmp_path / "v").accepted(config)
    for told in ("max_quarantined_share", "4 of 10", "20%", "empty: 4", "bad0.jpg"):
        assert told in str(error.value)


def test_too_few_images_are_refused(tmp_path, write_csv):
    raw = ingest([write_csv({"a.jpg": (picture(), ["A dog runs ."])})], tmp_path / "r")
    with pytest.raises(checks.DatasetRejected, match=r"min_images: 1 of 1 .* at least 20"):
        checks.run(raw, ChecksConfig(), tmp_path / "v").accepted(ChecksConfig())


def test_the_validated_folder_stands_without_the_raw_one_and_scenes_pass_whole(tmp_path):
    import shutil

    raw = ingest([ScenesSource(format="scenes", count=25)], tmp_path / "r")
    dataset = checks.run(raw, ChecksConfig(), tmp_path / "v").accepted(ChecksConfig())
    shutil.rmtree(raw.path)
    assert dataset.num_images == 25
    for record in read_records(dataset):
        Image.open(io.BytesIO(image_path(dataset, record).read_bytes())).load()


def test_the_report_shows_counts_and_pictures_and_lets_no_caption_break_the_table(
    tmp_path, write_csv
):
    source = write_csv({"a.jpg": (picture(), ["A <b>dog</b> | runs [x](y)"])})
    report = checks.run(ingest([source], tmp_path / "r"), LAX, tmp_path / "v")
    text = report.markdown()
    assert "| images | 1 | 1 | 0 |" in text
    assert "data:image/jpeg;base64," in text
    assert "A &lt;b&gt;dog&lt;/b&gt; &#124; runs &#91;x](y)" in text


def test_the_real_photos_and_captions_all_pass(tmp_path, photos):
    source = CsvSource(format="csv", images=photos / "images", captions=photos / "captions.txt")
    report = checks.run(ingest([source], tmp_path / "r"), ChecksConfig(), tmp_path / "v")
    dataset = report.accepted(ChecksConfig())
    assert (report.images_read, report.captions_read) == (1000, 5000)
    assert (dataset.num_images, dataset.num_captions) == (1000, 5000)
    assert not report.quarantined
