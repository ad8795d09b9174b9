"""The files that the machine serves: the ABI of Linux on top of the machine's own functions.

Formats, modes and errnos are those of real kernels (drivers/base/memory.c and node.c; observed on 6.1 and 6.12). Left out
is everything outside these directories that is not mounted here: the firmware's memory devices and map, modules and what
they have in debugfs.
"""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from memhp.abi.paths import BUS, CPU, FIRMWARE_MEMMAP, MEMORY, MODULE, NODE, PLATFORM, PROC, TIERS
from memhp.errors import HotplugError, InvalidInput
from memhp.kernel.acpi_files import firmware_node_of
from memhp.kernel.attributes import (
    BLOCK_FILES,
    BUS_FILES,
    CPU_ROOT_FILES,
    CRASH_FILES,
    FAILURE_FILES,
    GIGANTIC_FILES,
    HUGE_FILES,
    MEMORY_FILES,
    NODE_FAILURE_FILES,
    NODE_FILES,
    NODE_ROOT_FILES,
    PARAMETER_FILES,
    PROBE_FILES,
    PROC_FILES,
    Attribute,
    Directory,
    cpu_files,
    memmap_files,
    power_files,
    uevent_of,
)
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.cpus import Cpu
from memhp.kernel.dax_files import dax_device_directory
from memhp.kernel.locks import RestartSyscall
from memhp.kernel.tier_files import tier_directory, tiers_directory
from memhp.kernel.zones import Node
from memhp.locking.switch import ending_request

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["SysfsFile", "SysfsTree"]

_PAGE = 4096


