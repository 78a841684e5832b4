"""The checks lose nothing, tell what is the same as what, and say why they refuse a dataset."""

import io
import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.schema import Actions, ChecksConfig, ScenesSource, SplitsConfig, TableSource
from tasks.data.checks import run as checks
from tasks.data.checks.verdict import DatasetRejected
from tasks.data.folders import read_jsonl, sha256, staging
from tasks.data.raw import ingest
from tasks.data.records import DatasetWriter, Record, image_path, read_records
from tasks.data.rows import Fault

LAX = ChecksConfig(max_quarantined_share=1.0, max_missing_share=1.0)
SHARES = SplitsConfig(val=0.3, test=0.3)
DOG, CAT = "A dog runs .", "A cat sits ."


def check(source, folder: Path, config: ChecksConfig = LAX, name: str = "mine") -> checks.Report:
    """Ingest and validate below `folder`."""
    sources = source if isinstance(source, list) else [source]
    raw = ingest(sources, folder / "raw")
    return checks.run(raw, config, SHARES, 7, folder / "validated", name=name)


def lines(report: checks.Report, name: str) -> list[dict]:
    return list(read_jsonl(report.dataset.path / f"{name}.jsonl"))


def aside(report: checks.Report) -> dict[str, str]:
    """Image id -> rule of the images that were set aside whole."""
    found = lines(report, "quarantine")
    return {line["image_id"]: line["rule"] for line in found if line["whole_image"]}


# --- what goes and what stays ---------------------------------------------------------------------


def test_what_is_wrong_goes_to_quarantine_by_name_with_its_captions(tmp_path, write_csv):
    source = write_csv(
        {
            "good.jpg": (picture(), [DOG]),
            "missing.jpg": (None, [DOG, CAT]),
            "empty.jpg": (b"", [DOG]),
            "page.jpg": (b"<html>not found</html>", [DOG]),
            "cut.jpg": (picture(400, 300)[:1500], [DOG]),
            "tiny.png": (picture(8, 8, kind="PNG"), [DOG]),
            "said_nothing.jpg": (picture(shade=1), ["", " "]),
        }
    )
    report = check(source, tmp_path)
    assert aside(report) == {
        "missing.jpg": "missing",
        "empty.jpg": "empty_file",
        "page.jpg": "not_an_image",
        "cut.jpg": "truncated",
        "tiny.png": "too_small",
        "said_nothing.jpg": "caption_empty",
    }
    assert [record.image_id for record in read_records(report.dataset)] == ["good.jpg"]
    captions = {line["image_id"]: line["references"] for line in lines(report, "quarantine")}
    assert captions["missing.jpg"] == [DOG, CAT]
    assert report.facts.quarantined == Counter(aside(report).values())


def test_a_file_that_changed_or_went_after_ingest_is_found(tmp_path, write_csv):
    images = {f"{n}.jpg": (picture(shade=n), [DOG]) for n in range(3)}
    source = write_csv(images)
    raw = ingest([source], tmp_path / "raw")
    (tmp_path / "source" / "0.jpg").write_bytes(picture(shade=9))
    (tmp_path / "source" / "1.jpg").unlink()
    report = checks.run(raw, LAX, SplitsConfig(), 7, tmp_path / "v", name="mine")
    assert aside(report) == {"0.jpg": "changed", "1.jpg": "missing"}


def test_bad_captions_go_and_the_image_stays_while_one_is_left(tmp_path, write_csv):
    captions = [DOG, "", "dog", "a  DOG runs .", "word " * 61, "see www.dogs.com today", CAT]
    report = check(write_csv({"a.jpg": (picture(), captions)}), tmp_path)
    [record] = read_records(report.dataset)
    assert record.references == (DOG, CAT)
    assert [(line["rule"], line["references"]) for line in lines(report, "quarantine")] == [
        ("caption_empty", [""]),
        ("caption_too_short", ["dog"]),
        ("caption_duplicate", ["a  DOG runs ."]),
        ("caption_too_long", [("word " * 61).strip()]),
        ("caption_url", ["see www.dogs.com today"]),
    ]


