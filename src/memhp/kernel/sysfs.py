"""The files that the machine serves: the ABI of Linux on top of the machine's own functions.

Formats, modes and errnos are those of real kernels (drivers/base/memory.c and node.c; observed on 6.1 and 6.12). Left out:
of a node's directory compact, hugepages, meminfo, memory_failure, numastat and vmstat; of a block's firmware_node; and
everything outside the four directories.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memhp.abi.formats import parse_bool, parse_uint, sysfs_word
from memhp.abi.paths import BUS, MEMORY, MODULE, NODE
from memhp.errors import HotplugError, InvalidInput
from memhp.kernel import device
from memhp.kernel.blocks import BlockState, MemoryBlock, OnlineType
from memhp.kernel.boot import parse_policy
from memhp.kernel.poison import hard_offline_page, soft_offline_page
from memhp.kernel.zonechoice import valid_zones
from memhp.kernel.zones import Node, NodeState
from memhp.units import Pfn, PhysAddr, addr_to_pfn, format_ids

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["SysfsFile", "SysfsTree"]

_PAGE = 4096


@dataclass(frozen=True, slots=True)
class _Attribute:
    # One file of a kind of directory; `what` is the block, the node or nothing.
    mode: int
    show: Callable[[Machine, Any], str] | None = None
    store: Callable[[Machine, Any, str], None] | None = None


class SysfsTree:
    """The machine's /sys as a :class:`~memhp.abi.tree.Tree`: read, write, list, and what links say.

    Errors are :class:`~memhp.errors.HotplugError` (an ``OSError``) with the errno of the system call. A write may block as
    long as the kernel's would.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def read(self, path: str) -> str:
        """Give the file's text."""
        match = _BLOCK_FILE.match(path)
        if match:
            block = self._machine.blocks.get(int(match[1]))
            attribute = _BLOCK.get(match[2])
            if block is not None and attribute is not None and attribute.show is not None:
                return attribute.show(self._machine, block)
        return self.open(path).read()

    def write(self, path: str, data: str | bytes) -> int:
        """Write to the file, as one ``write()``; gives the number of bytes taken."""
        return self.open(path, writing=True).write(data)

    def open(self, path: str, *, writing: bool = False) -> SysfsFile:
        """Open a file, for reading or for writing; it stays bound to its device, and fails with ENODEV once that is gone.

        Raises:
            HotplugError: ENOENT, EISDIR, ENOTDIR, or EACCES if the file's mode forbids it, also to root.
        """
        directory, name = self._split(path)
        if name is None:
            raise HotplugError(errno.EISDIR, f"{path} is a directory")
        attribute = directory.files[name]
        if not attribute.mode & (0o222 if writing else 0o444):
            verb = "written" if writing else "read"
            raise HotplugError(errno.EACCES, f"{path} can't be {verb} (mode {attribute.mode:04o})")
        return SysfsFile(self._machine, path, attribute, directory.what)

    def mode(self, path: str) -> int:
        """Give the permission bits of a file (0755 for a directory)."""
        directory, name = self._split(path)
        return 0o755 if name is None else directory.files[name].mode

    def list(self, path: str) -> list[str]:
        """Give the names in a directory, sorted."""
        directory, name = self._split(path)
        if name is not None:
            raise HotplugError(errno.ENOTDIR, f"{path} is not a directory")
        return sorted({*directory.files, *directory.links(), *directory.directories()})

    def readlink(self, path: str) -> str:
        """Give what a symbolic link says."""
        parent, _, name = path.rstrip("/").rpartition("/")
        directory, rest = self._split(parent)
        target = directory.links().get(name) if rest is None else None
        if target is None:
            raise HotplugError(errno.EINVAL if self.exists(path) else errno.ENOENT, f"{path} is not a link")
        return target

    def exists(self, path: str) -> bool:
        """Say whether there is such a file or directory, following links."""
        try:
            self._split(path)
        except HotplugError:
            return False
        return True

    def _split(self, path: str) -> tuple[_Directory, str | None]:
        # Walk down from the root, following links, to a directory or to a file in one.
        parts = [part for part in path.split("/") if part not in {"", "."}]
        place: tuple[str, ...] = ()
        links = 0
        while parts:
            part = parts.pop(0)
            if part == "..":
                place = place[:-1]
                continue
            directory = self._directory(place, path)
            target = directory.links().get(part)
            if target is not None:
                links += 1
                if links > 40:
                    raise HotplugError(errno.ELOOP, f"{path} has too many links")
                parts = [*target.split("/"), *parts]
            elif part in directory.files:
                if parts:
                    raise HotplugError(errno.ENOTDIR, f"/{'/'.join([*place, part])} is not a directory")
                return directory, part
            elif part in directory.directories():
                place = (*place, part)
            else:
                raise HotplugError(errno.ENOENT, f"there is no {path}")
        return self._directory(place, path), None

    def _directory(self, place: Sequence[str], path: str) -> _Directory:
        here = "/" + "/".join(place)
        machine = self._machine
        if (maker := _FIXED.get(here)) is not None:
            return maker(machine)
        if place and place[-1] == "power":
            return _Directory(None, _power_files(here), dict)
        if place and place[-1] == "x86":
            return _Directory(None, {}, dict)
        if here.startswith(f"{MEMORY}/") and (block := _block_named(machine, place[-1])) is not None:
            return _block_directory(machine, block)
        if here.startswith(f"{NODE}/") and (node := _node_named(machine, place[-1])) is not None:
            return _node_directory(node)
        above = f"{here.rstrip('/')}/"
        below = sorted({fixed.removeprefix(above).split("/")[0] for fixed in _FIXED if fixed.startswith(above)})
        if not below:
            raise HotplugError(errno.ENOENT, f"there is no {path}")
        return _Directory(None, {}, lambda: dict.fromkeys(below))


