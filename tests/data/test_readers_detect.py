"""What a source is, is found from its files alone, and said to be unclear where it is."""

import json
from pathlib import Path

import pytest
from conftest import picture
from test_readers_hf import saved
from test_readers_imagefolder import write
from test_readers_webdataset import shard

from configs.schema import AutoSource, CocoSource, Source, TableSource, WebDatasetSource
from tasks.data.readers.detect import FORMATS, HEAD_BYTES, detect
from tasks.data.readers.registry import READERS, read
from tasks.data.rows import SourceError

IMAGES = [{"id": n, "file_name": f"{n}.jpg"} for n in range(HEAD_BYTES // 20)]
COCO = {"info": {}, "images": IMAGES, "annotations": [{"image_id": 1, "caption": "A dog ."}]}
KARPATHY = {"images": [{"filename": "a.jpg", "sentids": [0], "sentences": [{"raw": "A dog ."}]}]}
FILES = {
    "csv": ("captions.txt", b"image,caption\na.jpg,A dog .\n"),
    "csv, by its suffix": ("x.csv", b"a,b\n1,2\n"),
    "csv with a byte order mark": ("x.txt", "\ufeff Image,Text\na.jpg,A\n".encode()),
    "csv in utf-16": ("x.txt", "image,caption\na.jpg,A\n".encode("utf-16")),
    "csv with semicolons": ("results.csv", b"image_name| comment_number| comment\n"),
    "tsv": ("x.tsv", b"image\tcaption\na.jpg\tA\n"),
    "tsv under a wrong suffix": ("x.csv", b"image\tcaption\na.jpg\tA, b\n"),
    "jsonl": ("x.jsonl", b'{"image": "a.jpg", "caption": "A"}\n'),
    "jsonl, an empty line first": ("x.json", b'\n{"image": "a.jpg"}\n{"image": "b.jpg"}\n'),
    "flickr_token": ("x.token", b"a.jpg#0\tA dog , with a bone .\n"),
    "flickr_token as text": ("x.txt", b"a.jpg#0\tA dog .\n"),
    "coco": ("x.json", json.dumps(COCO).encode()),
    "coco, indented": ("x.json", json.dumps(COCO, indent=2).encode()),
    "coco, the key over a chunk's edge": (
        "x.json",
        b'{"images": [],' + b" " * (HEAD_BYTES - 20) + b'"annotations": []}',
    ),
    "karpathy": ("x.json", json.dumps(KARPATHY).encode()),
    "karpathy, indented": ("x.json", json.dumps(KARPATHY, indent=1).encode()),
    "parquet": ("x.parquet", b"PAR1..."),
}


def found(**places: Path) -> Source:
    return detect(AutoSource(**places))


@pytest.mark.parametrize("kind", FILES)
def test_a_caption_file_is_known_by_what_is_in_it(tmp_path, kind):
    name, content = FILES[kind]
    (tmp_path / name).write_bytes(content)
    source = found(captions=tmp_path / name, images=tmp_path / "photos")
    assert source.format == kind.partition(",")[0].partition(" ")[0]
    assert (source.captions, source.images) == (tmp_path / name, tmp_path / "photos")
    assert found(captions=tmp_path / name).images is None


@pytest.mark.parametrize("metadata", ["metadata.csv", "x/metadata.jsonl", "y/z/metadata.parquet"])
def test_a_folder_with_metadata_is_an_imagefolder(tmp_path, metadata):
    source = found(images=write(tmp_path, {metadata: b"", "a.jpg": picture()}))
    assert (source.format, source.images) == ("imagefolder", tmp_path)


def test_tars_are_a_webdataset_and_what_datasets_saved_is_hf(tmp_path):
    path = shard(tmp_path / "tars" / "x" / "0.tar", [])
    assert found(images=tmp_path / "tars") == WebDatasetSource(
        format="webdataset", shards=(tmp_path / "tars",)
    )
    assert found(images=path) == WebDatasetSource(format="webdataset", shards=(path,))
    columns = {"image": [{"bytes": picture(), "path": None}], "text": ["Hi"]}
    for split in ("", "test"):
        folder = saved(tmp_path / f"hf{split}", {split: columns})
        assert (found(images=folder).format, found(images=folder).dataset) == ("hf", folder)


def test_a_folder_with_one_caption_file_is_read_with_the_images_where_they_are(tmp_path):
    csv = "image,caption\na.jpg,A dog .\n"
    files = {"a.jpg": picture(), "captions.txt": csv, "README.txt": "Photos of dogs.\n"}
    flat = write(tmp_path / "flat", files)
    expected = TableSource(format="csv", captions=flat / "captions.txt", images=flat)
    assert found(images=flat) == expected
    kaggle = write(tmp_path / "kaggle", {"Images/a.jpg": picture(), "captions.txt": csv})
    assert found(images=kaggle).images == kaggle / "Images"
    assert [row.image.is_file() for row in read(AutoSource(images=kaggle))] == [True]
    named = csv.replace("a.jpg", "Images/a.jpg")
    named = write(tmp_path / "named", {"Images/a.jpg": picture(), "captions.txt": named})
    assert found(images=named).images == named
    coco = {"x/a.jpg": picture(), "y/a.jpg": picture(), "c.json": json.dumps(COCO)}
    several = write(tmp_path / "several", coco)
    assert found(images=several) == CocoSource(
        format="coco", captions=several / "c.json", images=several
    )


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": "image,caption\n", "b.csv": "image,caption\n"},
        {"metadata.csv": "file_name,text\n", "b.csv": "image,caption\n"},
        {"metadata.csv": "file_name,text\n", "0.tar": b""},
        {"a.jpg": b""},
        {"notes.txt": "nothing, really\n", "list.json": "[]", "x.json": '{"images": {}}\n'},
    ],
)
def test_a_folder_that_could_be_several_things_or_none_is_refused(tmp_path, files):
    with pytest.raises(SourceError, match=r"isn't clear\. Set data\.source\.format") as error:
        found(images=write(tmp_path, files))
    assert all(form in str(error.value) for form in FORMATS)
    seen = [name for name in files if name.endswith((".csv", "a.txt")) and name[0] in "ab"]
    assert all(name in str(error.value) for name in seen)


def test_what_is_no_caption_file_or_is_not_there_is_refused(tmp_path):
    for content in (b"", b"\x00\xff", b"A dog .\n", b"[1]", b"{", b'{"a": 1' + b" " * HEAD_BYTES):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(SourceError, match=r"isn't clear"):
            found(captions=tmp_path / "x")
    with pytest.raises(SourceError, match="no such file"):
        found(captions=tmp_path / "no.csv")
    with pytest.raises(SourceError, match="no such folder"):
        found(images=tmp_path / "no")
    with pytest.raises(SourceError, match=r"a folder; set it as data\.source\.images"):
        found(captions=tmp_path)
    with pytest.raises(SourceError, match="names nothing to read"):
        found()


def test_every_format_that_can_be_named_has_a_reader():
    assert set(FORMATS) < set(READERS)


def test_the_real_photos_are_a_csv(photos):
    rows = list(read(AutoSource(captions=photos / "captions.txt", images=photos / "images")))
    assert len(rows) == 1000
    assert sum(len(row.references) for row in rows) == 5000
    assert {row.source for row in rows} == {"csv"}
    with pytest.raises(SourceError, match=r"captions\.txt, captions_full\.txt"):
        found(images=photos)
