"""Several threads for work that is mostly the kernel's: a read of a file lets the other threads run meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threading import Thread

__all__ = ["share", "usable_cpus"]

T = TypeVar("T")


def usable_cpus() -> int:
    """Give how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


def share(items: Sequence[T], work: Callable[[Iterator[T]], None], workers: int) -> None:
    """Call ``work`` in so many threads, this one among them; each gets an iterator, and each item comes from one of them.

    If a call ends with an exception, also with Ctrl-C, the others get no more items, and it is raised when all have ended.
    """
    left, errors = iter(items), list[BaseException]()

    def mine() -> Iterator[T]:
        for item in left:
            yield item
            if errors:
                return

    def run() -> None:
        try:
            work(mine())
        except BaseException as error:
            errors.append(error)

    threads = _started(run, workers - 1)
    try:
        run()
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def _started(run: Callable[[], None], number: int) -> list[Thread]:
    if number < 1:
        return []
    from threading import Thread  # noqa: PLC0415 - a short command needs none

    threads = []
    for _ in range(number):
        thread = Thread(target=run, name="memhp share", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break  # there may be no more of them; so there are fewer
        threads.append(thread)
    return threads
