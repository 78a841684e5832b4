import importlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from pydantic import BaseModel

from tasks.caching import CannotKey, content_digest, fingerprint
from tasks.refs import DatasetRef, ModelRef, Ref

STAGE = """
from pathlib import Path

from prefect import task
from pydantic import BaseModel

from shop.library import arithmetic
from tasks.caching import ByContent
from tasks.refs import DatasetRef

BY_CONTENT = ByContent(root=Path(__file__).parent.parent, packages=("shop",))


class Limits(BaseModel):
    factor: int = 2
    table: Path | None = None


@task(cache_policy=BY_CONTENT, persist_result=True)
def scale(amount: int, limits: Limits) -> int:
    return arithmetic.times(amount, limits.factor)


@task(cache_policy=BY_CONTENT, persist_result=True)
def write(folder: str, given: DatasetRef | None = None) -> list[dict[str, DatasetRef]]:
    made = Path(folder) / "made"
    made.mkdir(parents=True)
    return [{"made": DatasetRef(uri=str(made), digest="d", num_images=1, num_captions=1)}]


@task(cache_policy=BY_CONTENT, persist_result=True)
def take(anything) -> int:
    return 1
"""

ARITHMETIC = """
def times(amount, factor):
    # Kept apart, so that the stage reaches it through two imports.
    from .deep import product

    return product(amount, factor)
"""

FILES = {
    "__init__.py": "",
    "stage.py": STAGE,
    "library/__init__.py": '"""A room."""\n',
    "library/arithmetic.py": ARITHMETIC,
    "library/deep.py": "import shop.stage\n\n\ndef product(a, b):\n    return a * b\n",
    "unrelated.py": "VALUE = 1\n",
}


