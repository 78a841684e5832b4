"""Readers yield what the source says, all of it, and refuse what is no source."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import CsvSource, FeedbackSource, ScenesSource
from tasks.data.readers import READERS, SourceError, read_csv, read_feedback, read_scenes
from tasks.data.scenes import scene


def csv_source(folder: Path, content: bytes) -> CsvSource:
    (folder / "captions.txt").write_bytes(content)
    return CsvSource(format="csv", images=folder, captions=folder / "captions.txt")


def test_there_is_a_reader_for_every_format_of_the_config():
    formats = {
        s.model_fields["format"].annotation.__args__[0]
        for s in (ScenesSource, CsvSource, FeedbackSource)
    }
    assert set(READERS) == formats


def test_scenes_are_the_scenes_of_the_demo_world():
    rows = list(read_scenes(ScenesSource(format="scenes", world="night", count=3, seed=5)))
    assert [row.references for row in rows] == [scene(5, i, "night").references for i in range(3)]
    assert len({row.image_id for row in rows}) == 3


def test_a_csv_with_bom_quotes_stray_spaces_and_split_captions_is_read_as_meant(tmp_path):
    content = (
        "\ufeffimage, caption\r\n"
        'a.jpg,"A dog, a cat and a ""bird"" ."\r\n'
        "b.jpg ,  Two men  \r\n"
        "\r\n"
        ' a.jpg, "Animals, many" \r\n'
        "b.jpg,no quotes, but commas\r\n"
        "c.jpg,\r\n"
    )
    rows = list(read_csv(csv_source(tmp_path, content.encode())))
    assert [(row.image_id, row.references) for row in rows] == [
        ("a.jpg", ('A dog, a cat and a "bird" .', "Animals, many")),
        ("b.jpg", ("Two men", "no quotes, but commas")),
        ("c.jpg", ("",)),
    ]
    assert rows[0].image == tmp_path.resolve() / "a.jpg"  # named though it is not there


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.jpg", "b.jpg", "c.jpg"]),
            st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))).map(str.strip),
        )
    )
)
def test_whatever_a_csv_writer_writes_is_read_back(tmp_path_factory, lines):
    text = io.StringIO()
    csv.writer(text).writerows([("image", "caption"), *lines])
    source = csv_source(tmp_path_factory.mktemp("csv"), text.getvalue().encode())
    read = {row.image_id: list(row.references) for row in read_csv(source)}
    assert read == {
        name: [caption for other, caption in lines if other == name] for name, _ in lines
    }


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "header 'image,caption'"),
        (b"a.jpg,A dog\n", "header 'image,caption'"),
        (b"image,caption\na.jpg,\xff\xfe\n", "not a CSV in UTF-8"),
    ],
)
def test_a_file_that_is_no_such_csv_is_refused_with_its_name(tmp_path, content, told):
    with pytest.raises(SourceError, match=told) as error:
        list(read_csv(csv_source(tmp_path, content)))
    assert "captions.txt" in str(error.value)


@pytest.mark.parametrize("name", ["../secret.jpg", "sub/../../secret.jpg", "/etc/passwd"])
def test_an_image_outside_the_folder_is_refused_with_its_file_and_line(tmp_path, name):
    content = f"image,caption\na.jpg,A dog .\n{name},A cat .\n".encode()
    with pytest.raises(SourceError, match=r"captions\.txt, line 3: .* outside") as error:
        list(read_csv(csv_source(tmp_path, content)))
    assert name in str(error.value)


def test_an_image_in_a_subfolder_is_inside(tmp_path):
    (row,) = read_csv(csv_source(tmp_path, b"image,caption\nx/../sub/a.jpg,A dog .\n"))
    assert row.image_id == "x/../sub/a.jpg"


def test_a_missing_source_is_refused_with_the_key_to_change(tmp_path):
    with pytest.raises(SourceError, match=r"data\.source\.captions"):
        list(read_csv(CsvSource(format="csv", images=tmp_path, captions=tmp_path / "no.csv")))
    with pytest.raises(SourceError, match=r"data\.source\.folder"):
        list(read_feedback(FeedbackSource(format="feedback", folder=tmp_path)))


@pytest.mark.parametrize(
    ("name", "images", "captions"),
    [("captions.txt", 1000, 5000), ("captions_full.txt", 8091, 40455)],
)
def test_the_real_caption_files_are_read_whole(photos, name, images, captions):
    source = CsvSource(format="csv", images=photos / "images", captions=photos / name)
    rows = list(read_csv(source))
    assert len(rows) == images
    assert sum(len(row.references) for row in rows) == captions
