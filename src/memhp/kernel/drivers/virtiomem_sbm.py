"""virtio-mem with sub-blocks: parts of a memory block are plugged, and the rest of it is kept from the allocator."""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memhp.errors import HotplugError
from memhp.events import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    MemoryAction,
)
from memhp.kernel.contig import alloc_contig_range
from memhp.kernel.holdings import Allocation
from memhp.kernel.hotplug import adjust_managed_page_count
from memhp.kernel.kinds import PageKind
from memhp.kernel.zones import ZoneType
from memhp.notifier import NOTIFY_BAD, NOTIFY_OK, NotifyResult
from memhp.units import PAGE_SHIFT, BlockId, Pfn

if TYPE_CHECKING:
    from memhp.kernel.blocks import MemoryBlock
    from memhp.kernel.drivers.virtiomem import VirtioMem

__all__ = ["OWNER", "BlockState", "Divided", "SubBlocks"]

OWNER = "virtio-mem"
"""Whose the pages are that it keeps from the allocator."""

_log = logging.getLogger("memhp.kernel")


class BlockState(enum.Enum):
    """What the driver knows of a memory block; whether all of its sub-blocks are plugged is asked of those."""

    UNUSED = "unused"
    PLUGGED = "plugged"
    """Plugged, but no memory: it could neither be added nor unplugged again, or it was removed as the driver was to go."""
    OFFLINE = "offline"
    KERNEL = "kernel"
    MOVABLE = "movable"


@dataclass(slots=True)
class Divided:
    """One memory block of the device."""

    id: BlockId
    count: int
    state: BlockState = BlockState.UNUSED
    plugged: set[int] = field(default_factory=set)
    """Numbers of its sub-blocks that are plugged."""
    held: dict[int, Allocation] = field(default_factory=dict)
    """What stands for the pages of each other one while it is online."""

    @property
    def partial(self) -> bool:
        """Whether a sub-block is not plugged."""
        return len(self.plugged) < self.count


_ONLINE = (BlockState.KERNEL, BlockState.MOVABLE)
_TO_PLUG = (BlockState.KERNEL, BlockState.MOVABLE, BlockState.OFFLINE)
_TO_UNPLUG = (
    (BlockState.OFFLINE, True),
    (BlockState.OFFLINE, False),
    (BlockState.MOVABLE, True),
    (BlockState.KERNEL, True),
    (BlockState.MOVABLE, False),
    (BlockState.KERNEL, False),
)
"""Which blocks lose memory first, as (state, whether partial)."""

_TO_CLEAN_UP = (BlockState.MOVABLE, BlockState.KERNEL, BlockState.OFFLINE)
"""Which blocks are tried again first, if they are wholly unplugged (``virtio_mem_cleanup_pending_mb``)."""


def _runs(numbers: Iterable[int]) -> list[list[int]]:
    # Neighbours go to the hypervisor in one request.
    runs: list[list[int]] = []
    for number in numbers:
        if runs and abs(number - runs[-1][-1]) == 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


