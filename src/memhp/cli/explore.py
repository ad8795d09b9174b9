"""``memhp explore``: its arguments; the work is in :mod:`memhp.cli.exploring`, which needs the extra."""

from __future__ import annotations

import argparse
import sys

__all__ = ["configure", "main"]

BAD_INPUT = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Try every interleaving of the threads of a scene on the modelled machine, one of each class of equal ones: does "
        "it deadlock, raise, break what must hold? docs/explore.md says what the answers mean. Exit codes: 0 it holds, 1 it "
        "fails, 2 bad input, 3 not decided: a limit was hit, or executions were only sampled."
    )
    parser.add_argument("file", metavar="FILE", help="a scenario with threads, or a Python file: FILE.py or FILE.py:FUNCTION")
    parser.add_argument(
        "--strategy",
        default="optimal",
        metavar="NAME",
        help="optimal, source, brute, bounded (two preemptions), random or pct; default: optimal",
    )
    parser.add_argument(
        "--executions", type=int, metavar="N", help="give up after so many; for random and pct, play so many (default: 1000)"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="give up after so long")
    parser.add_argument(
        "--steps", type=int, default=10_000, metavar="N", help="an execution of so many steps never ends; default: 10000"
    )
    parser.add_argument(
        "--patience", type=float, default=10.0, metavar="S", help="how long a thread may take to its next step; default: 10"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for random and pct; default: 0")
    parser.add_argument("--all", action="store_true", help="go on after a finding; show one of each sort")
    parser.add_argument("--replay", metavar="STRING", help="play one execution again")
    parser.add_argument("--svg", metavar="FILE", help="draw the first finding")
    parser.add_argument("--json", action="store_true", help="print a JSON line for each scene")


def main(options: argparse.Namespace) -> int:
    """Explore, or replay; gives the exit code."""
    try:
        from memhp.cli import exploring  # noqa: PLC0415 - needs the extra
        from memhp.cli.run import without_log  # noqa: PLC0415 - imports the model
    except ModuleNotFoundError as error:
        if error.name != "greenlet":
            raise
        print("memhp: explore needs greenlet: pip install 'memhp[explore]'", file=sys.stderr)
        return BAD_INPUT
    with without_log():
        return exploring.main(options)
