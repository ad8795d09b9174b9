"""lockdep: find lock orders that could deadlock, in a run in which nothing did (``kernel/locking/lockdep.c``).

Each acquisition adds edges to a graph of lock *classes*: from every lock that the task holds to the one that it takes. What
a cycle in it means is said in :mod:`memhp.locking.lockgraph`.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

from memhp.errors import InvalidInput
from memhp.locking.lockgraph import Cycle, Edge, LockGraph, Site, Take
from memhp.locking.lockreport import Report
from memhp.locking.switch import Mode, controlled

if TYPE_CHECKING:
    from memhp.locking.switch import Held, Lock, Task

__all__ = ["Lockdep"]

_MAX_CHAINS = 1 << 16
_SUBCLASSES = 8
_signs = itertools.count(1)
_SIGN_OF_MODE = {Mode.WRITE: 0, Mode.READ: 1, Mode.RECURSIVE_READ: 2}


class Lockdep:
    """The watcher of one machine's locks.

    Attributes:
        graph: the orders seen; hand those of several runs to :meth:`LockGraph.merged`.
        reports: what could deadlock, each cycle of classes once.
        warnings: cycles that could deadlock only if somebody also wrote a lock which so far was only read. They
            become reports when somebody does. The kernel reports these too.
    """

    def __init__(self) -> None:
        self.graph = LockGraph()
        self.reports: list[Report] = []
        self._warned: dict[tuple[str, ...], Report] = {}
        self._lock = threading.Lock()
        self._reported: set[tuple[str, ...]] = set()
        self._chains: set[tuple[int, ...]] = set()
        self._signs: dict[str, int] = {}
        self._present: set[str] = set()

    @property
    def warnings(self) -> list[Report]:
        """The cycles that lack a writer to deadlock."""
        return list(self._warned.values())

    def register(self, lock_class: str) -> int:
        """Make a lock of a class known; gives its sign. A class with a second lock is no gate any more."""
        with self._lock:
            sign = self._signs.get(lock_class)
            if sign is None:
                sign = self._signs[lock_class] = 4 * _SUBCLASSES * next(_signs)
            if lock_class not in self._present:
                self._present.add(lock_class)
            elif lock_class not in self.graph.crowded:
                for edge in self.graph.crowd(lock_class):
                    self._look_for_cycles(edge)
            return sign

    def next_run(self) -> None:
        """Forget which locks there are, and keep their orders: the locks made from now on play the same roles again.

        For runs one after the other in one process, each with locks of its own: cheaper than a lockdep for each, as what an
        earlier run showed is not looked at again. Nothing may hold a lock of the last run.
        """
        with self._lock:
            self._present.clear()

    def before(self, task: Task, lock: Lock, mode: Mode, subclass: int = 0) -> Site:
        """Check the order of an acquisition that may wait, before it waits."""
        site = self._site(lock, mode, subclass)
        held = task.held
        # The same classes in the same order and modes were looked at before: nothing new can come of it.
        chain = (site.sign, *[one.site.sign for one in held if one.site is not None])
        if chain in self._chains:
            return site
        with self._lock:
            if self._look(task, Take(lock.name, lock.lock_class, subclass, mode, site), lock):
                if len(self._chains) >= _MAX_CHAINS:
                    self._chains.clear()
                self._chains.add(chain)
        return site

    def trylock(self, task: Task, lock: Lock, mode: Mode, subclass: int = 0) -> Site:
        """Note a trylock: it can't wait, so nothing leads to it; once it succeeded, it is held all the same.

        Trying again without having released what was held the first time is waiting in another form, and is taken as that.
        """
        tried = task.tried.pop(lock, ()) if task.tried else ()
        if any(one is other for one in tried for other in task.held):
            return self.before(task, lock, mode, subclass)
        return self._site(lock, mode, subclass)

    def failed(self, task: Task, lock: Lock) -> None:
        """Note that a trylock failed, with what was held."""
        still = {other for other, held in task.tried.items() if not any(one is mine for one in held for mine in task.held)}
        for other in still:
            del task.tried[other]
        if task.held:
            task.tried[lock] = tuple(task.held)

    def _site(self, lock: Lock, mode: Mode, subclass: int) -> Site:
        if mode is Mode.WRITE and not subclass:
            return Site(lock.sign)
        if not 0 <= subclass < _SUBCLASSES:
            raise InvalidInput(subclass, f"subclass of {lock.name}", f"a number from 0 to {_SUBCLASSES - 1}")
        return Site(lock.sign + 4 * subclass + _SIGN_OF_MODE[mode])

    def _look(self, task: Task, take: Take, lock: Lock) -> bool:
        # Says whether the classes alone decide, so that the same chain need not be looked at again.
        mine = [held for held in task.held if held.lock.dep is self]
        if take.mode is Mode.WRITE and take.lock_class not in self.graph.written:
            self._note_written(take.lock_class)
        if take.mode is Mode.RECURSIVE_READ and any(one.lock is lock and one.mode is not Mode.WRITE for one in mine):
            return False  # it gets in for certain, so it waits for nobody
        if not mine:
            return True
        situation = _situation(task, mine)
        general = True
        for outer in mine:
            before = Take(outer.lock.name, outer.lock.lock_class, outer.subclass, outer.mode, outer.site)
            edge = Edge(before, take, task.name, *situation)
            if before.key != take.key:
                self._depend(edge)
                continue
            general = False
            why = _recursion(task.name, outer, lock, take)
            if why and take.key not in self.graph.recursions:
                self.graph.recursions[take.key] = edge
                self._report(Report("recursive", Cycle((edge,)), why))
        return general

    def _depend(self, edge: Edge) -> None:
        added = self.graph.add(edge)
        if added is not None:
            self._look_for_cycles(added)

    def _note_written(self, lock_class: str) -> None:
        self.graph.written.add(lock_class)
        for edge in self.graph.edges_from(lock_class):
            self._look_for_cycles(edge)

    def _look_for_cycles(self, edge: Edge) -> None:
        was = self.graph.truncated
        for cycle in self.graph.through(edge):
            classes = cycle.classes
            warned = self._warned.get(classes)
            known = warned is not None and len(cycle.unwritten) >= len(warned.cycle.unwritten)
            if classes in self._reported or known:
                continue
            report = Report("circular", cycle)
            if cycle.unwritten:
                self._warned[classes] = report
                _tell("info", report)
                continue
            self._warned.pop(classes, None)
            self._reported.add(classes)
            self._report(report)
        if self.graph.truncated and not was:
            _tell("warning", "lockdep: there are too many ways from lock to lock; some cycles may not be found")

    def _report(self, report: Report) -> None:
        self.reports.append(report)
        _tell("warning", report)


def _tell(level: str, what: object) -> None:
    if controlled():
        return  # whoever decides who runs hears it from the reports
    import logging  # noqa: PLC0415 - takes longer than all of the locks, and most have nothing to say

    getattr(logging.getLogger("memhp.lockdep"), level)("%s", what)


def _situation(task: Task, held: list[Held]) -> tuple[tuple[str, ...], frozenset[str], frozenset[str]]:
    # What an edge says of all that is held.
    alone = frozenset(one.lock.lock_class for one in held if one.mode is Mode.WRITE)
    shared = frozenset(one.lock.lock_class for one in held) - alone
    return tuple(task.describe_held()), alone, shared


def _recursion(task: str, outer: Held, lock: Lock, take: Take) -> str:
    # Says what is wrong with taking a lock under another one of its class, or nothing.
    if take.mode is Mode.RECURSIVE_READ and outer.mode is not Mode.WRITE:
        return ""
    if outer.lock is lock and take.mode is not Mode.WRITE and outer.mode is not Mode.WRITE:
        return f"The second read of {lock.name} would wait behind a writer that waits for the first."
    if outer.lock is lock:
        return f"{task} would wait for itself."
    if outer.lock.order is None or lock.order is None:
        return f"Nothing says in which order locks of the class {take.key} are taken."
    if outer.lock.order < lock.order:
        return ""
    return f"Locks of the class {take.key} are taken in ascending order: {lock.name} comes before {outer.lock.name}."