class SubBlocks:
    """The device's memory blocks, and the sub-blocks of each."""

    def __init__(self, device: VirtioMem, unit: int) -> None:
        self._device = device
        self.unit = unit
        size = device.machine.block_size
        self.group_unit = size
        first, last = -(-device.start // size), (device.start + device.size) // size
        self.blocks = [Divided(BlockId(number), size // unit) for number in range(first, last)]
        self.left_over = False
        # What the last block that went offline was before.
        self._left: tuple[BlockState, dict[int, Allocation]] = (BlockState.OFFLINE, {})

    # -- plugging

    def plug(self, units: int) -> None:
        """Fill what is partly plugged, kernel blocks first; then take new blocks, the lowest first.

        Raises:
            HotplugError: ENOSPC, the region is full, or too much of it is offline; or what the hypervisor or adding raised.
        """
        with self._device.mutex:
            for state in _TO_PLUG:
                for mine in self._in(state, partial=True):
                    units -= self._fill(mine, units)
                    if not units:
                        return
        for mine in self.blocks:
            if not units:
                return
            if mine.state is not BlockState.UNUSED:
                continue
            if not self._device.could_add(self._device.machine.block_size):
                raise HotplugError(errno.ENOSPC, f"{self._device.offline_size:#x} bytes are offline, which is as much as may be")
            units -= self._plug_new(mine, units)
        if units:
            raise HotplugError(errno.ENOSPC, "the region has no more memory blocks")

    def _in(self, state: BlockState, *, partial: bool) -> list[Divided]:
        return [mine for mine in self.blocks if mine.state is state and mine.partial is partial]

    def _fill(self, mine: Divided, units: int) -> int:
        chosen = [number for number in range(mine.count) if number not in mine.plugged][:units]
        for run in _runs(chosen):
            self._device.send("plug", *self._place(mine, run[0], len(run)))
            mine.plugged.update(run)
            if mine.state in _ONLINE:
                for number in run:
                    self._give(mine, number)
        return len(chosen)

    def _plug_new(self, mine: Divided, units: int) -> int:
        count = min(units, mine.count)
        start, size = self._place(mine, 0, count)
        self._device.send("plug", start, size)
        mine.plugged = set(range(count))
        mine.state = BlockState.OFFLINE
        try:
            self._device.add(start, self._device.machine.block_size)
        except BaseException:
            mine.state = BlockState.PLUGGED
            with contextlib.suppress(HotplugError):
                self._unplug_whole(mine)
            raise
        return count

    def _unplug_whole(self, mine: Divided) -> None:
        self._unplug_offline(mine, mine.count)
        mine.state = BlockState.UNUSED

    def _place(self, mine: Divided, number: int, count: int = 1) -> tuple[int, int]:
        return mine.id * self._device.machine.block_size + number * self.unit, count * self.unit

    def clean_up(self) -> None:
        """Unplug what could not be added; then try again to remove what is wholly unplugged and could not go."""
        for mine in self.blocks:
            if mine.state is BlockState.PLUGGED:
                self._unplug_whole(mine)
        if self.left_over:
            self.left_over = False
            for state in _TO_CLEAN_UP:
                for mine in self._in(state, partial=True):
                    if not mine.plugged:
                        self._let_go(mine)

    def withdraw(self) -> bool:
        """Remove blocks that are offline and partly plugged, which anybody could bring online whole from now on."""
        for mine in self._in(BlockState.OFFLINE, partial=True):
            self._device.remove(*self._whole(mine))
            mine.state = BlockState.PLUGGED
        return all(mine.state in {BlockState.UNUSED, BlockState.PLUGGED} for mine in self.blocks)

    def _whole(self, mine: Divided) -> tuple[int, int]:
        size = self._device.machine.block_size
        return mine.id * size, size

    # -- unplugging

    def unplug(self, units: int) -> None:
        """Unplug from blocks that are offline, then from partly plugged ones, then from the others, the highest first.

        A block that is wholly unplugged is removed.

        Raises:
            HotplugError: EBUSY, not as much could be had; or what the hypervisor raised.
        """
        for state, partial in _TO_UNPLUG:
            for mine in reversed(self._in(state, partial=partial)):
                if not units:
                    break
                units -= self._unplug_some(mine, units)
        if units:
            raise HotplugError(errno.EBUSY, f"{units} sub-blocks of {self.unit:#x} bytes can't be unplugged now")

    def _unplug_some(self, mine: Divided, units: int) -> int:
        with self._device.mutex:
            online = mine.state in _ONLINE
            done = self._unplug_online(mine, units) if online else self._unplug_offline(mine, units)
            leaves = not mine.plugged
            if leaves and not online:
                # Who waits for the mutex to bring it online finds that it may not.
                mine.state = BlockState.UNUSED
        if leaves:
            self._let_go(mine)
        return done

    def _unplug_offline(self, mine: Divided, units: int) -> int:
        chosen = sorted(mine.plugged, reverse=True)[:units]
        for run in _runs(chosen):
            self._device.send("unplug", *self._place(mine, run[-1], len(run)))
            mine.plugged.difference_update(run)
        return len(chosen)

    def _unplug_online(self, mine: Divided, units: int) -> int:
        if units >= mine.count and not mine.partial and self._keep(mine, range(mine.count)):
            return mine.count
        done = 0
        for number in sorted(mine.plugged, reverse=True):
            if done == units:
                break
            done += self._keep(mine, [number])
        return done

    def _keep(self, mine: Divided, numbers: Sequence[int]) -> bool:
        # Takes the pages of neighbours from the allocator, then the hypervisor takes them; False if they are busy.
        taken: list[int] = []
        try:
            for number in numbers:
                self._take(mine, number)
                taken.append(number)
        except HotplugError:
            for number in taken:
                self._give(mine, number)
            return False
        try:
            self._device.send("unplug", *self._place(mine, numbers[0], len(numbers)))
        except BaseException:
            for number in taken:
                self._give(mine, number)
            raise
        mine.plugged.difference_update(numbers)
        return True

    def _let_go(self, mine: Divided) -> None:
        # Removes a block that nobody can use any more; if another callback refuses, it stays, which 6.12 remembers.
        barred = mine.state is BlockState.UNUSED
        try:
            (self._device.remove if barred else self._device.offline_and_remove)(*self._whole(mine))
        except HotplugError as error:
            _log.info("virtio-mem: memory%d is wholly unplugged, but stays: %s", mine.id, error)
            self.left_over = self._device.machine.rules.value.drivers_since_6_12
            if barred:
                mine.state = BlockState.OFFLINE
            return
        mine.state = BlockState.UNUSED

    # -- pages of sub-blocks, while their block is online

    def _block(self, mine: Divided) -> MemoryBlock:
        return self._device.machine.blocks[mine.id]

    def _take(self, mine: Divided, number: int) -> None:
        start, size = self._place(mine, number)
        allocation = Allocation(PageKind.OFFLINE, OWNER)
        alloc_contig_range(self._device.machine, self._block(mine), Pfn(start >> PAGE_SHIFT), size >> PAGE_SHIFT, allocation)
        mine.held[number] = allocation
        adjust_managed_page_count(self._device.machine, self._block(mine), -(size >> PAGE_SHIFT))

    def _give(self, mine: Divided, number: int) -> None:
        self._device.machine.pages.free(mine.held.pop(number))
        adjust_managed_page_count(self._device.machine, self._block(mine), self.unit >> PAGE_SHIFT)

    # -- the notifier

    def _at(self, start: int) -> Divided:
        return self.blocks[start // self._device.machine.block_size - self.blocks[0].id]

    def owns_whole(self, start: int, size: int) -> bool:
        """Say whether it is exactly one memory block."""
        return size == self._device.machine.block_size and start % size == 0

    def notify(self, action: MemoryAction, start: int, size: int) -> NotifyResult:
        """Follow the block's state, and let its unplugged pages go with it."""
        mine = self._at(start)
        if action is MEM_GOING_ONLINE:
            return NOTIFY_OK if mine.state is BlockState.OFFLINE else NOTIFY_BAD
        if action is MEM_CANCEL_OFFLINE and mine.state is BlockState.OFFLINE:
            mine.state, mine.held = self._left
        if action in {MEM_GOING_OFFLINE, MEM_CANCEL_OFFLINE}:
            for allocation in mine.held.values():
                allocation.released = action is MEM_GOING_OFFLINE
        elif action is MEM_ONLINE:
            movable = any(zone.type is ZoneType.MOVABLE for zone, _, _ in self._block(mine).present)
            mine.state = BlockState.MOVABLE if movable else BlockState.KERNEL
        elif action is MEM_OFFLINE:
            self._left = mine.state, mine.held
            mine.state, mine.held = BlockState.OFFLINE, {}
        elif action is MEM_CANCEL_ONLINE:
            self._stays_offline(mine)
        return NOTIFY_OK

    def _stays_offline(self, mine: Divided) -> None:
        # After the document's NOTIFY_BAD at MEM_ONLINE the pages that are kept back would keep the block online.
        for allocation in mine.held.values():
            self._device.machine.pages.free(allocation)
        mine.held = {}
        if mine.state in _ONLINE:
            mine.state = BlockState.OFFLINE

    def withheld(self, start: int, size: int) -> list[tuple[Pfn, int, Allocation]]:
        """Give the sub-blocks of a block that are not plugged."""
        return list(self._withheld(self._at(start)))

    def _withheld(self, mine: Divided) -> Iterator[tuple[Pfn, int, Allocation]]:
        for number in range(mine.count):
            if number not in mine.plugged:
                allocation = mine.held.setdefault(number, Allocation(PageKind.OFFLINE, OWNER))
                place, length = self._place(mine, number)
                yield Pfn(place >> PAGE_SHIFT), length >> PAGE_SHIFT, allocation
