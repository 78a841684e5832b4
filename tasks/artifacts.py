"""What a person sees of a stage in the Prefect UI: tables, pictures, links, progress."""

from collections.abc import Mapping
from typing import Protocol
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)


def publish(key: str, markdown: str, description: str) -> None:
    """A markdown artifact under `key` (lower-case letters, digits, dashes)."""
    create_markdown_artifact(key=key, markdown=markdown, description=description)


def table(rows: Mapping[str, object]) -> str:
    """A two-column markdown table."""
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


class Move(Protocol):
    """Moves a progress artifact to a share in 0…1, maybe with other words."""

    def __call__(self, share: float, description: str | None = None) -> None: ...


def progress(key: str, description: str) -> Move:
    """Opens a progress artifact."""
    made = create_progress_artifact(progress=0.0, key=key, description=description)
    assert isinstance(made, UUID)

    def move(share: float, description: str | None = None) -> None:
        update_progress_artifact(made, progress=round(100 * share, 1), description=description)

    return move


def _cell(value: object) -> str:
    text = f"{value:,.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", "<br>")
