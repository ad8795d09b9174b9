"""What each file of the tree says and does (drivers/base/memory.c, node.c, bus.c; observed on 6.1 and 6.12)."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memhp.abi.formats import parse_bool, sysfs_word
from memhp.errors import HotplugError, InvalidInput
from memhp.kernel import add, device, proc
from memhp.kernel.blocks import BlockState, MemoryBlock, OnlineType
from memhp.kernel.boot import parse_policy
from memhp.kernel.cpus import Cpu, Cpus
from memhp.kernel.firmwaremap import FirmwareEntry
from memhp.kernel.hugetlb import pool_of, set_nr_hugepages
from memhp.kernel.kstrtox import kstrtoull
from memhp.kernel.poison import hard_offline_page, soft_offline_page
from memhp.kernel.zonechoice import valid_zones
from memhp.kernel.zones import Node, NodeState
from memhp.units import BlockId, Pfn, PhysAddr, addr_to_pfn, format_ids

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = [
    "BLOCK_FILES",
    "BUS_FILES",
    "CPU_ROOT_FILES",
    "CRASH_FILES",
    "FAILURE_FILES",
    "GIGANTIC_FILES",
    "HUGE_FILES",
    "MEMORY_FILES",
    "NODE_FAILURE_FILES",
    "NODE_FILES",
    "NODE_ROOT_FILES",
    "PARAMETER_FILES",
    "PROBE_FILES",
    "PROC_FILES",
    "Attribute",
    "Directory",
    "cpu_files",
    "memmap_files",
    "power_files",
    "store_uevent",
    "uevent_of",
]


@dataclass(frozen=True, slots=True)
class Attribute:
    """One file of a kind of directory.

    ``show`` and ``store`` get the machine and the block, the node or None that the directory is of; without one of them the
    file can't be read or written. A ``show`` that takes no lock needs no hold on its device: nothing can come in between.
    """

    mode: int
    show: Callable[[Machine, Any], str] | None = None
    store: Callable[[Machine, Any, str], None] | None = None
    read_bytes: Callable[[Machine, int, int], bytes] | None = None
    """Of a binary file only: gives so many bytes from an offset on."""
    takes_nothing: bool = False
    """Whether a write of no bytes reaches ``store``: debugfs passes it on, sysfs doesn't."""
    show_takes_locks: bool = False


