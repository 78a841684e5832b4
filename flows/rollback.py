"""Rollback: put the previous champion back."""

from prefect import flow

from configs.loader import from_command_line
from tasks.promote import roll_back
from tasks.refs import VersionRef


@flow
def rollback(name: str, version: int | None = None) -> VersionRef:
    """Makes the version under `previous`, or the named one, the champion again."""
    return roll_back(name, version)


if __name__ == "__main__":
    _, _overrides, scenario = from_command_line(__doc__)
    rollback(scenario.name)
