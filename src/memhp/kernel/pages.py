"""Pages: who holds what in which block, and what of it can leave.

What is free is not stored: a block keeps only the extents of pages that are in use, so a wholly free block costs nothing
and an allocation of a gigabyte is a handful of records.
"""

from __future__ import annotations

import bisect
import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, InvalidInput, PageRefusal
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.kinds import Leaving, MigrateType, PageKind
from memhp.kernel.zones import NodeState, ZoneType
from memhp.locking import Mutex, WaitQueue
from memhp.units import Pfn

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["Allocation", "Extent", "PageKind", "Pages"]


@dataclass(slots=True, eq=False)
class Allocation:
    """Pages that somebody holds; migration changes where they are, not what they are.

    Attributes:
        kind: what they are.
        owner: whose they are, for messages.
        pins: how many references keep them from migrating.
        extents: where they are now.
        freed: whether they were given back.
    """

    kind: PageKind
    owner: str
    pins: int = 0
    extents: list[Extent] = field(default_factory=list)
    freed: bool = False

    @property
    def nr_pages(self) -> int:
        """How many pages it holds."""
        return sum(extent.nr_pages for extent in self.extents)

    @property
    def blocks(self) -> list[int]:
        """The ids of the blocks that it has pages in, ascending."""
        return sorted({extent.block.id for extent in self.extents})

    def __str__(self) -> str:
        return f"{self.owner or 'somebody'} ({self.kind.value}, {self.nr_pages} pages{', pinned' if self.pins else ''})"


@dataclass(slots=True, eq=False)
class Extent:
    """A run of pages of one allocation in one block."""

    start_pfn: Pfn
    nr_pages: int
    block: MemoryBlock
    allocation: Allocation

    @property
    def end_pfn(self) -> Pfn:
        """The page frame after the run."""
        return Pfn(self.start_pfn + self.nr_pages)

    def __str__(self) -> str:
        return f"page {self.start_pfn:#x} of {self.allocation}"


