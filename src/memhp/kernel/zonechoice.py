"""Which zone a block goes to (``mm/memory_hotplug.c``: ``zone_for_pfn_range``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memhp.kernel.blocks import OnlineType
from memhp.kernel.groups import MemoryGroup
from memhp.kernel.zones import Node, Zone, ZoneType
from memhp.units import PAGES_PER_SECTION, Pfn

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["valid_zones", "zone_for_pfn_range"]


def zone_for_pfn_range(
    machine: Machine, online_type: OnlineType, nid: int, group: MemoryGroup | None, start: Pfn, nr_pages: int
) -> Zone:
    """Choose the zone for a range that comes online.

    ``online_movable`` is ZONE_MOVABLE and ``online_kernel`` a kernel zone, whatever the neighbours are; no check of
    contiguity exists. Plain ``online`` follows ``online_policy`` and is decided at this moment: nothing is reserved.
    """
    node = machine.nodes[nid]
    if online_type is OnlineType.ONLINE_MOVABLE:
        return node.zones[ZoneType.MOVABLE]
    if online_type is OnlineType.ONLINE_KERNEL:
        return _kernel_zone(node, start, nr_pages)
    if machine.parameters.online_policy == "auto-movable":
        return _auto_movable(machine, node, group, start, nr_pages)
    kernel_zone = _kernel_zone(node, start, nr_pages)
    return node.zones[ZoneType.MOVABLE] if _contiguous(machine, node, kernel_zone, start, nr_pages) else kernel_zone


def valid_zones(machine: Machine, nid: int, group: MemoryGroup | None, start: Pfn, nr_pages: int) -> list[ZoneType]:
    """List the zones that an offline range could go to, the one that plain ``online`` takes first."""
    default = zone_for_pfn_range(machine, OnlineType.ONLINE, nid, group, start, nr_pages).type
    kernel_zone = _kernel_zone(machine.nodes[nid], start, nr_pages).type
    return [default, *(other for other in (kernel_zone, ZoneType.MOVABLE) if other is not default)]


def _kernel_zone(node: Node, start: Pfn, nr_pages: int) -> Zone:
    for kind in (ZoneType.DMA, ZoneType.DMA32):
        if node.zones[kind].intersects(start, nr_pages):
            return node.zones[kind]
    return node.zones[ZoneType.NORMAL]


def _contiguous(machine: Machine, node: Node, kernel_zone: Zone, start: Pfn, nr_pages: int) -> bool:
    in_kernel = kernel_zone.intersects(start, nr_pages)
    in_movable = node.zones[ZoneType.MOVABLE].intersects(start, nr_pages)
    if in_kernel != in_movable:
        return in_movable
    return machine.parameters.movable_node


# -- the policy auto-movable


def _auto_movable(machine: Machine, node: Node, group: MemoryGroup | None, start: Pfn, nr_pages: int) -> Zone:
    # auto_movable_zone_for_pfn(): Movable only if all of what comes together fits into the ratio at once. The kernel zone is
    # looked up with whatever the walk over the group has made of start and length (fact 6.7).
    ratio = machine.parameters.auto_movable_ratio  # once: its file can be written at any time
    missing, start = _missing(machine, group, start, nr_pages) if ratio else (None, start)
    if missing is None:
        return _kernel_zone(node, start, nr_pages)
    places = [None, node] if machine.parameters.auto_movable_numa_aware else [None]
    if all(_ratio_allows(machine, place, group, missing, ratio) for place in places):
        return node.zones[ZoneType.MOVABLE]
    return _kernel_zone(node, start, missing)


def _missing(machine: Machine, group: MemoryGroup | None, start: Pfn, nr_pages: int) -> tuple[int | None, Pfn]:
    # How many pages will come to Movable if these do; None if they must not.
    if group is None or group.unit_pages == nr_pages:
        return nr_pages, start
    if not group.is_dynamic:
        # Of a group that has more than it said it could have, this is negative; the kernel's sums of unsigned numbers work out.
        return (None if group.present_kernel_pages else group.max_pages - group.present_movable_pages), start
    return _rest_of_unit(machine, group, start)


def _rest_of_unit(machine: Machine, group: MemoryGroup, start: Pfn) -> tuple[int | None, Pfn]:
    # How much of the unit is not in Movable yet, None if a part is in a kernel zone; and where the walk over its sections ended.
    place = Pfn(start - start % group.unit_pages)
    end = place + group.unit_pages
    movable = 0
    while place < end:
        block = machine.blocks.get(machine.block_id_of(place))
        if block is not None and block.present:
            if any(zone.type is not ZoneType.MOVABLE for zone, _, _ in block.present):
                return None, place
            movable += PAGES_PER_SECTION
        place = Pfn(place + PAGES_PER_SECTION)
    return group.unit_pages - movable, place


def _ratio_allows(machine: Machine, node: Node | None, group: MemoryGroup | None, nr_pages: int, ratio: int) -> bool:
    # auto_movable_can_online_movable(), for the whole machine (None) or for one node. A part of the early kernel memory is
    # other dynamic groups' already, as far as their own kernel memory doesn't pay for their movable memory.
    zones = [zone for one in ([node] if node is not None else machine.nodes.values()) for zone in one.zones]
    movable = sum(zone.present if zone.type is ZoneType.MOVABLE else zone.cma for zone in zones)
    kernel_early = sum(zone.present_early - zone.cma for zone in zones if zone.type is not ZoneType.MOVABLE)
    others = [
        other for other in machine.groups if other.is_dynamic and other is not group and (node is None or other.nid == node.nid)
    ]
    claimed = sum(max(0, other.present_movable_pages * 100 // ratio - other.present_kernel_pages) for other in others)
    if kernel_early <= claimed:
        return False
    kernel_early -= claimed
    movable -= sum(other.present_movable_pages for other in others)
    if group is not None and group.is_dynamic:
        kernel_early += group.present_kernel_pages
    return movable + nr_pages <= ratio * kernel_early // 100
