"""Pages: who holds what in which block, and what of it can leave.

What is free is a number of bits a section (:mod:`memhp.kernel.section`). What is in use is kept in one of two ways: in runs,
where a gigabyte is a handful of records; or page by page (:mod:`memhp.kernel.pagemap`), in arrays that exist only for the
sections that have such pages. A machine that nobody allocates from has neither.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, InvalidInput, PageRefusal
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.holdings import Allocation, Extent, Holding, Place
from memhp.kernel.kinds import HUGE_ORDER, Leaving, MigrateType, PageKind
from memhp.kernel.migrate import dissolve, migrate
from memhp.kernel.supply import Supply
from memhp.kernel.zones import ZoneType
from memhp.locking import WaitQueue
from memhp.units import Pfn, whole_number

if TYPE_CHECKING:
    from memhp.kernel.chunks import Chunks
    from memhp.kernel.machine import Machine
    from memhp.kernel.pagemap import Page, PageArray, Pfns

__all__ = ["Allocation", "Extent", "PageKind", "Pages"]


class Pages(Supply):
    """The page allocator of one machine. All counts are in pages.

    Pages can be had from a block only while it is online and not isolated. Nodes are taken by distance from the one asked for;
    movable pages prefer ZONE_MOVABLE and others never get it. There are two ways to have pages:

    - :meth:`alloc` takes any number in runs, the lowest first, whatever the watermarks say. It is for what is large.
    - :meth:`alloc_pages` takes a chunk of an order, as the kernel's function of that name, and :meth:`alloc_pages_bulk` many
      of them at once. Each then migrates and is freed by itself.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.changed = WaitQueue("page state")
        """Woken by each change that could let a stuck offline go on."""
        self.migrated = 0
        """How many pages have moved out of blocks that went offline, or tried to."""

    # -- what users of memory call: runs

    def alloc(
        self,
        nr_pages: int,
        kind: PageKind = PageKind.MOVABLE,
        *,
        node: int | None = None,
        blocks: Iterable[int] | None = None,
        owner: str = "",
    ) -> Allocation:
        """Take pages, in as few runs as there are from the lowest address on.

        Args:
            nr_pages: how many, at least 1; a multiple of 512 for huge pages.
            kind: what they will be.
            node: prefer this node, then the nearest others; None prefers the first node with memory.
            blocks: take them from these blocks only.
            owner: whose they are, named in every refusal.

        Raises:
            HotplugError: ENOMEM, with what was asked for and what is free; nothing was taken.
            InvalidInput: not a number of pages, or a node or block that doesn't exist.
        """
        if whole_number(nr_pages, "alloc: nr_pages", "a number of pages, at least 1") < 1:
            raise InvalidInput(nr_pages, "alloc: nr_pages", "a number of pages, at least 1")
        if nr_pages & ((1 << kind.order) - 1):
            raise InvalidInput(nr_pages, "alloc: nr_pages", f"a multiple of {1 << kind.order}, as {kind.value} pages have")
        self.check(kind, node)
        allocation = Allocation(kind, owner)
        with self.lock:
            self.drain()
            if blocks is None:
                self.take(allocation, nr_pages, self.zones(kind.migratetype, node))
            else:
                self._take_from(allocation, nr_pages, self._chosen(kind, blocks))
        return allocation

    def free(self, holding: Holding) -> None:
        """Give all its pages back.

        Raises:
            InvalidInput: they were freed already, or it is not this machine's.
        """
        self._check_own(holding, "free")
        if not isinstance(holding, Allocation):
            self.chunks.free(holding)
            return
        with self.lock:
            if holding.freed:
                raise InvalidInput(str(holding), "free", "an allocation that was not freed yet")
            extents = holding.extents.copy()
            for extent in extents:
                self.vacate(extent)
            holding.pins = 0
            holding.freed = True
            for extent in extents:
                self._keep_poisoned(extent)
        self.notice()

    def _check_own(self, holding: Holding, verb: str) -> None:
        if not isinstance(holding, Holding):
            raise InvalidInput(holding, verb, "what was allocated")
        if isinstance(holding, Allocation):
            if any(extent.block is not self._machine.blocks.get(extent.block.id) for extent in holding.extents):
                raise InvalidInput(str(holding), verb, "an allocation of this machine")
        elif self._chunks is None or not self._chunks.owns(holding):
            raise InvalidInput(str(holding), verb, "what this machine allocated")

    def _keep_poisoned(self, extent: Extent) -> None:
        # A page with bad hardware never goes back to the allocator.
        for pfn in sorted(extent.block.poisoned):
            if extent.start_pfn <= pfn < extent.end_pfn:
                self.occupy(Allocation(PageKind.POISONED, "memory failure"), extent.block, pfn, 1)

    def pin(self, holding: Holding) -> None:
        """Take a reference that keeps the pages where they are (as ``vmsplice`` or RDMA do).

        Raises:
            InvalidInput: they were freed already, or it is not this machine's.
        """
        self._check_own(holding, "pin")
        with self.lock:
            if holding.freed:
                raise InvalidInput(str(holding), "pin", "an allocation that was not freed")
            holding.pins += 1
            if holding.pins == 1 and not isinstance(holding, Allocation):
                self.chunks.pinned.append(holding)

    def unpin(self, holding: Holding) -> None:
        """Drop one such reference.

        Raises:
            InvalidInput: there is none.
        """
        self._check_own(holding, "unpin")
        with self.lock:
            if holding.freed or not holding.pins:
                raise InvalidInput(str(holding), "unpin", "a pinned allocation")
            holding.pins -= 1
            if not holding.pins and not isinstance(holding, Allocation):
                self.chunks.pinned.remove(holding)
        self.notice()

    def count_free(self, blocks: Iterable[MemoryBlock] | None = None) -> int:
        """Count the free pages of the blocks (all by default) that can be allocated now."""
        with self.lock:
            self.drain()
            if blocks is None:
                return sum(self.buddy.free_in(zone) for node in self._machine.nodes.values() for zone in node.zones)
            return sum(self._free_in(block) for block in blocks if _allocatable(block))

    def count_used(self, block: MemoryBlock) -> int:
        """Count the pages of a block that are in use."""
        if self._buddy is None or not block.present:
            return 0
        with self.lock:
            self.drain()
            return sum(nr for _, _, nr in block.present) - self._free_in(block)

    def notice(self) -> None:
        """Let a stuck offline look again."""
        self.changed.wake_up()

    # -- what users of memory call: chunks

    def alloc_pages(
        self,
        order: int = 0,
        kind: PageKind = PageKind.MOVABLE,
        *,
        node: int | None = None,
        owner: str = "",
        migratetype: MigrateType | None = None,
        emergency: bool = False,
    ) -> Page:
        """Take one chunk of 2 ** ``order`` pages.

        Single pages come from a list that is refilled by the batch, so most calls touch no zone. Zones are asked down to their
        low watermark first, then down to min.

        Args:
            order: from 0 to 10.
            kind: what it will be.
            node: prefer this node, then the nearest others; None prefers the first node with memory.
            owner: whose it is, named in every refusal.
            migratetype: from which pageblocks; as ``kind`` has it by default. HIGHATOMIC makes a reserve and may use it.
            emergency: take also what the watermarks keep (``__GFP_MEMALLOC``).

        Raises:
            HotplugError: ENOMEM, with what was asked for; nothing was taken.
            InvalidInput: not such an order, kind, migratetype or node.
        """
        chunks = self._chunks
        if chunks is not None and order == 0 and node is None and migratetype is None:
            try:
                with chunks.cpu_lock:
                    return chunks.map.hand_out(chunks.at_hand[kind.code].pop(), kind, owner)
            except (IndexError, AttributeError):  # nothing is at hand, or this is no kind
                pass
        return self.chunks.alloc(order, kind, node, owner, migratetype, emergency=emergency)

    def alloc_pages_bulk(
        self,
        nr_chunks: int,
        order: int = 0,
        kind: PageKind = PageKind.MOVABLE,
        *,
        node: int | None = None,
        owner: str = "",
        emergency: bool = False,
    ) -> PageArray:
        """Take many chunks of one order at once: all, or none.

        Raises:
            HotplugError: ENOMEM, with what was asked for; nothing was taken.
            InvalidInput: not such a number, order, kind or node.
        """
        return self.chunks.alloc_bulk(nr_chunks, order, kind, node, owner, emergency=emergency)

    def free_pages(self, page: Page) -> None:
        """Give one chunk back.

        Raises:
            InvalidInput: it was freed already, or is no chunk of this machine.
        """
        chunks = self._chunks
        if chunks is None or not chunks.put_at_hand(page):
            self.free(page)

    def free_pages_bulk(self, pages: PageArray, pfns: Pfns | None = None) -> None:
        """Give chunks back, in any order: those that begin at ``pfns`` now, or all.

        Raises:
            InvalidInput: one of them is not held by ``pages``, or is named twice; nothing was freed.
        """
        self.chunks.free_bulk(pages, pfns)

    # -- what offlining and onlining call

    def isolate(self, blocks: list[MemoryBlock]) -> None:
        """Keep the blocks' free pages from the allocator (``start_isolate_page_range``).

        Raises:
            PageRefusal: EBUSY: a page that can't move, or a block that is isolated already; nothing stays isolated.
        """
        with self.lock:
            for block in blocks:
                self.check_not_isolated(block)
                self._check_movable(block)
            if self._chunks is not None:
                self._chunks.stop_lists()
            self.set_isolated(blocks, isolated=True)

    def check_not_isolated(self, block: MemoryBlock) -> None:
        """See that nobody else takes the block out of use. Called with the lock held.

        Raises:
            PageRefusal: EBUSY.
        """
        if block.isolated:
            message = f"{block.name} is being isolated already"
            raise PageRefusal(errno.EBUSY, message, block=block.id, page=block.start_pfn, kind="isolated", owner="")

    def _check_movable(self, block: MemoryBlock) -> None:
        found: list[Extent | Place] = [extent for extent in block.used if extent.kind.leaving is Leaving.REFUSES]
        if self._chunks is not None:
            found += self._chunks.first_that(Leaving.REFUSES, block)
        if found:
            raise self.refusal(min(found, key=lambda one: one.start_pfn), "can't move")
        for section in self.buddy.sections_of(block) if self._buddy is not None else ():
            if section.types is not None and MigrateType.CMA in section.types:
                page = section.start_pfn + (section.types.index(MigrateType.CMA) << HUGE_ORDER)
                message = f"{block.name}: page {page:#x} is in a pageblock of CMA, which is not isolated for this"
                raise PageRefusal(errno.EBUSY, message, block=block.id, page=page, kind="cma", owner="CMA")

    def unisolate(self, blocks: list[MemoryBlock]) -> None:
        """Let the allocator have the blocks' free pages (``undo_isolate_page_range``)."""
        with self.lock:
            self.set_isolated(blocks, isolated=False)
        self.notice()

    def lists_work(self) -> None:
        """Let single pages be kept at hand again (``zone_pcp_enable``)."""
        with self.lock:
            if self._chunks is not None:
                self._chunks.start_lists()

    def set_isolated(self, blocks: list[MemoryBlock], *, isolated: bool) -> None:
        """Mark the blocks' pageblocks as isolated, or not any more. Called with the lock held."""
        for block in blocks:
            block.isolated = isolated
            for section in self._buddy.sections_of(block) if self._buddy is not None else ():
                self._buddy.touch(section)  # type: ignore[union-attr]

    def evacuate(self, blocks: list[MemoryBlock]) -> Extent | Place | None:
        """Move what can move out of the blocks, once over them in the order of their pages; then dissolve free huge pages.

        Gives the first page that stays although it might leave later (pinned, or nowhere to go), or None when the blocks
        hold nothing that must leave.

        Raises:
            PageRefusal: EBUSY: a driver's offline page that is still referenced, or huge pages that are promised; waiting is
                of no use.
        """
        stuck: list[Extent | Place] = []
        with self.lock:
            for block in blocks:
                for extent in block.used.copy():
                    leaving = extent.kind.leaving
                    if leaving is Leaving.HELD and extent.allocation.released:
                        continue
                    if leaving in {Leaving.HELD, Leaving.REFUSES}:
                        raise self.refusal(extent, "is still referenced")
                    if leaving is Leaving.MIGRATES and (extent.allocation.pins or not migrate(self, extent)):
                        stuck.append(extent)
                if self._chunks is not None:
                    stuck += self._evacuate_chunks(self._chunks, block)
            if not stuck:
                for block in blocks:
                    dissolve(self, block)
        return min(stuck, key=lambda one: one.start_pfn, default=None)

    def _evacuate_chunks(self, chunks: Chunks, block: MemoryBlock) -> list[Place]:
        from memhp.kernel.migratechunks import evacuate  # noqa: PLC0415 - NumPy, as with `chunks`

        return evacuate(chunks, block)

    def hold_memmap(self, block: MemoryBlock) -> None:
        """Note the pages at a block's start that hold its own memmap, if it has such, before it comes online."""
        if block.altmap_pages:
            with self.lock:
                self.record(Allocation(PageKind.MEMMAP, block.name), block, block.start_pfn, block.altmap_pages, PageKind.MEMMAP)

    def forget(self, blocks: list[MemoryBlock]) -> None:
        """Drop the records of pages that go with their blocks; only poisoned ones and the block's memmap are left by then."""
        with self.lock:
            for block in blocks:
                for extent in block.used:
                    extent.allocation.extents.remove(extent)
                block.used.clear()

    def held_in(self, blocks: list[MemoryBlock]) -> list[Extent | Place]:
        """List what is in use in the blocks, but for their own memmap: runs, and the first of the chunks of each block."""
        found: list[Extent | Place] = [extent for block in blocks for extent in block.used if extent.kind is not PageKind.MEMMAP]
        if self._chunks is not None:
            for block in blocks:
                for leaving in Leaving:
                    found += self._chunks.first_that(leaving, block)
        return found

    def refusal(self, place: Extent | Place, why: str) -> PageRefusal:
        """Make the error that names a page, what it is, and whose."""
        return PageRefusal(
            errno.EBUSY,
            f"{place.block.name}: {place} {why}",
            block=place.block.id,
            page=place.start_pfn,
            kind=place.kind.value,
            owner=place.allocation.owner,
        )

    # -- what stands behind it

    @property
    def chunks(self) -> Chunks:
        """What is held chunk by chunk; set up, and NumPy imported, with the first such allocation."""
        if self._chunks is None:
            from memhp.kernel.chunks import Chunks  # noqa: PLC0415

            with self.lock:  # several threads may need the first one at the same time
                if self._chunks is None:
                    self._chunks = Chunks(self, self._machine)
        return self._chunks

    @property
    def has_chunks(self) -> bool:
        """Whether anything was ever held chunk by chunk."""
        return self._chunks is not None

    def check(self, kind: object, node: object) -> None:
        """See that pages of this kind can be asked for, near this node.

        Raises:
            InvalidInput: no such kind or node, or a kind that nobody asks for.
        """
        kind = PageKind.of(kind)
        if kind is PageKind.POISONED:
            raise InvalidInput(kind.value, "alloc: kind", "a kind that can be allocated; pages are poisoned by hard_offline_page")
        if kind is PageKind.MEMMAP:
            expected = "a kind that can be allocated; a block holds its own memmap from the start"
            raise InvalidInput(kind.value, "alloc: kind", expected)
        if node is not None and (not isinstance(node, int) or node not in self._machine.nodes):
            raise InvalidInput(node, "alloc: node", f"one of {sorted(self._machine.nodes)}")

    def _chosen(self, kind: PageKind, blocks: Iterable[int]) -> list[MemoryBlock]:
        if not isinstance(blocks, Iterable):
            raise InvalidInput(blocks, "alloc: blocks", "ids of blocks")
        chosen = []
        for block_id in blocks:
            block = self._machine.blocks.get(block_id) if isinstance(block_id, int) else None
            if block is None:
                raise InvalidInput(block_id, "alloc: blocks", "blocks that exist")
            if _allocatable(block) and (kind.migratetype is MigrateType.MOVABLE or not _in_movable(block)):
                chosen.append(block)
        return list(dict.fromkeys(chosen))

    def holder_of(self, pfn: Pfn) -> Holding | None:
        """Say who has a page: None if nobody, or there is no such page. Called with the lock held."""
        block = self._machine.blocks.get(self._machine.block_id_of(pfn))
        if block is None:
            return None
        extent = self.extent_at(block, pfn)
        if extent is not None:
            return extent.allocation
        return self._chunks.map.holder_of(pfn) if self._chunks is not None else None

    def give_up(self, block: MemoryBlock, pfn: Pfn, *, hard: bool) -> Holding | None:
        """Free one page whoever has it: ``hard`` takes it from its owner, else what is in it moves elsewhere first.

        Gives the owner if the page can't be had. Called with the lock held.
        """
        with self.without_lists():
            return self._give_up(block, pfn, hard=hard)

    def _give_up(self, block: MemoryBlock, pfn: Pfn, *, hard: bool) -> Holding | None:
        extent = self.extent_at(block, pfn)
        if extent is None:
            return self._chunks.give_up(block, pfn, hard=hard) if self._chunks is not None else None
        allocation = extent.allocation
        free_huge = extent.kind is PageKind.HUGETLB_FREE  # dissolved, and the pool shrinks
        if not free_huge and (extent.kind.leaving is not Leaving.MIGRATES or (allocation.pins and not hard)):
            return allocation
        unit = 1 << extent.kind.order
        if not hard and not free_huge:
            elsewhere = [
                other
                for zone in self.zones(MigrateType.MOVABLE, block.nid)
                for other in zone.ascending()
                if other is not block and _allocatable(other)
            ]
            try:
                self._take_from(allocation, unit, list(dict.fromkeys(elsewhere)), extent.kind)
            except HotplugError:
                return allocation
        first = Pfn(pfn - (pfn - extent.start_pfn) % unit)
        self.cut_out(extent, first, unit)
        return None


def _allocatable(block: MemoryBlock) -> bool:
    return bool(block.present) and not block.isolated


def _in_movable(block: MemoryBlock) -> bool:
    return any(zone.type is ZoneType.MOVABLE for zone, _, _ in block.present)
