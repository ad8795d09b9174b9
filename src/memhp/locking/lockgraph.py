"""The graph of lock classes, and the search for orders in it that can deadlock (``kernel/locking/lockdep.c``).

An edge says that one lock was taken while another was held, and in which modes. A cycle of edges can deadlock only if it
is *strong*: at every class in it the one who comes has to wait for the one who is there. Who comes for a recursive read
waits only for a holder who writes; a plain reader waits for a holder who reads too, behind a writer between them; a
writer waits for everybody. The kernel writes the first as ``-(xR)-> -(Sx)->``, which no strong cycle contains.

The kernel gives up on *gated* cycles, of which every way round is taken under one common lock (it declares ``device_lock`` as
not validated). Here each edge remembers what else was held, and a cycle counts only if its edges can be under way at the same
time. Only a class that has one lock can be such a gate: what one lock of a class does speaks for all of them, and two of
them keep nobody apart. That also keeps the number of edges independent of the number of locks.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from types import CodeType

from memhp.locking.switch import Mode

__all__ = ["Cycle", "Edge", "LockGraph", "Site", "Take"]

_STACK_DEPTH = 24
_MAX_STEPS = 50_000
_HERE = __file__.rsplit("/", 1)[0] + "/"


class Site:
    """Where a lock was taken: a stack, kept as code objects and instructions until somebody prints it.

    Attributes:
        sign: the lock's class, subclass and mode in one number.
    """

    __slots__ = ("_frames", "_lines", "sign")

    def __init__(self, sign: int = 0) -> None:
        self.sign = sign
        self._lines: list[str] | None = None
        # The instruction is kept, not the line: finding the line decodes a table, which printing can do.
        frames: list[tuple[CodeType, int]] = []
        frame = sys._getframe(1)  # noqa: SLF001 - a stack for every acquisition must be cheap
        for _ in range(_STACK_DEPTH):
            frames.append((frame.f_code, frame.f_lasti))
            if frame.f_back is None:
                break
            frame = frame.f_back
        self._frames = frames

    def lines(self) -> list[str]:
        """Give the stack innermost first, a line a frame, without the locks' own: ``function() at file:line``."""
        if self._lines is None:
            shown = [(code, last) for code, last in self._frames if not code.co_filename.startswith(_HERE)]
            self._lines = [f"{code.co_qualname}() at {_short(code.co_filename)}:{_line(code, last)}" for code, last in shown]
        return self._lines

    def __getstate__(self) -> list[str]:
        # Code can't be sent to another process, its name and place can.
        return self.lines()

    def __setstate__(self, lines: list[str]) -> None:
        self.sign, self._frames, self._lines = 0, [], lines


def _line(code: CodeType, instruction: int) -> int | None:
    return next((line for first, end, line in code.co_lines() if first <= instruction < end), None)


def _short(file: str) -> str:
    root = _HERE.rsplit("/", 3)[0] + "/"
    return file.removeprefix(root)


# Plain classes from here on, no dataclasses: importing these is half of what it takes to import the locks.


class Take:
    """One acquisition of a lock.

    Attributes:
        name: of the lock.
        lock_class: of the lock.
        subclass: the nesting level at which it was taken.
        mode: how.
        site: where, if that is known.
    """

    __slots__ = ("lock_class", "mode", "name", "site", "subclass")

    def __init__(self, name: str, lock_class: str, subclass: int, mode: Mode, site: Site | None) -> None:
        self.name = name
        self.lock_class = lock_class
        self.subclass = subclass
        self.mode = mode
        self.site = site

    @property
    def key(self) -> str:
        """The class as the graph has it: ``device_lock``, or ``device_lock/1`` for a subclass."""
        return f"{self.lock_class}/{self.subclass}" if self.subclass else self.lock_class


