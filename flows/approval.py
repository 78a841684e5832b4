"""Approval: what the gate leaves to a person, asked in Prefect and answered there or from here."""

import argparse
import getpass
import sys

from prefect import flow

from configs.loader import command_line, nonblank, parsed
from tasks.approval import (
    FLOW,
    Answer,
    NothingWaits,
    NotTakenUp,
    ask,
    give,
    waiting,
)
from tasks.refs import Verdict, VersionRef


@flow(name=FLOW, flow_run_name="approve-{challenger.name}-v{challenger.version}")
def approval(challenger: VersionRef, verdict: Verdict, hours: float) -> Verdict:
    """Paused until a person approves or rejects the challenger, or the hours are over."""
    return ask(challenger, verdict, hours)


def main() -> int:
    """Lists what waits for an answer, or gives one."""
    parser = _parser()
    arguments, scenario = parsed(parser)
    if arguments.approve is None:
        _list(scenario.name)
        return 0
    if arguments.comment is None:
        parser.error("say why, with --comment: it stays on the model version")
    answer = Answer(approve=arguments.approve, name=arguments.by, comment=arguments.comment)
    try:
        challenger = give(answer, scenario.name, arguments.version)
    except (NothingWaits, NotTakenUp) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{challenger} is {'approved' if answer.approve else 'rejected'}; the flow goes on")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line(__doc__ or "")
    add = parser.add_argument
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--approve", action="store_true", default=None, help="the challenger becomes the champion"
    )
    either.add_argument(
        "--reject", dest="approve", action="store_false", default=None, help="the champion stays"
    )
    add("--comment", type=nonblank, help="why; stays on the model version")
    add("--by", type=nonblank, default=getpass.getuser(), help="who says so (%(default)s)")
    add("--version", type=int, help="of the model, where several wait")
    return parser


def _list(name: str) -> None:
    for asked in (found := waiting(name)):
        until = f"{asked.deadline:%Y-%m-%d %H:%M} UTC"
        print(f"{asked.challenger} waits until {until} (flow run {asked.run.name})")
        for reason in asked.verdict.reasons:
            print(f"  - {reason}")
    if not found:
        print(f"nothing of {name} waits for an answer")


if __name__ == "__main__":
    sys.exit(main())
