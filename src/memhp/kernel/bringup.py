"""Bringing a machine up: from a plan to nodes, blocks, zones and claims, as they are when the first request can come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memhp.errors import InvalidInput
from memhp.kernel.blocks import BlockState
from memhp.kernel.boot import BootBlock, Plan
from memhp.kernel.firmwaremap import RESERVED
from memhp.kernel.iomem import SYSTEM_RAM
from memhp.kernel.layout import zones_of
from memhp.kernel.zones import ARCH_LIMITS, Node, NodeState, ZoneType
from memhp.units import PAGE_SHIFT, Pfn, format_ids

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["bringup"]


def bringup(machine: Machine, plan: Plan) -> None:
    """Fill a machine as its plan says.

    Raises:
        InvalidInput: a block names a node that isn't there.
    """
    _make_nodes(machine, plan)
    for boot in plan.blocks:
        _make_block(machine, boot)
    for node in machine.nodes.values():
        _set_spans(node)
        _set_masks(machine, node)
    runs = _claim_memory(machine)
    if plan.firmware is None:
        _make_firmware_map(machine, runs)
    else:
        for start, end, kind in plan.firmware:
            machine.firmware_map.add(start, end - start + 1, kind)
    machine.tiers.boot([machine.nodes[nid] for nid in sorted(machine.node_states[NodeState.N_MEMORY])])
    machine.dax.bring_up(plan.soft_reserved)


def _make_nodes(machine: Machine, plan: Plan) -> None:
    for nid, spec in enumerate(plan.nodes):
        if spec is not None:
            distances = dict(enumerate(spec.distances)) or dict.fromkeys(range(len(plan.nodes)), 20)
            machine.nodes[nid] = Node(nid, plan.cpu_ids.get(nid, ()), {**distances, nid: 10})
            machine.node_states[NodeState.N_POSSIBLE].add(nid)


def _make_block(machine: Machine, boot: BootBlock) -> None:
    if boot.nid not in machine.nodes:
        raise InvalidInput(f"node{boot.nid}", f"memory{boot.id}", f"one of the nodes {format_ids(machine.nodes)}")
    block = machine.new_block(boot.id, boot.nid)
    block.ram = boot.ram
    block.early = True
    block.state = boot.state
    block.offline = boot.state is BlockState.OFFLINE
    node = machine.nodes[boot.nid]
    block.present = tuple((node.zones[kind], start, nr) for kind, start, nr in zones_of(boot))
    zones = {zone for zone, _, _ in block.present}
    block.zone = zones.pop() if len(zones) == 1 and not boot.in_several else None
    machine.blocks[block.id] = block
    node.linked[block.id] = block
    for zone, _, nr in block.present:
        zone.present += nr
        zone.managed += nr
        zone.present_early += nr
        zone.put(block)


def _set_masks(machine: Machine, node: Node) -> None:
    masks = machine.node_states
    if node.linked or node.cpus:
        node.register(machine.dep)
        masks[NodeState.N_ONLINE].add(node.nid)
    if node.cpus:
        machine.cpus.present_at_boot(node.cpus, node.nid)
        masks[NodeState.N_CPU].add(node.nid)
    if node.present_up_to(ZoneType.NORMAL):
        masks[NodeState.N_NORMAL_MEMORY].add(node.nid)
    if node.present_up_to(ZoneType.MOVABLE):
        masks[NodeState.N_MEMORY].add(node.nid)


def _claim_memory(machine: Machine) -> list[tuple[int, int]]:
    runs: list[list[int]] = []
    for block in sorted(machine.blocks.values(), key=lambda block: block.id):
        for start, nr in block.ram:
            if runs and runs[-1][1] == start:
                runs[-1][1] = start + nr
            else:
                runs.append([start, start + nr])
    for first, end in runs:
        machine.iomem.request(first << PAGE_SHIFT, (end - first) << PAGE_SHIFT, SYSTEM_RAM)
    return [(first << PAGE_SHIFT, end << PAGE_SHIFT) for first, end in runs]


def _make_firmware_map(machine: Machine, ranges: list[tuple[int, int]]) -> None:
    # Of what the firmware keeps for itself only the first MiB is known here; it counts page 0 as memory, which Linux doesn't use.
    for start, end in ranges:
        if (start, end) == (0x1000, 0x9F000):
            machine.firmware_map.add(0, 0x9FC00)
            machine.firmware_map.add(0x9FC00, 0x400, RESERVED)
            machine.firmware_map.add(0xF0000, 0x10000, RESERVED)
        else:
            machine.firmware_map.add(start, end - start)


def _set_spans(node: Node) -> None:
    # A zone spans the node's memory as far as the zone's addresses go, holes included; ZONE_MOVABLE spans its blocks.
    parts = [(zone, start, nr) for block in node.linked.values() for zone, start, nr in block.present]
    for zone, start, nr in parts:
        zone.grow(start, nr)
    natural = [(start, nr) for zone, start, nr in parts if zone.type is not ZoneType.MOVABLE]
    if not natural:
        return
    first, end = min(start for start, _ in natural), max(start + nr for start, nr in natural)
    for zone in node.zones:
        if zone.spanned and zone.type is not ZoneType.MOVABLE:
            low, high = ARCH_LIMITS[zone.type]
            low, high = max(low, first), min(high, end)
            if low < high:
                zone.grow(Pfn(low), high - low)