class Pages:
    """The page allocator of one machine. All counts are in pages.

    Pages can be had from a block only while it is online and not isolated. Where several blocks would do, the lowest is
    taken first; nodes by distance from the one asked for; movable pages prefer ZONE_MOVABLE and others never get it.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        # The kernel has a lock per zone; one for all keeps an allocation over several zones in one piece.
        self.lock = Mutex("zone->lock", machine.dep, interruptible=False)
        self.changed = WaitQueue("page state")
        self.generation = 0
        """Grows with each change that could let a stuck offline go on."""

    # -- what users of memory call

    def alloc(
        self,
        nr_pages: int,
        kind: PageKind = PageKind.MOVABLE,
        *,
        node: int | None = None,
        blocks: Iterable[int] | None = None,
        owner: str = "",
    ) -> Allocation:
        """Take pages.

        Args:
            nr_pages: how many, at least 1.
            kind: what they will be.
            node: prefer this node, then the nearest others; None prefers the first node with memory.
            blocks: take them from these blocks only.
            owner: whose they are, named in every refusal.

        Raises:
            HotplugError: ENOMEM, with what was asked for and what is free; nothing was taken.
            InvalidInput: not a number of pages, or a node or block that doesn't exist.
        """
        if not isinstance(nr_pages, int) or isinstance(nr_pages, bool) or nr_pages < 1:
            raise InvalidInput(nr_pages, "alloc: nr_pages", "a number of pages, at least 1")
        if kind is PageKind.POISONED:
            raise InvalidInput(kind.value, "alloc: kind", "a kind that can be allocated; pages are poisoned by hard_offline_page")
        if kind is PageKind.MEMMAP:
            raise InvalidInput(
                kind.value, "alloc: kind", "a kind that can be allocated; a block holds its own memmap from the start"
            )
        if node is not None and node not in self._machine.nodes:
            raise InvalidInput(node, "alloc: node", f"one of {sorted(self._machine.nodes)}")
        allocation = Allocation(kind, owner)
        with self.lock:
            self._take(allocation, nr_pages, self._candidates(kind, node, blocks))
        return allocation

    def free(self, allocation: Allocation) -> None:
        """Give the pages back.

        Raises:
            InvalidInput: they were freed already.
        """
        with self.lock:
            if allocation.freed:
                raise InvalidInput(str(allocation), "free", "an allocation that was not freed yet")
            extents = allocation.extents.copy()
            for extent in extents:
                extent.block.used.remove(extent)
            allocation.extents.clear()
            allocation.pins = 0
            allocation.freed = True
            for extent in extents:
                self._keep_poisoned(extent)
        self.notice()

    def _keep_poisoned(self, extent: Extent) -> None:
        # A page with bad hardware never goes back to the allocator.
        for pfn in sorted(extent.block.poisoned):
            if extent.start_pfn <= pfn < extent.end_pfn:
                self.occupy(Allocation(PageKind.POISONED, "memory failure"), extent.block, pfn, 1)

    def pin(self, allocation: Allocation) -> None:
        """Take a reference that keeps the pages where they are (as ``vmsplice`` or RDMA do)."""
        with self.lock:
            if allocation.freed:
                raise InvalidInput(str(allocation), "pin", "an allocation that was not freed")
            allocation.pins += 1

    def unpin(self, allocation: Allocation) -> None:
        """Drop one such reference.

        Raises:
            InvalidInput: there is none.
        """
        with self.lock:
            if not allocation.pins:
                raise InvalidInput(str(allocation), "unpin", "a pinned allocation")
            allocation.pins -= 1
        self.notice()

    def count_free(self, blocks: Iterable[MemoryBlock] | None = None) -> int:
        """Count the free pages of the blocks (all by default) that can be allocated now."""
        chosen = self._machine.blocks.values() if blocks is None else blocks
        with self.lock:
            return sum(self._free_in(block) for block in chosen if _allocatable(block))

    def notice(self) -> None:
        """Let a stuck offline look again."""
        with self.lock:
            self.generation += 1
        self.changed.wake_up()

    # -- what offlining calls

    def isolate(self, blocks: list[MemoryBlock]) -> None:
        """Keep the blocks' free pages from the allocator (``start_isolate_page_range``).

        Raises:
            PageRefusal: EBUSY: a page that can't move, or a block that is isolated already; nothing stays isolated.
        """
        with self.lock:
            for block in blocks:
                if block.isolated:
                    message = f"{block.name} is being isolated already"
                    raise PageRefusal(errno.EBUSY, message, block=block.id, page=block.start_pfn, kind="isolated", owner="")
                for extent in block.used:
                    if extent.allocation.kind.leaving is Leaving.REFUSES:
                        raise self._refusal(extent, "can't move")
            for block in blocks:
                block.isolated = True

    def unisolate(self, blocks: list[MemoryBlock]) -> None:
        """Let the allocator have the blocks' free pages (``undo_isolate_page_range``)."""
        with self.lock:
            for block in blocks:
                block.isolated = False
        self.notice()

    def evacuate(self, blocks: list[MemoryBlock]) -> Extent | None:
        """Move what can move out of the blocks, once over them in the order of their pages.

        Gives the first page that stays although it might leave later (pinned, or nowhere to go), or None when the blocks
        hold nothing that must leave.

        Raises:
            PageRefusal: EBUSY: a driver's offline page that is still referenced; waiting is of no use.
        """
        stuck: Extent | None = None
        with self.lock:
            for extent in [extent for block in blocks for extent in block.used]:
                kind = extent.allocation.kind
                if kind.leaving is Leaving.GOES_ALONG:
                    continue
                if kind.leaving is not Leaving.MIGRATES:
                    raise self._refusal(extent, "is still referenced")
                if extent.allocation.pins or not self._migrate(extent):
                    stuck = stuck or extent
        return stuck

    def hold_memmap(self, block: MemoryBlock) -> None:
        """Note the pages at a block's start that hold its own memmap, if it has such, before it comes online."""
        if block.altmap_pages:
            with self.lock:
                self.occupy(Allocation(PageKind.MEMMAP, block.name), block, block.start_pfn, block.altmap_pages)

    def forget(self, blocks: list[MemoryBlock]) -> None:
        """Drop the records of pages that go with their blocks; only poisoned ones and their own memmap are left by then."""
        with self.lock:
            for block in blocks:
                for extent in block.used:
                    extent.allocation.extents.remove(extent)
                block.used.clear()

    def _refusal(self, extent: Extent, why: str) -> PageRefusal:
        allocation = extent.allocation
        return PageRefusal(
            errno.EBUSY,
            f"{extent.block.name}: {extent} {why}",
            block=extent.block.id,
            page=extent.start_pfn,
            kind=allocation.kind.value,
            owner=allocation.owner,
        )

    def _migrate(self, extent: Extent) -> bool:
        # mm/memory_hotplug.c, do_migrate_range(): any other node with memory, and the own one only if it is the sole one.
        own = extent.block.nid
        nodes = [nid for nid in self._by_distance(own) if nid != own] or [own]
        # A block in two zones comes twice, and its room must be counted once.
        blocks = list(dict.fromkeys(self._blocks_of(nodes, PageKind.MOVABLE)))
        if sum(self._free_in(block) for block in blocks) < extent.nr_pages:
            return False
        allocation = extent.allocation
        extent.block.used.remove(extent)
        allocation.extents.remove(extent)
        self._take(allocation, extent.nr_pages, blocks)
        return True

    # -- where pages come from

    def _candidates(self, kind: PageKind, node: int | None, blocks: Iterable[int] | None) -> list[MemoryBlock]:
        if blocks is None:
            return list(self._blocks_of(self._by_distance(node), kind))
        chosen = []
        for block_id in blocks:
            block = self._machine.blocks.get(block_id)
            if block is None:
                raise InvalidInput(block_id, "alloc: blocks", "blocks that exist")
            if _allocatable(block) and (kind.migratetype is MigrateType.MOVABLE or not _in_movable(block)):
                chosen.append(block)
        return chosen

    def _by_distance(self, node: int | None) -> list[int]:
        nodes = sorted(self._machine.node_states[NodeState.N_MEMORY])
        if node is None:
            return nodes
        distances = self._machine.nodes[node].distances
        return sorted(nodes, key=lambda nid: (distances.get(nid, 20), nid))

    def _blocks_of(self, nodes: Iterable[int], kind: PageKind) -> Iterator[MemoryBlock]:
        first = ZoneType.MOVABLE if kind.migratetype is MigrateType.MOVABLE else ZoneType.NORMAL
        for nid in nodes:
            for zone_type in range(first, -1, -1):
                zone = self._machine.nodes[nid].zones[zone_type]
                yield from (block for block in zone.ascending() if _allocatable(block))

    def _take(self, allocation: Allocation, nr_pages: int, blocks: Iterable[MemoryBlock]) -> None:
        missing = nr_pages
        taken: list[tuple[MemoryBlock, Pfn, int]] = []
        for block in dict.fromkeys(blocks):
            for start, room in self._gaps(block):
                size = min(room, missing)
                taken.append((block, start, size))
                missing -= size
                if not missing:
                    break
            if not missing:
                break
        if missing:
            raise HotplugError(
                errno.ENOMEM,
                f"{allocation.owner or 'somebody'} asked for {nr_pages} {allocation.kind.value} pages; "
                f"only {nr_pages - missing} are free where they may come from",
            )
        for block, start, size in taken:
            self.occupy(allocation, block, start, size)

    def occupy(self, allocation: Allocation, block: MemoryBlock, start: Pfn, nr_pages: int) -> None:
        """Note that free pages are in use now. Called with the lock held."""
        extent = Extent(start, nr_pages, block, allocation)
        bisect.insort(block.used, extent, key=lambda other: other.start_pfn)
        allocation.extents.append(extent)

    def give_up(self, block: MemoryBlock, pfn: Pfn, *, hard: bool) -> Allocation | None:
        """Free one page whoever has it: ``hard`` takes it from its owner, else what is in it moves elsewhere first.

        Gives the owner if the page can't be had. Called with the lock held.
        """
        extent = next((extent for extent in block.used if extent.start_pfn <= pfn < extent.end_pfn), None)
        if extent is None:
            return None
        allocation = extent.allocation
        if allocation.kind.leaving is not Leaving.MIGRATES or (allocation.pins and not hard):
            return allocation
        if not hard:
            elsewhere = [other for other in self._candidates(PageKind.MOVABLE, block.nid, None) if other is not block]
            try:
                self._take(allocation, 1, elsewhere)
            except HotplugError:
                return allocation
        block.used.remove(extent)
        allocation.extents.remove(extent)
        for start, end in ((extent.start_pfn, pfn), (Pfn(pfn + 1), extent.end_pfn)):
            if start < end:
                self.occupy(allocation, block, start, end - start)
        return None

    def _gaps(self, block: MemoryBlock) -> Iterator[tuple[Pfn, int]]:
        used = iter(block.used)
        busy = next(used, None)
        for _, start, nr_pages in block.present:
            place, end = start, start + nr_pages
            while place < end:
                while busy is not None and busy.end_pfn <= place:
                    busy = next(used, None)
                until = end if busy is None else min(end, busy.start_pfn)
                if until > place:
                    yield place, until - place
                place = Pfn(end if busy is None else max(until, min(end, busy.end_pfn)))

    def _free_in(self, block: MemoryBlock) -> int:
        return sum(nr for _, _, nr in block.present) - sum(extent.nr_pages for extent in block.used)


def _allocatable(block: MemoryBlock) -> bool:
    return bool(block.present) and not block.isolated


def _in_movable(block: MemoryBlock) -> bool:
    return any(zone.type is ZoneType.MOVABLE for zone, _, _ in block.present)
