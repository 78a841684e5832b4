"""Package: a version as a Bento that has answered for itself as a real process."""

import os

from prefect import task

from bentos import packaging
from bentos.packaging import SmokeFailed as SmokeFailed
from configs.schema import PackageConfig
from configs.settings import settings
from tasks.artifacts import publish, table
from tasks.refs import BentoRef, VersionRef
from tasks.registry import lineage, versions


@task
def package(version: VersionRef, config: PackageConfig) -> BentoRef:
    """Builds the Bento, unless this store has it, and holds what it says, served as a process, of
    the golden images to what was said offline.

    Raises `SmokeFailed` naming the image when one differs.
    """
    os.environ.setdefault("BENTOML_HOME", str(settings().var / "bentoml"))
    labels = lineage.labels(version)
    tag = lineage.bento(version)
    if tag is None or not packaging.stored(tag):
        tag = packaging.build(versions.fetch(version.model), labels=labels)
    packaging.smoke(tag, timeout_seconds=config.smoke_timeout_seconds)
    publish("package", table({"Bento": tag, **labels}), "The Bento that passed its smoke run")
    return BentoRef(tag=tag, version=version.version)
