"""lockdep: find lock orders that could deadlock, in a run in which nothing did (``kernel/locking/lockdep.c``).

Each acquisition adds edges to a graph of lock *classes*: from every lock that the task holds to the one that it takes.
A cycle of classes is an order that can deadlock, unless every way round it is taken under one common lock. The kernel
gives up on such *gated* cycles (it declares ``device_lock`` as not validated); here each edge remembers what else was
held, and a cycle counts only if its edges could be under way at the same time. That is how the order
device_lock, mem_hotplug_lock and its reverse are fine under device_hotplug_lock and reported without it.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Protocol

from memhp.locking.switch import Mode

if TYPE_CHECKING:
    from memhp.locking.switch import Held, Task

__all__ = ["Edge", "Lockdep", "Report", "Site"]

_log = logging.getLogger("memhp.lockdep")
_STACK_DEPTH = 24
_MAX_CHAINS = 1 << 16


class _Lock(Protocol):
    name: str
    lock_class: str
    serial: int


_serials = itertools.count(1)


def next_serial() -> int:
    """Give a number that no other lock has had; an ``id()`` would come back after its lock is gone."""
    return next(_serials)


class Site:
    """Where a lock was taken: a stack, kept as code objects and lines until somebody prints it."""

    __slots__ = ("frames",)

    def __init__(self) -> None:
        # The instruction is kept, not the line: finding the line decodes a table, which printing can do.
        frames: list[tuple[CodeType, int]] = []
        frame = sys._getframe(1)  # noqa: SLF001 - a stack for every acquisition must be cheap
        for _ in range(_STACK_DEPTH):
            frames.append((frame.f_code, frame.f_lasti))
            if frame.f_back is None:
                break
            frame = frame.f_back
        self.frames = frames

    def lines(self) -> list[str]:
        """Give the stack innermost first, a line a frame, without the locks' own: ``function() at file:line``."""
        shown = [(code, last) for code, last in self.frames if not code.co_filename.startswith(_HERE)]
        return [f"{code.co_qualname}() at {_short(code.co_filename)}:{_line(code, last)}" for code, last in shown]


def _line(code: CodeType, instruction: int) -> int | None:
    return next((line for first, end, line in code.co_lines() if first <= instruction < end), None)


_HERE = __file__.rsplit("/", 1)[0] + "/"


def _short(file: str) -> str:
    root = _HERE.rsplit("/", 3)[0] + "/"
    return file.removeprefix(root)


