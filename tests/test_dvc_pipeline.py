"""`dvc.yaml` is the flow's stateless half: the same stages, edges and sections, and it runs."""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.settings import ROOT
from tasks import stages
from tasks.caching import PACKAGES, _reach

SCENARIO = "configs/demo.yaml"
# What the flow calls -> the stage of dvc.yaml that does it.
CALLS = {
    "dataset": "prepare",
    "finetune_anywhere": "finetune",
    "evaluate": "evaluate",
}
# Where the flow that such a call enters is written out.
INNER = {
    "dataset": ("flows/dataset.py", "make_dataset"),
    "finetune_anywhere": ("flows/finetune.py", "finetune_model"),
}


@dataclass
class Stage:
    """The stages that one needs, and the config's sections that decide its result."""

    needs: set[str]
    sections: set[str]


# --- what the sources say ------------------------------------------------------------------------


def in_the_flow() -> dict[str, Stage]:
    """Read off the calls in the bodies of the flows `train`, `dataset` and `finetune`."""
    found = {stage: Stage(set(), set()) for stage in CALLS.values()}
    made: dict[str, str] = {}  # variable -> the stage that it came from
    for node in function("flows/train.py", "train").body:
        match node:
            # Not so the champion's scores: they hang on an `if`, as the champion is state.
            case ast.Assign([ast.Name(result)], ast.Call(ast.Name(name)) as call) if name in CALLS:
                stage = found[CALLS[name]]
                for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                    if isinstance(argument, ast.Name) and argument.id == "scenario":
                        stage.sections |= sections_of(function(*INNER[name]), "scenario")
                    stage.sections |= sections_of(argument, "scenario")
                    names = {n.id for n in ast.walk(argument) if isinstance(n, ast.Name)}
                    stage.needs |= {made[name] for name in names & made.keys()}
                stage.needs.discard(CALLS[name])
                made[result] = CALLS[name]
    return found


def in_dvc() -> dict[str, Stage]:
    found = {}
    for name, stage in pipeline().items():
        needs = {other for other in pipeline() if outs(other) & set(stage["deps"])}
        [tracked] = stage["params"]
        found[name] = Stage(needs, set(tracked[SCENARIO]))
    return found


def pipeline() -> dict[str, dict[str, Any]]:
    stages_of_dvc: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())[
        "stages"
    ]
    return stages_of_dvc


def outs(stage: str) -> set[str]:
    entries = [e for kind in ("outs", "plots", "metrics") for e in pipeline()[stage].get(kind, [])]
    return {name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)}


def function(file: str, name: str) -> ast.FunctionDef:
    tree = ast.parse((ROOT / file).read_text())
    [found] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return found


def sections_of(tree: ast.AST, variable: str) -> set[str]:
    """X of every `variable.X` in the tree."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == variable
    }


def reached(stage: str) -> set[str]:
    """The project's files that a stage reaches: its command's own imports and all after them."""
    module = ast.parse(inspect.getsource(stages))
    body = function("tasks/stages.py", stage)
    imports = [*module.body, *ast.walk(body)]
    files = {ROOT / "tasks" / "stages.py"}
    for node in imports:
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names)):
                if ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file():
                    files |= set(_reach(name, ROOT, PACKAGES).files.values())
    return {f.relative_to(ROOT).as_posix() for f in files if f.name != "__init__.py"}


def code_deps(stage: str) -> set[str]:
    made = set().union(*map(outs, pipeline()))
    return set(pipeline()[stage]["deps"]) - made


def is_in(file: str, dep: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


# --- dvc.yaml against the flow -------------------------------------------------------------------


def test_stages_edges_and_sections_are_those_of_the_flow() -> None:
    assert in_dvc() == in_the_flow()


def sections_read(stage: str) -> set[str]:
    """By the stage's own body, and by what of the pipeline it hands the whole config to."""
    body = function("tasks/stages.py", stage)
    sections = sections_of(body, "config")
    for node in ast.walk(body):
        match node:
            case ast.Call(ast.Attribute(ast.Name("pipeline"), name)):
                sections |= sections_of(function("tasks/data/pipeline.py", name), "config")
    return sections


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_stage_reads_no_section_but_those_that_dvc_tracks(stage: str) -> None:
    assert sections_read(stage) == in_dvc()[stage].sections


