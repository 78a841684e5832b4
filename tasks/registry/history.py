"""Who was champion when, by whom and why: an append-only log, which the aliases follow.

MLflow moves an alias without asking what it was, but hands out version numbers one by one. So the
log is a registered model of its own, `<name>-history`, and each of its versions an event, written
whole and never edited. An event counts if it replaces the champion that the events before it left:
of two promotions over the same champion the first in the log counts. To append is the one step that
decides; all that comes after it can be done again by whoever looks next.

A mark on the log says that somebody is about to move aliases. Where aliases and log differ and
there is none, a person moved the alias by hand, and that is put on record. Where there is one, its
owner died or is at work, and the log prevails: without marks, an alias that a slow process set a
moment too late would pass for a person's will.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from tasks.refs import VersionRef
from tasks.registry import lineage, versions
from tasks.registry.runs import client, patiently
from tasks.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, NoSuchVersion

_MARK = "moving."
_DEAD = timedelta(minutes=10)  # no process takes so long from its mark to its aliases
_BY_HAND = "somebody, in MLflow"
_ABOUT = "Who was champion of {}, by whom and why: one version an event. Don't edit or delete any."


class ChampionChanged(RuntimeError):
    """The champion is not the one that was to be replaced."""


class HistoryDamaged(ValueError):
    """An event of the log can't be read."""


@dataclass(frozen=True)
class Event:
    """From `at` on `version` is champion in place of `over`; None stands for nobody."""

    version: int | None
    over: int | None
    why: str
    by: str
    at: datetime
    key: str

    @classmethod
    def now(cls, version: int | None, over: int | None, why: str, by: str) -> "Event":
        at = datetime.now(UTC).replace(microsecond=0)
        return cls(version, over, why, by, at, uuid4().hex)

    def __str__(self) -> str:
        """A sentence for lists of events."""
        if self.version is None:
            told = f"{_told(self.over)} is champion no more"
        else:
            told = f"{_told(self.version)} is champion" + (f" over v{self.over}" * bool(self.over))
        return f"{told}, {self.why} ({self.by}, {_when(self.at)})."


def chain(log: Sequence[Event]) -> list[Event]:
    """The events that count, each of which replaces the champion that those before it left."""
    counted: list[Event] = []
    keys: set[str] = set()
    for event in log:
        # A request that a network sent twice is one event.
        if event.over == champion_of(counted) and event.key not in keys:
            counted.append(event)
        keys.add(event.key)
    return counted


def champion_of(counted: Sequence[Event]) -> int | None:
    """Who is champion after these events."""
    return counted[-1].version if counted else None


def read(name: str) -> list[Event]:
    """The log, in order, with the events that don't count. Raises: HistoryDamaged."""
    events: list[Event] = []
    token: str | None = None
    while token != "":
        page = client().search_model_versions(
            f"name = '{_log(name)}'", order_by=["version_number ASC"], page_token=token
        )
        events += [_parsed(name, int(each.version), each.tags) for each in page]
        token = page.token or ""
    return events


def champion(name: str) -> VersionRef | None:
    """Who is champion; aliases that a crash left behind are brought in line first."""
    version = champion_of(settled(name))
    return None if version is None else versions.by_number(name, version)


def settled(name: str) -> list[Event]:
    """The events that count, with the aliases in line with them.

    What a crash left undone is done, and an alias that a person moved is put on record.
    """
    # In this order: who moves aliases now is seen by a mark, or by an event that came meanwhile.
    log = read(name)
    marked = _marks(name)
    held = versions.aliases(name)
    counted = chain(log)
    if not marked:
        if held.get(CHAMPION) == champion_of(counted):
            return counted
        if read(name) == log:
            return _write(name, *_by_hand(held, champion_of(counted), begun=bool(log)))
    return _write(name)


def promote(version: VersionRef, *, over: VersionRef | None, why: str, by: str) -> None:
    """Makes `version` the champion in place of `over`. Safe to repeat after a crash.

    Raises ChampionChanged, with nothing moved, when another version than `over` is champion by now.
    """
    replaced = None if over is None else over.version
    _replace(version.name, Event.now(version.version, replaced, why, by))


def retire(name: str, *, why: str, by: str) -> None:
    """Leaves `name` without a champion; the retired one is `previous`. Raises: ChampionChanged."""
    serving = champion_of(settled(name))
    if serving is not None:
        _replace(name, Event.now(None, serving, why, by))


def restorable(name: str, version: int | None) -> VersionRef:
    """The version to roll back to: the named one, else the champion before this one.

    Raises: NoSuchVersion, also for one that never was champion, that is champion now, and where
    none is named although this champion came back itself: nobody asks for what was rolled back.
    """
    counted = settled(name)
    if version is None:
        version = _previous(name, counted)
        if version is None:
            raise NoSuchVersion(f"{name} has no previous champion to go back to")
        if champion_of(counted) in {event.version for event in counted[:-1]}:
            raise NoSuchVersion(
                f"{name}: {counted[-1]} It came back itself: name the version to go to"
            )
    found = versions.by_number(name, version)
    if version == champion_of(counted):
        raise NoSuchVersion(f"{name} v{version} is champion already")
    if version not in {event.version for event in counted}:
        raise NoSuchVersion(f"{name} v{version} was never champion; name one that was")
    return found


