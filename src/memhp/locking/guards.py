"""Lock rules as code: a function that needs a lock says so, and refuses to run without it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from memhp.errors import LockNotHeld
from memhp.locking import switch
from memhp.locking.switch import Mode

__all__ = ["Guardable", "requires"]

P = ParamSpec("P")
R = TypeVar("R")
Owner = TypeVar("Owner", bound="HasLocks")


class Guardable(Protocol):
    """A lock that can say whether the calling task holds it."""

    name: str

    def held(self, mode: Mode = ...) -> bool:
        """Say whether the calling task holds it in ``mode``."""


class HasLocks(Protocol):
    """The first argument of a guarded function: it names its locks."""

    def lock_named(self, name: str) -> Guardable:
        """Give the lock of that name."""


def requires(
    name: str, mode: Mode = Mode.WRITE
) -> Callable[[Callable[Concatenate[Owner, P], R]], Callable[Concatenate[Owner, P], R]]:
    """Guard a function whose first argument owns the locks: the caller must hold ``name`` in ``mode``.

    The wrapped function raises :class:`~memhp.errors.LockNotHeld`, with what is needed and what is held, before it does
    anything.
    """

    def guard(function: Callable[Concatenate[Owner, P], R]) -> Callable[Concatenate[Owner, P], R]:
        @functools.wraps(function)
        def guarded(owner: Owner, /, *args: P.args, **kwargs: P.kwargs) -> R:
            lock = owner.lock_named(name)
            if not lock.held(mode):
                needed = f"{lock.name} ({mode.value})"
                raise LockNotHeld(f"{function.__name__}()", lock, needed, switch.current().describe_held())
            return function(owner, *args, **kwargs)

        return guarded

    return guard
