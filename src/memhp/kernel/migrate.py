"""Moving runs of pages out of a block that goes offline (``mm/memory_hotplug.c``: ``do_migrate_range``; ``mm/hugetlb.c``)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from memhp.errors import PageRefusal
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.holdings import Allocation, Extent
from memhp.kernel.kinds import HUGE_ORDER, PageKind
from memhp.kernel.zones import Zone
from memhp.units import Pfn

if TYPE_CHECKING:
    from memhp.kernel.pages import Pages

__all__ = ["dissolve", "migrate", "targets"]

_HUGE = 1 << HUGE_ORDER


def targets(pages: Pages, nid: int) -> list[Zone]:
    """Give the zones that pages of a node move to: of any other node with memory, and its own only if it is the sole one."""
    nodes = pages.by_distance(nid)
    return pages.zones_of([other for other in nodes if other != nid] or [nid])


def migrate(pages: Pages, extent: Extent) -> bool:
    """Move a run to other blocks; False if there is no room for all of it, and it stays.

    Transparent huge pages are split where there is room only in pieces; huge pages of hugetlb go into free ones of the pool
    first, and the pool of the new node grows by the rest.
    """
    allocation, kind = extent.allocation, extent.kind
    zones = targets(pages, extent.block.nid)
    if kind is PageKind.HUGETLB:
        return _migrate_huge(pages, extent, zones)
    if pages.available(zones, kind) < extent.nr_pages:
        if kind is not PageKind.THP or pages.available(zones, PageKind.ANONYMOUS) < extent.nr_pages:
            return False
        kind = PageKind.ANONYMOUS
    pages.migrated += extent.nr_pages
    pages.vacate(extent)
    pages.take(allocation, extent.nr_pages, zones, kind)
    return True


def _migrate_huge(pages: Pages, extent: Extent, zones: list[Zone]) -> bool:
    pooled = _free_huge_pages(pages, zones)
    free = sum(one.nr_pages for one in pooled) + pages.available(zones, PageKind.HUGETLB)
    if free < extent.nr_pages:
        return False
    allocation = extent.allocation
    pages.migrated += extent.nr_pages
    pages.vacate(extent)
    missing = extent.nr_pages
    for one in pooled:
        part = min(one.nr_pages, missing)
        if part:
            _hand_over(pages, one, part, allocation)
            missing -= part
    if missing:
        pages.take(allocation, missing, zones)
    return True


def _free_huge_pages(pages: Pages, zones: list[Zone]) -> list[Extent]:
    pages.huge_pool = {key: one for key, one in pages.huge_pool.items() if one.extents}
    rank = {zone: number for number, zone in enumerate(zones)}
    found = [
        (rank[extent.block.present[0][0]], extent.start_pfn, extent)
        for one in pages.huge_pool.values()
        for extent in one.extents
        if not extent.block.isolated and extent.block.present and extent.block.present[0][0] in rank
    ]
    return [extent for _, _, extent in sorted(found, key=lambda one: one[:2])]


def _hand_over(pages: Pages, extent: Extent, nr_pages: int, to: Allocation) -> None:
    # The first pages of a run become somebody else's, without having been free.
    start, block, giver = extent.start_pfn, extent.block, extent.allocation
    pages.unrecord(extent)
    pages.record(to, block, start, nr_pages, to.kind)
    if extent.nr_pages > nr_pages:
        pages.record(giver, block, Pfn(start + nr_pages), extent.nr_pages - nr_pages, giver.kind)


def dissolve(pages: Pages, block: MemoryBlock) -> None:
    """Give the free huge pages of a block back, so that the pool shrinks (``dissolve_free_hugetlb_folios``).

    Raises:
        PageRefusal: EBUSY: they are promised to a mapping, and there are no others that could keep the promise.
    """
    for extent in block.used.copy():
        if extent.kind is PageKind.HUGETLB_FREE:
            pages.vacate(extent)
    for extent in block.used.copy():
        if extent.kind is PageKind.HUGETLB_RESERVED:
            # A promise is of no particular page: other free ones take it over.
            others = [
                one for one in _free_huge_pages(pages, pages.zones_of(pages.by_distance(block.nid))) if one.block is not block
            ]
            if sum(one.nr_pages for one in others) < extent.nr_pages:
                raise _promised(extent)
            missing = extent.nr_pages
            allocation = extent.allocation
            for one in others:
                part = min(one.nr_pages, missing)
                if part:
                    _hand_over(pages, one, part, allocation)
                    missing -= part
            pages.vacate(extent)


def _promised(extent: Extent) -> PageRefusal:
    return PageRefusal(
        errno.EBUSY,
        f"{extent.block.name}: {extent} can't be dissolved: every free huge page is promised",
        block=extent.block.id,
        page=extent.start_pfn,
        kind=extent.kind.value,
        owner=extent.allocation.owner,
    )
