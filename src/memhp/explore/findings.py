"""What an exploration says: what was found, and what it means if nothing was."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from memhp.explore.fibers import Blocked, Place
from memhp.explore.strategies import Promise

__all__ = ["Finding", "Kind", "Line", "LockOrder", "Result", "Verdict"]


class Kind(enum.Enum):
    """What went wrong in an execution."""

    DEADLOCK = "deadlock"
    EXCEPTION = "exception"
    INVARIANT = "invariant"
    EXPECTATION = "expectation"
    """Something else came of a step of a scenario than it expects."""
    NEVER_ENDS = "never ends"
    """So many steps that a task was taken to go round in circles."""
    STUCK = "stuck"
    """A task blocked or computed where the explorer can't see it."""
    NONDETERMINISM = "nondeterminism"
    """The same schedule did not give the same steps."""
    DIVERGED = "diverged"
    """A schedule string could not be played to its end: the code has changed."""


class Verdict(enum.Enum):
    """What came of it."""

    HOLDS = "holds"
    """The search was complete and found nothing."""
    FAILS = "fails"
    UNDECIDED = "undecided"
    """Nothing was found, and not everything was looked at."""


class Line(NamedTuple):
    """One step of a finding, in words."""

    task: int
    text: str
    letter: str
    choice: int
    place: Place | None
    waits: bool = False
    """Whether it is no step but a task that can't make this one."""


class Finding(NamedTuple):
    """One execution in which something went wrong.

    Attributes:
        kind: what.
        reason: one line: who waits for what, or what was raised.
        names: the threads.
        lines: the steps.
        schedule: the string that plays it again.
        blocked: who can't go on, at a deadlock.
        error: what was raised, if that is what went wrong.
        signature: equal for findings of one and the same bug.
        preemptions: how many of its switches leave a task that could have gone on.
        original: the finding before it was made smaller.
        without: the parts of the scene that it doesn't need.
    """

    kind: Kind
    reason: str
    names: tuple[str, ...]
    lines: tuple[Line, ...]
    schedule: str
    signature: tuple[str, ...]
    blocked: tuple[Blocked, ...] = ()
    error: BaseException | None = None
    preemptions: int = 0
    original: Finding | None = None
    without: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """What went wrong, in one line."""
        return self.reason if self.kind is Kind.DIVERGED else f"{self.kind.value}: {self.reason}"

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return sum(not line.waits for line in self.lines)

    @property
    def switches(self) -> int:
        """How often another task goes on."""
        tasks = [line.task for line in self.lines if not line.waits]
        return sum(a != b for a, b in itertools.pairwise(tasks))


class LockOrder(NamedTuple):
    """A lock order that lockdep reported, and what the search says of it.

    Attributes:
        classes: the lock classes of the cycle.
        text: lockdep's report.
        outcome: confirmed, with a schedule; not reproduced; or not decided.
    """

    classes: tuple[str, ...]
    text: str
    outcome: str
    schedule: str = ""

    def __str__(self) -> str:
        return f"lock order {' -> '.join([*self.classes, self.classes[0]])}: {self.outcome}"


class Result:
    """What an exploration found, and how much it looked at.

    Attributes:
        name: of the scene.
        strategy: how it was explored.
        promise: what that strategy promises if no limit is hit.
        executions: how many were played to their end.
        redundant: how many were given up because they would have repeated another.
        steps: of all executions.
        deadlocks: how many executions ended in a deadlock.
        failed: in how many something went wrong.
        findings: what went wrong, in the order in which it was found; only the first unless all were asked for.
        lock_orders: what lockdep reported.
        limit: the limit that ended the search before its time, or ''.
        ended_early: whether it ended at a finding.
        shared: the declared fields that no lock guards.
        seconds: how long it took.
    """

    def __init__(self, name: str, strategy: str, promise: Promise) -> None:
        self.name = name
        self.strategy = strategy
        self.promise = promise
        self.executions = 0
        self.redundant = 0
        self.steps = 0
        self.deadlocks = 0
        self.failed = 0
        self.findings: list[Finding] = []
        self.lock_orders: list[LockOrder] = []
        self.limit = ""
        self.ended_early = False
        self.shared: tuple[str, ...] = ()
        self.seconds = 0.0

    def __repr__(self) -> str:
        return f"<Result {self.name}: {self.verdict.value}; {self.scope}>"

    @property
    def complete(self) -> bool:
        """Whether every execution was looked at, up to the order of independent steps."""
        return self.promise is Promise.COMPLETE and not self.limit and not self.ended_early

    @property
    def verdict(self) -> Verdict:
        """What came of it."""
        if self.findings or self.lock_orders:
            return Verdict.FAILS
        return Verdict.HOLDS if self.complete else Verdict.UNDECIDED

    @property
    def scope(self) -> str:
        """How much was looked at, in words."""
        many = f"{self.executions:,} execution{'' if self.executions == 1 else 's'}, {self.steps:,} steps"
        if self.redundant:
            many += f", {self.redundant:,} given up as redundant"
        if self.ended_early and not self.limit:
            return f"ended at the first finding ({self.strategy}): {many}"
        if self.limit:
            return f"bounded: {self.limit}; {many}"
        return f"{self.promise.value} ({self.strategy}): {many}"

    def __str__(self) -> str:
        heads: Sequence[str] = [finding.headline for finding in self.findings]
        heads = [*heads, *map(str, self.lock_orders)] or [
            {Verdict.HOLDS: "holds", Verdict.UNDECIDED: "nothing found, not decided"}[self.verdict]
        ]
        return "\n".join([f"{self.name}: {heads[0]}", *heads[1:], self.scope])
