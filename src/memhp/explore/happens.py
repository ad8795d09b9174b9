"""Which step had to come before which, and which two could have come the other way round.

Two executions with the same steps and the same order between dependent steps are the same for every task. They form one
*class*; a complete search needs one execution of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memhp.explore.fibers import Step, thread_of
from memhp.explore.ops import DEPENDENT, JOIN, ORDERED, RELATION, REVERSIBLE, SLEEP, START, WAKE

__all__ = ["History", "Race", "absorb", "class_of", "not_after"]


class Race(NamedTuple):
    """Two steps that could come the other way round: the place of the first in the trace, and the second."""

    first: int
    second: Step


class History:
    """The steps of one execution with their clocks; grows with it, and can be cut back to a prefix."""

    def __init__(self, tasks: int) -> None:
        self.steps: list[Step] = []
        self.races: list[list[Race]] = []
        """For each step the races that it is the second of."""
        self._last: list[list[Step]] = [[] for _ in range(tasks)]
        self._of_object: dict[int, list[tuple[int, Step]]] = {}
        self._born: list[list[int]] = [[0] * tasks for _ in range(tasks)]
        """What had to come before each task's first step: that it was started."""

    def cut(self, length: int) -> None:
        """Forget all but the first so many steps."""
        while len(self.steps) > length:
            step = self.steps.pop()
            self.races.pop()
            self._last[step.task].pop()
            if step.obj >= 0:
                self._of_object[step.obj].pop()

    def add(self, step: Step) -> None:
        """Take the next step in: set its clock, find its races."""
        races = self.look(step)
        self._last[step.task].append(step)
        if step.obj >= 0:
            self._of_object.setdefault(step.obj, []).append((len(self.steps), step))
        elif step.kind == START:
            self._born[thread_of(step.obj)] = step.clock
        self.steps.append(step)
        self.races.append(races)

    def look(self, step: Step) -> list[Race]:
        """Set the clock of a step that would come next, and give the races that it would be the second of."""
        mine = self._last[step.task]
        clock = mine[-1].clock.copy() if mine else self._born[step.task].copy()
        races: list[Race] = []
        if step.obj >= 0:
            # `seen` is what comes before it without the edge in question. What only had to be waited for (the holder's own
            # release) is not in it: it would hide the race for the lock itself.
            seen = clock
            clock = clock.copy()
            before = self._of_object.get(step.obj, [])
            woken = self._woken_at(step, before) if step.kind == SLEEP else -1
            for place, other in reversed(before):
                if other.task == step.task:
                    continue
                relation = ORDERED if place == woken else RELATION[other.kind][step.kind]
                if not relation:
                    continue
                if relation == REVERSIBLE:
                    if seen[other.task] < other.index:
                        races.append(Race(place, step))
                        _join(seen, other.clock)
                        _join(clock, other.clock)
                elif clock[other.task] < other.index:
                    _join(clock, other.clock)
        elif step.kind == JOIN:
            self._take_end(clock, thread_of(step.obj))
        clock[step.task] = step.index
        step.clock = clock
        return races

    def _take_end(self, clock: list[int], task: int) -> None:
        # The end of a task is no step; in a clock it counts as one more, so that what follows the last step comes before too.
        last = self._last[task]
        _join(clock, last[-1].clock if last else self._born[task])
        clock[task] = len(last) + 1

    def _woken_at(self, step: Step, before: list[tuple[int, Step]]) -> int:
        # The first wake-up since it looked is what let it look again; later ones might have come later.
        first = -1
        for place, other in reversed(before):
            if other.task == step.task:
                break
            if other.kind == WAKE:
                first = place
        return first


def _join(clock: list[int], other: list[int]) -> None:
    for task, index in enumerate(other):
        clock[task] = max(clock[task], index)


def not_after(steps: Sequence[Step], place: int) -> list[Step]:
    """Give the steps behind ``place`` that didn't have to come after the step there, in their order."""
    task, index = steps[place].task, steps[place].index
    return [step for step in steps[place + 1 :] if step.clock[task] < index]


def absorb(step: Step, sequence: Sequence[Step]) -> Sequence[Step] | None:
    """Give what is left of a sequence if ``step`` may as well come first in it; None if it may not.

    It may if it is in the sequence and depends on nothing before it there, or if it depends on nothing there at all.
    """
    task, obj, row = step.task, step.obj, DEPENDENT[step.kind]
    for place, other in enumerate(sequence):
        if other.task == task:
            if other.choice != step.choice:
                return None
            return [*sequence[:place], *sequence[place + 1 :]]
        if other.obj == obj and obj >= 0 and row[other.kind]:
            return None
    return sequence


def class_of(steps: Sequence[Step]) -> tuple[tuple[int, ...], ...]:
    """Give what all executions of one class have in common: each task's steps, and what had to come before them."""
    return tuple(sorted((step.task, step.index, step.kind, step.obj, step.choice, *step.clock) for step in steps))
