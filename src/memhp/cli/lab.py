"""``memhp lab``: real kernels in QEMU."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memhp.cli.lab_options import KERNEL, add_guest_commands
from memhp.cli.run import BAD_INPUT, FAILED, HELD, INTERRUPTED, make_sink
from memhp.cli.signals import ended_by_signals
from memhp.errors import InvalidInput, LabError, LabMissing
from memhp.lab import kernels
from memhp.lab.play import LabPlayer
from memhp.lab.probes import PROBES
from memhp.scenario import load

__all__ = ["NO_LAB", "answered", "configure", "main"]

Event = dict[str, Any]

NO_LAB = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands of the lab."""
    parser.description = (
        "Real Linux kernels in QEMU guests. Nothing of this machine's memory is changed. docs/lab.md says how it works."
    )
    commands = parser.add_subparsers(dest="lab", metavar="COMMAND", required=True)
    fetch = commands.add_parser(
        "fetch",
        help="get kernels",
        description="Download kernels, and what runs in a guest, as Debian packages with apt, and unpack them into a cache "
        "directory. Nothing is installed.",
    )
    fetch.add_argument("--kernel", action="append", metavar="SERIES", help="6.1 or 6.12; may be repeated; default: both")
    fetch.add_argument("--selftest", action="store_true", help="also the kernel's own selftest, out of a package of 130 MB")
    listing = commands.add_parser("kernels", help="list the kernels that are here, with their exact versions")
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    run = commands.add_parser(
        "run",
        help="play a scenario file on a real kernel",
        description="Play a scenario file on a real kernel in a QEMU guest. "
        "What has no meaning there is refused before it boots.",
    )
    run.add_argument("file", metavar="FILE", help="the scenario (docs/scenarios.md says how to write one)")
    run.add_argument("--kernel", required=True, metavar="KERNEL", help=f"{KERNEL}, of such a series")
    run.add_argument("--json", action="store_true", help="print events as JSON lines (docs/run-json.md)")
    run.add_argument("--quiet", action="store_true", help="print only what did not hold")
    run.add_argument("--record", metavar="RECORDING", help="write the events to this file too, as JSON lines")
    run.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS", help="how long the boot, or one request, may take; default: 60"
    )
    add_guest_commands(commands)


def main(options: argparse.Namespace) -> int:
    """Run one of the commands of the lab; gives the exit code."""
    return answered(lambda: _command(options.lab)(options))


def answered(command: Callable[[], int]) -> int:
    """Run a command that asks real kernels; what goes wrong is one line and an exit code."""
    try:
        with ended_by_signals():
            return command()
    except InvalidInput as error:
        print(f"memhp: {error}", file=sys.stderr)
        return BAD_INPUT
    except LabError as error:
        print(f"memhp: {error}", file=sys.stderr)
        return NO_LAB
    except OSError as error:
        print(f"memhp: {error.filename or 'the lab'}: {error.strerror}", file=sys.stderr)
        return NO_LAB
    except KeyboardInterrupt:
        print("memhp: interrupted", file=sys.stderr)
        return INTERRUPTED


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    if name in _COMMANDS:
        return _COMMANDS[name]
    missing = _missing_for_a_guest()
    if missing:
        raise LabMissing(missing, "")
    from memhp.cli.lab_guests import COMMANDS  # noqa: PLC0415 - its library is an extra

    return COMMANDS[name]


def _fetch(options: argparse.Namespace) -> int:
    kernels.fetch(options.kernel or tuple(kernels.SERIES), print, selftest=options.selftest)
    missing = _missing_for_a_guest()
    if missing:
        print(f"To boot them, there is still missing: {', '.join(missing)}")
    return HELD


def _missing_for_a_guest() -> list[str]:
    from memhp.lab.guest import missing_tools  # noqa: PLC0415 - a listing needs no guest

    return missing_tools()


def _kernels(options: argparse.Namespace) -> int:
    found = kernels.installed()
    if options.json:
        print(json.dumps([{"series": kernel.series, "release": kernel.release, "version": kernel.version} for kernel in found]))
    elif not found:
        print(f"no kernel in {kernels.cache_dir()}; get them with: memhp lab fetch")
    else:
        for kernel in found:
            print(f"{kernel.series:<6} {kernel.release} ({kernel.version}) in {kernel.root}")
    return HELD


def _run(options: argparse.Namespace) -> int:
    if not options.patience > 0:
        raise InvalidInput(options.patience, "--patience", "a number of seconds above 0")
    show = make_sink(as_json=options.json, quiet=options.quiet)
    with _recorder(options.record) as record:

        def sink(event: Event) -> None:
            record(event)
            show(event)

        scenario = load(options.file)
        player = LabPlayer(scenario, _playable(options.kernel), sink, patience=options.patience)
        return FAILED if player.play() else HELD


def _playable(word: str) -> kernels.Kernel:
    kernel = kernels.find_kernel(word)
    if kernel.series not in PROBES:
        message = (
            f"{word} is Linux {kernel.release}, and where its notifier chain can be heard is known only of {' and '.join(PROBES)}"
        )
        raise InvalidInput(word, "--kernel", f"another kernel: {message}; memhp lab boot boots any")
    return kernel


@contextlib.contextmanager
def _recorder(path: str | None) -> Iterator[Callable[[Event], None]]:
    # Written when it is whole, so that a guest that failed leaves no half of a recording.
    events: list[Event] = []
    yield events.append
    if path is not None:
        Path(path).write_text("".join(f"{json.dumps(event)}\n" for event in events), encoding="utf-8")


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"fetch": _fetch, "kernels": _kernels, "run": _run}
