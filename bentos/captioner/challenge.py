"""A second model beside the champion: as a canary it answers a share of the requests, as a shadow
it captions answered ones again, unseen."""

import asyncio
import hashlib
import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from bentos.captioner.engine import Caption
from bentos.captioner.models import ServedModel
from bentos.captioner.telemetry import Telemetry

logger = logging.getLogger(__name__)
shadow_log = logging.getLogger("captioner.shadow")

# A lone client asks again within less.
QUIET_SECONDS = 0.1
MOST_WAITING = 16
_LOWEST_PRIORITY = 19


def is_canarys(key: bytes, version: str, share: float) -> bool:
    """Whether the canary answers a request: always the same for a key and a version, and true for
    `share` of all keys. Another version gets other ones, so that no client is always the first."""
    digest = hashlib.blake2b(key, digest_size=8, key=version.encode()[:64]).digest()
    return int.from_bytes(digest) < share * 2**64


class Answered(NamedTuple):
    """What a version of the champion said of a request; `again` has the challenger caption it.

    The champion itself may be replaced, and must then leave the memory.
    """

    request_id: str
    version: str
    caption: Caption
    challenger: ServedModel
    again: Callable[[], Caption]


class Shadow:
    """Asks the challenger what has been answered, one picture at a time in a thread of the lowest
    priority, and only where nothing else has been to do for a while; what is too much is skipped.

    Lives in one event loop.
    """

    def __init__(self, telemetry: Telemetry, is_idle: Callable[[], bool]) -> None:
        self._gain = telemetry.shadow_gain
        self._outcomes = {
            outcome: telemetry.shadow.labels(outcome)
            for outcome in ("same", "different", "skipped", "failed")
        }
        self._is_idle = is_idle
        self._waiting: deque[Answered] = deque()
        self._last = 0.0
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="shadow", initializer=_give_way_to_all_others
        )

    def offer(self, answered: Answered) -> None:
        """Have it compared when there is time, if not too many wait already."""
        self._last = asyncio.get_running_loop().time()
        if len(self._waiting) >= MOST_WAITING:
            self._outcomes["skipped"].inc()
            return
        self._waiting.append(answered)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    async def rest(self) -> None:
        """Forget what waits; return when the challenger does nothing any more."""
        self._outcomes["skipped"].inc(len(self._waiting))
        self._waiting.clear()
        if self._worker is not None:
            await self._worker

    def close(self) -> None:
        """Stop its thread, after it has come to rest."""
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if not self._is_idle() or loop.time() < self._last + QUIET_SECONDS:
                await asyncio.sleep(QUIET_SECONDS / 2)
                continue
            answered = self._waiting.popleft()
            running = loop.run_in_executor(self._thread, answered.again)
            await asyncio.wait([running])
            if error := running.exception():
                self._outcomes["failed"].inc()
                logger.error("the shadow failed at request %s: %r", answered.request_id, error)
            else:
                self._compare(answered, running.result())
        self._worker = None

    def _compare(self, answered: Answered, caption: Caption) -> None:
        differs = caption.text != answered.caption.text
        self._outcomes["different" if differs else "same"].inc()
        self._gain.observe(_per_token(caption) - _per_token(answered.caption))
        if differs:
            told = {
                "request_id": answered.request_id,
                "champion": _told(answered.version, answered.caption),
                "challenger": _told(answered.challenger.version, caption),
            }
            shadow_log.info(json.dumps(told, ensure_ascii=False))


def _per_token(caption: Caption) -> float:
    return caption.log_probability / caption.num_tokens


def _told(version: str, caption: Caption) -> dict[str, str | float]:
    return {
        "version": version,
        "caption": caption.text,
        "log_probability": round(caption.log_probability, 6),
    }


def _give_way_to_all_others() -> None:
    """Elsewhere than on Linux a priority is the whole process's."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
