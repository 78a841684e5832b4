"""Datasets travel by DVC: a workspace without git in `var/dvc`, and one remote that all share."""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from configs.settings import settings
from tasks.data import folders
from tasks.data.readers.places import failures
from tasks.refs import DatasetRef, PreparedRef

if TYPE_CHECKING:
    from dvc.repo import Repo

log = logging.getLogger(__name__)


class VersionError(ValueError):
    """DVC could not push or bring a version's bytes; the message names it and the remote."""


def version(folder: Path, name: str) -> str:
    """Add a folder to DVC as `name`, push it to the remote, and return its md5 (`….dir`).

    Afterwards the folder's files are read-only hard links into DVC's cache, so that the data lies
    on this disk once (and once more in the remote, where that is a local folder).
    Raises VersionError where the remote can't be reached.
    """
    from dvc.exceptions import DvcException

    with _workspace() as repo:
        tracked = Path(repo.root_dir) / name
        _link_tree(folder, tracked)
        [stage] = repo.add(str(tracked))
        try:
            repo.push([str(tracked)])
        except (DvcException, *failures(settings().dvc_remote_url)) as error:
            raise VersionError(
                f"dataset {name} could not be pushed to {settings().dvc_remote_url}: {error}. "
                "Check CAPTIONLOOP_DVC_REMOTE, its credentials and that the bucket is there."
            ) from error
        _move_links(tracked, folder)
        md5 = str(stage.outs[0].hash_info.value)
    log.info("versioned %s as %s", name, md5)
    return md5


def version_rows(dataset: DatasetRef) -> str:
    """Version what a raw dataset points at: its rows, with the images' names and digests."""
    with folders.staging(dataset.path.parent) as staged:
        for path in dataset.path.glob("*.json*"):
            folders.link_or_copy(path, staged / path.name)
        return version(staged, f"rows-{dataset.digest}")


def fetch(dataset: PreparedRef) -> Path:
    """The dataset's folder on this machine, restored when it isn't here."""
    if dataset.path.exists():
        return dataset.path
    folder = settings().var / "datasets" / "prepared" / dataset.digest
    if not folder.exists():
        restore(dataset.dvc_md5, folder)
    return folder


def restore(dvc_md5: str, to: Path) -> None:
    """Bring the exact bytes of a version to the folder `to`, from the cache or the remote."""
    from dvc.exceptions import DvcException

    with _workspace() as repo:
        tracked = Path(repo.root_dir) / "restored"
        pointer = tracked.with_name("restored.dvc")
        shutil.rmtree(tracked, ignore_errors=True)
        pointer.write_text(f"outs:\n- md5: {dvc_md5}\n  hash: md5\n  path: {tracked.name}\n")
        try:
            repo.pull([str(pointer)])
        except DvcException as error:
            raise VersionError(
                f"dataset {dvc_md5} could not be pulled from {settings().dvc_remote_url}. "
                "Check CAPTIONLOOP_DVC_REMOTE, or run the training flow again to make it."
            ) from error
        finally:
            pointer.unlink()
        _move_links(tracked, to)


def _move_links(tracked: Path, to: Path) -> None:
    """Put a folder that DVC checked out at its place, in one step if there is nothing yet."""
    with folders.staging(to.parent) as staged:
        _link_tree(tracked, staged)
        folders.publish(staged, to)
    shutil.rmtree(tracked)


def _link_tree(source: Path, target: Path) -> None:
    """Hard links of a folder's files (copies across file systems), in place of what was there."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            folders.link_or_copy(path, target / path.relative_to(source))


@contextmanager
def _workspace() -> Iterator["Repo"]:
    """The workspace, ours alone: DVC's own lock gives up after seconds, this one waits."""
    root = settings().var.resolve() / "dvc"
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".captionloop.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it if we are killed
        with _open(root) as repo:
            yield repo


def _open(root: Path) -> "Repo":
    """Open the workspace with the settings as they are now."""
    from dvc.config import Config
    from dvc.repo import Repo

    dvc_dir = root / ".dvc"
    if not dvc_dir.is_dir():
        dvc_dir.mkdir()
        Config.init(str(dvc_dir))
    # With our lock held, what this names are processes that died.
    (dvc_dir / "tmp" / "rwlock").unlink(missing_ok=True)
    with Config(str(dvc_dir)).edit("repo") as config:
        config["core"] = {
            "no_scm": True,
            "analytics": False,
            "check_update": False,
            "remote": "storage",
            "site_cache_dir": str(root / "site-cache"),
        }
        config["cache"] = {"type": ["hardlink", "reflink", "copy"]}
        config["remote"] = {"storage": {"url": _remote_url(), "verify": True}}
    return Repo(str(root))


def _remote_url() -> str:
    url = settings().dvc_remote_url
    return url if "://" in url else str(Path(url).resolve())