def test_the_scenario_spells_out_every_tracked_section() -> None:
    given = yaml.safe_load((ROOT / SCENARIO).read_text())
    tracked = set().union(*(stage.sections for stage in in_dvc().values()))
    assert tracked <= given.keys(), "dvc fails on a tracked section that the file leaves out"


def test_outs_are_what_the_stages_write() -> None:
    written = {
        "prepare": {stages.PREPARED},
        "finetune": {stages.MODEL, stages.LOSS},
        "evaluate": {stages.EVALUATION, stages.METRICS},
    }
    assert {name: set(map(Path, outs(name))) for name in pipeline()} == written


@pytest.mark.parametrize("stage", stages.STAGES)
def test_an_edit_of_any_code_that_a_stage_reaches_makes_it_stale(stage: str) -> None:
    unwatched = {f for f in reached(stage) if not any(is_in(f, dep) for dep in code_deps(stage))}
    assert not unwatched, f"add these to the deps of {stage} in dvc.yaml"


@pytest.mark.parametrize("stage", stages.STAGES)
def test_no_dep_names_code_that_the_stage_does_not_reach(stage: str) -> None:
    files = reached(stage)
    idle = {dep for dep in code_deps(stage) if not any(is_in(file, dep) for file in files)}
    assert not idle, f"take these out of the deps of {stage} in dvc.yaml"


def test_an_edit_elsewhere_never_trains_again() -> None:
    watched = {
        file.relative_to(ROOT).as_posix()
        for dep in code_deps("finetune")
        for file in (ROOT / dep, *(ROOT / dep).rglob("*.py"))
        if file.is_file() and file.name != "__init__.py"
    }
    assert watched == reached("finetune")


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "prepare, finetune, evaluate"),
        (["gate", SCENARIO], "prepare, finetune, evaluate"),
        (["prepare", "configs/none.yaml"], "configs/none.yaml: no such file"),
        (["finetune", SCENARIO, "finetune.max_stepz=3"], "did you mean finetune.max_steps?"),
        (["prepare", SCENARIO, "data.use_feedback=true"], "python -m flows.train"),
        (["finetune", SCENARIO, "model.base=champion"], "python -m flows.train"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line_with_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        stages.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


# --- a real run ----------------------------------------------------------------------------------


class Checkout:
    """A git repository with this project's files and a scenario of seconds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for file in _project_files():
            target = root / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, target)
        self.edit("data", source={"format": "scenes", "count": 120})
        self.edit("finetune", max_steps=20, log_every_steps=5)
        self.run("git", "init", "--quiet")
        self.run("git", "add", "--all")

    def edit(self, section: str, **values: Any) -> None:
        path = self.root / SCENARIO
        scenario = yaml.safe_load(path.read_text())
        scenario[section] = {**scenario.get(section, {}), **values}
        path.write_text(yaml.safe_dump(scenario))

    def run(self, *command: str) -> str:
        env = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "CAPTIONLOOP_VAR": str(self.root / "var"),
            "DVC_SITE_CACHE_DIR": str(self.root / "var" / "dvc-site-cache"),
        }
        done = subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def repro(self, *options: str) -> list[str]:
        """The stages that `dvc repro` runs."""
        said = self.run("dvc", "repro", *options)
        return [
            line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")
        ]

    def untracked(self) -> set[str]:
        said = self.run("git", "ls-files", "--others", "--exclude-standard")
        return set(said.splitlines())


def _project_files() -> Iterator[str]:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    results = {"dvc.lock", stages.METRICS.as_posix()}  # of a run in this project itself
    yield from (f for f in said.split("\0") if f not in results and (ROOT / f).is_file())


@pytest.mark.e2e
def test_repro_runs_all_stages_once_and_none_again_but_what_an_edit_decides(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    assert checkout.repro() == ["prepare", "finetune", "evaluate"]
    metrics = json.loads((tmp_path / stages.METRICS).read_text())
    assert metrics["test"].keys() >= {"cider", "bleu_1", "bleu_4", "rouge_l"}
    assert (tmp_path / stages.LOSS).read_text().count("\n") == 1 + 20 // 5
    # For the user to commit; everything else that it wrote is ignored.
    assert checkout.untracked() == {"dvc.lock", stages.METRICS.as_posix()}

    assert checkout.repro() == []
    checkout.edit("gate", margin=0.7)
    assert checkout.repro() == []
    checkout.edit("finetune", max_steps=21)
    assert checkout.repro("--dry") == ["finetune"]
