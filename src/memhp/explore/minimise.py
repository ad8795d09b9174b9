"""Making a finding smaller: fewer threads, fewer parts of the scene, fewer switches, as long as the same thing goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from memhp.errors import MemhpError
from memhp.explore.execution import Execution
from memhp.explore.fibers import Step
from memhp.explore.findings import Finding, Kind
from memhp.explore.schedule import parse
from memhp.explore.search import REPEATABLE, Played, cycle, search
from memhp.explore.strategies import Strategy
from memhp.explore.strategies.brute import Brute
from memhp.explore.strategies.optimal import Optimal
from memhp.explore.strategies.replay import Replay

__all__ = ["dressed", "fewest_switches", "smaller"]

_EXECUTIONS = 2000
_SECONDS = 3.0
"""What one attempt may cost."""
_SECONDS_FOR_PARTS = 15.0
_PREEMPTIONS = 4
_STATES = 20_000
"""Among how many beginnings of one execution the order with the fewest switches is looked for."""


def smaller(played: Played, finding: Finding) -> Finding:
    """Give the smallest execution that was found in which the same goes wrong; the first one is its ``original``."""
    if finding.kind not in REPEATABLE:
        return finding
    best = dressed(played, finding)
    reduced = played.once_more()
    if _is_cycle(finding):
        best = _fewer_threads(reduced, best)
    best = _fewer_parts(reduced, best)
    best = _fewer_preemptions(reduced, best)
    best = _fewer_switches(reduced, best)
    return finding if best is finding else best._replace(original=finding)


def _is_cycle(finding: Finding) -> bool:
    # Whatever else goes wrong may go wrong because somebody, or something, is missing.
    return finding.kind is Kind.DEADLOCK and bool(cycle(finding.blocked))


def dressed(played: Played, finding: Finding) -> Finding:
    """Play it once more, and note where in the program each step is; the finding itself if it doesn't come again."""
    said = parse(finding.schedule, played.name)
    once = played.once_more(shared=said.shared, left_out=said.left_out, left_parts=said.left_parts)
    again = search(once, lambda: Replay(said.turns)).findings
    same = again and again[0].signature == finding.signature
    return again[0] if same else finding


def _fewer_threads(played: Played, best: Finding) -> Finding:
    for index in range(len(best.names)):
        left_out = played.left_out | {index}
        if len(left_out) + 2 > len(best.names):
            break
        found = _attempt(played.once_more(left_out=left_out), best, Optimal)
        if found is not None:
            best, played.left_out = found, left_out
    return best


def _fewer_parts(played: Played, best: Finding) -> Finding:
    # Halves, quarters, and so on down to single ones: the other way round than in the file, as what is at its end needs what
    # is before it.
    end = time.monotonic() + _SECONDS_FOR_PARTS
    parts = list(range(played.parts))[::-1]
    size = len(parts)
    while size > 1:
        size = (size + 1) // 2
        for chunk in [parts[place : place + size] for place in range(0, len(parts), size)]:
            left_parts = played.left_parts.union(chunk)
            if time.monotonic() > end:
                return best
            if len(chunk) == len(parts) or left_parts == played.left_parts:
                continue
            found = _attempt(played.once_more(left_parts=left_parts), best, Optimal)
            if found is not None and (_is_cycle(found) or _sometimes_right(played.once_more(left_parts=left_parts))):
                best, played.left_parts = found, left_parts
        parts = [part for part in parts if part not in played.left_parts]
    return best


def _sometimes_right(played: Played) -> bool:
    # What goes wrong in every order goes wrong for want of what was left out.
    played.limits = played.limits._replace(executions=_EXECUTIONS, seconds=_SECONDS)
    played.everything = True
    result = search(played, Optimal)
    return result.failed < result.executions


def _fewer_preemptions(played: Played, best: Finding) -> Finding:
    for bound in range(min(best.preemptions, _PREEMPTIONS)):
        found = _attempt(played, best, lambda bound=bound: Brute(bound))  # type: ignore[misc]
        if found is not None:
            return found
    return best


def _attempt(played: Played, finding: Finding, make: Callable[[], Strategy]) -> Finding | None:
    limits = played.limits._replace(executions=_EXECUTIONS, seconds=_SECONDS)
    tried = played.once_more(limits=limits, wanted=finding.signature)
    try:
        found = search(tried, make).findings
    except MemhpError:
        return None  # the scene can't be set without what was left out
    return dressed(tried, found[0]) if found and found[0].signature == finding.signature else None


# -- the same execution in another order

_At = tuple[tuple[int, ...], int]
"""How many steps each task has done, and which task did the last one."""


def _fewer_switches(played: Played, best: Finding) -> Finding:
    said = parse(best.schedule, played.name)
    traces: list[list[Step]] = []

    def keep(execution: Execution) -> None:
        traces.append(execution.trace)

    once = played.once_more(shared=said.shared, on_execution=keep)
    search(once, lambda: Replay(said.turns))
    steps = fewest_switches(traces[0], len(best.names)) if traces else []
    turns = [(step.task, step.strong, step.choice) for step in steps]
    found = search(played.once_more(shared=said.shared), lambda: Replay(turns)).findings if turns else []
    if not found or found[0].signature != best.signature or found[0].kind is not best.kind:
        return best
    return min(best, found[0], key=lambda one: (one.preemptions, one.switches))


def fewest_switches(steps: Sequence[Step], tasks: int) -> list[Step]:
    """Give steps that have their clocks in an order, of those that their class has, in which tasks change least often.

    Nothing if there are too many orders to look at.
    """
    of_task = [[step for step in steps if step.task == task] for task in range(tasks)]
    lengths = tuple(map(len, of_task))
    came: dict[_At, _At | None] = {}
    now: list[tuple[_At, _At | None]] = [(((0,) * tasks, -1), None)]
    later: list[tuple[_At, _At | None]] = []
    while now or later:
        if not now:
            now, later = later[::-1], []  # one switch more
        place, before = now.pop()
        if place in came:
            continue
        came[place] = before
        done, last = place
        if done == lengths:
            return _way(came, place, of_task)
        for task in range(tasks):
            if done[task] == lengths[task] or not _may_come(of_task[task][done[task]], done, lengths):
                continue
            further = (*done[:task], done[task] + 1, *done[task + 1 :]), task
            (now if task == last else later).append((further, place))
        if len(came) > _STATES:
            break
    return []


def _may_come(step: Step, done: tuple[int, ...], lengths: tuple[int, ...]) -> bool:
    # The end of a task counts as one more than its steps.
    return all(min(before, lengths[task]) <= done[task] for task, before in enumerate(step.clock) if task != step.task)


def _way(
    came: dict[_At, _At | None],
    place: _At,
    of_task: list[list[Step]],
) -> list[Step]:
    found = []
    before = came[place]
    while before is not None:
        done, task = place
        found.append(of_task[task][done[task] - 1])
        place = before
        before = came[place]
    return found[::-1]
