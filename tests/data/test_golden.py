"""The golden set is frozen once, stays what it was, and nothing like it is ever trained on."""

import io

import pytest
from conftest import picture
from PIL import Image

from configs.schema import Actions, ChecksConfig, GoldenSource, SplitsConfig
from tasks.data import golden
from tasks.data.checks import run as checks
from tasks.data.golden import AlreadyFrozen, freeze
from tasks.data.raw import ingest
from tasks.data.records import read_records
from tasks.data.rows import SourceError

SHARES = SplitsConfig(val=0.2, test=0.3)


def resized(data: bytes) -> bytes:
    image, buffer = Image.open(io.BytesIO(data)), io.BytesIO()
    image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images():
    return {f"{n}.png": (picture(200, 150, shade=n), [f"thing number {n}"]) for n in range(30)}


@pytest.fixture
def validated(tmp_path, write_csv, images):
    return check([write_csv(images)], tmp_path)


def check(sources, folder, config: ChecksConfig | None = None):
    raw = ingest(sources, folder / "raw")
    config = config or ChecksConfig(max_quarantined_share=1.0)
    return checks.run(raw, config, SHARES, 7, folder / "validated", name="mine")


def splits(report) -> dict[str, str | None]:
    return {record.image_id: record.split for record in read_records(report.dataset)}


def test_what_is_frozen_is_the_test_split_and_comes_back_as_golden(tmp_path, validated):
    count = freeze(validated.dataset, tmp_path / "golden")
    tests = {name for name, split in splits(validated).items() if split == "test"}
    assert count == len(tests) > 3
    again = check([GoldenSource(format="golden", folder=tmp_path / "golden")], tmp_path)
    assert splits(again) == dict.fromkeys(tests, "golden")


def test_it_is_frozen_once(tmp_path, validated):
    freeze(validated.dataset, tmp_path / "golden", images=3)
    with pytest.raises(AlreadyFrozen, match="is there already"):
        freeze(validated.dataset, tmp_path / "golden")


@pytest.mark.parametrize("action", ["quarantine", "note"])
def test_neither_its_images_nor_what_resembles_them_is_trained_on(
    tmp_path, validated, write_csv, images, action
):
    freeze(validated.dataset, tmp_path / "golden")
    source = GoldenSource(format="golden", folder=tmp_path / "golden")
    frozen = set(splits(check([source], tmp_path)))
    alike = {f"like_{name}": (resized(images[name][0]), ["much the same"]) for name in frozen}
    later = write_csv({**images, **alike}, at="later")
    config = ChecksConfig(max_quarantined_share=1.0, actions=Actions(leak=action))
    found = splits(check([source, later], tmp_path, config))
    assert {name for name, split in found.items() if split == "golden"} == frozen
    assert not found.keys() & alike.keys()
    assert len(found) == len(images)
    before = splits(validated)
    assert all(found[name] == before[name] for name in images.keys() - frozen), "nothing moved"


def test_a_damaged_golden_set_is_refused_by_name(tmp_path, validated):
    freeze(validated.dataset, tmp_path / "golden")
    one = next((tmp_path / "golden" / "images").iterdir())
    one.write_bytes(b"another")
    with pytest.raises(SourceError, match=one.name):
        ingest([GoldenSource(format="golden", folder=tmp_path / "golden")], tmp_path / "raw")


def test_the_command_freezes_once_and_says_how_to_use_it(tmp_path, var, monkeypatch, capsys):
    scenario = tmp_path / "mine.yaml"
    scenario.write_text("name: mine\ndata: {source: {format: scenes, count: 60}}\n")
    arguments = [str(scenario), "--to", str(tmp_path / "golden"), "--images", "4"]
    assert golden.main(arguments) == 0
    assert f"froze 4 images in {tmp_path / 'golden'}" in capsys.readouterr().out
    assert golden.main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
