"""Versions of the registered model: logged from a folder, named by aliases, fetched as files."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from configs.settings import settings
from tasks.refs import ModelRef, VersionRef
from tasks.registry.runs import client, patiently

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_PICKLED = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


class NoSuchVersion(ValueError):
    """The registry has no such model, version or alias."""


class UnsafeWeights(ValueError):
    """A model folder with files that run code where they are loaded."""


def log_model(run_id: str, folder: Path, *, name: str, digest: str) -> ModelRef:
    """Stores a model folder with its run as an MLflow LoggedModel. Raises: UnsafeWeights."""
    if unsafe := sorted(p.name for p in folder.rglob("*") if p.suffix in _PICKLED):
        raise UnsafeWeights(
            f"{folder}: {', '.join(unsafe)}: only safetensors go into the registry; save the "
            "weights with safe_serialization"
        )
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
    """Makes `model` a version of registered model `name`, and its challenger.

    A version of the same model, evaluation and parent that was neither rejected nor champion is
    taken up instead of making a second one: the process that made it died.
    """
    told = {**tags, "digest": model.digest}

    def once() -> None:
        if _open(name, model, told) is None:
            client().create_model_version(
                name,
                source=f"models:/{model.model_id}",
                run_id=model.run_id,
                model_id=model.model_id,
                tags=told,
            )

    ensure(name)
    patiently(once)
    made = _open(name, model, told)
    assert made is not None  # nobody decides on it before its register has returned
    tag(name, made, told)
    point(name, CHALLENGER, made)
    return VersionRef(name=name, version=made, model=model)


def _open(name: str, model: ModelRef, tags: Mapping[str, str]) -> int | None:
    same = {key: tags[key] for key in ("evaluation", "parent_champion") if key in tags}
    for found in client().search_model_versions(f"run_id = '{model.run_id}'"):
        if (
            found.name == name
            and found.source == f"models:/{model.model_id}"
            and same.items() <= found.tags.items()
            and found.tags.get("verdict") != "reject"
            and "champion_periods" not in found.tags
        ):
            return int(found.version)
    return None


def ensure(name: str, description: str | None = None) -> None:
    """Makes the registered model where there is none yet."""
    from mlflow.exceptions import MlflowException

    try:
        client().create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def by_number(name: str, version: int) -> VersionRef:
    """Raises: NoSuchVersion, also for one that this project did not register."""
    found = _found(name, version)
    if "digest" not in found.tags or not found.source or not found.run_id:
        raise NoSuchVersion(
            f"{name} v{version} was not registered by the training flow: "
            "take the alias off it, or register its model by the flow"
        )
    model = ModelRef(
        uri=str(settings().var / "models" / found.tags["digest"]),
        digest=found.tags["digest"],
        run_id=found.run_id,
        model_id=found.source.removeprefix("models:/"),
    )
    return VersionRef(name=name, version=int(found.version), model=model)


def tags(name: str, version: int) -> dict[str, str]:
    """Raises: NoSuchVersion."""
    return dict(_found(name, version).tags)


def tag(name: str, version: int, told: Mapping[str, str]) -> None:
    """Writes tags on a version."""
    mlflow = client()
    for key, value in told.items():
        patiently(partial(mlflow.set_model_version_tag, name, str(version), key, value))


def describe(name: str, version: int, text: str) -> None:
    """Writes the description that a person reads, unless it is there already."""
    mlflow = client()
    if _found(name, version).description != text:
        patiently(lambda: mlflow.update_model_version(name, str(version), text))


def exists(name: str, version: int) -> bool:
    """Whether the version is there and was not deleted."""
    try:
        _found(name, version)
    except NoSuchVersion:
        return False
    return True


def point(name: str, alias: str, version: int | None) -> None:
    """Puts the alias on the version, on none for None."""
    mlflow = client()
    if version is None:
        patiently(lambda: mlflow.delete_registered_model_alias(name, alias))
    else:
        patiently(lambda: mlflow.set_registered_model_alias(name, alias, str(version)))


def withdraw(version: VersionRef) -> None:
    """Takes the alias `challenger` off the version, if it has it."""
    if aliases(version.name).get(CHALLENGER) == version.version:
        point(version.name, CHALLENGER, None)


def aliases(name: str) -> dict[str, int]:
    """Who holds which alias now; nothing where the model is not registered."""
    found = _registered(name)
    return {alias: int(version) for alias, version in found.aliases.items()} if found else {}


def model_tags(name: str) -> dict[str, str]:
    """Tags of the registered model as a whole; nothing where it is not registered."""
    found = _registered(name)
    return dict(found.tags) if found else {}


def _found(name: str, version: int) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        found: ModelVersion = client().get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise NoSuchVersion(f"{name} has no version {version}: {error.message}") from None
    return found


def _registered(name: str) -> "RegisteredModel | None":
    from mlflow.exceptions import MlflowException

    try:
        found: RegisteredModel = client().get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return found
