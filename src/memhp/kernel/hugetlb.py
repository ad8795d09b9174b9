"""The pool of huge pages of 2 MiB, and the node files that show and change it (``mm/hugetlb.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memhp.kernel.census import Census
from memhp.kernel.holdings import Allocation
from memhp.kernel.kinds import HUGE_ORDER, PageKind
from memhp.kernel.zones import Node

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["POOL", "pool_of", "set_nr_hugepages"]

POOL = (PageKind.HUGETLB, PageKind.HUGETLB_FREE, PageKind.HUGETLB_RESERVED)


def pool_of(machine: Machine, node: Node) -> tuple[int, int]:
    """Count the huge pages of a node: all, and those that are not in use."""
    used = Census(machine).in_node(node)
    total = sum(used[kind] for kind in POOL) >> HUGE_ORDER
    return total, total - (used[PageKind.HUGETLB] >> HUGE_ORDER)


def set_nr_hugepages(machine: Machine, node: Node, wanted: int) -> None:
    """Make the pool of a node that large, as far as there are free chunks to take or free huge pages to give back.

    As in Linux, falling short is no error: read the count back.
    """
    pages = machine.pages
    change = wanted - pool_of(machine, node)[0]
    with pages.lock:
        if change > 0:
            zones = pages.zones_of([node.nid])
            room = pages.available(zones, PageKind.HUGETLB_FREE) >> HUGE_ORDER
            if min(change, room):
                pages.take(Allocation(PageKind.HUGETLB_FREE, "hugetlb pool"), min(change, room) << HUGE_ORDER, zones)
            return
        missing = -change << HUGE_ORDER
        for block in sorted(node.linked.values(), key=lambda block: -block.id):
            for extent in block.used.copy():
                if extent.kind is PageKind.HUGETLB_FREE and missing:
                    part = min(extent.nr_pages, missing)
                    pages.cut_out(extent, extent.start_pfn, part)
                    missing -= part
    pages.notice()
