"""Explore a function, and play a schedule again."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable

from memhp.errors import InvalidInput
from memhp.explore.fields import Declared, declared
from memhp.explore.findings import Finding, Kind, Result
from memhp.explore.schedule import Schedule, parse
from memhp.explore.search import Build, Limits, Played, search
from memhp.explore.strategies import Strategy
from memhp.explore.strategies.replay import Replay

__all__ = ["STRATEGIES", "explore", "replay", "strategy_named"]

STRATEGIES: dict[str, tuple[str, str, dict[str, int]]] = {
    "optimal": ("optimal", "Optimal", {}),
    "source": ("source", "Source", {}),
    "brute": ("brute", "Brute", {}),
    "bounded": ("brute", "Brute", {"preemptions": 2}),
    "random": ("chance", "Chance", {}),
    "pct": ("pct", "Pct", {}),
}
"""Module, class and arguments of each; the module is imported when it is asked for."""


def strategy_named(name: str) -> Callable[[], Strategy]:
    """Give what makes a strategy of that name.

    Raises:
        InvalidInput: there is none.
    """
    if name not in STRATEGIES:
        raise InvalidInput(name, "strategy", f"one of {', '.join(STRATEGIES)}")
    module, kind, arguments = STRATEGIES[name]
    found: Callable[..., Strategy] = getattr(importlib.import_module(f"memhp.explore.strategies.{module}"), kind)
    return functools.partial(found, **arguments)


def explore(
    build: Build,
    *,
    strategy: str | Callable[[], Strategy] = "optimal",
    limits: Limits | None = None,
    everything: bool = False,
    smaller: bool = True,
    name: str = "",
) -> Result:
    """Play the executions of a scene and say what was found.

    Args:
        build: is given a :class:`Scene`, makes everything anew, and starts threads.
        strategy: by name, or what makes a fresh one.
        limits: where the search gives up; a limit that was hit is never a pass.
        everything: go on after a finding, and keep one of each sort.
        smaller: look for a shorter execution of the first finding.
        name: of the scene, in reports and schedule strings; the function's name if not given.

    Raises:
        InvalidInput: a scene without threads, an unknown strategy, an invariant that looks at what its lock doesn't guard.
    """
    make = strategy_named(strategy) if isinstance(strategy, str) else strategy
    played = _played(build, name, limits or Limits())
    played.everything = everything
    result = search(played, make)
    if result.findings and smaller:
        from memhp.explore.minimise import smaller as made_smaller  # noqa: PLC0415 - only who has a finding needs it

        result.findings[0] = made_smaller(played, result.findings[0])
    return result


def replay(build: Build, schedule: str, *, limits: Limits | None = None, name: str = "") -> Result:
    """Play exactly the execution of a schedule string, in this thread: a debugger can stop in it.

    Raises:
        InvalidInput: the string is none, or of another version or scene.
    """
    played = _played(build, name, limits or Limits())
    said = parse(schedule, played.name)
    played.shared, played.left_out, played.left_parts = said.shared, said.left_out, said.left_parts
    result = search(played, lambda: Replay(said.turns))
    _compare(result, said)
    return result


def _compare(result: Result, said: Schedule) -> None:
    # Every turn was possible; the execution may be another one all the same.
    found = result.findings[0] if result.findings else None
    if found is not None and (found.kind is Kind.DIVERGED or found.schedule.rpartition(":")[2] == said.check):
        return
    steps = len(said.turns)
    if found is None:
        reason = f"diverged at step {steps + 1}: expected the end ({said.kind}), got an execution in which nothing is wrong"
    elif found.kind.value != said.kind:
        reason = f"diverged at step {steps + 1}: expected the end ({said.kind}), got {found.kind.value}: {found.reason}"
    else:
        reason = f"diverged within {steps} steps: the operations are of the same kinds, on other objects"
    names, lines = (found.names, found.lines) if found is not None else ((), ())
    result.findings = [Finding(Kind.DIVERGED, reason, names, lines, "", (Kind.DIVERGED.value,))]


def _played(build: Build, name: str, limits: Limits) -> Played:
    called = name or str(getattr(build, "__name__", type(build).__name__))
    return Played(build, called.replace(":", "_"), _table, limits)


def _table() -> tuple[Declared, ...]:
    # A machine's fields are of interest when there is one.
    if "memhp.kernel.machine" not in sys.modules:
        return declared()
    from memhp.explore.machine import FIELDS  # noqa: PLC0415

    return (*FIELDS, *declared())
