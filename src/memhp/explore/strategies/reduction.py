"""What the partial-order reductions have in common: a depth-first search that looks for races at the end of each execution.

The stack has a place for each step of the execution under way: what is left to try there, and who *sleeps* there, with
whose steps everything that can begin was explored already. What is tried next, and what a race adds, is each one's own.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from memhp.explore.execution import Diverged, Execution
from memhp.explore.fibers import Step
from memhp.explore.happens import History, Race, absorb
from memhp.explore.strategies import Promise

__all__ = ["Node", "Reduction"]


class Node:
    """One place of the execution on the stack.

    Attributes:
        asleep: steps with which everything that can begin was explored already.
        is_choice: whether a task chooses a number there.
        step: the step that is under way; None as long as it isn't known.
    """

    __slots__ = ("asleep", "is_choice")
    step: Step | None

    def __init__(self, asleep: list[Step], *, is_choice: bool) -> None:
        self.asleep = asleep
        self.is_choice = is_choice

    @property
    def task(self) -> int:
        """Whose step is under way."""
        raise NotImplementedError

    @property
    def number(self) -> int:
        """The number that is tried, at a choice."""
        raise NotImplementedError

    def drop(self) -> bool:
        """Forget what is under way; says whether anything is left to try."""
        raise NotImplementedError


N = TypeVar("N", bound=Node)


class Reduction(Generic[N]):
    """A search over a stack of places; a strategy but for :meth:`_grow`, :meth:`_fork` and :meth:`_turn_round`."""

    promise = Promise.COMPLETE

    def __init__(self) -> None:
        self._stack: list[N] = []
        self._history = History(0)
        self._depth = 0
        self._begun = False

    def more(self) -> bool:
        """Go back to the last place where something is left to try."""
        if not self._begun:
            return True
        while self._stack:
            node = self._stack[-1]
            if not node.is_choice and node.step is not None:
                node.asleep.append(node.step)
            if node.drop():
                break
            self._stack.pop()
        return bool(self._stack)

    def begin(self, execution: Execution) -> None:
        """Keep what is known of the steps that will be played again."""
        if not self._begun:
            self._begun = True
            self._history = History(len(execution.fibers))
        self._history.cut(max(0, len(self._stack) - 1))
        self._depth = 0

    def pick(self, execution: Execution) -> int | None:
        """Follow the stack, and let it grow."""
        depth = self._depth
        if depth == len(self._stack):
            node = self._grow(execution)
            if node is None:
                return None
            self._stack.append(node)
        else:
            node = self._stack[depth]
        task, step = node.task, node.step
        found = execution.fibers[task].label
        if found is None or (step is not None and not step.same(found)):
            raise Diverged(depth + 1, repr(step), repr(found))
        self._depth += 1
        return task

    def choose(self, execution: Execution, task: int, options: int) -> int:
        """Try the numbers in order."""
        if self._depth == len(self._stack):
            self._stack.append(self._fork(execution, task, options))
        self._depth += 1
        return self._stack[self._depth - 1].number

    def end(self, execution: Execution) -> None:
        """Find the races, and note what remains to be tried."""
        history = self._history
        for known, step in zip(history.steps, execution.trace, strict=False):
            step.clock = known.clock
        for depth in range(len(history.steps), len(execution.trace)):
            step = execution.trace[depth]
            history.add(step)
            self._stack[depth].step = step
        waiting = [race for step in execution.waiting() for race in history.look(step)]
        for races in [*history.races, waiting]:
            for race in races:
                self._turn_round(history, race)

    def _asleep(self, execution: Execution) -> list[Step]:
        # What sleeps after a step is what slept before it and doesn't depend on it.
        if not self._stack:
            return []
        last = execution.trace[-1]
        return [step for step in self._stack[-1].asleep if step.task != last.task and absorb(step, (last,)) is not None]

    def _grow(self, execution: Execution) -> N | None:
        raise NotImplementedError

    def _fork(self, execution: Execution, task: int, options: int) -> N:
        raise NotImplementedError

    def _turn_round(self, history: History, race: Race) -> None:
        raise NotImplementedError
