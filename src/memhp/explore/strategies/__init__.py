"""Strategies: who goes next, and what that promises.

A strategy is asked once per step, and told how each execution began and ended. It knows nothing of greenlets or locks;
an execution knows nothing of searches.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from memhp.explore.execution import Execution

__all__ = ["Promise", "Strategy"]


class Promise(enum.Enum):
    """What it means that nothing was found."""

    COMPLETE = "complete"
    """Every execution was played, up to the order of steps that don't depend on each other."""
    BOUNDED = "bounded"
    """Every execution within a bound was played."""
    SAMPLED = "sampled"
    """Some executions were played; nothing is said of the others."""


class Strategy(Protocol):
    """Decides who goes next."""

    promise: Promise
    name: str

    def more(self) -> bool:
        """Say whether there is another execution to play."""

    def begin(self, execution: Execution) -> None:
        """Hear that an execution begins; every task has announced its first step."""

    def pick(self, execution: Execution) -> int | None:
        """Give the task that goes next, or None to end the execution here."""

    def choose(self, execution: Execution, task: int, options: int) -> int:
        """Choose a number below ``options`` for a task that asks for one."""

    def end(self, execution: Execution) -> None:
        """Hear that the execution has come to its end."""
