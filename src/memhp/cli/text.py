"""What the commands for hosts share: options, columns, and how an error ends a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from memhp.errors import InvalidInput, MemhpError
from memhp.units import parse_size

if TYPE_CHECKING:
    import argparse

__all__ = [
    "BAD_INPUT",
    "INTERRUPTED",
    "columns",
    "common_options",
    "goal_options",
    "guarded",
    "human",
    "print_json",
    "refuse_copy",
    "size_option",
    "sysroot_of",
    "sysroot_option",
]

BAD_INPUT, FAILED, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141


def common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that each of the commands has."""
    sysroot_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def sysroot_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says whose files to look at."""
    parser.add_argument("-s", "--sysroot", metavar="DIR", help="look at a copy of another machine's /sys and /proc in DIR")


def sysroot_of(options: argparse.Namespace) -> str:
    """Give the directory of that option, / by default.

    Raises:
        InvalidInput: there is no such directory.
    """
    chosen: str | None = options.sysroot
    if chosen is not None and not os.path.isdir(chosen):
        raise InvalidInput(chosen, "--sysroot", "a directory that has a copy of a machine's /sys and /proc")
    return chosen or "/"


def goal_options(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add what says how much or which memory."""
    parser.add_argument(
        "goal",
        metavar="GOAL",
        nargs="?" if optional else None,
        help="4G (an amount, in whole blocks), 0x100000000-0x17fffffff (addresses), 32-35,40 (blocks), or node:1 (a whole node)",
    )
    parser.add_argument(
        "--zone", metavar="ZONE", help="offline: only blocks of this zone; online: the zone to go to, movable or kernel"
    )
    parser.add_argument("--node", metavar="N", type=int, help="only blocks of this node")
    parser.add_argument(
        "--keep-free",
        metavar="SIZE",
        help="refuse to leave less than this available; default: a 20th of what is left, or the high watermarks if they are more",
    )


def columns(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Give rows as lines with aligned columns; the last column is not padded."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def human(size: int) -> str:
    """Write bytes with one decimal in the unit that fits: ``1.5 GiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value == int(value) else f"{value:.1f} {units[0]}"


def print_json(document: object) -> None:
    """Print what ``--json`` promises."""
    import json  # noqa: PLC0415 - only if it is asked for

    print(json.dumps(document, indent=2))


def refuse_copy(sysroot: str, program: str, dry_run: str) -> int:
    """Say that a copy of a machine's files is for reading; gives the exit code."""
    print(f"{program}: {sysroot} is a copy and can't be changed; --dry-run {dry_run}", file=sys.stderr)
    return BAD_INPUT


def guarded(command: Callable[[], int], program: str = "memhp") -> int:
    """Run a command; what is wrong with its input or with the machine is one line and an exit code, never a traceback."""
    try:
        code = command()
        sys.stdout.flush()
    except InvalidInput as error:
        print(f"{program}: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except MemhpError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {where}{error.strerror or error}", file=sys.stderr)
        _drop_output()
        return FAILED
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def _drop_output() -> None:
    # What could not be written would be tried once more, in vain, when Python ends.
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def size_option(text: str | None, where: str) -> int | None:
    """Read an option that is a size.

    Raises:
        InvalidInput: not a size.
    """
    return None if text is None else parse_size(text, where)
