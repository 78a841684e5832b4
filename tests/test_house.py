"""The rules of the house: who may import whom, and that an import does nothing but import."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.settings import ROOT

PACKAGES = ("bentos", "configs", "flows", "infra", "tasks")
ROOMS = ("data", "drift", "metrics", "registry", "training")
EVALUATE_MODULES = tuple(
    f"tasks.metrics.{name}." for name in ("bleu", "cider", "cider_d", "rouge_l")
)
# Imported only where torch, transformers, evaluate or BentoML are at work; slow to import.
ELSEWHERE = (
    *EVALUATE_MODULES,
    *("tasks.training.run", "tasks.training.model", "tasks.training.dataset"),
    *("tasks.training.tokenizer", "bentos.captioner.service"),
)
# Who may import what of the project. A stage is a file right under tasks/, a room a folder there.
MAY_IMPORT = {
    "captioner": {"captioner"},
    "bentos": {"captioner", "bentos", "configs"},
    "configs": {"configs"},
    "room": {"room", "refs", "captioner", "configs"},
    "refs": {"configs"},
    "stage": {"stage", "room", "refs", "captioner", "bentos", "configs"},
    "flows": {"flows", "stage", "room", "refs", "configs"},
    "infra": {"infra", "flows", "stage", "room", "refs", "captioner", "bentos", "configs"},
}


def modules() -> dict[str, Path]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {name_of(path): path for path in sorted(files)}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> str:
    package, _, rest = module.partition(".")
    if package == "bentos":
        return "captioner" if rest.partition(".")[0] == "captioner" else "bentos"
    if package == "tasks":
        if rest == "refs":
            return "refs"
        return "room" if rest.partition(".")[0] in ROOMS else "stage"
    return package


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, by its full name."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            inner = [name for name in names if name in known]
            yield from inner or [node.module]


@pytest.mark.parametrize(("module", "path"), modules().items(), ids=modules())
def test_nobody_imports_upwards(module, path):
    allowed = MAY_IMPORT[floor_of(module)]
    for imported in imports(path):
        if imported.partition(".")[0] in PACKAGES:
            assert floor_of(imported) in allowed, f"{module} must not import {imported}"


def test_only_stages_flows_and_infra_know_prefect():
    for module, path in modules().items():
        if floor_of(module) not in {"stage", "flows", "infra"}:
            known = {imported.partition(".")[0] for imported in imports(path)}
            assert "prefect" not in known, module


def test_an_init_file_holds_nothing_but_a_docstring_of_what_lives_there():
    for module, path in modules().items():
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert len(tree.body) == 1, module
            assert ast.get_docstring(tree), module


def test_every_folder_of_modules_is_a_package():
    for path in modules().values():
        if not name_of(path).startswith(EVALUATE_MODULES):  # loaded by path, as `evaluate` does
            assert (path.parent / "__init__.py").is_file(), path


def test_importing_the_project_writes_nothing_and_opens_nothing(tmp_path):
    names = [name for name in modules() if not name.startswith(ELSEWHERE)]
    code = f"""
import importlib, os, sys
before = dict(os.environ)
def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        written.append(str(arguments[0]))
    elif event in ("os.mkdir", "socket.connect", "sqlite3.connect", "subprocess.Popen"):
        written.append(f"{{event}} {{arguments[:1]}}")
written = []
sys.addaudithook(watch)
for name in {names!r}:
    importlib.import_module(name)
mine = {{k for k in os.environ if k.startswith(("CAPTIONLOOP_", "MLFLOW_", "BENTOML_"))}}
assert mine <= before.keys(), mine - before.keys()
print([place for place in written if {str(tmp_path / "var")!r} in place or {str(ROOT)!r} in place])
"""
    environment = {
        **os.environ,
        "CAPTIONLOOP_VAR": str(tmp_path / "var"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1] == "[]"
    assert not (tmp_path / "var").exists()
