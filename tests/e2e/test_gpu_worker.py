"""A laptop's worker and a GPU's, which share servers and no disk: each has the other's folder
hidden by a mount of its own. Prefect, MLflow with its artifacts on S3, and DVC on S3, all real."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from s3 import served_bucket

from bentos.packaging import free_port
from configs.settings import ROOT
from infra import reaper

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PATIENCE_SECONDS = 240
NAME = "shapes"
SCENARIO: dict[str, Any] = {
    "name": NAME,
    "seed": 3,
    "data": {
        "source": {"format": "scenes", "count": 90, "seed": 5},
        "splits": {"val": 0.1, "test": 0.4},
    },
    "model": {"tiny": {"vision_width": 32, "text_width": 32, "heads": 2, "vocab_size": 120}},
    "finetune": {
        "deployment": "finetune/gpu",
        "max_steps": 6,
        "batch_size": 8,
        "log_every_steps": 2,
        "evaluate_every_steps": 3,
    },
    "evaluate": {"gallery_images": 3, "max_new_tokens": 6},
    "gate": {"floors": {"cider": 1000.0}},
}


@dataclass
class Cluster:
    """Servers, and machines that are a folder each."""

    folder: Path
    bucket: str
    mark: str = field(default_factory=lambda: f"tests#{uuid.uuid4().hex}")
    prefect: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")
    mlflow: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")

    def environment(self, machine: str) -> dict[str, str]:
        home = self.folder / machine
        return {
            **os.environ,
            "HOME": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "TMPDIR": str(home / "tmp"),
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
            "CAPTIONLOOP_VAR": str(home / "var"),
            "CAPTIONLOOP_ROOT": str(ROOT),
            "CAPTIONLOOP_DVC_REMOTE": f"{self.bucket}/datasets",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": str(ROOT),
            reaper.MARK: self.mark,
        }

    def start(self, machine: str, *command: str, hidden: Path | None = None) -> psutil.Process:
        """A process of a machine; a `hidden` folder is an empty one for it and all it starts."""
        (self.folder / machine / "tmp").mkdir(parents=True, exist_ok=True)
        line = [tool(command[0]), *command[1:]]
        if hidden is not None:
            hidden.mkdir(exist_ok=True)
            mine = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
            script = 'mount -t tmpfs none "$0" && exec "$@"'
            line = ["unshare", *mine, "--mount", "sh", "-c", script, str(hidden), *line]
        with (self.folder / machine / f"{command[0]}.log").open("ab") as log:
            started = subprocess.Popen(
                line,
                cwd=ROOT,
                env=self.environment(machine),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return psutil.Process(started.pid)

    def run(self, *command: str) -> None:
        done = subprocess.run(
            [tool(command[0]), *command[1:]],
            cwd=ROOT,
            env=self.environment("servers"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def worker(self, machine: str, pool: str, hidden: str) -> psutil.Process:
        start = ["prefect", "worker", "start", "--pool", pool]
        return self.start(machine, *start, hidden=self.folder / hidden)

    def kill(self, machine: str) -> None:
        """Ends all of a machine's processes at once, as a power cut does."""
        home = str(self.folder / machine)
        doomed = [p for p in reaper.members(self.mark) if p.environ().get("HOME") == home]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(doomed, timeout=10)

    def training(self) -> list[psutil.Process]:
        return [p for p in reaper.members(self.mark) if "tasks.training.run" in p.cmdline()]

    def runs(self) -> list[Run]:
        mlflow = MlflowClient(self.mlflow)
        found = mlflow.get_experiment_by_name(NAME)
        return list(mlflow.search_runs([found.experiment_id])) if found else []


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def wait_until(what: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.25)
    return found


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with served_bucket("cluster") as bucket:
        made = Cluster(folder, bucket)
        guard = reaper.guard(made.mark)  # ends them where pytest itself is killed
        try:
            _start_servers(made)
            _deploy(made)
            made.worker("laptop", "local", hidden="gpu")
            made.worker("gpu", "gpu", hidden="laptop")
            yield made
        finally:
            reaper.reap(made.mark)
            guard.communicate()


