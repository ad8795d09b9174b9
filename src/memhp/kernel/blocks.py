"""Memory blocks, the devices that userspace sees (``drivers/base/memory.c``)."""

from __future__ import annotations

import enum
import threading
from typing import TYPE_CHECKING

from memhp.locking import ActiveReference, Lockdep, Mutex
from memhp.units import BlockId, Pfn

if TYPE_CHECKING:
    from memhp.kernel.acpi import MemoryDevice
    from memhp.kernel.groups import MemoryGroup
    from memhp.kernel.pages import Extent
    from memhp.kernel.zones import Zone

__all__ = ["BlockState", "MemoryBlock", "OnlineType"]


class BlockState(enum.Enum):
    """What ``state`` prints. There is no going-online: a block reads ``offline`` until it is online."""

    ONLINE = "online"
    GOING_OFFLINE = "going-offline"
    OFFLINE = "offline"


class OnlineType(enum.Enum):
    """How to bring a block online (``MMOP_*``); OFFLINE in a block means that nothing was asked for."""

    OFFLINE = "offline"
    ONLINE = "online"
    ONLINE_KERNEL = "online_kernel"
    ONLINE_MOVABLE = "online_movable"


class MemoryBlock:
    """One memory block.

    Three fields say in what state it is, and they differ at times: ``state`` is what ``state`` prints, ``offline`` is the
    device's flag that decides whether a request has anything to do and what ``online`` prints, and ``online_type`` keeps
    the last request, even a refused one, until the next online uses it up.
    """

    __slots__ = (
        "_active",
        "_device_lock",
        "altmap_pages",
        "dep",
        "early",
        "firmware_node",
        "group",
        "id",
        "inaccessible",
        "isolated",
        "nid",
        "nr_pages",
        "offline",
        "online_type",
        "poisoned",
        "present",
        "ram",
        "removed",
        "start_pfn",
        "state",
        "unmanaged",
        "used",
        "zone",
    )

    def __init__(self, block_id: BlockId, nid: int, start_pfn: Pfn, nr_pages: int, dep: Lockdep | None) -> None:
        self.id = block_id
        self.nid = nid
        self.start_pfn = start_pfn
        self.nr_pages = nr_pages
        self.dep = dep
        self.state = BlockState.OFFLINE
        self.offline = True
        self.online_type = OnlineType.OFFLINE
        self.zone: Zone | None = None
        """The one zone that all its pages are in; None while offline, and for a block that spans zones."""
        self.ram: tuple[tuple[Pfn, int], ...] = ((start_pfn, nr_pages),)
        """The parts that are System RAM, as (first pfn, pages)."""
        self.present: tuple[tuple[Zone, Pfn, int], ...] = ()
        """Its pages that zones count as present, as (zone, first pfn, pages)."""
        self.early = False
        """Whether it was there at boot."""
        self.group: MemoryGroup | None = None
        self.altmap_pages = 0
        """How many pages at its start hold its own memmap; they are present, and nobody can allocate them."""
        self.inaccessible = False
        """Whether it must not be touched while it is offline (MHP_OFFLINE_INACCESSIBLE)."""
        self.isolated = False
        """Whether its free pages are kept from the allocator."""
        self.used: list[Extent] = []
        """The pages that are not free, ascending."""
        self.unmanaged = 0
        """How many of its present pages a driver keeps from the allocator, so that they are not managed."""
        self.poisoned: set[Pfn] = set()
        self.removed = False
        self.firmware_node: MemoryDevice | None = None
        """The ACPI device of the DIMM that it is a part of."""
        self._device_lock: Mutex | None = None
        self._active: ActiveReference | None = None

    def __repr__(self) -> str:
        return f"<MemoryBlock {self.id} node{self.nid} {self.state.value} {self.zone.type.label if self.zone else '-'}>"

    @property
    def name(self) -> str:
        """Its name in sysfs: ``memory32``."""
        return f"memory{self.id}"

    @property
    def end_pfn(self) -> Pfn:
        """The page frame after its last one."""
        return Pfn(self.start_pfn + self.nr_pages)

    @property
    def usable_pfn(self) -> Pfn:
        """The first page frame that isn't part of its own memmap."""
        return Pfn(self.start_pfn + self.altmap_pages)

    @property
    def usable_pages(self) -> int:
        """How many pages it has besides its own memmap, holes included: what callbacks are told of."""
        return self.nr_pages - self.altmap_pages

    @property
    def ram_pages(self) -> int:
        """How many of its pages are System RAM."""
        return sum(nr for _, nr in self.ram)

    @property
    def has_holes(self) -> bool:
        """Whether a part of it is no System RAM; such a block can't go offline."""
        return self.ram_pages != self.nr_pages

    @property
    def device_lock(self) -> Mutex:
        """The device's lock, made when it is first used."""
        lock = self._device_lock
        if lock is None:
            with _making:
                lock = self._device_lock
                if lock is None:
                    name = f"{self.name}/device_lock"
                    lock = Mutex(name, self.dep, lock_class="memory_block device_lock", order=self.id)
                    self._device_lock = lock
        return lock

    @property
    def active(self) -> ActiveReference:
        """What those hold who use the device's files, made when it is first used."""
        active = self._active
        if active is None:
            with _making:
                active = self._active
                if active is None:
                    name = f"{self.name}/s_active"
                    active = ActiveReference(name, self.dep, lock_class="memory_block s_active", order=self.id)
                    self._active = active
        return active

    def first_pfn_in(self, zone: Zone) -> Pfn:
        """Give its first page frame in ``zone``."""
        return min(start for other, start, _ in self.present if other is zone)

    def end_pfn_in(self, zone: Zone) -> Pfn:
        """Give the page frame after its last one in ``zone``."""
        return max(Pfn(start + nr) for other, start, nr in self.present if other is zone)


_making = threading.Lock()
