import asyncio
import threading
from collections.abc import Callable, Coroutine

import pytest

from bentos.captioner.batching import MicroBatcher, QueueFull


class Recorder:
    """Doubles its items; can be held in the middle of a batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.entered.release()
        assert self.go.acquire(timeout=30)
        if -1 in items:
            raise RuntimeError("broken batch")
        return [2 * item for item in items]


def run(
    body: Callable[[MicroBatcher[int, int], Recorder], Coroutine], **settings: object
) -> Recorder:
    recorder = Recorder()

    async def main() -> None:
        batcher: MicroBatcher[int, int] = MicroBatcher(recorder, **settings)
        await body(batcher, recorder)
        await batcher.close()

    asyncio.run(main())
    return recorder


async def entered(recorder: Recorder) -> None:
    await asyncio.to_thread(recorder.entered.acquire)


def test_a_lone_item_starts_at_once_and_what_queues_meanwhile_goes_together() -> None:
    async def body(batcher: MicroBatcher[int, int], recorder: Recorder) -> None:
        first = asyncio.ensure_future(batcher.submit(0))
        await entered(recorder)
        others = [asyncio.ensure_future(batcher.submit(number)) for number in range(1, 12)]
        await asyncio.sleep(0)
        recorder.go.release(3)
        results = await asyncio.gather(first, *others)
        assert [done.result for done in results] == [2 * number for number in range(12)]
        assert [done.batch_size for done in results] == [1] + 8 * [8] + 3 * [3]
        assert all(done.queue_seconds >= 0 and done.run_seconds >= 0 for done in results)

    assert run(body).batches == [[0], list(range(1, 9)), [9, 10, 11]]


def test_a_batch_shares_its_key_and_begins_with_the_item_that_waits_longest() -> None:
    async def body(batcher: MicroBatcher[int, int], recorder: Recorder) -> None:
        first = asyncio.ensure_future(batcher.submit(0))
        await entered(recorder)
        others = [asyncio.ensure_future(batcher.submit(number)) for number in range(1, 12)]
        await asyncio.sleep(0)
        recorder.go.release(6)
        done = await asyncio.gather(first, *others)
        assert [one.result for one in done] == [2 * number for number in range(12)]

    recorder = run(body, key=lambda number: number % 3, max_batch=3)
    assert recorder.batches == [[0], [1, 4, 7], [2, 5, 8], [3, 6, 9], [10], [11]]


def test_cancelled_items_are_dropped_before_they_run() -> None:
    async def body(batcher: MicroBatcher[int, int], recorder: Recorder) -> None:
        first = asyncio.ensure_future(batcher.submit(0))
        await entered(recorder)
        others = [asyncio.ensure_future(batcher.submit(number)) for number in range(1, 5)]
        await asyncio.sleep(0)
        others[0].cancel()
        others[2].cancel()
        first.cancel()  # this one runs already: its result is thrown away
        recorder.go.release(2)
        assert (await others[1]).result == 4
        assert (await others[3]).result == 8

    assert run(body).batches == [[0], [2, 4]]


def test_a_failing_batch_fails_its_own_items_only() -> None:
    async def body(batcher: MicroBatcher[int, int], recorder: Recorder) -> None:
        recorder.go.release(2)
        with pytest.raises(RuntimeError, match="broken batch"):
            await batcher.submit(-1)
        assert (await batcher.submit(5)).result == 10

    run(body)


def test_places_are_bounded_and_given_back_whatever_happens() -> None:
    async def body(batcher: MicroBatcher[int, int], recorder: Recorder) -> None:
        with batcher.place(), batcher.place(), pytest.raises(QueueFull), batcher.place():
            pass
        with pytest.raises(RuntimeError), batcher.place():
            raise RuntimeError
        with batcher.place(), batcher.place():
            pass

    run(body, max_places=2)


def test_close_answers_what_is_queued() -> None:
    async def body(batcher: MicroBatcher[int, int], recorder: Recorder) -> None:
        recorder.go.release(9)
        tasks = [asyncio.ensure_future(batcher.submit(number)) for number in range(20)]
        await asyncio.sleep(0)
        await batcher.close()
        assert [task.result().result for task in tasks] == [2 * number for number in range(20)]

    run(body)
