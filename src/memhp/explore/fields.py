"""Fields that threads share, and the locks that guard them: found out, not believed.

A field that one lock always guards needs no steps of its own: the steps of the lock order every access. So each access of
each execution is watched as Eraser does it (Savage and others, 1997): the locks held at all of them are intersected. When
nothing is left, the field becomes a shared variable, each access to it a step, and the search begins anew. The search that
ends without such a surprise has seen every access guarded or ordered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from memhp.explore.execution import Execution
from memhp.locking.switch import Mode

__all__ = ["Declared", "Guards", "declare", "installed"]


@dataclass(frozen=True, slots=True)
class Declared:
    """A field that threads may share.

    Attributes:
        owner: the class that has it.
        name: of the attribute.
        label: names one object of the class, the same way in every execution.
        container: whether it is changed in place, so that whoever gets it may be about to write.
    """

    owner: type
    name: str
    label: Callable[[Any], str]
    container: bool = False

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.name}"


class _Use:
    # What is known of the accesses to one field of one object, in all executions.
    __slots__ = ("locks", "tasks", "written")

    def __init__(self) -> None:
        self.locks: set[str] | None = None
        self.tasks: set[str] = set()
        self.written = False


class Guards:
    """Which declared fields are shared variables, and what guards the others.

    Attributes:
        shared: positions, in the table, of the fields that are shared variables.
        found: positions of those of which an access showed that no lock guards them.
    """

    def __init__(self, table: Sequence[Declared], shared: frozenset[int]) -> None:
        self.table = tuple(table)
        self.shared = shared
        self.found: set[int] = set()
        self.observed: dict[str, set[str]] = {}
        """Of each field that an invariant read, the names of the locks at whose release it did."""
        self._uses: dict[str, _Use] = {}

    def note(self, position: int, key: str, execution: Execution, *, write: bool) -> None:
        """Take note of one access by the task that runs."""
        use = self._uses.get(key)
        if use is None:
            use = self._uses[key] = _Use()
        held = execution.held()
        locks = {one.lock.name for one in held if one.mode is Mode.WRITE or not write}
        use.locks = locks if use.locks is None else use.locks & locks
        use.tasks.add(execution.current().name)
        use.written |= write
        if not use.locks and use.written and len(use.tasks) > 1:
            self.found.add(position)

    def unguarded(self) -> list[str]:
        """Name the fields that an invariant read at the release of a lock that doesn't guard them."""
        bad = []
        for key, locks in self.observed.items():
            use = self._uses.get(key)
            if use is not None and use.written and not locks <= (use.locks or set()):
                bad.append(f"{key} (guarded by {' and '.join(sorted(use.locks or ())) or 'nothing'})")
        return bad


class _Watched:
    # The descriptor that stands in place of a declared field while something is explored.

    def __init__(self, declared: Declared, position: int, inner: Any) -> None:
        self._declared = declared
        self._position = position
        self._inner = inner
        self._name = declared.name
        self._suffix = f".{declared.name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        self._touch(instance, write=self._declared.container)
        if hasattr(self._inner, "__set__"):
            return self._inner.__get__(instance, owner)
        try:
            return instance.__dict__[self._name]
        except KeyError:
            if self._inner is None:
                raise AttributeError(self._name) from None
            return self._inner  # the default that stands in the class

    def __set__(self, instance: Any, value: Any) -> None:
        self._touch(instance, write=True)
        if hasattr(self._inner, "__set__"):
            self._inner.__set__(instance, value)
        else:
            instance.__dict__[self._name] = value

    def _touch(self, instance: Any, *, write: bool) -> None:
        execution, guards = _at_work
        if execution is None or guards is None or execution.over:
            return
        if execution.running is None:
            if execution.observing is not None:
                key = self._declared.label(instance) + self._suffix
                guards.observed.setdefault(key, set()).add(execution.observing)
            return
        key = self._declared.label(instance) + self._suffix
        if self._position in guards.shared:
            execution.touch(key, write=write)
        else:
            guards.note(self._position, key, execution, write=write)


_at_work: tuple[Execution | None, Guards | None] = (None, None)
_extra: list[Declared] = []


def declare(owner: type, *names: str, label: Callable[[Any], str] | None = None, container: bool = False) -> None:
    """Declare attributes of a class as shared between threads, for every exploration from now on.

    Args:
        owner: the class.
        names: its attributes.
        label: names one object of it, the same way in every execution; its ``name``, or its class if it has none.
        container: they are changed in place (lists, dictionaries): whoever gets one counts as one who writes.
    """
    naming = label or (lambda instance: str(getattr(instance, "name", owner.__name__)))
    known = {(one.owner, one.name) for one in _extra}
    _extra.extend(Declared(owner, name, naming, container) for name in names if (owner, name) not in known)


def declared() -> tuple[Declared, ...]:
    """Give what :func:`declare` has declared."""
    return tuple(_extra)


@contextlib.contextmanager
def installed(guards: Guards) -> Iterator[Callable[[Execution | None], None]]:
    """Watch the declared fields; gives the function that says whose accesses count."""
    global _at_work  # noqa: PLW0603 - the descriptors are on classes, so there is one
    replaced: list[tuple[type, str, Any]] = []

    def watch(execution: Execution | None) -> None:
        global _at_work  # noqa: PLW0603
        _at_work = (execution, guards)

    try:
        for position, one in enumerate(guards.table):
            inner = one.owner.__dict__.get(one.name)
            replaced.append((one.owner, one.name, inner))
            setattr(one.owner, one.name, _Watched(one, position, inner))
        yield watch
    finally:
        _at_work = (None, None)
        for owner, name, inner in reversed(replaced):
            if inner is None:
                delattr(owner, name)
            else:
                setattr(owner, name, inner)