def _start_servers(cluster: Cluster) -> None:
    def at(url: str) -> list[str]:
        return ["--host", "127.0.0.1", "--port", url.rpartition(":")[2]]

    database = f"sqlite:///{cluster.folder / 'mlflow.db'}"
    store = ["--backend-store-uri", database, "--artifacts-destination", f"{cluster.bucket}/mlflow"]
    cluster.start("servers", "prefect", "server", "start", *at(cluster.prefect))
    cluster.start("servers", "mlflow", "server", "--workers", "1", *store, *at(cluster.mlflow))
    wait_until(lambda: answers(f"{cluster.prefect}/api/health"))
    wait_until(lambda: answers(f"{cluster.mlflow}/health"))


def _deploy(cluster: Cluster) -> None:
    """The project's own deployments of the whole DAG and of the GPU's part."""
    config = cluster.folder / "shapes.yaml"
    config.write_text(yaml.safe_dump(SCENARIO))
    project = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    chosen = [each for each in project["deployments"] if each["name"] in ("demo", "gpu")]
    for each in chosen:
        if "parameters" in each:
            each["parameters"]["config"] = str(config)
    file = cluster.folder / "prefect.yaml"
    file.write_text(yaml.safe_dump(project | {"deployments": chosen}))
    for pool in ("local", "gpu"):
        cluster.run("prefect", "work-pool", "create", pool, "--type", "process")
    cluster.run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file))


@pytest.fixture(scope="module")
def prefect(cluster: Cluster) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: f"{cluster.prefect}/api"}),
        get_client(sync_client=True) as client,
    ):
        yield client


def begin(prefect: SyncPrefectClient, deployment: str, parameters: dict[str, Any]) -> FlowRun:
    found = prefect.read_deployment_by_name(deployment)
    return prefect.create_flow_run_from_deployment(found.id, parameters=parameters)


def ended(prefect: SyncPrefectClient, run: FlowRun) -> FlowRun:
    def final() -> FlowRun | None:
        now = prefect.read_flow_run(run.id)
        return now if now.state is not None and now.state.is_final() else None

    found = wait_until(final)
    assert isinstance(found, FlowRun)
    return found


@pytest.fixture(scope="module")
def trained(cluster: Cluster, prefect: SyncPrefectClient) -> tuple[FlowRun, FlowRun]:
    """The run of the whole DAG on the laptop, and the run on the GPU's worker that it asked for."""
    whole = ended(prefect, begin(prefect, "train/demo", {}))
    [part] = parts(prefect)
    return whole, part


def parts(prefect: SyncPrefectClient) -> list[FlowRun]:
    """The runs on the GPU's worker, the newest first."""
    deployment = prefect.read_deployment_by_name("finetune/gpu")
    runs = prefect.read_flow_runs(sort=FlowRunSort.START_TIME_DESC)
    return [run for run in runs if run.deployment_id == deployment.id]


def under_way(cluster: Cluster, far_enough: Callable[[Run], bool]) -> str:
    """The id of the run that goes on now, once it has come far enough."""

    def found() -> list[Run]:
        return [r for r in cluster.runs() if r.info.status == "RUNNING" and far_enough(r)]

    [run] = wait_until(found)
    return str(run.info.run_id)


def again(part: FlowRun, **finetune: Any) -> dict[str, Any]:
    """The parameters of another training on the same dataset: only refs travelled."""
    parameters = json.loads(json.dumps(part.parameters))
    parameters["scenario"]["finetune"] |= finetune
    return dict(parameters)