def test_a_caption_on_very_many_images_is_noted_or_set_aside_as_the_config_says(
    tmp_path, write_csv
):
    images = {f"{n}.jpg": (picture(shade=n), ["a photo of it", f"thing {n}"]) for n in range(30)}
    images["alone.jpg"] = (picture(shade=31), ["A photo  of it"])
    source = write_csv(images)
    noted = check(source, tmp_path / "noted")
    assert noted.facts.noted["caption_too_common"] == 31
    assert noted.facts.accepted == noted.facts.read
    strict = LAX.model_copy(update={"actions": Actions(caption_too_common="quarantine")})
    report = check(source, tmp_path / "strict", strict)
    assert aside(report) == {"alone.jpg": "caption_too_common"}
    assert report.facts.quarantined == {"caption_too_common": 31}
    assert report.facts.accepted.captions == 30


def test_images_that_no_caption_names_are_noted_and_not_read(tmp_path, write_csv):
    source = write_csv({"a.jpg": (picture(), [DOG])})
    (tmp_path / "source" / "extra.jpg").write_bytes(picture(shade=1))
    report = check(source, tmp_path)
    assert report.facts.noted == {"uncaptioned": 1}
    assert report.facts.read.images == report.facts.accepted.images == 1
    assert [line["image_id"] for line in lines(report, "notes")] == ["extra.jpg"]


PNGS = [picture(shade=shade, kind="PNG") for shade in range(4)] + [b"", picture(8, 8, kind="PNG")]
CAPTIONS = [DOG, "a dog runs .", CAT, "dog", "", "Two men .", "<b>two</b> men", "a\x07bell rings"]
ACTIONS = ("note", "quarantine")


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("abcdef"),
            st.integers(0, len(PNGS)),
            st.lists(st.sampled_from(CAPTIONS), min_size=1, max_size=5),
            st.sampled_from([None, "train", "val", "test", "restval", "elsewhere"]),
        ),
        max_size=12,
    ),
    actions=st.builds(
        Actions,
        **{
            rule: st.sampled_from(ACTIONS)
            for rule in ("leak", "near_duplicate", "caption_markup", "too_small")
        },
    ),
)
def test_accepted_and_quarantined_together_are_what_was_read(rows, actions):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = raw_of(folder, rows)
        config = LAX.model_copy(update={"actions": actions})
        report = checks.run(raw, config, SplitsConfig(), 7, folder / "v", name="mine")
        found, kept = lines(report, "quarantine"), list(read_records(report.dataset))
        assert len(kept) + sum(line["whole_image"] for line in found) == len(rows)
        read = Counter(caption for _, _, captions, _ in rows for caption in captions)
        good = Counter(caption for record in kept for caption in record.references)
        bad = Counter(caption for line in found for caption in line["references"])
        assert good + bad == read
        assert len({record.sha256 for record in kept}) == len(kept)
        assert report.facts.quarantined == Counter(line["rule"] for line in found)
        assert sum(report.facts.splits.values()) == len(kept) == report.facts.accepted.images
        assert all(record.split in report.facts.splits for record in kept)


def raw_of(folder: Path, rows):
    """A raw dataset of hand-made rows; an image index past the end is a missing file."""
    with staging(folder / "r") as staged, DatasetWriter(staged) as writer:
        for number, (image_id, picked, captions, split) in enumerate(rows):
            path, sha = folder / f"{number}.png", None
            fault = Fault("missing", "no file")
            if picked < len(PNGS):
                path.write_bytes(PNGS[picked])
                sha, fault = sha256(PNGS[picked]), None
            row = Record(image_id, str(path), sha, tuple(captions), split, "csv", fault)
            writer.add(row)
        (staged / "uncaptioned.jsonl").touch()
        return writer.publish(staged, folder / "r")


# --- copies, near-duplicates, leaks ---------------------------------------------------------------


