"""Brings back the exact dataset of a past run, from DVC's cache or remote.

python -m tasks.data.restore MLFLOW_RUN_ID [--to FOLDER]
"""

import argparse
import sys
from pathlib import Path

from configs.settings import settings
from tasks.data import versioning
from tasks.data.prepared import PreparedDataset, PreparedError
from tasks.registry import runs


class NoDataset(ValueError):
    """No run, no dataset of it, or no free folder to put it in."""


def restore(run_id: str, to: Path | None = None) -> PreparedDataset:
    """The dataset that `run_id` trained on, in the folder `to` (default: where `prepare` puts it).

    Raises: NoDataset, VersionError, PreparedError.
    """
    tags = _tags(run_id)
    md5, digest = tags.get("dataset_dvc_md5"), tags.get("dataset_digest")
    if md5 is None or digest is None:
        raise NoDataset(f"run {run_id} carries no dataset; name a run that trained a model.")
    if to is not None and to.exists():
        raise NoDataset(f"{to}: is there already; name another folder.")
    folder = to or settings().var / "datasets" / "prepared" / digest
    versioning.restore(md5, folder)
    dataset = PreparedDataset.open(folder)
    if dataset.digest != digest:
        raise PreparedError(f"{folder} holds dataset {dataset.digest}, not the run's {digest}.")
    return dataset


def _tags(run_id: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(runs.client().get_run(run_id).data.tags)
    except MlflowException as error:
        where = settings().tracking_uri
        raise NoDataset(f"no run {run_id} at {where}: {error.message}") from error


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.data.restore", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("run_id", help="the MLflow run")
    parser.add_argument("--to", type=Path, help="a folder that isn't there yet")
    options = parser.parse_args(argv)
    try:
        dataset = restore(options.run_id, options.to)
    except (NoDataset, PreparedError, versioning.VersionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes = ", ".join(f"{name} {size:,}" for name, size in dataset.sizes.items())
    print(f"{dataset.folder}\n{sizes} images of {dataset.image_size} px, digest {dataset.digest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
