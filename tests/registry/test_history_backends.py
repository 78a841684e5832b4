"""Promotions at the same moment, by real processes, on each store that a registry may lie on."""

import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from tasks.registry import history, versions
from tasks.registry.versions import CHAMPION, PREVIOUS
from tests.registry.backends import promote_at

ROUNDS = 3
NAME = "shapes"


@pytest.mark.e2e
def test_of_promotions_at_the_same_moment_one_wins_and_the_aliases_tell_which(
    backend, logged, processes: ProcessPoolExecutor
):
    registered = [versions.register(NAME, logged(f"{number} {backend}"), {}) for number in range(5)]
    history.promote(registered[0], over=None, why="the first", by="tests")
    champions = [registered[0]]
    with Watch() as watch:
        for _ in range(ROUNDS):
            champions.append(_race(backend, processes, registered, champions[-1]))
    assert watch.seen <= {each.version for each in registered}  # never nobody
    counted = history.settled(NAME)
    assert [event.version for event in counted] == [each.version for each in champions]
    for event, before in zip(counted[1:], champions, strict=False):
        assert event.over == before.version
    assert not [tag for tag in versions.model_tags(f"{NAME}-history") if "moving" in tag]


def _race(uri, processes, registered, champion):
    """All others are promoted over the champion at once, the former champion as by a rollback."""
    others = [each for each in registered if each != champion]
    moment = time.time() + 0.3
    ended = {
        each.version: processes.submit(promote_at, moment, uri, each, champion, f"v{each.version}")
        for each in others
    }
    said = {version: end.result() for version, end in ended.items()}
    (winner,) = (version for version, told in said.items() if told is None)
    for version, told in said.items():
        if version != winner:
            assert f"v{version} was to replace v{champion.version}" in told
            assert f"v{winner} is champion" in told
    held = versions.aliases(NAME)
    assert (held[CHAMPION], held[PREVIOUS]) == (winner, champion.version)
    return next(each for each in registered if each.version == winner)


class Watch:
    """What a service that follows the champion sees meanwhile."""

    def __enter__(self):
        self.seen: set[int | None] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            self.seen.add(versions.aliases(NAME).get(CHAMPION))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