class Shop:
    """A small project on disk whose tasks run as they would in a process started after an edit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ticks = itertools.count(1_000_000_000)
        for place, text in FILES.items():
            self.write(place, text)

    def write(self, place: str, text: str) -> None:
        """Write a module with a time of its own before this process started."""
        file = self.root / "shop" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        tick = next(self._ticks)
        os.utime(file, (tick, tick))

    def edit(self, place: str, old: str, new: str) -> None:
        text = (self.root / "shop" / place).read_text()
        assert old in text
        self.write(place, text.replace(old, new))

    def stage(self) -> Any:
        for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module("shop.stage")

    def fingerprint(self) -> str:
        return fingerprint("shop.stage", root=self.root, packages=("shop",))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Shop(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def in_a_flow(task: Any, *args: Any) -> tuple[bool, Any]:
    """Run one task in a flow run of its own: was it a cache hit, and what came out."""

    @flow
    def alone() -> tuple[bool, Any]:
        state = task(*args, return_state=True)
        return state.name == "Cached", state.result()

    return alone()


# --- hits and misses in real flow runs ------------------------------------------------------------

with_prefect = pytest.mark.usefixtures("prefect_server")


@with_prefect
def test_a_second_flow_run_with_the_same_inputs_and_code_is_a_hit(shop: Shop) -> None:
    stage = shop.stage()
    assert in_a_flow(stage.scale, 11, stage.Limits()) == (False, 22)
    assert in_a_flow(stage.scale, 11, stage.Limits()) == (True, 22)


@with_prefect
def test_a_changed_config_field_is_a_miss(shop: Shop) -> None:
    stage = shop.stage()
    in_a_flow(stage.scale, 12, stage.Limits())
    assert in_a_flow(stage.scale, 12, stage.Limits(factor=3)) == (False, 36)


@with_prefect
def test_an_edited_file_behind_a_path_in_the_config_is_a_miss(shop: Shop, tmp_path: Path) -> None:
    stage, table = shop.stage(), tmp_path / "table.csv"
    table.write_text("a,b")
    limits = stage.Limits(table=table)
    assert in_a_flow(stage.scale, 13, limits) == (False, 26)
    assert in_a_flow(stage.scale, 13, limits) == (True, 26)
    table.write_text("a,c")
    assert in_a_flow(stage.scale, 13, limits) == (False, 26)


@with_prefect
def test_an_edited_library_function_two_imports_away_is_a_miss(shop: Shop) -> None:
    stage = shop.stage()
    in_a_flow(stage.scale, 14, stage.Limits())
    shop.edit("library/deep.py", "a * b", "a * b + 1")
    stage = shop.stage()
    assert in_a_flow(stage.scale, 14, stage.Limits()) == (False, 29)


@with_prefect
def test_an_edited_comment_is_still_a_hit(shop: Shop) -> None:
    stage = shop.stage()
    in_a_flow(stage.scale, 15, stage.Limits())
    shop.edit("library/deep.py", "    return", "    # Said better.\n    return")
    stage = shop.stage()
    assert in_a_flow(stage.scale, 15, stage.Limits()) == (True, 30)


@with_prefect
def test_a_hit_whose_bytes_are_gone_is_recomputed_and_the_new_result_is_the_next_hit(
    shop: Shop, tmp_path: Path
) -> None:
    stage, out = shop.stage(), tmp_path / "out"
    for _ in range(3):
        hit, value = in_a_flow(stage.write, str(out))
        assert not hit
        assert in_a_flow(stage.write, str(out)) == (True, value)
        assert value[0]["made"].exists()
        shutil.rmtree(out)


@with_prefect
def test_a_moved_copy_of_the_same_bytes_is_a_hit(shop: Shop, tmp_path: Path) -> None:
    stage, out = shop.stage(), str(tmp_path / "out")
    given = DatasetRef(uri="/there", digest="same", num_images=2, num_captions=2)
    assert not in_a_flow(stage.write, out, given)[0]
    assert in_a_flow(stage.write, out, given.model_copy(update={"uri": "/elsewhere"}))[0]


@with_prefect
def test_an_input_without_content_runs_uncached(shop: Shop) -> None:
    stage = shop.stage()
    assert in_a_flow(stage.take, object()) == (False, 1)
    assert in_a_flow(stage.take, object()) == (False, 1)


@with_prefect
def test_code_edited_after_the_process_started_is_not_cached(shop: Shop) -> None:
    stage = shop.stage()
    (shop.root / "shop" / "library" / "deep.py").touch()
    assert in_a_flow(stage.scale, 16, stage.Limits()) == (False, 32)
    assert in_a_flow(stage.scale, 16, stage.Limits()) == (False, 32)


# --- the fingerprint of code ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("library/deep.py", "return a * b", "return (a   *\n        b)  # as before"),
        ("library/deep.py", "):\n    return", '):\n    """Multiply."""\n    return'),
        ("library/__init__.py", "A room.", "A larger room."),
        ("library/arithmetic.py", "Kept apart", "Held apart"),
        ("unrelated.py", "1", "2"),
    ],
)
def test_what_changes_no_reached_code_keeps_the_fingerprint(
    shop: Shop, place: str, old: str, new: str
) -> None:
    before = shop.fingerprint()
    shop.edit(place, old, new)
    assert shop.fingerprint() == before


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("stage.py", "factor: int = 2", "factor: int = 3"),
        ("library/deep.py", "a * b", "b * a"),
        ("library/__init__.py", '"""A room."""', "LIMIT = 1"),
        ("__init__.py", "", "LIMIT = 1"),
    ],
)
def test_an_edit_of_reached_code_changes_the_fingerprint(
    shop: Shop, place: str, old: str, new: str
) -> None:
    before = shop.fingerprint()
    shop.edit(place, old, new)
    assert shop.fingerprint() != before


@pytest.mark.parametrize(
    "importing",
    [
        "import shop.added",
        "from shop import added",
        "from shop.added import VALUE",
        "from . import added",
        "from .added import *",
        "def f():\n    from shop.added import VALUE\n    return VALUE",
        "COMMAND = ['python', '-m', 'shop.added']",
        "APP = 'shop.added:VALUE'",
    ],
)
def test_every_way_to_reach_a_module_counts(shop: Shop, importing: str) -> None:
    shop.write("unrelated.py", importing)
    shop.edit("stage.py", "from pathlib", "import shop.unrelated\nfrom pathlib")
    shop.write("added.py", "VALUE = 1")
    before = shop.fingerprint()
    shop.write("added.py", "VALUE = 2")
    assert shop.fingerprint() != before


def test_parent_packages_are_found_by_relative_imports_of_two_levels(shop: Shop) -> None:
    shop.edit("library/deep.py", "import shop.stage", "from ..unrelated import VALUE")
    before = shop.fingerprint()
    shop.edit("unrelated.py", "1", "2")
    assert shop.fingerprint() != before


def test_another_version_of_a_library_changes_the_fingerprint(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shop.fingerprint()
    monkeypatch.setattr("tasks.caching.metadata.version", lambda name: "0.0.1")
    assert shop.fingerprint() != before


def test_a_module_outside_the_project_has_no_fingerprint(shop: Shop) -> None:
    with pytest.raises(CannotKey, match=r"json is no module of shop"):
        fingerprint("json", root=shop.root, packages=("shop",))
    with pytest.raises(CannotKey, match=r"shop\.nowhere"):
        fingerprint("shop.nowhere", root=shop.root, packages=("shop",))


# --- the content of inputs ------------------------------------------------------------------------


@dataclass
class Pair:
    left: Any
    right: Any


class Model(BaseModel):
    folder: Path
    refs: dict[str, Ref] = {}


def test_refs_are_their_class_and_digest() -> None:
    here = DatasetRef(uri="/a", digest="d", num_images=1, num_captions=2)
    there = DatasetRef(uri="/b", digest="d", num_images=1, num_captions=2)
    other = ModelRef(uri="/a", digest="d", run_id="r", model_id="m")
    assert content_digest(here, "x") == content_digest(there, "x")
    assert content_digest(here, "x") != content_digest(other, "x")
    assert content_digest(here, "x") != content_digest(here.model_copy(update={"digest": "e"}), "x")


def test_a_folder_is_the_names_and_bytes_inside_wherever_it_lies(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "a.txt").write_text("a")
        (folder / "b.txt").write_text("b")

    def digests() -> tuple[str, str]:
        models = Model(folder=first), Model(folder=second)
        return content_digest(models[0], "config"), content_digest(models[1], "config")

    assert len(set(digests())) == 1
    (second / "b.txt").rename(second / "c.txt")
    assert len(set(digests())) == 2
    (second / "c.txt").rename(second / "b.txt")
    assert len(set(digests())) == 1
    (second / "sub" / "a.txt").write_text("A")
    assert len(set(digests())) == 2


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), r"^raw is a object"),
        ([1, {"k": object()}], r"^raw\[1\]\['k'\] is a object"),
        (Pair(1, lambda: 1), r"^raw\.right is a function"),
        (Model(folder=Path("/no/such/place")), r"^raw\.folder is /no/such/place"),
    ],
)
def test_an_input_without_content_is_named(value: Any, named: str) -> None:
    with pytest.raises(CannotKey, match=named):
        content_digest(value, "raw")


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested: st.SearchStrategy[Any] = st.recursive(
    plain | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=6,
)


@given(nested, nested)
def test_digests_agree_exactly_where_the_values_look_the_same(one: Any, other: Any) -> None:
    same = content_digest(one, "x") == content_digest(other, "x")
    assert same == (_as_written(one) == _as_written(other))


def _as_written(value: Any) -> str:
    """`repr` with the entries of dicts in order: tells 1 from True and 1.0, as a digest must."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k!r}:{_as_written(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, (list, tuple)):
        return type(value).__name__ + "(" + ",".join(map(_as_written, value)) + ")"
    if isinstance(value, Pair):
        return f"Pair({_as_written(value.left)},{_as_written(value.right)})"
    return repr(value)


@given(st.data(), st.dictionaries(st.text(max_size=3), plain, max_size=5))
def test_the_order_of_a_dict_does_not_matter(data: st.DataObject, value: dict[str, Any]) -> None:
    shuffled = dict(data.draw(st.permutations(list(value.items()))))
    assert content_digest(value, "x") == content_digest(shuffled, "x")
