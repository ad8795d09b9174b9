"""Zones and nodes: who spans what, and how many pages of it are present."""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memhp.locking import ActiveReference
from memhp.units import Pfn

if TYPE_CHECKING:
    from memhp.kernel.blocks import MemoryBlock
    from memhp.locking import Lockdep

__all__ = ["ARCH_LIMITS", "Node", "NodeState", "Zone", "ZoneType"]


class ZoneType(enum.IntEnum):
    """The zones of x86-64, in their order."""

    DMA = 0
    DMA32 = 1
    NORMAL = 2
    MOVABLE = 3
    DEVICE = 4
    """Memory of devices, which never comes online: no block is ever in it."""

    @property
    def label(self) -> str:
        """The name that sysfs prints."""
        return _LABELS[self]


_LABELS = {
    ZoneType.DMA: "DMA",
    ZoneType.DMA32: "DMA32",
    ZoneType.NORMAL: "Normal",
    ZoneType.MOVABLE: "Movable",
    ZoneType.DEVICE: "Device",
}

ARCH_LIMITS = {
    ZoneType.DMA: (0, (16 << 20) >> 12),
    ZoneType.DMA32: ((16 << 20) >> 12, (4 << 30) >> 12),
    ZoneType.NORMAL: ((4 << 30) >> 12, 1 << 40),
}
"""First pfn and the one after the last of each zone's addresses (x86-64)."""


class NodeState(enum.Enum):
    """The node masks (``include/linux/nodemask.h``) and the files that show them."""

    N_POSSIBLE = "possible"
    N_ONLINE = "online"
    N_NORMAL_MEMORY = "has_normal_memory"
    N_MEMORY = "has_memory"
    N_CPU = "has_cpu"


class Zone:
    """One zone of one node; all counts are in pages.

    The span covers every block that is in the zone, and holes between them. It grows when a block comes in and shrinks
    only when the block at one of its ends leaves (``mm/memory_hotplug.c``: ``resize_zone_range``, ``shrink_zone_span``).
    """

    __slots__ = ("_ids", "blocks", "cma", "managed", "nid", "present", "present_early", "spanned", "start_pfn", "type")

    def __init__(self, nid: int, kind: ZoneType) -> None:
        self.nid = nid
        self.type = kind
        self.start_pfn = Pfn(0)
        self.spanned = 0
        self.present = 0
        self.present_early = 0
        self.managed = 0
        self.cma = 0
        """Pages of its pageblocks that are CMA's; they never leave."""
        self.blocks: dict[int, MemoryBlock] = {}
        """The blocks with pages in it, by id; changed by :meth:`put` and :meth:`drop` only."""
        self._ids: list[int] = []

    def __repr__(self) -> str:
        return f"<Zone node{self.nid} {self.type.label} start={self.start_pfn:#x} spanned={self.spanned:#x}>"

    @property
    def end_pfn(self) -> Pfn:
        """The page frame after the span."""
        return Pfn(self.start_pfn + self.spanned)

    def intersects(self, start: Pfn, nr_pages: int) -> bool:
        """Say whether its span touches the range."""
        return self.spanned > 0 and start < self.end_pfn and start + nr_pages > self.start_pfn

    def grow(self, start: Pfn, nr_pages: int) -> None:
        """Extend the span to cover the range."""
        if not self.spanned:
            self.start_pfn, self.spanned = start, nr_pages
            return
        first = min(self.start_pfn, start)
        end = max(self.end_pfn, start + nr_pages)
        self.start_pfn, self.spanned = Pfn(first), end - first

    def shrink(self, start: Pfn, nr_pages: int) -> None:
        """Take the range off an end of the span, up to the next block that is still in the zone.

        The blocks of the range are out of ``blocks`` already. A range in the middle leaves a hole in the span.
        """
        at_start = start <= self.start_pfn < start + nr_pages
        at_end = start < self.end_pfn <= start + nr_pages
        if not at_start and not at_end:
            return
        if not self.blocks:
            self.start_pfn, self.spanned = Pfn(0), 0
            return
        first, end = self.start_pfn, self.end_pfn
        if at_start:
            first = self.blocks[self._ids[0]].first_pfn_in(self)
        else:
            end = self.blocks[self._ids[-1]].end_pfn_in(self)
        self.start_pfn, self.spanned = first, end - first

    def put(self, block: MemoryBlock) -> None:
        """Take a block in; one that is in it already, with another part, stays."""
        if block.id not in self.blocks:
            self.blocks[block.id] = block
            bisect.insort(self._ids, block.id)

    def drop(self, block: MemoryBlock) -> None:
        """Let a block go."""
        del self.blocks[block.id]
        del self._ids[bisect.bisect_left(self._ids, block.id)]

    def ascending(self) -> Iterator[MemoryBlock]:
        """Give its blocks in the order of their addresses."""
        return (self.blocks[block_id] for block_id in self._ids)


class Node:
    """One NUMA node: its zones, and the blocks that are linked to it in sysfs; ``cpus`` are those that are present."""

    __slots__ = ("active", "cpus", "device_zone", "distances", "linked", "memory_failure", "nid", "registered", "zones")

    def __init__(self, nid: int, cpus: tuple[int, ...], distances: dict[int, int]) -> None:
        self.nid = nid
        self.cpus = cpus
        self.distances = distances
        self.zones = tuple(Zone(nid, kind) for kind in ZoneType if kind is not ZoneType.DEVICE)
        """Those that blocks can be in."""
        self.device_zone = Zone(nid, ZoneType.DEVICE)
        self.registered = False
        """Whether the node device exists."""
        self.active: ActiveReference | None = None
        """What those hold who use its files; another one each time that the device is made."""
        self.linked: dict[int, MemoryBlock] = {}
        """Blocks with a link in the node's directory, by id."""
        self.memory_failure = dict.fromkeys(("total", "ignored", "failed", "delayed", "recovered"), 0)
        """How often its hardware failed, and what came of it."""

    def register(self, dep: Lockdep | None) -> None:
        """Make its device."""
        self.active = ActiveReference(f"node{self.nid}/s_active", dep, lock_class="node s_active", order=self.nid)
        self.registered = True

    def present_up_to(self, kind: ZoneType) -> int:
        """Count present pages in the zones up to ``kind``."""
        return sum(zone.present for zone in self.zones[: kind + 1])

    @property
    def spans_nothing(self) -> bool:
        """Whether no zone of it has a span."""
        return not any(zone.spanned for zone in (*self.zones, self.device_zone))
