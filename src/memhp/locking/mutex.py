"""A mutex with an owner (``kernel/locking/mutex.c``), and a queue to wait in for anything else."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from memhp.errors import LockError
from memhp.locking import switch
from memhp.locking.lockdep import Lockdep
from memhp.locking.switch import Held, Mode, Op, Task, Waiter, drop_held

__all__ = ["Mutex", "WaitQueue"]


class Mutex:
    """A sleeping lock for one task at a time; waiters get it in the order in which they came.

    Not recursive: taking it twice is a :class:`DeadlockError` at once, and so is any wait that could never end.
    ``with mutex:`` takes and releases.

    Args:
        name: what messages call it.
        dep: lockdep, if it is to be watched.
        lock_class: what lockdep takes it for; the name if not given.
        order: its place among the locks of its class; these may be taken one under another, in ascending order.
        interruptible: whether Ctrl-C ends a wait for it.

    Raises:
        LockError: made anew (``__init__`` called again) while the caller holds it.
    """

    __slots__ = ("_free", "_queue", "dep", "interruptible", "lock_class", "name", "order", "owner", "sign")

    def __init__(
        self,
        name: str,
        dep: Lockdep | None = None,
        *,
        lock_class: str | None = None,
        order: int | None = None,
        interruptible: bool = True,
    ) -> None:
        owner: Task | None = getattr(self, "owner", None)
        if owner is not None:
            raise LockError(f"{name} is made anew while {owner.name} holds it", self)
        self.name = name
        self.interruptible = interruptible
        self.lock_class = lock_class or name
        self.order = order
        self.dep = dep
        self.sign = dep.register(self.lock_class) if dep is not None else 0
        self.owner: Task | None = None
        # Made when somebody first waits: most device locks never see a second task.
        self._queue: collections.deque[Waiter] | None = None
        self._free: collections.deque[Waiter] | None = None

    def __repr__(self) -> str:
        return f"<Mutex {self.name} {f'held by {self.owner.name}' if self.owner else 'free'}>"

    def blockers(self, task: Task, op: Op) -> Iterable[Task]:
        """Give the owner, if there is one."""
        return () if self.owner is None else (self.owner,)

    def ready(self, task: Task, op: Op) -> bool:
        """Say whether ``op`` would not have to wait."""
        return op is Op.RELEASE or op is Op.TRY_ACQUIRE or self.owner is None

    def held(self, mode: Mode = Mode.WRITE) -> bool:
        """Say whether the calling task holds it."""
        return self.owner is switch.current()

    def acquire(self, *, subclass: int = 0) -> None:
        """Take it, waiting as long as that takes.

        Args:
            subclass: the nesting level, 0 to 7, where locks of one class nest by design (``mutex_lock_nested``).

        Raises:
            DeadlockError: the wait could never end (the caller holds it, or a cycle of waits would close).
        """
        task = switch.current()
        site = self.dep.before(task, self, Mode.WRITE, subclass) if self.dep is not None else None
        switch.point(Op.ACQUIRE, self)
        with switch.guard:
            if self.owner is None:
                self.owner = task
            else:
                if self._queue is None:
                    self._queue = collections.deque()
                switch.park(Waiter(task, self, Op.ACQUIRE), self._queue, abandon=self._pass_on, interruptible=self.interruptible)
        task.held.append(Held(self, Mode.WRITE, site, subclass))

    @contextlib.contextmanager
    def nested(self, subclass: int) -> Iterator[None]:
        """Take and release it at a nesting level: ``with child.nested(1):`` inside of ``with parent:``."""
        self.acquire(subclass=subclass)
        try:
            yield
        finally:
            self.release()

    def try_acquire(self) -> bool:
        """Take it if it is free; never waits, and so adds no order that could deadlock."""
        task = switch.current()
        site = self.dep.trylock(task, self, Mode.WRITE) if self.dep is not None else None
        switch.point(Op.TRY_ACQUIRE, self)
        with switch.guard:
            got = self.owner is None
            if got:
                self.owner = task
        if got:
            task.held.append(Held(self, Mode.WRITE, site))
        elif self.dep is not None:
            self.dep.failed(task, self)
        return got

    def await_free(self) -> None:
        """Wait until nobody holds it, without taking it: the pause of a call that restarts after a failed trylock.

        To lockdep it is a wait like any other: who holds something meanwhile might as well have waited for the lock.

        Raises:
            DeadlockError: it could never become free for the caller.
        """
        task = switch.current()
        if self.dep is not None:
            self.dep.before(task, self, Mode.WRITE)
        switch.point(Op.AWAIT_FREE, self)
        with switch.guard:
            if self.owner is None:
                return
            if self._free is None:
                self._free = collections.deque()
            switch.park(Waiter(task, self, Op.AWAIT_FREE), self._free, abandon=lambda: None)

    def release(self) -> None:
        """Give it back, to the first waiter if there is one.

        Raises:
            LockError: the calling task does not hold it.
        """
        task = switch.current()
        if self.owner is not task:
            holder = f"{self.owner.name} does" if self.owner else "nobody does"
            raise LockError(f"{task.name} releases {self.name}, which it does not hold ({holder})", self)
        switch.point(Op.RELEASE, self)
        drop_held(task, self)
        with switch.guard:
            self._pass_on()

    def _pass_on(self) -> None:
        if self._queue:
            waiter = self._queue.popleft()
            self.owner = waiter.task
            waiter.wake()
            return
        self.owner = None
        while self._free:
            self._free.popleft().wake()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class WaitQueue:
    """Tasks that wait for a condition which somebody else will make true (``wait_event``, ``wake_up``).

    Nobody owns it, so a wait in it is never called endless; the signal of the waiting task ends it.
    """

    __slots__ = ("_asleep", "_queue", "name", "wakes")

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: collections.deque[Waiter] = collections.deque()
        self._asleep: set[Task] = set()
        """Who waits under a scheduler."""
        self.wakes = 0
        """How often it was woken."""

    def look(self) -> int:
        """Give how often it was woken so far: who then waits until :attr:`wakes` is another number misses no wake-up."""
        switch.point(Op.WAIT, self)
        return self.wakes

    def blockers(self, task: Task, op: Op) -> Iterable[Task]:
        """Give nobody: who will wake a queue can't be known."""
        return ()

    def ready(self, task: Task, op: Op) -> bool:
        """Say whether ``task`` was woken, if it sleeps; looking and waking never wait."""
        return op is not Op.SLEEP or task not in self._asleep

    def wait_interruptible(self, condition: Callable[[], bool]) -> bool:
        """Wait until ``condition()`` holds; False if a signal is pending instead (``wait_event_interruptible``).

        The condition is asked under the guard: it must be quick and take no lock.
        """
        task = switch.current()
        if switch.controlled():
            return self._wait_under_scheduler(task, condition)
        with switch.guard:
            while not condition():
                if task.signals:
                    return False
                switch.park(Waiter(task, self, Op.WAIT), self._queue, abandon=lambda: None)
        return True

    def _wait_under_scheduler(self, task: Task, condition: Callable[[], bool]) -> bool:
        # As the kernel does it: queue up, look, and only then sleep, so that a wake-up in between is not lost.
        op = Op.WAIT
        while True:
            switch.point(op, self)
            self._asleep.add(task)
            held = condition()
            if held or task.signals:
                self._asleep.discard(task)
                return held
            op = Op.SLEEP

    def wake_up(self) -> None:
        """Let every waiter look at its condition again."""
        switch.point(Op.WAKE, self)
        with switch.guard:
            self.wakes += 1
            self._asleep.clear()
            while self._queue:
                self._queue.popleft().wake()

    def signal(self, task: Task) -> None:
        """Make a signal pending for ``task`` and wake it if it waits here."""
        with switch.guard:
            task.signals += 1
        switch.point(Op.WAKE, self)
        with switch.guard:
            self._asleep.clear()
            waiter = task.waiting
            if waiter is not None and waiter in self._queue:
                self._queue.remove(waiter)
                waiter.wake()
