"""``memhp run``: play a scenario, as text for people or as JSON lines for programs."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from memhp.errors import InvalidInput
from memhp.kernel import Rules
from memhp.scenario import Player, load
from memhp.units import format_size

__all__ = ["BAD_INPUT", "FAILED", "HELD", "INTERRUPTED", "Text", "configure", "main", "make_sink", "without_log"]

Event = dict[str, Any]

HELD, FAILED, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
_CELLS_PER_ROW = 64
_MAX_CELLS = 512
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for tab and newline."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Play a scenario file on the modelled machine and show each call of a callback as it happens. "
        "Nothing of the real machine is changed, also with `from: host`, which only reads its /sys."
    )
    parser.add_argument("file", metavar="FILE", help="the scenario (docs/scenarios.md says how to write one)")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines (docs/run-json.md)")
    parser.add_argument(
        "--rules", metavar="RULES", help="whose rules the machine follows: documented, 6.1 or 6.12; default: the file's"
    )
    parser.add_argument("--quiet", action="store_true", help="print only what did not hold")


def main(options: argparse.Namespace) -> int:
    """Play the scenario; gives the exit code."""
    try:
        chosen = None if options.rules is None else _rules(options.rules)
        _make_printable()
        sink = make_sink(as_json=options.json, quiet=options.quiet)
        with without_log():
            failures = Player(load(options.file), sink, rules=chosen).play()
            sys.stdout.flush()
    except InvalidInput as error:
        print(f"memhp: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # Whoever reads has seen enough; keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        print(f"memhp: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_INPUT
    except SystemExit:
        print("memhp: a callback ended the program; the run is not complete", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("memhp: interrupted", file=sys.stderr)
        return INTERRUPTED
    return FAILED if failures else HELD


def _rules(word: str) -> Rules:
    try:
        return Rules.of(word)
    except InvalidInput as error:
        raise InvalidInput(word, "--rules", error.expected) from None


def _make_printable() -> None:
    # A title may have signs that the terminal's encoding has not; a closed output is an error before anything is played.
    if sys.stdout is None:
        raise InvalidInput("closed", "standard output", "an open one")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def make_sink(*, as_json: bool, quiet: bool) -> Callable[[Event], None]:
    """Give what prints events: as JSON lines, as text, or only the failures."""
    if as_json:
        return _json_line
    return _quiet(Text().show) if quiet else Text().show


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Keep the library's log silent: what callbacks raise is an event of the run, and would be said a second time."""
    log, nowhere = logging.getLogger("memhp"), logging.NullHandler()
    before = log.propagate
    log.addHandler(nowhere)
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = before
        log.removeHandler(nowhere)


def _json_line(event: Event) -> None:
    print(json.dumps(event), flush=True)


def _quiet(show: Callable[[Event], None]) -> Callable[[Event], None]:
    def sink(event: Event) -> None:
        if event["event"] == "failure":
            show(event)

    return sink


