"""The command line: one thin module per command, imported when it is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memhp",
        description="Memory hotplug for Linux: see what happens when a machine's memory grows and shrinks, and take part.",
        epilog="Exit codes: 0 everything held, 1 an expectation failed, 2 bad input.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="play a scenario file on the modelled machine",
        description="Play a scenario file on the modelled machine and show each call of a callback as it happens. "
        "Nothing of the real machine is changed, also with `from: host`, which only reads its /sys.",
    )
    run.add_argument("file", metavar="FILE", help="the scenario (docs/scenarios.md says how to write one)")
    run.add_argument("--json", action="store_true", help="print events as JSON lines (docs/run-json.md)")
    run.add_argument(
        "--rules", metavar="RULES", help="whose rules the machine follows: documented, 6.1 or 6.12; default: the file's"
    )
    run.add_argument("--quiet", action="store_true", help="print only what did not hold")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.version:
        from memhp import __version__  # noqa: PLC0415 - a command imports what it needs

        print(f"memhp {__version__}")
        return 0
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    from memhp.cli import run  # noqa: PLC0415 - a command imports what it needs

    return run.main(options.file, as_json=options.json, rules=options.rules, quiet=options.quiet)
