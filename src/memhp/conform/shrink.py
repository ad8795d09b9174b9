"""Making a scenario that shows a difference as short as it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["shrink"]

T = TypeVar("T")


def shrink(steps: Sequence[T], shows: Callable[[Sequence[T]], bool]) -> list[T]:
    """Leave out steps while the rest still shows it, in ever smaller pieces (delta debugging).

    Args:
        steps: they show it.
        shows: says whether steps show it; steps that can't be played show nothing.

    Returns:
        Steps of which none can be left out alone.
    """
    kept = list(steps)
    size = max(1, len(kept) // 2)
    while True:
        shorter, end = False, len(kept)
        while end > 0:
            start = max(0, end - size)
            rest = kept[:start] + kept[end:]
            if shows(rest):
                kept, shorter = rest, True
            end = start
        if size == 1 and not shorter:
            return kept
        size = max(1, size // 2)
