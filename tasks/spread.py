"""A stage's shards as Prefect tasks of their own: on threads, or wherever the flow's runner is."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner


@task(task_run_name="{name} {place}", cache_policy=NO_CACHE, persist_result=False)
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
    """Threads, one a core; or the Dask cluster at an address, whose workers see our disk."""
    if dask_address is None:
        return ThreadPoolTaskRunner(max_workers=len(os.sched_getaffinity(0)))
    from prefect_dask import DaskTaskRunner

    return DaskTaskRunner(address=dask_address)
