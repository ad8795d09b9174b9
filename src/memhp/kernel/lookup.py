"""Finding things in a machine: blocks, zones, and where there is room; what :class:`memhp.kernel.machine.Machine` stands on."""

from __future__ import annotations

import errno

from memhp.errors import HotplugError, InvalidInput
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.iomem import Iomem
from memhp.kernel.zones import Node, NodeState, Zone, ZoneType
from memhp.locking import Lockdep
from memhp.units import PAGE_SHIFT, BlockId, Pfn, PhysAddr, format_ids, format_size, whole_number

__all__ = ["Lookup"]


class Lookup:
    """What a machine consists of; :class:`~memhp.kernel.machine.Machine` says what each attribute is."""

    block_size: int
    pages_per_block: int
    room: tuple[int, int]
    blocks: dict[int, MemoryBlock]
    nodes: dict[int, Node]
    node_states: dict[NodeState, set[int]]
    iomem: Iomem
    dep: Lockdep | None

    def block(self, block_id: int) -> MemoryBlock:
        """Give a block by its id.

        Raises:
            HotplugError: ENODEV, there is none.
        """
        block = self.blocks.get(whole_number(block_id, "block", "the id of a memory block, a number"))
        if block is None:
            raise HotplugError(errno.ENODEV, f"there is no memory block {block_id!r}")
        return block

    def blocks_within(self, start: int, size: int) -> list[MemoryBlock]:
        """Give the blocks that there are in a range of bytes, ascending; the range may be far larger than the machine."""
        first, end = start // self.block_size, -(-(start + size) // self.block_size)
        blocks = self.blocks
        numbers = range(first, end) if end - first < len(blocks) else sorted(blocks)
        return [blocks[number] for number in numbers if first <= number < end and number in blocks]

    def block_id_of(self, pfn: Pfn) -> BlockId:
        """Give the id that the block with this page frame has, or would have."""
        return BlockId(pfn // self.pages_per_block)

    def zone(self, nid: int, kind: ZoneType | str) -> Zone:
        """Give a zone of a node; by name as sysfs prints it, or by type.

        Raises:
            InvalidInput: no such node or zone.
        """
        if whole_number(nid, "node", "the number of a node") not in self.nodes:
            raise InvalidInput(nid, "node", f"one of {format_ids(self.nodes)}")
        for zone in self.nodes[nid].zones:
            if kind in (zone.type, zone.type.label):
                return zone
        raise InvalidInput(kind, "zone", "DMA, DMA32, Normal or Movable")

    def next_room(self, size: int, align: int = 0) -> PhysAddr:
        """Find the lowest address of the room for new memory where ``size`` bytes fit.

        It is a multiple of the block size, and of ``align`` if that is larger; both are powers of two.

        Raises:
            HotplugError: ENOSPC, it doesn't fit anywhere.
        """
        start, room = self.room
        step, size = max(align, self.block_size), whole_number(size, "size")
        place = -(-start // step) * step
        for resource in self.iomem:
            if resource.end >= place and resource.start < place + size:
                place = -(-(resource.end + 1) // step) * step
        if place + size > start + room:
            raise HotplugError(errno.ENOSPC, f"no room for {format_size(size)} in the {format_size(room)} at {start:#x}")
        return PhysAddr(place)

    @property
    def memory_total(self) -> int:
        """Bytes of managed pages, as MemTotal counts them."""
        return sum(zone.managed for node in self.nodes.values() for zone in node.zones) << PAGE_SHIFT

    def new_block(self, block_id: BlockId, nid: int) -> MemoryBlock:
        """Make a block that is not part of the machine yet."""
        return MemoryBlock(block_id, nid, Pfn(block_id * self.pages_per_block), self.pages_per_block, self.dep)

    def set_node_state(self, state: NodeState, nid: int, *, member: bool) -> None:
        """Put a node into a mask or take it out; a new set each time, so that whoever reads the old one is undisturbed."""
        mask = self.node_states[state]
        self.node_states = {**self.node_states, state: mask | {nid} if member else mask - {nid}}
