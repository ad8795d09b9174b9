"""The command line: one module per command, imported when it is asked for.

A command's module has ``configure(parser)``, which adds its arguments, and ``main(options)``, which gives the exit code.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

__all__ = ["main"]

COMMANDS = {
    "run": ("memhp.cli.run", "play a scenario file on the modelled machine"),
    "explore": ("memhp.cli.explore", "try every interleaving of the threads of a scene"),
    "lab": ("memhp.cli.lab", "ask real kernels, in QEMU guests"),
    "conform": ("memhp.cli.conform", "compare the model with real kernels"),
}
"""Each command's module, and what it is for in a few words."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memhp",
        description="Memory hotplug for Linux: see what happens when a machine's memory grows and shrinks, and take part.",
        epilog="Exit codes: 0 everything held, 1 an expectation failed, 2 bad input. "
        "memhp lab: also 3, a real kernel could not be asked. memhp COMMAND --help says more.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        command = importlib.import_module(COMMANDS[words[0]][0])
        parser = argparse.ArgumentParser(prog=f"memhp {words[0]}")
        command.configure(parser)
        code: int = command.main(parser.parse_args(words[1:]))
        return code
    parser = _parser()
    options = parser.parse_args(words)
    if options.version:
        from memhp import __version__  # noqa: PLC0415 - a command imports what it needs

        print(f"memhp {__version__}")
        return 0
    parser.print_help(sys.stderr)
    return 2