class SysfsFile:
    """An open file of the tree."""

    def __init__(self, machine: Machine, path: str, attribute: _Attribute, what: MemoryBlock | Node | None) -> None:
        self._machine = machine
        self._path = path
        self._attribute = attribute
        self._what = what

    def read(self) -> str:
        """Give the text as it is now.

        Raises:
            HotplugError: ENODEV, the device was removed; EIO where the kernel has nothing to say.
        """
        self._check()
        if self._attribute.show is None:
            raise HotplugError(errno.EIO, f"{self._path} has nothing to read")
        return self._attribute.show(self._machine, self._what)

    def write(self, data: str | bytes) -> int:
        """Write once; gives the number of bytes taken. Nothing is too little to reach the kernel's handler.

        Raises:
            HotplugError: ENODEV, the device was removed; else whatever the file's handler says.
        """
        raw = data.encode("latin-1", "replace") if isinstance(data, str) else bytes(data)
        raw = raw[:_PAGE]
        if not raw:
            return 0
        self._check()
        if self._attribute.store is None:
            raise HotplugError(errno.EIO, f"{self._path} takes no writes")
        try:
            self._attribute.store(self._machine, self._what, raw.decode("latin-1"))
        except InvalidInput as error:
            raise HotplugError(errno.EINVAL, f"{self._path}: {error.value!r}; expected {error.expected}") from None
        return len(raw)

    def _check(self) -> None:
        gone = self._what.removed if isinstance(self._what, MemoryBlock) else False
        if gone or (isinstance(self._what, Node) and not self._what.registered):
            raise HotplugError(errno.ENODEV, f"{self._path}: the device was removed")


