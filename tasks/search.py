"""Search: trials of other settings one after another, each a training with a run of its own."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from configs.schema import Config, SearchConfig
from tasks.artifacts import publish
from tasks.finetune import Follower, job_of, worth_another_try
from tasks.promote import require_champion
from tasks.refs import ModelRef, PreparedRef, VersionRef
from tasks.registry import runs, searches, studies, training
from tasks.training import candidate
from tasks.training.candidate import Candidate
from tasks.training.events import Event
from tasks.training.launch import TrainJob


@dataclass(frozen=True)
class Search:
    """A search under way: from what its trials start, and the names of its study and its run."""

    scenario: Config
    data: PreparedRef
    base: ModelRef | Path | None
    study: str
    run_id: str

    @property
    def settings(self) -> SearchConfig:
        assert self.scenario.search is not None
        return self.scenario.search

    def open(self) -> optuna.Study:
        return studies.open_study(self.study, self.settings, self.scenario.seed)

    def missing(self) -> range:
        """Numbers of the trials that are still to be carried out, or to be ended."""
        return range(studies.num_ended(self.open()), self.settings.trials)


@contextlib.contextmanager
def searching(scenario: Config, data: PreparedRef, champion: VersionRef | None) -> Iterator[Search]:
    """The search that the scenario describes, from where it was left; one process at a time."""
    assert scenario.search is not None
    base: ModelRef | Path | None = None
    if scenario.model.base == "champion":
        base = require_champion(scenario.name, champion).model
    elif Path(scenario.model.base).is_dir():
        base = Path(scenario.model.base)
    study = studies.name_of(scenario, _job(scenario, data, base).work.name)
    with (
        studies.alone(study),
        searches.search_run(scenario.name, study, scenario.search, data) as run_id,
    ):
        yield Search(scenario, data, base, study, run_id)


@task(
    cache_policy=NO_CACHE,
    task_run_name="trial-{number}",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=worth_another_try,
)
def try_out(search: Search, number: int) -> State[Any]:
    """One trial, trained to its end or until it is no use; the state's name says which."""
    study = search.open()
    trial = studies.next_trial(study, search.settings.space)
    ended = _train(search, trial)
    studies.tidy(study)
    searches.record_trial(search.run_id, ended, studies.best(study))
    publish("search", studies.table(study, runs.link), f"Trials of {search.scenario.name}")
    told = ", ".join(studies.overrides(ended.params))
    if ended.state is TrialState.PRUNED:
        return Completed(name="Pruned", message=f"{ended.user_attrs[studies.WHY]}: {told}")
    return Completed(message=f"{studies.CIDER} {ended.value:.3f}: {told}")


def _train(search: Search, trial: optuna.Trial) -> FrozenTrial:
    """The trial's training, recorded below the search's run and watched by its study."""
    scenario = studies.with_params(search.scenario, trial.params)
    job = _job(scenario, search.data, search.base)
    kept = {"work": studies.training(search.study) / job.work.name}
    job = job.model_copy(update=kept | {"out": studies.models(search.study)})
    name, told = scenario.name, f"trial {trial.number}"
    sections = {"model": scenario.model, "finetune": scenario.finetune}
    follow = Follower(f"{name}, {told}")
    with training.training_run(name, sections, search.data, job, told, search.run_id) as run:
        trial.set_user_attr(studies.RUN_ID, run.run_id)

        def train(report: Callable[[Event], None]) -> Candidate:
            def on_event(event: Event) -> None:
                follow(event)
                run.record(event)
                report(event)

            said = scenario.evaluate.generation
            return candidate.train(name, job, search.data.digest, said, on_event)

        return studies.carry_out(trial, train)


@task(cache_policy=NO_CACHE)
def best_trial(search: Search) -> tuple[Config, ModelRef]:
    """The winner's scenario, and its model, which MLflow has from now on."""
    study = search.open()
    best = studies.winner(study)
    publish("search", studies.table(study, runs.link), f"Trials of {search.scenario.name}")
    model = searches.log_best(search.scenario.name, study, best)
    return studies.with_params(search.scenario, best.params), model


def _job(scenario: Config, data: PreparedRef, base: ModelRef | Path | None) -> TrainJob:
    return job_of(scenario.name, data, scenario.model, scenario.finetune, base, scenario.seed)
