"""The search: play executions as a strategy says, look at how each ended, and say what came of it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from memhp.errors import InvalidInput
from memhp.explore.execution import Diverged, Execution
from memhp.explore.fibers import Blocked, Fiber, Place, Unmet
from memhp.explore.fields import Declared, Guards, installed
from memhp.explore.findings import Finding, Kind, Line, LockOrder, Result
from memhp.explore.happens import History
from memhp.explore.ops import letter_of
from memhp.explore.registry import Registry
from memhp.explore.scene import Scene
from memhp.explore.schedule import checksum, encode
from memhp.explore.strategies import Strategy
from memhp.explore.strategies.replay import Replay, Turn
from memhp.explore.watchdog import Stuck, Watchdog, watching
from memhp.locking import Lockdep

__all__ = ["REPEATABLE", "Build", "Limits", "Played", "cycle", "search"]

Build = Callable[[Scene], object]
_SHOWN_OF_ENDLESS = 200
REPEATABLE = frozenset({Kind.DEADLOCK, Kind.EXCEPTION, Kind.INVARIANT, Kind.EXPECTATION})
"""What is wrong with one execution, and not with the search."""


class Limits(NamedTuple):
    """Where a search gives up.

    Attributes:
        executions: how many are played.
        seconds: how long it takes.
        steps: how many steps one execution may have before it counts as one that never ends.
        patience: seconds that a task may take from one step to the next.
    """

    executions: int = 1_000_000
    seconds: float = float("inf")
    steps: int = 10_000
    patience: float = 10.0


class Played:
    """What a search goes through, and what it keeps.

    Attributes:
        build: the scene's function.
        name: of the scene.
        table: gives the declared fields; an execution may import what declares more.
        left_out: threads that are not started.
        left_parts: parts of the scene that are not played, by number.
        parts: how many parts it has; known when it has been played.
        shared: positions of the fields that are shared variables; grows when an access shows that one is not guarded.
        everything: go on after a finding.
        wanted: pass over findings with another signature.
        on_execution: called at the end of each execution.
        progress: called now and then.
    """

    __slots__ = (
        "build",
        "everything",
        "left_out",
        "left_parts",
        "limits",
        "name",
        "on_execution",
        "parts",
        "progress",
        "shared",
        "table",
        "wanted",
    )

    def __init__(self, build: Build, name: str, table: Callable[[], Sequence[Declared]], limits: Limits) -> None:
        self.build = build
        self.name = name
        self.table = table
        self.limits = limits
        self.left_out: frozenset[int] = frozenset()
        self.left_parts: frozenset[int] = frozenset()
        self.parts = 0
        self.shared: frozenset[int] = frozenset()
        self.everything = False
        self.wanted: tuple[str, ...] = ()
        self.on_execution: Callable[[Execution], None] | None = None
        self.progress: Callable[[Result], None] | None = None

    def once_more(self, **changes: Any) -> Played:
        """Give the same to be played once more, for one finding, with changes; nobody is told of it."""
        other = Played(self.build, self.name, self.table, self.limits)
        other.left_out, other.left_parts, other.parts, other.shared = self.left_out, self.left_parts, self.parts, self.shared
        for name, value in changes.items():
            setattr(other, name, value)
        return other


def search(played: Played, make: Callable[[], Strategy]) -> Result:
    """Search with a fresh strategy; begin anew whenever a field turns out to be shared without a lock."""
    begin = time.monotonic()
    while True:
        strategy = make()
        guards = Guards(played.table(), played.shared)
        with _Silence() as silence, watching(played.limits.patience) as watchdog, installed(guards) as watch:
            one = _Pass(played, strategy, guards, watchdog, watch, silence, begin)
            one.run()
        if not guards.found <= played.shared or len(played.table()) != len(guards.table):
            played.shared |= guards.found
            if not one.result.limit and time.monotonic() - begin < played.limits.seconds:
                continue
        one.result.shared = tuple(str(guards.table[position]) for position in sorted(played.shared))
        one.result.seconds = time.monotonic() - begin
        return one.result


class _Silence(contextlib.ExitStack):
    """What the machine logs in one execution of thousands is no news."""

    begun = False

    def begin(self) -> None:
        """Begin, if anybody logs at all: that may be known only when a scene has imported what it needs."""
        logging = sys.modules.get("logging")
        if logging is None or self.begun:
            return
        self.begun = True
        log, nowhere = logging.getLogger("memhp"), logging.NullHandler()
        self.callback(setattr, log, "propagate", log.propagate)
        self.callback(log.removeHandler, nowhere)
        log.addHandler(nowhere)
        log.propagate = False


class _Pass:
    """One search from beginning to end with the same shared fields."""

    def __init__(
        self,
        played: Played,
        strategy: Strategy,
        guards: Guards,
        watchdog: Watchdog,
        watch: Callable[[Execution | None], None],
        silence: _Silence,
        begin: float,
    ) -> None:
        self.played = played
        self.strategy = strategy
        self.guards = guards
        self.result = Result(played.name, strategy.name, strategy.promise)
        self._registry = Registry()
        self._dep = Lockdep()
        self._watchdog = watchdog
        self._watch = watch
        self._silence = silence
        self._begin = begin
        self._cycles: dict[frozenset[str], str] = {}
        self._orders: dict[tuple[str, ...], str] = {}

    def run(self) -> None:
        result = self.result
        while self.strategy.more():
            if self._at_limit():
                break
            execution = self._play(self.strategy)
            if not self.guards.found <= self.guards.shared or len(self.played.table()) != len(self.guards.table):
                return  # a new beginning
            if execution is None or not self._judge(execution):
                break
            if result.executions == 1 and not isinstance(self.strategy, Replay) and not self._same_again(execution):
                break
            if self.played.progress is not None and not result.executions % 1000:
                self.played.progress(result)
        self._refuse_unguarded()
        self._compare_orders()

    def _at_limit(self) -> bool:
        limits, result = self.played.limits, self.result
        if result.executions + result.redundant >= limits.executions:
            result.limit = f"{limits.executions:,} executions"
        elif time.monotonic() - self._begin > limits.seconds:
            result.limit = f"{limits.seconds:g} seconds"
        return bool(result.limit)

    def _play(self, strategy: Strategy) -> Execution | None:
        self._dep.next_run()
        scene = Scene(self._dep, self.played.left_parts)
        places = isinstance(strategy, Replay)
        execution = Execution(self._build, scene, self._registry, left_out=self.played.left_out, places=places)
        scene.execution = execution
        self.guards.begin()
        self._watch(execution)
        self._watchdog.look_at(execution)
        try:
            execution.run(strategy, self.played.limits.steps)
        except Diverged as diverged:
            execution.broken = diverged
        except Stuck as stuck:
            where = _innermost(stuck)
            expected = f"a scene whose function and checks end within {self.played.limits.patience:g} s (it was in {where})"
            raise InvalidInput(self.played.name, "explore", expected) from None
        finally:
            self._watchdog.look_at(None)
            self._watch(None)
        if not execution.fibers:
            raise InvalidInput(self.played.name, "explore", "a scene that starts at least one thread")
        _give_clocks(execution)
        self.guards.compare(execution)
        for dep in scene.deps:
            for report in dep.reports:
                self._orders.setdefault(report.classes, str(report))
        return execution

    def _build(self, scene: Scene) -> None:
        self._silence.begin()
        self.played.build(scene)
        self.played.parts = len(scene.parts)
        self._silence.begin()

    def _judge(self, execution: Execution) -> bool:
        # False when the search is over.
        result = self.result
        result.steps += len(execution.trace)
        finding = self._finding(execution)
        if finding is None and not execution.ended:
            result.redundant += 1
            return True
        result.executions += 1
        if self.played.on_execution is not None:
            self.played.on_execution(execution)
        result.failed += finding is not None
        if finding is None or (self.played.wanted and finding.signature != self.played.wanted):
            return True
        if finding.kind is Kind.DEADLOCK:
            result.deadlocks += 1
            self._cycles.setdefault(_cycle_classes(finding.blocked), finding.schedule)
        if self.played.everything and finding.kind in REPEATABLE:
            if all(finding.signature != other.signature for other in result.findings):
                result.findings.append(finding)
            return True
        result.findings.append(finding)
        result.ended_early = True
        if finding.kind in {Kind.NEVER_ENDS, Kind.STUCK, Kind.NONDETERMINISM}:
            result.limit = {
                Kind.NEVER_ENDS: f"{self.played.limits.steps:,} steps of one execution",
                Kind.STUCK: f"{self.played.limits.patience:g} seconds without a step",
                Kind.NONDETERMINISM: "executions that can't be repeated",
            }[finding.kind]
        return False

    def _same_again(self, execution: Execution) -> bool:
        # One repetition shows most of what makes executions differ: clocks, random numbers, state from the one before.
        replay = Replay([(step.task, step.strong, step.choice) for step in execution.trace])
        again = self._play(replay)
        if again is None:
            return False
        where = replay.diverged
        if where is None:
            for place, (a, b) in enumerate(zip(execution.trace, again.trace, strict=False)):
                if not a.same(b) or a.kind != b.kind:
                    where = Diverged(place + 1, execution.describe(a), again.describe(b))
                    break
            else:
                if len(execution.waiting()) != len(again.waiting()):
                    where = Diverged(len(again.trace) + 1, "the same threads to have ended", "others")
        if where is None:
            return True
        again.broken = where
        return self._judge(again)

    # -- findings

    def _finding(self, execution: Execution) -> Finding | None:
        for fiber in execution.fibers:
            if fiber.error is not None:
                return self._raised(execution, fiber, fiber.error)
        if execution.broken is not None:
            return self._broken(execution, execution.broken)
        if len(execution.trace) >= self.played.limits.steps:
            last = execution.fibers[execution.trace[-1].task].name
            reason = f"{last} is still at it after {self.played.limits.steps:,} steps of the execution"
            return self._make(execution, Kind.NEVER_ENDS, reason, ())
        blocked = execution.at_end
        if not blocked:
            return None
        signature = tuple(sorted(f"{one.lock_class} {one.op.value}" for one in cycle(blocked) or blocked))
        return self._make(execution, Kind.DEADLOCK, "; ".join(map(str, blocked)), signature, blocked=blocked)

    def _raised(self, execution: Execution, fiber: Fiber, error: BaseException) -> Finding:
        if isinstance(error, Stuck):
            place = _innermost(error)
            reason = f"{fiber.name} did not come to its next step within {self.played.limits.patience:g} s: it blocks "
            reason += f"outside of the controlled locks, sleeps or never ends{f', in {place}' if place else ''}"
            return self._make(execution, Kind.STUCK, reason, (fiber.name,))
        if isinstance(error, Unmet):
            return self._make(execution, Kind.EXPECTATION, f"{fiber.name}: {error}", (error.where,), error=error)
        reason = f"{fiber.name} raised {type(error).__name__}: {_first_line(error)}"
        return self._make(execution, Kind.EXCEPTION, reason, (type(error).__name__, _where(error)), error=error)

    def _broken(self, execution: Execution, error: BaseException) -> Finding:
        if not isinstance(error, Diverged):
            signature = (type(error).__name__, _where(error))
            return self._make(execution, Kind.INVARIANT, _first_line(error), signature, error=error)
        replayed = isinstance(self.strategy, Replay)
        reason = str(error) if replayed else f"the same schedule {error}; does the scene look at a clock, or keep state?"
        return self._make(execution, Kind.DIVERGED if replayed else Kind.NONDETERMINISM, reason, (), error=error)

    def _make(
        self,
        execution: Execution,
        kind: Kind,
        reason: str,
        signature: tuple[str, ...],
        *,
        blocked: Sequence[Blocked] = (),
        error: BaseException | None = None,
    ) -> Finding:
        # Whoever goes round in circles shows it soon.
        most = _SHOWN_OF_ENDLESS if kind is Kind.NEVER_ENDS else len(execution.trace)
        lines = _lines(execution, most)
        turns: list[Turn] = [(step.task, step.strong, step.choice) for step in execution.trace[:most]]
        names = tuple(fiber.name for fiber in execution.fibers)
        text = [f"{names[line.task]} {line.text}" for line in lines]
        left_out = self.played.left_out, self.played.left_parts
        schedule = encode(self.played.name, self.guards.shared, left_out, turns, kind.value, checksum(text))
        preemptions = self.strategy.preemptions if isinstance(self.strategy, Replay) else 0
        without = tuple(execution.scene.parts[number] for number in sorted(self.played.left_parts))
        return Finding(
            kind,
            reason,
            names,
            tuple(lines),
            schedule,
            (kind.value, *signature),
            tuple(blocked),
            error,
            preemptions,
            without=without,
        )

    # -- at the end

    def _refuse_unguarded(self) -> None:
        bad = self.guards.unguarded()
        if bad:
            raise InvalidInput(
                ", ".join(bad),
                "invariant",
                "fields that are guarded by the lock at whose release the invariant is looked at; use at_end, or a thread "
                "that takes the lock and looks",
            )

    def _compare_orders(self) -> None:
        result = self.result
        for classes, text in self._orders.items():
            schedule = self._cycles.get(frozenset(classes), "")
            if schedule:
                outcome = f"confirmed, it deadlocks: {schedule}"
            elif result.findings and not self.played.everything:
                outcome = "not decided, the search ended at the first finding"
            else:
                outcome = f"not reproduced, {result.scope}"
            result.lock_orders.append(LockOrder(classes, text, outcome, schedule))


def _give_clocks(execution: Execution) -> None:
    # Strategies that look for races have done it.
    if execution.trace and not execution.trace[-1].clock:
        history = History(len(execution.fibers))
        for step in execution.trace:
            history.add(step)


def cycle(blocked: Sequence[Blocked]) -> list[Blocked]:
    """Give those who wait for each other in a circle; others only wait for one of these."""
    waits = {one.task: one for one in blocked}
    for start in waits:
        path: list[str] = []
        task = start
        while task in waits and task not in path:
            path.append(task)
            task = next((other for other in waits[task].by if other in waits), "")
        if task in path:
            return [waits[name] for name in path[path.index(task) :]]
    return []


def _cycle_classes(blocked: Sequence[Blocked]) -> frozenset[str]:
    return frozenset(one.lock_class for one in cycle(blocked))


def _lines(execution: Execution, most: int) -> list[Line]:
    places: list[Place | None] = execution.places or [None] * len(execution.trace)
    lines = [
        Line(step.task, execution.describe(step), letter_of(step.kind), step.choice, place)
        for step, place in zip(execution.trace[:most], places[:most], strict=True)
    ]
    return [*lines, *(Line(index, text, "", -1, place, waits=True) for index, text, place in execution.held_up)]


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _where(error: BaseException) -> str:
    place = _innermost(error)
    return str(place) if place is not None else ""


def _innermost(error: BaseException) -> str | None:
    code, line = None, 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is not Watchdog.bark.__code__:  # it stands where it interrupts
            code, line = trace.tb_frame.f_code, trace.tb_lineno
        trace = trace.tb_next
    return None if code is None else f"{code.co_qualname}() at {code.co_filename.rpartition('/')[2]}:{line}"
