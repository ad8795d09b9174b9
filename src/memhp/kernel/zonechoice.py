"""Which zone a block goes to (``mm/memory_hotplug.c``: ``zone_for_pfn_range``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from memhp.kernel.blocks import OnlineType
from memhp.kernel.zones import Node, Zone, ZoneType
from memhp.units import Pfn

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["valid_zones", "zone_for_pfn_range"]


def zone_for_pfn_range(machine: Machine, online_type: OnlineType, nid: int, start: Pfn, nr_pages: int) -> Zone:
    """Choose the zone for a range that comes online.

    ``online_movable`` is ZONE_MOVABLE and ``online_kernel`` a kernel zone, whatever the neighbours are; no check of
    contiguity exists. Plain ``online`` follows ``online_policy`` and is decided at this moment: nothing is reserved.
    """
    node = machine.nodes[nid]
    if online_type is OnlineType.ONLINE_MOVABLE:
        return node.zones[ZoneType.MOVABLE]
    kernel_zone = _kernel_zone(node, start, nr_pages)
    if online_type is OnlineType.ONLINE_KERNEL:
        return kernel_zone
    if machine.parameters.online_policy == "auto-movable":
        movable = _auto_movable(machine, node, nr_pages)
    else:
        movable = _contiguous(machine, node, kernel_zone, start, nr_pages)
    return node.zones[ZoneType.MOVABLE] if movable else kernel_zone


def valid_zones(machine: Machine, nid: int, start: Pfn, nr_pages: int) -> list[ZoneType]:
    """List the zones that an offline range could go to, the one that plain ``online`` takes first."""
    default = zone_for_pfn_range(machine, OnlineType.ONLINE, nid, start, nr_pages).type
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


def _auto_movable(machine: Machine, node: Node, nr_pages: int) -> bool:
    # auto_movable_can_online_movable() for memory without a group.
    if not machine.parameters.auto_movable_ratio:
        return False
    if not _ratio_allows(machine, machine.nodes.values(), nr_pages):
        return False
    return not machine.parameters.auto_movable_numa_aware or _ratio_allows(machine, [node], nr_pages)


def _ratio_allows(machine: Machine, nodes: Iterable[Node], nr_pages: int) -> bool:
    zones = [zone for node in nodes for zone in node.zones]
    movable = sum(zone.present for zone in zones if zone.type is ZoneType.MOVABLE)
    kernel_early = sum(zone.present_early for zone in zones if zone.type is not ZoneType.MOVABLE)
    return bool(movable + nr_pages <= machine.parameters.auto_movable_ratio * kernel_early // 100)