class Text:
    """Shows events to a person, one at a time."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._last_call: tuple[Any, ...] = ()
        self._first_map = True
        self._deeds: list[str] = []
        self._uevents: list[Event] = []

    def show(self, event: Event) -> None:
        """Print one event; what a file says reaches no terminal as a control sequence."""
        event = {key: _harmless(value) for key, value in event.items()}
        if event["event"] not in {"call", "deed"}:
            self._last_call = ()
        if event["event"] == "uevent":
            self._uevents.append(event)
            return
        for line in [*self._said_uevents(), *getattr(self, f"_{event['event']}")(event)]:
            print(line, flush=True)

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    def _scenario(self, event: Event) -> list[str]:
        about = [f"  {line}" for line in event["about"].splitlines()]
        rules = {"documented": "as the kernel document says"}.get(event["rules"], f"as Linux {event['rules']} does")
        return [self._paint(event["title"], "1"), *about, f"  (rules: {rules})", ""]

    def _guest(self, event: Event) -> list[str]:
        return [f"Linux {event['release']} ({event['version']}) in QEMU, up after {event['boot_seconds']:.1f} s", ""]

    def _machine(self, event: Event) -> list[str]:
        blocks = event["blocks"]
        online = sum(block["state"] == "online" for block in blocks)
        size = format_size(event["block_size"])
        whose = {"host": "the twin of this very machine", "description": "the machine", "guest": "the guest"}.get(
            event["source"], event["source"]
        )
        head = (
            f"{event['moment'].capitalize()}: {whose}, {format_size(online * event['block_size'])} online "
            f"in {online} of {len(blocks)} blocks of {size}"
        )
        return ["", head, *self._map(event), ""] if event["moment"] == "after" else [head, *self._map(event), ""]

    def _map(self, event: Event) -> list[str]:
        blocks = event["blocks"]
        lines = []
        group = max(1, -(-len(blocks) // _MAX_CELLS))
        for node in sorted({block["node"] for block in blocks}):
            mine = [block for block in blocks if block["node"] == node]
            for index, part in enumerate(_rows(mine, group)):
                first = part[0][0]["id"]
                label = f"node {node}" if index == 0 else ""
                lines.append(f"  {label:<8}memory{first:<6} {''.join(_cell(cell) for cell in part)}")
        if self._first_map:
            self._first_map = False
            each = "one block" if group == 1 else f"{group} blocks"
            lines.append(f"  one sign is {each}: # online, M online in ZONE_MOVABLE, u partly used, . offline, ~ mixed")
        return lines

    def _callbacks(self, event: Event) -> list[str]:
        if not event["registered"]:
            return ["No callback is registered: nobody is asked, nobody is told."]
        names = [f"{block['name']} (priority {block['priority']})" for block in event["registered"]]
        return [f"Who takes part, in the order in which they are called: {', '.join(names)}"]

    def _warning(self, event: Event) -> list[str]:
        where = f"line {event['line']}: " if event["line"] else ""
        return [f"WARNING {where}{event['text']}", ""]

    def _note(self, event: Event) -> list[str]:
        return ["", f"-- {event['text']}"]

    def _step(self, event: Event) -> list[str]:
        thread = "" if event["thread"] == "main" else f" [in thread {event['thread']}]"
        return ["", self._paint(f"{event['number']}. {event['text']}{thread}", "1")]

    def _call(self, event: Event) -> list[str]:
        head = (event["action"], event["start_pfn"], event["thread"])
        lines = []
        if head != self._last_call:
            self._last_call = head
            lines.append(f"   {event['action']:<19} {event['blocks']}{_changes(event)}")
        answer = event["answer"]
        shown = self._paint(answer, "31") if answer not in {"OK", "DONE", "STOP"} else answer
        error = f": {event['error']}" if event["error"] else ""
        lines.append(f"      {event['callback']:<16} {shown}{error}  {_time(event['seconds'])}")
        lines += self._deeds
        self._deeds.clear()
        return lines

    def _deed(self, event: Event) -> list[str]:
        # What a callback does is heard before its answer; it is shown below it.
        self._deeds.append(f"      {'':<16} it {event['text']}")
        return []

    def _said_uevents(self) -> list[str]:
        # Uevents of one action for devices of one kind make one line.
        lines: list[str] = []
        kinds = itertools.groupby(self._uevents, key=lambda event: (event["action"], event["devpath"].rpartition("/")[0]))
        for (action, _), events in kinds:
            paths = [event["devpath"] for event in events]
            more = f" to {paths[-1].rpartition('/')[2]} ({len(paths)} of them)" if len(paths) > 1 else ""
            lines.append(f"   uevent {action}@{paths[0]}{more}")
        self._uevents.clear()
        return lines

    def _result(self, event: Event) -> list[str]:
        thread = "" if event["thread"] == "main" else f" (thread {event['thread']})"
        if event["result"] == "ok":
            text = event["text"].strip()
            return [f"   = done{thread}{f': {text}' if text else ''}"]
        message = event["message"].replace("\n", "\n     ")
        return [f"   = {self._paint(event['result'], '31')}{thread}: {message}"]

    def _state(self, event: Event) -> list[str]:
        return [f"   | {key}: {'gone' if value is None else value}" for key, value in event["changes"].items()]

    def _lockdep(self, event: Event) -> list[str]:
        return [f"   | {line}".rstrip() for line in event["text"].splitlines()]

    def _failure(self, event: Event) -> list[str]:
        where = f"{event['file']}:{event['line']}" if event["line"] else event["file"]
        lines = [self._paint(f"FAILED {where}: {event['what']}", "31;1")]
        if event["diff"]:
            lines.append("   - expected   + happened")
            lines += [f"   {row}" for row in event["diff"]]
        else:
            lines += [f"   expected: {event['expected']}", f"   happened: {event['actual']}"]
        return [*lines, f"   {event['message']}"] if event["message"] else lines

    def _end(self, event: Event) -> list[str]:
        counts = f"{event['steps']} steps, {event['calls']} calls of callbacks"
        if event["failures"]:
            return [self._paint(f"{counts}; {event['failures']} expectations failed.", "31;1")]
        return [self._paint(f"{counts}; everything was as expected.", "32")]


def _harmless(value: Any) -> Any:
    if isinstance(value, list):
        return [_harmless(one) for one in value]
    return _CONTROL.sub(lambda sign: f"\\x{ord(sign[0]):02x}", value) if isinstance(value, str) else value


def _rows(blocks: list[Event], group: int) -> list[list[list[Event]]]:
    # A row ends at a hole in the addresses, and after a fixed number of cells.
    rows: list[list[list[Event]]] = []
    last: int | None = None
    for block in blocks:
        adjoins = last is not None and block["id"] == last + 1
        if adjoins and len(rows[-1][-1]) < group:
            rows[-1][-1].append(block)
        elif adjoins and len(rows[-1]) < _CELLS_PER_ROW:
            rows[-1].append([block])
        else:
            rows.append([[block]])
        last = block["id"]
    return rows


def _cell(blocks: list[Event]) -> str:
    signs = {_sign(block) for block in blocks}
    return signs.pop() if len(signs) == 1 else "~"


def _sign(block: Event) -> str:
    if block["state"] != "online":
        return "."
    if block["used_pages"]:
        return "u"
    return "M" if block["zones"] == ["Movable"] else "#"


def _changes(event: Event) -> str:
    normal, memory = event["status_change_nid_normal"], event["status_change_nid"]
    if event["action"] not in {"MEM_GOING_ONLINE", "MEM_ONLINE", "MEM_GOING_OFFLINE", "MEM_OFFLINE"}:
        return ""
    online = "ONLINE" in event["action"]
    masks = [name for name, nid in (("N_NORMAL_MEMORY", normal), ("N_MEMORY", memory)) if nid != -1]
    if not masks:
        return ""
    node = memory if memory != -1 else normal
    return f"  (node {node} {'gets' if online else 'loses'} its {'first' if online else 'last'} memory in {' and '.join(masks)})"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
