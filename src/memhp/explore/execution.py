"""One execution: the tasks of a scene take turns, one step at a time, as a strategy says.

A task runs as a greenlet up to its next operation on a lock or a shared variable, announces it, and stops. The strategy
then picks the task whose announced operation happens next; what lies between two operations happens with the first. So
the whole of an execution is the list of its steps, and the same list gives the same execution.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from memhp.explore.ops import CAN_WAIT, CHOOSE, DEPENDENT, FAILED, KINDS, NAMES
from memhp.locking import switch
from memhp.locking.switch import Op, Task, Waitable

if TYPE_CHECKING:
    from memhp.explore.registry import Registry
    from memhp.explore.scene import Scene
    from memhp.explore.strategies import Strategy

__all__ = ["Abandoned", "Blocked", "Diverged", "Execution", "Fiber", "Place", "Step", "dependent"]

_PATIENT_POINTS = 1000
"""How many more operations a task may do that was told to give up, before it is told again."""


class Abandoned(BaseException):
    """Raised in a task whose execution has ended without it."""


class Diverged(Exception):
    """The tasks don't do what they did before at the same place.

    Attributes:
        step: its number, from 1.
        expected: what was done there before.
        found: what would be done now.
    """

    def __init__(self, step: int, expected: str, found: str) -> None:
        super().__init__(f"diverged at step {step}: expected {expected}, got {found}")
        self.step = step
        self.expected = expected
        self.found = found


class Step:
    """One step of one task; also the announcement of one.

    ``kind`` is what happened, ``strong`` what it might have been (a failed try might have succeeded elsewhere); ``index``
    counts the task's steps from 1; ``clock`` has for each task the index of its last step that had to come before.
    """

    __slots__ = ("choice", "clock", "index", "kind", "obj", "strong", "task")

    def __init__(self, task: int, kind: int, obj: int, strong: int, index: int, choice: int = -1) -> None:
        self.task = task
        self.kind = kind
        self.obj = obj
        self.strong = strong
        self.index = index
        self.choice = choice
        self.clock: list[int] = []

    def __repr__(self) -> str:
        return f"<{self.task}.{self.index} {NAMES[self.kind]} {self.obj}{'' if self.choice < 0 else f'={self.choice}'}>"

    def same(self, other: Step) -> bool:
        """Say whether this is the same step of the same task on the same object."""
        return self.task == other.task and self.strong == other.strong and self.obj == other.obj

    def announced(self) -> Step:
        """Give it as it is known before it happens."""
        return Step(self.task, self.strong, self.obj, self.strong, self.index, self.choice)


def dependent(a: Step, b: Step) -> bool:
    """Say whether two steps can't be swapped."""
    return a.task == b.task or (a.obj == b.obj and DEPENDENT[a.kind][b.kind])


class Place:
    """Where in the program a step was announced."""

    __slots__ = ("file", "function", "line")

    def __init__(self, frame: types.FrameType) -> None:
        self.file = frame.f_code.co_filename
        self.line = frame.f_lineno
        self.function = frame.f_code.co_qualname

    def __str__(self) -> str:
        parts = self.file.split("/")
        short = "/".join(parts[parts.index("memhp", 1) :] if "memhp" in parts[1:] else parts[-1:])
        return f"{self.function}() at {short}:{self.line}"


class Fiber:
    """One task of an execution."""

    __slots__ = ("choice", "error", "function", "greenlet", "index", "label", "lock", "name", "op", "options", "steps", "task")

    def __init__(self, index: int, name: str, function: Callable[[], Any]) -> None:
        self.index = index
        self.name = name
        self.function = function
        self.task = Task(name)
        self.greenlet: greenlet = greenlet(self._main)
        self.op: Op | None = None
        """What it will do next; None at a choice and after its end."""
        self.lock: Waitable | None = None
        self.label: Step | None = None
        """The announcement of its next step; None after its end."""
        self.options = 0
        self.choice = 0
        self.steps = 0
        self.error: BaseException | None = None

    def _main(self) -> None:
        try:
            self.function()
        except Abandoned:
            pass
        except BaseException as error:  # it is a finding, or raised in the one who explores
            self.error = error

    def ready(self) -> bool:
        """Say whether its next step can happen now."""
        label = self.label
        return label is not None and (not CAN_WAIT[label.kind] or self.lock.ready(self.task, self.op))  # type: ignore[union-attr, arg-type]

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.label is None


