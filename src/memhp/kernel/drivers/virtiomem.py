"""virtio-mem: a hypervisor says how much memory of a region a guest may use (``drivers/virtio/virtio_mem.c``).

If the device's blocks, or a pageblock, are smaller than a memory block, memory blocks consist of sub-blocks that are plugged one
by one (:mod:`memhp.kernel.drivers.virtiomem_sbm`); else a big block is one memory block or several, plugged at once
(:mod:`memhp.kernel.drivers.virtiomem_bbm`). This module has what both share: the device, the notifier, the work and its retries.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from memhp.errors import HotplugError, InvalidInput, errno_name
from memhp.events import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    MemoryAction,
    MemoryNotify,
)
from memhp.kernel.add import MhpFlags
from memhp.kernel.drivers.virtiomem_bbm import BigBlocks
from memhp.kernel.drivers.virtiomem_sbm import SubBlocks
from memhp.kernel.holdings import Allocation
from memhp.kernel.iomem import ResourceName
from memhp.locking import Mutex
from memhp.locking.switch import ending_request
from memhp.notifier import NOTIFY_BAD, NOTIFY_DONE, NOTIFY_OK, NotifierBlock, NotifyResult, notifier_from_errno
from memhp.units import PAGE_SHIFT, Pfn, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["VirtioMem"]

PAGEBLOCK = 2 << 20
_OFFLINE_AT_MOST = 1 << 30
_RETRY_MIN_MS, _RETRY_MAX_MS = 50_000, 300_000
_UNDONE = {MEM_CANCEL_ONLINE: MEM_ONLINE, MEM_CANCEL_OFFLINE: MEM_OFFLINE}
_TRY_AGAIN = frozenset({errno.EBUSY, errno.ETXTBSY, errno.ENOMEM})


class Mode(Protocol):
    """What the two ways to divide the region have in common."""

    unit: int
    """Bytes that are plugged at once."""
    group_unit: int
    """Bytes of the unit of the device's memory group."""
    left_over: bool
    """Whether something that is wholly unplugged could not be removed, so that it has to be tried again (since 6.12)."""

    def plug(self, units: int) -> None:
        """Plug so many units, and add memory for them."""

    def unplug(self, units: int) -> None:
        """Unplug so many units, and remove memory for them."""

    def clean_up(self) -> None:
        """Finish what an earlier run could not."""

    def withdraw(self) -> bool:
        """Remove what is offline and only partly plugged; gives whether nothing of the device is memory any more."""

    def owns_whole(self, start: int, size: int) -> bool:
        """Say whether a range is one that the mode expects to come and go at once."""

    def notify(self, action: MemoryAction, start: int, size: int) -> NotifyResult:
        """Follow a block; called with the mutex held."""

    def withheld(self, start: int, size: int) -> list[tuple[Pfn, int, Allocation]]:
        """Say what of a range that comes online is not plugged."""


