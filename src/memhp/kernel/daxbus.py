"""The dax bus: which driver has which device (``drivers/dax/bus.c``, ``drivers/base/bus.c``), and the two drivers.

``device_dax`` gives a device's memory to a program as a whole: its pages are in ZONE_DEVICE. ``kmem`` makes it System RAM
(:class:`~memhp.kernel.drivers.DaxKmem`).
"""

from __future__ import annotations

import abc
import contextlib
import errno
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memhp.abi.formats import sysfs_word
from memhp.errors import HotplugError, InvalidInput
from memhp.kernel.dax import DaxRegion, DevDax
from memhp.kernel.drivers.daxkmem import DaxKmem
from memhp.kernel.iomem import Resource
from memhp.kernel.zones import NodeState
from memhp.locking import Mutex
from memhp.locking.switch import ending_request
from memhp.units import lowest_free

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["MAJOR", "DaxBus", "DaxDriver", "DeviceDaxDriver", "KmemDriver"]

MAJOR = 253
"""Of the nodes in /dev; the kernel takes a number that is free (observed)."""
_ID = re.compile(r"dax-?[0-9]{1,10}\.-?[0-9]{1,10}")
"""What %d of sprintf() can write."""

_log = logging.getLogger("memhp.kernel")


class DaxDriver(abc.ABC):
    """A driver of dax devices.

    Attributes:
        ids: names of devices that it was told to take.
    """

    name = ""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.ids: set[str] = set()

    def matches(self, device: DevDax) -> bool:
        """Say whether it takes the device."""
        return device.name in self.ids or self.takes_any

    @property
    @abc.abstractmethod
    def takes_any(self) -> bool:
        """Whether it takes devices that it was not told of."""

    @abc.abstractmethod
    def probe(self, device: DevDax) -> object:
        """Take a device; gives what there is to keep of it. The caller holds the device's lock."""

    @abc.abstractmethod
    def remove(self, kept: object) -> None:
        """Let a device go, with what :meth:`probe` gave."""


class DeviceDaxDriver(DaxDriver):
    """``device_dax`` (``drivers/dax/device.c``)."""

    name = "device_dax"

    @property
    def takes_any(self) -> bool:
        """Up to 6.2 it takes all; since then memory of this kind is for kmem."""
        return not self.machine.rules.value.drivers_since_6_12

    def probe(self, device: DevDax) -> object:
        """Claim the ranges, and map them.

        Raises:
            HotplugError: EBUSY, somebody has a range; EINVAL, it failed on this device before; or what ``memremap_pages`` raises.
                Nothing is left behind then, but that it will fail again.
        """
        if device.stale:
            raise HotplugError(errno.EINVAL, f"{device.name} has a page map of a bind that failed, so this driver can't take it")
        try:
            return self._map(device)
        except HotplugError:
            device.stale = True
            raise

    def _map(self, device: DevDax) -> contextlib.ExitStack:
        memory = self.machine.device_memory
        with contextlib.ExitStack() as undo:
            for one in device.ranges:
                undo.callback(self.machine.iomem.release, self._claim(device, one.start, one.size))
            for one in device.ranges:
                undo.callback(memory.memunmap_pages, memory.memremap_pages(device.region.numa_node, one.start, one.size))
            return undo.pop_all()

    def _claim(self, device: DevDax, start: int, size: int) -> Resource:
        try:
            return self.machine.iomem.request(start, size, device.name)
        except HotplugError as error:
            raise HotplugError(errno.EBUSY, f"{device.name}: {error.strerror}") from error

    def remove(self, kept: object) -> None:
        """Unmap it, and give back what was claimed."""
        if isinstance(kept, contextlib.ExitStack):
            kept.close()


class KmemDriver(DaxDriver):
    """``kmem`` (``drivers/dax/kmem.c``)."""

    name = "kmem"

    @property
    def takes_any(self) -> bool:
        """Up to 6.2 it takes only what it was told of."""
        return self.machine.rules.value.drivers_since_6_12

    def probe(self, device: DevDax) -> object:
        """Add its memory; raises as :meth:`DaxKmem.probe`."""
        ranges = [(one.start, one.size) for one in device.ranges]
        node, memmap = device.region.target_node, device.memmap_on_memory
        made = DaxKmem(self.machine, node, ranges, name=device.name, memmap_on_memory=memmap)
        made.probe()
        return made

    def remove(self, kept: object) -> None:
        """Remove its memory; what is online leaks."""
        if isinstance(kept, DaxKmem):
            kept.unbind()


