"""A lock for lockdep only: it stands for whatever else a task can wait for (``struct lockdep_map``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from memhp.errors import LockError
from memhp.locking import switch
from memhp.locking.lockdep import Lockdep
from memhp.locking.switch import Held, Mode, Task, drop_held

__all__ = ["LockMap"]


class LockMap:
    """Something that is waited for like a lock, but isn't one: the end of a job, an answer, a device's last user.

    Who works on it holds the map, who waits for it takes it and gives it back; lockdep then sees both. It never waits
    itself. Without lockdep it does nothing but check that what is released was held.

    Args:
        name: what reports call it.
        dep: lockdep.
        lock_class: its class; the name if not given.
        order: its place among the locks of its class, which are taken in ascending order.
    """

    __slots__ = ("dep", "holders", "lock_class", "name", "order", "sign")

    def __init__(self, name: str, dep: Lockdep | None = None, *, lock_class: str | None = None, order: int | None = None) -> None:
        if getattr(self, "holders", 0):
            raise LockError(f"{name} is made anew while it is held", self)
        self.holders = 0
        self.name = name
        self.dep = dep
        self.lock_class = lock_class or name
        self.order = order
        self.sign = dep.register(self.lock_class) if dep is not None else 0

    def __repr__(self) -> str:
        return f"<LockMap {self.name}>"

    def acquire(self, mode: Mode = Mode.WRITE, *, subclass: int = 0) -> None:
        """Hold it, where one might have to wait for it (``lock_map_acquire``, ``lock_map_acquire_read``)."""
        task = switch.current()
        site = self.dep.before(task, self, mode, subclass) if self.dep is not None else None
        self._hold(task, Held(self, mode, site, subclass))

    def try_acquire(self, mode: Mode = Mode.WRITE, *, subclass: int = 0) -> bool:
        """Hold it, where one does not wait for it (``lock_map_acquire_tryread``); always succeeds."""
        task = switch.current()
        site = self.dep.trylock(task, self, mode, subclass) if self.dep is not None else None
        self._hold(task, Held(self, mode, site, subclass))
        return True

    def _hold(self, task: Task, held: Held) -> None:
        with switch.guard:
            self.holders += 1
        task.held.append(held)

    def release(self) -> None:
        """Hold it no more.

        Raises:
            LockError: the calling task does not hold it.
        """
        task = switch.current()
        if not drop_held(task, self):
            raise LockError(f"{task.name} releases {self.name}, which it does not hold", self)
        with switch.guard:
            self.holders -= 1

    @contextlib.contextmanager
    def holding(self, mode: Mode = Mode.WRITE, *, subclass: int = 0) -> Iterator[None]:
        """Hold it in a ``with`` block."""
        self.acquire(mode, subclass=subclass)
        try:
            yield
        finally:
            self.release()
