"""Override: a person puts a version in charge, whatever the gate said of it."""

import getpass
import sys

from prefect import flow

from configs.loader import command_line, nonblank, parsed
from configs.schema import PackageConfig
from tasks.package import SmokeFailed, package
from tasks.promote import current_champion, promote, registered
from tasks.refs import VersionRef
from tasks.registry.history import ChampionChanged
from tasks.registry.versions import NoSuchVersion


@flow
def override(
    name: str, version: int, by: str, comment: str, config: PackageConfig | None = None
) -> VersionRef:
    """Makes a registered version the champion; who did it and why goes into the history for good.

    The verdict of the gate stays on the version. What fails its smoke run is not promoted.
    """
    if not (by.strip() and comment.strip()):
        raise ValueError("by, comment: say who overrides the gate and why; both stay on record")
    serving = current_champion(name)
    chosen = registered(name, version)
    bento = package(chosen, config or PackageConfig())
    promote(chosen, bento, over=serving, why=f"the gate overridden: {comment}", by=by)
    return chosen


if __name__ == "__main__":
    parser = command_line(__doc__ or "")
    parser.add_argument("--version", type=int, required=True, help="of the registered model")
    parser.add_argument("--comment", type=nonblank, required=True, help="why; stays in the history")
    parser.add_argument(
        "--by", type=nonblank, default=getpass.getuser(), help="who does it (%(default)s)"
    )
    arguments, scenario = parsed(parser)
    try:
        chosen = override(
            scenario.name, arguments.version, arguments.by, arguments.comment, scenario.package
        )
    except (NoSuchVersion, ChampionChanged, SmokeFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{chosen} is champion")