class Edge:
    """``after`` was taken while ``before`` was held.

    Attributes:
        before: how that one was taken.
        after: how this one was.
        task: who did it.
        held: what it held, by name.
        alone: classes of all locks that it held in write mode, ``before`` too, as far as they have one lock each.
        shared: the same for locks that it held in read modes only.
    """

    __slots__ = ("after", "alone", "before", "held", "shared", "task")

    def __init__(
        self,
        before: Take,
        after: Take,
        task: str,
        held: tuple[str, ...] = (),
        alone: frozenset[str] = frozenset(),
        shared: frozenset[str] = frozenset(),
    ) -> None:
        self.before = before
        self.after = after
        self.task = task
        self.held = held
        self.alone = alone
        self.shared = shared

    def covers(self, other: Edge) -> bool:
        """Say whether it allows every cycle that ``other`` allows; both are between the same classes."""
        return (
            (self.before.mode is Mode.WRITE) is (other.before.mode is Mode.WRITE)
            and _STRENGTH[self.after.mode] >= _STRENGTH[other.after.mode]
            and self.alone <= other.alone
            and self.shared <= other.shared | other.alone
        )

    def excludes(self, other: Edge) -> bool:
        """Say whether no two tasks can be at both edges at once, because of what they hold there."""
        return not (
            self.alone.isdisjoint(other.alone) and self.alone.isdisjoint(other.shared) and self.shared.isdisjoint(other.alone)
        )

    def without_gate(self, lock_class: str) -> Edge:
        """Give the edge as it is when ``lock_class`` turns out to be no gate."""
        return Edge(self.before, self.after, self.task, self.held, self.alone - {lock_class}, self.shared - {lock_class})


_STRENGTH = {Mode.RECURSIVE_READ: 0, Mode.READ: 1, Mode.WRITE: 2}


