"""Fields that threads share: which of them are ordered by other steps, and which are not. Found out, not believed.

A field needs no steps of its own where those of locks order every access to it, as they do if one lock always guards it. So
at the end of each execution the accesses are compared: of two by different threads, one of which writes, one must have
happened before the other (after its thread's next step, not only after the step before the access). Where that isn't so,
the field becomes a shared variable, each access to it a step, and the search begins anew. All executions of a class have
the same order, so the search that ends without such a surprise has seen every access ordered in every execution. It does
not rely on locks doing what they should.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from memhp.explore.execution import Execution
from memhp.explore.fibers import Fiber, thread_of
from memhp.explore.ops import START
from memhp.locking.switch import Mode

__all__ = ["Declared", "Guards", "declare", "installed"]


class Declared(NamedTuple):
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


Access = tuple[str, int, int, bool]
"""Field of an object, number of the task, its step before the access, whether it writes."""


class Guards:
    """Which declared fields are shared variables.

    Attributes:
        shared: positions, in the table, of the fields that are shared variables.
        found: positions of those of which two accesses were not ordered.
    """

    def __init__(self, table: Sequence[Declared], shared: frozenset[int]) -> None:
        self.table = tuple(table)
        self.shared = shared
        self.found: set[int] = set()
        self.observed: dict[str, set[str]] = {}
        """Of each field that an invariant read, the names of the locks at whose release it did."""
        self._accesses: dict[Access, int] = {}
        self._locks: dict[str, set[str]] = {}

    def begin(self) -> None:
        """Forget the accesses of the execution before."""
        self._accesses.clear()

    def note(self, position: int, key: str, execution: Execution, fiber: Fiber, *, write: bool) -> None:
        """Take note of one access by the task that runs."""
        self._accesses[key, fiber.index, fiber.steps, write] = position
        if execution.scene.invariants:
            locks = {one.lock.name for one in fiber.task.held if one.mode is Mode.WRITE or not write}
            self._locks[key] = self._locks[key] & locks if key in self._locks else locks

    def compare(self, execution: Execution) -> None:
        """Look for accesses that are not ordered; the steps of the execution have their clocks."""
        if not self._accesses:
            return
        clocks: list[list[list[int]]] = [[[0] * len(execution.fibers)] for _ in execution.fibers]
        for step in execution.trace:
            clocks[step.task].append(step.clock)
            if step.kind == START:
                clocks[thread_of(step.obj)][0] = step.clock
        writes: dict[str, tuple[int, int]] = {}
        reads: dict[str, dict[int, int]] = {}
        for (key, task, step_before, write), position in self._accesses.items():
            clock = clocks[task][step_before]
            before = [writes[key]] if key in writes else []
            if write:
                before += reads.get(key, {}).items()
                writes[key], reads[key] = (task, step_before), {}
            else:
                reads.setdefault(key, {})[task] = step_before
            if any(other != task and clock[other] <= index for other, index in before):
                self.found.add(position)

    def unguarded(self) -> list[str]:
        """Name the fields that an invariant read at the release of a lock that doesn't guard them."""
        return [
            f"{key} (guarded by {' and '.join(sorted(self._locks[key])) or 'nothing'})"
            for key, locks in self.observed.items()
            if key in self._locks and not locks <= self._locks[key]
        ]


class _Watched:
    # The descriptor that stands in place of a declared field while something is explored.

    def __init__(self, declared: Declared, position: int, inner: Any) -> None:
        self._declared = declared
        self._position = position
        self._inner = inner
        self._is_slot = hasattr(inner, "__set__")
        self._name = declared.name
        self._suffix = f".{declared.name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        self._touch(instance, write=self._declared.container)
        if self._is_slot:
            return self._inner.__get__(instance, owner)
        try:
            return instance.__dict__[self._name]
        except KeyError:
            if self._inner is None:
                raise AttributeError(self._name) from None
            return self._inner  # the default that stands in the class

    def __set__(self, instance: Any, value: Any) -> None:
        self._touch(instance, write=True)
        if self._is_slot:
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
            guards.note(self._position, key, execution, execution.running, write=write)


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
