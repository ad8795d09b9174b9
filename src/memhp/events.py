"""What a notifier callback is told: the action and the range (``include/linux/memory.h``)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from memhp.units import Pfn, format_mem

__all__ = [
    "MEM_CANCEL_OFFLINE",
    "MEM_CANCEL_ONLINE",
    "MEM_FINISH_OFFLINE",
    "MEM_GOING_OFFLINE",
    "MEM_GOING_ONLINE",
    "MEM_OFFLINE",
    "MEM_ONLINE",
    "MEM_PREPARE_ONLINE",
    "NO_CHANGE",
    "MemoryAction",
    "MemoryNotify",
]

NO_CHANGE = -1
"""The value of the two ``status_change_nid`` fields when no node mask changes."""


class MemoryAction(enum.Enum):
    """The six actions of the document, and the two that Linux 6.12 adds around them.

    The values are the bit flags of Linux 6.1. They are *not* the same in every release (in 6.12.117 MEM_ONLINE is 0),
    so compare members, never numbers; ``Rules.number`` gives the number that a kernel uses.
    """

    MEM_ONLINE = 1 << 0
    """The memory is online; a callback may allocate from it."""
    MEM_GOING_OFFLINE = 1 << 1
    """Nothing can be allocated from the memory any more; free what you hold in it, or refuse."""
    MEM_OFFLINE = 1 << 2
    """The memory is offline."""
    MEM_GOING_ONLINE = 1 << 3
    """The memory will come online; prepare, or refuse. It can't be allocated from yet."""
    MEM_CANCEL_ONLINE = 1 << 4
    """It did not come online. Sent to the whole chain, also to callbacks that never saw MEM_GOING_ONLINE."""
    MEM_CANCEL_OFFLINE = 1 << 5
    """It stays online. Sent to the whole chain, also to callbacks that never saw MEM_GOING_OFFLINE."""
    MEM_PREPARE_ONLINE = 1 << 6
    """Linux 6.12 only: before MEM_GOING_ONLINE, so that the memory can be made accessible."""
    MEM_FINISH_OFFLINE = 1 << 7
    """Linux 6.12 only: the counterpart of MEM_PREPARE_ONLINE, after MEM_OFFLINE or a failed online."""

    @property
    def asks(self) -> bool:
        """Whether a refusal has a meaning in every kernel: MEM_PREPARE_ONLINE and the two GOING actions."""
        return self in _ASKING


MEM_ONLINE = MemoryAction.MEM_ONLINE
MEM_GOING_OFFLINE = MemoryAction.MEM_GOING_OFFLINE
MEM_OFFLINE = MemoryAction.MEM_OFFLINE
MEM_GOING_ONLINE = MemoryAction.MEM_GOING_ONLINE
MEM_CANCEL_ONLINE = MemoryAction.MEM_CANCEL_ONLINE
MEM_CANCEL_OFFLINE = MemoryAction.MEM_CANCEL_OFFLINE
MEM_PREPARE_ONLINE = MemoryAction.MEM_PREPARE_ONLINE
MEM_FINISH_OFFLINE = MemoryAction.MEM_FINISH_OFFLINE

_ASKING = frozenset({MEM_PREPARE_ONLINE, MEM_GOING_ONLINE, MEM_GOING_OFFLINE})


@dataclass(frozen=True, slots=True)
class MemoryNotify:
    """The third argument of a callback: which pages, and which node masks change.

    One object serves GOING, CANCEL and done of one change, so the two nids keep the values that they had at GOING even
    where the node's state has changed since (``mm/memory_hotplug.c``; observed on 6.1 and 6.12).
    """

    start_pfn: Pfn
    """First page frame of the range."""
    nr_pages: int
    """Length of the range in pages."""
    status_change_nid_normal: int = NO_CHANGE
    """The node whose bit in N_NORMAL_MEMORY is (or will be) set or cleared, or -1."""
    status_change_nid: int = NO_CHANGE
    """The node whose bit in N_MEMORY is (or will be) set or cleared, or -1."""
    altmap_start_pfn: int = 0
    """Linux 6.12, only in MEM_PREPARE_ONLINE and MEM_FINISH_OFFLINE: start of the memory that holds its own memmap."""
    altmap_nr_pages: int = 0
    """Linux 6.12: pages of that memory; 0 when the memmap lies elsewhere."""

    @property
    def end_pfn(self) -> Pfn:
        """The page frame after the last one."""
        return Pfn(self.start_pfn + self.nr_pages)

    def __str__(self) -> str:
        return f"{format_mem(self.start_pfn, self.nr_pages)} ({self.status_change_nid_normal},{self.status_change_nid})"
