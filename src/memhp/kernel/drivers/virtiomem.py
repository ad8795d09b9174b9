"""virtio-mem: a hypervisor says how much memory of a region a guest may use (``drivers/virtio/virtio_mem.c``).

If the device's blocks, or a pageblock, are smaller than a memory block, memory blocks consist of sub-blocks that are plugged one
by one (:mod:`memhp.kernel.drivers.virtiomem_sbm`); else a big block is one memory block or several, plugged at once
(:mod:`memhp.kernel.drivers.virtiomem_bbm`). This module has what both share: the device, the notifier, the work and its retries.
"""

from __future__ import annotations

import contextlib
import errno
import logging
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
from memhp.kernel.drivers.virtiomem_sbm import OWNER, SubBlocks
from memhp.kernel.drivers.virtiomem_withhold import discharge, enlist
from memhp.kernel.holdings import Allocation
from memhp.kernel.iomem import ResourceName
from memhp.locking import Mutex
from memhp.locking.switch import ending_request
from memhp.notifier import NOTIFY_BAD, NOTIFY_DONE, NOTIFY_OK, NotifierBlock, NotifyResult, notifier_from_errno
from memhp.units import PAGE_SHIFT, Pfn, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["VirtioMem"]

_log = logging.getLogger("memhp.kernel")

