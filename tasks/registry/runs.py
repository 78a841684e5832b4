"""Experiments and runs in MLflow: one run a trained model, carrying all that explains it."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from configs.settings import git_commit, settings
from tasks.refs import PreparedRef

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Says which training a run is of, so that the same one goes on with it.
_KEY = "training_key"
_TRIES = 12
_PASSING = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "BAD_REQUEST")


def client() -> "MlflowClient":
    """A client of the tracking server that the settings name."""
    import mlflow

    uri = settings().tracking_uri
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    # The registry resolves a LoggedModel's files through the global URI, whatever the client's is.
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


def patiently(write: Callable[[], object]) -> None:
    """A write that is safe to repeat, tried again where another one came between.

    Of writers at the same moment MLflow's store lets one through: the others find the database
    locked, the key taken, or a version number gone three times.
    """
    from mlflow.exceptions import MlflowException

    for last in (*[False] * (_TRIES - 1), True):
        try:
            write()
            return
        except MlflowException as error:
            if last or error.error_code not in _PASSING:
                raise
        time.sleep(random.uniform(0.02, 0.5))


def experiment_id(name: str) -> str:
    """The id of experiment `name`, made when there is none yet."""
    from mlflow.exceptions import MlflowException

    mlflow = client()
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    served = settings().tracking_uri.startswith("http")
    # A server decides for itself where artifacts go; without one MLflow would use ./mlruns.
    location = None if served else (settings().var / "mlflow" / "artifacts" / name).as_uri()
    try:
        return str(mlflow.create_experiment(name, artifact_location=location))
    except MlflowException:
        experiment = mlflow.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


@contextlib.contextmanager
def training(
    experiment: str,
    sections: Mapping[str, BaseModel],
    data: PreparedRef,
    seed: int,
    run_name: str,
    *,
    key: str,
    parent: str | None = None,
) -> Iterator[str]:
    """Yields the id of the unfinished run under `key`, or of a new one, a child of `parent` if any.

    It ends FINISHED, FAILED as the training does, or KILLED where something ended that.
    """
    mlflow = client()
    run_id = _unfinished(experiment, key)
    if run_id is None:
        run_id = _created(experiment, sections, data, seed, run_name, key, parent)
    else:
        mlflow.update_run(run_id, status="RUNNING")
    try:
        yield run_id
    except BaseException as error:
        mlflow.set_terminated(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    mlflow.set_terminated(run_id, "FINISHED")


def _unfinished(experiment: str, key: str) -> str | None:
    """The newest run under `key` that has not come to its end."""
    found = client().search_runs(
        [experiment_id(experiment)],
        filter_string=f"tags.{_KEY} = '{key}' and attributes.status != 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None


def _created(
    experiment: str,
    sections: Mapping[str, BaseModel],
    data: PreparedRef,
    seed: int,
    run_name: str,
    key: str,
    parent: str | None,
) -> str:
    from mlflow.entities import Param, RunTag

    mlflow = client()
    parameters = {"seed": seed, **_flat(sections)}
    tags = {
        _KEY: key,
        "git_commit": git_commit(),
        "dataset_digest": data.digest,
        "dataset_dvc_md5": data.dvc_md5,
        "dataset_rows_dvc_md5": data.rows_dvc_md5,
    }
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    run_id: str = mlflow.create_run(experiment_id(experiment), run_name=run_name).info.run_id
    mlflow.log_batch(
        run_id,
        params=[Param(name, str(value)) for name, value in parameters.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    return run_id


@contextlib.contextmanager
def system_metrics(run_id: str) -> Iterator[None]:
    """CPU, memory, disk, network and GPUs of this machine on the run, every ten seconds."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    client()
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def last_step(run_id: str, metric: str) -> int:
    """The latest step at which the run has `metric`, -1 if it has none."""
    history = client().get_metric_history(run_id, metric)
    return max((int(point.step) for point in history), default=-1)


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Logs all of `metrics` in one request."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client().log_batch(run_id, metrics=[Metric(k, v, now, step) for k, v in metrics.items()])


def link(run_id: str, artifact: str = "") -> str:
    """The run, or a file of it, as a markdown link where the tracking URI is a server; else the
    name."""
    uri = settings().tracking_uri
    shown = artifact or run_id
    if not uri.startswith("http"):
        return shown
    experiment = client().get_run(run_id).info.experiment_id
    page = f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    return f"[{shown}]({page}/artifacts/{artifact})" if artifact else f"[{shown}]({page})"


def _flat(sections: Mapping[str, BaseModel]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, section in sections.items():
        for key, value in section:
            if isinstance(value, BaseModel):
                flat |= _flat({f"{name}.{key}": value})
            else:
                flat[f"{name}.{key}"] = value
    return flat
