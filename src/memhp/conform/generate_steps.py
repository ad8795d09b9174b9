"""What the makers of random steps have in common; for :mod:`memhp.conform.generate`."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from memhp.kernel import Machine

__all__ = ["Maker", "Step", "Steps"]

Step = dict[str, Any]
Maker = Callable[[], Step | None]
"""Makes a step, or says that it can't now."""


class Steps:
    """Makes steps of some kinds, and does each of them on the machines.

    Args:
        random_: decides.
        machines: on which everything is done, and what each has follows.
        write: makes and does a step that writes to a file.
        mark: says that new memory is coming or has come, whose ``struct page`` lie in what is online for the kernel.
        used: numbers of blocks that can't be asked to leave.
    """

    def __init__(
        self,
        random_: random.Random,
        machines: Sequence[Machine],
        write: Callable[[str, str], Step],
        mark: Callable[[], None],
        used: set[int],
    ) -> None:
        self.random = random_
        self._machines = machines
        self._write = write
        self._mark = mark
        self._used = used
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
