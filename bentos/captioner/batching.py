"""A work-conserving micro-batcher: it never waits for company, it takes what has queued up."""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFull(RuntimeError):
    """More requests are in work than the service takes at once."""


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """A result, how long its item queued, how long its batch ran, and how many shared it."""

    result: Result
    queue_seconds: float
    run_seconds: float
    batch_size: int


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    since: float
    future: "asyncio.Future[Batched[Result]]"


class MicroBatcher(Generic[Item, Result]):
    """Runs items in batches of at most `max_batch` in one thread of its own.

    An idle batcher starts a lone item at once; while it runs, others gather and go next: the one
    that waits longest, and those of the same `key` behind it. An item whose caller was cancelled
    is dropped before it costs anything. Lives in one event loop.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Result]],
        *,
        key: Callable[[Item], Hashable] = lambda _: None,
        max_batch: int = 8,
        max_places: int = 64,
    ) -> None:
        self._run = run
        self._key = key
        self.max_batch = max_batch
        self._max_places = max_places
        self._places = 0
        self._waiting: list[_Waiting[Item, Result]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody holds a place and nothing runs."""
        return self._places == 0 and self._worker is None

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of `max_places`, from before an item is prepared until it is answered.

        Taken that early it bounds decoded pictures too, not only queued ones. Raises QueueFull.
        """
        if self._places >= self._max_places:
            raise QueueFull(f"{self._places} requests are in work already.")
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    async def submit(self, item: Item) -> Batched[Result]:
        """The item's result; raises what `run` raised for its batch."""
        future: asyncio.Future[Batched[Result]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, time.perf_counter(), future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Answer what is queued, then stop."""
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        """Run batches until nothing waits; the next `submit` starts anew."""
        loop = asyncio.get_running_loop()
        while batch := self._take():
            started = time.perf_counter()
            running = loop.run_in_executor(self._thread, self._run, [one.item for one in batch])
            await asyncio.wait([running])
            seconds = time.perf_counter() - started
            error = running.exception()
            for index, one in enumerate(batch):
                if one.future.done():  # cancelled while it ran
                    continue
                if error is not None:
                    one.future.set_exception(error)
                    continue
                result = running.result()[index]
                queued = started - one.since
                one.future.set_result(Batched(result, queued, seconds, len(batch)))
        self._worker = None

    def _take(self) -> list[_Waiting[Item, Result]]:
        waiting = [one for one in self._waiting if not one.future.done()]
        key = self._key(waiting[0].item) if waiting else None
        batch = [one for one in waiting if self._key(one.item) == key][: self.max_batch]
        taken = {id(one) for one in batch}
        self._waiting = [one for one in waiting if id(one) not in taken]
        return batch
