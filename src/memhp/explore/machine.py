"""The fields of the modelled machine that threads share; docs/explore.md says what that is for."""

from __future__ import annotations

from memhp.explore.fields import Declared
from memhp.kernel import Machine
from memhp.kernel.acpi import AcpiMemory, Dimm, MemoryDevice
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.boot import Parameters
from memhp.kernel.iomem import Iomem
from memhp.kernel.pages import Pages
from memhp.kernel.zones import Node, Zone
from memhp.locking import Task

__all__ = ["FIELDS"]


def _zone(zone: Zone) -> str:
    return f"node{zone.nid}/{zone.type.label}"


FIELDS = (
    *(Declared(Machine, name, lambda machine: "machine") for name in ("blocks", "node_states", "drivers_autoprobe")),
    *(Declared(Machine, name, lambda machine: "machine", container=True) for name in ("firmware_map", "power_control")),
    *(
        Declared(MemoryBlock, name, lambda block: f"memory{block.id}")
        for name in ("state", "offline", "online_type", "zone", "present", "isolated", "removed", "firmware_node")
    ),
    *(Declared(MemoryBlock, name, lambda block: f"memory{block.id}", container=True) for name in ("used", "poisoned")),
    *(Declared(Zone, name, _zone) for name in ("start_pfn", "spanned", "present", "present_early", "managed")),
    *(Declared(Zone, name, _zone, container=True) for name in ("blocks", "_ids")),
    Declared(Node, "registered", lambda node: f"node{node.nid}"),
    Declared(Node, "linked", lambda node: f"node{node.nid}", container=True),
    Declared(Iomem, "_resources", lambda iomem: "iomem"),
    Declared(Pages, "generation", lambda pages: "pages"),
    *(Declared(MemoryDevice, name, lambda device: device.name) for name in ("dimm", "attached", "seen", "physical_nodes")),
    *(Declared(Dimm, name, lambda dimm: f"DIMM {dimm.device.name}") for name in ("plugged", "error")),
    Declared(Dimm, "reports", lambda dimm: f"DIMM {dimm.device.name}", container=True),
    Declared(AcpiMemory, "enabled", lambda acpi: "acpi"),
    *(
        Declared(Parameters, name, lambda parameters: "memory_hotplug")
        for name in ("auto_online_blocks", "online_policy", "auto_movable_ratio", "auto_movable_numa_aware")
    ),
    Declared(Task, "signals", lambda task: f"signals of {task.name}"),
)
"""Positions in this table stand in schedule strings: a change of it is a new version of them."""
