"""What DVC was given comes back byte by byte on another machine that has only the remote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from s3 import served_bucket

from configs.settings import ROOT
from tasks.data import versioning
from tasks.data.folders import sha256_file
from tasks.data.versioning import VersionError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Switches to a machine with a `var` folder of its own; all share one remote."""
    monkeypatch.setenv("CAPTIONLOOP_DVC_REMOTE", str(tmp_path / "remote"))

    def switch(name: str) -> None:
        monkeypatch.setenv("CAPTIONLOOP_VAR", str(tmp_path / name))

    switch("here")
    return switch


def folder(at: Path, text: str = "one") -> Path:
    (at / "inner").mkdir(parents=True)
    (at / "a.txt").write_text(text)
    (at / "inner" / "b.bin").write_bytes(bytes(range(256)) * 40)
    return at


def content(at: Path) -> dict[str, str]:
    return {str(p.relative_to(at)): sha256_file(p) for p in at.rglob("*") if p.is_file()}


def test_a_version_is_restored_from_the_remote_alone(tmp_path, machine):
    data = folder(tmp_path / "data")
    before = content(data)
    md5 = versioning.version(data, "prepared")
    assert md5.endswith(".dir")
    assert content(data) == before
    machine("elsewhere")
    versioning.restore(md5, tmp_path / "back")
    assert content(tmp_path / "back") == before


def test_a_version_is_restored_from_a_bucket_alone(tmp_path, machine, monkeypatch):
    data = folder(tmp_path / "data")
    before = content(data)
    with served_bucket("shared") as url:
        monkeypatch.setenv("CAPTIONLOOP_DVC_REMOTE", f"{url}/datasets")
        md5 = versioning.version(data, "prepared")
        shutil.rmtree(data)
        shutil.rmtree(tmp_path / "here")
        machine("elsewhere")
        versioning.restore(md5, tmp_path / "back")
    assert content(tmp_path / "back") == before
    assert not (tmp_path / "remote").exists()


def test_a_bucket_that_is_not_there_is_told_by_name_with_the_fix(tmp_path, machine, monkeypatch):
    with served_bucket("lonely") as url:
        monkeypatch.setenv("CAPTIONLOOP_DVC_REMOTE", f"{url}-gone/datasets")
        with pytest.raises(VersionError, match=r"prepared .*lonely-gone.*CAPTIONLOOP_DVC_REMOTE"):
            versioning.version(folder(tmp_path / "data"), "prepared")
    with pytest.raises(VersionError, match=r"prepared .*CAPTIONLOOP_DVC_REMOTE"):
        versioning.version(folder(tmp_path / "other"), "prepared")  # nobody serves it any more


def test_an_older_version_stays_and_the_same_content_keeps_its_md5(tmp_path, machine):
    one = versioning.version(folder(tmp_path / "one", "one"), "prepared")
    two = versioning.version(folder(tmp_path / "two", "two"), "prepared")
    assert one != two == versioning.version(tmp_path / "two", "prepared")
    assert one == versioning.version(tmp_path / "one", "other name")
    machine("elsewhere")
    versioning.restore(one, tmp_path / "back")
    assert (tmp_path / "back" / "a.txt").read_text() == "one"


def test_restoring_repairs_a_damaged_folder(tmp_path, machine):
    md5 = versioning.version(folder(tmp_path / "data"), "prepared")
    before = content(tmp_path / "data")
    (tmp_path / "data" / "a.txt").unlink()
    versioning.restore(md5, tmp_path / "data")
    assert content(tmp_path / "data") == before


def test_the_data_lies_on_the_disk_once_and_once_in_the_remote(tmp_path, machine):
    versioning.version(folder(tmp_path / "data"), "prepared")
    inodes = {path.stat().st_ino for path in tmp_path.rglob("*") if path.stat().st_size == 256 * 40}
    assert len(inodes) == 2


def test_a_version_that_nobody_pushed_is_told_by_name(tmp_path, machine):
    missing = "0" * 32 + ".dir"
    with pytest.raises(versioning.VersionError, match=f"{missing} could not be pulled"):
        versioning.restore(missing, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_remote_that_lost_or_changed_bytes_gives_no_dataset(tmp_path, machine):
    md5 = versioning.version(folder(tmp_path / "data"), "prepared")
    [stored] = [p for p in (tmp_path / "remote").rglob("*") if p.stat().st_size == 256 * 40]
    stored.chmod(0o644)
    stored.write_bytes(b"x" * 256 * 40)
    machine("elsewhere")
    with pytest.raises(versioning.VersionError):
        versioning.restore(md5, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_two_processes_wait_for_each_other(tmp_path, machine):
    code = (
        "import sys; from pathlib import Path; from tasks.data import versioning\n"
        "print(versioning.version(Path(sys.argv[1]), 'prepared'))"
    )
    folders = [folder(tmp_path / name, name) for name in ("one", "two")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=dict(os.environ),
        )
        for path in folders
    ]
    md5s = [process.communicate(timeout=120)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert len(set(md5s)) == 2
