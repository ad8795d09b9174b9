"""Memory of devices, in ZONE_DEVICE (``mm/memremap.c``): it has pages, and never comes online.

Persistent memory, CXL memory that dax maps, memory of GPUs. No memory block, no notifier, no device_hotplug_lock: only
mem_hotplug_lock, so it comes and goes while somebody holds the other.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, InvalidInput
from memhp.kernel.zones import NodeState
from memhp.locking import requires
from memhp.units import PAGE_SHIFT, SUBSECTION_SIZE, Pfn, format_ids, format_mem, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["DeviceMemory", "PageMap"]


@dataclass(frozen=True, slots=True, eq=False)
class PageMap:
    """One range of device memory (``struct dev_pagemap``): its node, and its place in bytes."""

    nid: int
    start: int
    size: int
    private: bool
    """Whether the CPU can't reach it, so that it needs no mapping (MEMORY_DEVICE_PRIVATE)."""

    def __str__(self) -> str:
        return format_mem(Pfn(self.start >> PAGE_SHIFT), self.size >> PAGE_SHIFT)


class DeviceMemory:
    """The device memory of one machine; iterate over it for the ranges, ascending."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._maps: tuple[PageMap, ...] = ()

    def __iter__(self) -> Iterator[PageMap]:
        return iter(self._maps)

    def overlapping(self, start: int, size: int) -> PageMap | None:
        """Give a range that has a part of these bytes, or None."""
        return next((one for one in self._maps if one.start < start + size and start < one.start + one.size), None)

    def memremap_pages(self, nid: int, start: int, size: int, *, private: bool = False) -> PageMap:
        """Give a range of a device pages, in ZONE_DEVICE of a node.

        Raises:
            HotplugError: ENXIO, a part of it is System RAM; ENOMEM, other device memory is there; EINVAL, not aligned to 2 MiB,
                can't be mapped, or the node is not online.
        """
        machine = self._machine
        whole_number(nid, "nid", "the number of a node")
        whole_number(start, "start")
        whole_number(size, "size")
        if any(
            resource.name.startswith("System RAM") and resource.start < start + size and start <= resource.end
            for resource in machine.iomem
        ):
            raise HotplugError(errno.ENXIO, f"a part of {start:#x} + {size:#x} bytes is System RAM")
        self._check_free(start, size)
        online = machine.node_states[NodeState.N_ONLINE]
        if nid not in online:
            raise HotplugError(errno.EINVAL, f"node {nid!r} is not online; online are {format_ids(online)}")
        if start % SUBSECTION_SIZE or size % SUBSECTION_SIZE or not 0 <= start < start + size <= machine.mappable:
            raise HotplugError(errno.EINVAL, f"{start:#x} + {size:#x} bytes: not whole units of 2 MiB that can be mapped")
        made = PageMap(nid, start, size, private)
        with machine.mem_hotplug():
            self._check_free(start, size)  # somebody may have been faster
            _enter(machine, made)
            self._maps = tuple(sorted([*self._maps, made], key=lambda one: one.start))
        return made

    def _check_free(self, start: int, size: int) -> None:
        other = self.overlapping(start, size)
        if other is not None:
            raise HotplugError(errno.ENOMEM, f"{start:#x} + {size:#x} bytes: device memory {other} is there")

    def memunmap_pages(self, pagemap: PageMap) -> None:
        """Take the pages away again. The zone's span stays: Linux never shrinks that of ZONE_DEVICE, so its node stays too.

        Raises:
            InvalidInput: it is not there.
        """
        if not any(one is pagemap for one in self._maps):
            raise InvalidInput(str(pagemap), "memunmap_pages", "device memory that is there")
        with self._machine.mem_hotplug(interruptible=False):
            self._maps = tuple(one for one in self._maps if one is not pagemap)


@requires("mem_hotplug")
def _enter(machine: Machine, pagemap: PageMap) -> None:
    # Its pages count as spanned only, neither as present nor as managed.
    machine.nodes[pagemap.nid].device_zone.grow(Pfn(pagemap.start >> PAGE_SHIFT), pagemap.size >> PAGE_SHIFT)