class Blocked:
    """A task that can't go on: what it waits for, who must act first, and what it holds."""

    def __init__(self, fiber: Fiber) -> None:
        assert fiber.lock is not None  # noqa: S101 - a blocked task waits for something
        assert fiber.op is not None  # noqa: S101
        self.task = fiber.name
        self.lock = fiber.lock.name
        self.op = fiber.op
        self.lock_class: str = getattr(fiber.lock, "lock_class", fiber.lock.name)
        self.by = tuple(sorted(task.name for task in fiber.lock.blockers(fiber.task, fiber.op)))
        self.holds = tuple(fiber.task.describe_held())

    def __str__(self) -> str:
        by = f", held by {' and '.join(self.by)}" if self.by else ""
        return f"{self.task} waits for {self.lock} ({self.op.value}){by}"


class Execution:
    """One execution of a scene; it is the driver behind the switch point while it lasts.

    Attributes:
        trace: the steps so far.
        fibers: the tasks, in the order in which they were started.
        scene: what the scene's function declared.
    """

    def __init__(
        self,
        build: Callable[[Scene], object],
        scene: Scene,
        registry: Registry,
        *,
        left_out: frozenset[int] = frozenset(),
        places: bool = False,
    ) -> None:
        self._build = build
        self._registry = registry
        self._places = places
        self._left_out = left_out
        self.scene = scene
        self.trace: list[Step] = []
        self.places: list[Place | None] = []
        self.fibers: list[Fiber] = []
        self.running: Fiber | None = None
        self.broken: BaseException | None = None
        """An invariant that did not hold, or a divergence."""
        self.at_end: list[Blocked] = []
        """Who could not go on when nobody could."""
        self.held_up: list[tuple[int, str, Place | None]] = []
        """Tasks that had not ended, what they would have done next, and where."""
        self.beats = 0
        """Grows with every step: the watchdog looks at it."""
        self.observing: str | None = None
        """The lock at whose release an invariant looks at fields now."""
        self._main = Task("main")
        self._hub = getcurrent()
        self.over = False
        """Whether it has ended, and tasks that have not are made to give up."""
        self._points_after = 0
        self._choosing: collections.deque[Fiber] = collections.deque()

    # -- what the switch point asks

    def current(self) -> Task:
        """Give the task that runs now."""
        return self._main if self.running is None else self.running.task

    def point(self, op: Op, lock: Waitable) -> None:
        """Announce ``op`` and wait for one's turn."""
        fiber = self.running
        if fiber is None:
            if CAN_WAIT[KINDS[op]] and not self.over and not lock.ready(self._main, op):
                raise RuntimeError(f"{op.value} of {lock.name} outside of the threads would wait for ever")
            return
        if self.over:
            self._give_up()
            return
        kind = KINDS[op]
        fiber.op = op
        fiber.lock = lock
        fiber.label = Step(fiber.index, kind, self._registry.number(lock.name), kind, fiber.steps + 1)
        self._hub.switch()
        if self.over:
            raise Abandoned

    def choose(self, options: int) -> int:
        """Let the strategy choose a number below ``options``."""
        fiber = self.running
        if fiber is None or self.over:
            return 0
        fiber.op = None
        fiber.lock = None
        fiber.options = options
        fiber.label = Step(fiber.index, CHOOSE, -1, CHOOSE, fiber.steps + 1)
        self._choosing.append(fiber)
        self._hub.switch()
        if self.over:
            raise Abandoned
        return fiber.choice

    def touch(self, name: str, *, write: bool) -> None:
        """Announce an access to a shared variable that no lock guards."""
        self.point(Op.WRITE if write else Op.READ, _Variable(name))

    def _give_up(self) -> None:
        # The locks of an abandoned task are undone by its own code, but it may also go round in circles there.
        self._points_after += 1
        if self._points_after > _PATIENT_POINTS:
            raise RuntimeError("the execution is over")

    # -- the turns

    def run(self, strategy: Strategy, max_steps: int) -> None:
        """Begin, and let the strategy pick until nobody can go on or it has had enough."""
        with switch.control(self):
            try:
                self._build(self.scene)
                self.fibers = [Fiber(number, name, function) for number, (name, function) in enumerate(self.scene.threads)]
                for fiber in self.fibers:
                    if fiber.index in self._left_out:
                        fiber.function = _nothing
                    self._resume(fiber)
                strategy.begin(self)
                while len(self.trace) < max_steps and self.broken is None and self._step(strategy):
                    pass
                if self.broken is None and self.ended and not any(fiber.error for fiber in self.fibers):
                    self._check_end()
                self.at_end = self.blocked() if not self.enabled() else []
                if self.at_end or self._places:
                    self.held_up = [(one.index, self.describe(one.label), _place(one)) for one in self.fibers if one.label]
                strategy.end(self)
            finally:
                self._abandon()

    def _step(self, strategy: Strategy) -> bool:
        if self._choosing:
            # A choice depends on nothing, so it is made at once.
            fiber = self._choosing.popleft()
            fiber.choice = strategy.choose(self, fiber.index, fiber.options)
        else:
            picked = strategy.pick(self)
            if picked is None:
                return False
            fiber = self.fibers[picked]
            if not fiber.ready():
                raise AssertionError(f"{fiber.name} was picked and can't go on: {fiber.label}")
        self._perform(fiber)
        return True

    def _perform(self, fiber: Fiber) -> None:
        step, op, lock = fiber.label, fiber.op, fiber.lock
        assert step is not None  # noqa: S101 - it was picked
        if op is None or lock is None:
            step.choice = fiber.choice
        elif op in FAILED and any(True for _ in lock.blockers(fiber.task, op)):
            step.kind = FAILED[op]
        elif self.scene.invariants and op in {Op.RELEASE, Op.WRITE_RELEASE}:
            self._check_invariants(lock)
        fiber.steps = step.index
        self.trace.append(step)
        if self._places:
            self.places.append(_place(fiber))
        self.beats += 1
        fiber.label = None
        self._resume(fiber)

    def _resume(self, fiber: Fiber) -> None:
        self.running = fiber
        try:
            fiber.greenlet.switch()
        finally:
            self.running = None
        if fiber.error is not None and isinstance(fiber.error, KeyboardInterrupt):
            raise fiber.error

    def _check_invariants(self, lock: Waitable) -> None:
        for invariant in self.scene.invariants:
            if invariant.lock is lock:
                self._judge(invariant.check, observing=invariant.lock.name)

    def _check_end(self) -> None:
        for check in self.scene.checks:
            self._judge(check)

    def _judge(self, check: Callable[[], object], observing: str | None = None) -> None:
        if self.broken is not None:
            return
        self.observing = observing
        try:
            verdict = check()
        except Exception as error:
            self.broken = error
        else:
            if verdict is False:
                self.broken = AssertionError(f"{getattr(check, '__name__', check)} does not hold")
        finally:
            self.observing = None

    def _abandon(self) -> None:
        self.over = True
        for fiber in self.fibers:
            if not fiber.greenlet.dead:
                self._points_after = 0
                self.running, error = fiber, fiber.error
                fiber.greenlet.throw(Abandoned)
                self.running, fiber.error = None, error
            # Nothing is left in a circle, so nothing waits for the garbage collector.
            fiber.function = _nothing
            fiber.greenlet = self._hub
        self.scene.execution = None

    def describe(self, step: Step) -> str:
        """Say in words what a step is."""
        what = NAMES[step.kind] if step.kind != CHOOSE or step.choice < 0 else f"choose {step.choice}"
        return f"{what} {self._registry.name(step.obj)}".rstrip()

    # -- what strategies ask

    def enabled(self) -> list[int]:
        """Give the tasks that can go on, ascending."""
        return [fiber.index for fiber in self.fibers if fiber.label is not None and fiber.ready()]

    def announced(self, task: int) -> Step:
        """Give a task's next step as far as it is known."""
        label = self.fibers[task].label
        if label is None:
            raise AssertionError(f"{self.fibers[task].name} has ended")
        return label

    @property
    def ended(self) -> bool:
        """Whether every task has ended."""
        return all(fiber.label is None for fiber in self.fibers)

    def waiting(self) -> list[Step]:
        """Give the announced steps of the tasks that have not ended."""
        return [fiber.label for fiber in self.fibers if fiber.label is not None]

    def blocked(self) -> list[Blocked]:
        """Give the tasks that can't go on."""
        return [Blocked(fiber) for fiber in self.fibers if fiber.label is not None and not fiber.ready()]


def _nothing() -> None:
    pass


class _Variable:
    # A shared variable as something that a step can be on.
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def blockers(self, task: Task, op: Op) -> tuple[Task, ...]:
        return ()

    def ready(self, task: Task, op: Op) -> bool:
        return True


_OWN = (__file__.rsplit("/", 1)[0] + "/", switch.__file__.rsplit("/", 1)[0] + "/")


def _place(fiber: Fiber) -> Place | None:
    frame = fiber.greenlet.gr_frame
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    return None if frame is None else Place(frame)
