"""Explore a function, and play a schedule again."""

from __future__ import annotations

from collections.abc import Callable

from memhp.errors import InvalidInput
from memhp.explore.fields import declared
from memhp.explore.findings import Result
from memhp.explore.machine import FIELDS
from memhp.explore.schedule import parse
from memhp.explore.search import Build, Limits, Played, search
from memhp.explore.strategies import Strategy
from memhp.explore.strategies.brute import Brute
from memhp.explore.strategies.chance import Chance
from memhp.explore.strategies.optimal import Optimal
from memhp.explore.strategies.pct import Pct
from memhp.explore.strategies.replay import Replay
from memhp.explore.strategies.source import Source

__all__ = ["STRATEGIES", "explore", "replay", "strategy_named"]

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "optimal": Optimal,
    "source": Source,
    "brute": Brute,
    "bounded": lambda: Brute(preemptions=2),
    "random": Chance,
    "pct": Pct,
}


def strategy_named(name: str) -> Callable[[], Strategy]:
    """Give what makes a strategy of that name.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        raise InvalidInput(name, "strategy", f"one of {', '.join(STRATEGIES)}") from None


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
    return search(played, make)


def replay(build: Build, schedule: str, *, limits: Limits | None = None, name: str = "") -> Result:
    """Play exactly the execution of a schedule string, in this thread: a debugger can stop in it.

    Raises:
        InvalidInput: the string is none, or of another version or scene.
    """
    played = _played(build, name, limits or Limits())
    said = parse(schedule, played.name)
    played.shared, played.left_out = said.shared, said.left_out
    return search(played, lambda: Replay(said.turns))


def _played(build: Build, name: str, limits: Limits) -> Played:
    called = name or str(getattr(build, "__name__", type(build).__name__))
    return Played(build, called.replace(":", "_"), (*FIELDS, *declared()), limits)
