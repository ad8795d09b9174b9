"""The files of the dax bus, its regions, devices and drivers (``drivers/dax/bus.c``; observed on 6.1 and 6.12).

Left out: the platform bus, and modules.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from memhp.abi.formats import parse_bool
from memhp.abi.paths import DAX, PLATFORM
from memhp.errors import HotplugError, InvalidInput
from memhp.kernel.attributes import Attribute, Directory, store_uevent, uevent_of
from memhp.kernel.dax import DaxRange, DaxRegion, DevDax
from memhp.kernel.daxbus import MAJOR, DaxDriver
from memhp.kernel.kstrtox import kstrtoint, kstrtoull

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["dax_device_directory", "dax_directories"]

Makers = dict[str, Callable[["Machine"], Directory]]


def dax_directories(machine: Machine) -> Makers:
    """Give the directories that are there as long as the machine is, by path; none without soft-reserved memory."""
    bus = machine.dax
    if not bus.regions:
        return {}
    made: Makers = {
        DAX: lambda machine: Directory(None, _BUS_FILES, lambda: {"devices": None, "drivers": None}),
        f"{DAX}/devices": lambda machine: Directory(None, {}, dict, lambda: {one.name: _link_to(one) for one in bus}),
        f"{DAX}/drivers": lambda machine: Directory(None, {}, lambda: dict.fromkeys(bus.drivers)),
    }
    for driver in bus.drivers.values():
        made[f"{DAX}/drivers/{driver.name}"] = lambda machine, driver=driver: _driver_directory(machine, driver)  # type: ignore[misc]
    for region in bus.regions:
        path = f"{PLATFORM}/{region.name}"
        made[path] = lambda machine, region=region: _platform_directory(region)  # type: ignore[misc]
        made[f"{path}/dax_region"] = lambda machine, region=region: Directory(region, _REGION_FILES, dict)  # type: ignore[misc]
    return made


def dax_device_directory(machine: Machine, place: tuple[str, ...]) -> Directory | None:
    """Give the directory of a device, or of one of its mappings, by the parts of its path below that of the platform bus."""
    if len(place) not in {2, 3}:
        return None
    device = machine.dax.find(place[1])
    if device is None or device.region.name != place[0]:
        return None
    if len(place) == 2:
        return _device_directory(machine, device)
    mapping = next((one for one in device.ranges if f"mapping{one.mapping}" == place[2]), None)
    return None if mapping is None else Directory(mapping, _MAPPING_FILES)


def _link_to(device: DevDax) -> str:
    return f"../../..{device.path}"


# -- the bus and its drivers


def _driver_directory(machine: Machine, driver: DaxDriver) -> Directory:
    def links() -> dict[str, str]:
        return {one.name: f"../{_link_to(one)}" for one in machine.dax if one.driver == driver.name}

    files = {**_DRIVER_FILES, "uevent": uevent_of(f"/bus/dax/drivers/{driver.name}", "drivers")}
    return Directory(driver, files, dict, links)


def _store_autoprobe(machine: Machine, what: None, text: str) -> None:
    machine.dax.autoprobe = text[0] != "0"


_BUS_FILES = {
    "drivers_autoprobe": Attribute(0o644, lambda machine, what: f"{machine.dax.autoprobe:d}\n", _store_autoprobe),
    "drivers_probe": Attribute(0o200, None, lambda machine, what, text: machine.dax.rescan(text)),
    "uevent": uevent_of("/bus/dax", "bus"),
}

_DRIVER_FILES = {
    "bind": Attribute(0o200, None, lambda machine, driver, text: machine.dax.bind(driver, text)),
    "unbind": Attribute(0o200, None, lambda machine, driver, text: machine.dax.unbind(driver, text)),
    "new_id": Attribute(0o200, None, lambda machine, driver, text: machine.dax.new_id(driver, text)),
    "remove_id": Attribute(0o200, None, lambda machine, driver, text: machine.dax.remove_id(driver, text)),
}


# -- regions


def _platform_directory(region: DaxRegion) -> Directory:
    def directories() -> dict[str, None]:
        return {"power": None, "dax_region": None, **dict.fromkeys(device.name for device in region.devices.values())}

    return Directory(region, _PLATFORM_FILES, directories)


def _store_create(machine: Machine, region: DaxRegion, text: str) -> None:
    if kstrtoint(text, "create") != 1:
        raise InvalidInput(text, "create", "1")
    machine.dax.create(region)


def _show_available(machine: Machine, region: DaxRegion) -> str:
    with region.device_lock:
        return f"{region.available}\n"


def _show_device(chosen: Callable[[DaxRegion], DevDax | None]) -> Attribute:
    def show(machine: Machine, region: DaxRegion) -> str:
        with region.device_lock:
            device = chosen(region)
        return f"{device.name if device is not None else ''}\n"

    return Attribute(0o444, show, show_takes_locks=True)


_PLATFORM_FILES = {
    "modalias": Attribute(0o444, lambda machine, region: "platform:hmem\n"),
    "numa_node": Attribute(0o444, lambda machine, region: f"{region.numa_node}\n"),
}

_YOUNGEST = _show_device(lambda region: region.youngest)

_REGION_FILES = {
    "align": Attribute(0o400, lambda machine, region: f"{region.align}\n"),
    "available_size": Attribute(0o444, _show_available, show_takes_locks=True),
    "create": Attribute(0o644, _YOUNGEST.show, _store_create, show_takes_locks=True),
    "delete": Attribute(0o200, None, lambda machine, region, text: machine.dax.delete(region, text)),
    "id": Attribute(0o444, lambda machine, region: f"{region.id}\n"),
    "seed": _show_device(lambda region: region.seed),
    "size": Attribute(0o444, lambda machine, region: f"{region.size}\n"),
}


# -- devices and their mappings


def _device_directory(machine: Machine, device: DevDax) -> Directory:
    def directories() -> dict[str, None]:
        return {"power": None, **dict.fromkeys(f"mapping{one.mapping}" for one in device.ranges)}

    def links() -> dict[str, str]:
        driver = {"driver": f"../../../../bus/dax/drivers/{device.driver}"} if device.driver else {}
        return {**driver, "subsystem": "../../../../bus/dax"}

    memmap = _MEMMAP_FILES if machine.rules.value.drivers_since_6_12 else {}
    return Directory(device, {**_DEVICE_FILES, **memmap}, directories, links)


def _show_size(machine: Machine, device: DevDax) -> str:
    with device.device_lock:
        return f"{device.size}\n"


def _store_align(machine: Machine, device: DevDax, text: str) -> None:
    try:
        align = kstrtoull(text, "align")
    except (HotplugError, InvalidInput) as error:
        raise HotplugError(errno.ENXIO, f"{device.name}/align: {text!r} is no number") from error
    device.set_align(align)


def _store_mapping(machine: Machine, device: DevDax, text: str) -> None:
    first, dash, last = text.partition("\0")[0].partition("-")
    if not dash:
        raise InvalidInput(text, "mapping", "two addresses, such as 100000000-107ffffff")
    device.add_mapping(*(kstrtoull(word, "mapping", base=16) for word in (first, last)))


def _store_memmap(machine: Machine, device: DevDax, text: str) -> None:
    wanted = parse_bool(text, "memmap_on_memory")
    if wanted and machine.parameters.memmap_on_memory == "N":
        raise HotplugError(errno.EOPNOTSUPP, f"{device.name}: memory_hotplug.memmap_on_memory is off")
    device.set_memmap_on_memory(wanted=wanted)


def _show_uevent(machine: Machine, device: DevDax) -> str:
    return "".join(f"{key}={value}\n" for key, value in machine.dax.keys(device))


def _store_uevent(machine: Machine, device: DevDax, text: str) -> None:
    store_uevent(machine, device.path, "dax", text, machine.dax.keys(device))


_DEVICE_FILES = {
    "align": Attribute(0o644, lambda machine, device: f"{device.align}\n", _store_align),
    "dev": Attribute(0o444, lambda machine, device: f"{MAJOR}:{device.minor}\n"),
    "mapping": Attribute(0o200, None, _store_mapping),
    "modalias": Attribute(0o444, lambda machine, device: "dax:t0\n"),
    "numa_node": Attribute(0o444, lambda machine, device: f"{device.region.numa_node}\n"),
    "resource": Attribute(0o400, lambda machine, device: f"{device.resource:#x}\n"),
    "size": Attribute(
        0o644, _show_size, lambda machine, device, text: device.set_size(kstrtoull(text, "size")), show_takes_locks=True
    ),
    "target_node": Attribute(0o444, lambda machine, device: f"{device.region.target_node}\n"),
    "uevent": Attribute(0o644, _show_uevent, _store_uevent),
}

_MEMMAP_FILES = {
    "memmap_on_memory": Attribute(0o644, lambda machine, device: f"{device.memmap_on_memory:d}\n", _store_memmap),
}


def _of_mapping(show: Callable[[DaxRange], int]) -> Attribute:
    return Attribute(0o400, lambda machine, mapping: f"{show(mapping):#x}\n")


_MAPPING_FILES = {
    "start": _of_mapping(lambda mapping: mapping.start),
    "end": _of_mapping(lambda mapping: mapping.end),
    "page_offset": _of_mapping(lambda mapping: mapping.page_offset),
    "uevent": uevent_of("", None),  # a mapping is on no bus, so nobody hears of it (dev_uevent_filter())
}
