"""A search's study: what is tried next, who is ended early, who won. It outlives its processes.

The study is the only state: what a trial draws depends on the seed and on the trials before it, so
that a search which was killed goes on as if it had not been.
"""

import contextlib
import fcntl
import json
import operator
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from configs.schema import Config, SearchConfig, Searched
from configs.settings import settings
from tasks.data.folders import digest_of
from tasks.training.candidate import Candidate
from tasks.training.errors import OutOfMemory, SettingsMismatch, TrainingDiverged
from tasks.training.events import Evaluated, Event

CIDER = "val_cider"
RUN_ID, DIGEST, WHY = "run_id", "digest", "why"  # what a trial remembers of its training
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
# The trial's own fault, which another's settings may not have: the search goes on.
_HOPELESS = (optuna.TrialPruned, TrainingDiverged, OutOfMemory, SettingsMismatch)


class SearchRunning(RuntimeError):
    """Another process on this machine is at the same search."""


class NothingFound(ValueError):
    """A search whose trials were all ended early."""


def name_of(config: Config, training_key: str) -> str:
    """The study's name: searches of the same training, space and limits go on with one another."""
    assert config.search is not None
    space = config.search.model_dump(mode="json", exclude={"trials"})
    generation = config.evaluate.generation.model_dump(mode="json")
    return f"{config.name}-{digest_of([training_key, space, generation])[:12]}"


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Raises SearchRunning while another process is in here; a killed one is not."""
    lock = folder(name).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SearchRunning(
                f"another process searches {name} right now: wait for it, or end it"
            ) from None
        yield


def folder(name: str) -> Path:
    """Where the trials of a study train, and where the best model so far lies."""
    return settings().var / "search" / name


def models(name: str) -> Path:
    return folder(name) / "models"


def training(name: str) -> Path:
    """The work folders; one at a time is in use."""
    return folder(name) / "training"


def tidy(study: optuna.Study) -> None:
    """Deletes what ended trials left on the disk, but for the best model."""
    leader = best(study)
    shutil.rmtree(training(study.study_name), ignore_errors=True)
    for model in models(study.study_name).glob("*"):
        if leader is None or model.name != leader.user_attrs[DIGEST]:
            shutil.rmtree(model, ignore_errors=True)


def open_study(name: str, search: SearchConfig, seed: int) -> optuna.Study:
    """The study under `name`, made when there is none; for the next trial only."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = settings().optuna_url
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=url,
        study_name=name,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=search.startup_trials),
    )
    # A seed a trial: with one for all, a search that goes on would draw its first trials again.
    drawn = int(digest_of([seed, num_ended(study)])[:8], 16)
    study.sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=search.startup_trials)
    return study


def num_ended(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=ENDED))


def next_trial(study: optuna.Study, space: Mapping[str, Searched]) -> optuna.Trial:
    """The trial that its process left unfinished, with what it drew and reported, or a new one."""
    left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    trial = optuna.Trial(study, left[0]._trial_id) if left else study.ask()
    for key, searched in space.items():
        _draw(trial, key, searched)
    return trial


def _draw(trial: optuna.Trial, key: str, searched: Searched) -> None:
    match searched:
        case Searched(low=int(low), high=int(high)):
            trial.suggest_int(key, low, high, log=searched.log)
        case Searched(low=float(low), high=float(high)):
            trial.suggest_float(key, low, high, log=searched.log)
        case _:
            trial.suggest_categorical(key, searched.choices)


def with_params(config: Config, params: Mapping[str, Any]) -> Config:
    """The scenario with the settings of a trial, to be trained as any other."""
    values = config.model_dump(exclude={"search"})
    for key, value in params.items():
        *parents, last = key.split(".")
        reduce(operator.getitem, parents, values)[last] = value
    return Config.model_validate(values)


def overrides(params: Mapping[str, Any]) -> list[str]:
    """The settings of a trial as `key=value`, as every command takes them."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in params.items()
    ]


def carry_out(
    trial: optuna.Trial, train: Callable[[Callable[[Event], None]], Candidate]
) -> FrozenTrial:
    """Trains until the end or until the study has seen enough, and tells the study which it was.

    Anything else that ends it leaves the trial unfinished, to be gone on with.
    """
    study = trial.study
    try:
        trained = train(lambda event: _report(trial, event))
    except _HOPELESS as error:
        trial.set_user_attr(WHY, str(error))
        return study.tell(trial, state=TrialState.PRUNED)
    trial.set_user_attr(DIGEST, trained.digest)
    return study.tell(trial, trained.scores[CIDER])


def _report(trial: optuna.Trial, event: Event) -> None:
    """Raises optuna.TrialPruned where others were better at the same step."""
    if not isinstance(event, Evaluated):
        return
    known = trial.study.trials[trial.number].intermediate_values
    if event.step not in known:  # a training that goes on from a checkpoint may say it again
        trial.report(event.scores[CIDER], event.step)
    if trial.should_prune():
        raise optuna.TrialPruned(f"below the median of the others at step {event.step}")


def best(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial of the highest CIDEr on the validation split, the first of equals."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def winner(study: optuna.Study) -> FrozenTrial:
    """The best; raises NothingFound with what ended the others."""
    found = best(study)
    if found is None:
        reasons = {trial.user_attrs.get(WHY, "") for trial in study.trials}
        raise NothingFound(
            f"search.space: none of the {num_ended(study)} trials came to its end: "
            + "; ".join(sorted(reasons))
        )
    return found


def table(study: optuna.Study, link: Callable[[str], str]) -> str:
    """All trials in markdown; `link` makes one of an MLflow run's id."""
    trials, leader = study.get_trials(deepcopy=False), best(study)
    keys = sorted({key for trial in trials for key in trial.params})
    lines = [
        "| trial | state | val CIDEr | at step | " + " | ".join(keys) + " | run | |",
        "| --- " * (len(keys) + 6) + "|",
    ]
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.3f}"
        cells = [_shown(trial.params.get(key)) for key in keys]
        run = link(trial.user_attrs[RUN_ID]) if RUN_ID in trial.user_attrs else ""
        told = "**the best**" if leader and trial.number == leader.number else ""
        told = told or trial.user_attrs.get(WHY, "").replace("|", "\\|")
        row = [trial.number, trial.state.name.lower(), value, trial.last_step, *cells, run, told]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