def _replace(name: str, event: Event) -> None:
    counted = settled(name)
    if counted and (counted[-1].version, counted[-1].over) == (event.version, event.over):
        return  # an earlier try of this got so far
    if champion_of(counted) == event.over:
        counted = _write(name, event)
        if any(each.key == event.key for each in counted):
            return
    told = f": {counted[-1]}" if counted else "."
    raise ChampionChanged(
        f"{name} {_told(event.version)} was to replace {_told(event.over)}, but "
        f"{_told(champion_of(counted))} is champion by now{told} Run the flow again"
    )


def _by_hand(held: dict[str, int], serving: int | None, *, begun: bool) -> list[Event]:
    """What a person did in MLflow; all that a registry from before the log knows."""
    hand = held.get(CHAMPION)
    before = held.get(PREVIOUS)
    if begun or before in (None, hand):
        how = "found removed by hand" if hand is None else "found set by hand"
        return [Event.now(hand, serving, how, _BY_HAND)]
    return [
        Event.now(before, None, "found as the previous champion", _BY_HAND),
        Event.now(hand, before, "found as the champion", _BY_HAND),
    ]


def _write(name: str, *events: Event) -> list[Event]:
    """Appends the events and settles; returns what counts then."""
    versions.ensure(_log(name), _ABOUT.format(name))
    mark = _MARK + uuid4().hex
    client().set_registered_model_tag(_log(name), mark, datetime.now(UTC).isoformat())
    for event in events:
        _append(name, event)
    counted = _settle(name)
    dead = (other for other, since in _marks(name).items() if datetime.now(UTC) - since > _DEAD)
    for done in (mark, *dead):
        client().delete_registered_model_tag(_log(name), done)
    return counted


def _append(name: str, event: Event) -> None:
    def once() -> None:
        if all(each.key != event.key for each in read(name)):
            client().create_model_version(
                _log(name),
                source=f"captionloop:/{name}/{event.version}",
                description=str(event),
                tags={
                    "version": event.version or "none",
                    "over": event.over or "none",
                    "why": event.why,
                    "by": event.by,
                    "at": event.at.isoformat(),
                    "key": event.key,
                },
            )

    patiently(once)


def _settle(name: str) -> list[Event]:
    """Moves the aliases to where the log says, and again while it grows."""
    while True:
        log = read(name)
        counted = chain(log)
        serving = champion_of(counted)
        if serving is not None and not versions.exists(name, serving):
            _append(name, Event.now(None, serving, "found deleted", _BY_HAND))
            continue
        wanted = {CHAMPION: serving, PREVIOUS: _previous(name, counted)}
        held = versions.aliases(name)
        if serving is not None and held.get(CHALLENGER) == serving:
            wanted[CHALLENGER] = None
        for alias, version in wanted.items():
            if held.get(alias) != version:
                versions.point(name, alias, version)
        for version in _both(counted):
            if versions.exists(name, version):
                lineage.record_periods(name, version, _periods(version, counted))
        if read(name) == log:
            return counted


def _both(counted: Sequence[Event]) -> list[int]:
    """Whom the last event concerns."""
    last = counted[-1:]
    return [each for event in last for each in (event.version, event.over) if each is not None]


def _previous(name: str, counted: Sequence[Event]) -> int | None:
    """The latest champion before this one that is still there."""
    for event in reversed(counted):
        if event.over not in (None, champion_of(counted)) and versions.exists(name, event.over):
            return event.over
    return None


def _periods(version: int, counted: Sequence[Event]) -> list[str]:
    """When `version` was champion, a line each: by whom and why it came, and why it went."""
    lines = []
    for event, after in zip(counted, [*counted[1:], None], strict=True):
        if event.version == version:
            came = f"champion from {_when(event.at)}, {event.why} ({event.by})"
            if after is None:
                lines.append(came)
            else:
                lines.append(
                    f"{came}, until {_when(after.at)}: {_told(after.version)} {after.why}"
                    f" ({after.by})"
                )
    return lines


def _parsed(name: str, number: int, tags: dict[str, str]) -> Event:
    try:
        version, over = (
            None if tags[key] == "none" else int(tags[key]) for key in ("version", "over")
        )
        at = datetime.fromisoformat(tags["at"])
        return Event(version, over, tags["why"], tags["by"], at, tags["key"])
    except (KeyError, ValueError) as error:
        raise HistoryDamaged(
            f"{_log(name)} v{number} is no event ({error!r}): delete that version in MLflow; "
            "who is champion is then found by the alias"
        ) from None


def _marks(name: str) -> dict[str, datetime]:
    """Who is about to move aliases, and since when."""
    tags = versions.model_tags(_log(name))
    return {key: datetime.fromisoformat(tags[key]) for key in tags if key.startswith(_MARK)}


def _log(name: str) -> str:
    return f"{name}-history"


def _told(version: int | None) -> str:
    return "no champion" if version is None else f"v{version}"


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
