"""Replay: one execution, exactly as it was."""

from __future__ import annotations

from collections.abc import Sequence

from memhp.explore.execution import Diverged, Execution
from memhp.explore.ops import CHOOSE, NAMES
from memhp.explore.strategies import Promise

__all__ = ["Replay", "Turn"]

Turn = tuple[int, int, int]
"""Whose turn it is, the kind of its step, and the number that it chooses (-1 if the step is no choice)."""


class Replay:
    """Plays the given turns, and stops where the tasks would do something else.

    Attributes:
        diverged: where that was, if it happened.
        preemptions: how many switches left a task that could have gone on.
    """

    promise = Promise.SAMPLED
    name = "replay"

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns
        self._played = False
        self.diverged: Diverged | None = None
        self.preemptions = 0

    def more(self) -> bool:
        """There is one."""
        played, self._played = self._played, True
        return not played

    def begin(self, execution: Execution) -> None:
        """Nothing is kept."""

    def pick(self, execution: Execution) -> int | None:
        """Give the next turn's task."""
        place = len(execution.trace)
        if place == len(self._turns):
            return None
        task, kind, _ = self._turns[place]
        found = self._instead(execution, task, kind)
        if not found:
            last = execution.trace[-1].task if place else task
            self.preemptions += last != task and execution.fibers[last].ready()
            return task
        self._diverge(execution, place, found)
        return None

    def _instead(self, execution: Execution, task: int, kind: int) -> str:
        # What would happen in place of the turn; '' if it is the turn.
        if task >= len(execution.fibers):
            return "it does not exist"
        fiber = execution.fibers[task]
        if fiber.label is None:
            return "it has ended"
        if not fiber.ready():
            return f"it waits: {execution.describe(fiber.label)}"
        return "" if fiber.label.strong == kind else execution.describe(fiber.label)

    def choose(self, execution: Execution, task: int, options: int) -> int:
        """Give the number of the turn."""
        place = len(execution.trace)
        mine, kind, number = self._turns[place] if place < len(self._turns) else (task, CHOOSE, 0)
        if mine != task or kind != CHOOSE or number >= options:
            self._diverge(execution, place, f"{execution.fibers[task].name} would choose one of {options}")
            return 0
        return number

    def end(self, execution: Execution) -> None:
        """Nothing is learnt."""

    def _diverge(self, execution: Execution, place: int, found: str) -> None:
        if self.diverged is None:
            task, kind, _ = self._turns[place]
            name = execution.fibers[task].name if task < len(execution.fibers) else f"thread {task}"
            self.diverged = Diverged(place + 1, f"{name} to {NAMES[kind]}", found)
        if execution.broken is None:
            execution.broken = self.diverged
