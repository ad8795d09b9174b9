"""Who gives the pages of memory that comes online to the allocator (``mm/memory_hotplug.c``: ``set_online_page_callback``).

Hypervisors' drivers keep back what the hypervisor doesn't back: a balloon all of it at first, virtio-mem what is unplugged.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, InvalidInput
from memhp.locking import Mutex
from memhp.units import Pfn, format_mem

if TYPE_CHECKING:
    from memhp.kernel.holdings import Allocation
    from memhp.kernel.machine import Machine

__all__ = ["OnlinePage", "OnlinePageCallback"]

OnlinePageCallback = Callable[[Pfn, int], Iterable["tuple[Pfn, int, Allocation]"]]
"""Called with a range that comes online; gives the parts that are kept back, as (first pfn, pages, whose they are)."""


class OnlinePage:
    """The one callback of a machine, which gives all pages to the allocator if nobody has set another."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = Mutex("online_page_callback_lock", machine.dep)
        self.sharing = Mutex("virtio_mem_mutex", machine.dep)
        """For devices of one driver that share the callback: held while they look who has it, and set or restore it."""
        self.callback: OnlinePageCallback | None = None
        """Who does it now; changed by :meth:`set` and :meth:`restore` only."""

    def withheld(self, start: Pfn, nr_pages: int) -> list[tuple[Pfn, int, Allocation]]:
        """Ask which parts of a range are kept back; gives them in ascending order.

        Raises:
            InvalidInput: what the callback gives are not parts of the range, or they overlap.
        """
        if self.callback is None:
            return []
        parts = sorted(self.callback(start, nr_pages), key=lambda part: part[0])
        place = start
        for first, length, _ in parts:
            if first < place or length < 1 or first + length > start + nr_pages:
                raise InvalidInput(
                    format_mem(first, length), f"online-page callback {self.callback}", f"parts of {format_mem(start, nr_pages)}"
                )
            place = Pfn(first + length)
        return parts

    def set(self, callback: OnlinePageCallback) -> None:
        """Take the place of the default.

        Raises:
            HotplugError: EINVAL, somebody else has taken it.
        """
        with self._machine.online_mems(), self._lock:
            if self.callback is not None and self.callback != callback:
                taken = getattr(self.callback, "__qualname__", self.callback)
                raise HotplugError(errno.EINVAL, f"another driver gives pages to the allocator already: {taken}")
            self.callback = callback

    def restore(self, callback: OnlinePageCallback) -> None:
        """Give the place back.

        Raises:
            HotplugError: EINVAL, it is not this one that has it.
        """
        with self._machine.online_mems(), self._lock:
            if self.callback != callback:
                raise HotplugError(errno.EINVAL, "this driver does not give pages to the allocator")
            self.callback = None
