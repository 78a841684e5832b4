"""An imagefolder is read as `datasets` reads a clean one, and a dirty one is told row by row."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import picture

from configs.schema import Columns, ImageFolderSource
from tasks.data.readers.imagefolder import read_imagefolder
from tasks.data.rows import Fault, Row, SourceError


def write(folder: Path, files: dict[str, bytes | str | list[dict]]) -> Path:
    """Files by name; a list is written as JSON Lines."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(line) + "\n" for line in content)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def rows_of(folder: Path, **columns) -> list[Row]:
    source = ImageFolderSource(format="imagefolder", images=folder, columns=Columns(**columns))
    return list(read_imagefolder(source))


def told(rows: list[Row]) -> list[tuple]:
    return [(row.image_id, row.references, row.split) for row in rows]


LONG = [{"file_name": f"{n}.jpg", "text": f"Picture {n} ."} for n in range(3)]
LISTS = [
    {"file_name": f"sub/{n}.png", "captions": [f"Picture {n} .", f"It is {n} ."]} for n in range(3)
]
CLEAN = {
    "jsonl": {
        "metadata.jsonl": LONG,
        **{f"{n}.jpg": picture(shade=n) for n in range(3)},
    },
    "lists": {
        "metadata.jsonl": LISTS,
        **{f"sub/{n}.png": picture(shade=n, kind="PNG") for n in range(3)},
    },
    "csv": {
        "metadata.csv": 'file_name,caption\nb.jpg,"Two, of ""them"" ."\na.jpg,One\n',
        "a.jpg": picture(shade=1),
        "b.jpg": picture(shade=2),
    },
    "splits": {
        f"{split}/{name}": content
        for split in ("train", "validation", "test")
        for name, content in {
            "metadata.jsonl": [{"file_name": "x/a.jpg", "text": f"One for {split} ."}],
            "x/a.jpg": picture(shade=len(split)),
        }.items()
    },
    "folders": {
        "cats/metadata.csv": "file_name,text\na.jpg,A cat .\n",
        "cats/a.jpg": picture(shade=1),
        "dogs/metadata.csv": "file_name,text\na.jpg,A dog .\n",
        "dogs/a.jpg": picture(shade=2),
    },
}


@pytest.mark.parametrize("kind", CLEAN)
def test_a_clean_folder_gives_what_datasets_loads(tmp_path, kind):
    import datasets

    folder = write(tmp_path / "photos", CLEAN[kind])
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache")
    )
    expected = defaultdict(list)
    for split, dataset in loaded.items():
        for record in dataset.cast_column("image", datasets.Image(decode=False)):
            captions = next(record[name] for name in record if name != "image")
            captions = [captions] if isinstance(captions, str) else captions
            expected[split].append((record["image"]["path"], tuple(captions)))
    found = defaultdict(list)
    for row in rows_of(folder):
        split = {"val": "validation", None: "train"}.get(row.split, row.split)
        found[split].append((str(row.image), row.references))
    assert {split: sorted(rows) for split, rows in found.items()} == {
        split: sorted(rows) for split, rows in expected.items()
    }
    assert sum(map(len, found.values())) == sum(name.endswith("g") for name in CLEAN[kind])


def test_parquet_metadata_are_read_too(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path, {"a.jpg": picture()})
    table = pa.table({"file_name": ["a.jpg"], "captions": [["One .", "Two ."]]})
    pq.write_table(table, tmp_path / "metadata.parquet")
    assert told(rows_of(tmp_path)) == [("a.jpg", ("One .", "Two ."), None)]


def test_a_bad_row_and_images_that_are_absent_or_unnamed_are_told_once_each(tmp_path):
    lines = [
        '{"file_name": "a.jpg", "text": "One ."}',
        '{"file_name": "a.j',
        '{"text": "No name ."}',
        '{"file_name": "../../secret.jpg", "text": "Out ."}',
        '{"file_name": "gone.jpg", "text": "Gone ."}',
    ]
    folder = write(
        tmp_path / "photos",
        {
            "metadata.jsonl": [{"file_name": "train/b.jpg", "text": "Two ."}],
            "train/metadata.jsonl": "\n".join(lines),
            **dict.fromkeys(("train/a.jpg", "train/b.jpg", "train/c.jpg", "d.jpg"), picture()),
            "._d.jpg": b"not a picture",
        },
    )
    rows = rows_of(folder)
    found = {(row.image_id, row.references, row.split) for row in rows}
    faults = {row.references: row.image.rule for row in rows if isinstance(row.image, Fault)}
    assert len(rows) == len(found) == 8
    assert found > {
        ("train/a.jpg", ("One .",), "train"),
        ("train/b.jpg", ("Two .",), "train"),
        ("train/gone.jpg", ("Gone .",), "train"),
        ("train/c.jpg", (), "train"),
        ("d.jpg", (), None),
    }
    assert faults == {
        ('{"file_name": "a.j',): "malformed_row",
        ("No name .",): "malformed_row",
        ("Out .",): "outside_folder",
    }
    assert {row.image for row in rows} > {folder / "train/gone.jpg", folder / "d.jpg"}


def test_an_image_whose_captions_are_all_blank_is_uncaptioned_even_if_it_is_absent(tmp_path):
    lines = [{"file_name": name, "captions": []} for name in ("a.jpg", "gone.jpg")]
    write(tmp_path, {"metadata.jsonl": lines, "a.jpg": picture()})
    assert sorted(told(rows_of(tmp_path))) == [("a.jpg", (), None), ("gone.jpg", (), None)]


def test_columns_map_and_a_split_column_wins_over_the_folder(tmp_path):
    metadata = "photo;alt;part\ntest/a.jpg;One .;train\n".replace(";", ",")
    write(tmp_path, {"metadata.csv": metadata, "test/a.jpg": picture()})
    rows = rows_of(tmp_path, image="photo", caption="alt", split="part")
    assert told(rows) == [("test/a.jpg", ("One .",), "train")]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.jpg": b""}, r"add one with the columns file_name and text"),
        ({"metadata.csv": "a,b\n1,2\n"}, r"no column 'file_name'.*data\.source\.columns\.image"),
        ({"metadata.csv": "file_name,b\n1,2\n"}, r"data\.source\.columns\.caption"),
        ({"x/metadata.csv": "", "x/metadata.jsonl": ""}, r"x: 2 metadata files; keep one"),
    ],
)
def test_a_folder_that_is_no_imagefolder_is_refused_with_the_fix(tmp_path, files, told):
    with pytest.raises(SourceError, match=told):
        rows_of(write(tmp_path, files))
