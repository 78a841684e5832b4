"""Who is champion of a model, who was, by whom and why; and any version's model card."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.loader import ConfigError, load
from tasks.registry import card, history, versions
from tasks.registry.history import Event, HistoryDamaged
from tasks.registry.versions import NoSuchVersion


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the history, or a card; aliases that a crash left behind are put right first."""
    parser = argparse.ArgumentParser(prog="python -m tasks.registry", description=__doc__)
    parser.add_argument("model", help="a scenario, such as configs/demo.yaml, or a model's name")
    parser.add_argument("--json", action="store_true", help="the history as JSON")
    parser.add_argument(
        "--card", type=int, metavar="VERSION", help="the model card of this version, as Markdown"
    )
    asked = parser.parse_args(arguments)
    try:
        name = load(asked.model).name if Path(asked.model).suffix == ".yaml" else asked.model
        if asked.card is not None:
            print(card.render(versions.by_number(name, asked.card)))
            return 0
        counted = history.settled(name)
    except (ConfigError, NoSuchVersion, HistoryDamaged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.json:
        told = {"champion": history.champion_of(counted), "history": [asdict(e) for e in counted]}
        print(json.dumps(told, indent=2, default=str))
    else:
        _show(name, counted)
    return 0


def _show(name: str, counted: list[Event]) -> None:
    console = Console(highlight=False)
    table = Table("since", "champion", "in place of", "why", "by")
    for event in counted:
        version, over = (
            f"v{each}" if each is not None else "nobody" for each in (event.version, event.over)
        )
        table.add_row(f"{event.at:%Y-%m-%d %H:%M} UTC", version, over, event.why, event.by)
    console.print(table)
    serving = history.champion_of(counted)
    if serving is None:
        console.print(f"{name} has no champion: nobody serves")
    else:
        bento = versions.tags(name, serving).get("bento", "no Bento")
        console.print(f"{name} v{serving} is champion ({bento}): services that follow it serve it")


if __name__ == "__main__":
    sys.exit(main())
