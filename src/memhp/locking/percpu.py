"""The percpu read-write semaphore: a read side that costs a counter (``kernel/locking/percpu-rwsem.c``).

Each task counts its own reads in a cell that nobody else writes. A writer first raises a flag (``block``), which
sends new readers to the slow path, and then waits until the sum of all cells is zero (``drain``).

Why a reader and a writer can't miss each other: under the GIL, bytecodes of all threads have one order; the reader
counts and *then* looks at the flag, the writer raises the flag and *then* looks at the counts, so at least one of them
sees the other. Without the GIL that order is not promised, so there the count and the look are made under the cell's
own small lock, and the writer takes the same lock to read the cell: whichever section comes second sees the first.
"""

from __future__ import annotations

import collections
import sys
import threading
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, cast

from memhp.errors import DeadlockError, LockError
from memhp.locking import switch
from memhp.locking.lockdep import Lockdep
from memhp.locking.switch import Held, Mode, Op, Task, Waiter, drop_held

__all__ = ["PercpuRwSemaphore", "ReadCell"]


# Below so many cells nobody minds those of threads that have ended.
_FEW_CELLS = 8


def gil_enabled() -> bool:
    """Say whether this interpreter runs with the GIL."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


class ReadCell:
    """One task's count of one semaphore's reads."""

    __slots__ = ("__weakref__", "count", "lock", "lock_name", "task")

    def __init__(self, task: Task, lock_name: str) -> None:
        self.task = task
        self.lock_name = lock_name
        self.count = 0
        self.lock = threading.Lock()


class _Local(Protocol):
    cell: ReadCell


class PercpuRwSemaphore:
    """Many readers or one writer; reading is cheap, writing waits for every reader and stops new ones.

    A pending writer is never starved: readers that come after it wait for it. For that reason a task that reads may
    not read again while a writer waits; that would be a deadlock, and is a :class:`DeadlockError`.
    ``with rwsem.read:`` and ``with rwsem.write:`` take and release.
    """

    def __init__(
        self,
        name: str,
        dep: Lockdep | None = None,
        *,
        lock_class: str | None = None,
        order: int | None = None,
        gil: bool | None = None,
    ) -> None:
        if getattr(self, "writer", None) is not None or (hasattr(self, "_cells") and self.readers()):
            raise LockError(f"{name} is made anew while it is held", self)
        self.name = name
        self.lock_class = lock_class or name
        self.order = order
        self.dep = dep
        self.sign = dep.register(self.lock_class) if dep is not None else 0
        self.writer: Task | None = None
        """The task that writes, or has stopped new readers in order to write."""
        # Only an exact threading.local has the interpreter's short path to its attributes.
        self.local = cast("_Local", threading.local())
        self._watched = dep is not None or switch.controlled()
        self._draining: Waiter | None = None
        self._queue: collections.deque[Waiter] = collections.deque()
        self._cells: list[ReadCell] = []
        self._prune_at = _FEW_CELLS
        side = WatchedReadSide if self._watched else ReadSide if (gil_enabled() if gil is None else gil) else LockedReadSide
        self.read = side(self)
        self.write = WriteSide(self)

    def __repr__(self) -> str:
        return f"<PercpuRwSemaphore {self.name} readers={self.readers()} writer={self.writer}>"

    # -- what a scheduler and the search for cycles ask

    def blockers(self, task: Task, op: Op) -> Iterable[Task]:
        """Give the writer, and to a writer that drains the readers."""
        if op is Op.WRITE_DRAIN:
            return [cell.task for cell in self._cells if cell.count]
        return () if self.writer is None else (self.writer,)

    def ready(self, task: Task, op: Op) -> bool:
        """Say whether ``op`` would not have to wait."""
        if op is Op.READ_ACQUIRE or op is Op.WRITE_BLOCK:
            return self.writer is None
        return op is not Op.WRITE_DRAIN or not self.readers()

    def readers(self) -> int:
        """Count the read holds of all tasks; exact only while a writer keeps new ones out."""
        total = 0
        for cell in list(self._cells):
            with cell.lock:
                total += cell.count
        return total

    def held(self, mode: Mode = Mode.WRITE) -> bool:
        """Say whether the calling task holds it in ``mode``; who writes may also read what it protects."""
        if self.writer is not None and self.writer is switch.current():
            return True
        return mode is Mode.READ and self.cell().count > 0

    # -- the read side: explicit calls, and the slow path

    def read_acquire(self) -> None:
        """Read, waiting while a writer is there (``percpu_down_read``); every acquire needs its release.

        Raises:
            DeadlockError: the caller reads already while a writer waits for it, or writes itself.
        """
        self.read.__enter__()

    def try_read(self) -> bool:
        """Read if no writer is there or waits; never waits (``percpu_down_read_trylock``). A success needs its release."""
        cell = self.cell()
        task = switch.current()
        switch.point(Op.TRY_READ, self)
        with switch.guard:
            if self.writer is not None:
                return False
            with cell.lock:
                cell.count += 1
        if self._watched:
            site = self.dep.trylock(task, self, Mode.READ) if self.dep is not None else None
            task.held.append(Held(self, Mode.READ, site))
        return True

    def read_release(self) -> None:
        """End one read of the calling task.

        Raises:
            LockError: the calling task does not read.
        """
        if self.cell().count <= 0:
            raise LockError(f"{switch.current().name} releases {self.name} (read), which it does not hold", self)
        self.read.__exit__(None, None, None)

    def cell(self) -> ReadCell:
        """Give the calling task's cell."""
        if not switch.controlled():
            try:
                return self.local.cell
            except AttributeError:
                pass
        task = switch.current()
        with switch.guard:
            for cell in self._cells:
                if cell.task is task:
                    return cell
            cell = ReadCell(task, self.name)
            self._cells.append(cell)
            if len(self._cells) > self._prune_at:
                self._prune()
                self._prune_at = 2 * len(self._cells) + _FEW_CELLS
        if task.cells is None:
            task.cells = weakref.WeakSet()
        task.cells.add(cell)
        if not switch.controlled():
            self.local.cell = cell
        return cell

    def read_slow(self, cell: ReadCell) -> None:
        """Acquire for reading in the presence of a writer or a watcher."""
        task = cell.task
        site = self.dep.before(task, self, Mode.READ) if self.dep is not None else None
        switch.point(Op.READ_ACQUIRE, self)
        with switch.guard:
            if self.writer is None:
                with cell.lock:
                    cell.count += 1
            else:
                waiter = Waiter(task, self, Op.READ_ACQUIRE)
                switch.park(waiter, self._queue, abandon=lambda: self._uncount(cell))
        if self._watched:
            task.held.append(Held(self, Mode.READ, site))

    def turn_back(self, cell: ReadCell) -> None:
        """Undo a fast acquisition that met a writer, and wait as it should have."""
        with switch.guard:
            self._uncount(cell)
        self.read_slow(cell)

    def left(self) -> None:
        """See after a release whether a writer waits for it."""
        with switch.guard:
            self._wake_writer()

    def _uncount(self, cell: ReadCell) -> None:
        with cell.lock:
            cell.count -= 1
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._draining is not None and not self.readers():
            waiter, self._draining = self._draining, None
            waiter.wake()

    # -- the write side

    def write_acquire(self) -> None:
        """Stop new readers, then wait until those inside have left.

        Raises:
            DeadlockError: the caller reads or writes already, or a cycle of waits would close.
        """
        task = switch.current()
        site = self.dep.before(task, self, Mode.WRITE) if self.dep is not None else None
        if self.cell().count:
            raise DeadlockError(f"{task.name} would write {self.name}, which it reads, and wait for itself for ever", self)
        switch.point(Op.WRITE_BLOCK, self)
        with switch.guard:
            if self.writer is None:
                self.writer = task
                self.read.slow = True
            else:
                switch.park(Waiter(task, self, Op.WRITE_BLOCK), self._queue, abandon=self._let_in)
        try:
            switch.point(Op.WRITE_DRAIN, self)
            with switch.guard:
                self._prune()
                if self.readers():
                    self._drain(task)
        except BaseException:
            with switch.guard:
                self._let_in()
            raise
        task.held.append(Held(self, Mode.WRITE, site))

    def _drain(self, task: Task) -> None:
        # The one slot is offered as a queue so that parking has one form.
        slot: collections.deque[Waiter] = collections.deque()
        waiter = Waiter(task, self, Op.WRITE_DRAIN)
        self._draining = waiter
        try:
            switch.park(waiter, slot, abandon=lambda: None)
        except BaseException:
            self._draining = None
            raise

    def write_release(self) -> None:
        """Let readers in again, and then the next writer: who came first goes first.

        Raises:
            LockError: the calling task does not write.
        """
        task = switch.current()
        if self.writer is not task:
            raise LockError(f"{task.name} releases {self.name} (write), which it does not hold", self)
        switch.point(Op.WRITE_RELEASE, self)
        drop_held(task, self)
        with switch.guard:
            self._let_in()

    def _let_in(self) -> None:
        # Everybody who waits to read goes in, also those behind a waiting writer: a batch each time the lock is free
        # starves neither side.
        self.writer = None
        writers: collections.deque[Waiter] = collections.deque()
        while self._queue:
            waiter = self._queue.popleft()
            if waiter.op is Op.WRITE_BLOCK:
                writers.append(waiter)
                continue
            cell = next(cell for cell in self._cells if cell.task is waiter.task)
            with cell.lock:
                cell.count += 1
            waiter.wake()
        self._queue = writers
        if writers:
            self.writer = writers[0].task
            writers.popleft().wake()
        else:
            self.read.slow = False

    def _prune(self) -> None:
        # A reader that ended while it held stays: the search for endless waits will name it.
        self._cells = [cell for cell in self._cells if cell.count or cell.task.alive]