def test_an_exact_copy_gives_its_captions_to_the_first_and_is_not_held_against_the_data(
    tmp_path, write_csv
):
    source = write_csv(
        {"a.jpg": (picture(), [DOG]), "copy.jpg": (picture(), [DOG, "A brown dog ."])}
    )
    report = check(source, tmp_path, ChecksConfig(max_quarantined_share=0.0))
    [record] = read_records(report.accepted())
    assert (record.image_id, record.references) == ("a.jpg", (DOG, "A brown dog ."))
    assert report.facts.quarantined == {"caption_duplicate": 1, "duplicate_image": 1}
    assert report.facts.leaks == 0


def resized(data: bytes, folder: Path) -> bytes:
    path = folder / "resized.png"
    image = Image.open(io.BytesIO(data))
    image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(path)
    return path.read_bytes()


def test_the_same_or_nearly_the_same_image_in_two_splits_is_a_leak(tmp_path, write_csv):
    one, two = picture(200, 150), picture(200, 150, shade=1)
    source = write_csv(
        {
            "a.png": (one, [DOG]),
            "a_again.png": (one, [DOG]),
            "b.png": (two, [CAT]),
            "b_smaller.png": (resized(two, tmp_path), [CAT]),
            "c.png": (picture(shade=2), [CAT]),
        },
        splits={"a.png": "train", "a_again.png": "test", "b.png": "val", "b_smaller.png": "train"},
    )
    report = check(source, tmp_path)
    assert aside(report) == {"a.png": "leak", "b_smaller.png": "leak"}
    assert report.facts.leaks == 2
    details = {line["image_id"]: line["detail"] for line in lines(report, "quarantine")}
    assert "a_again.png" in details["a.png"]
    assert "in test" in details["a.png"]
    pairs = [(a.image_id, b.image_id) for a, b in report.facts.leak_pairs]
    assert pairs == [("a.png", "a_again.png"), ("b_smaller.png", "b.png")]


def test_leaks_are_only_noted_when_the_config_says_so_and_refused_when_it_says_that(
    tmp_path, write_csv
):
    two = picture(200, 150, shade=1)
    source = write_csv(
        {"b.png": (two, [CAT]), "b_smaller.png": (resized(two, tmp_path), [CAT])},
        splits={"b.png": "val", "b_smaller.png": "train"},
    )
    noting = LAX.model_copy(update={"actions": Actions(leak="note")})
    report = check(source, tmp_path / "note", noting)
    assert report.accepted().num_images == 2
    assert (report.facts.leaks, report.facts.noted["leak"]) == (1, 1)
    refusing = LAX.model_copy(update={"actions": Actions(leak="reject")})
    with pytest.raises(DatasetRejected, match=r"^leak: 1 \(b_smaller.png\), and data.checks"):
        check(source, tmp_path / "reject", refusing).accepted()


def test_near_duplicates_share_a_split_and_are_noted(tmp_path, write_csv):
    images = {}
    for n in range(12):
        data = picture(200, 150, shade=n)
        images[f"{n}.png"] = (data, [DOG])
        images[f"{n}_smaller.png"] = (resized(data, tmp_path), [CAT])
    report = check(write_csv(images), tmp_path)
    split = {record.image_id: record.split for record in read_records(report.dataset)}
    assert all(split[f"{n}.png"] == split[f"{n}_smaller.png"] for n in range(12))
    assert report.facts.noted["near_duplicate"] == 12
    assert len(set(split.values())) > 1


def test_two_sources_may_use_one_id_for_different_images(tmp_path, write_csv):
    one = write_csv({"a.jpg": (picture(), [DOG])}, at="one")
    two = write_csv({"a.jpg": (picture(shade=1), [CAT])}, at="two")
    report = check([one, two], tmp_path)
    assert [record.image_id for record in read_records(report.dataset)] == ["a.jpg", "a.jpg~2"]


# --- the verdict ----------------------------------------------------------------------------------


