"""Optimal dynamic partial-order reduction: one execution of each class, and no other.

After Abdulla, Aronis, Jonsson and Sagonas (POPL 2014; JACM 2017). At the end of each execution, every race in it is
turned round: the steps that don't depend on its first step, then its second step, make a *wakeup sequence* that is put
into the tree of the place before the first, unless a task that sleeps there has covered it already. What is explored from
there is guided by the tree, so no execution is begun that must be given up.
"""

from __future__ import annotations

from collections.abc import Sequence

from memhp.explore.execution import Execution
from memhp.explore.fibers import Step, thread_of
from memhp.explore.happens import History, Race, absorb, not_after
from memhp.explore.ops import CHOOSE, START
from memhp.explore.strategies import reduction

__all__ = ["Optimal"]


class Branch:
    """One step of a wakeup tree, and the branches behind it in the order in which they are taken."""

    __slots__ = ("branches", "step")

    def __init__(self, step: Step) -> None:
        self.step = step
        self.branches: list[Branch] = []


class Node(reduction.Node):
    """What is to be tried at one place: a wakeup tree. Its first branch is under way."""

    __slots__ = ("branches",)

    def __init__(self, asleep: list[Step], branches: list[Branch], *, is_choice: bool = False) -> None:
        super().__init__(asleep, is_choice=is_choice)
        self.branches = branches

    @property
    def task(self) -> int:
        """Whose step is under way."""
        return self.branches[0].step.task

    @property
    def number(self) -> int:
        """The number that is tried, at a choice."""
        return self.branches[0].step.choice

    @property
    def step(self) -> Step:
        """The step that is under way."""
        return self.branches[0].step

    @step.setter
    def step(self, step: Step) -> None:
        self.branches[0].step = step

    def drop(self) -> bool:
        """Take away the first branch."""
        self.branches.pop(0)
        return bool(self.branches)


class Optimal(reduction.Reduction[Node]):
    """Plays one execution of each class, by optimal DPOR with wakeup trees."""

    name = "optimal"

    def _grow(self, execution: Execution) -> Node | None:
        asleep = self._asleep(execution)
        if branches := self._planned():
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

    def _fork(self, execution: Execution, task: int, options: int) -> Node:
        # A number that a wakeup sequence asks for is the only one there.
        branches = self._planned()
        if not branches:
            label = execution.announced(task)
            branches = [Branch(_chosen(label, number)) for number in range(options)]
        return Node(self._asleep(execution), branches, is_choice=True)

    def _planned(self) -> list[Branch]:
        return self._stack[-1].branches[0].branches if self._stack else []

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
        if step.kind == CHOOSE and not any(_leads_to(other, step.task) for other in sequence[:place])
    ]
    return [*lost, *(step for step in sequence if step not in lost)] if lost else sequence


def _leads_to(step: Step, task: int) -> bool:
    return step.task == task or (step.kind == START and thread_of(step.obj) == task)


def _chosen(label: Step, number: int) -> Step:
    return Step(label.task, label.kind, label.obj, label.strong, label.index, number)