class Cycle:
    """An order of lock classes that can deadlock: each edge takes what the next one holds, the last what the first holds.

    Attributes:
        edges: the acquisitions that make it, each with its stacks.
        unwritten: classes that somebody would have to write for it to deadlock, and nobody was seen to write.
    """

    __slots__ = ("edges", "unwritten")

    def __init__(self, edges: tuple[Edge, ...], unwritten: tuple[str, ...] = ()) -> None:
        self.edges = edges
        self.unwritten = unwritten

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in order, beginning with the least: the same for a cycle whichever edge closed it."""
        keys = [edge.before.key for edge in self.edges]
        first = keys.index(min(keys))
        return (*keys[first:], *keys[:first])


class LockGraph:
    """What is known of the orders of lock classes, of one run or of several.

    The graph of a run is ``Lockdep.graph``; :meth:`merged` puts those of several runs together, in which orders meet that no
    single run had, and :meth:`cycles` lists what could deadlock. Graphs can be pickled, so runs may be in other processes.
    """

    def __init__(self) -> None:
        self.written: set[str] = set()
        """Classes that somebody waited to write."""
        self.crowded: set[str] = set()
        """Classes with more than one lock, which are no gates."""
        self.recursions: dict[str, Edge] = {}
        """The first acquisition of each class under another lock of it, where that can deadlock."""
        self.truncated = False
        """Whether a search was given up because there are too many ways round; then cycles may be missing."""
        self._out: dict[str, dict[str, list[Edge]]] = {}
        self._into: dict[str, set[str]] = {}

    @classmethod
    def merged(cls, graphs: Iterable[LockGraph]) -> LockGraph:
        """Put the graphs of several runs into a new one; classes are the same if they have the same name."""
        graphs = list(graphs)
        whole = cls()
        for graph in graphs:
            whole.written |= graph.written
            whole.crowded |= graph.crowded
            whole.truncated |= graph.truncated
            for key, edge in graph.recursions.items():
                whole.recursions.setdefault(key, edge)
        for graph in graphs:
            for edge in graph.edges():
                whole.add(edge)
        return whole

    def edges(self) -> list[Edge]:
        """Give all edges; one that another one covers is left out."""
        return [edge for after in self._out.values() for edges in after.values() for edge in edges]

    def edges_from(self, lock_class: str) -> list[Edge]:
        """Give the edges that begin at a class, any subclass of it."""
        return [edge for edge in self.edges() if edge.before.lock_class == lock_class]

    def add(self, edge: Edge) -> Edge | None:
        """Add an edge; gives it as it was added, without gates that are none, or None if it says nothing new."""
        for gate in (edge.alone | edge.shared) & self.crowded:
            edge = edge.without_gate(gate)
        known = self._out.setdefault(edge.before.key, {}).setdefault(edge.after.key, [])
        self._into.setdefault(edge.after.key, set()).add(edge.before.key)
        if any(other.covers(edge) for other in known):
            return None
        known[:] = [other for other in known if not edge.covers(other)]
        known.append(edge)
        return edge

    def crowd(self, lock_class: str) -> list[Edge]:
        """Note that a class has a second lock and so is no gate; gives the edges that became easier to meet."""
        self.crowded.add(lock_class)
        gated = [edge for edge in self.edges() if lock_class in edge.alone or lock_class in edge.shared]
        added = [self.add(edge) for edge in gated]
        return [edge for edge in added if edge is not None]

    def cycles(self) -> list[Cycle]:
        """List every cycle of classes that can deadlock, shortest first, each once.

        Cycles that need a writer whom nobody saw are listed too; see ``Cycle.unwritten``. For recursion within a class see
        ``recursions``.
        """
        found: dict[tuple[str, ...], Cycle] = {}
        for key in sorted(self._out):
            # Each cycle is looked for from its least class only.
            for edge in [edge for edges in self._out[key].values() for edge in edges]:
                for cycle in self.through(edge, least=key):
                    better = found.get(cycle.classes)
                    if better is None or len(cycle.unwritten) < len(better.unwritten):
                        found[cycle.classes] = cycle
        return sorted(found.values(), key=lambda cycle: (len(cycle.edges), cycle.classes))

    def through(self, edge: Edge, *, least: str = "") -> Iterator[Cycle]:
        """Give the cycles that begin with ``edge`` and can deadlock; one of classes from ``least`` on only."""
        goal = edge.before.key
        useful = {key for key in self._leading_to(goal) if key >= least}
        if edge.after.key not in useful:
            return
        budget = itertools.count()

        def extend(path: tuple[Edge, ...]) -> Iterator[tuple[Edge, ...]]:
            for step in self._following(path, useful, budget):
                if step.after.key == goal:
                    yield (*path, step)
                else:
                    yield from extend((*path, step))

        for path in extend((edge,)):
            if not _passes(path[-1], edge):
                yield Cycle(path, self._unwritten(path))

    def _following(self, path: tuple[Edge, ...], useful: set[str], budget: Iterator[int]) -> Iterator[Edge]:
        # The edges that go on from a path, to classes where it hasn't been, and can be under way together with it.
        useful = useful.difference(step.after.key for step in path)
        for key, edges in self._out.get(path[-1].after.key, {}).items():
            for step in edges if key in useful else ():
                if next(budget) >= _MAX_STEPS:
                    self.truncated = True
                    return
                if not _passes(path[-1], step) and not any(step.excludes(other) for other in path):
                    yield step

    def _leading_to(self, goal: str) -> set[str]:
        near: set[str] = set()
        todo = [goal]
        while todo:
            for key in self._into.get(todo.pop(), ()):
                if key not in near:
                    near.add(key)
                    todo.append(key)
        return near

    def _unwritten(self, path: tuple[Edge, ...]) -> tuple[str, ...]:
        joints = zip((path[-1], *path[:-1]), path, strict=True)
        readers = {edge.before.lock_class for comes, edge in joints if behind_writer(comes.after, edge.before)}
        return tuple(sorted(readers - self.written))


def _passes(comes: Edge, there: Edge) -> bool:
    # A recursive read goes past readers, and past the writers that wait for them.
    return comes.after.mode is Mode.RECURSIVE_READ and there.before.mode is not Mode.WRITE


def behind_writer(comes: Take, there: Take) -> bool:
    """Say whether the one who comes waits only if a writer waits between the two."""
    return comes.mode is Mode.READ and there.mode is not Mode.WRITE
