"""Package: a version as a Bento that has answered for itself as a real process."""

from prefect import task

from bentos import packaging
from bentos.packaging import SmokeFailed as SmokeFailed
from configs.schema import PackageConfig
from tasks.artifacts import publish, table
from tasks.refs import BentoRef, VersionRef
from tasks.registry import lineage, versions


@task
def package(version: VersionRef, config: PackageConfig) -> BentoRef:
    """Builds the Bento, unless this store has it, and holds what it says, served as a process, of
    the golden images to what was said offline.

    Raises `SmokeFailed` naming the image when one differs.
    """
    packaging.use_default_home()
    labels = lineage.labels(version)
    tag, seconds = lineage.bento(version), config.smoke_timeout_seconds
    if tag is not None and packaging.stored(tag):
        packaging.smoke(tag, timeout_seconds=seconds)
    else:
        folder = versions.fetch(version.model)
        tag = packaging.package(
            folder, labels=labels, extras=config.extras, timeout_seconds=seconds
        )
    publish("package", table({"Bento": tag, **labels}), "The Bento that passed its smoke run")
    return BentoRef(tag=tag, version=version.version)
