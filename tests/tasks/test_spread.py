"""A dataset is the same wherever its shards are made; a cluster that isn't there is told."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from configs.schema import Config
from flows.dataset import dataset
from tasks import spread
from tasks.data.folders import sha256_file
from tasks.refs import PreparedRef

# 1,300 images: to validate, parts of 500; to prepare, shards of at most 512 in each split.
SHARDS = 3 + 5


def scenario(dask_address: str | None) -> Config:
    source = {"format": "scenes", "count": 1300, "seed": 5}
    splits = {"val": 0.1, "test": 0.1}
    data = {"source": source, "splits": splits, "image_size": 32, "dask_address": dask_address}
    return Config.model_validate({"name": "shapes", "data": data})


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers, each a process with one thread."""
    with LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture
def make(tmp_path: Path, prefect_server: None, monkeypatch) -> Callable[..., PreparedRef]:
    """Makes the dataset with a `var` folder and cached results of its own: none is another's."""

    def make(name: str, dask_address: str | None = None) -> PreparedRef:
        var = tmp_path / name
        monkeypatch.setenv("CAPTIONLOOP_VAR", str(var))
        with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: var / "results"}):
            made = dataset(scenario(dask_address))
        assert made.path.is_relative_to(var)
        return made

    return make


def shard_places(client: Client) -> list[str]:
    """The worker of each shard that the scheduler has seen finished."""
    done = client.get_task_stream()
    return [str(each["worker"]) for each in done if str(each["key"]).startswith("shard-")]


def content(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def test_processes_of_a_dask_cluster_make_the_dataset_that_threads_make(make, cluster):
    with Client(cluster, set_as_default=False) as client:
        shard_places(client)  # the scheduler keeps a record from the first question on
        here = make("threads")
        assert shard_places(client) == []
        there = make("dask", cluster.scheduler_address)
        places, processes = shard_places(client), client.run(os.getpid)
    assert len(places) == SHARDS
    assert set(places) == processes.keys()
    assert len({os.getpid(), *processes.values()}) == 3
    assert (there.digest, there.dvc_md5) == (here.digest, here.dvc_md5)
    assert content(there.path) == content(here.path)


@pytest.mark.parametrize("there", ["nothing", "no answer", "no worker"])
def test_a_dead_address_is_told_with_the_fix_and_no_work_is_done(there, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "_PATIENCE_SECONDS", 2)
    monkeypatch.setenv("CAPTIONLOOP_VAR", str(tmp_path / "var"))
    with ExitStack() as until:
        if there == "no worker":
            empty = LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None)
            address = until.enter_context(empty).scheduler_address
        else:
            listening = until.enter_context(socket.create_server(("127.0.0.1", 0)))
            address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
            if there == "nothing":
                listening.close()
        with pytest.raises(spread.NoCluster) as told:
            dataset(scenario(address))
    message = str(told.value)
    assert message.startswith(f"data.dask_address: no Dask worker answers at {address!r} (")
    assert "start `dask scheduler` and `dask worker`, or leave the key out" in message
    assert not (tmp_path / "var").exists()
