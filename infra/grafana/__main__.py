"""Writes the dashboards: `python -m infra.grafana`."""

from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from infra.grafana.loop import loop
from infra.grafana.quality import quality
from infra.grafana.service import service

FOLDER = Path(__file__).parent / "dashboards"


def rendered() -> Iterator[tuple[Path, str]]:
    """Each dashboard's file and what belongs into it."""
    for make in (service, quality, loop):
        text = JSONEncoder(sort_keys=True, indent=2).encode(make())
        yield FOLDER / f"{make.__name__}.json", f"{text}\n"


def main() -> None:
    for path, text in rendered():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
