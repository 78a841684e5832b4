"""Package: the challenger as a Bento that has answered for itself as a real process."""

import os

from prefect import task

from bentos import packaging
from configs.schema import PackageConfig
from configs.settings import settings
from tasks.artifacts import publish, table
from tasks.refs import BentoRef, PreparedRef, VersionRef
from tasks.registry import lineage, versions


@task
def package(version: VersionRef, data: PreparedRef, config: PackageConfig) -> BentoRef:
    """Builds the Bento, starts it, and holds its captions of the golden images to the offline ones.

    Raises `SmokeFailed` naming the image when one differs.
    """
    os.environ.setdefault("BENTOML_HOME", str(settings().var / "bentoml"))
    labels = lineage.labels(version, data)
    tag = packaging.build(versions.fetch(version.model), labels=labels)
    packaging.smoke(tag, timeout_seconds=config.smoke_timeout_seconds)
    publish("package", table({"Bento": tag, **labels}), "The Bento that passed its smoke run")
    return BentoRef(tag=tag, version=version.version)
