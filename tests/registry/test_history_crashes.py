"""Killed after each write in turn: one valid champion right after, and the right history once it is
run again. `-s` shows the table."""

import multiprocessing
import shutil
import signal
from pathlib import Path

import pytest

from configs.loader import load
from configs.settings import ROOT
from tasks.registry import history, lineage, runs, versions
from tasks.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, NoSuchVersion
from tests.registry.backends import die_after

NAME = "shapes"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.registry.backends", "tasks.registry.lineage", "mlflow"])


def promote() -> None:
    """v2, which was judged against v1."""
    version = versions.by_number(NAME, 2)
    lineage.record_bento(version, "captioner:b")
    history.promote(version, over=versions.by_number(NAME, 1), why="promoted", by="gate")


def roll_back() -> None:
    """To v1, which is named; as the flow does."""
    serving = history.champion(NAME)
    if serving.version == 1:
        with pytest.raises(NoSuchVersion, match="v1 is champion already"):
            history.restorable(NAME, 1)
    else:
        restored = history.restorable(NAME, 1)
        history.promote(restored, over=serving, why="rolled back: it lies", by="ann")


def register(prepared, scores, model) -> None:
    """The model, once more: v3."""
    config = load(ROOT / "configs" / "demo.yaml")
    lineage.record(config, model, prepared, scores)
    tags = lineage.tags(config, model, prepared, scores, history.champion(NAME), "by hand")
    version = versions.register(NAME, model, tags)
    lineage.describe(NAME, version.version)


@pytest.fixture
def first(logged):
    """v1 is champion, v2 challenger."""
    model = logged("first")
    history.promote(versions.register(NAME, model, {}), over=None, why="the first", by="gate")
    versions.register(NAME, logged("second"), {})
    return model


class Deaths:
    """A registry as it is now, and again for each death."""

    def __init__(self, var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.var, self.monkeypatch = var, monkeypatch

    def each(self, work, *arguments):
        """After so many writes; ends with the work itself coming to its end."""
        number = 0
        while True:
            number += 1
            var = self.var.with_name(f"died-{number}")
            (var / "mlflow").mkdir(parents=True)
            shutil.copyfile(self.var / "mlflow" / "mlflow.db", var / "mlflow" / "mlflow.db")
            child = FORKS.Process(target=die_after, args=(number, str(var), work, *arguments))
            child.start()
            child.join(120)
            assert child.exitcode in (0, -signal.SIGKILL)
            self.monkeypatch.setenv("CAPTIONLOOP_VAR", str(var))
            # MLflow leaves it where it was set, and it would win.
            self.monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
            yield number, child.exitcode != 0
            if child.exitcode == 0:
                return


@pytest.fixture
def deaths(var, monkeypatch):
    return Deaths(var, monkeypatch)


def served() -> int:
    """What a service that follows the alias takes up: its files are there and whole."""
    version = int(runs.client().get_model_version_by_alias(NAME, CHAMPION).version)
    weights = versions.fetch(versions.by_number(NAME, version).model) / "model.safetensors"
    assert weights.read_text() == {1: "first", 2: "second"}[version]
    return version


def events() -> list[tuple[int | None, int | None]]:
    return [(event.version, event.over) for event in history.read(NAME)]


def show(title: str, rows: list[tuple[object, ...]]) -> None:
    print(f"\n{title}: killed after write | champion right after | for who looks | run again")
    for row in rows:
        print("  " + " | ".join(map(str, row)))


def died_at_each_write(deaths, work, before: int, after: int, log) -> list[tuple[object, ...]]:
    rows = []
    for number, died in deaths.each(work):
        alias = served()
        assert alias in (before, after)
        looked = history.champion(NAME).version
        decided = len(events()) == len(log)
        assert looked == served() == (after if decided else before)
        work()
        assert served() == history.champion(NAME).version == after
        assert versions.aliases(NAME) == {CHAMPION: after, PREVIOUS: before}
        assert events() == log
        rows.append((number if died else "never", f"v{alias}", f"v{looked}", f"v{after}"))
    assert len(rows) > 5
    return rows


@pytest.mark.e2e
def test_a_promotion_killed_after_any_write_leaves_one_champion_and_is_finished_by_a_rerun(
    first, deaths
):
    rows = died_at_each_write(deaths, promote, 1, 2, [(1, None), (2, 1)])
    show("promotion of v2 over v1", rows)
    assert {row[1] for row in rows} == {"v1", "v2"}


@pytest.mark.e2e
def test_a_rollback_killed_after_any_write_leaves_one_champion_and_is_finished_by_a_rerun(
    first, deaths
):
    promote()
    rows = died_at_each_write(deaths, roll_back, 2, 1, [(1, None), (2, 1), (1, 2)])
    show("rollback from v2 to v1", rows)
    assert {row[1] for row in rows} == {"v1", "v2"}


@pytest.mark.e2e
def test_a_registration_killed_after_any_write_is_finished_by_a_rerun_as_one_version(
    first, logged, prepared, evaluated, deaths
):
    arguments = (prepared, evaluated, logged("third"))
    rows = []
    for number, died in deaths.each(register, *arguments):
        assert served() == 1
        found = len(runs.client().search_model_versions(f"name = '{NAME}'"))
        register(*arguments)
        assert versions.aliases(NAME) == {CHAMPION: 1, CHALLENGER: 3}
        assert len(runs.client().search_model_versions(f"name = '{NAME}'")) == 3
        assert versions.tags(NAME, 3)["parent_champion"] == "1"
        assert lineage.judged(versions.by_number(NAME, 3)) == ["not judged yet"]
        rows.append((number if died else "never", f"v1 of {found}", "v1", "v1 of 3"))
    show("registration of v3", rows)
