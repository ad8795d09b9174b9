"""Source-set dynamic partial-order reduction: at least one execution of each class, by other means than the optimal one.

After the same papers. Each race adds a task to try at the place before its first step, and sleep sets end executions that
would repeat another (they count as redundant). Here as a cross-check: both must find the same classes.
"""

from __future__ import annotations

from memhp.explore.execution import Diverged, Execution, Step
from memhp.explore.happens import History, Race, absorb, not_after
from memhp.explore.strategies import Promise

__all__ = ["Source"]


class Node:
    """One place of the execution on the stack."""

    __slots__ = ("asleep", "done", "is_choice", "step", "todo")

    def __init__(self, asleep: list[Step], todo: list[int], *, is_choice: bool = False) -> None:
        self.asleep = asleep
        self.todo = todo
        """Tasks to try, or numbers at a choice; the first one is under way."""
        self.done: set[int] = set()
        self.step: Step | None = None
        self.is_choice = is_choice


class Source:
    """Plays every class at least once, by source-DPOR with sleep sets."""

    promise = Promise.COMPLETE
    name = "source"

    def __init__(self) -> None:
        self._stack: list[Node] = []
        self._history = History(0)
        self._depth = 0
        self._begun = False

    def more(self) -> bool:
        """Go back to the last place where something is left to try."""
        if not self._begun:
            return True
        while self._stack:
            node = self._stack[-1]
            node.done.add(node.todo.pop(0))
            if not node.is_choice and node.step is not None:
                node.asleep.append(node.step)
            node.step = None
            if node.todo:
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
        """Follow the stack, then whoever can go on and doesn't sleep."""
        if self._depth == len(self._stack):
            asleep = self._inherited(execution)
            sleepers = {step.task for step in asleep}
            able = [task for task in execution.enabled() if task not in sleepers]
            if not able:
                return None
            self._stack.append(Node(asleep, able[:1]))
        node = self._stack[self._depth]
        task = node.todo[0]
        found = execution.fibers[task].label
        if found is None or (node.step is not None and not node.step.same(found)):
            raise Diverged(self._depth + 1, repr(node.step), repr(found))
        self._depth += 1
        return task

    def choose(self, execution: Execution, task: int, options: int) -> int:
        """Try the numbers in order."""
        if self._depth == len(self._stack):
            self._stack.append(Node(self._inherited(execution), list(range(options)), is_choice=True))
        self._depth += 1
        return self._stack[self._depth - 1].todo[0]

    def _inherited(self, execution: Execution) -> list[Step]:
        if not self._stack:
            return []
        last = execution.trace[-1]
        return [step for step in self._stack[-1].asleep if step.task != last.task and absorb(step, (last,)) is not None]

    def end(self, execution: Execution) -> None:
        """Find the races, and note what remains to be tried."""
        history = self._history
        for known, step in zip(history.steps, execution.trace, strict=False):
            step.clock = known.clock
        for place in range(len(history.steps), len(execution.trace)):
            history.add(execution.trace[place])
            self._stack[place].step = execution.trace[place]
        waiting = [race for step in execution.waiting() for race in history.look(step)]
        for races in [*history.races, waiting]:
            for race in races:
                self._turn_round(history, race)

    def _turn_round(self, history: History, race: Race) -> None:
        node = self._stack[race.first]
        sequence = [*not_after(history.steps, race.first), race.second.announced()]
        initials = [step.task for place, step in enumerate(sequence) if _first(step, sequence[:place])]
        covered = {*node.todo, *node.done, *(step.task for step in node.asleep)}
        if not covered.intersection(initials):
            node.todo.append(initials[0])


def _first(step: Step, before: list[Step]) -> bool:
    return all(other.task != step.task for other in before) and absorb(step, before) is not None
