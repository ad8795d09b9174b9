"""Brute force: every schedule, one after the other. The oracle that the reductions are checked against."""

from __future__ import annotations

from memhp.explore.execution import Execution
from memhp.explore.strategies import Promise

__all__ = ["Brute"]


class Brute:
    """Plays every schedule, depth first.

    Args:
        preemptions: play only schedules with at most so many switches away from a task that could have gone on.
    """

    name = "brute"

    def __init__(self, preemptions: int | None = None) -> None:
        self.promise = Promise.COMPLETE if preemptions is None else Promise.BOUNDED
        if preemptions is not None:
            self.name = f"at most {preemptions} preemptions"
        self._preemptions = preemptions
        self._stack: list[list[int]] = []
        self._depth = 0
        self._spent = 0
        self._begun = False

    def more(self) -> bool:
        """Go back to the last place where another task, or number, can be tried."""
        if not self._begun:
            self._begun = True
            return True
        while self._stack:
            self._stack[-1].pop(0)
            if self._stack[-1]:
                return True
            self._stack.pop()
        return False

    def begin(self, execution: Execution) -> None:
        """Begin anew at the root."""
        self._depth = self._spent = 0

    def pick(self, execution: Execution) -> int | None:
        """Give the first that is left to try at this place."""
        last = execution.trace[-1].task if execution.trace else -1
        if self._depth == len(self._stack):
            able = execution.enabled()
            if not able:
                return None
            self._stack.append(self._allowed(last, able))
        task = self._stack[self._depth][0]
        self._depth += 1
        if self._preemptions is not None and task != last and last >= 0 and execution.fibers[last].ready():
            self._spent += 1
        return task

    def _allowed(self, last: int, able: list[int]) -> list[int]:
        if last not in able:
            return able
        if self._preemptions is not None and self._spent >= self._preemptions:
            return [last]
        return [last, *(task for task in able if task != last)]

    def choose(self, execution: Execution, task: int, options: int) -> int:
        """Give the first number that is left to try at this place."""
        if self._depth == len(self._stack):
            self._stack.append(list(range(options)))
        number = self._stack[self._depth][0]
        self._depth += 1
        return number

    def end(self, execution: Execution) -> None:
        """Nothing is learnt."""
