"""Maps over shards: on this machine's threads by default, on whatever a stage passes instead."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Mapper(Protocol):
    """Calls a picklable function on each item; the results come in the items' order."""

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], /
    ) -> Iterable[Any]: ...


def on_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """On all cores (Pillow and hashlib let go of the GIL), never far ahead of who reads."""
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as threads:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
