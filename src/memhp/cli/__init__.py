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
        epilog="Exit codes: 0 everything held, 1 an expectation failed, 2 bad input. "
        "memhp lab: also 3, a real kernel could not be asked.",
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
    _add_lab(commands.add_parser("lab", help="ask real kernels, in QEMU guests", description=_LAB))
    return parser


_LAB = "Real Linux kernels in QEMU guests. Nothing of this machine's memory is changed. docs/lab.md says how it works."


def _add_lab(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="lab", metavar="COMMAND", required=True)
    fetch = commands.add_parser(
        "fetch",
        help="get kernels",
        description="Download kernels, and what runs in a guest, as Debian packages with apt, and unpack them into a cache "
        "directory. Nothing is installed.",
    )
    fetch.add_argument("--kernel", action="append", metavar="SERIES", help="6.1 or 6.12; may be repeated; default: both")
    kernels = commands.add_parser("kernels", help="list the kernels that are here, with their exact versions")
    kernels.add_argument("--json", action="store_true", help="print a JSON list")
    run = commands.add_parser(
        "run",
        help="play a scenario file on a real kernel",
        description="Play a scenario file on a real kernel in a QEMU guest. "
        "What has no meaning there is refused before it boots.",
    )
    run.add_argument("file", metavar="FILE", help="the scenario (docs/scenarios.md says how to write one)")
    run.add_argument("--kernel", required=True, metavar="SERIES", help="6.1 or 6.12")
    run.add_argument("--json", action="store_true", help="print events as JSON lines (docs/run-json.md)")
    run.add_argument("--quiet", action="store_true", help="print only what did not hold")
    run.add_argument("--record", metavar="RECORDING", help="write the events to this file too, as JSON lines")
    run.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS", help="how long the boot, or one request, may take; default: 60"
    )


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
    if options.command == "lab":
        from memhp.cli import lab  # noqa: PLC0415 - a command imports what it needs

        return lab.main(options)
    from memhp.cli import run  # noqa: PLC0415 - a command imports what it needs

    return run.main(options.file, as_json=options.json, rules=options.rules, quiet=options.quiet)