def test_too_much_dirt_is_refused_with_rule_count_and_examples(tmp_path, write_csv):
    images = {f"{n}.jpg": (picture(shade=n), [DOG]) for n in range(6)}
    images |= {f"bad{n}.jpg": (b"", [DOG]) for n in range(4)}
    with pytest.raises(DatasetRejected) as error:
        check(write_csv(images), tmp_path, ChecksConfig()).accepted()
    for told in ("max_quarantined_share", "4 of the 10", "20%", "empty_file: 4", "bad0.jpg"):
        assert told in str(error.value)


def test_missing_images_have_a_limit_of_their_own(tmp_path, write_csv):
    images = {"there.jpg": (picture(), [DOG])} | {f"{n}.jpg": (None, [DOG]) for n in range(9)}
    source = write_csv(images)
    assert check(source, tmp_path / "lax", ChecksConfig()).accepted().num_images == 1
    with pytest.raises(DatasetRejected, match=r"max_missing_share: missing: 9 .* of 10 images"):
        check(source, tmp_path / "strict", ChecksConfig(max_missing_share=0.5)).accepted()


def test_too_few_images_are_refused(tmp_path, write_csv):
    source = write_csv({"a.jpg": (picture(), [DOG])})
    with pytest.raises(DatasetRejected, match=r"min_images: 1 of 1 .* at least 20"):
        check(source, tmp_path, ChecksConfig(min_images=20)).accepted()


def test_a_refused_dataset_still_has_its_report(tmp_path, write_csv):
    report = check(write_csv({"a.jpg": (b"", [DOG])}), tmp_path)
    told = json.loads((report.dataset.path / "report.json").read_text())
    assert told["summary"]["quarantined"] == {"empty_file": 1}
    assert "min_images" in report.page.read_text()


# --- the folder -----------------------------------------------------------------------------------


def test_the_validated_folder_stands_without_the_raw_one_and_scenes_pass_whole(tmp_path):
    import shutil

    report = check(ScenesSource(format="scenes", count=60), tmp_path, ChecksConfig())
    dataset = report.accepted()
    shutil.rmtree(report.raw.path)
    assert dataset.num_images == 60
    for record in read_records(dataset):
        assert sha256(image_path(dataset, record).read_bytes()) == record.sha256


def test_the_same_data_makes_the_same_dataset_on_any_mapper_and_in_any_part(tmp_path, monkeypatch):
    raw = ingest([ScenesSource(format="scenes", count=60)], tmp_path / "raw")
    shares = SplitsConfig()
    one = checks.run(raw, LAX, shares, 7, tmp_path / "one", name="mine")
    monkeypatch.setattr(checks, "_PART", 7)
    two = checks.run(raw, LAX, shares, 7, tmp_path / "two", name="mine", mapper=map)
    assert one.dataset.digest == two.dataset.digest
    assert one.facts.splits == two.facts.splits


def test_a_version_is_compared_with_the_accepted_one_before_it(tmp_path, write_csv):
    old = write_csv({f"{n}.jpg": (picture(shade=n), [DOG]) for n in range(3)}, at="old")
    new = write_csv({f"{n}.jpg": (picture(shade=n), [CAT]) for n in range(4)}, at="new")
    first = check(old, tmp_path)
    assert first.facts.previous is None
    second = check(new, tmp_path)
    assert second.facts.previous == first.facts.profile
    assert check(new, tmp_path).facts.previous == first.facts.profile, "the same again"
    assert check(old, tmp_path, name="another").facts.previous is None
    refused = check(new, tmp_path, LAX.model_copy(update={"min_images": 5}))
    assert refused.facts.verdict is not None
    assert check(old, tmp_path).facts.previous == second.facts.profile


def test_the_real_photos_and_captions_all_pass(tmp_path, photos):
    source = TableSource(
        format="csv", images=photos / "images", captions=photos / "captions_full.txt"
    )
    report = check(source, tmp_path, ChecksConfig())
    dataset = report.accepted()
    read, accepted = report.facts.read, report.facts.accepted
    assert (read.images, read.captions) == (8091, 40455)
    assert (accepted.images, accepted.captions) == (1000, 5000)
    assert report.facts.quarantined == {"missing": 7091}
    assert (dataset.num_images, dataset.num_captions) == (1000, 5000)
