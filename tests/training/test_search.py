"""A study that outlives its process: what it draws, whom it ends early, how it goes on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from configs.loader import ConfigError, load
from configs.schema import Config
from configs.settings import ROOT, settings
from tasks.registry import searches, studies
from tasks.training.candidate import Candidate
from tasks.training.errors import TrainingDiverged, TrainingFailed
from tasks.training.events import Evaluated, Event

SPACE: dict[str, Any] = {
    "finetune.learning_rate": {"low": "1e-4", "high": 1.0e-2, "log": True},
    "finetune.weight_decay": {"low": 0, "high": 1},
    "finetune.batch_size": {"choices": [4, 8]},
    "finetune.augment": {"choices": [True, False]},
    "finetune.schedule": {"choices": ["cosine", "linear"]},
    "finetune.patience": {"choices": [None, 3]},
    "finetune.lora.rank": {"low": 2, "high": 9},
    "model.tiny.text_layers": {"low": 1, "high": 3},
}
STEPS = (10, 20, 30)
Scores = Callable[[dict[str, Any]], list[float]]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def own_var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONLOOP_VAR", str(tmp_path / "var"))
    monkeypatch.delenv("CAPTIONLOOP_OPTUNA_STORAGE", raising=False)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.yaml"
    values = {
        "name": "shapes",
        "data": {"source": {"format": "scenes", "count": 50}},
        "search": {"trials": 4, "startup_trials": 2, "space": SPACE},
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def config(scenario: Path) -> Config:
    return load(scenario)


def begun(config: Config, name: str = "shapes") -> optuna.Trial:
    assert config.search is not None
    study = studies.open_study(name, config.search, config.seed)
    return studies.next_trial(study, config.search.space)


def carry_out(trial: optuna.Trial, scores: list[float], die_at: int | None = None) -> FrozenTrial:
    """A training that validates to these scores; the weights are named after the trial."""

    def train(on_event: Callable[[Event], None]) -> Candidate:
        for step, score in zip(STEPS, scores, strict=True):
            if step == die_at:
                raise Killed
            event = Evaluated(step=step, scores={"val_cider": score}, captions=(), best=False)
            on_event(event)
        digest = f"digest-{trial.number}"
        made = studies.models(trial.study.study_name) / digest
        made.mkdir(parents=True)
        return Candidate(made, digest, {"val_cider": max(scores)})

    return studies.carry_out(trial, train)


def run_to_the_end(config: Config, scores: Scores, name: str = "shapes") -> optuna.Study:
    """What the flow does, trial by trial."""
    assert config.search is not None
    study = studies.open_study(name, config.search, config.seed)
    for _ in range(studies.num_ended(study), config.search.trials):
        trial = begun(config, name)
        carry_out(trial, scores(trial.params))
    return study


def by_learning_rate(params: dict[str, Any]) -> list[float]:
    score = 1000 * params["finetune.learning_rate"]
    return [score / 2, score * 0.8, score]


def drawn(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


# --- the space ----------------------------------------------------------------------------------


def test_what_is_drawn_is_a_scenario_that_the_command_line_can_give_too(scenario, config):
    for name in "abcd":
        trial = begun(config.model_copy(update={"seed": ord(name)}), name)
        made = studies.with_params(config, trial.params)
        given = load(scenario, studies.overrides(trial.params))
        assert made == given.model_copy(update={"search": None})
        assert 1e-4 <= made.finetune.learning_rate <= 1e-2
        assert made.finetune.batch_size in (4, 8)
        assert made.finetune.lora.rank in range(2, 10)
        assert made.model.tiny.text_layers in (1, 2, 3)
        assert made.data == config.data


def test_a_range_of_whole_numbers_has_broken_ones_where_the_key_does(config):
    values = [begun(config, name).params for name in "abc"]
    assert all(isinstance(each["finetune.weight_decay"], float) for each in values)
    assert all(isinstance(each["finetune.lora.rank"], int) for each in values)


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (
            "{finetune.learning_ratte: {low: 1, high: 3}}",
            "space.finetune.learning_ratte: no such key; did you mean finetune.learning_rate?",
        ),
        (
            "{finetune.learning_rate: {low: 1.0e-4, hihg: 3}}",
            "search.space.finetune.learning_rate.hihg: no such key",
        ),
        (
            "{finetune.learning_rate: {low: -1, high: 3}}",
            "search.space.finetune.learning_rate: Input should be greater than 0, got -1",
        ),
        (
            "{finetune.schedule: {choices: [cosine, step]}}",
            "search.space.finetune.schedule: Input should be 'cosine' or 'linear', got 'step'",
        ),
        ("{finetune.lora.rank: {low: 1.5, high: 3}}", "search.space.finetune.lora.rank: "),
        ("{finetune.lora.rank: {low: 3, high: 3}}", "low must be below high"),
        ("{finetune.lora.rank: {low: 3}}", "give low and high, or choices"),
        ("{finetune.lora.rank: {low: 3, choices: [4]}}", "give either choices, or low and high"),
        ("{finetune.weight_decay: {low: 0, high: 1, log: true}}", "log needs a low above 0"),
        ("{data.image_size: {choices: [48]}}", "search.space.data.image_size"),
        ("{model.base: {choices: [scratch]}}", "search.space.model.base"),
        ("{}", "search.space: "),
    ],
)
def test_a_wrong_space_is_told_like_every_wrong_key(scenario, space, told):
    with pytest.raises(ConfigError) as caught:
        load(scenario, [f"search.space={space}"])
    assert told in str(caught.value)
    assert str(scenario) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["search.space={finetune.lerning_rate: {low: 1, high: 2}}"], "finetune.lerning_rate"),
        (["search=null"], "search: missing; it must be given"),
    ],
)
def test_a_search_that_can_not_be_ends_with_one_line_and_exit_code_2(scenario, overrides, told):
    done = subprocess.run(
        [sys.executable, "-m", "flows.search", str(scenario), *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {scenario}")
    assert told in line


# --- drawing and ending -------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_and_another_draws_others(config):
    first, again = (run_to_the_end(config, by_learning_rate, name) for name in ("a", "b"))
    assert drawn(first) == drawn(again)
    assert len({str(params) for params in drawn(first)}) == 4
    other = config.model_copy(update={"seed": 1})
    assert drawn(run_to_the_end(other, by_learning_rate, "c")) != drawn(first)


def test_a_clearly_bad_trial_is_ended_before_its_end(config):
    for _ in range(2):
        assert carry_out(begun(config), [1.0, 2.0, 3.0]).state is TrialState.COMPLETE
    ended = carry_out(begun(config), [0.1, 0.2, 0.3])
    assert ended.state is TrialState.PRUNED
    assert ended.intermediate_values == {10: 0.1}
    assert ended.user_attrs["why"] == "below the median of the others at step 10"
    assert carry_out(begun(config), [1.1, 2.1, 3.1]).state is TrialState.COMPLETE


def test_the_first_trials_run_to_their_end_however_bad(config):
    carry_out(begun(config), [5.0, 6.0, 7.0])
    assert carry_out(begun(config), [0.1, 0.2, 0.3]).state is TrialState.COMPLETE


def test_settings_that_can_not_be_trained_end_a_trial_and_not_the_search(config):
    def diverge(on_event: Callable[[Event], None]) -> Candidate:
        raise TrainingDiverged("the loss is not a finite number")

    ended = studies.carry_out(begun(config), diverge)
    assert ended.state is TrialState.PRUNED
    with pytest.raises(studies.NothingFound, match="the loss is not a finite number"):
        studies.winner(begun(config).study)


def test_the_winner_has_the_highest_score_and_is_marked_in_the_table(config):
    for scores in ([1.0, 2.0, 2.5], [1.5, 4.0, 3.5], [0.1, 0.2, 0.3], [1.6, 4.1, 4.0]):
        trial = begun(config)
        trial.set_user_attr(studies.RUN_ID, f"run-{trial.number}")
        carry_out(trial, scores)
    study = trial.study
    best = studies.winner(study)
    assert (best.number, best.value) == (3, 4.1)
    lines = studies.table(study, lambda run: f"[{run}](there)").splitlines()
    assert len(lines) == 2 + 4
    assert lines[5].startswith("| 3 | complete | 4.100 | 30 | ")
    assert lines[5].endswith("| [run-3](there) | **the best** |")
    assert lines[4].startswith("| 2 | pruned | 0.100 | 10 | ")
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_only_the_best_model_stays_on_the_disk(config):
    for scores in ([1.0, 2.0, 2.5], [1.5, 4.0, 3.5], [1.5, 3.0, 3.5]):
        (studies.training("shapes") / "key" / "checkpoint-10").mkdir(parents=True)
        trial = begun(config)
        carry_out(trial, scores)
        studies.tidy(trial.study)
    assert [path.name for path in studies.models("shapes").iterdir()] == ["digest-1"]
    assert not studies.training("shapes").exists()


def test_a_best_model_that_is_gone_is_told_with_the_command_that_makes_it_again(config):
    trial = begun(config)
    best = carry_out(trial, [1.0, 2.0, 2.5])
    (studies.models("shapes") / "digest-0").rmdir()
    with pytest.raises(searches.ModelGone) as caught:
        searches.log_best("shapes", trial.study, best)
    settings_again = " ".join(studies.overrides(best.params))
    assert str(caught.value).endswith(f"python -m flows.train CONFIG {settings_again}")


# --- going on -----------------------------------------------------------------------------------


def test_a_search_killed_in_a_trial_goes_on_with_it_to_the_same_end_as_one_that_was_not(config):
    calm = config.search.model_copy(update={"trials": 7, "startup_trials": 4})
    config = config.model_copy(update={"search": calm})
    whole = run_to_the_end(config, by_learning_rate, "whole")
    for _ in range(2):
        trial = begun(config)
        carry_out(trial, by_learning_rate(trial.params))
    killed = begun(config)
    with pytest.raises(Killed):
        carry_out(killed, by_learning_rate(killed.params), die_at=20)

    broken = run_to_the_end(config, by_learning_rate)
    assert len(broken.trials) == 7
    assert drawn(broken) == drawn(whole)
    assert [trial.value for trial in broken.trials] == [trial.value for trial in whole.trials]
    assert [trial.state for trial in broken.trials] == [trial.state for trial in whole.trials]


def test_a_training_that_died_leaves_its_trial_to_be_gone_on_with(config):
    def die(on_event: Callable[[Event], None]) -> Candidate:
        raise TrainingFailed("exit code -9")

    trial = begun(config)
    with pytest.raises(TrainingFailed):
        studies.carry_out(trial, die)
    again = begun(config)
    assert (again.number, again.params) == (trial.number, trial.params)


def test_more_trials_go_on_with_the_study_and_no_more_do_nothing(config):
    run_to_the_end(config, by_learning_rate)
    assert len(run_to_the_end(config, by_learning_rate).trials) == 4
    more = config.search.model_copy(update={"trials": 6})
    longer = config.model_copy(update={"search": more})
    assert len(run_to_the_end(longer, by_learning_rate).trials) == 6
    assert studies.name_of(longer, "key") == studies.name_of(config, "key")


@pytest.mark.parametrize(
    "override",
    ["search.space={finetune.lora.rank: {low: 2, high: 4}}", "evaluate.num_beams=2"],
)
def test_another_space_or_other_limits_are_another_search(scenario, config, override):
    assert studies.name_of(load(scenario, [override]), "key") != studies.name_of(config, "key")
    assert studies.name_of(config, "other data") != studies.name_of(config, "key")


def test_two_processes_do_not_search_the_same_at_once(config):
    code = """
from tasks.registry import studies
with studies.alone("shapes"):
    print("in", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(studies.SearchRunning, match="shapes"), studies.alone("shapes"):
            pass
        other.kill()
    with studies.alone("shapes"):
        pass


def test_the_study_lies_where_the_environment_says(config, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTIONLOOP_OPTUNA_STORAGE", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    begun(config)
    assert (tmp_path / "elsewhere.db").is_file()
    assert not (settings().var / "optuna").exists()