Gates = frozenset[tuple[_Lock, Mode]]


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """``after`` was taken while ``before`` was held; both stacks, and what else was held."""

    before: _Lock
    before_mode: Mode
    before_site: Site | None
    after: _Lock
    after_mode: Mode
    after_site: Site
    task: str
    gates: Gates

    def holds(self) -> Gates:
        """Give all that the task held when it took ``after``."""
        return self.gates | {(self.before, self.before_mode)}


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """One lock order that could deadlock.

    Attributes:
        kind: ``circular`` or ``recursive``.
        cycle: the edges; the last one closes it and is the acquisition that was found out.
        held: what the task held when it was found out.
    """

    kind: str
    cycle: tuple[Edge, ...]
    task: str
    held: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The lock classes of the cycle, in order, beginning with the one that was held."""
        last = self.cycle[-1]
        return (last.before.lock_class, *(edge.before.lock_class for edge in self.cycle[:-1]))

    def __str__(self) -> str:
        return "\n".join(self._circular() if self.kind == "circular" else self._recursive())

    def _circular(self) -> Iterator[str]:
        yield from self._found_out("WARNING: possible circular locking dependency detected")
        yield ""
        yield "which lock already depends on the new lock."
        yield ""
        yield "the existing dependency chain (in reverse order) is:"
        for number, edge in reversed(list(enumerate(self.cycle[:-1], 1))):
            yield ""
            yield f"-> #{number} ({edge.after.lock_class}){_tag(edge.after_mode)} {edge.after.name}, by {edge.task} at:"
            yield from _indent(edge.after_site)
            yield f"   while holding ({edge.before.lock_class}){_tag(edge.before_mode)} {edge.before.name}, taken at:"
            yield from _indent(edge.before_site)
        yield ""
        yield "other info that might help us debug this:"
        yield ""
        yield from self._scenario()
        yield ""
        yield " *** DEADLOCK ***"
        yield ""
        yield f"locks held by {self.task}: {', '.join(self.held)}"

    def _scenario(self) -> Iterator[str]:
        yield " Possible unsafe locking scenario:"
        yield ""
        edges = (self.cycle[-1], *self.cycle[:-1])
        column = "{:<40}".format
        yield "".join(column(f"       CPU{n}") for n in range(len(edges))).rstrip()
        yield "".join(column("       ----") for _ in edges).rstrip()
        takes = [(n, edge.before.lock_class) for n, edge in enumerate(edges)]
        waits = [(n, edge.after.lock_class) for n, edge in reversed(list(enumerate(edges)))]
        for place, name in takes + waits:
            yield f"{'':{40 * place}}  lock({name});"

    def _recursive(self) -> Iterator[str]:
        yield from self._found_out("WARNING: possible recursive locking detected")
        yield ""
        yield " *** DEADLOCK ***"

    def _found_out(self, title: str) -> Iterator[str]:
        last = self.cycle[-1]
        yield from _banner(title)
        yield f"{self.task} is trying to acquire lock:"
        yield f" ({last.after.lock_class}){_tag(last.after_mode)} {last.after.name}, at:"
        yield from _indent(last.after_site)
        yield ""
        yield "but task is already holding lock:"
        yield f" ({last.before.lock_class}){_tag(last.before_mode)} {last.before.name}, taken at:"
        yield from _indent(last.before_site)


def _banner(title: str) -> Iterator[str]:
    yield "=" * len(title)
    yield title
    yield "-" * len(title)


def _tag(mode: Mode) -> str:
    return "{read}" if mode is Mode.READ else "{write}"


def _indent(site: Site | None) -> Iterator[str]:
    for line in site.lines() if site is not None else ():
        yield f"       {line}"


class Lockdep:
    """The graph of one machine's lock classes; ``reports`` lists what it found, each cycle once."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._lock = threading.Lock()
        self._edges: dict[str, dict[str, list[Edge]]] = {}
        self._written: set[str] = set()
        self._reported: set[tuple[str, ...]] = set()
        self._chains: set[tuple[int, ...]] = set()

    def before(self, task: Task, lock: _Lock, mode: Mode) -> Site:
        """Check the order of an acquisition that may wait, before it waits."""
        site = Site()
        held = task.held
        # The same locks in the same order were looked at before: nothing new can come of it (the kernel's chain cache).
        chain = (_signed(lock, mode), *[_signed(one.lock, one.mode) for one in held])
        if chain in self._chains:
            return site
        with self._lock:
            if len(self._chains) >= _MAX_CHAINS:
                self._chains.clear()
            self._chains.add(chain)
            if mode is Mode.WRITE:
                self._note_written(task, lock.lock_class)
            for index, outer in enumerate(held):
                self._depend(task, index, outer, lock, mode, site)
        return site

    def trylock(self, task: Task, lock: _Lock) -> Site:
        """Note a successful trylock: it could not wait, so nothing leads to it; it is held from now on all the same."""
        return Site()

    def _depend(self, task: Task, index: int, outer: Held, lock: _Lock, mode: Mode, site: Site) -> None:
        prev = outer.lock
        gates = frozenset((held.lock, held.mode) for place, held in enumerate(task.held) if place != index)
        edge = Edge(prev, outer.mode, outer.site, lock, mode, site, task.name, gates)
        if prev.lock_class == lock.lock_class:
            self._report("recursive", (edge,), task)
            return
        known = self._edges.setdefault(prev.lock_class, {}).setdefault(lock.lock_class, [])
        if any(_covers(other, edge) for other in known):
            return
        known.append(edge)
        self._look_for_cycle(edge, task)

    def _look_for_cycle(self, edge: Edge, task: Task) -> None:
        for path in self._paths(edge.after.lock_class, edge.before.lock_class, ()):
            if _key((*path, edge)) in self._reported:
                continue
            if self._can_deadlock((*path, edge)):
                self._report("circular", (*path, edge), task)

    def _paths(self, start: str, goal: str, path: tuple[Edge, ...]) -> Iterator[tuple[Edge, ...]]:
        for follower, edges in self._edges.get(start, {}).items():
            if any(step.before.lock_class == follower for step in path):
                continue
            for edge in edges:
                if follower == goal:
                    yield (*path, edge)
                else:
                    yield from self._paths(follower, goal, (*path, edge))

    def _can_deadlock(self, cycle: tuple[Edge, ...]) -> bool:
        if any(_gated(a, b) for a, b in itertools.combinations(cycle, 2)):
            return False
        # Readers stop readers only through a writer that waits between them.
        return all(
            edge.before.lock_class in self._written
            for previous, edge in zip((cycle[-1], *cycle[:-1]), cycle, strict=True)
            if previous.after_mode == edge.before_mode is Mode.READ
        )

    def _note_written(self, task: Task, lock_class: str) -> None:
        if lock_class in self._written:
            return
        self._written.add(lock_class)
        for edge in self._edges_of(lock_class):
            self._look_for_cycle(edge, task)

    def _edges_of(self, lock_class: str) -> Iterable[Edge]:
        return [edge for edges in self._edges.get(lock_class, {}).values() for edge in edges]

    def _report(self, kind: str, cycle: tuple[Edge, ...], task: Task) -> None:
        key = _key(cycle)
        if key in self._reported:
            return
        self._reported.add(key)
        report = Report(kind, cycle, task.name, tuple(task.describe_held()))
        self.reports.append(report)
        _log.warning("%s", report)


def _key(cycle: tuple[Edge, ...]) -> tuple[str, ...]:
    # The same circle whichever edge closed it.
    classes = [edge.before.lock_class for edge in cycle]
    first = classes.index(min(classes))
    return (*classes[first:], *classes[:first])


def _signed(lock: _Lock, mode: Mode) -> int:
    # Lock and mode in one number: hashing enum members is not cheap.
    return lock.serial if mode is Mode.WRITE else -lock.serial


def _covers(known: Edge, new: Edge) -> bool:
    # The known edge allows every cycle that the new one would.
    same_modes = known.before_mode is new.before_mode and known.after_mode is new.after_mode
    return same_modes and known.gates <= new.gates


def _gated(a: Edge, b: Edge) -> bool:
    # Two tasks can be at these two edges at once only if what they hold there can be held at once.
    modes = dict(a.holds())
    return any(lock in modes and _excludes(modes[lock], mode) for lock, mode in b.holds())


def _excludes(a: Mode, b: Mode) -> bool:
    return not (a is b is Mode.READ)
