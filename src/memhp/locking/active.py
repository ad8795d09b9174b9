"""The references that keep a device's files usable while they are in use (``fs/kernfs/dir.c``: kernfs_get_active)."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from memhp.locking import switch
from memhp.locking.lockdep import Lockdep
from memhp.locking.switch import Held, Mode, Op, Task, Waiter, drop_held

__all__ = ["ActiveReference"]


class ActiveReference:
    """What a read or write of a device's file holds, and what the removal of the device waits for: ``s_active``.

    Getting one never waits: it fails once the device is going. To lockdep it is a read that was tried for, and draining is a
    write. So whoever waits inside of a file's handler for a lock that a removal holds is found out.
    """

    __slots__ = ("_drainers", "_remover", "_users", "dep", "lock_class", "name", "order", "sign")

    def __init__(self, name: str, dep: Lockdep | None = None, *, lock_class: str | None = None, order: int | None = None) -> None:
        self.name = name
        self.dep = dep
        self.lock_class = lock_class or name
        self.order = order
        self.sign = dep.register(self.lock_class) if dep is not None else 0
        self._remover: Task | None = None
        self._users: list[Task] = []
        self._drainers: collections.deque[Waiter] = collections.deque()

    def __repr__(self) -> str:
        return f"<ActiveReference {self.name} users={len(self._users)}{' going' if self._remover else ''}>"

    def blockers(self, task: Task, op: Op) -> Iterable[Task]:
        """Give the users, to whoever drains them; and who removes the device, to who can't get in any more."""
        if op is Op.WRITE_DRAIN:
            return tuple(self._users)
        return (self._remover,) if op is Op.TRY_READ and self._remover is not None else ()

    def ready(self, task: Task, op: Op) -> bool:
        """Say whether ``op`` would not have to wait."""
        return op is not Op.WRITE_DRAIN or not self._users

    def get(self) -> bool:
        """Use the device's files; False if the device is going or gone."""
        task = switch.current()
        site = self.dep.trylock(task, self, Mode.READ) if self.dep is not None else None
        switch.point(Op.TRY_READ, self)
        with switch.guard:
            if self._remover is not None:
                return False
            self._users.append(task)
        task.held.append(Held(self, Mode.READ, site))
        return True

    def put(self) -> None:
        """Use them no more; every :meth:`get` that succeeded needs it."""
        task = switch.current()
        switch.point(Op.READ_RELEASE, self)
        drop_held(task, self)
        with switch.guard:
            self._users.remove(task)
            while self._drainers and not self._users:
                self._drainers.popleft().wake()

    def drain(self) -> None:
        """Let nobody use them any more, and wait until nobody does (``kernfs_drain``).

        Raises:
            DeadlockError: the wait could never end; they can be used as before.
        """
        task = switch.current()
        if self.dep is not None:
            self.dep.before(task, self, Mode.WRITE)
        try:
            switch.point(Op.WRITE_BLOCK, self)
            with switch.guard:
                self._remover = task
            switch.point(Op.WRITE_DRAIN, self)
            with switch.guard:
                if self._users:
                    waiter = Waiter(task, self, Op.WRITE_DRAIN)
                    switch.park(waiter, self._drainers, abandon=lambda: None, interruptible=False)
        except BaseException:
            with switch.guard:
                self._remover = None
            raise

    def revive(self) -> None:
        """Let them be used again: the removal that drained them has failed."""
        switch.point(Op.WRITE_RELEASE, self)
        with switch.guard:
            self._remover = None
