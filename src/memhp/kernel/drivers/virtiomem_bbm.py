"""virtio-mem with big blocks: a device's block is one memory block or several, plugged and unplugged at once."""

from __future__ import annotations

import contextlib
import enum
import errno
from typing import TYPE_CHECKING

from memhp.errors import HotplugError
from memhp.events import MEM_CANCEL_OFFLINE, MEM_CANCEL_ONLINE, MEM_GOING_OFFLINE, MemoryAction
from memhp.kernel.blocks import BlockState, MemoryBlock
from memhp.kernel.contig import alloc_contig_range
from memhp.kernel.drivers.virtiomem_sbm import OWNER
from memhp.kernel.holdings import Allocation
from memhp.kernel.hotplug import adjust_managed_page_count
from memhp.kernel.kinds import PageKind
from memhp.kernel.zones import ZoneType
from memhp.notifier import NOTIFY_OK, NotifyResult
from memhp.units import Pfn

if TYPE_CHECKING:
    from memhp.kernel.drivers.virtiomem import VirtioMem

__all__ = ["BigBlocks", "BigState"]


class BigState(enum.Enum):
    """What the driver knows of a big block."""

    UNUSED = "unused"
    PLUGGED = "plugged"
    """Plugged, but it is not memory, and the hypervisor would not unplug it."""
    ADDED = "added"
    FAKE_OFFLINE = "fake-offline"
    """All its pages are taken from the allocator, on the way out."""


