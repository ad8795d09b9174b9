"""Hearing the notifier chain of a real kernel: what to probe, and how to read the trace that it leaves.

A kprobe on the function that calls the chain, and one on its return. Which function, and how its argument is laid out,
differs between releases (facts 2.1 to 2.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memhp.events import MemoryAction

__all__ = ["BIT_FLAGS", "CALL", "RETURN", "ChainLayout", "Line", "definitions", "layout_from_btf", "read_line", "read_lines"]

CALL, RETURN = "memhp_call", "memhp_return"
_FIELD = re.compile(r'(\w+)=("[^"]*"|\S+)')
_LINE = re.compile(r"\s(\d+\.\d+): (memhp_\w+): (.*)$")

BIT_FLAGS: Mapping[int, MemoryAction] = {action.value: action for action in MemoryAction}
"""The numbers of actions where they are macros: up to 6.18, and 6.12 up to 6.12.109."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the trace that one of the probes left."""

    time: float
    kind: str
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class ChainLayout:
    """Where things stand in ``struct memory_notify``, and what the numbers of actions mean."""

    offsets: Mapping[str, int]
    """start_pfn, nr_pages, status_change_nid_normal, status_change_nid: those that this kernel has."""

    actions: Mapping[int, MemoryAction]


def layout_from_btf(members: Mapping[str, int], enumerators: Mapping[str, int] | None) -> ChainLayout:
    """Take the layout from the kernel's own types; without an enumeration the numbers are macros, which are bit flags."""
    wanted = ("start_pfn", "nr_pages", "status_change_nid_normal", "status_change_nid")
    offsets = {name: members[name] for name in wanted if name in members}
    if enumerators is None:
        return ChainLayout(offsets, BIT_FLAGS)
    actions = {value: MemoryAction[name] for name, value in enumerators.items() if name in MemoryAction.__members__}
    return ChainLayout(offsets, actions)


_SHORT = {"start_pfn": ("start", "u64"), "nr_pages": ("nr", "u64")}
_SHORT |= {"status_change_nid_normal": ("normal", "s32"), "status_change_nid": ("nid", "s32")}


def definitions(function: str, action: int, offsets: Mapping[str, int], *, head: bool, group: str = "") -> list[str]:
    """Give the lines for ``kprobe_events``: the call and the return.

    Args:
        function: what to probe.
        action: which of its arguments is the action; the notify structure is the next.
        offsets: where things stand in that structure.
        head: whether the first argument is the chain, to be told apart by a filter.
        group: a name of one's own for the events.
    """
    notify = f"$arg{action + 1}"
    fields = " ".join(f"{_SHORT[name][0]}=+{at}({notify}):{_SHORT[name][1]}" for name, at in offsets.items())
    chain = " head=$arg1:x64" if head else ""
    where = f"{group}/" if group else ""
    return [
        f"p:{where}{CALL} {function} action=$arg{action}:u64 {fields}{chain}",
        f"r:{where}{RETURN} {function} answer=$retval:u32{chain}",
    ]


def read_line(text: str) -> Line | None:
    """Read a line of the trace; None if it is somebody else's."""
    match = _LINE.search(text)
    if not match:
        return None
    return Line(float(match[1]), match[2], {name: value.strip('"') for name, value in _FIELD.findall(match[3])})


def read_lines(lines: Iterable[str]) -> list[Line]:
    """Read those lines that the probes left."""
    return [line for line in map(read_line, lines) if line]
