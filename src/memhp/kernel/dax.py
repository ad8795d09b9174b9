"""Regions of memory that the firmware keeps for a purpose, and the dax devices that they are cut into (``drivers/dax/bus.c``).

Such memory (EFI_MEMORY_SP, "soft reserved": HBM, CXL) is no System RAM at boot. Each range is a region, with one device at
first that has all of it. A device can be made smaller, others can be made of what is free then; which of them a driver binds to,
and what the driver makes of it, is :mod:`.daxbus`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, InvalidInput
from memhp.locking import Mutex
from memhp.units import PAGE_SHIFT, PAGE_SIZE, SUBSECTION_SIZE, lowest_free, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["DaxRange", "DaxRegion", "DevDax"]

PMD_SIZE = 2 << 20
_ALIGNS = (PAGE_SIZE, PMD_SIZE, 1 << 30)
"""What a device may be aligned to (``dax_align_valid``)."""


@dataclass(slots=True, eq=False)
class DaxRange:
    """A part of a device: its bytes, ``end`` inclusive, as /proc/iomem says them.

    Attributes:
        start: first byte.
        end: last byte.
        page_offset: pages of the device before it.
        mapping: the number of its directory ``mappingN``.
        removed: whether the device has given it back.
    """

    start: int
    end: int
    page_offset: int
    mapping: int
    removed: bool = False

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start + 1

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x}"


class DevDax:
    """A dax device (``struct dev_dax``).

    Attributes:
        region: of what it is a part.
        number: its number there; 0 always stays.
        minor: that of its node in /dev.
        name: ``dax0.1``.
        align: bytes that its mappings are aligned to.
        ranges: what it has, in the order of their page offsets.
        memmap_on_memory: whether kmem shall keep the memmap in the memory itself (Linux 6.12).
        driver: the name of the driver that has it, or "".
        bound: what that driver keeps of it.
        stale: whether device_dax has failed on it after it had prepared the page map, which is never tried again.
        device_lock: the device's lock.
        removed: whether it was deleted.
    """

    def __init__(self, machine: Machine, region: DaxRegion, number: int, minor: int) -> None:
        self.region = region
        self.number = number
        self.minor = minor
        self.name = f"dax{region.id}.{number}"
        self.align = region.align
        self.ranges: tuple[DaxRange, ...] = ()
        self.memmap_on_memory = False
        self.driver = ""
        self.bound: object = None
        self.stale = False
        self.device_lock = Mutex(f"{self.name}/device_lock", machine.dep, lock_class="dax device_lock", order=minor)
        self.removed = False

    def __repr__(self) -> str:
        return f"<DevDax {self.name} {self.size:#x} bytes {self.driver or 'unbound'}>"

    @property
    def size(self) -> int:
        """Bytes of all its ranges."""
        return sum(one.size for one in self.ranges)

    @property
    def path(self) -> str:
        """Where it is below /sys."""
        return f"/devices/platform/{self.region.name}/{self.name}"

    @property
    def unit(self) -> int:
        """Bytes that a size must be a multiple of: its alignment, but memory is mapped in subsections of 2 MiB at the least."""
        return max(self.align, SUBSECTION_SIZE)

    @property
    def resource(self) -> int:
        """Where it begins, or its region if it has nothing."""
        return self.ranges[0].start if self.ranges else self.region.start

    def takes(self, size: int) -> bool:
        """Say whether a size suits its alignment."""
        return size % self.unit == 0

    def set_align(self, align: int) -> None:
        """Align it otherwise.

        Raises:
            HotplugError: EINVAL, no alignment, or a range of the device has another length; EBUSY, a driver has it.
        """
        if whole_number(align, "align") not in _ALIGNS:
            raise HotplugError(errno.EINVAL, f"{self.name}: {align} is no alignment; there are {', '.join(map(str, _ALIGNS))}")
        with self.region.device_lock, self.device_lock:
            self._check_idle()
            wrong = [one for one in self.ranges if one.size % max(align, SUBSECTION_SIZE)]
            if wrong:
                raise HotplugError(errno.EINVAL, f"{self.name}: {wrong[0]} has no multiple of {align} bytes")
            self.align = align

    def set_size(self, size: int) -> None:
        """Give it another size: what is free in its region, from the lowest gap on; or less, from its last range.

        Raises:
            HotplugError: EINVAL, not aligned; EBUSY, a driver has it; ENOSPC, not so much is free. Nothing was changed.
        """
        if whole_number(size, "size") < 0 or not self.takes(size):
            raise HotplugError(errno.EINVAL, f"{self.name}: {size:#x} bytes are no multiple of {self.unit:#x}")
        with self.region.device_lock, self.device_lock:
            self._check_idle()
            more = size - self.size
            if more > self.region.available:
                free = f"{self.region.available:#x} bytes are free in its region"
                raise HotplugError(errno.ENOSPC, f"{self.name}: {more:#x} bytes more, but {free}")
            self._shrink(-more)
            while more > 0:
                more -= self._grow(more)

    def add_mapping(self, start: int, end: int) -> None:
        """Give it one range more, bytes with ``end`` inclusive, also while a driver has it, which knows nothing of that.

        Raises:
            HotplugError: ENXIO, the size is not aligned (Linux 6.12 says nothing, and does nothing); ENOMEM, not free in its
                region; EBUSY, an empty range beside others. One of 2^64 bytes is empty, too, because the kernel's u64 wraps.
        """
        whole_number(start, "start")
        whole_number(end, "end")
        size = (end - start + 1) % (1 << 64)
        with self.region.device_lock, self.device_lock:
            self._check_present()
            if not self.takes(size):
                if self.region.says_misaligned:
                    raise HotplugError(errno.ENXIO, f"{self.name}: {start:#x}-{end:#x} has not the size for its alignment")
                return
            if not size:
                if self.ranges:
                    raise HotplugError(errno.EBUSY, f"{self.name}: an empty range beside others")
                return
            if not self.region.has_free(start, end):
                raise HotplugError(errno.ENOMEM, f"{self.name}: {start:#x}-{end:#x} is not free in region {self.region.id}")
            self.append(start, end)

    def set_memmap_on_memory(self, *, wanted: bool) -> None:
        """Say whether kmem shall keep the memmap in the memory itself, the next time that it takes the device.

        Raises:
            HotplugError: EBUSY, kmem has it.
        """
        with self.device_lock:
            self._check_present()
            if wanted != self.memmap_on_memory and self.driver == "kmem":
                raise HotplugError(errno.EBUSY, f"{self.name} is bound to kmem")
            self.memmap_on_memory = wanted

    def append(self, start: int, end: int) -> None:
        """Take a range that is free. The caller holds the region's device_lock."""
        mapping = lowest_free({one.mapping for one in self.ranges})
        self.ranges = (*self.ranges, DaxRange(start, end, self.size >> PAGE_SHIFT, mapping))

    def _grow(self, most: int) -> int:
        before, start, end = self.region.first_gap()
        room = min(end - start, most)
        if self.ranges and before is self.ranges[-1]:
            before.end += room
        else:
            self.append(start, start + room - 1)
        return room

    def _shrink(self, less: int) -> None:
        while less > 0:
            last = self.ranges[-1]
            if last.size > less:
                last.end -= less
                return
            less -= last.size
            last.removed = True
            self.ranges = self.ranges[:-1]

    def _check_present(self) -> None:
        if self.removed:
            raise HotplugError(errno.ENODEV, f"{self.name} was deleted")

    def _check_idle(self) -> None:
        self._check_present()
        if self.driver:
            raise HotplugError(errno.EBUSY, f"{self.name} is bound to {self.driver}")


