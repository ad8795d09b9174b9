"""The explorer: every interleaving of real code that uses memhp's locks, one execution of each class of equal ones.

::

    scene       what one execution consists of: threads, checks, shared cells, choices
    execution   the mechanism: tasks take turns, a step at a time
    fibers      the tasks and their steps
    ops         what a step can be, and which two can't be swapped
    happens     which step had to come before which, and which races there are
    strategies/ the policies: optimal, source, brute, chance, pct, replay
    fields      which fields which locks guard
    search      the loop, the limits, and what is a finding
    findings    what is said: findings, and what it means if there are none
"""

from memhp.explore.api import explore, replay
from memhp.explore.fields import declare
from memhp.explore.findings import Finding, Kind, LockOrder, Result, Verdict
from memhp.explore.scene import Cell, Scene, Thread
from memhp.explore.search import Limits
from memhp.explore.strategies import Promise, Strategy

__all__ = [
    "Cell",
    "Finding",
    "Kind",
    "Limits",
    "LockOrder",
    "Promise",
    "Result",
    "Scene",
    "Strategy",
    "Thread",
    "Verdict",
    "declare",
    "explore",
    "replay",
]