class ReadSide:
    """``with rwsem.read:`` where the GIL orders the count before the look at the flag."""

    __slots__ = ("_local", "_rwsem", "slow")

    def __init__(self, rwsem: PercpuRwSemaphore) -> None:
        self._rwsem = rwsem
        self._local = rwsem.local
        self.slow = False
        """Whether a writer is there, so that readers must take the slow path."""

    def __enter__(self) -> None:
        try:
            cell = self._local.cell
        except AttributeError:
            cell = self._rwsem.cell()
        cell.count += 1
        if self.slow:
            self._rwsem.turn_back(cell)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._local.cell.count -= 1
        if self.slow:
            self._rwsem.left()


class LockedReadSide(ReadSide):
    """``with rwsem.read:`` where only a lock orders anything: the cell's own, which nobody contends for."""

    __slots__ = ()

    def __enter__(self) -> None:
        try:
            cell = self._local.cell
        except AttributeError:
            cell = self._rwsem.cell()
        with cell.lock:
            if not self.slow:
                cell.count += 1
                return
        self._rwsem.read_slow(cell)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        cell = self._local.cell
        with cell.lock:
            cell.count -= 1
            slow = self.slow
        if slow:
            self._rwsem.left()


class WatchedReadSide(ReadSide):
    """``with rwsem.read:`` where lockdep or a scheduler sees each operation."""

    __slots__ = ()

    def __enter__(self) -> None:
        self._rwsem.read_slow(self._rwsem.cell())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        rwsem = self._rwsem
        cell = rwsem.cell()
        switch.point(Op.READ_RELEASE, rwsem)
        drop_held(cell.task, rwsem)
        with cell.lock:
            cell.count -= 1
        rwsem.left()


class WriteSide:
    """``with rwsem.write:``."""

    __slots__ = ("_rwsem",)

    def __init__(self, rwsem: PercpuRwSemaphore) -> None:
        self._rwsem = rwsem

    def __enter__(self) -> None:
        self._rwsem.write_acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._rwsem.write_release()