class DaxRegion:
    """A range of memory that dax devices are made of (``struct dax_region``), a platform device ``hmem.N``.

    Attributes:
        id: its number.
        start: first byte.
        end: last byte.
        target_node: the node that its memory is of.
        numa_node: the node nearest to it that was online at boot; pages of a mapped device are in that one's ZONE_DEVICE.
        align: bytes that it is aligned to.
        devices: by number.
        seed: the first device that was created and never bound, or None.
        youngest: the device that was created last, or None.
        says_misaligned: whether a mapping of a wrong size is an error.
        device_lock: the platform device's lock.
    """

    removed = False

    def __init__(self, machine: Machine, number: int, start: int, size: int, target_node: int, numa_node: int) -> None:
        self.id = number
        self.start = start
        self.end = start + size - 1
        self.target_node = target_node
        self.numa_node = numa_node
        self.align = PMD_SIZE
        self.devices: dict[int, DevDax] = {}
        self.seed: DevDax | None = None
        self.youngest: DevDax | None = None
        self.says_misaligned = not machine.rules.value.drivers_since_6_12
        self._machine = machine
        self.device_lock = Mutex(f"{self.name}/device_lock", machine.dep, lock_class="hmem device_lock", order=number)

    @property
    def name(self) -> str:
        """The platform device's."""
        return f"hmem.{self.id}"

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start + 1

    @property
    def available(self) -> int:
        """Bytes that no device has."""
        return self.size - sum(device.size for device in self.devices.values())

    def create(self, maker: Callable[[DaxRegion, int], DevDax]) -> DevDax:
        """Make a device, which has nothing yet; ``maker`` makes one of that number, under the region's lock.

        Raises:
            HotplugError: ENOSPC, devices have all of the region.
        """
        with self.device_lock:
            if not self.available:
                raise HotplugError(errno.ENOSPC, f"dax devices have all of region {self.id}")
            device = self.make(maker)
            if self.seed is None:  # else it may be the driver's, which forgets it under the device's lock alone
                self.seed = device
            self.youngest = device
        return device

    def make(self, maker: Callable[[DaxRegion, int], DevDax]) -> DevDax:
        """Make a device with the lowest number that is free. The caller holds the device_lock, or nobody knows the region yet."""
        number = lowest_free(self.devices)
        device = maker(self, number)
        self.devices = {**self.devices, number: device}
        return device

    def delete(self, name: str, tell: Callable[[DevDax], None]) -> None:
        """Delete a device that has nothing.

        Raises:
            HotplugError: ENXIO, there is none of that name; EBUSY, a driver has it, it has memory, or it is the region's first.
        """
        victim = next((device for device in self.devices.values() if device.name == name), None)
        if victim is None:
            raise HotplugError(errno.ENXIO, f"region {self.id} has no device {name!r}")
        with self.device_lock, victim.device_lock:
            if victim.removed or victim.driver or victim.size or not victim.number:
                reason = "was deleted" if victim.removed else _why_kept(victim)
                raise HotplugError(errno.EBUSY, f"{name} {reason}")
            victim.removed = True
            self.devices = {number: device for number, device in self.devices.items() if device is not victim}
            if self.seed is victim:
                self.seed = None
            if self.youngest is victim:
                self.youngest = None
            tell(victim)

    def has_free(self, start: int, end: int) -> bool:
        """Say whether a range is in the region and no device has a part of it."""
        inside = self.start <= start <= end <= self.end
        return inside and not any(one.start <= end and start <= one.end for one in self._taken())

    def first_gap(self) -> tuple[DaxRange | None, int, int]:
        """Give the lowest gap, the end exclusive, and the range right before it.

        Raises:
            InvalidInput: there is none.
        """
        before, place = None, self.start
        for one in self._taken():
            if one.start > place:
                return before, place, one.start
            before, place = one, one.end + 1
        if place > self.end:
            raise InvalidInput(self.name, "first_gap", "a region that is not full")
        return before, place, self.end + 1

    def _taken(self) -> Iterator[DaxRange]:
        return iter(sorted((one for device in self.devices.values() for one in device.ranges), key=lambda one: one.start))


def _why_kept(device: DevDax) -> str:
    if device.driver:
        return f"is bound to {device.driver}"
    return f"has {device.size:#x} bytes" if device.size else "is the region's first, which always stays"
