"""WebDataset shards are streamed, whole or damaged, and every sample is told."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from conftest import picture

from configs.schema import Columns, WebDatasetSource
from tasks.data.readers import places, webdataset
from tasks.data.readers.webdataset import read_webdataset
from tasks.data.rows import Fault, Row, SourceError

Members = list[tuple[str, bytes]]


def shard(path: Path, members: Members, mode: str = "w") -> Path:
    """A tar of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def members_of(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return {member.name: member for member in archive}


def rows_of(*shards: Path, **columns) -> list[Row]:
    source = WebDatasetSource(format="webdataset", shards=shards, columns=Columns(**columns))
    return list(read_webdataset(source))


def told(rows: list[Row]) -> list[tuple]:
    """Each row's id, its image or the rule that it breaks, its captions and its split."""
    images = (row.image.rule if isinstance(row.image, Fault) else row.image for row in rows)
    return [
        (row.image_id, image, row.references, row.split)
        for row, image in zip(rows, images, strict=True)
    ]


RED, BLUE = picture(shade=3), picture(shade=7, kind="PNG")


def test_samples_are_runs_of_members_with_one_key_and_both_kinds_of_captions_count(tmp_path):
    described = {"captions": ["A cat .", "Two cats ."], "split": "val", "width": 64}
    path = shard(
        tmp_path / "s-0.tar",
        [
            ("./a.jpg", RED),
            ("./a.txt", "\ufeffA dog,\n a bone .\n".encode()),
            ("b/c.x.PNG", BLUE),
            ("b/c.cls", b"4"),
            ("b/c.json", json.dumps(described).encode()),
            ("b/c.txt", b"A cat ."),
            ("README", b"no sample"),
            ("d.jpeg", RED),
            ("d.txt", b""),
            ("e.webp", BLUE),
        ],
    )
    assert told(rows_of(path)) == [
        ("s-0/a", RED, ("A dog,\n a bone .",), None),
        ("s-0/b/c", BLUE, ("A cat .", "Two cats ."), "val"),
        ("s-0/d", RED, ("",), None),
        ("s-0/e", BLUE, (), None),
    ]
    assert {row.source for row in rows_of(path)} == {"webdataset"}


def test_named_columns_take_their_captions_and_their_image_alone(tmp_path):
    described = {"alt": "A thing", "short": "A dog .", "long": "A brown dog ."}
    members = [
        ("a.depth.png", BLUE),
        ("a.jpg", RED),
        ("a.json", json.dumps(described).encode()),
        ("a.txt", b"A thing"),
    ]
    path = shard(tmp_path / "s.tar", members)
    assert told(rows_of(path)) == [
        ("s/a", RED, ("A thing",), None),
        ("s/a.depth.png", BLUE, (), None),
    ]
    assert told(rows_of(path, captions=("short", "long"), image="depth.png")) == [
        ("s/a", BLUE, ("A dog .", "A brown dog ."), None),
        ("s/a.jpg", RED, (), None),
    ]


@pytest.mark.parametrize(
    ("members", "rule", "detail", "references"),
    [
        ([("a.txt", b"A dog .")], "missing", "no image", ("A dog .",)),
        ([("a.wav", b"RIFF")], "missing", "no image", ("",)),
        ([("a.jpg", RED), ("a.json", b'{"caption": ')], "malformed_row", "can't be read", ("",)),
        ([("a.jpg", RED), ("a.json", b"[" * 9999)], "malformed_row", "can't be read", ("",)),
        ([("a.jpg", RED), ("a.json", b"[]")], "malformed_row", "no object", ("",)),
        ([("a.jpg", RED), ("a.json", b'{"text": [7, "Hi"]}')], "malformed_row", "no text", ("Hi",)),
        ([("a.jpg", RED), ("a.json", rb'{"text": "\ud800"}')], "malformed_row", "no text", ("",)),
        ([("a.jpg", RED), ("a.txt", b"\xff\xfe")], "malformed_row", "can't be read", ("",)),
    ],
)
def test_a_bad_sample_is_one_row_that_says_why_and_the_next_one_is_read(
    tmp_path, members, rule, detail, references
):
    bad, good = rows_of(shard(tmp_path / "s.tar", [*members, ("b.jpg", RED), ("b.txt", b"Hi")]))
    assert isinstance(bad.image, Fault)
    assert (bad.image_id, bad.image.rule, bad.references) == ("s/a", rule, references)
    assert detail in bad.image.detail
    assert "s/a" in bad.image.detail
    assert told([good]) == [("s/b", RED, ("Hi",), None)]


def test_what_is_too_big_or_no_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_SAMPLE_BYTES", len(RED))
    path = shard(tmp_path / "s.tar", [("a.jpg", RED + b"."), ("a.txt", b""), ("b.jpg", RED)])
    big, fitting = rows_of(path)
    assert (big.image.rule, big.references) == ("malformed_row", ("",))
    assert "'a.jpg' goes beyond" in big.image.detail
    assert fitting.image == RED
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (row,) = rows_of(tmp_path / "links.tar")
    assert (row.image.rule, row.references) == ("malformed_row", ("",))


def test_wherever_a_shard_is_cut_its_whole_samples_are_kept_and_the_cut_is_told_once(tmp_path):
    members = [("a.jpg", RED), ("a.txt", b"A dog ."), ("b.jpg", BLUE), ("b.txt", b"A cat .")]
    whole = shard(tmp_path / "whole.tar", members).read_bytes()
    content = list(members_of(tmp_path / "whole.tar").values())
    end = content[-1].offset_data + 512  # where the end mark begins
    full = [("cut/a", RED, ("A dog .",), None), ("cut/b", BLUE, ("A cat .",), None)]
    (tmp_path / "cut.tar").write_bytes(whole[: end + 1024])
    assert told(rows_of(tmp_path / "cut.tar")) == full
    for size in range(1, end + 1, 173):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        *kept, last = rows_of(tmp_path / "cut.tar")
        samples = sum(size >= one.offset_data + 512 for one in content[1::2])
        assert told(kept)[:samples] == full[:samples], size
        assert len(kept) <= samples + 1
        assert (last.image_id, last.image.rule, last.references) == ("cut/", "malformed_row", ("",))
        assert str(tmp_path / "cut.tar") in last.image.detail


def test_a_cut_names_the_member_and_the_byte_and_other_shards_are_read(tmp_path):
    first = shard(tmp_path / "a.tar", [("1.jpg", RED), ("1.txt", b"A dog ."), ("2.jpg", BLUE)])
    first.write_bytes(first.read_bytes()[: members_of(first)["2.jpg"].offset_data + 9])
    (tmp_path / "b.tar").write_bytes(b"this is no tar")
    (tmp_path / "c.tar").touch()
    shard(tmp_path / "d.tar", [("1.jpg", RED), ("1.txt", b"A cat .")])
    rows = rows_of(tmp_path)
    assert [row.image_id for row in rows] == ["a/1", "a/", "b/", "c/", "d/1"]
    place = members_of(tmp_path / "d.tar")["1.txt"].offset + 1024
    assert f"from '2.jpg' at byte {place} on" in rows[1].image.detail
    assert "from its start on" in rows[2].image.detail


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = shard(tmp_path / "s.tar", [("a.jpg", RED), ("a.txt", b"Hi"), ("b.jpg", RED)])
    data = bytearray(path.read_bytes())
    data[members_of(path)["b.jpg"].offset + 150] ^= 1  # in its checksum
    path.write_bytes(data)
    assert [row.image_id for row in rows_of(path)] == ["s/a", "s/"]


def test_compressed_shards_are_streamed_too_and_a_folder_gives_its_shards_sorted(tmp_path):
    shard(tmp_path / "train" / "1.tar.gz", [("a.jpg", RED), ("a.txt", b"One .")], "w:gz")
    shard(tmp_path / "train" / "0.tar", [("a.jpg", RED), ("a.txt", b"Zero .")])
    shard(tmp_path / "val-0.tgz", [("a.jpg", BLUE), ("a.txt", b"Two .")], "w:gz")
    (tmp_path / "index.json").write_text("{}")
    assert told(rows_of(tmp_path)) == [
        ("train/0/a", RED, ("Zero .",), "train"),
        ("train/1/a", RED, ("One .",), "train"),
        ("val-0/a", BLUE, ("Two .",), "val"),
    ]


def test_the_first_row_comes_before_the_second_shard_is_opened(tmp_path, monkeypatch):
    opened = []
    real = places.open_binary
    monkeypatch.setattr(places, "open_binary", lambda place: opened.append(place) or real(place))
    shards = [
        shard(tmp_path / f"{n}.tar", [("a.jpg", RED), ("a.txt", b"Hi"), ("b.txt", b"")])
        for n in range(3)
    ]
    rows = read_webdataset(WebDatasetSource(format="webdataset", shards=tuple(shards)))
    assert next(rows).image_id == "0/a"
    assert opened == shards[:1]
    assert len(list(rows)) == 5
    assert opened == shards


def test_no_more_of_a_shard_is_held_than_a_sample(tmp_path, monkeypatch):
    held = []
    real = webdataset._Header.fromtarfile.__func__

    def counted(cls, archive):
        held.append(len(archive.members))
        return real(cls, archive)

    monkeypatch.setattr(webdataset._Header, "fromtarfile", classmethod(counted))
    rows_of(shard(tmp_path / "s.tar", [(f"{n}.jpg", RED) for n in range(50)]))
    assert len(held) == 51
    assert max(held) <= 1


def test_shards_that_are_not_there_or_share_a_name_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"no-such\.tar: no such file"):
        rows_of(tmp_path / "no-such.tar")
    with pytest.raises(SourceError, match=r"no \.tar in it; correct data\.source\.shards"):
        rows_of(tmp_path)
    shards = [shard(tmp_path / name / "0.tar", [("a.jpg", RED)]) for name in ("x", "y")]
    with pytest.raises(SourceError, match="2 shards are named '0'"):
        rows_of(*shards)
