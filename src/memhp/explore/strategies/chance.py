"""Chance: a task at random at each step. Finds much in little time, and proves nothing."""

from __future__ import annotations

import random

from memhp.explore.execution import Execution
from memhp.explore.strategies import Promise

__all__ = ["Chance"]


class Chance:
    """Plays so many executions, each step of which is anybody's with equal chance; the seed decides all of it."""

    promise = Promise.SAMPLED
    name = "random"

    def __init__(self, executions: int = 1000, seed: int = 0) -> None:
        self._left = executions
        self._random = random.Random(seed)  # noqa: S311 - no secret

    def more(self) -> bool:
        """Count down."""
        self._left -= 1
        return self._left >= 0

    def begin(self, execution: Execution) -> None:
        """Nothing is kept."""

    def pick(self, execution: Execution) -> int | None:
        """Draw among those who can go on."""
        able = execution.enabled()
        return self._random.choice(able) if able else None

    def choose(self, execution: Execution, task: int, options: int) -> int:
        """Draw a number."""
        return self._random.randrange(options)

    def end(self, execution: Execution) -> None:
        """Nothing is learnt."""
