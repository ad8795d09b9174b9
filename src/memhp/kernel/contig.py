"""Taking a given range of pages out of use, moving what is in it (``mm/page_alloc.c``: ``alloc_contig_range``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, PageRefusal
from memhp.kernel.holdings import Allocation, Extent, Place
from memhp.kernel.kinds import Leaving, MigrateType, PageKind
from memhp.kernel.section import runs_of
from memhp.kernel.zones import Zone
from memhp.units import Pfn

if TYPE_CHECKING:
    from memhp.kernel.blocks import MemoryBlock
    from memhp.kernel.machine import Machine
    from memhp.kernel.pages import Pages

__all__ = ["alloc_contig_range"]


def alloc_contig_range(machine: Machine, block: MemoryBlock, start: Pfn, nr_pages: int, allocation: Allocation) -> None:
    """Give a range of an online block to ``allocation``; what can move in it moves, to the same node first.

    Huge pages that nobody uses are replaced by others of the same node, so that its pool keeps its size, which it doesn't
    where a block goes offline (``mm/hugetlb.c``: ``isolate_or_dissolve_huge_page``).

    Raises:
        PageRefusal: EBUSY, naming a page that can't move, or finds no room; or the block is on its way offline. The range is not
            taken then; what has moved stays where it is now.
    """
    pages, end = machine.pages, Pfn(start + nr_pages)
    with pages.lock, pages.without_lists():
        pages.check_not_isolated(block)
        inside = [extent for extent in block.used if extent.start_pfn < end and start < extent.end_pfn]
        for extent in inside:
            if not _can_move(extent):
                raise pages.refusal(extent, "can't move")
        # What is free is taken first, so that nothing moves into it.
        _take_free(pages, block, start, nr_pages, allocation)
        try:
            for extent in inside:
                _move(pages, extent, max(start, extent.start_pfn), min(end, extent.end_pfn), allocation)
            _move_chunks(pages, block, start, end, allocation)
        except BaseException:
            for extent in allocation.extents.copy():
                pages.vacate(extent)
            raise
    pages.notice()


def _can_move(place: Extent | Place) -> bool:
    return place.kind.leaving in {Leaving.MIGRATES, Leaving.DISSOLVES} and not place.allocation.pins


def _take_free(pages: Pages, block: MemoryBlock, start: Pfn, nr_pages: int, allocation: Allocation) -> None:
    for section, bits in list(pages.buddy.each(start, nr_pages)):
        free = section.free & bits
        if free:
            # Not as an allocation does it: its pageblocks stay what they are for.
            pages.buddy.clear(section, free)
            for place, length in runs_of(free):
                pages.record(allocation, block, Pfn(section.start_pfn + place), length, allocation.kind)


def _move(pages: Pages, extent: Extent, first: Pfn, end: Pfn, allocation: Allocation) -> None:
    block, count = extent.block, end - first
    try:
        pages.take(extent.allocation, count, _zones(pages, block, extent.kind), extent.kind)
    except HotplugError as error:
        raise _homeless(pages, extent, error) from error
    pages.cut_out(extent, first, count)
    _take_free(pages, block, first, count, allocation)


def _zones(pages: Pages, block: MemoryBlock, kind: PageKind) -> list[Zone]:
    # alloc_and_dissolve_hugetlb_folio() asks for __GFP_THISNODE.
    return pages.zones_of([block.nid]) if kind.leaving is Leaving.DISSOLVES else pages.zones(MigrateType.MOVABLE, block.nid)


def _homeless(pages: Pages, extent: Extent, error: HotplugError) -> PageRefusal:
    return pages.refusal(extent, f"finds no other place ({error.strerror})")


def _move_chunks(pages: Pages, block: MemoryBlock, start: Pfn, end: Pfn, allocation: Allocation) -> None:
    # What was allocated chunk by chunk moves chunk by chunk.
    for place in _elsewhere_held(pages, block, start, end):
        if not _can_move(place) or not pages.chunks.move_out(block, place.start_pfn, _zones(pages, block, place.kind)):
            raise pages.refusal(place, "can't move")
        _take_free(pages, block, start, end - start, allocation)


def _elsewhere_held(pages: Pages, block: MemoryBlock, start: Pfn, end: Pfn) -> Iterator[Place]:
    if not pages.has_chunks:
        return
    for pfn in map(Pfn, range(start, end)):
        holder = pages.holder_of(pfn) if pages.extent_at(block, pfn) is None else None
        if holder is not None:
            yield Place(pfn, block, holder)