class VirtioMem:
    """One device, and the driver for it.

    Nothing happens by itself: :meth:`request` says what the hypervisor wants, and :meth:`work` is one run of the driver's worker.
    While ``queued``, a run is due; if a run sets ``retry_ms``, the next one is due so much later (:meth:`timer_expired`).

    Args:
        machine: the guest.
        nid: the device's node.
        start: first byte of the region.
        size: its length in bytes.
        block_size: bytes that the hypervisor plugs at once, a power of two of at least a page.
        answer: asked for each plug and unplug with (``"plug"`` or ``"unplug"``, start, size); gives 0 or an errno such as
            ``errno.ETXTBSY``.
        offline_at_most: bytes of its memory that may be offline before it adds no more; two blocks, or big blocks, always may.
        device: the name of the virtio device, which has the region in /proc/iomem.

    Raises:
        InvalidInput: a malformed size.
        HotplugError: EINVAL, the node is not possible, or another driver has the online-page callback; EEXIST, somebody has a
            part of the region.
    """

    def __init__(
        self,
        machine: Machine,
        nid: int,
        start: int,
        size: int,
        *,
        block_size: int = PAGEBLOCK,
        answer: Callable[[str, int, int], int] = lambda what, start, size: 0,
        offline_at_most: int = _OFFLINE_AT_MOST,
        device: str = "virtio0",
    ) -> None:
        for name, value in (("nid", nid), ("start", start), ("size", size), ("block_size", block_size)):
            whole_number(value, f"virtio-mem: {name}", "a number")
        if block_size < 4096 or block_size & (block_size - 1) or start % block_size or size % block_size or size < 1:
            raise InvalidInput(
                (start, size, block_size), "virtio-mem", "a region of whole device blocks, a power of two of pages"
            )
        self.machine = machine
        self.nid = nid
        self.start, self.size = start, size
        self.requested = 0
        self.plugged = 0
        """Bytes that the hypervisor has plugged."""
        self.offline_size = 0
        """Bytes of its memory that are offline."""
        self.queued = False
        self.working = False
        self.retry_ms: int | None = None
        self.broken = ""
        """The errno that nobody knew what to do about; the driver does nothing any more."""
        self.removing = False
        self._next_retry_ms = _RETRY_MIN_MS
        self._answer = answer
        # Held from GOING_* to the end of a change, and taken under the chain's rwsem in between: lockdep must not see it.
        self.mutex = Mutex("virtio_mem hotplug_mutex", None)
        self._active = False
        self._done: tuple[MemoryAction, int] | None = None
        self.name = ResourceName("System RAM (virtio_mem)")
        unit = max(block_size, PAGEBLOCK)
        self.mode: Mode = SubBlocks(self, unit) if unit < machine.block_size else BigBlocks(self, unit)
        self.offline_threshold = max(2 * self.mode.group_unit, offline_at_most)
        self.group = machine.groups.register_dynamic(nid, self.mode.group_unit >> PAGE_SHIFT)
        try:
            _enlist(self)
            self.claim = machine.iomem.request(start, size, device, busy=False)
        except BaseException:
            _discharge(self)
            machine.groups.unregister(self.group)
            raise
        self.callback = machine.hotplug_memory_notifier(self._notify)

    # -- the hypervisor

    def request(self, size: int) -> None:
        """Say how many bytes the hypervisor wants the guest to have (``requested-size``)."""
        if whole_number(size, "virtio-mem: requested") < 0 or size > self.size or size % self.mode.unit:
            raise InvalidInput(size, "virtio-mem: requested", f"a multiple of {self.mode.unit:#x}, at most {self.size:#x}")
        self.requested = size
        self.queued = True

    def send(self, what: str, start: int, size: int) -> None:
        """Ask the hypervisor to plug or unplug a range.

        Raises:
            HotplugError: it says no.
        """
        number = self._answer(what, start, size)
        if number:
            raise HotplugError(number, f"the hypervisor does not {what} {start:#x} + {size:#x} bytes")
        self.plugged += size if what == "plug" else -size

    # -- the worker

    @ending_request()
    def work(self) -> str:
        """Run the worker once: plug or unplug as much as is requested and possible; gives ``ok``, or the errno that ended it."""
        if self.broken:
            return self.broken
        self.queued, self.retry_ms = False, None
        self.working = True
        number = 0
        try:
            self.mode.clean_up()
            units = (self.requested - self.plugged) // self.mode.unit
            if units > 0:
                self.mode.plug(units)
            elif units < 0:
                self.mode.unplug(-units)
            if self.mode.left_over:
                number = errno.EBUSY
        except HotplugError as error:
            number = error.errno or 0
        finally:
            self.working = False
        if not number:
            self._next_retry_ms = _RETRY_MIN_MS
            return "ok"
        if number in _TRY_AGAIN:
            self.retry_ms = self._next_retry_ms
        elif number != errno.ENOSPC:  # that one waits for blocks to come online
            self.broken = errno_name(number)
        return errno_name(number)

    def timer_expired(self) -> None:
        """Let the time for a retry come; each that is needed waits twice as long, from 50 s up to 300 s."""
        if self.retry_ms is not None:
            self._next_retry_ms = min(2 * self._next_retry_ms, _RETRY_MAX_MS)
            self.retry_ms = None
            self.queued = True

    @ending_request()
    def unbind(self) -> bool:
        """Unbind the driver; gives whether all of its memory is gone. What is left stays, and nobody follows it any more."""
        with self.mutex:
            self.removing = True
        gone = self.mode.withdraw()
        self.callback.unregister()
        _discharge(self)
        if gone:
            self.machine.groups.unregister(self.group)
            self.machine.iomem.release(self.claim)
        return gone

    def could_add(self, size: int) -> bool:
        """Say whether so much more may be added, in view of what is offline."""
        return self.offline_size + size <= self.offline_threshold

    def add(self, start: int, size: int) -> None:
        """Add a plugged range as memory of the device's group."""
        flags = MhpFlags.MERGE_RESOURCE | MhpFlags.NID_IS_MGID
        self.offline_size += size
        try:
            self.machine.add_memory_driver_managed(self.group, start, size, self.name, flags=flags)
        except BaseException:
            self.offline_size -= size
            raise

    def remove(self, start: int, size: int) -> None:
        """Remove a range that is offline."""
        self.machine.remove_memory(start, size)
        self._removed(size)

    def offline_and_remove(self, start: int, size: int) -> None:
        """Take a range offline and remove it. It then counts neither as online nor as offline.

        Raises:
            HotplugError: it stays. Since 6.12 that is EBUSY, which is tried again, whatever the reason was but ENOMEM
                (Linux commit ddf409851461, in v6.6).
        """
        try:
            self.machine.offline_and_remove_memory(start, size)
        except HotplugError as error:
            if error.errno == errno.ENOMEM or not self.machine.rules.value.drivers_since_6_12:
                raise
            raise HotplugError(errno.EBUSY, f"{start:#x} + {size:#x} bytes can't leave: {error}", block=error.block) from error
        self._removed(size)

    def _removed(self, size: int) -> None:
        # The memmap has gone too, so what could not be unplugged perhaps can be: tried again at once.
        self.offline_size -= size
        self.queued = True

    # -- the notifier

    def _notify(self, block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        start, size = arg.start_pfn << PAGE_SHIFT, arg.nr_pages << PAGE_SHIFT
        if start + size <= self.start or self.start + self.size <= start:
            return NOTIFY_DONE
        if not self.mode.owns_whole(start, size):
            return NOTIFY_BAD
        if action in {MEM_GOING_ONLINE, MEM_GOING_OFFLINE}:
            return self._begin(action, start, size)
        if action in {MEM_ONLINE, MEM_OFFLINE} or (action in _UNDONE and self._active):
            self._end(action, start, size)
        elif action in _UNDONE and self._done == (_UNDONE[action], start):
            # The document's NOTIFY_BAD at MEM_ONLINE or MEM_OFFLINE, from a callback behind this one: all is as before.
            self._undo(action, start, size)
        return NOTIFY_OK

    def _begin(self, action: MemoryAction, start: int, size: int) -> NotifyResult:
        # The mutex stays held until the end of the change. Whoever refuses keeps it too: its own CANCEL gives it back.
        self.mutex.acquire()
        if self.removing:
            self.mutex.release()
            return notifier_from_errno(-errno.EBUSY)
        self._active, self._done = True, None
        return self.mode.notify(action, start, size)

    def _end(self, action: MemoryAction, start: int, size: int) -> None:
        self.mode.notify(action, start, size)
        if action in {MEM_ONLINE, MEM_OFFLINE}:
            self._done = action, start
        if action is MEM_OFFLINE:
            self.offline_size += size
        elif action is MEM_ONLINE:
            self.offline_size -= size
            if not self.working and self.could_add(self.offline_threshold // 2):
                self.queued = True
        self._active = False
        self.mutex.release()

    def _undo(self, action: MemoryAction, start: int, size: int) -> None:
        with self.mutex:
            self.mode.notify(action, start, size)
        self.offline_size += size if action is MEM_CANCEL_ONLINE else -size
        self._done = None


# One online-page callback serves all devices of a machine.


def _enlist(device: VirtioMem) -> None:
    machine = device.machine
    withholder = machine.online_page.callback
    if not isinstance(withholder, _Withholder):
        withholder = _Withholder()
        machine.online_page.set(withholder)
    withholder.devices.append(device)


def _discharge(device: VirtioMem) -> None:
    machine = device.machine
    withholder = machine.online_page.callback
    if isinstance(withholder, _Withholder) and device in withholder.devices:
        withholder.devices.remove(device)
        if not withholder.devices:
            machine.online_page.restore(withholder)


class _Withholder:
    def __init__(self) -> None:
        self.devices: list[VirtioMem] = []

    def __call__(self, start: Pfn, nr_pages: int) -> list[tuple[Pfn, int, Allocation]]:
        first, size = start << PAGE_SHIFT, nr_pages << PAGE_SHIFT
        own = [device for device in self.devices if device.start < first + size and first < device.start + device.size]
        return [part for device in own for part in device.mode.withheld(first, size)]
