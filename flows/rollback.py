"""Rollback: put a former champion back, once it has shown that it still says what it said."""

import getpass
import sys

from prefect import flow

from configs.loader import command_line, parsed
from configs.schema import PackageConfig
from tasks.package import SmokeFailed, package
from tasks.promote import current_champion, promote, to_restore
from tasks.refs import VersionRef
from tasks.registry.history import ChampionChanged
from tasks.registry.versions import NoSuchVersion


@flow
def rollback(
    name: str,
    version: int | None = None,
    by: str | None = None,
    comment: str = "",
    config: PackageConfig | None = None,
) -> VersionRef:
    """Makes the champion before this one, or the named version, the champion again.

    Its Bento is served and asked first; where that fails, nothing has moved.
    """
    serving = current_champion(name)
    restored = to_restore(name, version)
    bento = package(restored, config or PackageConfig())
    why = f"rolled back: {comment}" if comment else "rolled back"
    promote(restored, bento, over=serving, why=why, by=by or getpass.getuser())
    return restored


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--version", type=int, help="by default the champion before this one")
    parser.add_argument("--by", help="who does it, for the history; by default the login name")
    parser.add_argument("--comment", default="", help="why, for the history")
    arguments, scenario = parsed(parser)
    try:
        restored = rollback(
            scenario.name, arguments.version, arguments.by, arguments.comment, scenario.package
        )
    except (NoSuchVersion, ChampionChanged, SmokeFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{restored} is champion again")
