"""Tables and token files: what they say is read whole, and what is wrong is told line by line."""

import csv
import io
import json
import re
import tracemalloc
from collections import defaultdict
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Columns, FlickrTokenSource, TableSource
from tasks.data.readers.flickr import read_flickr_token
from tasks.data.readers.tables import read_table
from tasks.data.rows import Fault, Row, SourceError
from tests.data.conftest import picture

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
LINES = st.lists(st.tuples(st.sampled_from(["a.jpg", "sub/b.jpg", "ü c.jpg"]), TEXT), max_size=12)
WIDE = st.lists(st.lists(TEXT, min_size=2, max_size=2), max_size=6)


def table(folder: Path, content: bytes | str, format: str = "csv", **options: object) -> list[Row]:
    """The rows of a table of that content, named `captions.<format>`."""
    path = folder / f"captions.{format}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_table(TableSource(format=format, captions=path, **options)))


def jsonl(records: list[object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def parquet(records: list[dict[str, object]], schema: pa.Schema | None = None) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema), file)
    return file.getvalue()


def written(rows: list[list[str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


def told(rows: list[Row]) -> list[tuple[str, tuple[str, ...]]]:
    return [(row.image_id, row.references) for row in rows]


def faults(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [
        (row.image_id, row.image.rule, row.image.detail)
        for row in rows
        if isinstance(row.image, Fault)
    ]


def by_name(lines: list[tuple[str, str]]) -> dict[str, list[str]]:
    captions = defaultdict(list)
    for name, caption in lines:
        captions[name].append(caption.strip())
    return dict(captions)


def read_back(rows: list[Row]) -> dict[str, list[str]]:
    assert len({row.image_id for row in rows}) == len(rows)
    return {row.image_id: list(row.references) for row in rows}


# --- what the formats say -------------------------------------------------------------------------


def test_a_csv_with_bom_quotes_stray_spaces_and_split_captions_is_read_as_meant(tmp_path):
    content = (
        "\ufeffimage, caption\r\n"
        'a.jpg,"A dog, a cat and a ""bird"" ."\r\n'
        "b.jpg ,  Two men  \r\n"
        "\r\n"
        ' a.jpg, "Animals, many" \r\n'
        "b.jpg,no quotes, but commas\r\n"
        "c.jpg,\r\n"
        "d.jpg,trailing,,\r\n"
        ",\r\n"
    )
    rows = table(tmp_path, content)
    assert told(rows) == [
        ("a.jpg", ('A dog, a cat and a "bird" .', "Animals, many")),
        ("b.jpg", ("Two men", "no quotes, but commas")),
        ("c.jpg", ("",)),
        ("d.jpg", ("trailing",)),
    ]
    assert rows[0].image == tmp_path.resolve() / "a.jpg"  # named though it is not there
    assert {(row.split, row.source) for row in rows} == {(None, "csv")}


def test_a_caption_before_its_image_may_hold_commas_too(tmp_path):
    rows = table(tmp_path, "caption,image\nA dog, a cat,a.jpg\n")
    assert told(rows) == [("a.jpg", ("A dog, a cat",))]


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("csv", "file_name,caption1,caption2\na.jpg,One,Two\nb.jpg, ,Three\nc.jpg,,\n"),
        ("csv", "image;caption_0;caption_1\r\na.jpg;One;Two\r\nb.jpg;;Three\r\nc.jpg;;\r\n"),
        ("csv", "Image,Caption,Caption\na.jpg,One,Two\nb.jpg,,Three\nc.jpg,,\n"),
        ("tsv", "path\tsentence 1\tsentence 2\na.jpg\tOne\tTwo\nb.jpg\t\tThree\nc.jpg\t\t\n"),
        (
            "jsonl",
            jsonl([{"image": "c.jpg"}]) + '{"image": "a.jpg", "text": ["One", "Two"]}\n\n'
            '{"image": "b.jpg", "text": [null, " Three"]}\n',
        ),
        (
            "jsonl",
            jsonl([{"image": "a.jpg", "text": "One", "text2": "Two"}, {"image": "c.jpg"}])
            + '{"image": "b.jpg", "text": null, "text2": "Three"}',
        ),
        (
            "parquet",
            parquet(
                [
                    {"filename": "a.jpg", "captions": ["One", "Two"]},
                    {"filename": "b.jpg", "captions": [None, "Three"]},
                    {"filename": "c.jpg", "captions": None},
                ]
            ),
        ),
    ],
)
def test_a_row_with_all_captions_of_an_image_leaves_out_what_is_not_given(
    tmp_path, format, content
):
    rows = table(tmp_path, content, format)
    assert sorted(told(rows)) == [("a.jpg", ("One", "Two")), ("b.jpg", ("Three",)), ("c.jpg", ())]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_an_empty_caption_of_a_long_table_is_a_reference(tmp_path, format):
    records = [{"image": "a.jpg", "caption": "One"}, {"image": "a.jpg", "caption": None}]
    records.append({"image": "b.jpg", "caption": " "})
    content = parquet(records) if format == "parquet" else jsonl(records)
    assert told(table(tmp_path, content, format)) == [("a.jpg", ("One", "")), ("b.jpg", ("",))]


def test_the_config_names_columns_before_any_usual_name(tmp_path):
    content = "image,photo,caption,alt,title,fold,split\nno,a.jpg,no,Alt,Title,dev,no\n"
    columns = Columns(image="photo", captions=("alt", "title"), split="fold")
    (row,) = table(tmp_path, content, columns=columns)
    assert (row.image_id, row.references, row.split) == ("a.jpg", ("Alt", "Title"), "dev")
    (row,) = table(tmp_path, content, columns=Columns(image="photo", caption="alt"))
    assert (row.references, row.split) == (("Alt",), "no")


def test_an_image_in_two_splits_stays_two_rows(tmp_path):
    content = "image,split,caption\na.jpg,train,One\na.jpg,test,Two\na.jpg,train,Three\nb.jpg,,X\n"
    rows = table(tmp_path, content)
    assert [(row.image_id, row.split, row.references) for row in rows] == [
        ("a.jpg", "test", ("Two",)),
        ("a.jpg", "train", ("One", "Three")),
        ("b.jpg", None, ("X",)),
    ]


def test_two_rows_of_one_name_in_a_wide_table_are_both_there(tmp_path):
    rows = table(tmp_path, "image,caption1,caption2\na.jpg,One,Two\na.jpg,Three,\n")
    assert told(rows) == [("a.jpg", ("One", "Two")), ("a.jpg", ("Three",))]


def test_flickr30ks_bars_are_read_and_its_broken_line_is_told(tmp_path):
    content = (
        "image_name| comment_number| comment\n"
        "1.jpg| 0| Two friends , relaxing .\n"
        "2.jpg| 0   A dog runs .\n"
        "1.jpg| 1| Two men .\n"
    )
    rows = table(tmp_path, content)
    assert told(rows) == [
        ("captions.csv:3", ("2.jpg| 0   A dog runs .",)),
        ("1.jpg", ("Two friends , relaxing .", "Two men .")),
    ]
    detail = "captions.csv, line 3: 2 cells, where the first line names 3"
    assert faults(rows) == [("captions.csv:3", "malformed_row", detail)]


def test_flickr_tokens_are_gathered_by_image(tmp_path):
    path = tmp_path / "Flickr8k.token.txt"
    path.write_bytes(
        b'\xef\xbb\xbfa.jpg#0\tA dog, a "cat" .\r\n b.jpg.1#0 \t Two men\tin tabs \r\n\r\n'
        b"a.jpg#1\t\r\nno tab#1\r\nc.jpg\tno number\r\n#3\tno name\r\n../d.jpg#0\tout\r\n"
    )
    rows = list(read_flickr_token(FlickrTokenSource(format="flickr_token", captions=path)))
    assert told(rows) == [
        ("b.jpg.1", ("Two men\tin tabs",)),
        ("a.jpg", ('A dog, a "cat" .', "")),
        ("Flickr8k.token.txt:5", ("no tab#1",)),
        ("Flickr8k.token.txt:6", ("no number",)),
        ("Flickr8k.token.txt:7", ("no name",)),
        ("../d.jpg", ("out",)),
    ]
    assert [rule for _, rule, _ in faults(rows)] == ["malformed_row"] * 3 + ["outside_folder"]
    assert faults(rows)[0][2] == "Flickr8k.token.txt, line 5: no image#number before a tab"


# --- written by others' writers, read back whole --------------------------------------------------


@pytest.mark.parametrize(("format", "delimiter"), [("csv", ","), ("tsv", "\t")])
@given(lines=LINES)
def test_whatever_a_csv_writer_writes_is_read_back(tmp_path_factory, format, delimiter, lines):
    content = written([["image", "caption"], *map(list, lines)], delimiter)
    rows = table(tmp_path_factory.mktemp("long"), content, format)
    assert read_back(rows) == by_name(lines)


@pytest.mark.parametrize(("format", "delimiter"), [("csv", ","), ("tsv", "\t")])
@given(cells=WIDE)
def test_whatever_a_csv_writer_writes_in_columns_is_read_back(
    tmp_path_factory, format, delimiter, cells
):
    lines = [[f"{place}.jpg", *captions] for place, captions in enumerate(cells)]
    content = written([["image", "caption1", "caption2"], *lines], delimiter)
    rows = table(tmp_path_factory.mktemp("wide"), content, format)
    assert read_back(rows) == {
        name: [text.strip() for text in captions if text.strip()] for name, *captions in lines
    }


@given(lines=LINES.filter(len))
def test_whatever_json_and_pyarrow_write_is_read_back(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("long")
    records = [{"image": name, "caption": caption} for name, caption in lines]
    expected = by_name(lines)
    assert read_back(table(folder, jsonl(records), "jsonl")) == expected
    assert read_back(table(folder, parquet(records), "parquet")) == expected
    lists = [{"image": name, "caption": captions} for name, captions in expected.items()]
    assert read_back(table(folder, jsonl(lists), "jsonl")) == expected
    assert read_back(table(folder, parquet(lists), "parquet")) == expected


@given(lines=LINES)
def test_whatever_a_token_file_can_hold_is_read_back(tmp_path_factory, lines):
    lines = [(name, re.sub(r"[\r\n]", " ", caption)) for name, caption in lines]
    path = tmp_path_factory.mktemp("token") / "token.txt"
    text = "".join(f"{name}#{place}\t{caption}\n" for place, (name, caption) in enumerate(lines))
    path.write_bytes(text.encode())
    rows = read_flickr_token(FlickrTokenSource(format="flickr_token", captions=path))
    assert read_back(list(rows)) == by_name(lines)


@settings(max_examples=60)
@given(
    st.sampled_from(["csv", "tsv", "jsonl"]),
    st.lists(st.text(st.sampled_from('ab.jpg,"\t\n\r {}[]:\\uD8\0é'), max_size=30), max_size=8),
)
def test_no_line_stops_a_table_and_what_comes_can_be_written(tmp_path_factory, format, lines):
    start = {"csv": "image,caption", "tsv": "image\tcaption", "jsonl": '{"image":"","caption":""}'}
    rows = table(tmp_path_factory.mktemp("any"), "\n".join([start[format], *lines]), format)
    for row in rows:
        assert row.references
        assert all(text.encode() is not None for text in (row.image_id, *row.references))


# --- images in cells ------------------------------------------------------------------------------


def test_images_in_the_cells_come_as_bytes_neighbours_together(tmp_path):
    one, two = picture(shade=1), picture(shade=2)
    (tmp_path / "beside.jpg").write_bytes(one)  # the folder of a table with images is not theirs
    records = [
        {"image": {"bytes": one, "path": "one.jpg"}, "text": "One"},
        {"image": {"bytes": one, "path": "one.jpg"}, "text": "Uno"},
        {"image": {"bytes": two, "path": None}, "text": "Two"},
        {"image": {"bytes": None, "path": "three.jpg"}, "text": "Three"},
        {"image": None, "text": "Nothing"},
    ]
    rows = table(tmp_path, parquet(records), "parquet")
    assert [(row.image_id, row.image, row.references) for row in rows[:3]] == [
        ("one.jpg", one, ("One", "Uno")),
        ("captions.parquet:3", two, ("Two",)),
        ("three.jpg", tmp_path.resolve() / "three.jpg", ("Three",)),
    ]
    detail = "captions.parquet, row 5: 'image' is no file name but null"
    assert faults(rows) == [("captions.parquet:5", "malformed_row", detail)]
    assert rows[3].references == ("Nothing",)
    assert len(rows) == 4


def test_plain_bytes_are_images_too_and_a_named_folder_is_looked_into(tmp_path):
    one = picture(shade=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "beside.jpg").write_bytes(one)
    records = [{"image": one, "caption": ["One", "Uno"], "split": "dev"}]
    rows = table(tmp_path, parquet(records), "parquet", images=tmp_path / "photos")
    assert [(row.image_id, row.references, row.split) for row in rows] == [
        ("captions.parquet:1", ("One", "Uno"), "dev"),
        ("beside.jpg", (), None),
    ]
    assert rows[0].image == one


def test_a_parquet_of_many_batches_is_read_as_pyarrow_reads_it(tmp_path):
    records = [{"image": f"{n % 150}.jpg", "caption": f"caption {n}"} for n in range(1000)]
    rows = table(tmp_path, parquet(records), "parquet")
    there = pq.read_table(tmp_path / "captions.parquet").to_pylist()
    assert read_back(rows) == by_name([(line["image"], line["caption"]) for line in there])
    assert len(rows) == 150


# --- where images lie -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "sub/../../secret.jpg", "/etc/passwd", "https://x.org/a.jpg", ".."]
)
def test_an_image_outside_the_folder_is_told_with_its_line_and_keeps_its_captions(tmp_path, name):
    rows = table(tmp_path, f"image,caption\na.jpg,A dog .\n{name},A cat .\n{name},Two cats .\n")
    assert [row.references for row in rows] == [("A dog .",), ("A cat .", "Two cats .")]
    ((_, rule, detail),) = faults(rows)
    assert rule == "outside_folder"
    assert detail.startswith("captions.csv, line 4: ")


def test_names_of_one_image_are_one_image(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    names = ["sub/a.jpg", "./sub//a.jpg", "x/../sub/a.jpg", "sub\\a.jpg", f"{folder}/sub/a.jpg"]
    names.append(f"{tmp_path}/link/sub/a.jpg")
    content = written([["image", "caption"], *([name, name] for name in names)])
    (row,) = table(tmp_path, content, images=tmp_path / "link")
    assert (row.image_id, row.references) == ("sub/a.jpg", tuple(names))
    assert row.image == folder.resolve() / "sub" / "a.jpg"


def test_urls_are_images_when_they_lie_under_the_folders_url(tmp_path):
    content = (
        "image,caption\n"
        "memory://photos/sub/a.jpg,One\n"
        "sub/a.jpg,Two\n"
        "memory://other/a.jpg,Three\n"
        "memory://photos/../other/a.jpg,Four\n"
    )
    rows = table(tmp_path, content, images="memory://photos/")
    assert [(row.image_id, row.references) for row in rows] == [
        ("sub/a.jpg", ("One", "Two")),
        ("memory://other/a.jpg", ("Three",)),
        ("../other/a.jpg", ("Four",)),
    ]
    assert rows[0].image == "memory://photos/sub/a.jpg"
    assert [rule for _, rule, _ in faults(rows)] == ["outside_folder"] * 2


def test_a_table_on_another_file_system_has_its_images_beside_it():
    fs = fsspec.filesystem("memory")
    fs.pipe("/readers/set/captions.csv", b"image,caption\nsub/a.jpg,One\n")
    fs.pipe({f"/readers/set/sub/{name}.jpg": picture() for name in "ab"})
    source = TableSource(format="csv", captions="memory://readers/set/captions.csv")
    assert [(row.image_id, row.image, row.references) for row in read_table(source)] == [
        ("sub/a.jpg", "memory://readers/set/sub/a.jpg", ("One",)),
        ("sub/b.jpg", "memory://readers/set/sub/b.jpg", ()),
    ]


@pytest.mark.parametrize("caption", ["caption", "caption1"])
def test_images_of_the_folder_that_no_row_names_come_last_without_captions(tmp_path, caption):
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "sub/c.jpg", "sub/d.jpg", "notes.txt"):
        (photos / name).write_bytes(picture())
    content = f"image,{caption}\n./a.jpg,One\nx/../sub/c.jpg,Two\nmissing.jpg,Three\n"
    rows = table(tmp_path, content, images=photos)
    assert told(rows) == [
        ("a.jpg", ("One",)),
        ("sub/c.jpg", ("Two",)),
        ("missing.jpg", ("Three",)),
        ("b.PNG", ()),
        ("sub/d.jpg", ()),
    ]
    assert rows[4].image == photos.resolve() / "sub" / "d.jpg"


# --- dirt -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "line", "problem", "references"),
    [
        ("csv", "b.jpg", "1 cells, where the first line names 2", ("b.jpg",)),
        ("csv", " ,A dog", "'image' is empty", ("A dog",)),
        ("jsonl", "nonsense", "not JSON", ("nonsense",)),
        ("jsonl", '{"image": "b.jpg", "caption": "cut of', "not JSON", None),
        ("jsonl", "[" * 100_000, "not JSON", ("[" * 200,)),
        ("jsonl", '["b.jpg", "A dog"]', "no JSON object", ('["b.jpg", "A dog"]',)),
        ("jsonl", '{"image": 7, "caption": "A dog"}', "'image' is no file name but 7", ("A dog",)),
        ("jsonl", '{"caption": "A dog"}', "'image' is no file name but null", ("A dog",)),
        ("jsonl", '{"image": "b.jpg", "caption": 7}', "a caption is no text: '7'", None),
        ("jsonl", r'{"image": "b.jpg", "caption": "\ud83d"}', "a caption is no text: '?'", None),
        ("jsonl", r'{"image": "\ud83d.jpg", "caption": "A"}', "'image' is no file name", ("A",)),
        ("jsonl", "{}", "'image' is no file name but null", ("{}",)),
    ],
)
def test_a_malformed_line_is_a_row_with_its_line_and_what_it_tells(
    tmp_path, format, line, problem, references
):
    records = [{"image": "a.jpg", "caption": "One"}]
    start = jsonl(records) if format == "jsonl" else "image,caption\n"
    end = jsonl(records) if format == "jsonl" else "a.jpg,One\n"
    rows = table(tmp_path, start + line + "\n" + end, format)
    ((image_id, rule, detail),) = faults(rows)
    assert (image_id, rule) == (f"captions.{format}:2", "malformed_row")
    assert detail.startswith(f"captions.{format}, line 2: {problem}")
    (malformed,) = [row for row in rows if isinstance(row.image, Fault)]
    assert malformed.references == ((line,) if references is None else references)
    assert ("a.jpg", ("One",) * (2 if format == "jsonl" else 1)) in told(rows)


@pytest.mark.parametrize(
    ("line", "problem", "references"),
    [
        ("b.jpg,One,Two", "3 cells, where the first line names 4", ("One", "Two")),
        ("b.jpg,One,Two,three,four", "5 cells, where", ("b.jpg,One,Two,three,four",)),
    ],
)
def test_a_wide_line_of_another_shape_is_malformed_not_guessed(tmp_path, line, problem, references):
    content = f"image,caption1,caption2,caption3\na.jpg,One,Two,Three\n{line}\n"
    rows = table(tmp_path, content)
    assert told(rows) == [("a.jpg", ("One", "Two", "Three")), ("captions.csv:3", references)]
    assert faults(rows)[0][2].startswith(f"captions.csv, line 3: {problem}")


def test_a_bad_element_of_a_list_makes_the_row_malformed_with_the_others(tmp_path):
    rows = table(tmp_path, jsonl([{"image": "a.jpg", "captions": ["One", 2, " Three "]}]), "jsonl")
    assert told(rows) == [("captions.jsonl:1", ("One", "Three"))]


def test_a_text_of_parquet_that_is_no_unicode_costs_its_own_row_only(tmp_path):
    captions = pa.array([b"One", b"caf\xe9", b"Three"]).view(pa.string())
    file = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.jpg", "b.jpg", "c.jpg"], "caption": captions}), file)
    rows = table(tmp_path, file.getvalue(), "parquet")
    assert [row.image_id for row in rows] == ["a.jpg", "captions.parquet:2", "c.jpg"]
    assert rows[1].image == Fault("malformed_row", "captions.parquet, row 2: text that isn't UTF-8")
    assert len(rows[1].references) == 1


def test_a_parquet_cut_in_its_middle_is_refused_with_the_row(tmp_path):
    records = [{"image": f"{n}.jpg", "captions": [f"caption {n}"]} for n in range(1000)]
    whole = bytearray(parquet(records))
    whole[4:2000] = bytes(1996)
    with pytest.raises(SourceError, match=r"captions\.parquet: damaged after row 0"):
        table(tmp_path, bytes(whole), "parquet")


@pytest.mark.parametrize("first", ["", "7,"])
def test_an_unclosed_quote_costs_its_own_line_only(tmp_path, first):
    header = "n,image,caption" if first else "image,caption"
    lines = [
        'a.jpg,"A dog',
        "b.jpg,A cat",
        'c.jpg,"A bird, ""two""\nlines"',
        'd.jpg,"open',
        "e.jpg,E",
    ]
    rows = table(tmp_path, "\n".join([header, *(first + line for line in lines)]))
    assert told(rows) == [
        ("captions.csv:2", (f'{first}a.jpg,"A dog',)),
        ("b.jpg", ("A cat",)),
        ("c.jpg", ('A bird, "two"\nlines',)),
        ("captions.csv:6", (f'{first}d.jpg,"open',)),
        ("e.jpg", ("E",)),
    ]
    detail = "captions.csv, line 2: a quote is opened and not closed"
    assert faults(rows)[0] == ("captions.csv:2", "malformed_row", detail)


def test_a_quote_open_for_longer_than_a_cell_may_be_costs_its_own_line_only(tmp_path):
    fine = "".join(f"caption {n},{n % 50}.jpg\n" for n in range(8000))
    rows = table(tmp_path, f'caption,image\n"open,bad.jpg\n{fine}')
    assert faults(rows) == [
        (
            "captions.csv:2",
            "malformed_row",
            "captions.csv, line 2: a quote is opened and not closed",
        )
    ]
    assert sum(len(row.references) for row in rows) == 8001


@pytest.mark.parametrize(
    ("format", "content", "expected"),
    [
        ("csv", "", "no image column that I know; its columns are none"),
        (
            "csv",
            "a.jpg,A dog\n",
            r"its columns are 'a\.jpg', 'A dog'.*data\.source\.columns\.image",
        ),
        ("csv", "image,label\na.jpg,dog\n", r"no caption column.*'label'.*columns\.caption to its"),
        ("tsv", "image,caption\na.jpg,dog\n", r"its columns are 'image,caption'"),
        ("jsonl", "", "its columns are none"),
        ("jsonl", '{"photo": "a.jpg"}\n', r"its columns are 'photo'.*columns\.image"),
        ("parquet", b"PAR1 not really", "not a Parquet file"),
        ("parquet", parquet([{"image": "a.jpg", "n": 1}]), r"'n'.*columns\.caption"),
    ],
)
def test_a_table_without_usable_columns_is_refused_with_those_it_has(
    tmp_path, format, content, expected
):
    with pytest.raises(SourceError, match=expected) as error:
        table(tmp_path, content, format)
    assert f"captions.{format}" in str(error.value)


def test_a_column_of_the_config_that_is_not_there_is_named_with_its_key(tmp_path):
    for key, value in (("caption", "alt"), ("captions", ("caption", "alt")), ("split", "alt")):
        with pytest.raises(SourceError, match=rf"no column 'alt'.*data\.source\.columns\.{key}\."):
            table(tmp_path, "image,caption\na.jpg,A\n", columns=Columns(**{key: value}))


def test_a_missing_file_is_refused_with_the_key_to_change(tmp_path):
    for format in ("csv", "tsv", "jsonl", "parquet"):
        source = TableSource(format=format, captions=tmp_path / "no", images=tmp_path)
        with pytest.raises(SourceError, match=r"no: no such file.*data\.source"):
            list(read_table(source))


@pytest.mark.parametrize(
    ("encoding", "given", "line", "looks"),
    [
        ("cp1252", "utf-8", 2002, "cp1252"),
        ("utf-16", "utf-8", 1, "utf-16"),
        ("utf-16-be", "ascii", 1, "utf-16-be"),
        ("utf-16-le", "utf-8", 1, "utf-16-le"),
        ("utf-8", "ascii", 2002, "utf-8"),
        ("utf-8", "utf-16", 1, "utf-8"),
    ],
)
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_another_encoding_is_told_with_the_line_and_the_fix_that_works(
    tmp_path, format, encoding, given, line, looks
):
    lines = ["image,caption", *(f"{n}.jpg,a dog" for n in range(2000)), "é.jpg,un café"]
    if format == "jsonl":
        records = [dict(zip(("image", "caption"), text.split(","), strict=True)) for text in lines]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
    content = "\n".join(lines).encode(encoding)
    expected = rf"captions\.{format}, line {line}: not {given}; .*data\.source\.encoding: {looks}$"
    with pytest.raises(SourceError, match=expected):
        table(tmp_path, content, format, encoding=given)
    rows = table(tmp_path, content, format, encoding=looks)
    assert told(rows)[-1] == ("é.jpg", ("un café",))


def test_an_encoding_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"data\.source\.encoding"):
        table(tmp_path, "image,caption\n", encoding="klingon")


# --- size -----------------------------------------------------------------------------------------


def test_a_long_table_holds_no_captions_of_images_that_are_complete(tmp_path):
    caption = "a dog runs over the grass " * 40
    source = TableSource(format="csv", captions=tmp_path / "captions.csv")
    with source.captions.open("w") as file:
        file.write("image,caption\n")
        file.writelines(f"{n // 5}.jpg,{caption}\n" for n in range(2500))
    tracemalloc.start()
    images = sum(1 for _ in read_table(source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images == 500
    assert peak < source.captions.stat().st_size / 5


@pytest.mark.parametrize(
    ("name", "images", "captions"),
    [("captions.txt", 1000, 5000), ("captions_full.txt", 8091, 40455)],
)
def test_the_real_caption_files_are_read_whole(photos, name, images, captions):
    source = TableSource(format="csv", images=photos / "images", captions=photos / name)
    rows = list(read_table(source))
    assert len(rows) == images
    assert sum(len(row.references) for row in rows) == captions
    assert sum(row.image.is_file() for row in rows) == 1000
    assert {len(row.references) for row in rows} == {5}
