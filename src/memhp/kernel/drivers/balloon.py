"""Balloons that can add memory: Hyper-V (``drivers/hv/hv_balloon.c``) and Xen (``drivers/xen/balloon.c``).

Both set the online-page callback, so there can be one of them, or virtio-mem.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, InvalidInput
from memhp.events import MEM_CANCEL_OFFLINE, MEM_CANCEL_ONLINE, MEM_OFFLINE, MEM_ONLINE, MemoryAction, MemoryNotify
from memhp.kernel.add import MhpFlags, add_memory_resource
from memhp.kernel.holdings import Allocation
from memhp.kernel.iomem import SYSTEM_RAM
from memhp.kernel.kinds import PageKind
from memhp.locking import Mutex
from memhp.locking.switch import ending_request
from memhp.notifier import NOTIFY_OK, NotifierBlock, NotifyResult
from memhp.units import PAGE_SHIFT, BlockId, Pfn, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["HyperVBalloon", "XenBalloon"]

_CHUNK = 128 << 20


class HyperVBalloon:
    """Hot-add of a Hyper-V guest: the host says how much of a region is backed, and the rest is kept back."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.can_add = True
        """Whether it adds memory; not any more after it found memory where it wanted to add some."""
        self.waiting = False
        """Whether it waits (5 s at most) for its last chunk to come online."""
        self._online: dict[BlockId, int] = {}
        # Backed pages of each block that is online.
        self._backed: list[range] = []
        """The page frames of each chunk that exist."""
        machine.online_page.set(self._online_page)
        self.callback = machine.memory_chain.register(NotifierBlock(self._notify, name="hv_balloon"))

    @property
    def pages_onlined(self) -> int:
        """Pages of its memory that are online and backed, as it tells the host."""
        return sum(self._online.values())

    @ending_request()
    def hot_add(self, nid: int, start: int, size: int, backed: int) -> list[BlockId]:
        """Add a region in chunks of 128 MiB; the first ``backed`` bytes of it exist. Stops at the first error.

        The driver waits for each chunk to come online before it adds the next; here ``waiting`` says so, and nothing waits.

        Raises:
            InvalidInput: an empty region, or more of it is backed than there is.
            HotplugError: what adding the first chunk that failed raised; EEXIST ends hot-add for good. Earlier chunks stay.
        """
        for name, number in (("nid", nid), ("start", start), ("size", size), ("backed", backed)):
            whole_number(number, f"hv_balloon: {name}", "a number")
        if size < 1 or not 0 <= backed <= size:
            raise InvalidInput((size, backed), "hv_balloon: (size, backed)", "at least one byte, and no more backed than that")
        if not self.can_add:
            raise HotplugError(errno.EEXIST, "hot-add is switched off since memory was found where it should come")
        added: list[BlockId] = []
        chunk = max(_CHUNK, self._machine.block_size)
        for place in range(start, start + size, chunk):
            self.waiting = True
            before = self._backed
            self._backed = self._without(place, chunk)
            self._backed.append(range(place >> PAGE_SHIFT, min(start + backed, place + chunk) >> PAGE_SHIFT))
            try:
                added += self._machine.add_memory(nid, place, chunk, flags=MhpFlags.MERGE_RESOURCE)
            except BaseException as error:
                self.waiting = False
                self._backed = before
                if isinstance(error, HotplugError):
                    self.can_add = error.errno != errno.EEXIST
                raise
        return added

    def _without(self, start: int, size: int) -> list[range]:
        # What was known of memory that has been removed since is out of date.
        first, end = start >> PAGE_SHIFT, (start + size) >> PAGE_SHIFT
        return [part for part in self._backed if part.stop <= first or end <= part.start]

    def _online_page(self, start: Pfn, nr_pages: int) -> list[tuple[Pfn, int, Allocation]]:
        kept, place, end = [], int(start), start + nr_pages
        for part in [*self._backed_in(start, nr_pages), range(end, end)]:
            if place < part.start:
                kept.append((Pfn(place), part.start - place, Allocation(PageKind.OFFLINE, "hv_balloon")))
            place = part.stop
        return kept

    def _backed_in(self, start: Pfn, nr_pages: int) -> list[range]:
        parts = [range(max(part.start, start), min(part.stop, start + nr_pages)) for part in self._backed]
        return sorted((part for part in parts if part), key=lambda part: part.start)

    def _notify(self, block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action in {MEM_ONLINE, MEM_CANCEL_ONLINE}:
            self.waiting = False
        if action in {MEM_ONLINE, MEM_OFFLINE, MEM_CANCEL_ONLINE, MEM_CANCEL_OFFLINE}:
            self._count(arg, online=action in {MEM_ONLINE, MEM_CANCEL_OFFLINE})
        return NOTIFY_OK

    def _count(self, arg: MemoryNotify, *, online: bool) -> None:
        # A CANCEL may follow ONLINE or OFFLINE too: the document's NOTIFY_BAD, from a callback behind this one.
        pages = self._machine.pages_per_block
        for start in range(arg.start_pfn, arg.start_pfn + arg.nr_pages, pages):
            block = self._machine.block_id_of(Pfn(start))
            self._online.pop(block, None)
            if online:
                self._online[block] = sum(map(len, self._backed_in(Pfn(start), pages)))


class XenBalloon:
    """The balloon of a Xen guest: new memory is all in the balloon at first."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._mutex = Mutex("balloon_mutex", machine.dep)
        self.woken = 0
        """How often the balloon's thread was woken by memory that came online."""
        self.ballooned: list[Allocation] = []
        """What the balloon holds of memory that it added."""
        machine.online_page.set(self._online_page)
        self.callback = machine.memory_chain.register(NotifierBlock(self._notify, name="xen balloon"))

    @ending_request()
    def reserve_additional_memory(self, nid: int, start: int, size: int) -> list[BlockId]:
        """Add room for the balloon to deflate into. It drops its own mutex while it holds device_hotplug_lock.

        Raises:
            InvalidInput: malformed numbers.
            HotplugError: EEXIST, the addresses are taken; and what adding it raises. Nothing was changed.
        """
        machine = self._machine
        whole_number(nid, "xen balloon: nid", "a number")
        with self._mutex:
            claim = machine.iomem.request(start, size, SYSTEM_RAM)
        try:
            with machine.locks.device_hotplug:
                return add_memory_resource(machine, nid, claim, MhpFlags.MERGE_RESOURCE)
        except BaseException:
            machine.iomem.release(claim)
            raise

    def _online_page(self, start: Pfn, nr_pages: int) -> list[tuple[Pfn, int, Allocation]]:
        kept = Allocation(PageKind.OFFLINE, "xen balloon")
        self.ballooned.append(kept)
        return [(start, nr_pages, kept)]

    def _notify(self, block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is MEM_ONLINE:
            self.woken += 1
        return NOTIFY_OK
