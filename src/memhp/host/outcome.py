"""What came of a change: each try that failed, what is changed now, and what could not be put back."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from memhp.units import format_ids

if TYPE_CHECKING:
    from memhp.host.plan import Plan

__all__ = ["KERNEL_CHOSE", "Attempt", "Outcome", "Result", "Stuck"]

KERNEL_CHOSE = "the kernel itself chooses among its zones, by what each spans now"
"""Why a block is online in another kernel zone than before: no word that can be written names one."""


class Result(enum.Enum):
    """How a transaction ended; the values are the exit codes of the commands."""

    DONE = 0
    """The goal is reached."""
    UNCHANGED = 1
    """Nothing is changed: it was refused, or undone."""
    PARTLY = 64
    """A part is done: because that was welcome, or because it could not be undone."""


class Attempt(NamedTuple):
    """A try that failed.

    Attributes:
        block: the block's id.
        word: what was written, or would have been.
        errno: what came of it.
        text: the same in words.
        seconds: how long it took, 0 if nothing was written.
        evidence: what held it up, as far as it can be told.
        undo: whether it was a try to undo.
        asked: whether it failed before a write, because somebody who was asked refused.
    """

    block: int
    word: str
    errno: int
    text: str
    seconds: float = 0.0
    evidence: tuple[str, ...] = ()
    undo: bool = False
    asked: bool = False

    def __str__(self) -> str:
        why = f" ({'; '.join(self.evidence)})" if self.evidence else ""
        return f"memory{self.block}: {self.text}{why}"


class Stuck(NamedTuple):
    """A block that is not as it was and could not be put back."""

    block: int
    before: str
    now: str
    why: str

    def __str__(self) -> str:
        return f"memory{self.block} was {self.before} and is {self.now}: {self.why}"


class Outcome(NamedTuple):
    """What came of it.

    Attributes:
        plan: what was to be done.
        result: done, unchanged or partly.
        changed: the blocks that are changed now, in the order in which they were.
        undone: the blocks that were changed and are as before again.
        stuck: the blocks that are neither.
        attempts: what failed on the way; a try in vain each.
        others: blocks that somebody else brought into the wanted state meanwhile.
        seconds: how long it all took.
        reason: why it isn't done; '' if it is.
    """

    plan: Plan
    result: Result
    changed: tuple[int, ...] = ()
    undone: tuple[int, ...] = ()
    stuck: tuple[Stuck, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    others: tuple[int, ...] = ()
    seconds: float = 0.0
    reason: str = ""

    @property
    def vain(self) -> int:
        """How many writes failed."""
        return sum(not attempt.undo and not attempt.asked for attempt in self.attempts)

    def __str__(self) -> str:
        verb = self.plan.operation.value
        if self.result is Result.DONE:
            return f"memory{format_ids(self.changed)} {verb}" if self.changed else f"nothing to do: all of it is {verb} already"
        held = f"memory{format_ids(self.changed)} {verb}" if self.changed else "no block is changed"
        undone = f"; memory{format_ids(self.undone)} put back" if self.undone else ""
        stuck = "".join(f"; {block}" for block in self.stuck)
        return f"{self.reason}; {held}{undone}{stuck}"
