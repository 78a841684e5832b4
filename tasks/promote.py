"""Promote: the alias moves, and with it every service that follows the champion."""

from prefect import task

from configs.settings import settings
from tasks.artifacts import publish, table
from tasks.refs import BentoRef, VersionRef
from tasks.registry import card, history, lineage, versions


@task
def current_champion(name: str) -> VersionRef | None:
    """Who serves now; never cached, since the registry is the only truth."""
    return history.champion(name)


def require_champion(name: str, champion: VersionRef | None) -> VersionRef:
    """The champion, or an error that says what to do without one."""
    if champion is None:
        raise versions.NoSuchVersion(
            f"model.base is `champion`, but {name} has none: train with model.base=scratch"
        )
    return champion


@task
def promote(
    version: VersionRef, bento: BentoRef, over: VersionRef | None, why: str, by: str
) -> None:
    """Makes `version` the champion in place of `over`, the one that it was judged against.

    Raises `ChampionChanged`, with nothing moved, when that one is champion no more.
    """
    lineage.record_bento(version, bento.tag)
    history.promote(version, over=over, why=why, by=by)
    rows = {
        "champion": version,
        "in place of": over or "nobody",
        "why": f"{why} ({by})",
        "Bento": bento.tag,
        "service": settings().service_url or "follows the alias when it runs",
    }
    publish("promote", table(rows), "The new champion")
    for concerned in filter(None, (over, version)):
        publish("model-card", card.write(concerned), f"The card of {concerned}")


@task
def registered(name: str, version: int) -> VersionRef:
    """The version of that number. Raises NoSuchVersion."""
    return versions.by_number(name, version)


@task
def to_restore(name: str, version: int | None) -> VersionRef:
    """The named version, else the champion before this one."""
    return history.restorable(name, version)
