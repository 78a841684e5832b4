"""A search's MLflow run, the parent of its trials' runs: what is best so far, and its settings."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from configs.schema import SearchConfig
from configs.settings import settings
from tasks.data import folders
from tasks.refs import ModelRef, PreparedRef
from tasks.registry import runs, versions
from tasks.registry.studies import DIGEST, RUN_ID, WHY, folder, models, overrides

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_KEY = "search_key"
_MODEL = "model of trial {}"


class ModelGone(ValueError):
    """The best trial was trained on another machine, or its folder was deleted."""


@contextlib.contextmanager
def search_run(
    experiment: str, study: str, search: SearchConfig, data: PreparedRef
) -> Iterator[str]:
    """Yields the id of the study's run, taken up again where there is one.

    It ends FINISHED, FAILED as the search does, or KILLED where something ended that.
    """
    mlflow = runs.client()
    run_id = _found(experiment, study) or _created(experiment, study, search, data)
    mlflow.update_run(run_id, status="RUNNING")
    try:
        yield run_id
    except BaseException as error:
        mlflow.set_terminated(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    mlflow.set_terminated(run_id, "FINISHED")


def _found(experiment: str, study: str) -> str | None:
    found = runs.client().search_runs(
        [runs.experiment_id(experiment)],
        filter_string=f"tags.{_KEY} = '{study}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None


def _created(experiment: str, study: str, search: SearchConfig, data: PreparedRef) -> str:
    tags = {
        _KEY: study,
        "git_commit": runs.git_commit(),
        "dataset_digest": data.digest,
        "dataset_dvc_md5": data.dvc_md5,
    }
    mlflow = runs.client()
    made = mlflow.create_run(runs.experiment_id(experiment), run_name="search", tags=tags)
    run_id: str = made.info.run_id
    mlflow.log_dict(run_id, search.model_dump(mode="json", exclude_defaults=True), "search.yaml")
    return run_id


def record_trial(parent: str, trial: "FrozenTrial", best: "FrozenTrial | None") -> None:
    """Puts how a trial ended on its run, and its score and the best so far on the parent."""
    mlflow = runs.client()
    ended = {"trial_state": trial.state.name.lower(), "trial_why": trial.user_attrs.get(WHY, "")}
    for name, text in ended.items():
        mlflow.set_tag(trial.user_attrs[RUN_ID], name, text)
    scores: dict[str, float | None] = {"val_cider": trial.value, "best_val_cider": None}
    if best is not None:
        scores["best_val_cider"] = best.value
        told = {"trial": best.number, "run": best.user_attrs[RUN_ID], **best.params}
        for name, value in told.items():  # tags, since a later trial may be better
            mlflow.set_tag(parent, f"best.{name}", str(value))
    known = {name: value for name, value in scores.items() if value is not None}
    runs.log_metrics(parent, known, trial.number)


def log_best(name: str, study: "Study", best: "FrozenTrial") -> ModelRef:
    """The best trial's model, stored with its run in MLflow once; what else was kept is deleted.

    Raises: ModelGone.
    """
    key = _MODEL.format(best.number)
    if key in study.user_attrs:
        logged = ModelRef.model_validate(study.user_attrs[key])
        if logged.exists():
            return logged
    digest = best.user_attrs[DIGEST]
    kept, final = models(study.study_name) / digest, settings().var / "models" / digest
    if kept.is_dir():
        final.parent.mkdir(parents=True, exist_ok=True)
        folders.publish(kept, final)
    if not final.is_dir():
        raise ModelGone(
            f"the model of the best trial, {best.number}, is not in {kept} any more: train it "
            f"again with python -m flows.train CONFIG {' '.join(overrides(best.params))}"
        )
    made = versions.log_model(best.user_attrs[RUN_ID], final, name=name, digest=digest)
    study.set_user_attr(key, made.model_dump(mode="json"))
    shutil.rmtree(folder(study.study_name), ignore_errors=True)
    return made
