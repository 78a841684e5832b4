"""Where this machine keeps its state and finds its servers; all from the environment."""

import subprocess
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """`CAPTIONLOOP_*` variables; the defaults keep everything under `var/`."""

    model_config = SettingsConfigDict(env_prefix="CAPTIONLOOP_", frozen=True)

    var: Path = Field(ROOT / "var", description="All local state.")
    dvc_remote: str | None = Field(None, description="DVC remote URL; default: var/dvc-remote.")
    captures: str | None = Field(None, description="Where the service's captures lie.")
    service_url: str | None = Field(None, description="Where the captioner answers.")
    optuna_storage: str | None = Field(None, description="Database URL of searches' studies.")
    mlflow_tracking_uri: str | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")

    @property
    def tracking_uri(self) -> str:
        return self.mlflow_tracking_uri or f"sqlite:///{self.var / 'mlflow' / 'mlflow.db'}"

    @property
    def optuna_url(self) -> str:
        return self.optuna_storage or f"sqlite:///{self.var / 'optuna' / 'optuna.db'}"

    @property
    def captures_url(self) -> str:
        """A folder, or a URL of an object store."""
        return self.captures or str(self.var / "captures")

    @property
    def dvc_remote_url(self) -> str:
        return self.dvc_remote or str(self.var / "dvc-remote")


def settings() -> Settings:
    """The settings as the environment has them now."""
    return Settings()


def git_commit() -> str:
    """The project's commit, with `-dirty` when files differ; `unknown` outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
