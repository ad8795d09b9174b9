"""Source-set dynamic partial-order reduction: at least one execution of each class, by other means than the optimal one.

After the same papers. Each race adds a task to try at the place before its first step, and sleep sets end executions that
would repeat another (they count as redundant). Here as a cross-check: both must find the same classes.
"""

from __future__ import annotations

from memhp.explore.execution import Execution
from memhp.explore.fibers import Step
from memhp.explore.happens import History, Race, absorb, not_after
from memhp.explore.strategies import reduction

__all__ = ["Source"]


class Node(reduction.Node):
    """What is to be tried at one place: tasks, or numbers at a choice. The first one is under way."""

    __slots__ = ("done", "step", "todo")

    def __init__(self, asleep: list[Step], todo: list[int], *, is_choice: bool = False) -> None:
        super().__init__(asleep, is_choice=is_choice)
        self.todo = todo
        self.done: set[int] = set()
        self.step: Step | None = None

    @property
    def task(self) -> int:
        """Whose step is under way."""
        return self.todo[0]

    number = task

    def drop(self) -> bool:
        """Go on to the next one."""
        self.done.add(self.todo.pop(0))
        self.step = None
        return bool(self.todo)


class Source(reduction.Reduction[Node]):
    """Plays every class at least once, by source-DPOR with sleep sets."""

    name = "source"

    def _grow(self, execution: Execution) -> Node | None:
        asleep = self._asleep(execution)
        sleepers = {step.task for step in asleep}
        able = [task for task in execution.enabled() if task not in sleepers]
        return Node(asleep, able[:1]) if able else None

    def _fork(self, execution: Execution, task: int, options: int) -> Node:
        return Node(self._asleep(execution), list(range(options)), is_choice=True)

    def _turn_round(self, history: History, race: Race) -> None:
        node = self._stack[race.first]
        sequence = [*not_after(history.steps, race.first), race.second.announced()]
        initials = [step.task for place, step in enumerate(sequence) if _first(step, sequence[:place])]
        covered = {*node.todo, *node.done, *(step.task for step in node.asleep)}
        if not covered.intersection(initials):
            node.todo.append(initials[0])


def _first(step: Step, before: list[Step]) -> bool:
    return all(other.task != step.task for other in before) and absorb(step, before) is not None
