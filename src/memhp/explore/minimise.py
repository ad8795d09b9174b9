"""Making a finding smaller: fewer threads, fewer switches, as long as the same thing goes wrong."""

from __future__ import annotations

from collections.abc import Callable

from memhp.explore.findings import Finding, Kind
from memhp.explore.schedule import parse
from memhp.explore.search import Played, cycle, search
from memhp.explore.strategies import Strategy
from memhp.explore.strategies.brute import Brute
from memhp.explore.strategies.optimal import Optimal
from memhp.explore.strategies.replay import Replay

__all__ = ["dressed", "smaller"]

_EXECUTIONS = 2000
_SECONDS = 3.0
"""What one attempt may cost."""
_PREEMPTIONS = 4
_REPEATABLE = frozenset({Kind.DEADLOCK, Kind.EXCEPTION, Kind.INVARIANT})


def smaller(played: Played, finding: Finding) -> Finding:
    """Give the smallest execution that was found in which the same goes wrong; the first one is its ``original``."""
    if finding.kind not in _REPEATABLE:
        return finding
    best = dressed(played, finding)
    left_out = played.left_out
    if finding.kind is Kind.DEADLOCK and cycle(finding.blocked):
        # Whatever else goes wrong may go wrong because somebody is missing.
        best, left_out = _fewer_threads(played, best)
    best = _fewer_switches(played.once_more(left_out=left_out), best)
    return finding if best is finding else best._replace(original=finding)


def dressed(played: Played, finding: Finding) -> Finding:
    """Play it once more, and note where in the program each step is; the finding itself if it doesn't come again."""
    said = parse(finding.schedule, played.name)
    once = played.once_more(shared=said.shared, left_out=said.left_out)
    again = search(once, lambda: Replay(said.turns)).findings
    same = again and again[0].signature == finding.signature
    return again[0] if same else finding


def _fewer_threads(played: Played, best: Finding) -> tuple[Finding, frozenset[int]]:
    left_out = played.left_out
    for index in range(len(best.names)):
        if len(left_out) + 2 > len(best.names):
            break
        found = _attempt(played.once_more(left_out=left_out | {index}), best, Optimal)
        if found is not None:
            best, left_out = found, left_out | {index}
    return best, left_out


def _fewer_switches(played: Played, best: Finding) -> Finding:
    for bound in range(min(best.preemptions, _PREEMPTIONS)):
        found = _attempt(played, best, lambda bound=bound: Brute(bound))  # type: ignore[misc]
        if found is not None:
            return found
    return best


def _attempt(played: Played, finding: Finding, make: Callable[[], Strategy]) -> Finding | None:
    limits = played.limits._replace(executions=_EXECUTIONS, seconds=_SECONDS)
    tried = played.once_more(limits=limits, wanted=finding.signature)
    found = search(tried, make).findings
    return dressed(tried, found[0]) if found and found[0].signature == finding.signature else None
