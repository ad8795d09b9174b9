"""s390 standby memory: the hypervisor backs it only while it is online (``drivers/s390/char/sclp_cmd.c``, sclp_mem_notifier).

Memory comes in increments, which the hypervisor assigns and unassigns. Under the rules of 6.12 that happens around everything
else (MEM_PREPARE_ONLINE, MEM_FINISH_OFFLINE), so that also the block's own memmap is backed before it is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from memhp.errors import InvalidInput
from memhp.events import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_FINISH_OFFLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    MEM_PREPARE_ONLINE,
    MemoryAction,
    MemoryNotify,
)
from memhp.kernel.add import MhpFlags
from memhp.locking import Mutex
from memhp.notifier import NOTIFY_BAD, NOTIFY_OK, NotifierBlock, NotifyResult
from memhp.units import PAGE_SHIFT, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["SclpMemory"]


class SclpMemory:
    """The increments of one partition, and its callback, which has priority 0.

    Args:
        machine: the partition.
        start: first byte of the standby memory.
        size: its length in bytes, of whole increments and blocks.
        increment: bytes of an increment.
        edat1: whether the CPU has large pages (EDAT1), so that on 6.12 blocks may hold their own memmap.
        assign: asks the hypervisor to back an increment, by number; gives False if it can't.

    Raises:
        InvalidInput: not whole increments and blocks.
    """

    def __init__(
        self,
        machine: Machine,
        start: int,
        size: int,
        *,
        increment: int,
        edat1: bool = True,
        assign: Callable[[int], bool] = lambda number: True,
    ) -> None:
        for name, number in (("start", start), ("size", size), ("increment", increment)):
            whole_number(number, f"sclp: {name}")
        if not 0 <= start < start + size <= machine.mappable or increment < 1:
            raise InvalidInput((start, size, increment), "sclp: (start, size, increment)", "bytes that can be mapped")
        if any(number % unit for number in (start, size) for unit in (increment, machine.block_size)):
            raise InvalidInput((start, size, increment), "sclp: (start, size, increment)", "whole increments and memory blocks")
        self._machine = machine
        self._start, self._size, self._increment = start, size, increment
        self._edat1 = edat1
        self._assign = assign
        self._mutex = Mutex("sclp_mem_mutex", machine.dep)
        self.standby = set(range(start // increment, (start + size) // increment))
        """Numbers of the increments that the hypervisor does not back, as the driver knows."""
        self.callback = machine.memory_chain.register(NotifierBlock(self._notify, name="sclp_mem"))

    def detect(self) -> list[int]:
        """Add the standby memory to node 0, block by block, as at boot; gives the ids of the blocks."""
        flags = MhpFlags.NONE
        if self._machine.rules.value.prepares and self._edat1:
            flags = MhpFlags.MEMMAP_ON_MEMORY | MhpFlags.OFFLINE_INACCESSIBLE
        size = self._machine.block_size
        starts = range(self._start, self._start + self._size, size)
        return [block for start in starts for block in self._machine.add_memory(0, start, size, flags=flags)]

    def backed(self, start: int, size: int) -> bool:
        """Say whether the hypervisor backs every byte of a range."""
        return not self.standby & set(self._numbers(start, size))

    def _numbers(self, start: int, size: int) -> Iterable[int]:
        return range(start // self._increment, -(-(start + size) // self._increment))

    def _notify(self, block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        start, size = arg.start_pfn << PAGE_SHIFT, arg.nr_pages << PAGE_SHIFT
        prepares = self._machine.rules.value.prepares
        if arg.altmap_nr_pages:
            start, size = arg.altmap_start_pfn << PAGE_SHIFT, size + (arg.altmap_nr_pages << PAGE_SHIFT)
        on = MEM_PREPARE_ONLINE if prepares else MEM_GOING_ONLINE
        off = {MEM_FINISH_OFFLINE} if prepares else {MEM_CANCEL_ONLINE, MEM_OFFLINE}
        with self._mutex:
            if action is MEM_GOING_OFFLINE:
                return NOTIFY_OK if self.backed(start, size) else NOTIFY_BAD
            if action is on:
                return NOTIFY_OK if self._back(start, size) else NOTIFY_BAD
            if action in off:
                self.standby |= set(self._numbers(start, size))
                return NOTIFY_OK
        # Before 6.12 it knows the six actions of that time, and refuses any other.
        return NOTIFY_OK if prepares or action in {MEM_ONLINE, MEM_CANCEL_OFFLINE} else NOTIFY_BAD

    def _back(self, start: int, size: int) -> bool:
        # All are asked for, even behind one that can't be had; but from that one on none counts as backed.
        failed = False
        for number in self._numbers(start, size):
            failed = not self._assign(number) or failed
            if not failed:
                self.standby.discard(number)
        return not failed
