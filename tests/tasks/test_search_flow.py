"""A search as a flow: killed in a trial, gone on with, its trials below one run, the best a
challenger."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import State

from configs.settings import settings
from flows.search import search
from tasks.refs import VersionRef
from tasks.registry import runs, studies, versions
from tasks.training.events import Event, Saved, Told

GOOD, HOPELESS = 6e-3, 1e-9
SCENARIO = {
    "name": "shapes",
    "seed": 7,
    "data": {
        "source": {"format": "scenes", "count": 90, "seed": 5},
        "splits": {"val": 0.1, "test": 0.3},
    },
    "model": {"tiny": {"vision_width": 32, "text_width": 32, "heads": 2, "vocab_size": 120}},
    "finetune": {
        "max_steps": 80,
        "batch_size": 16,
        "log_every_steps": 40,
        "evaluate_every_steps": 40,
        "checkpoint_every_steps": 40,
    },
    "evaluate": {"gallery_images": 3, "max_new_tokens": 12},
    "search": {
        "trials": 3,
        "startup_trials": 1,
        "space": {"finetune.learning_rate": {"choices": [GOOD, HOPELESS]}},
    },
}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def config(module_var: Path, prefect_server: None) -> str:
    path = module_var / "shapes.yaml"
    path.write_text(yaml.safe_dump(SCENARIO))
    return str(path)


@pytest.fixture(scope="module")
def told() -> list[Event]:
    """What the trainings of both runs told, in order."""
    return []


@pytest.fixture(scope="module")
def killed(config: str, told: list[Event]) -> list[Any]:
    """The runs in MLflow after a search that ended in its first trial, past a checkpoint."""
    report = studies._report

    def die(trial: optuna.Trial, event: Event) -> None:
        report(trial, event)
        told.append(event)
        if isinstance(event, Saved) and trial.number == 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "_report", die)
        with pytest.raises(Killed):
            search(config)
    return mlflow_runs()


@pytest.fixture(scope="module")
def finished(config: str, killed: list[Any], told: list[Event]) -> State[VersionRef]:
    report = studies._report

    def follow(trial: optuna.Trial, event: Event) -> None:
        told.append(event)
        report(trial, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "_report", follow)
        state: State[VersionRef] = search(config, return_state=True)
    return state


def mlflow_runs() -> list[Any]:
    found = runs.client().search_runs(
        [runs.experiment_id("shapes")], order_by=["attributes.start_time ASC"]
    )
    return list(found)


def children(parent: Any) -> list[Any]:
    below = [run for run in mlflow_runs() if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in below} == {parent.info.run_id}
    return below


def test_a_killed_search_says_so_in_mlflow(killed):
    assert [(run.info.run_name, run.info.status) for run in killed] == [
        ("search", "KILLED"),
        ("trial 0", "KILLED"),
    ]


def test_it_goes_on_with_its_trial_from_the_checkpoint_to_as_many_as_were_asked_for(finished, told):
    assert finished.is_completed(), finished.message
    begun = [event.text for event in told if isinstance(event, Told) and "trains" in event.text]
    assert len(begun) == 4
    assert "goes on from step 40" in begun[1]
    assert all("goes on" not in text for text in (begun[0], *begun[2:]))


def test_each_trial_is_one_run_below_the_searchs_which_knows_the_best(finished, killed):
    parent, below = mlflow_runs()[0], children(mlflow_runs()[0])
    assert parent.info.run_id == killed[0].info.run_id
    assert parent.info.status == "FINISHED"
    assert [run.info.run_name for run in below] == ["trial 0", "trial 1", "trial 2"]
    assert {run.info.status for run in below} == {"FINISHED"}
    scores = [point.value for run in below for point in history(run, "val_cider")]
    assert parent.data.metrics["best_val_cider"] == max(scores) > 0
    assert float(parent.data.tags["best.finetune.learning_rate"]) == GOOD


def history(run: Any, metric: str) -> list[Any]:
    return list(runs.client().get_metric_history(run.info.run_id, metric))


def test_hopeless_trials_are_ended_early_and_the_others_are_not(finished):
    for run in children(mlflow_runs()[0]):
        hopeless = float(run.data.params["finetune.learning_rate"]) == HOPELESS
        assert run.data.tags["trial_state"] == ("pruned" if hopeless else "complete")
        steps = [point.step for point in history(run, "val_cider")]
        assert steps == ([40] if hopeless else [40, 80])
    states = [run.data.tags["trial_state"] for run in children(mlflow_runs()[0])]
    assert {"pruned", "complete"} == set(states)


def test_the_best_is_the_challenger_and_nobody_the_champion(finished):
    version = finished.result()
    assert versions.by_number("shapes", version.version) == version
    assert versions.aliases("shapes") == {versions.CHALLENGER: version.version}
    parent = mlflow_runs()[0]
    assert version.model.run_id == parent.data.tags["best.run"]
    assert (versions.fetch(version.model) / "model.safetensors").is_file()
    run = runs.client().get_run(version.model.run_id)
    assert "test_cider" in run.data.metrics
    written = runs.client().download_artifacts(version.model.run_id, "config.yaml")
    assert yaml.safe_load(Path(written).read_text())["finetune"]["learning_rate"] == GOOD


def test_what_the_trials_wrote_is_gone_but_for_the_best(finished):
    version = finished.result()
    assert [path.name for path in (settings().var / "models").iterdir()] == [version.model.digest]
    assert [path.suffix for path in (settings().var / "search").iterdir()] == [".lock"]


def test_a_person_sees_all_trials_and_how_they_ended(finished):
    run_id = finished.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id={"any_": [run_id]})
        )
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
    tables = [each for each in artifacts if each.key == "search"]
    table = str(max(tables, key=lambda each: each.created).data)
    for part in ("| 0 | complete | ", "| pruned | 0.000 | 40 | 1e-09 | ", "**the best**"):
        assert part in table
    assert table.count("\n") == 1 + 3
    names = {task.name: task.state_name for task in tasks if task.name.startswith("trial-")}
    assert names.keys() == {"trial-0", "trial-1", "trial-2"}
    assert "Pruned" in names.values()


def test_a_search_that_is_done_trains_nothing_and_registers_the_same_model(finished, config, told):
    before = len(told)
    again = search(config, return_state=True)
    assert again.result().model == finished.result().model
    assert len(told) == before
    assert len(children(mlflow_runs()[0])) == 3
