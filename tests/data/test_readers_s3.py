"""Every format is read from S3 as from a folder: the same rows, images as URLs, the same bytes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import picture
from s3 import served_bucket
from test_readers_hf import saved
from test_readers_webdataset import shard

from configs.schema import (
    AutoSource,
    CocoSource,
    FlickrTokenSource,
    HfSource,
    ImageFolderSource,
    KarpathySource,
    Place,
    Source,
    TableSource,
    WebDatasetSource,
)
from tasks.data.readers import places
from tasks.data.readers.registry import read
from tasks.data.rows import Fault, Row, SourceError

NAMES = ("a b#1?.jpg", "train/é.png", "unnamed.jpg")
CAPTIONS = {NAMES[0]: ["One .", "Two ."], NAMES[1]: ["Three ."], "gone.jpg": ["Four ."]}
LONG = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]
FORMATS = (
    *("csv", "tsv", "jsonl", "parquet", "coco", "karpathy", "flickr_token"),
    *("imagefolder", "webdataset", "hf"),
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with served_bucket("photos") as url:
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bucket: str) -> Path:
    """A folder of each format, here and in the bucket."""
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder)
    write_tables(folder)
    write_documents(folder)
    (folder / "imagefolder").mkdir()
    lines = [{"file_name": name, "captions": told} for name, told in CAPTIONS.items()]
    write_pictures(folder / "imagefolder")
    write_lines(folder / "imagefolder" / "metadata.jsonl", lines)
    samples = [("a.jpg", picture()), ("a.txt", b"One ."), ("b.txt", b"Lost .")]
    shard(folder / "shards" / "train-0.tar", samples)
    cut = shard(folder / "shards" / "val-0.tar", samples)
    cut.write_bytes(cut.read_bytes()[:-10_000])
    images = [{"bytes": picture(shade=n), "path": None} for n in range(2)]
    saved(folder / "hf", {"train": {"image": images, "text": ["One .", "Two ."]}})
    fs, path = places.file_system(bucket)
    fs.put(f"{folder}/", f"{path}/", recursive=True)
    return folder


def write_pictures(folder: Path) -> None:
    for shade, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(shade=shade, kind="PNG" if "png" in name else "JPEG"))


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_tables(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        lines = [mark.join(line) for line in (("image", "caption"), *LONG)]
        (folder / f"captions.{suffix}").write_text("\n".join(lines) + "\n")
    write_lines(folder / "captions.jsonl", [{"image": n, "caption": c} for n, c in LONG])
    names, captions = zip(*LONG, strict=True)
    table = pa.table({"image": names, "caption": captions})
    pq.write_table(table, folder / "captions.parquet")


def write_documents(folder: Path) -> None:
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(CAPTIONS)],
        "annotations": [
            {"id": 0, "image_id": list(CAPTIONS).index(name), "caption": caption}
            for name, caption in LONG
        ],
    }
    karpathy = [
        {"filename": name, "split": "restval", "sentences": [{"raw": one} for one in captions]}
        for name, captions in CAPTIONS.items()
    ]
    (folder / "coco.json").write_text(json.dumps(coco))
    (folder / "karpathy.json").write_text(json.dumps({"images": karpathy}))
    (folder / "flickr.token").write_text("".join(f"{n}#0\t{c}\n" for n, c in LONG))


def source_at(place: Place, form: str) -> Source:
    def at(name: str) -> Place:
        return places.inside(place, name)

    match form:
        case "coco":
            return CocoSource(format="coco", captions=at("coco.json"))
        case "karpathy":
            return KarpathySource(format="karpathy", captions=at("karpathy.json"))
        case "flickr_token":
            return FlickrTokenSource(format="flickr_token", captions=at("flickr.token"))
        case "imagefolder":
            return ImageFolderSource(format="imagefolder", images=at("imagefolder"))
        case "webdataset":
            return WebDatasetSource(format="webdataset", shards=(at("shards"),))
        case "hf":
            return HfSource(format="hf", dataset=at("hf"))
        case _:
            return TableSource.model_validate(
                {"format": form, "captions": at(f"captions.{form}"), "images": place}
            )


def content(row: Row) -> bytes | str:
    """An image's bytes, or the rule that it breaks."""
    if isinstance(row.image, Fault):
        return row.image.rule
    if isinstance(row.image, bytes):
        return row.image
    try:
        with places.open_binary(row.image) as file:
            return file.read()
    except SourceError:
        return "missing"


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_is_read_from_s3_as_from_here(bucket, folder, form):
    here, there = ([*read(source_at(place, form))] for place in (folder, bucket))
    assert [(row.image_id, row.references, row.split, row.source) for row in there] == [
        (row.image_id, row.references, row.split, row.source) for row in here
    ]
    assert [content(row) for row in there] == [content(row) for row in here]
    for row, local in zip(there, here, strict=True):
        if isinstance(local.image, Path):
            assert row.image == f"{bucket}/{local.image.relative_to(folder)}"
    assert len(there) >= 2
    assert {type(content(row)) for row in there} == ({bytes} if form == "hf" else {bytes, str})