class Directory:
    """One directory: its files, and functions that give the names below and the links that it has now.

    ``what`` is the thing that it is of; once that has ``removed`` set, its open files fail with ENODEV.
    """

    def __init__(
        self,
        what: Any,
        files: dict[str, Attribute],
        directories: Callable[[], dict[str, None]] = lambda: {"power": None},
        links: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.what = what
        self.files = files
        self.directories = directories
        self.links = links


def _constant(text: str, mode: int = 0o444) -> Attribute:
    return Attribute(mode, lambda machine, what: text)


# -- blocks


def _show_online(machine: Machine, block: MemoryBlock) -> str:
    # online_show() takes the device's lock, so it waits for a change of the block to end.
    with block.device_lock:
        return "0\n" if block.offline else "1\n"


def _show_valid_zones(machine: Machine, block: MemoryBlock) -> str:
    if block.state is BlockState.ONLINE:
        zone = block.zone
        return f"{zone.type.label}\n" if zone is not None else "none\n"
    kinds = valid_zones(machine, block.nid, block.group, block.start_pfn, block.nr_pages)
    return " ".join(kind.label for kind in kinds) + "\n"


def _store_state(machine: Machine, block: MemoryBlock, text: str) -> None:
    wanted = _online_type(text)
    with machine.device_hotplug_sysfs():
        if wanted is OnlineType.OFFLINE:
            unchanged = device.device_offline(machine, block)
        else:
            block.online_type = wanted
            unchanged = device.device_online(machine, block)
    if unchanged:
        state = "offline" if wanted is OnlineType.OFFLINE else "online"
        raise HotplugError(errno.EINVAL, f"{block.name} is {state} already", block=block.id)


def _store_online(machine: Machine, block: MemoryBlock, text: str) -> None:
    online = parse_bool(text, "online")
    with machine.device_hotplug_sysfs():
        # Being there already is a success here, unlike in `state`; the type is the one stored last.
        (device.device_online if online else device.device_offline)(machine, block)


def _online_type(text: str) -> OnlineType:
    word = sysfs_word(text)
    for kind in OnlineType:
        if kind.value == word:
            return kind
    raise InvalidInput(text, "state", "offline, online, online_kernel or online_movable")


# -- uevents


_UEVENT = re.compile(
    r"(add|remove|change|move|online|offline|bind|unbind)"
    r"(?: ([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})((?: [0-9A-Za-z]+=[0-9A-Za-z]+)*))?"
)


def _synthesise(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    match = _UEVENT.fullmatch(text.removesuffix("\n"))
    if not match:
        raise InvalidInput(text, "uevent", "an action such as change, and a UUID with KEY=value pairs if wanted")
    pairs = [pair.split("=") for pair in (match[3] or "").split()]
    return match[1], (("SYNTH_UUID", match[2] or "0"), *((f"SYNTH_ARG_{key}", value) for key, value in pairs))


def _store_uevent(machine: Machine, what: MemoryBlock | Node, text: str) -> None:
    action, extra = _synthesise(text)
    machine.uevents.emit(action, what, extra)


def store_uevent(machine: Machine, devpath: str, subsystem: str, text: str, keys: tuple[tuple[str, str], ...]) -> None:
    """Send what was written to the ``uevent`` of a device that adds keys of its own to each of its events."""
    action, extra = _synthesise(text)
    machine.uevents.emit(action, devpath, (*extra, *keys), subsystem=subsystem)


def uevent_of(devpath: str, subsystem: str | None) -> Attribute:
    """Give the ``uevent`` file of something that is no device; without a subsystem it only checks what is written."""

    def store(machine: Machine, what: None, text: str) -> None:
        action, extra = _synthesise(text)
        if subsystem is not None:  # the roots of a subsystem check what is written and send nothing (observed)
            machine.uevents.emit(action, devpath, extra, subsystem=subsystem)

    return Attribute(0o644, lambda machine, what: "", store) if subsystem is None else Attribute(0o200, None, store)


# -- nodes


def _show_distance(machine: Machine, node: Node) -> str:
    online = sorted(machine.node_states[NodeState.N_ONLINE])
    return " ".join(str(node.distances.get(nid, 20)) for nid in online) + "\n"


def _show_cpumap(machine: Machine, node: Node) -> str:
    # "%*pb": as wide as the possible CPUs, in groups of 32.
    width = max(machine.cpus.possible, default=0) + 1
    digits = f"{sum(1 << number for number in machine.cpus.online_of(node.nid)):0{-(-width // 4)}x}"
    groups = [digits[max(0, end - 8) : end] for end in range(len(digits), 0, -8)]
    return f"{','.join(reversed(groups))}\n"


def _mask(state: NodeState) -> Attribute:
    return Attribute(0o444, lambda machine, what: f"{format_ids(machine.node_states[state])}\n")


# -- the memory directory, the bus, and the module's parameters


def _store_auto_online(machine: Machine, what: None, text: str) -> None:
    machine.parameters.auto_online_blocks = _online_type(text)


def _store_policy(machine: Machine, what: None, text: str) -> None:
    machine.parameters.online_policy = parse_policy(sysfs_word(text), "online_policy")


def _store_ratio(machine: Machine, what: None, text: str) -> None:
    machine.parameters.auto_movable_ratio = kstrtoull(text, "auto_movable_ratio", 32)


def _store_numa_aware(machine: Machine, what: None, text: str) -> None:
    machine.parameters.auto_movable_numa_aware = parse_bool(text, "auto_movable_numa_aware")


def _store_memory_probe(machine: Machine, what: None, text: str) -> None:
    start = kstrtoull(text, "probe")
    if start % machine.block_size:
        raise InvalidInput(text, "probe", f"an address on a block of {machine.block_size:#x} bytes")
    with machine.device_hotplug_sysfs():
        # memory_add_physaddr_to_nid(): where boot memory says nothing, the node of the lowest memory.
        nodes = dict(machine.boot_nodes)
        nid = nodes.get(BlockId(start // machine.block_size), machine.boot_nodes[0][1])
        add.add_memory(machine, nid, PhysAddr(start), machine.block_size)


# -- CPUs


def _show_cpu_online(machine: Machine, cpu: Cpu) -> str:
    with cpu.device_lock:
        return "1\n" if cpu.online else "0\n"


def _store_cpu_online(machine: Machine, cpu: Cpu, text: str) -> None:
    online = parse_bool(text, "online")
    with machine.device_hotplug_sysfs():
        (machine.cpus.cpu_device_up if online else machine.cpus.cpu_device_down)(cpu)


def _store_cpu_uevent(machine: Machine, cpu: Cpu, text: str) -> None:
    action, extra = _synthesise(text)
    machine.uevents.emit(action, f"/devices/system/cpu/cpu{cpu.number}", extra, subsystem="cpu")


def _cpu_list(chosen: Callable[[Cpus], Iterable[int]]) -> Attribute:
    return Attribute(0o444, lambda machine, what: f"{format_ids(chosen(machine.cpus))}\n")


def _offline_cpus(cpus: Cpus) -> set[int]:
    return set(cpus.possible) - {cpu.number for cpu in cpus if cpu.online}


def cpu_files(cpu: Cpu) -> dict[str, Attribute]:
    """Give the files of a CPU; one that can't go offline has no ``online``."""
    online = {"online": Attribute(0o644, _show_cpu_online, _store_cpu_online, show_takes_locks=True)} if cpu.hotpluggable else {}
    return {**online, "uevent": Attribute(0o644, lambda machine, what: "", _store_cpu_uevent)}


def _page_offliner(where: str, offline: Callable[[Machine, Pfn], None]) -> Attribute:
    def store(machine: Machine, what: None, text: str) -> None:
        offline(machine, addr_to_pfn(PhysAddr(kstrtoull(text, where))))

    return Attribute(0o200, None, store)


def _store_autoprobe(machine: Machine, what: None, text: str) -> None:
    machine.drivers_autoprobe = text[0] != "0"


def _store_probe(machine: Machine, what: None, text: str) -> None:
    # No driver binds to memory blocks, so naming a block that exists is all there is to it.
    if sysfs_word(text) not in {block.name for block in machine.blocks.values()}:
        raise HotplugError(errno.ENODEV, f"the bus has no device {text!r}")


def power_files(directory: str) -> dict[str, Attribute]:
    """Give the files of the ``power`` directory at a path."""

    def store(machine: Machine, what: None, text: str) -> None:
        if sysfs_word(text) not in {"on", "auto"}:
            raise InvalidInput(text, "control", "on or auto")
        machine.power_control[directory] = sysfs_word(text)

    control = Attribute(0o644, lambda machine, what: f"{machine.power_control.get(directory, 'auto')}\n", store)
    return {**POWER_FILES, "control": control}


def memmap_files(entry: FirmwareEntry) -> dict[str, Attribute]:
    """Give the files of an entry of the firmware's list of memory."""
    return {
        "start": _constant(f"{entry.start:#x}\n"),
        "end": _constant(f"{entry.end:#x}\n"),
        "type": _constant(f"{entry.type}\n"),
    }


# -- the tables: one a kind of directory


BLOCK_FILES = {
    "state": Attribute(0o644, lambda machine, block: f"{block.state.value}\n", _store_state),
    "online": Attribute(0o644, _show_online, _store_online, show_takes_locks=True),
    "phys_index": Attribute(0o444, lambda machine, block: f"{block.id:08x}\n"),
    "phys_device": _constant("0\n"),
    "removable": _constant("1\n"),
    "valid_zones": Attribute(0o444, _show_valid_zones),
    "uevent": Attribute(0o644, lambda machine, block: "", _store_uevent),
}


def _store_nr_hugepages(machine: Machine, node: Node, text: str) -> None:
    set_nr_hugepages(machine, node, kstrtoull(text, "nr_hugepages", base=10))


def _store_demote_size(machine: Machine, node: Node, text: str) -> None:
    if sysfs_word(text) not in {"2M", "2048K", "2048kB", "2097152"}:
        raise InvalidInput(text, "demote_size", "2M, the only smaller size")


HUGE_FILES = {
    "free_hugepages": Attribute(0o444, lambda machine, node: f"{pool_of(machine, node)[1]}\n"),
    "nr_hugepages": Attribute(0o644, lambda machine, node: f"{pool_of(machine, node)[0]}\n", _store_nr_hugepages),
    "surplus_hugepages": _constant("0\n"),
}

GIGANTIC_FILES = {
    "demote": Attribute(0o200, None, lambda machine, node, text: None),
    "demote_size": Attribute(0o644, lambda machine, node: "2048kB\n", _store_demote_size),
    "free_hugepages": _constant("0\n"),
    "nr_hugepages": Attribute(0o644, lambda machine, node: "0\n", lambda machine, node, text: None),
    "surplus_hugepages": _constant("0\n"),
}
"""Pages of 1 GiB are not modelled: a request for some is granted none, as where memory is too fragmented."""


def _failures(name: str) -> Attribute:
    return Attribute(0o444, lambda machine, node: f"{node.memory_failure[name]}\n")


NODE_FAILURE_FILES = {name: _failures(name) for name in ("total", "ignored", "failed", "delayed", "recovered")}

NODE_FILES = {
    "compact": Attribute(0o200, None, lambda machine, node, text: None),
    "cpulist": Attribute(0o444, lambda machine, node: f"{format_ids(machine.cpus.online_of(node.nid))}\n"),
    "cpumap": Attribute(0o444, _show_cpumap),
    "distance": Attribute(0o444, _show_distance),
    "meminfo": Attribute(0o444, proc.node_meminfo),
    "numastat": Attribute(0o444, proc.node_numastat),
    "uevent": Attribute(0o644, lambda machine, node: "", _store_uevent),
    "vmstat": Attribute(0o444, proc.node_vmstat),
}

MEMORY_FILES = {
    "auto_online_blocks": Attribute(
        0o644, lambda machine, what: f"{machine.parameters.auto_online_blocks.value}\n", _store_auto_online
    ),
    "block_size_bytes": Attribute(0o444, lambda machine, what: f"{machine.block_size:x}\n"),
    "uevent": uevent_of("/devices/system/memory", None),
}

PROBE_FILES = {"probe": Attribute(0o200, None, _store_memory_probe)}

CPU_ROOT_FILES = {
    "online": _cpu_list(lambda cpus: (cpu.number for cpu in cpus if cpu.online)),
    "offline": _cpu_list(_offline_cpus),
    "present": _cpu_list(lambda cpus: (cpu.number for cpu in cpus)),
    "possible": _cpu_list(lambda cpus: cpus.possible),
    "uevent": uevent_of("/devices/system/cpu", None),
}

FAILURE_FILES = {
    "soft_offline_page": _page_offliner("soft_offline_page", soft_offline_page),
    "hard_offline_page": _page_offliner("hard_offline_page", hard_offline_page),
}

CRASH_FILES = {"crash_hotplug": _constant("0\n")}

NODE_ROOT_FILES = {
    **{state.value: _mask(state) for state in NodeState},
    "has_generic_initiator": _constant("\n"),
    "uevent": uevent_of("/devices/system/node", None),
}

BUS_FILES = {
    "drivers_autoprobe": Attribute(0o644, lambda machine, what: f"{machine.drivers_autoprobe:d}\n", _store_autoprobe),
    "drivers_probe": Attribute(0o200, None, _store_probe),
    "uevent": uevent_of("/bus/memory", "bus"),
}

PARAMETER_FILES = {
    "online_policy": Attribute(0o644, lambda machine, what: f"{machine.parameters.online_policy}\n", _store_policy),
    "auto_movable_ratio": Attribute(0o644, lambda machine, what: f"{machine.parameters.auto_movable_ratio}\n", _store_ratio),
    "auto_movable_numa_aware": Attribute(
        0o644, lambda machine, what: "Y\n" if machine.parameters.auto_movable_numa_aware else "N\n", _store_numa_aware
    ),
    "memmap_on_memory": Attribute(0o444, lambda machine, what: f"{machine.parameters.memmap_on_memory}\n"),
}

POWER_FILES = {
    "autosuspend_delay_ms": Attribute(0o644),
    "runtime_active_time": _constant("0\n"),
    "runtime_status": _constant("unsupported\n"),
    "runtime_suspended_time": _constant("0\n"),
}


# NumPy costs more to import than all the rest, so it comes with the first read of page words.


def _kpageflags(machine: Machine, offset: int, size: int) -> bytes:
    from memhp.kernel.kpage import read_kpageflags  # noqa: PLC0415

    return read_kpageflags(machine, offset, size)


def _kpagecount(machine: Machine, offset: int, size: int) -> bytes:
    from memhp.kernel.kpage import read_kpagecount  # noqa: PLC0415

    return read_kpagecount(machine, offset, size)


PROC_FILES = {
    "buddyinfo": Attribute(0o444, proc.buddyinfo),
    "iomem": Attribute(0o444, proc.iomem),
    "kpagecount": Attribute(0o400, read_bytes=_kpagecount),
    "kpageflags": Attribute(0o400, read_bytes=_kpageflags),
    "meminfo": Attribute(0o444, proc.meminfo),
    "pagetypeinfo": Attribute(0o400, proc.pagetypeinfo),
    "zoneinfo": Attribute(0o444, proc.zoneinfo),
}
