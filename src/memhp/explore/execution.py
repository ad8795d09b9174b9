"""One execution: the tasks of a scene take turns, one step at a time, as a strategy says.

A task runs as a greenlet up to its next operation on a lock or a shared variable, announces it, and stops. The strategy
then picks the task whose announced operation happens next; what lies between two operations happens with the first. So
the whole of an execution is the list of its steps, and the same list gives the same execution.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING

from greenlet import getcurrent

from memhp.explore.fibers import Abandoned, Blocked, Fiber, Place, Step, place_of, thread_number, thread_of
from memhp.explore.ops import CAN_WAIT, CHOOSE, FAILED, KINDS, NAMES, START
from memhp.locking import switch
from memhp.locking.switch import Op, Task, Waitable

if TYPE_CHECKING:
    from memhp.explore.registry import Registry
    from memhp.explore.scene import Scene
    from memhp.explore.strategies import Strategy

__all__ = ["Diverged", "Execution"]

_PATIENT_POINTS = 1000
"""How many more operations a task may do that was told to give up, before it is told again."""


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
        self.outside = False
        """Whether code of the scene runs that is no thread's: its function, or a check."""
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
        self._announce(fiber, op, lock, self._registry.number(lock.name))

    def _announce(self, fiber: Fiber, op: Op, lock: Waitable, obj: int) -> None:
        kind = KINDS[op]
        fiber.op = op
        fiber.lock = lock
        fiber.label = Step(fiber.index, kind, obj, kind, fiber.steps + 1)
        self._hub.switch()
        if self.over:
            raise Abandoned

    def start(self, index: int) -> None:
        """Let a thread begin that does not begin with the others.

        Raises:
            RuntimeError: it has been started already, or no thread of the scene asks.
        """
        starter, fiber = self._asking(index, "started")
        if fiber.begun:
            raise RuntimeError(f"{fiber.name} can only be started once")
        fiber.begun = True
        self._announce(starter, Op.START, fiber.end, thread_number(index))

    def join(self, index: int) -> None:
        """Wait until a thread has ended.

        Raises:
            RuntimeError: no thread of the scene asks.
        """
        asking, fiber = self._asking(index, "waited for")
        self._announce(asking, Op.JOIN, fiber.end, thread_number(index))

    def _asking(self, index: int, what: str) -> tuple[Fiber, Fiber]:
        if self.running is None:
            raise RuntimeError(f"a thread can only be {what} by another one of its scene")
        if self.over:
            raise Abandoned
        return self.running, self.fibers[index]

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
                self.outside = True
                self._build(self.scene)
                self.outside = False
                self.fibers = [Fiber(one.index, one.name, one.function) for one in self.scene.threads]
                for fiber, thread in zip(self.fibers, self.scene.threads, strict=True):
                    if fiber.index in self._left_out:
                        fiber.function = _nothing
                    if not thread.later:
                        fiber.begun = True
                        self._resume(fiber)
                strategy.begin(self)
                while len(self.trace) < max_steps and self.broken is None and self._step(strategy):
                    pass
                if self.broken is None and self.ended and not any(fiber.error for fiber in self.fibers):
                    self._check_end()
                self.at_end = self.blocked() if not self.enabled() else []
                if self.at_end or self._places:
                    self.held_up = [(one.index, self.describe(one.label), place_of(one)) for one in self.fibers if one.label]
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
            self.places.append(place_of(fiber))
        self.beats += 1
        fiber.label = None
        if step.kind == START:
            self._resume(self.fibers[thread_of(step.obj)])
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
        self.outside = True
        try:
            verdict = check()
        except Exception as error:
            self.broken = error
        else:
            if verdict is False:
                self.broken = AssertionError(f"{getattr(check, '__name__', check)} does not hold")
        finally:
            self.observing = None
            self.outside = False

    def _abandon(self) -> None:
        self.over = True
        for fiber in self.fibers:
            if fiber.greenlet:  # begun, and not at its end
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
        if step.kind == CHOOSE:
            return NAMES[CHOOSE] if step.choice < 0 else f"{NAMES[CHOOSE]} {step.choice}"
        name = self._registry.names[step.obj] if step.obj >= 0 else self.fibers[thread_of(step.obj)].name
        return f"{NAMES[step.kind]} {name}"

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
