"""The switch point: every acquire, release and wait of every memhp lock passes here.

Two things stand behind it. Normally tasks are threads: :func:`point` costs one ``if``, and a task that must wait is
parked by :func:`park`. Under a controlled scheduler (:func:`control`) each operation is announced before it is
performed, and ``Driver.point`` returns when the scheduler lets the task perform it; then no task ever parks.

All blocking state of all locks (owners, queues, who waits for what) is guarded by one raw lock, :data:`guard`, held
for moments only. That makes the search for a cycle of waits exact: no wait begins or ends while it looks. The cheap
read side of a percpu rwsem stays outside of it.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from memhp.errors import DeadlockError

if TYPE_CHECKING:
    from memhp.locking.lockdep import Lockdep
    from memhp.locking.lockgraph import Site
    from memhp.locking.percpu import ReadCell

__all__ = [
    "Driver",
    "Held",
    "Mode",
    "Op",
    "Task",
    "Waitable",
    "control",
    "current",
    "drop_held",
    "ending_request",
    "guard",
    "park",
    "point",
    "task_of",
]

# Seconds between two looks at whether the tasks waited for still live. Only a task that is parked pays for it.
_LIVENESS_INTERVAL = 1.0


class Mode(enum.Enum):
    """How a lock is held."""

    WRITE = "write"
    READ = "read"
    RECURSIVE_READ = "recursive read"
    """A read that gets in past writers that wait, so one may nest in another."""


class Op(enum.Enum):
    """The operations that a scheduler can order."""

    __hash__ = object.__hash__  # enum's own hashes the name, in Python

    ACQUIRE = "acquire"
    TRY_ACQUIRE = "try acquire"
    TRY_READ = "try to read"
    RELEASE = "release"
    AWAIT_FREE = "await free"
    READ_ACQUIRE = "read acquire"
    READ_RELEASE = "read release"
    WRITE_BLOCK = "block new readers"
    WRITE_DRAIN = "wait for readers"
    WRITE_RELEASE = "write release"
    WAIT = "wait"
    SLEEP = "sleep"
    WAKE = "wake"
    READ = "read"
    WRITE = "write"
    SWAP = "compare and swap"


class Lock(Protocol):
    """What a task can hold."""

    name: str
    lock_class: str
    """Its class, to lockdep: locks with one role share it."""
    order: int | None
    """Its place among the locks of its class, if they may nest: in ascending order."""
    sign: int
    """Its class as a number, from lockdep; 0 without."""

    @property
    def dep(self) -> Lockdep | None:
        """The lockdep that watches it."""


class Held(NamedTuple):
    """One lock that a task holds; ``site`` is where it was taken, kept only while lockdep is on."""

    lock: Lock
    mode: Mode
    site: Site | None
    subclass: int = 0

    def __str__(self) -> str:
        return self.lock.name if self.mode is Mode.WRITE else f"{self.lock.name} ({self.mode.value})"


class Waitable(Protocol):
    """What a task can wait for."""

    name: str

    def blockers(self, task: Task, op: Op) -> Iterable[Task]:
        """Give the tasks that must act before ``task`` can perform ``op``; none if that can't be known."""

    def ready(self, task: Task, op: Op) -> bool:
        """Say whether ``task`` could perform ``op`` now without waiting."""


