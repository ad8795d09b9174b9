"""Optimal dynamic partial-order reduction: one execution of each class, and no other.

After Abdulla, Aronis, Jonsson and Sagonas (POPL 2014; JACM 2017). At the end of each execution, every race in it is
turned round: the steps that don't depend on its first step, then its second step, make a *wakeup sequence* that is put
into the tree of the place before the first, unless a task that sleeps there has covered it already. What is explored from
there is guided by the tree, so no execution is begun that must be given up.
"""

from __future__ import annotations

from collections.abc import Sequence

from memhp.explore.execution import Diverged, Execution, Step
from memhp.explore.happens import History, Race, absorb, not_after
from memhp.explore.ops import CHOOSE
from memhp.explore.strategies import Promise

__all__ = ["Optimal"]


class Branch:
    """One step of a wakeup tree, and the branches behind it in the order in which they are taken."""

    __slots__ = ("branches", "step")

    def __init__(self, step: Step) -> None:
        self.step = step
        self.branches: list[Branch] = []


class Node:
    """One place of the execution on the stack: what is to be tried there, and who sleeps."""

    __slots__ = ("asleep", "branches", "is_choice")

    def __init__(self, asleep: list[Step], branches: list[Branch], *, is_choice: bool = False) -> None:
        self.asleep = asleep
        """Steps with which everything that can begin was explored already."""
        self.branches = branches
        """The first one is under way."""
        self.is_choice = is_choice


class Optimal:
    """Plays one execution of each class, by optimal DPOR with wakeup trees."""

    promise = Promise.COMPLETE
    name = "optimal"

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
            done = node.branches.pop(0)
            if not node.is_choice:
                node.asleep.append(done.step)
            if node.branches:
                break
            self._stack.pop()
        self._depth = 0
        return bool(self._stack)

    def begin(self, execution: Execution) -> None:
        """Keep what is known of the steps that will be played again."""
        if not self._begun:
            self._begun = True
            self._history = History(len(execution.fibers))
        self._history.cut(max(0, len(self._stack) - 1))

    def pick(self, execution: Execution) -> int | None:
        """Follow the stack, then the wakeup tree, then whoever can go on."""
        depth = self._depth
        if depth == len(self._stack):
            node = self._grow(execution)
            if node is None:
                return None
            self._stack.append(node)
        else:
            node = self._stack[depth]
        step = node.branches[0].step
        found = execution.fibers[step.task].label
        if found is None or not step.same(found):
            raise Diverged(depth + 1, repr(step), repr(found))
        self._depth += 1
        return step.task

    def choose(self, execution: Execution, task: int, options: int) -> int:
        """Try the numbers in order; one that a wakeup sequence asks for is the only one there."""
        depth = self._depth
        if depth == len(self._stack):
            label = execution.announced(task)
            asleep, branches = self._inherited(execution)
            if not branches:
                branches = [Branch(_chosen(label, number)) for number in range(options)]
            self._stack.append(Node(asleep, branches, is_choice=True))
        self._depth += 1
        return self._stack[depth].branches[0].step.choice

    def _inherited(self, execution: Execution) -> tuple[list[Step], list[Branch]]:
        # What sleeps after a step is what slept before it and doesn't depend on it.
        if not self._stack:
            return [], []
        above = self._stack[-1]
        last = execution.trace[-1]
        asleep = [step for step in above.asleep if step.task != last.task and absorb(step, (last,)) is not None]
        return asleep, above.branches[0].branches

    def _grow(self, execution: Execution) -> Node | None:
        asleep, branches = self._inherited(execution)
        if branches:
            return Node(asleep, branches)
        sleepers = {step.task for step in asleep}
        able = execution.enabled()
        if not able:
            return None
        for task in self._in_order(execution, able):
            if task not in sleepers:
                return Node(asleep, [Branch(execution.announced(task).announced())])
        raise AssertionError(f"every task that can go on sleeps: {asleep}")

    def _in_order(self, execution: Execution, able: list[int]) -> list[int]:
        # Whoever is at it goes on: short ways between switches make traces that are easy to read.
        last = execution.trace[-1].task if execution.trace else -1
        return [last, *able] if last in able else able

    def end(self, execution: Execution) -> None:
        """Find the races, and note what remains to be tried."""
        history = self._history
        for known, step in zip(history.steps, execution.trace, strict=False):
            step.clock = known.clock
        for place in range(len(history.steps), len(execution.trace)):
            step = execution.trace[place]
            history.add(step)
            self._stack[place].branches[0].step = step
        waiting = [race for step in execution.waiting() for race in history.look(step)]
        for races in [*history.races, waiting]:
            for race in races:
                self._turn_round(history, race)

    def _turn_round(self, history: History, race: Race) -> None:
        node = self._stack[race.first]
        sequence = not_after(history.steps, race.first)
        sequence.append(race.second.announced())
        if any(absorb(step, sequence) is not None for step in node.asleep):
            return
        insert(node.branches, sequence)


def insert(branches: list[Branch], sequence: Sequence[Step]) -> None:
    """Put a sequence into a wakeup tree, unless the tree has one that leads to the same."""
    while True:
        for branch in branches:
            rest = absorb(branch.step, sequence)
            if rest is not None:
                break
        else:
            break
        if not rest or not branch.branches:
            return
        branches, sequence = branch.branches, rest
    for step in _choices_first(sequence):
        fresh = Branch(step)
        branches.append(fresh)
        branches = fresh.branches


def _choices_first(sequence: Sequence[Step]) -> Sequence[Step]:
    # A choice is made at once. One that has lost the step before it to a branch of the tree comes first.
    lost = [
        step
        for place, step in enumerate(sequence)
        if step.kind == CHOOSE and not any(other.task == step.task for other in sequence[:place])
    ]
    return [*lost, *(step for step in sequence if step not in lost)] if lost else sequence


def _chosen(label: Step, number: int) -> Step:
    return Step(label.task, label.kind, label.obj, label.strong, label.index, number)