class DaxBus:
    """The dax bus of one machine; iterate over it for the devices, in the order in which they came.

    Attributes:
        regions: of its soft-reserved memory, by address.
        drivers: by name, in the order in which they came.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._devices: tuple[DevDax, ...] = ()
        self.regions: tuple[DaxRegion, ...] = ()
        self.drivers: dict[str, DaxDriver] = {}
        self.autoprobe = True
        """What the bus's file ``drivers_autoprobe`` says; a new device has no memory that a driver could take."""
        self._lock = Mutex("dax_bus_lock", machine.dep)

    def __iter__(self) -> Iterator[DevDax]:
        return iter(self._devices)

    def bring_up(self, ranges: tuple[tuple[int, int, int], ...]) -> None:
        """Make a region of each soft-reserved range (node, start, end), with a device of all of it, and let the drivers come.

        As after a boot at which the modules dax_hmem, device_dax and kmem were loaded, in this order.
        """
        for number, (nid, start, end) in enumerate(ranges):
            self._claim(number, start, end - start)
            region = DaxRegion(self._machine, number, start, end - start, nid, self._nearest(nid))
            self.regions = (*self.regions, region)
            region.make(self._make).append(region.start, region.end)
        if ranges:
            for driver in (DeviceDaxDriver(self._machine), KmemDriver(self._machine)):
                self.drivers[driver.name] = driver
                self._attach(driver)

    def _claim(self, number: int, start: int, size: int) -> None:
        iomem = self._machine.iomem
        if not self._machine.rules.value.drivers_since_6_12:
            iomem.request(start, size, f"hmem.{number}", busy=False)
        iomem.request(start, size, "Soft Reserved", busy=False)

    def _nearest(self, nid: int) -> int:
        # As numa_map_to_online_node() does.
        online = self._machine.node_states[NodeState.N_ONLINE]
        distances = self._machine.nodes[nid].distances
        return nid if nid in online else min(sorted(online), key=lambda other: distances.get(other, 20))

    def find(self, name: str) -> DevDax | None:
        """Give the device of that name, or None."""
        return next((device for device in self._devices if device.name == name), None)

    # -- devices come and go

    def create(self, region: DaxRegion) -> DevDax:
        """Make a device of a region; it has nothing yet.

        Raises:
            HotplugError: as :meth:`DaxRegion.create`.
            InvalidInput: no region of this machine.
        """
        return self._own(region).create(self._make)

    def delete(self, region: DaxRegion, name: str) -> None:
        """Delete a device that has nothing.

        Raises:
            HotplugError: as :meth:`DaxRegion.delete`.
            InvalidInput: no region of this machine.
        """
        self._own(region).delete(sysfs_word(name), self._go)

    def _own(self, region: DaxRegion) -> DaxRegion:
        if region not in self.regions:
            raise InvalidInput(region, "region", "a region of this machine")
        return region

    def _make(self, region: DaxRegion, number: int) -> DevDax:
        with self._lock:
            minor = lowest_free({device.minor for device in self._devices})
            device = DevDax(self._machine, region, number, minor)
            self._devices = (*self._devices, device)
        self.emit("add", device)
        return device

    def _go(self, device: DevDax) -> None:
        with self._lock:
            self._devices = tuple(other for other in self._devices if other is not device)
        self.emit("remove", device)

    # -- drivers and devices

    @ending_request()
    def bind(self, driver: DaxDriver | str, name: str) -> None:
        """Let a driver, or that of the name, take a device (its file ``bind``).

        Raises:
            HotplugError: ENODEV, no such device, or not one for this driver; EBUSY, a driver has it; ENXIO, it has no memory; or
                what :meth:`DaxDriver.probe` raises.
            InvalidInput: no driver of this machine.
        """
        taker, device = self._driver(driver), self._named(name)
        if not taker.matches(device):
            raise HotplugError(errno.ENODEV, f"{taker.name} was not told of {device.name} (new_id)")
        self._probe(taker, device)

    @ending_request()
    def unbind(self, driver: DaxDriver | str, name: str) -> None:
        """Take a device from a driver (its file ``unbind``).

        Raises:
            HotplugError: ENODEV, no such device, or this driver does not have it.
            InvalidInput: no driver of this machine.
        """
        giver, device = self._driver(driver), self._named(name)
        with device.device_lock:
            if device.driver != giver.name:
                raise HotplugError(errno.ENODEV, f"{giver.name} does not have {device.name}")
            giver.remove(device.bound)
            device.driver, device.bound = "", None
            self.emit("unbind", device)

    @ending_request()
    def new_id(self, driver: DaxDriver | str, name: str) -> None:
        """Tell a driver of a device, and let it take all that it can have now; what it can't take is no error.

        Raises:
            InvalidInput: no name of a dax device, or no driver of this machine.
        """
        told = self._driver(driver)
        with self._lock:
            told.ids = told.ids | {_id_of(name)}
        self._attach(told)

    def remove_id(self, driver: DaxDriver | str, name: str) -> None:
        """Tell a driver that a device is not for it; one that it has it keeps.

        Raises:
            InvalidInput: no name of a dax device, or no driver of this machine.
        """
        told = self._driver(driver)
        with self._lock:
            told.ids = told.ids - {_id_of(name)}

    @ending_request()
    def rescan(self, name: str) -> None:
        """Let the first driver take a device that can (the bus's file ``drivers_probe``).

        Raises:
            HotplugError: ENODEV, no such device.
        """
        device = self._named(name)
        for driver in self.drivers.values():
            if self._offer(driver, device):
                return

    def _attach(self, driver: DaxDriver) -> None:
        for device in self._devices:
            self._offer(driver, device)

    def _offer(self, driver: DaxDriver, device: DevDax) -> bool:
        # Why a driver fails the log alone says, loudly unless it only says that the device is not for it (really_probe()).
        if device.driver or not driver.matches(device):
            return False
        try:
            self._probe(driver, device)
        except HotplugError as error:
            level = logging.DEBUG if error.errno in {errno.ENODEV, errno.ENXIO} else logging.WARNING
            _log.log(level, "%s: probe of %s failed: %s", driver.name, device.name, error)
            return False
        return True

    def _probe(self, driver: DaxDriver, device: DevDax) -> None:
        with device.device_lock:
            if device.removed:
                raise HotplugError(errno.ENODEV, f"{device.name} was deleted")
            if device.driver:
                raise HotplugError(errno.EBUSY, f"{device.name} is bound to {device.driver}")
            if not device.size:
                raise HotplugError(errno.ENXIO, f"{device.name} has no memory")
            device.bound = driver.probe(device)
            device.driver = driver.name
            if device.region.seed is device:
                device.region.seed = None
            self.emit("bind", device)

    def _driver(self, value: DaxDriver | str) -> DaxDriver:
        found = next((driver for driver in self.drivers.values() if value in (driver, driver.name)), None)
        if found is None:
            raise InvalidInput(value, "driver", f"one of this machine: {', '.join(self.drivers) or 'nothing is soft-reserved'}")
        return found

    def _named(self, name: str) -> DevDax:
        if not isinstance(name, str):
            raise InvalidInput(name, "dax device", "its name, such as dax0.0")
        device = self.find(sysfs_word(name))
        if device is None:
            raise HotplugError(errno.ENODEV, f"the bus has no device {name!r}")
        return device

    def keys(self, device: DevDax) -> tuple[tuple[str, str], ...]:
        """Give what a device's uevents say of it, and its file ``uevent``."""
        driver = (("DRIVER", device.driver),) if device.driver else ()
        numbers = (("MAJOR", str(MAJOR)), ("MINOR", str(device.minor)), ("DEVNAME", device.name))
        return (*numbers, *driver, ("MODALIAS", "dax:t0"))

    def emit(self, action: str, device: DevDax) -> None:
        """Send a uevent for a device."""
        keys = self.keys(device)
        if action == "unbind":  # without MODALIAS, lest somebody load a driver for it (kobject_uevent_env())
            keys = keys[:-1]
        self._machine.uevents.emit(action, device.path, keys, subsystem="dax")


def _as_int(text: str) -> int:
    # As %d of sscanf() and sprintf(): what does not fit comes back as another number.
    return (int(text) + (1 << 31)) % (1 << 32) - (1 << 31)


def _id_of(text: str) -> str:
    name = sysfs_word(text)
    if not _ID.fullmatch(name) or name != "dax{}.{}".format(*map(_as_int, name[3:].split("."))):
        raise InvalidInput(text, "new_id", "the name of a dax device, such as dax0.0")
    return name