class Task:
    """A thread (or a scheduler's coroutine) as the locks know it."""

    __slots__ = (
        *("__weakref__", "cells", "deferred", "held", "name", "on_park", "requests", "signals", "thread", "tried", "waiting"),
    )

    def __init__(self, name: str, thread: threading.Thread | None = None) -> None:
        self.name = name
        self.thread = thread
        self.held: list[Held] = []
        """What it holds, outermost first; reads of a percpu rwsem that nobody watches are in ``cells``."""
        self.cells: weakref.WeakSet[ReadCell] | None = None
        """Made when it first reads a percpu rwsem: an explorer makes tasks by the million."""
        self.tried: dict[Lock, tuple[Held, ...]] = {}
        """Locks that it tried to take and did not get, with what it held then; kept only while lockdep is on."""
        self.waiting: Waiter | None = None
        """What it is parked on. Set and cleared under the guard, cleared by the one who wakes it."""
        self.signals = 0
        """Pending signals; only an interruptible wait looks at them."""
        self.on_park: Callable[[Task], None] | None = None
        """Called under the guard each time that the task parks."""
        self.deferred: BaseException | None = None
        """An interrupt that arrived where a change could no longer fail; raised when the change is complete."""
        self.requests = 0
        """How many requests, one made by the other, it is in the middle of."""

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    @property
    def alive(self) -> bool:
        """Whether its thread can still act."""
        return self.thread is None or self.thread.is_alive()

    def describe_held(self) -> list[str]:
        """Name the locks that it holds, outermost first, with ``(read)`` where that is the mode.

        Without lockdep nobody notes when a percpu rwsem was taken for reading; these come last.
        """
        slow = [str(held) for held in self.held]
        fast = [f"{cell.lock_name} (read)" for cell in list(self.cells or ()) if cell.count]
        return [*slow, *(name for name in fast if name not in slow)]


def drop_held(task: Task, lock: object) -> bool:
    """Take the newest hold of ``lock`` off the task's list; False if there is none."""
    held = task.held
    for index in range(len(held) - 1, -1, -1):
        if held[index].lock is lock:
            del held[index]
            return True
    return False


class Waiter:
    """One task's place in a queue."""

    __slots__ = ("_gate", "lock", "op", "task", "woken")

    def __init__(self, task: Task, lock: Waitable, op: Op) -> None:
        self.task = task
        self.lock = lock
        self.op = op
        self.woken = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def wake(self) -> None:
        """Let the task run on. Called under the guard, once."""
        self.woken = True
        self.task.waiting = None
        self._gate.release()

    def wait(self) -> bool:
        """Wait for :meth:`wake`; False when it is time to look whether it can still come."""
        return self._gate.acquire(timeout=_LIVENESS_INTERVAL)


class Driver(Protocol):
    """A controlled scheduler; exactly one task runs at a time, and it decides which."""

    def current(self) -> Task:
        """Give the task that runs now."""

    def point(self, op: Op, lock: Waitable) -> None:
        """Announce ``op``; return when the task may perform it (then ``lock.ready(task, op)`` holds)."""


guard = threading.RLock()
"""Guards the blocking state of every lock, for moments. Reentrant only so that it can be asked whether it is owned."""

_driver: Driver | None = None
_local = threading.local()
_tasks: weakref.WeakKeyDictionary[threading.Thread, Task] = weakref.WeakKeyDictionary()
_tasks_lock = threading.Lock()


def current() -> Task:
    """Give the task that runs now; a thread becomes a task the first time that it asks."""
    if _driver is not None:
        return _driver.current()
    try:
        task: Task = _local.task
    except AttributeError:
        task = _local.task = task_of(threading.current_thread())
    return task


@contextlib.contextmanager
def ending_request() -> Iterator[None]:
    """At the end of a request, raise the interrupt that had to wait for it, in place of the request's own error if it failed.

    A request that is made of others ends when the outermost one does, so that none of its steps is taken for a failure.
    """
    task = current()
    task.requests += 1
    try:
        yield
    except BaseException as error:
        interrupt = _end_request(task)
        if interrupt is not None and interrupt is not error:
            raise interrupt from error
        raise
    interrupt = _end_request(task)
    if interrupt is not None:
        raise interrupt


def _end_request(task: Task) -> BaseException | None:
    task.requests -= 1
    if task.requests:
        return None
    interrupt, task.deferred = task.deferred, None
    return interrupt


