"""``memhp watch``: uevents of memory, and the kernel's notifier calls, as they happen."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from typing import Any

from memhp.cli.signals import ended_by_signals
from memhp.cli.text import guarded
from memhp.host.inventory import Host
from memhp.host.watch import ChainCalled, Event, Found, Lost, UeventSeen
from memhp.notifier import NotifyResult
from memhp.units import format_ids, format_size

__all__ = ["as_json", "as_text", "configure", "main"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Show what happens to this machine's memory while it happens, until Ctrl-C: uevents of memory blocks and nodes and, with "
        "--trace, each call of the kernel's notifier chain. Nothing of the memory is changed."
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object on each line (docs/watch.md)")
    parser.add_argument("--trace", action="store_true", help="also the calls of the notifier chain; needs root and kprobes")
    parser.add_argument("--all", action="store_true", help="also uevents of other devices")
    parser.add_argument("--count", type=_count, metavar="N", help="end after N events")
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="end when nothing has happened for so long")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of events, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def main(options: argparse.Namespace) -> int:
    """Watch until the end; gives the exit code."""
    return guarded(lambda: _watch(options), "memhp watch")


def _watch(options: argparse.Namespace) -> int:
    host = Host()
    try:
        with ended_by_signals():
            watch = host.watch(trace=options.trace, every=options.all)
            with watch:
                size = host.block_size
                for event in itertools.islice(watch.events(options.timeout), options.count):
                    print(json.dumps(as_json(event)) if options.json else as_text(event, size), flush=True)
    except KeyboardInterrupt:
        pass  # that is how it is ended
    return 0


def as_json(event: Event) -> dict[str, Any]:
    """Give an event as it is printed with ``--json``; numbers are in bytes and seconds."""
    if isinstance(event, UeventSeen):
        uevent = event.uevent
        facts = {"action": uevent.action, "devpath": uevent.devpath, "subsystem": uevent.subsystem, "seqnum": uevent.seqnum}
        return {"event": "uevent", "time": event.time, **facts, "block": event.block, "extra": dict(uevent.extra)}
    if isinstance(event, Lost):
        return {"event": "lost", "time": event.time, "seqnums": list(event.numbers), "found": event.found}
    if isinstance(event, Found):
        return {"event": "found", "time": event.time, "block": event.block, "was": event.was, "now": event.now}
    nodes = event.nodes or (None, None)
    return {
        "event": "call",
        "time": event.time,
        "action": event.action.name if event.action else None,
        "number": event.number,
        "start": event.start,
        "size": event.size,
        "status_change_nid_normal": nodes[0],
        "status_change_nid": nodes[1],
        "answer": None if event.answer is None else str(NotifyResult(event.answer)),
        "seconds": event.seconds,
    }


def as_text(event: Event, block_size: int) -> str:
    """Give an event as a line for people."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.time)) + f".{int(event.time % 1 * 1000):03}"
    if isinstance(event, UeventSeen):
        name = event.uevent.devpath.rpartition("/")[2]
        where = "" if event.block is None else f"  {_range(event.block * block_size, block_size)}"
        known = event.uevent.subsystem in {"memory", "node"}
        return f"{clock}  {event.uevent.action:<8}  {name if known else event.uevent.devpath}{where}"
    if isinstance(event, Lost):
        return f"{clock}  lost      {_missing(event)}; all blocks were read again: {_differ(event.found)}"
    if isinstance(event, Found):
        return f"{clock}  found     memory{event.block}: {event.was or 'not there'} -> {event.now or 'not there'}"
    return f"{clock}  call      {_call(event)}"


def _missing(event: Lost) -> str:
    if not event.numbers:
        return "uevents, because they came too fast"
    one = len(event.numbers) == 1
    return f"{len(event.numbers)} {'uevent' if one else 'uevents'} (SEQNUM {format_ids(event.numbers)})"


def _differ(count: int) -> str:
    return f"{count or 'none'} {'differs' if count == 1 else 'differ'}"


def _call(event: ChainCalled) -> str:
    action = event.action.name if event.action else f"action {event.number}"
    nodes = "" if event.nodes is None or event.nodes == (-1, -1) else f" nodes {event.nodes[0]},{event.nodes[1]}"
    if event.answer is None or event.seconds is None:
        result = "has not returned yet"
    else:
        result = f"{NotifyResult(event.answer)}, {_duration(event.seconds)}"
    return f"{action:<18}  {_range(event.start, event.size)} {format_size(event.size)}{nodes}: {result}"


def _range(start: int, size: int) -> str:
    return f"[mem {start:#010x}-{start + size - 1:#010x}]"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
