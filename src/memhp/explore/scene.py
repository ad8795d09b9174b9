"""What a scene's function declares: threads, what must hold, and what is shared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from memhp.errors import InvalidInput
from memhp.locking import Lockdep, switch
from memhp.locking.switch import Op, Task

if TYPE_CHECKING:
    from memhp.explore.execution import Execution
    from memhp.kernel import Machine

__all__ = ["Cell", "Invariant", "Scene", "Thread"]

T = TypeVar("T")


class Invariant(NamedTuple):
    """Something that must hold whenever a lock is given back."""

    check: Callable[[], object]
    lock: Any


class Thread:
    """A thread of a scene, as others of its threads see it: they can wait for its end, and start it if nobody else does."""

    __slots__ = ("_scene", "function", "index", "later", "name")

    def __init__(self, scene: Scene, index: int, name: str, function: Callable[[], Any], *, later: bool) -> None:
        self._scene = scene
        self.index = index
        self.name = name
        self.function = function
        self.later = later

    def start(self) -> None:
        """Let it begin: a step of the thread that calls. For those that :meth:`Scene.thread_for_later` made, once.

        Raises:
            RuntimeError: it runs already, or what calls is no thread of the scene.
        """
        self._execution().start(self.index)

    def join(self) -> None:
        """Wait until it has ended: a step of the thread that calls.

        Raises:
            RuntimeError: what calls is no thread of the scene.
        """
        self._execution().join(self.index)

    def _execution(self) -> Execution:
        if self._scene.execution is None:
            raise RuntimeError(f"{self.name} belongs to a scene that is over")
        return self._scene.execution


class Scene:
    """What one execution consists of; the explored function gets a new one each time, and must make everything anew."""

    def __init__(self, shared: Lockdep | None = None, left_out: frozenset[int] = frozenset()) -> None:
        self._shared = shared
        self._left_out = left_out
        self.parts: list[str] = []
        self.threads: list[Thread] = []
        self.checks: list[Callable[[], object]] = []
        self.invariants: list[Invariant] = []
        self.deps: list[Lockdep] = []
        self.execution: Execution | None = None

    def thread(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Thread:
        """Start a thread; all begin together when the scene's function has returned."""
        return self._add(name, functools.partial(function, *args, **kwargs), later=False)

    def thread_for_later(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Thread:
        """Make a thread that begins when another one starts it; if none does, it never begins."""
        return self._add(name, functools.partial(function, *args, **kwargs), later=True)

    def _add(self, name: str, function: Callable[[], Any], *, later: bool) -> Thread:
        if any(name == other.name for other in self.threads):
            raise InvalidInput(name, "thread: name", "a name that no other thread of the scene has")
        thread = Thread(self, len(self.threads), name, function, later=later)
        self.threads.append(thread)
        return thread

    def part(self, name: str) -> bool:
        """Say whether a part of the scene is played; it always is, but when a finding is made smaller that doesn't need it.

        To be asked in the scene's function, for the same parts in the same order each time.
        """
        self.parts.append(name)
        return len(self.parts) - 1 not in self._left_out

    def task(self, name: str) -> Task:
        """Give the task of a thread, for a signal; of use inside of threads only."""
        fibers = [] if self.execution is None else self.execution.fibers
        for fiber in fibers:
            if fiber.name == name:
                return fiber.task
        raise InvalidInput(name, "task: name", f"one of {', '.join(fiber.name for fiber in fibers) or 'no threads yet'}")

    def at_end(self, check: Callable[[], object]) -> Callable[[], object]:
        """Check something when every thread has ended: it must not raise, nor return False. Works as a decorator."""
        self.checks.append(check)
        return check

    def invariant(self, lock: Any, check: Callable[[], object] | None = None) -> Any:
        """Check something each time that ``lock`` (a mutex, or a percpu rwsem that was written) is given back.

        The check may look at declared fields that this lock guards, and at nothing else: in between, threads are where they
        happen to be, and only the order of steps that depend on each other is the same in every execution of a class. A
        field that it doesn't guard is refused when the search has seen it. Works as a decorator, too.
        """
        if check is None:
            return functools.partial(self.invariant, lock)
        self.invariants.append(Invariant(check, lock))
        return check

    def boot(self, *args: Any, **kwargs: Any) -> Machine:
        """Boot a machine that lockdep watches; what it reports is compared with what the search finds."""
        from memhp.kernel import Machine  # noqa: PLC0415 - locks alone can be explored without it

        return Machine.boot(*args, **{"lockdep": self.lockdep(), **kwargs})

    def lockdep(self) -> Lockdep:
        """Give a lockdep for a machine, or for locks: the first is the same in all executions, so it sees orders of them all."""
        dep, self._shared = self._shared or Lockdep(), None
        self.watch(dep)
        return dep

    def watch(self, dep: Lockdep | None) -> None:
        """Compare the reports of a lockdep with what the search finds."""
        if dep is not None:
            self.deps.append(dep)

    def choose(self, options: int) -> int:
        """Give a number below ``options``; every one is tried. For what chance decides: an allocation, an answer, a signal."""
        if options < 1:
            raise InvalidInput(options, "choose: options", "at least 1")
        return 0 if self.execution is None else self.execution.choose(options)

    def cell(self, name: str, value: T) -> Cell[T]:
        """Make a variable that threads share without a lock; each access is a step."""
        return Cell(name, value)


class Cell(Generic[T]):
    """A shared variable; every access is one step that other threads' steps can come before or after."""

    __slots__ = ("_expected", "_value", "name")

    def __init__(self, name: str, value: T) -> None:
        self.name = name
        self._value = value
        self._expected: dict[Task, T] = {}

    def get(self) -> T:
        """Read it."""
        switch.point(Op.READ, self)
        return self._value

    def set(self, value: T) -> None:
        """Write it."""
        switch.point(Op.WRITE, self)
        self._value = value

    def update(self, change: Callable[[T], T]) -> T:
        """Change it in one step (a fetch-and-add and the like); gives what it was."""
        switch.point(Op.WRITE, self)
        before, self._value = self._value, change(self._value)
        return before

    def swap(self, expected: T, value: T) -> bool:
        """Write it if it has the expected value (compare-and-swap)."""
        self._expected[switch.current()] = expected
        switch.point(Op.SWAP, self)
        if self._value != expected:
            return False
        self._value = value
        return True

    def peek(self) -> T:
        """Look at it without a step: for checks at the end."""
        return self._value

    def blockers(self, task: Task, op: Op) -> tuple[Task, ...]:
        """Give the task itself if its swap would fail: that is what a failed try looks like."""
        return (task,) if op is Op.SWAP and self._value != self._expected[task] else ()

    def ready(self, task: Task, op: Op) -> bool:
        """Say that an access never waits."""
        return True
