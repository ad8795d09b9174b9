"""The fields of the modelled machine that threads share; docs/explore.md says what that is for.

Positions in :data:`FIELDS` stand in schedule strings: new fields go to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from memhp.explore.fields import Declared
from memhp.kernel import Machine
from memhp.kernel.acpi import AcpiMemory, Dimm, MemoryDevice
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.boot import Parameters
from memhp.kernel.cpus import Cpu, Cpus
from memhp.kernel.dax import DaxRange, DaxRegion, DevDax
from memhp.kernel.daxbus import DaxBus, DaxDriver
from memhp.kernel.devicememory import DeviceMemory
from memhp.kernel.drivers import DaxKmem, VirtioMem
from memhp.kernel.drivers.virtiomem_bbm import BigBlocks
from memhp.kernel.drivers.virtiomem_sbm import Divided, SubBlocks
from memhp.kernel.error_inject import Modules
from memhp.kernel.firmwaremap import FirmwareMap
from memhp.kernel.groups import MemoryGroup, MemoryGroups
from memhp.kernel.holdings import Allocation, Holding
from memhp.kernel.iomem import Resource
from memhp.kernel.pages import Pages
from memhp.kernel.participants import ComputeBatch, Cpuset, Crash, Kcore, Ksm, PageExt, ReserveMem, Slab
from memhp.kernel.sockets import Sockets
from memhp.kernel.tiers import MemoryTiers
from memhp.kernel.zones import Node, Zone
from memhp.locking import Task
from memhp.notifier import NotifierBlock, NotifierChain

__all__ = ["FIELDS", "REACHED_THROUGH_OTHERS", "UNDECLARED"]


def _fields(owner: type, label: Callable[[Any], str], names: str, in_place: str = "") -> Iterator[Declared]:
    # What is changed in place counts as written by whoever gets it.
    yield from (Declared(owner, name, label) for name in names.split())
    yield from (Declared(owner, name, label, container=True) for name in in_place.split())


FIELDS = (
    *_fields(Machine, lambda machine: "machine", "blocks node_states drivers_autoprobe", "power_control"),
    *_fields(
        MemoryBlock,
        lambda block: f"memory{block.id}",
        "state offline online_type zone present isolated removed firmware_node group altmap_pages inaccessible unmanaged",
        "used poisoned",
    ),
    *_fields(
        Zone,
        lambda zone: f"node{zone.nid}/{zone.type.label}",
        "start_pfn spanned present present_early managed cma",
        "blocks _ids",
    ),
    *_fields(Node, lambda node: f"node{node.nid}", "registered cpus", "linked"),
    *_fields(Cpu, lambda cpu: f"cpu{cpu.number}", "online removed"),
    *_fields(Cpus, lambda cpus: "cpus", "", "_cpus"),
    *_fields(DeviceMemory, lambda memory: "device memory", "_maps"),
    *_fields(Resource, lambda resource: "iomem", "children end mergeable"),
    *_fields(FirmwareMap, lambda entries: "firmware map", "_entries _next"),
    *_fields(MemoryGroups, lambda groups: "memory groups", "_groups"),
    *_fields(MemoryGroup, lambda group: f"memory group {group.id}", "present_kernel_pages present_movable_pages", "blocks"),
    *_fields(Pages, lambda pages: "pages", "", "_buddy _chunks huge_pool"),
    *_fields(Holding, lambda pages: f"pages of {pages.owner or 'somebody'}", "pins freed"),
    *_fields(Allocation, lambda pages: f"pages of {pages.owner or 'somebody'}", "", "extents"),
    *_fields(
        Parameters,
        lambda parameters: "memory_hotplug",
        "auto_online_blocks online_policy auto_movable_ratio auto_movable_numa_aware",
    ),
    *_fields(MemoryDevice, lambda device: device.name, "dimm attached seen physical_nodes mgid"),
    *_fields(Dimm, lambda dimm: f"DIMM in {dimm.device.name}", "plugged error", "reports"),
    *_fields(AcpiMemory, lambda acpi: "acpi", "enabled"),
    *_fields(Modules, lambda modules: "modules", "", "_loaded"),
    *_fields(NotifierChain, lambda chain: chain.name, "_blocks _entries _observers"),
    *_fields(NotifierBlock, lambda block: f"callback {block.name}", "_chain"),
    *_fields(Task, lambda task: task.name, "signals"),
    *_fields(Ksm, lambda ksm: "ksm", "paused", "pruned"),
    *_fields(Cpuset, lambda cpuset: "cpuset", "queued updates mems"),
    *_fields(ComputeBatch, lambda batch: "compute batch", "batch"),
    *_fields(Slab, lambda slab: "slab", "shrinks", "structures"),
    *_fields(PageExt, lambda tables: "page_ext", "tables"),
    *_fields(ReserveMem, lambda reserve: "reserve", "", "kbytes"),
    *_fields(Kcore, lambda kcore: "kcore", "needs_update"),
    *_fields(Crash, lambda crash: "crash", "updates"),
    *_fields(Cpu, lambda cpu: f"cpu{cpu.number}", "cooling"),
    *_fields(Sockets, lambda sockets: "sockets", "", "_taken _numbers"),
    *_fields(
        VirtioMem,
        lambda device: "virtio-mem",
        "requested plugged offline_size queued working retry_ms broken removing _next_retry_ms _active _done",
    ),
    *_fields(SubBlocks, lambda mode: "virtio-mem", "_left", "blocks"),
    *_fields(Divided, lambda mine: f"virtio-mem/memory{mine.id}", "state", "plugged held"),
    *_fields(BigBlocks, lambda mode: "virtio-mem", "", "states _held"),
    *_fields(MemoryTiers, lambda tiers: "memory tiers", "nodes", "_kinds _counts"),
    *_fields(DaxBus, lambda bus: "dax bus", "_devices regions autoprobe", "drivers"),
    *_fields(DaxDriver, lambda driver: driver.name, "ids"),
    *_fields(DaxRegion, lambda region: region.name, "devices seed youngest"),
    *_fields(DevDax, lambda device: device.name, "ranges align memmap_on_memory driver bound stale removed"),
    *_fields(DaxRange, lambda one: "dax range", "end"),
    *_fields(DaxKmem, lambda device: device.name, "leaked _bound _group _used"),
    *_fields(SubBlocks, lambda mode: "virtio-mem", "left_over"),
)
"""Every field that the machine changes while it runs, but for those in :data:`UNDECLARED`."""

REACHED_THROUGH_OTHERS = ("buddy.py", "chunks.py", "migratechunks.py", "pagemap.py", "section.py")
"""Modules whose objects are reached through declared fields alone, each of which counts as written by whoever gets it."""

UNDECLARED = {
    "deferred": "of the task itself",
    "errors migrated": "counted, and looked at by people",
    "_kept _listeners _seqnum": "uevents go out; nothing in the machine reads them",
    "_device_lock": "made once, whoever needs it first",
    "_active": "made once, whoever needs it first",
    "callback cause": "of an answer that its maker alone has",
    "early ram nodes movable_node memmap_on_memory acpi": "only while it boots",
    "at_boot ignored": "only while it boots",
    "_mounted": "only while it boots",
    "active": "set when the node is registered, before anybody knows it",
    "at_hand pinned nr_pages buddy code": "of the page allocator, which is reached through _buddy and _chunks alone",
    "firmware_map": "an object with fields of its own, which are declared",
    "_idle": "the same for ever on a chain that is explored",
    "leaving migratetype order": "of a census that its maker alone has",
    "on_park": "of threads, which are not explored",
    "holders leave values": "modules and what they inject are set up before threads start",
}
"""Fields that are changed outside of ``__init__`` and need no watching, each with the reason."""