PAGEBLOCK = 2 << 20
_OFFLINE_AT_MOST = 1 << 30
_RETRY_MIN_MS, _RETRY_MAX_MS = 50_000, 300_000
_MAX_ERRNO = 4096
_ANSWERS = "0, or an errno such as ETXTBSY"
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
            ``errno.ETXTBSY``: EBUSY, ETXTBSY and ENOMEM are tried again later, EAGAIN at once, and others end it.
        offline_at_most: bytes of its memory that may be offline before it adds no more; two blocks, or big blocks, always may.
        device: the name of the virtio device, which has the region in /proc/iomem.

    Raises:
        InvalidInput: a malformed argument.
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
        _check(nid, start, size, block_size, offline_at_most)
        if not callable(answer):
            raise InvalidInput(answer, "virtio-mem: answer", "a function")
        if not isinstance(device, str) or not device:
            raise InvalidInput(device, "virtio-mem: device", "the name of a virtio device, such as virtio0")
        self.machine = machine
        self.nid = nid
        self.start, self.size, self.block_size = start, size, block_size
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
        """Whether it is being unbound, or has been."""
        self._next_retry_ms = _RETRY_MIN_MS
        self._answer = answer
        # Held from GOING_* to the end of a change, and taken under the chain's rwsem in between: lockdep must not see it.
        self.mutex = Mutex("virtio_mem hotplug_mutex", None)
        self._worker = Mutex("virtio_mem wq", machine.dep)
        self._active = False
        self._done: tuple[MemoryAction, int] | None = None
        self.name = ResourceName("System RAM (virtio_mem)")
        unit = max(block_size, PAGEBLOCK)
        self.mode: Mode = SubBlocks(self, unit) if unit < machine.block_size else BigBlocks(self, unit)
        self.offline_threshold = max(2 * self.mode.group_unit, offline_at_most)
        self._probe(device)

    def _probe(self, device: str) -> None:
        machine = self.machine
        with contextlib.ExitStack() as undo:
            self.group = machine.groups.register_dynamic(self.nid, self.mode.group_unit >> PAGE_SHIFT)
            undo.callback(machine.groups.unregister, self.group)
            enlist(self)
            undo.callback(discharge, self)
            self.claim = machine.iomem.request(self.start, self.size, device, busy=False)
            undo.callback(machine.iomem.release, self.claim)
            self.callback = machine.hotplug_memory_notifier(self._notify)
            undo.pop_all()

    # -- the hypervisor

    def request(self, size: int) -> None:
        """Say how many bytes the hypervisor wants the guest to have (``requested-size``), in whole blocks of the device.

        The driver plugs and unplugs ``mode.unit`` bytes at once, and leaves what is less than that.

        Raises:
            InvalidInput: the device can't have that size.
            HotplugError: ENODEV, the driver is unbound.
        """
        if whole_number(size, "virtio-mem: requested") < 0 or size > self.size or size % self.block_size:
            raise InvalidInput(size, "virtio-mem: requested", f"a multiple of {self.block_size:#x}, at most {self.size:#x}")
        self._check_bound()
        self.requested = size
        self.queued = True

    def send(self, what: str, start: int, size: int) -> None:
        """Ask the hypervisor to plug or unplug a range.

        Raises:
            HotplugError: it says no.
            InvalidInput: what it says is neither 0 nor an errno.
        """
        number = whole_number(self._answer(what, start, size), "virtio-mem: answer", _ANSWERS)
        if not 0 <= number < _MAX_ERRNO:
            raise InvalidInput(number, "virtio-mem: answer", _ANSWERS)
        if number:
            raise HotplugError(number, f"the hypervisor does not {what} {start:#x} + {size:#x} bytes")
        self.plugged += size if what == "plug" else -size

    def _check_bound(self) -> None:
        if self.removing:
            raise HotplugError(errno.ENODEV, f"the driver of {self.claim.name} is unbound")

    # -- the worker

    @ending_request()
    def work(self) -> str:
        """Run the worker once: plug or unplug as much as is requested and possible; gives ``ok``, or the errno that ended it.

        It never runs twice at once: whoever comes second waits.

        Raises:
            HotplugError: ENODEV, the driver is unbound.
            InvalidInput: the hypervisor's answer is neither 0 nor an errno.
        """
        with self._worker:
            self._check_bound()
            if self.broken:
                return self.broken
            self.queued, self.retry_ms = False, None
            self.working = True
            try:
                self._follow()
            except HotplugError as error:
                return self._failed(error)
            finally:
                self.working = False
            self._next_retry_ms = _RETRY_MIN_MS
            return "ok"

    def _follow(self) -> None:
        self.mode.clean_up()
        units = abs(self.requested - self.plugged) // self.mode.unit
        if units:
            (self.mode.plug if self.requested > self.plugged else self.mode.unplug)(units)
        if self.mode.left_over:
            raise HotplugError(errno.EBUSY, "something that is wholly unplugged could not be removed")

    def _failed(self, error: HotplugError) -> str:
        name = errno_name(error.errno or 0)
        if error.errno in _TRY_AGAIN:
            self.retry_ms = self._next_retry_ms
        elif error.errno == errno.EAGAIN:  # a NACK: the size has changed
            self.queued = True
        elif error.errno != errno.ENOSPC:  # that one waits for blocks to come online
            _log.error("%s: unknown error, marking device broken: %s", self.claim.name, error)
            self.broken = name
        return name

    def timer_expired(self) -> None:
        """Let the time for a retry come; each that is needed waits twice as long, from 50 s up to 300 s.

        Raises:
            HotplugError: ENODEV, the driver is unbound.
        """
        self._check_bound()
        if self.retry_ms is not None:
            self._next_retry_ms = min(2 * self._next_retry_ms, _RETRY_MAX_MS)
            self.retry_ms = None
            self.queued = True

    @ending_request()
    def unbind(self) -> bool:
        """Unbind the driver; gives whether all of its memory is gone. What is left stays, and nobody follows it any more.

        A run of the worker that has begun is waited for (``cancel_work_sync``).

        Raises:
            HotplugError: ENODEV, it is unbound already; or what removing a block raised. Then it stays bound.
        """
        with self.mutex:
            self._check_bound()
            self.removing = True
        try:
            with self._worker:
                gone = self.mode.withdraw()
                self.callback.unregister()
        except BaseException:
            self.removing = False
            raise
        self.queued, self.retry_ms = False, None
        discharge(self)
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
        if action is MEM_CANCEL_ONLINE and self._is_kept(start, size):
            action = MEM_ONLINE
            if not self._active:
                return NOTIFY_OK
        if action in {MEM_ONLINE, MEM_OFFLINE} or (action in _UNDONE and self._active):
            self._end(action, start, size)
        elif action in _UNDONE and self._done == (_UNDONE[action], start):
            # The document's NOTIFY_BAD at MEM_ONLINE or MEM_OFFLINE, from a callback behind this one: all is as before.
            self._undo(action, start, size)
        return NOTIFY_OK

    def _is_kept(self, start: int, size: int) -> bool:
        # What others hold keeps a block online in spite of the document's NOTIFY_BAD at MEM_ONLINE.
        machine = self.machine
        blocks = [
            machine.blocks[machine.block_id_of(Pfn(place >> PAGE_SHIFT))]
            for place in range(start, start + size, machine.block_size)
        ]
        present = [block for block in blocks if block.present]
        return any(held.allocation.owner != OWNER for held in machine.pages.held_in(present))

    def _begin(self, action: MemoryAction, start: int, size: int) -> NotifyResult:
        if action is MEM_GOING_ONLINE and self._done == (MEM_ONLINE, start):
            # What seemed to be kept was given back in the end.
            self._undo(MEM_CANCEL_ONLINE, start, size)
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


def _check(nid: int, start: int, size: int, block_size: int, offline_at_most: int) -> None:
    given = {"nid": nid, "start": start, "size": size, "block_size": block_size, "offline_at_most": offline_at_most}
    for name, value in given.items():
        whole_number(value, f"virtio-mem: {name}", "a number")
    if block_size < 4096 or block_size & (block_size - 1) or start % block_size or size % block_size or size < 1:
        raise InvalidInput((start, size, block_size), "virtio-mem", "a region of whole device blocks, a power of two of pages")
