"""A stage's shards as Prefect tasks of their own: on threads, or wherever the flow's runner is."""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

SHARD = "shard"  # the tag of what is no stage by itself
# For a worker to answer; a cluster that scales up from none may have to start one.
_PATIENCE_SECONDS = 120


class NoCluster(ValueError):
    """`data.dask_address` leads to no Dask cluster with a worker."""


@task(task_run_name="{name} {place}", tags={SHARD}, cache_policy=NO_CACHE, persist_result=False)
def shard(name: str, place: int, function: Callable[[Any], Any], item: Any) -> Any:
    """One shard; the stage that it belongs to is what is cached."""
    return function(item)


def on_task_runner(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """A `tasks.data.parallel.Mapper`: submits all items and yields the results in their order."""
    name = getattr(function, "func", function).__name__.strip("_")
    futures = [shard.submit(name, place, function, item) for place, item in enumerate(items)]
    for future in futures:
        yield future.result()


def task_runner(dask_address: str | None) -> TaskRunner[Any]:
    """Threads, one a core; or the Dask cluster at an address, whose workers see our disk.

    Raises NoCluster before any work is done: Dask itself would wait for a worker for ever.
    """
    if dask_address is None:
        return ThreadPoolTaskRunner(max_workers=len(os.sched_getaffinity(0)))
    from prefect_dask import DaskTaskRunner

    _try_out(dask_address)
    return DaskTaskRunner(address=dask_address)


def _try_out(address: str) -> None:
    """Have a worker do nothing; raises NoCluster where none does."""
    from distributed import Client

    try:
        with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop of its own
            thread.submit(asyncio.run, _reach(address)).result()
        with Client(address, set_as_default=False) as client:
            client.submit(os.getpid, pure=False).result(_PATIENCE_SECONDS)
    # What Dask raises for a dead address, no worker, a wrong address, TLS that isn't set up,
    # and for a greeting of another service, which it reads as the size of a message.
    except (OSError, ValueError, TypeError, MemoryError) as error:
        why = str(error) or f"nothing within {_PATIENCE_SECONDS} s"
        raise NoCluster(
            f"data.dask_address: no Dask worker answers at {address!r} ({why}); start "
            "`dask scheduler` and `dask worker`, or leave the key out to work on threads."
        ) from error


async def _reach(address: str) -> None:
    """Greet whoever is there; Dask's own client waits for ever for one that says nothing."""
    from distributed.comm import connect
    from distributed.security import Security

    async with asyncio.timeout(_PATIENCE_SECONDS):
        comm = await connect(address, **Security().get_connection_args("client"))
        await comm.close()
