"""The files of the firmware's memory devices (``drivers/acpi/device_sysfs.c``; observed on 6.1 and 6.12 in QEMU).

Left out: the other devices of the firmware, and the container's own directory.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from memhp.abi.formats import parse_uint
from memhp.errors import HotplugError, InvalidInput
from memhp.kernel.acpi import MemoryDevice
from memhp.kernel.attributes import Attribute, Directory, store_uevent

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["acpi_directories", "firmware_node_of"]

_BUS = "/sys/bus/acpi"
_PARENT = "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/PNP0A06:04"
_HOTPLUG = "/sys/firmware/acpi/hotplug/memory"


def firmware_node_of(device: MemoryDevice) -> str:
    """Give what the link ``firmware_node`` of a block says."""
    return f"../../..{_PARENT.removeprefix('/sys/devices')}/{device.name}"


def acpi_directories(machine: Machine) -> dict[str, Callable[[Machine], Directory]]:
    """Give the directories of the firmware's memory devices, by path."""
    devices = machine.acpi.devices
    made: dict[str, Callable[[Machine], Directory]] = {
        _HOTPLUG: lambda machine: Directory(None, _HOTPLUG_FILES, dict),
        f"{_BUS}/devices": lambda machine: Directory(None, {}, dict, lambda: {one.name: _link_to(one) for one in devices}),
    }
    for one in devices:
        made[f"{_PARENT}/{one.name}"] = lambda machine, one=one: Directory(one, _DEVICE_FILES, links=lambda: _links(one))  # type: ignore[misc]
    return made


def _link_to(device: MemoryDevice) -> str:
    return f"../../..{_PARENT.removeprefix('/sys')}/{device.name}"


def _links(device: MemoryDevice) -> dict[str, str]:
    nodes = {
        f"physical_node{number or ''}": f"../../../../system/memory/{block.name}"
        for number, block in device.physical_nodes.items()
    }
    return {**nodes, "subsystem": "../../../../../bus/acpi"}


# -- one device


def _modalias(device: MemoryDevice) -> str:
    return "acpi:PNP0C80:" if device.seen else ""


def _show_modalias(machine: Machine, device: MemoryDevice) -> str:
    return f"{_modalias(device)}\n" if device.seen else ""


def _store_eject(machine: Machine, device: MemoryDevice, text: str) -> None:
    if text[0] != "1":
        raise InvalidInput(text, f"{device.name}/eject", "1")
    dimm = device.dimm
    if dimm is None or not device.attached or not machine.acpi.enabled:
        reason = "ejecting memory is disabled" if device.attached else "it has no memory"
        raise HotplugError(errno.ENODEV, f"{device.name} can't be ejected: {reason}")
    machine.acpi.schedule_eject(dimm)


def _store_uevent(machine: Machine, device: MemoryDevice, text: str) -> None:
    path = f"{_PARENT.removeprefix('/sys')}/{device.name}"
    store_uevent(machine, path, "acpi", text, (("MODALIAS", _modalias(device)),))


_DEVICE_FILES = {
    "eject": Attribute(0o200, None, _store_eject),
    "hid": Attribute(0o444, lambda machine, device: "PNP0C80\n"),
    "modalias": Attribute(0o444, _show_modalias),
    "path": Attribute(0o444, lambda machine, device: f"\\_SB_.MHPC.MP{device.number:02X}\n"),
    "status": Attribute(0o444, lambda machine, device: "15\n" if device.dimm is not None else "0\n"),
    "uevent": Attribute(0o644, lambda machine, device: f"MODALIAS={_modalias(device)}\n", _store_uevent),
    "uid": Attribute(0o444, lambda machine, device: f"0x{device.number:02X}\n"),
}


# -- the switch for all


def _store_enabled(machine: Machine, what: None, text: str) -> None:
    # A zero-length write never comes here; more than one newline is no number.
    number = parse_uint(text.partition("\0")[0], "enabled")
    if number > 1:
        raise InvalidInput(text, "enabled", "0 or 1")
    machine.acpi.enabled = number == 1


_HOTPLUG_FILES = {
    "enabled": Attribute(0o644, lambda machine, what: f"{machine.acpi.enabled:d}\n", _store_enabled),
}
