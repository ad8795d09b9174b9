"""Taking a given range of pages out of use, moving what is in it (``mm/page_alloc.c``: ``alloc_contig_range``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, PageRefusal
from memhp.kernel.holdings import Allocation, Extent, Place
from memhp.kernel.kinds import Leaving, MigrateType
from memhp.kernel.section import runs_of
from memhp.units import Pfn

if TYPE_CHECKING:
    from memhp.kernel.blocks import MemoryBlock
    from memhp.kernel.machine import Machine
    from memhp.kernel.pages import Pages

__all__ = ["alloc_contig_range"]


def alloc_contig_range(machine: Machine, block: MemoryBlock, start: Pfn, nr_pages: int, allocation: Allocation) -> None:
    """Give a range of an online block to ``allocation``; what can move in it moves, to the same node first.

    Raises:
        PageRefusal: EBUSY, naming a page that can't move, or finds no room. The range is not taken then; what has moved stays
            where it is now.
    """
    pages, end = machine.pages, Pfn(start + nr_pages)
    with pages.lock, pages.without_lists():
        inside = [extent for extent in block.used if extent.start_pfn < end and start < extent.end_pfn]
        for extent in inside:
            if extent.kind.leaving is not Leaving.MIGRATES or extent.allocation.pins:
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
        pages.take(extent.allocation, count, pages.zones(MigrateType.MOVABLE, block.nid), extent.kind)
    except HotplugError as error:
        raise _homeless(pages, extent, error) from error
    pages.cut_out(extent, first, count)
    _take_free(pages, block, first, count, allocation)


def _homeless(pages: Pages, extent: Extent, error: HotplugError) -> PageRefusal:
    return pages.refusal(extent, f"finds no other place ({error.strerror})")


def _move_chunks(pages: Pages, block: MemoryBlock, start: Pfn, end: Pfn, allocation: Allocation) -> None:
    # What was allocated chunk by chunk moves chunk by chunk.
    for pfn in _elsewhere_held(pages, block, start, end):
        holder = pages.give_up(block, pfn, hard=False)
        if holder is not None:
            raise pages.refusal(Place(pfn, block, holder), "can't move")
        _take_free(pages, block, start, end - start, allocation)


def _elsewhere_held(pages: Pages, block: MemoryBlock, start: Pfn, end: Pfn) -> Iterator[Pfn]:
    if not pages.has_chunks:
        return
    for pfn in range(start, end):
        if pages.extent_at(block, Pfn(pfn)) is None and pages.holder_of(Pfn(pfn)) is not None:
            yield Pfn(pfn)
