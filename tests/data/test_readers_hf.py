"""What `datasets` loads is read whole, undecoded, with its splits and its columns."""

import json
from pathlib import Path

import pytest
from conftest import picture

from configs.schema import Columns, HfSource
from tasks.data.readers.hub import read_hf
from tasks.data.rows import Fault, Row, SourceError

RED, BLUE = picture(shade=3), picture(shade=7)
FLICKR = {
    "image": [{"bytes": RED, "path": "a.jpg"}, {"bytes": b"broken", "path": "b.jpg"}, None],
    "caption_0": ["One .", "Three .", "Five ."],
    "caption_1": ["Two .", None, ""],
}


def saved(folder: Path, splits: dict[str, dict[str, list]]) -> Path:
    """A saved dataset: without splits where there is but one that has no name."""
    from datasets import Dataset, DatasetDict, Image

    made = {}
    for name, columns in splits.items():
        made[name] = Dataset.from_dict(columns).cast_column("image", Image())
    (made[""] if list(made) == [""] else DatasetDict(made)).save_to_disk(str(folder))
    return folder


def rows_of(dataset: Path | str, columns: dict | None = None, **options) -> list[Row]:
    options["columns"] = Columns(**(columns or {}))
    return list(read_hf(HfSource(format="hf", dataset=dataset, **options)))


def told(rows: list[Row]) -> list[tuple]:
    """Each row's id, its image or the rule that it breaks, its captions and its split."""
    images = (row.image.rule if isinstance(row.image, Fault) else row.image for row in rows)
    return [
        (row.image_id, image, row.references, row.split)
        for row, image in zip(rows, images, strict=True)
    ]


def test_a_saved_dataset_gives_its_bytes_and_all_its_captions_and_no_image_is_a_fault(tmp_path):
    assert told(rows_of(saved(tmp_path / "flickr", {"": FLICKR}))) == [
        ("train/0", RED, ("One .", "Two ."), None),
        ("train/1", b"broken", ("Three .",), None),
        ("train/2", "missing", ("Five .",), None),
    ]


def test_splits_go_by_their_names_and_a_column_wins(tmp_path):
    one = {"image": [{"bytes": RED, "path": None}], "text": [["One .", "Two ."]]}
    two = {"image": [{"bytes": BLUE, "path": None}], "text": [["Three ."]]}
    folder = saved(tmp_path / "a", {"train": one, "validation": two, "all": one})
    first = ("train/0", RED, ("One .", "Two ."), "train")
    third = ("all/0", RED, ("One .", "Two ."), None)
    second = ("validation/0", BLUE, ("Three .",), "val")
    assert told(rows_of(folder)) == [first, second, third]
    assert told(rows_of(folder, splits=("validation",))) == [second]
    column = saved(tmp_path / "b", {"test": {**one, "split": ["restval"]}})
    assert [row.split for row in rows_of(column)] == ["restval"]
    with pytest.raises(SourceError, match=r"no split gold; .* may name train, validation, all"):
        rows_of(folder, splits=("gold",))


def test_named_columns_are_taken_of_several(tmp_path):
    both = {"image": [{"bytes": RED, "path": None}], "mask": [BLUE], "text": ["A"], "alt": ["B"]}
    folder = saved(tmp_path / "d", {"": both})
    assert told(rows_of(folder, {"image": "mask", "caption": "alt"})) == [
        ("train/0", BLUE, ("B",), None)
    ]
    with pytest.raises(
        SourceError, match=r"no column 'no'; .* 'mask', 'text', 'alt'\..*columns\.caption"
    ):
        rows_of(folder, {"caption": "no"})
    with pytest.raises(SourceError, match=r"no column 'no'; .*data\.source\.columns\.image"):
        rows_of(folder, {"image": "no"})


def test_a_folder_of_parquet_files_is_streamed_and_its_paths_lead_into_it(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, Value

    images = [{"bytes": BLUE, "path": "x.jpg"}, {"bytes": None, "path": "photos/a.jpg"}]
    images += [{"bytes": None, "path": "/etc/passwd"}, {"bytes": None, "path": "http://a/b.jpg"}]
    schema = Features({"image": Image(), "text": Value("string")}).arrow_schema
    table = pa.table({"image": images, "text": ["A", "B", "C", "D"]}, schema)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    rows = [
        ("0", BLUE, ("A",)),
        ("1", tmp_path / "photos" / "a.jpg", ("B",)),
        ("2", "outside_folder", ("C",)),
        ("3", "outside_folder", ("D",)),
    ]
    expected = [(f"{split}/{n}", *rest, split) for split in ("train", "test") for n, *rest in rows]
    assert told(rows_of(tmp_path)) == expected


def test_files_of_a_local_folder_are_given_as_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(RED)
    lines = [{"file_name": "a.jpg", "text": "A red one ."}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = rows_of(tmp_path)
    assert (row.image, row.references, row.split) == (tmp_path / "a.jpg", ("A red one .",), None)


def test_names_of_files_in_json_are_images_of_the_folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(RED)
    lines = [{"photo": name, "text": "A red one ."} for name in ("a.jpg", "../a.jpg")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = rows_of(tmp_path, {"image": "photo"})
    assert rows[0].image == tmp_path / "a.jpg"
    assert rows[1].image.rule == "outside_folder"


def test_a_caption_that_is_no_text_is_a_fault_of_its_row(tmp_path):
    folder = saved(tmp_path / "d", {"": {"image": [{"bytes": RED, "path": None}], "text": [7]}})
    (row,) = rows_of(folder)
    assert (row.image.rule, row.references) == ("malformed_row", ("",))


def test_what_datasets_can_not_load_is_refused_with_the_fix(tmp_path, monkeypatch):
    import huggingface_hub.constants
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"nobody/nothing: .*data\.source\.dataset"):
        rows_of("nobody/nothing")
    with pytest.raises(SourceError, match="doesn't contain any data files"):
        rows_of(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"image": "a.jpg", "text": "Hi"}\n{"image": \n')
    with pytest.raises(SourceError, match="can't read it: JSON parse error"):
        rows_of(tmp_path, {"image": "image"})
