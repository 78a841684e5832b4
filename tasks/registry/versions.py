"""Versions of the registered model: logged from a folder, named by aliases, fetched as files."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs.settings import settings
from tasks.refs import ModelRef, VersionRef
from tasks.registry.runs import client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


class NoSuchVersion(ValueError):
    """The registry has no such model, version or alias."""


class ChampionChanged(RuntimeError):
    """The champion is not the one that a challenger was judged against."""


def log_model(run_id: str, folder: Path, *, name: str, digest: str) -> ModelRef:
    """Stores a model folder with its run as an MLflow LoggedModel."""
    mlflow = client()
    experiment = mlflow.get_run(run_id).info.experiment_id
    logged = mlflow.create_logged_model(
        experiment_id=experiment,
        name=name,
        source_run_id=run_id,
        tags={"digest": digest},
        model_type="image-captioner",
    )
    mlflow.log_model_artifacts(logged.model_id, str(folder))
    mlflow.finalize_logged_model(logged.model_id, "READY")
    return ModelRef(uri=str(folder), digest=digest, run_id=run_id, model_id=logged.model_id)


def fetch(model: ModelRef) -> Path:
    """The model's folder on this machine, downloaded when it isn't here."""
    if model.path.exists():
        return model.path
    folder = settings().var / "models" / model.digest
    if not folder.exists():
        from mlflow.artifacts import download_artifacts

        client()
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=folder.parent, prefix=".fetching-")
        try:
            download_artifacts(f"models:/{model.model_id}", dst_path=temporary)
            if not any(Path(temporary).iterdir()):  # MLflow's answer where the files are gone
                raise NoSuchVersion(f"MLflow has no files of model {model.model_id} any more")
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def register(name: str, model: ModelRef, tags: Mapping[str, str]) -> VersionRef:
    """Makes `model` the newest version of registered model `name`, and its challenger."""
    from mlflow.exceptions import MlflowException

    mlflow = client()
    try:
        mlflow.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        mlflow.create_registered_model(name)
    made = mlflow.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=model.run_id,
        model_id=model.model_id,
        tags={**tags, "digest": model.digest},
    )
    version = int(made.version)
    mlflow.set_registered_model_alias(name, CHALLENGER, made.version)
    return VersionRef(name=name, version=version, model=model)


def by_alias(name: str, alias: str) -> VersionRef | None:
    """The version of `name` that carries `alias`, if any."""
    version = _aliases(name).get(alias)
    return None if version is None else by_number(name, version)


def by_number(name: str, version: int) -> VersionRef:
    """Raises: NoSuchVersion."""
    from mlflow.exceptions import MlflowException

    try:
        found: ModelVersion = client().get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise NoSuchVersion(f"{name} has no version {version}: {error.message}") from None
    assert found.run_id is not None
    assert found.source is not None  # `register` gives both
    model = ModelRef(
        uri=str(settings().var / "models" / found.tags["digest"]),
        digest=found.tags["digest"],
        run_id=found.run_id,
        model_id=found.source.removeprefix("models:/"),
    )
    return VersionRef(name=name, version=int(found.version), model=model)


def tag(version: VersionRef, tags: Mapping[str, str], description: str | None = None) -> None:
    """Writes tags, and a description a person can read, on a version."""
    mlflow = client()
    for key, value in tags.items():
        mlflow.set_model_version_tag(version.name, str(version.version), key, value)
    if description is not None:
        mlflow.update_model_version(version.name, str(version.version), description)


def promote(version: VersionRef, *, over: VersionRef | None) -> None:
    """Makes `version` the champion in place of `over`, which becomes `previous`.

    Safe to repeat after a crash. Raises ChampionChanged, with nothing moved, when another version
    than `over` is champion by now: `version` was not judged against that one.
    """
    mlflow = client()
    aliases = _aliases(version.name)
    expected = None if over is None else over.version
    if aliases.get(CHAMPION) not in (expected, version.version):
        raise ChampionChanged(
            f"{version.name} v{version.version} was judged against {_told(expected)}, "
            f"but {_told(aliases.get(CHAMPION))} is champion by now: run the training flow again"
        )
    mlflow.set_registered_model_alias(version.name, CHAMPION, str(version.version))
    if expected not in (None, version.version):
        mlflow.set_registered_model_alias(version.name, PREVIOUS, str(expected))
    if aliases.get(CHALLENGER) == version.version:
        mlflow.delete_registered_model_alias(version.name, CHALLENGER)


def restorable(name: str, version: int | None) -> VersionRef:
    """The version to roll back to: the named one, else the one under `previous`.

    Raises: NoSuchVersion, also for one that was never promoted.
    """
    found = by_alias(name, PREVIOUS) if version is None else by_number(name, version)
    if found is None:
        raise NoSuchVersion(f"{name} has no previous champion to go back to")
    if "promoted_at" not in client().get_model_version(name, str(found.version)).tags:
        raise NoSuchVersion(f"{name} v{found.version} was never promoted; name one that was")
    return found


def retire_aliases(name: str) -> None:
    """Leaves `name` without champion, challenger and previous; its versions stay."""
    for alias in _aliases(name):
        client().delete_registered_model_alias(name, alias)


def _told(version: int | None) -> str:
    return "no champion" if version is None else f"v{version}"


def _aliases(name: str) -> dict[str, int]:
    from mlflow.exceptions import MlflowException

    try:
        found = client().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: int(version) for alias, version in found.items()}
