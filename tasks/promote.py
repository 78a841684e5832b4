"""Promote: the alias moves, and with it every service that follows the champion."""

from prefect import task

from configs.settings import settings
from tasks.artifacts import publish, table
from tasks.refs import BentoRef, VersionRef
from tasks.registry import lineage, versions


@task
def current_champion(name: str) -> VersionRef | None:
    """Who serves now; never cached, since the registry is the only truth."""
    return versions.by_alias(name, versions.CHAMPION)


def require_champion(name: str, champion: VersionRef | None) -> VersionRef:
    """The champion, or an error that says what to do without one."""
    if champion is None:
        raise versions.NoSuchVersion(
            f"model.base is `champion`, but {name} has none: train with model.base=scratch"
        )
    return champion


@task
def promote(version: VersionRef, bento: BentoRef, over: VersionRef | None) -> None:
    """Makes `version` the champion in place of `over`, the one that it was judged against."""
    lineage.record_bento(version, bento.tag)
    versions.promote(version, over=over)
    lineage.record_promotion(version)
    rows = {
        "champion": f"{version.name} v{version.version}",
        "Bento": bento.tag,
        "service": settings().service_url or "follows the alias when it runs",
    }
    publish("promote", table(rows), "The new champion")


@task
def roll_back(name: str, version: int | None) -> VersionRef:
    """Puts the version under `previous`, or the named one, back as champion."""
    restored = versions.restorable(name, version)
    versions.promote(restored, over=versions.by_alias(name, versions.CHAMPION))
    publish("rollback", f"{name} v{restored.version} serves again.", "The restored champion")
    return restored
