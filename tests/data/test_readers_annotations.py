"""COCO's and Karpathy's files: entries with and without captions, whole and damaged, none lost."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import CocoSource, KarpathySource
from tasks.data.readers.annotations import read_coco, read_karpathy
from tasks.data.rows import Fault, Row, SourceError
from tests.data.conftest import picture

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


def save(folder: Path, document: object) -> Path:
    path = folder / "captions.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return path


def coco_rows(captions: Path, images: Path | None = None) -> list[Row]:
    return list(read_coco(CocoSource(format="coco", captions=captions, images=images)))


def karpathy_rows(captions: Path) -> list[Row]:
    return list(read_karpathy(KarpathySource(format="karpathy", captions=captions)))


def coco(folder: Path, images: list[object], annotations: list[object]) -> list[Row]:
    return coco_rows(save(folder, {"info": {}, "images": images, "annotations": annotations}))


def karpathy(folder: Path, images: list[object]) -> list[Row]:
    return karpathy_rows(save(folder, {"dataset": "coco", "images": images}))


def told(rows: list[Row]) -> list[tuple[str, tuple[str, ...]]]:
    return [(row.image_id, row.references) for row in rows]


def faults(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.image.rule, row.image.detail) for row in rows if isinstance(row.image, Fault)]


# --- coco -----------------------------------------------------------------------------------------


def test_coco_gives_images_with_and_without_annotations_and_annotations_without_image(tmp_path):
    images = tmp_path / "photos"
    (images / "train").mkdir(parents=True)
    for name in ("train/1.jpg", "unnamed.jpg"):
        (images / name).write_bytes(picture())
    document = {
        "images": [
            {"id": 1, "file_name": "train/1.jpg", "width": 64},
            {"id": "two", "file_name": "2.jpg"},
            {"id": 3, "file_name": "3.jpg"},
            {"id": 4, "file_name": "../4.jpg"},
            {"id": 5, "file_name": "train/1.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": "1", "caption": " One\n"},
            {"id": 2, "image_id": 9, "caption": "Nobody's"},
            {"id": 3, "image_id": "two", "caption": ""},
            {"id": 4, "image_id": 1, "caption": "Uno"},
            {"id": 5, "image_id": 4, "caption": "Out"},
            {"id": 6, "image_id": 9, "caption": "Nobody's too"},
            {"id": 7, "image_id": 5, "caption": "One again"},
        ],
    }
    rows = coco_rows(save(tmp_path, document), images)
    assert told(rows) == [
        ("train/1.jpg", ("One", "Uno")),
        ("2.jpg", ("",)),
        ("3.jpg", ()),
        ("../4.jpg", ("Out",)),
        ("train/1.jpg", ("One again",)),
        ("9", ("Nobody's", "Nobody's too")),
        ("unnamed.jpg", ()),
    ]
    assert rows[0].image == images.resolve() / "train" / "1.jpg"
    assert [rule for rule, _ in faults(rows)] == ["outside_folder", "missing"]
    assert faults(rows)[1][1].startswith("captions.json: `images` has no id 9")
    assert {(row.split, row.source) for row in rows} == {(None, "coco")}


@pytest.mark.parametrize(
    ("entry", "where", "problem"),
    [
        ("text", "images[1]", "no JSON object"),
        ({"id": 2}, "images[1]", "no text `file_name`"),
        ({"id": 2, "file_name": 5}, "images[1]", "no text `file_name`"),
        ({"id": 2, "file_name": "\ud800.jpg"}, "images[1]", "no text `file_name`"),
        ({"file_name": "b.jpg"}, "images[1]", "`id` is no number and no text"),
        ({"id": True, "file_name": "b.jpg"}, "images[1]", "`id` is no number and no text"),
        ({"id": "1", "file_name": "b.jpg"}, "images[1]", "its id '1' is an earlier image's"),
    ],
)
def test_a_malformed_image_of_coco_is_a_row_with_its_place(tmp_path, entry, where, problem):
    images = [{"id": 1, "file_name": "a.jpg"}, entry]
    rows = coco(tmp_path, images, [{"image_id": 1, "caption": "One"}])
    assert told(rows)[0] == ("a.jpg", ("One",))
    assert rows[1].image_id == f"captions.json:{where}"
    assert faults(rows) == [("malformed_row", f"captions.json, {where}: {problem}")]
    assert len(rows[1].references) == 1
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("annotation", "problem", "reference"),
    [
        (None, "no JSON object", "null"),
        ({"caption": " Whose? "}, "`image_id` is no number and no text", "Whose?"),
        ({"image_id": 1.5, "caption": "A"}, "`image_id` is no number and no text", "A"),
        ({"image_id": 1}, "no text `caption`", '{"image_id": 1}'),
        ({"image_id": 1, "caption": "\udc00"}, "no text `caption`", None),
    ],
)
def test_a_malformed_annotation_of_coco_is_a_row_and_its_image_keeps_the_others(
    tmp_path, annotation, problem, reference
):
    annotations = [{"image_id": 1, "caption": "One"}, annotation]
    rows = coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], annotations)
    assert told(rows)[1:] == [("a.jpg", ("One",))]
    assert rows[0].image_id == "captions.json:annotations[1]"
    assert faults(rows) == [("malformed_row", f"captions.json, annotations[1]: {problem}")]
    assert rows[0].references == (reference or '{"image_id": 1, "caption": "?"}',)


@given(st.lists(TEXT, max_size=8), st.randoms())
def test_coco_loses_no_caption_whatever_the_order(tmp_path_factory, captions, random):
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
    annotations = [{"image_id": n % 4, "caption": text} for n, text in enumerate(captions)]
    random.shuffle(annotations)
    rows = coco(tmp_path_factory.mktemp("coco"), images, annotations)
    for n, row in enumerate(rows):
        expected = [note["caption"].strip() for note in annotations if note["image_id"] == n]
        assert list(row.references) == expected
    assert sum(len(row.references) for row in rows) == len(captions)


# --- karpathy -------------------------------------------------------------------------------------


def test_karpathy_gives_paths_sentences_and_splits_as_they_are(tmp_path):
    rows = karpathy(
        tmp_path,
        [
            {
                "filepath": "val2014",
                "filename": "1.jpg",
                "split": "restval",
                "sentences": [{"raw": " One. ", "tokens": ["one"]}, {"raw": "Uno"}],
            },
            {"filename": "2.jpg", "split": "test", "sentences": []},
            {"filename": "3.jpg", "sentences": [{"raw": ""}]},
        ],
    )
    assert [(row.image_id, row.references, row.split) for row in rows] == [
        ("val2014/1.jpg", ("One.", "Uno"), "restval"),
        ("2.jpg", (), "test"),
        ("3.jpg", ("",), None),
    ]
    assert rows[0].image == tmp_path.resolve() / "val2014" / "1.jpg"


@pytest.mark.parametrize(
    ("entry", "problem", "references"),
    [
        (7, "no JSON object", ("7",)),
        ({"sentences": [{"raw": "One"}]}, "no text `filename`", ("One",)),
        ({"filename": "", "sentences": [{"raw": "One"}]}, "no text `filename`", ("One",)),
        (
            {"filename": "b.jpg", "sentences": [{"raw": "One"}, {"tokens": []}, "text"]},
            "a sentence has no text `raw`",
            ("One",),
        ),
        (
            {"filename": "b.jpg", "sentences": "One"},
            "`sentences` is no list",
            ('{"filename": "b.jpg", "sentences": "One"}',),
        ),
        (
            {"filename": "b.jpg", "split": 1, "sentences": [{"raw": "One"}]},
            "`filepath` or `split` is no text",
            ("One",),
        ),
    ],
)
def test_a_malformed_entry_of_karpathy_is_a_row_with_its_place(
    tmp_path, entry, problem, references
):
    rows = karpathy(tmp_path, [{"filename": "a.jpg", "sentences": [{"raw": "A"}]}, entry])
    assert told(rows) == [("a.jpg", ("A",)), ("captions.json:images[1]", references)]
    assert faults(rows) == [("malformed_row", f"captions.json, images[1]: {problem}")]


@given(st.lists(st.lists(TEXT, max_size=3), max_size=6))
def test_karpathy_is_read_back_whole(tmp_path_factory, captions):
    entries = [
        {"filename": f"{n}.jpg", "split": "train", "sentences": [{"raw": text} for text in texts]}
        for n, texts in enumerate(captions)
    ]
    rows = karpathy(tmp_path_factory.mktemp("karpathy"), entries)
    assert told(rows) == [
        (f"{n}.jpg", tuple(text.strip() for text in texts)) for n, texts in enumerate(captions)
    ]


# --- files that are no such file ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"images": [],\n "annotations": [}', "line 2: .*expected a JSON object with a list"),
        (b"", "line 1: Expecting value"),
        (b"[]", "line 1: expected a JSON object with .*, not a list"),
        (b'{"images": {}, "annotations": []}', "its keys are images, annotations"),
        (b'{"a": 1}', "its keys are a"),
        (b'{"images": [],\n"a": "\xe9"}', "line 2: not in UTF-8"),
        (b'{"images": ' + b"[" * 100_000, "expected a JSON object"),
        (b'{"images": ' + b"9" * 5000 + b"}", "expected a JSON object"),
    ],
)
@pytest.mark.parametrize("rows", [coco_rows, karpathy_rows])
def test_a_file_that_is_no_such_document_is_refused_with_line_and_shape(
    tmp_path, rows, content, expected
):
    path = save(tmp_path, content)
    with pytest.raises(SourceError, match=expected) as error:
        rows(path)
    assert "captions.json" in str(error.value)


def test_cocos_file_of_boxes_is_refused_with_the_file_it_should_be(tmp_path):
    with pytest.raises(SourceError, match=r"data\.source\.captions has to be a captions_\*\.json"):
        coco(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [{"image_id": 1, "bbox": []}])


def test_other_unicode_files_of_json_are_read_too(tmp_path):
    document = json.dumps({"images": [{"filename": "é.jpg", "sentences": [{"raw": "é"}]}]})
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path = save(tmp_path, document.encode(encoding))
        assert told(karpathy_rows(path)) == [("é.jpg", ("é",))]