@pytest.mark.parametrize(
    ("options", "form"),
    [
        *(({"captions": f"captions.{form}"}, form) for form in ("csv", "tsv", "jsonl", "parquet")),
        ({"captions": "coco.json"}, "coco"),
        ({"captions": "karpathy.json"}, "karpathy"),
        ({"captions": "flickr.token"}, "flickr_token"),
        ({"images": "imagefolder"}, "imagefolder"),
        ({"images": "shards"}, "webdataset"),
        ({"images": "hf"}, "hf"),
    ],
)
def test_a_format_is_found_on_s3_as_here(bucket, folder, options, form):
    for place in (folder, bucket):
        there = {key: places.inside(place, name) for key, name in options.items()}
        rows = list(read(AutoSource(**there)))
        assert {row.source for row in rows} == {form}
        assert [row.image_id for row in rows] == [
            row.image_id for row in read(source_at(place, form))
        ]


def test_a_bucket_has_another_fingerprint_once_another_client_added_or_changed_a_file(bucket):
    import boto3

    client = boto3.client("s3")
    seen = []
    for name, data in (("a.jpg", b"one"), ("b.jpg", b"two"), ("b.jpg", b"owt")):
        client.put_object(Bucket="photos", Key=f"fresh/{name}", Body=data)
        seen += [places.fingerprint(f"{bucket}/fresh") for _ in range(2)]
    assert seen[::2] == seen[1::2]
    assert len(set(seen)) == 3


def test_names_lead_nowhere_but_into_the_bucket_s_folder(bucket):
    folder = f"{bucket}/photos"
    assert places.within(folder, "x/../a.jpg") == f"{folder}/a.jpg"
    for name in (
        "../a.jpg",
        "/a.jpg",
        "s3://other/a.jpg",
        "a.jpg::/etc/passwd",
        "x\\..\\..\\a.jpg",
    ):
        fault = places.within(folder, name)
        assert isinstance(fault, Fault)
        assert fault.rule == "outside_folder"


def test_a_store_without_keys_is_refused_with_its_url(bucket, monkeypatch):
    from s3fs import S3FileSystem

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(SourceError, match=r"x\.csv: can't be read: .*credentials"):
        places.open_binary(f"{bucket}/x.csv")
    S3FileSystem.clear_instance_cache()


def test_a_file_here_may_have_any_name(tmp_path):
    for name in ("a::b.jpg", "c#?%20.jpg", ".hidden.jpg", ".git/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert places.names(tmp_path) == ["a::b.jpg", "c#?%20.jpg"]
    for name in places.names(tmp_path):
        assert places.open_binary(tmp_path / name).read() == name.encode()


def test_what_is_not_on_s3_is_refused_with_its_url(bucket, folder):
    with pytest.raises(SourceError, match=rf"{bucket}/no\.csv: no such file"):
        list(read(AutoSource(captions=f"{bucket}/no.csv")))
    with pytest.raises(SourceError, match=r"s3://no-bucket/x: no such folder"):
        list(read(AutoSource(images="s3://no-bucket/x")))
    with pytest.raises(SourceError, match=r"imagefolder: datasets can't read it: at a URL"):
        list(read(HfSource(format="hf", dataset=f"{bucket}/imagefolder")))
    with pytest.raises(SourceError, match=r"nope://x.*Protocol not known"):
        list(read(AutoSource(images="nope://x")))
