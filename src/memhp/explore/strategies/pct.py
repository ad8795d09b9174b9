"""PCT: random priorities, and a few places where the one who runs falls behind all others.

After Burckhardt, Kothari, Musuvathi and Nagarakatte (ASPLOS 2010): a bug that needs ``depth`` orderings is found by one
execution with a probability of at least 1/(tasks * steps^(depth-1)). The number of steps is that of the longest execution
so far.
"""

from __future__ import annotations

import random

from memhp.explore.execution import Execution
from memhp.explore.strategies import Promise

__all__ = ["Pct"]


class Pct:
    """Plays so many executions with random priorities and ``depth - 1`` places where they change."""

    promise = Promise.SAMPLED
    name = "pct"

    def __init__(self, executions: int = 1000, seed: int = 0, depth: int = 3) -> None:
        self._left = executions
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._depth = depth
        self._longest = 1
        self._priorities: list[int] = []
        self._changes: dict[int, int] = {}

    def more(self) -> bool:
        """Count down."""
        self._left -= 1
        return self._left >= 0

    def begin(self, execution: Execution) -> None:
        """Draw the priorities and the places."""
        tasks = len(execution.fibers)
        self._priorities = [self._depth + number for number in self._random.sample(range(tasks), tasks)]
        self._changes = {self._random.randrange(self._longest): priority for priority in range(1, self._depth)}

    def pick(self, execution: Execution) -> int | None:
        """Give the task with the highest priority; at a change it gets the lowest from then on."""
        able = execution.enabled()
        if not able:
            return None
        place = len(execution.trace)
        best = max(able, key=self._priorities.__getitem__)
        if place in self._changes:
            self._priorities[best] = self._changes[place]
            best = max(able, key=self._priorities.__getitem__)
        return best

    def choose(self, execution: Execution, task: int, options: int) -> int:
        """Draw a number."""
        return self._random.randrange(options)

    def end(self, execution: Execution) -> None:
        """Learn how long executions are."""
        self._longest = max(self._longest, len(execution.trace))