def task_of(thread: threading.Thread) -> Task:
    """Give the task that a thread is, or will be once it uses a lock."""
    with _tasks_lock:
        return _tasks.setdefault(thread, Task(thread.name, thread))


def point(op: Op, lock: Waitable) -> None:
    """Announce an operation to the controlled scheduler, if there is one."""
    if _driver is not None:
        _driver.point(op, lock)


def controlled() -> bool:
    """Say whether a controlled scheduler decides who runs."""
    return _driver is not None


@contextlib.contextmanager
def control(driver: Driver) -> Iterator[None]:
    """Put a controlled scheduler behind the switch point; make the locks that it should see inside."""
    global _driver  # noqa: PLW0603 - the one switch
    if _driver is not None:
        raise RuntimeError("a controlled scheduler is at work already")
    _driver = driver
    try:
        yield
    finally:
        _driver = None


def park(waiter: Waiter, queue: collections.deque[Waiter], *, abandon: Callable[[], None], interruptible: bool = True) -> None:
    """Wait until somebody wakes the waiter. Called with the guard held; returns with it held.

    Args:
        waiter: not yet in ``queue``; the waker takes it out and calls ``wake()``.
        queue: where the waker looks for it.
        abandon: gives back what was granted, when an exception (Ctrl-C) arrives after the grant.
        interruptible: whether Ctrl-C ends the wait; else the end of the request raises it.

    Raises:
        DeadlockError: the wait can never end. The waiter is out of the queue then.
    """
    if _driver is not None:
        raise RuntimeError(f"{waiter.task.name} would block in {waiter.op.value} of {waiter.lock.name} under a scheduler")
    _refuse_endless(waiter)
    queue.append(waiter)
    waiter.task.waiting = waiter
    if waiter.task.on_park is not None:
        waiter.task.on_park(waiter.task)
    try:
        while not waiter.woken:
            guard.release()
            woken = True
            try:
                try:
                    woken = waiter.wait()
                finally:
                    _take_guard_again()
            except Exception:
                raise
            except BaseException as interrupt:
                if interruptible:
                    raise
                waiter.task.deferred = interrupt
            # The grant may have come between the look at the clock and the guard.
            if not woken and not waiter.woken:
                _refuse_endless(waiter)
    except BaseException:
        if waiter.woken:
            abandon()
        else:
            queue.remove(waiter)
            waiter.task.waiting = None
        raise


def _take_guard_again() -> None:
    # Whoever called park() releases the guard, so an interrupt must not arrive before it is held again.
    interrupt: BaseException | None = None
    while True:
        try:
            guard.acquire()
            break
        except BaseException as error:
            interrupt = error
            # The interrupt may have come right behind the success.
            if guard._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - what threading.Condition asks too
                break
    if interrupt is not None:
        raise interrupt


def _refuse_endless(waiter: Waiter) -> None:
    # Depth-first over "must act before": every edge is an AND (a lock is free only when all its blockers have let go),
    # so any path back to this task, or to a task that is no more, is a wait without end.
    lines: list[str] = []
    seen: set[Task] = set()

    def endless(lock: Waitable, op: Op, who: Task) -> bool:
        for blocker in lock.blockers(who, op):
            line = f"{who.name} waits for {lock.name} ({op.value}), held by {blocker.name}"
            if blocker is waiter.task:
                lines.append(line)
                return True
            if not blocker.alive:
                lines.append(f"{line}, whose thread has ended")
                return True
            if blocker in seen:
                continue
            seen.add(blocker)
            further = blocker.waiting
            if further is not None and endless(further.lock, further.op, blocker):
                lines.append(line)
                return True
        return False

    if endless(waiter.lock, waiter.op, waiter.task):
        held = ", ".join(waiter.task.describe_held()) or "nothing"
        raise DeadlockError(
            f"{waiter.task.name} would wait for {waiter.lock.name} for ever; it holds {held}", waiter.lock, lines[::-1]
        )