class _Directory:
    def __init__(
        self,
        what: MemoryBlock | Node | None,
        files: dict[str, _Attribute],
        directories: Callable[[], dict[str, None]] = lambda: {"power": None},
        links: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.what = what
        self.files = files
        self.directories = directories
        self.links = links


# -- blocks


def _block_named(machine: Machine, name: str) -> MemoryBlock | None:
    match = re.fullmatch(r"memory(0|[1-9]\d*)", name)
    return machine.blocks.get(int(match[1])) if match else None


def _block_directory(machine: Machine, block: MemoryBlock) -> _Directory:
    def links() -> dict[str, str]:
        found = {"subsystem": "../../../../bus/memory"}
        if block.id in machine.nodes[block.nid].linked:
            found[f"node{block.nid}"] = f"../../node/node{block.nid}"
        return found

    return _Directory(block, _BLOCK, links=links)


def _show_online(machine: Machine, block: MemoryBlock) -> str:
    # online_show() takes the device's lock, so it waits for a change of the block to end.
    with block.device_lock:
        return "0\n" if block.offline else "1\n"


def _show_valid_zones(machine: Machine, block: MemoryBlock) -> str:
    if block.state is BlockState.ONLINE:
        zone = block.zone
        return f"{zone.type.label}\n" if zone is not None else "none\n"
    kinds = valid_zones(machine, block.nid, block.start_pfn, block.nr_pages)
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


def _uevent_of(devpath: str, subsystem: str | None) -> _Attribute:
    def store(machine: Machine, what: None, text: str) -> None:
        action, extra = _synthesise(text)
        if subsystem is not None:  # the roots of a subsystem check what is written and send nothing (observed)
            machine.uevents.emit(action, devpath, extra, subsystem=subsystem)

    return _Attribute(0o644, lambda machine, what: "", store) if subsystem is None else _Attribute(0o200, None, store)


# -- nodes


def _node_named(machine: Machine, name: str) -> Node | None:
    match = re.fullmatch(r"node(0|[1-9]\d*)", name)
    node = machine.nodes.get(int(match[1])) if match else None
    return node if node is not None and node.registered else None


def _node_directory(node: Node) -> _Directory:
    def links() -> dict[str, str]:
        blocks = {block.name: f"../../memory/{block.name}" for block in node.linked.copy().values()}
        cpus = {f"cpu{number}": f"../../cpu/cpu{number}" for number in node.cpus}
        return {**blocks, **cpus, "subsystem": "../../../../bus/node"}

    return _Directory(node, _NODE, lambda: {"power": None, "x86": None}, links)


def _show_distance(machine: Machine, node: Node) -> str:
    online = sorted(machine.node_states[NodeState.N_ONLINE])
    return " ".join(str(node.distances.get(nid, 20)) for nid in online) + "\n"


def _show_cpumap(machine: Machine, node: Node) -> str:
    return f"{sum(1 << number for number in node.cpus):x}\n"


def _mask(state: NodeState) -> _Attribute:
    return _Attribute(0o444, lambda machine, what: f"{format_ids(machine.node_states[state])}\n")


# -- the memory directory and the module's parameters


def _store_auto_online(machine: Machine, what: None, text: str) -> None:
    machine.parameters.auto_online_blocks = _online_type(text)


def _store_policy(machine: Machine, what: None, text: str) -> None:
    machine.parameters.online_policy = parse_policy(sysfs_word(text), "online_policy")


def _store_ratio(machine: Machine, what: None, text: str) -> None:
    machine.parameters.auto_movable_ratio = _bounded(text, "auto_movable_ratio", 32)


def _store_numa_aware(machine: Machine, what: None, text: str) -> None:
    machine.parameters.auto_movable_numa_aware = parse_bool(text, "auto_movable_numa_aware")


def _bounded(text: str, where: str, bits: int) -> int:
    number = parse_uint(text.partition("\0")[0], where)
    if number >= 1 << bits:
        raise HotplugError(errno.ERANGE, f"{where}: {number} does not fit in {bits} bits")
    return number


def _page_offliner(where: str, offline: Callable[[Machine, Pfn], None]) -> _Attribute:
    def store(machine: Machine, what: None, text: str) -> None:
        offline(machine, addr_to_pfn(PhysAddr(_bounded(text, where, 64))))

    return _Attribute(0o200, None, store)


def _store_autoprobe(machine: Machine, what: None, text: str) -> None:
    machine.drivers_autoprobe = text[0] != "0"


def _store_probe(machine: Machine, what: None, text: str) -> None:
    # No driver binds to memory blocks, so naming a block that exists is all there is to it.
    if _block_named(machine, sysfs_word(text)) is None:
        raise HotplugError(errno.ENODEV, f"the bus has no device {text!r}")


def _power_files(directory: str) -> dict[str, _Attribute]:
    def store(machine: Machine, what: None, text: str) -> None:
        if sysfs_word(text) not in {"on", "auto"}:
            raise InvalidInput(text, "control", "on or auto")
        machine.power_control[directory] = sysfs_word(text)

    control = _Attribute(0o644, lambda machine, what: f"{machine.power_control.get(directory, 'auto')}\n", store)
    return {**_POWER, "control": control}


def _memory_directory(machine: Machine) -> _Directory:
    def directories() -> dict[str, None]:
        return {"power": None, **dict.fromkeys(f"memory{number}" for number in machine.blocks.copy())}

    rules = machine.rules.value
    files = {**_MEMORY, **(_CRASH if rules.crash_hotplug else {}), **(_FAILURE if rules.memory_failure else {})}
    return _Directory(None, files, directories)


def _node_root(machine: Machine) -> _Directory:
    def directories() -> dict[str, None]:
        registered = [node for node in machine.nodes.values() if node.registered]
        return {"power": None, **dict.fromkeys(f"node{node.nid}" for node in registered)}

    return _Directory(None, _NODE_ROOT, directories)


def _bus_devices(machine: Machine) -> _Directory:
    def links() -> dict[str, str]:
        names = [block.name for block in machine.blocks.copy().values()]
        return {name: f"../../../devices/system/memory/{name}" for name in names}

    return _Directory(None, {}, dict, links)


def _constant(text: str, mode: int = 0o444) -> _Attribute:
    return _Attribute(mode, lambda machine, what: text)


_BLOCK_FILE = re.compile(rf"{MEMORY}/memory(0|[1-9]\d*)/(\w+)\Z")

_BLOCK = {
    "state": _Attribute(0o644, lambda machine, block: f"{block.state.value}\n", _store_state),
    "online": _Attribute(0o644, _show_online, _store_online),
    "phys_index": _Attribute(0o444, lambda machine, block: f"{block.id:08x}\n"),
    "phys_device": _constant("0\n"),
    "removable": _constant("1\n"),
    "valid_zones": _Attribute(0o444, _show_valid_zones),
    "uevent": _Attribute(0o644, lambda machine, block: "", _store_uevent),
}

_NODE = {
    "cpulist": _Attribute(0o444, lambda machine, node: f"{format_ids(node.cpus)}\n"),
    "cpumap": _Attribute(0o444, _show_cpumap),
    "distance": _Attribute(0o444, _show_distance),
    "uevent": _Attribute(0o644, lambda machine, node: "", _store_uevent),
}

_MEMORY = {
    "auto_online_blocks": _Attribute(
        0o644, lambda machine, what: f"{machine.parameters.auto_online_blocks.value}\n", _store_auto_online
    ),
    "block_size_bytes": _Attribute(0o444, lambda machine, what: f"{machine.block_size:x}\n"),
    "uevent": _uevent_of("/devices/system/memory", None),
}

_FAILURE = {
    "soft_offline_page": _page_offliner("soft_offline_page", soft_offline_page),
    "hard_offline_page": _page_offliner("hard_offline_page", hard_offline_page),
}

_CRASH = {"crash_hotplug": _constant("0\n")}

_NODE_ROOT = {
    **{state.value: _mask(state) for state in NodeState},
    "has_generic_initiator": _constant("\n"),
    "uevent": _uevent_of("/devices/system/node", None),
}

_BUS_FILES = {
    "drivers_autoprobe": _Attribute(0o644, lambda machine, what: f"{machine.drivers_autoprobe:d}\n", _store_autoprobe),
    "drivers_probe": _Attribute(0o200, None, _store_probe),
    "uevent": _uevent_of("/bus/memory", "bus"),
}

_PARAMETERS = {
    "online_policy": _Attribute(0o644, lambda machine, what: f"{machine.parameters.online_policy}\n", _store_policy),
    "auto_movable_ratio": _Attribute(0o644, lambda machine, what: f"{machine.parameters.auto_movable_ratio}\n", _store_ratio),
    "auto_movable_numa_aware": _Attribute(
        0o644, lambda machine, what: "Y\n" if machine.parameters.auto_movable_numa_aware else "N\n", _store_numa_aware
    ),
    "memmap_on_memory": _constant("N\n"),
}

_POWER = {
    "autosuspend_delay_ms": _Attribute(0o644),
    "runtime_active_time": _constant("0\n"),
    "runtime_status": _constant("unsupported\n"),
    "runtime_suspended_time": _constant("0\n"),
}

_FIXED: dict[str, Callable[[Machine], _Directory]] = {
    MEMORY: _memory_directory,
    NODE: _node_root,
    BUS: lambda machine: _Directory(None, _BUS_FILES, lambda: {"devices": None, "drivers": None}),
    f"{BUS}/devices": _bus_devices,
    f"{BUS}/drivers": lambda machine: _Directory(None, {}, dict),
    MODULE: lambda machine: _Directory(
        None, {"uevent": _uevent_of("/module/memory_hotplug", "module")}, lambda: {"parameters": None}
    ),
    f"{MODULE}/parameters": lambda machine: _Directory(None, _PARAMETERS, dict),
}
