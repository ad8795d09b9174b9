"""How many pages of which kind are where: what the counters of /proc are made of."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from memhp.kernel.pages import PageKind
from memhp.kernel.zones import Node, Zone

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["Census"]


class Census:
    """The pages of each kind in each zone at one moment, in pages.

    Attributes:
        free: free pages by zone; pages of a block that is being isolated count as free, as in Linux.
        used: pages in use by zone, and in it by kind.
    """

    def __init__(self, machine: Machine) -> None:
        self.free: Counter[Zone] = Counter()
        self.used: dict[Zone, Counter[PageKind]] = {zone: Counter() for node in machine.nodes.values() for zone in node.zones}
        with machine.pages.lock:
            for block in list(machine.blocks.values()):
                for zone, start, nr_pages in block.present:
                    self.free[zone] += nr_pages
                    for extent in block.used:
                        shared = min(extent.end_pfn, start + nr_pages) - max(extent.start_pfn, start)
                        if shared > 0:
                            self.used[zone][extent.allocation.kind] += shared
                            self.free[zone] -= shared

    def in_node(self, node: Node) -> Counter[PageKind]:
        """Count the pages of a node that are in use, by kind."""
        return sum((self.used[zone] for zone in node.zones), Counter())

    def free_in_node(self, node: Node) -> int:
        """Count the free pages of a node."""
        return sum(self.free[zone] for zone in node.zones)