def test_the_gpus_worker_trains_for_the_laptops_and_only_refs_travel(cluster, trained):
    whole, part = trained
    assert whole.state.is_completed(), whole.state.message
    assert part.state.is_completed()
    assert part.work_pool_name == "gpu"
    laptop, gpu = (cluster.folder / name / "var" for name in ("laptop", "gpu"))
    assert not (gpu / "datasets" / "raw").exists()
    [dataset] = (gpu / "datasets" / "prepared").iterdir()  # pulled from the bucket
    assert (laptop / "datasets" / "prepared" / dataset.name).exists()
    assert not (laptop / "training").exists()
    [model] = (gpu / "models").iterdir()
    assert (laptop / "models" / model.name).exists()  # fetched from MLflow to be evaluated
    mlflow = MlflowClient(cluster.mlflow)
    [version] = mlflow.search_model_versions(f"name = '{NAME}'")
    assert version.tags["verdict"] == "reject"
    assert version.tags["digest"] == model.name


def test_the_run_has_curves_pictures_and_meters_and_no_checkpoints_are_left(cluster, trained):
    [run] = [run for run in cluster.runs() if run.info.status == "FINISHED"]
    mlflow = MlflowClient(cluster.mlflow)
    for metric in ("loss", "learning_rate", "images_per_second", "gradient_norm"):
        steps = [point.step for point in mlflow.get_metric_history(run.info.run_id, metric)]
        assert steps == [2, 3, 4, 6], metric
    assert [p.step for p in mlflow.get_metric_history(run.info.run_id, "val_cider")] == [3, 6]
    assert "system/cpu_utilization_percentage" in run.data.metrics
    names = [file.path for file in mlflow.list_artifacts(run.info.run_id)]
    assert "images" in names
    assert not mlflow.list_artifacts(run.info.run_id, "checkpoints")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert run.data.tags["checkpoint_steps"] == ""


def test_cancelling_the_whole_ends_every_process_of_its_training_on_the_other_machine(
    cluster, prefect, trained
):
    overrides = ["finetune.max_steps=1000000"]
    whole = begin(prefect, "train/demo", {"overrides": overrides})

    run_id = under_way(cluster, lambda run: "loss" in run.data.metrics)
    training = cluster.training()
    assert training
    start = time.monotonic()
    prefect.set_flow_run_state(whole.id, Cancelling())  # what the button in the UI does
    _, alive = psutil.wait_procs(training, timeout=30)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    print(f"{len(training)} processes were gone {time.monotonic() - start:.1f} s after the cancel")
    assert ended(prefect, whole).state.is_cancelled()
    [part, *_] = parts(prefect)
    assert ended(prefect, part).state.is_cancelled()
    assert not cluster.training()
    mlflow = MlflowClient(cluster.mlflow)
    wait_until(lambda: mlflow.get_run(run_id).info.status == "KILLED", 30)


def test_another_machine_goes_on_with_what_a_killed_one_left(cluster, prefect, trained):
    _, part = trained
    settings = {"max_steps": 1500, "log_every_steps": 50, "checkpoint_every_steps": 150}
    parameters = again(part, **settings, evaluate_every_steps=1500)
    begin(prefect, "finetune/gpu", parameters)
    run_id = under_way(cluster, lambda run: bool(run.data.tags.get("checkpoint_steps")))
    cluster.kill("gpu")
    assert not cluster.training()
    shutil.rmtree(cluster.folder / "gpu")
    mlflow = MlflowClient(cluster.mlflow)
    before = mlflow.get_run(run_id).data.tags
    cluster.worker("gpu-2", "gpu", hidden="laptop")
    run = ended(prefect, begin(prefect, "finetune/gpu", parameters))
    assert run.state.is_completed(), run.state.message
    key = before["training_key"]
    [after] = [r for r in cluster.runs() if r.data.tags["training_key"] == key]  # none is doubled
    assert (after.info.run_id, after.info.status) == (run_id, "FINISHED")
    history = mlflow.get_metric_history(run_id, "loss")
    assert [point.step for point in history] == list(range(50, 1501, 50))
    assert not mlflow.list_artifacts(run_id, "checkpoints")
    lines = prefect.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    told = [line.message for line in lines]
    [resumed] = [line for line in told if "goes on from step" in line]
    print(resumed)
    assert resumed.rpartition(" ")[2] in before["checkpoint_steps"].split()
