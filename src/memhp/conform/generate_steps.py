"""What the makers of random steps have in common; for :mod:`memhp.conform.generate`."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from memhp.kernel import Machine

__all__ = ["Ground", "Maker", "Step", "Steps"]

Step = dict[str, Any]
Maker = Callable[[], Step | None]
"""Makes a step, or says that it can't now."""


class Ground(NamedTuple):
    """What all makers of a scenario's steps share.

    Attributes:
        random: decides.
        machines: on which everything is done, and what each has follows.
        write: makes and does a step that writes to a file.
        mark: says that new memory is coming or has come, whose ``struct page`` lie in what is online for the kernel.
        used: numbers of blocks that can't be asked to leave.
    """

    random: random.Random
    machines: Sequence[Machine]
    write: Callable[[str, str], Step]
    mark: Callable[[], None]
    used: set[int]


class Steps:
    """Makes steps of some kinds, and does each of them on the machines."""

    def __init__(self, ground: Ground) -> None:
        self.random, self._machines, self._write, self._mark, self._used = ground
        self.kinds: tuple[tuple[int, Maker], ...] = ()
        """Weights, and what makes a step or says that it can't now; nothing where there is no such device."""

    @contextlib.contextmanager
    def _marked(self, *, adds: bool) -> Iterator[None]:
        # Around what adds memory.
        if adds:
            self._mark()
        yield
        if adds:
            self._mark()
