"""Small frozen values that travel between tasks: where something lies and the digest of it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from configs.settings import settings


class Ref(BaseModel):
    """Points at bytes by `uri`; `digest` alone is its identity, so a moved copy is the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    digest: str

    @property
    def path(self) -> Path:
        return Path(self.uri)

    def exists(self) -> bool:
        """Whether the bytes are still there; a cache hit is only trusted then."""
        return self.path.exists()


class DatasetRef(Ref):
    """A dataset folder of rows."""

    num_images: int
    num_captions: int


class RawRef(DatasetRef):
    """A dataset as `ingest` left it; DVC has its rows under `rows_dvc_md5`."""

    rows_dvc_md5: str


class ValidatedRef(RawRef):
    """A dataset that passed the checks; `report` is their page."""

    report: str


class PreparedRef(ValidatedRef):
    """A dataset ready to train on, versioned by DVC under `dvc_md5`."""

    dvc_md5: str
    split_sizes: dict[str, int]


class ModelRef(Ref):
    """A model folder; `run_id` is the MLflow run that made it, `model_id` its LoggedModel."""

    run_id: str
    model_id: str

    def exists(self) -> bool:
        """Whether MLflow still has the model: its files can then be fetched."""
        import mlflow
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(settings().tracking_uri)
        try:
            mlflow.MlflowClient().get_logged_model(self.model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True


class EvaluationRef(Ref):
    """Scores of one model on one dataset, per image and whole (`tasks/metrics/evaluation.py`)."""

    cider: dict[str, float]


class VersionRef(BaseModel):
    """A version of the registered model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    model: ModelRef

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class BentoRef(BaseModel):
    """A built Bento that passed its smoke run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tag: str
    version: int


class Verdict(BaseModel):
    """A decision with reasons a person understands; `by` is the gate or a person's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decision: Literal["promote", "reject", "needs_approval"]
    reasons: tuple[str, ...]
    by: str = "the gate"