class BigBlocks:
    """The device's big blocks."""

    def __init__(self, device: VirtioMem, unit: int) -> None:
        self._device = device
        self.unit = max(unit, device.machine.block_size)
        self.group_unit = self.unit
        self.left_over = False
        first, last = -(-device.start // self.unit), (device.start + device.size) // self.unit
        self.states = dict.fromkeys(range(first, last), BigState.UNUSED)
        self._held: dict[int, dict[int, Allocation]] = {}

    def plug(self, units: int) -> None:
        """Plug and add unused big blocks, the lowest first.

        Raises:
            HotplugError: ENOSPC, the region is full, or too much of it is offline; or what the hypervisor or adding raised.
        """
        for number in [number for number, state in self.states.items() if state is BigState.UNUSED][:units]:
            if not self._device.could_add(self.unit):
                raise HotplugError(errno.ENOSPC, f"{self._device.offline_size:#x} bytes are offline, which is as much as may be")
            start = number * self.unit
            self._device.send("plug", start, self.unit)
            self.states[number] = BigState.ADDED
            try:
                self._device.add(start, self.unit)
            except BaseException:
                with contextlib.suppress(HotplugError):
                    self._give_back(number)
                raise
            units -= 1
        if units:
            raise HotplugError(errno.ENOSPC, "the region has no more big blocks")

    def _give_back(self, number: int) -> None:
        # What the hypervisor refuses is the first thing that the next run tries.
        self.states[number] = BigState.PLUGGED
        self._device.send("unplug", number * self.unit, self.unit)
        self.states[number] = BigState.UNUSED

    def clean_up(self) -> None:
        """Unplug what is no memory any more, or has never become any (``virtio_mem_cleanup_pending_mb``).

        Raises:
            HotplugError: the hypervisor refuses again.
        """
        for number in [number for number, state in self.states.items() if state is BigState.PLUGGED]:
            self._give_back(number)

    def withdraw(self) -> bool:
        """Leave everything as it is; a big block is plugged whole, so anybody may use it."""
        return all(state in {BigState.UNUSED, BigState.PLUGGED} for state in self.states.values())

    def unplug(self, units: int) -> None:
        """Take big blocks offline, remove and unplug them: first offline ones, then movable ones, then all, the highest first.

        Each round tries again what an earlier one could not have (``virtio_mem_bbm_unplug_request``).

        Raises:
            HotplugError: EBUSY, not as many could be had; or what the hypervisor raised.
        """
        for fits in (self._is_offline, self._is_movable, lambda number: True):
            for number in self._added():
                if not units:
                    return
                if fits(number) and self._tried(number):
                    units -= 1
        if units:
            raise HotplugError(errno.EBUSY, f"{units} big blocks of {self.unit:#x} bytes can't be unplugged now")

    def _added(self) -> list[int]:
        return sorted((number for number, state in self.states.items() if state is BigState.ADDED), reverse=True)

    def _tried(self, number: int) -> bool:
        try:
            self._out(number)
        except HotplugError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def _blocks(self, number: int) -> list[MemoryBlock]:
        machine = self._device.machine
        first = number * self.unit // machine.block_size
        found = [machine.blocks.get(first + n) for n in range(self.unit // machine.block_size)]
        return [block for block in found if block is not None]

    def _is_offline(self, number: int) -> bool:
        return all(block.state is BlockState.OFFLINE for block in self._blocks(number))

    def _is_movable(self, number: int) -> bool:
        # What is offline is in no zone that matters.
        return {zone.type for block in self._blocks(number) for zone, _, _ in block.present} <= {ZoneType.MOVABLE}

    def _out(self, number: int) -> None:
        # First all pages, so that nothing is allocated there any more; only then the blocks.
        with self._device.mutex:
            self._take_all(number)
            self.states[number] = BigState.FAKE_OFFLINE
        try:
            self._device.offline_and_remove(number * self.unit, self.unit)
        except BaseException:
            with self._device.mutex:
                self._give_all(number)
                self.states[number] = BigState.ADDED
            raise
        self._held.pop(number, None)
        self._give_back(number)

    def _take_all(self, number: int) -> None:
        held = self._held.setdefault(number, {})
        for block in self._blocks(number):
            if block.state is not BlockState.ONLINE:
                continue
            allocation = Allocation(PageKind.OFFLINE, OWNER)
            try:
                alloc_contig_range(self._device.machine, block, block.start_pfn, block.nr_pages, allocation)
            except BaseException:
                self._give_all(number)
                raise
            held[block.id] = allocation
            adjust_managed_page_count(self._device.machine, block, -block.nr_pages)

    def _give_all(self, number: int) -> None:
        # Of blocks that are online still; those that came back online after a failure have been given by the callback.
        for block in self._blocks(number):
            allocation = self._held.get(number, {}).pop(block.id, None)
            if allocation is not None and allocation.extents:
                adjust_managed_page_count(self._device.machine, block, allocation.nr_pages)
                self._device.machine.pages.free(allocation)

    # -- the notifier

    def owns_whole(self, start: int, size: int) -> bool:
        """Say whether it is inside of one big block."""
        return start // self.unit == (start + size - 1) // self.unit

    def notify(self, action: MemoryAction, start: int, size: int) -> NotifyResult:
        """Let the pages that were taken go with their block."""
        number = start // self.unit
        block = self._device.machine.block_id_of(Pfn(start >> 12))
        allocation = self._held.get(number, {}).get(block)
        if allocation is not None and action in {MEM_GOING_OFFLINE, MEM_CANCEL_OFFLINE}:
            allocation.released = action is MEM_GOING_OFFLINE
        elif allocation is not None and action is MEM_CANCEL_ONLINE:
            self._device.machine.pages.free(self._held[number].pop(block))
        return NOTIFY_OK

    def withheld(self, start: int, size: int) -> list[tuple[Pfn, int, Allocation]]:
        """Give the pages of a block that comes back online while its big block is on the way out."""
        number = start // self.unit
        if self.states.get(number) is not BigState.FAKE_OFFLINE:
            return []
        allocation = Allocation(PageKind.OFFLINE, OWNER)
        self._held.setdefault(number, {})[self._device.machine.block_id_of(Pfn(start >> 12))] = allocation
        return [(Pfn(start >> 12), size >> 12, allocation)]