class SysfsTree:
    """The machine's /sys as a :class:`~memhp.abi.tree.Tree`: read, write, list, and what links say.

    Errors are :class:`~memhp.errors.HotplugError` (an ``OSError``) with the errno of the system call. A write may block as
    long as the kernel's would.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._mounted: dict[str, Callable[[Machine], Directory]] = {}

    def mount(self, directories: dict[str, Callable[[Machine], Directory]]) -> None:
        """Serve more directories, by path; what lies above them is there by itself."""
        self._mounted = {**self._mounted, **directories}

    def below(self, path: str) -> list[str]:
        """Give the names under a path that lead to directories which are served."""
        above = f"{path.rstrip('/')}/"
        places = (*_FIXED, *self._mounted)
        return sorted({place.removeprefix(above).split("/")[0] for place in places if place.startswith(above)})

    def unmount(self, path: str) -> None:
        """Serve a directory no more, nor what lies below it."""
        kept = {place: maker for place, maker in self._mounted.items() if not f"{place}/".startswith(f"{path}/")}
        self._mounted = kept

    def read(self, path: str) -> str:
        """Give the file's text."""
        match = _BLOCK_PATH.match(path)
        if match:
            block = self._machine.blocks.get(int(match[1]))
            attribute = BLOCK_FILES.get(match[2])
            if block is not None and attribute is not None and attribute.show is not None:
                if not attribute.show_takes_locks:
                    return attribute.show(self._machine, block)
                if block.active.get():
                    try:
                        return attribute.show(self._machine, block)
                    finally:
                        block.active.put()
        return self.open(path).read()

    def read_bytes(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """Give ``size`` bytes of the file from ``offset`` on, fewer at its end, all if -1; for /proc/kpageflags and kpagecount.

        Raises:
            HotplugError: as :meth:`open`; EINVAL, a binary file's offset or size is no multiple of 8.
        """
        return self.open(path).read_bytes(offset, size)

    def write(self, path: str, data: str | bytes) -> int:
        """Write to the file, as one ``write()``; gives the number of bytes taken."""
        return self.open(path, writing=True).write(data)

    def interrupt(self, thread: threading.Thread) -> None:
        """Send a signal to a thread that writes; see :meth:`~memhp.kernel.machine.Machine.send_signal`."""
        self._machine.send_signal(thread)

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

    def _split(self, path: str) -> tuple[Directory, str | None]:
        match = _BLOCK_PATH.match(path)
        if match and match[2] in BLOCK_FILES and (block := self._machine.blocks.get(int(match[1]))) is not None:
            return _block_directory(self._machine, block), match[2]
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

    def _directory(self, place: Sequence[str], path: str) -> Directory:
        here = "/" + "/".join(place)
        machine = self._machine
        maker = _FIXED.get(here) or self._mounted.get(here)
        if maker is not None:
            return maker(machine)
        if place and place[-1] in {"power", "x86"}:
            return Directory(None, power_files(here) if place[-1] == "power" else {}, dict)
        numbered = _NUMBERED.get(here.rpartition("/")[0])
        if numbered is not None and (directory := numbered(machine, place[-1])) is not None:
            return directory
        for above, directory_of in _BELOW.items():
            if here.startswith(f"{above}/") and (found := directory_of(machine, tuple(place[above.count("/") :]))) is not None:
                return found
        below = self.below(here)
        if not below:
            raise HotplugError(errno.ENOENT, f"there is no {path}")
        return Directory(None, {}, lambda: dict.fromkeys(below))


class SysfsFile:
    """An open file of the tree."""

    def __init__(self, machine: Machine, path: str, attribute: Attribute, what: Any) -> None:
        self._machine = machine
        self._path = path
        self._attribute = attribute
        self._what = what
        # A node that comes back has another device, which this file isn't of.
        self._node_active = what.active if isinstance(what, Node) else None

    def read(self) -> str:
        """Give the text as it is now.

        Raises:
            HotplugError: ENODEV, the device was removed; EIO where the kernel has nothing to say.
        """
        show = self._attribute.show
        if self._attribute.show_takes_locks and show is not None:
            with self._in_use():
                return show(self._machine, self._what)
        self._check()
        if self._attribute.read_bytes is not None:
            raise HotplugError(errno.EINVAL, f"{self._path} is no text; use read_bytes()")
        if show is None:
            raise HotplugError(errno.EIO, f"{self._path} has nothing to read")
        return show(self._machine, self._what)

    def read_bytes(self, offset: int = 0, size: int = -1) -> bytes:
        """Give a part of the file as it is now; raises as :meth:`read`, and EINVAL for half a word of a binary file."""
        if offset < 0 or size < -1:
            raise HotplugError(errno.EINVAL, f"{self._path}: can't read {size} bytes at {offset}")
        if self._attribute.read_bytes is not None:
            return self._attribute.read_bytes(self._machine, offset, size)
        raw = self.read().encode()
        return raw[offset:] if size < 0 else raw[offset : offset + size]

    def write(self, data: str | bytes) -> int:
        """Write once; gives the number of bytes taken. Nothing is too little to reach the kernel's handler.

        Raises:
            HotplugError: ENODEV, the device was removed; else whatever the file's handler says.
        """
        raw = data.encode("latin-1", "replace") if isinstance(data, str) else bytes(data)
        raw = raw[:_PAGE]
        if not raw and not self._attribute.takes_nothing:
            return 0
        text = raw.decode("latin-1")
        with ending_request():
            while True:
                try:
                    self._store(text)
                except RestartSyscall as restart:
                    restart.lock.await_free()
                else:
                    return len(raw)

    def _store(self, text: str) -> None:
        with self._in_use():
            if self._attribute.store is None:
                raise HotplugError(errno.EIO, f"{self._path} takes no writes")
            try:
                self._attribute.store(self._machine, self._what, text)
            except InvalidInput as error:
                raise HotplugError(errno.EINVAL, f"{self._path}: {error.value!r}; expected {error.expected}") from None

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        # What sysfs keeps around each call of a handler: the removal of the device waits for it.
        active = self._what.active if isinstance(self._what, MemoryBlock | Cpu) else self._node_active
        if active is None:
            self._check()
            yield
            return
        if not active.get():
            raise self._gone()
        try:
            self._check()
            yield
        finally:
            active.put()

    def _check(self) -> None:
        what = self._what
        gone = not what.registered if isinstance(what, Node) else getattr(what, "removed", False)
        if gone or (isinstance(what, Node) and what.active is not self._node_active):
            raise self._gone()

    def _gone(self) -> HotplugError:
        return HotplugError(errno.ENODEV, f"{self._path}: the device was removed")


# -- blocks


def _named_block_directory(machine: Machine, name: str) -> Directory | None:
    match = re.fullmatch(r"memory(0|[1-9]\d*)", name)
    block = machine.blocks.get(int(match[1])) if match else None
    return _block_directory(machine, block) if block is not None else None


def _block_directory(machine: Machine, block: MemoryBlock) -> Directory:
    def links() -> dict[str, str]:
        found = {"subsystem": "../../../../bus/memory"}
        if block.id in machine.nodes[block.nid].linked:
            found[f"node{block.nid}"] = f"../../node/node{block.nid}"
        if block.firmware_node is not None:
            found["firmware_node"] = firmware_node_of(block.firmware_node)
        return found

    return Directory(block, BLOCK_FILES, links=links)


# -- nodes


def _node_named(machine: Machine, name: str) -> Node | None:
    match = re.fullmatch(r"node(0|[1-9]\d*)", name)
    node = machine.nodes.get(int(match[1])) if match else None
    return node if node is not None and node.registered else None


def _node_directory(machine: Machine, node: Node) -> Directory:
    def links() -> dict[str, str]:
        blocks = {block.name: f"../../memory/{block.name}" for block in node.linked.copy().values()}
        cpus = {f"cpu{number}": f"../../cpu/cpu{number}" for number in node.cpus}
        return {**blocks, **cpus, "subsystem": "../../../../bus/node"}

    names = ["power", "x86", "hugepages", *(["memory_failure"] if machine.rules.value.memory_failure else [])]
    return Directory(node, NODE_FILES, lambda: dict.fromkeys(names), links)


_BELOW_NODE: dict[tuple[str, ...], tuple[dict[str, Attribute], tuple[str, ...]]] = {
    ("hugepages",): ({}, ("hugepages-1048576kB", "hugepages-2048kB")),
    ("hugepages", "hugepages-2048kB"): (HUGE_FILES, ()),
    ("hugepages", "hugepages-1048576kB"): (GIGANTIC_FILES, ()),
    ("memory_failure",): (NODE_FAILURE_FILES, ()),
}


def _below_node(machine: Machine, place: tuple[str, ...]) -> Directory | None:
    node = _node_named(machine, place[0])
    if node is None or place[1:] not in {(), *_BELOW_NODE}:
        return None
    if place[1:] == ():
        return _node_directory(machine, node)
    files, names = _BELOW_NODE[place[1:]]
    return Directory(node, files, lambda: dict.fromkeys(names))


# -- the memory directory and the module's parameters


def _memory_directory(machine: Machine) -> Directory:
    def directories() -> dict[str, None]:
        return {"power": None, **dict.fromkeys(f"memory{number}" for number in machine.blocks)}

    rules = machine.rules.value
    files = {
        **MEMORY_FILES,
        **(PROBE_FILES if machine.memory_probe else {}),
        **(CRASH_FILES if rules.crash_hotplug else {}),
        **(FAILURE_FILES if rules.memory_failure else {}),
    }
    return Directory(None, files, directories)


def _node_root(machine: Machine) -> Directory:
    def directories() -> dict[str, None]:
        registered = [node for node in machine.nodes.values() if node.registered]
        return {"power": None, **dict.fromkeys(f"node{node.nid}" for node in registered)}

    return Directory(None, NODE_ROOT_FILES, directories)


def _bus_devices(machine: Machine) -> Directory:
    def links() -> dict[str, str]:
        names = [block.name for block in machine.blocks.values()]
        return {name: f"../../../devices/system/memory/{name}" for name in names}

    return Directory(None, {}, dict, links)


# -- CPUs


def _cpu_root(machine: Machine) -> Directory:
    return Directory(None, CPU_ROOT_FILES, lambda: {"power": None, **dict.fromkeys(f"cpu{cpu.number}" for cpu in machine.cpus)})


def _cpu_directory(machine: Machine, name: str) -> Directory | None:
    match = re.fullmatch(r"cpu(0|[1-9]\d*)", name)
    cpu = machine.cpus.find(int(match[1])) if match else None
    if cpu is None:
        return None

    def links() -> dict[str, str]:
        node = {f"node{cpu.nid}": f"../../node/node{cpu.nid}"} if machine.nodes[cpu.nid].registered else {}
        return {**node, "subsystem": "../../../../bus/cpu"}

    return Directory(cpu, cpu_files(cpu), links=links)


# -- the firmware's list of memory


def _entry_directory(machine: Machine, name: str) -> Directory | None:
    entry = machine.firmware_map.find(int(name)) if re.fullmatch(r"0|[1-9]\d*", name) else None
    return Directory(None, memmap_files(entry), dict) if entry is not None else None


def _memmap_directory(machine: Machine) -> Directory:
    return Directory(None, {}, lambda: dict.fromkeys(str(entry.number) for entry in machine.firmware_map))


_BLOCK_PATH = re.compile(rf"{MEMORY}/memory(0|[1-9]\d*)/(\w+)\Z")

_FIXED: dict[str, Callable[[Machine], Directory]] = {
    PROC: lambda machine: Directory(None, PROC_FILES, dict),
    MEMORY: _memory_directory,
    NODE: _node_root,
    CPU: _cpu_root,
    BUS: lambda machine: Directory(None, BUS_FILES, lambda: {"devices": None, "drivers": None}),
    f"{BUS}/devices": _bus_devices,
    f"{BUS}/drivers": lambda machine: Directory(None, {}, dict),
    MODULE: lambda machine: Directory(
        None, {"uevent": uevent_of("/module/memory_hotplug", "module")}, lambda: {"parameters": None}
    ),
    f"{MODULE}/parameters": lambda machine: Directory(None, PARAMETER_FILES, dict),
    FIRMWARE_MEMMAP: _memmap_directory,
    TIERS: tiers_directory,
}

_NUMBERED: dict[str, Callable[[Machine, str], Directory | None]] = {
    MEMORY: _named_block_directory,
    CPU: _cpu_directory,
    FIRMWARE_MEMMAP: _entry_directory,
    TIERS: tier_directory,
}
"""What makes the directory of a device from its name, by the directory that it is in."""

_BELOW: dict[str, Callable[[Machine, tuple[str, ...]], Directory | None]] = {
    NODE: _below_node,
    PLATFORM: dax_device_directory,
}
"""What makes a directory from the rest of its path, by what that is below."""
