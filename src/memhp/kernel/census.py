"""How many pages of which kind are where: what the counters of /proc are made of."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.kinds import PageKind
from memhp.kernel.zones import Node, Zone

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["Census"]


class Census:
    """The pages of each kind in each zone at one moment, in pages.

    Attributes:
        free: free pages by zone, without those that are isolated or at hand for a CPU, as in Linux.
        used: pages in use by zone, and in it by kind.
    """

    def __init__(self, machine: Machine) -> None:
        pages = machine.pages
        self.free: dict[Zone, int] = {}
        self.used: dict[Zone, Counter[PageKind]] = {zone: Counter() for node in machine.nodes.values() for zone in node.zones}
        with pages.lock:
            for zone in self.used:
                self.free[zone] = pages.free_in(zone)
            for block in machine.blocks.values():
                for zone, start, nr_pages in block.present:
                    self._count(self.used[zone], block, start, start + nr_pages)
                    if pages.has_chunks:
                        self.used[zone].update(pages.chunks.kinds_in(block, start, start + nr_pages))

    def _count(self, used: Counter[PageKind], block: MemoryBlock, start: int, end: int) -> None:
        for extent in block.used:
            shared = min(extent.end_pfn, end) - max(extent.start_pfn, start)
            if shared > 0:
                used[extent.kind] += shared

    def in_node(self, node: Node) -> Counter[PageKind]:
        """Count the pages of a node that are in use, by kind."""
        return sum((self.used[zone] for zone in node.zones), Counter())

    def free_in_node(self, node: Node) -> int:
        """Count the free pages of a node."""
        return sum(self.free[zone] for zone in node.zones)
