"""A machine's blocks in columns, read as fast as Python can: what ``memhp list`` stands on.

Imports nothing but built-in modules and reads no file that nobody wants (see ``bench/listing.py``). ``Host.blocks()`` gives
the same as objects, through any tree.
"""

from __future__ import annotations

import posix

from memhp.abi.directory import DirectoryOfFiles
from memhp.abi.paths import FIRMWARE_MEMORY, MEMORY, NODE

__all__ = ["Scan", "ScanError", "human", "scan"]

_KNOWN = frozenset({"online", "offline", "going-offline"})


class ScanError(Exception):
    """The files of memory blocks can't be read; ``hint`` says what is needed, '' if there is nothing to say."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Scan:
    """Blocks in columns: the n-th of each list belongs to the n-th block. A column that was not wanted is None.

    Attributes:
        block_size: bytes.
        numbers: ids, ascending.
        states: texts of the files, None where there is none.
        removable: as ``states``.
        nodes: the first node of each block, -1 for none; None if no block has one.
        zones: texts of valid_zones; None if no block has such a file.
        configured: of machines with ``/sys/firmware/memory`` (s390), whether the block exists; else None.
        memmap_on_memory: likewise, whether it holds its own page structures.
    """

    __slots__ = ("block_size", "configured", "memmap_on_memory", "nodes", "numbers", "removable", "states", "zones")

    def __init__(self, block_size: int, numbers: list[int]) -> None:
        self.block_size = block_size
        self.numbers = numbers
        self.states: list[str | None] = []
        self.removable: list[str | None] = []
        self.nodes: list[int] | None = None
        self.zones: list[str | None] | None = None
        self.configured: list[bool] | None = None
        self.memmap_on_memory: list[bool] | None = None


def scan(root: str = "", *, removable: bool = True, nodes: bool = False, zones: bool = False) -> Scan:
    """Read the blocks of this machine, or of a copy of its files below ``root``.

    A block that goes away meanwhile has None for a state.

    Raises:
        ScanError: there are no memory blocks, or they can't be read.
    """
    memory = _open(root)
    try:
        names = memory.names()
        size = _block_size(memory, names)
        here = _numbers(names)
        if not here:
            raise ScanError(f"Failed to read {root}{MEMORY}: no memory blocks")
        firmware = _firmware(root)
        if firmware is None:
            found = Scan(size, here)
        else:
            found = _scan_firmware(firmware, size)
            firmware.close()
        _read_files(memory, found, removable=removable, zones=zones)
        if nodes:
            found.nodes = _first_nodes(memory, root, here, found)
    finally:
        memory.close()
    return found


def _open(root: str) -> DirectoryOfFiles:
    try:
        return DirectoryOfFiles(root + MEMORY)
    except OSError as error:
        hint = "" if root else "The kernel needs CONFIG_MEMORY_HOTPLUG (on CONFIG_SPARSEMEM), and /sys must be mounted."
        raise ScanError(f"cannot open {MEMORY}: {error.strerror}", hint) from None


def _block_size(memory: DirectoryOfFiles, names: list[str]) -> int:
    if "block_size_bytes" not in names:
        raise ScanError("This system does not support memory blocks")
    (text,) = memory.read_all(["block_size_bytes"])
    try:
        size = int(text or "", 16)
    except ValueError:
        size = 0
    if size <= 0:
        raise ScanError(f"failed to read memory block size: block_size_bytes says {(text or '').strip()!r}")
    return size


def _numbers(names: list[str]) -> list[int]:
    return sorted([int(digits) for name in names if name[:6] == "memory" and (digits := name[6:]).isdigit() and digits.isascii()])


def _firmware(root: str) -> DirectoryOfFiles | None:
    # As lsmem does: the directory counts if memory0 is in it.
    try:
        directory = DirectoryOfFiles(root + FIRMWARE_MEMORY)
    except OSError:
        return None
    if "memory0" in directory.names():
        return directory
    directory.close()
    return None


def _scan_firmware(firmware: DirectoryOfFiles, size: int) -> Scan:
    found = Scan(size, _numbers(firmware.names()))
    found.configured = [_is_one(text) for text in firmware.read_all([f"memory{n}/config" for n in found.numbers])]
    found.memmap_on_memory = [_is_one(text) for text in firmware.read_all([f"memory{n}/memmap_on_memory" for n in found.numbers])]
    return found


def _is_one(text: str | None) -> bool:
    try:
        return text is not None and int(text) == 1
    except ValueError:
        return False


def _read_files(memory: DirectoryOfFiles, found: Scan, *, removable: bool, zones: bool) -> None:
    # Block after block, so that what is said of one block is of one moment.
    files = ["state", *(["removable"] if removable else []), *(["valid_zones"] if zones else [])]
    if len(files) == 1:
        texts = memory.read_all([f"memory{number}/state" for number in found.numbers])
    else:
        texts = memory.read_all([f"memory{number}/{file}" for number in found.numbers for file in files])
    columns = {file: texts[index :: len(files)] for index, file in enumerate(files)}
    if found.configured is not None:
        # A block that isn't configured doesn't exist, whatever a stale file says; an unknown state is offline here.
        for column in columns.values():
            column[:] = [text if there else None for text, there in zip(column, found.configured, strict=True)]
        columns["state"] = [text if (text or "").removesuffix("\n") in _KNOWN else "offline" for text in columns["state"]]
    found.states = columns["state"]
    found.removable = columns.get("removable", [])
    if zones and any(text is not None for text in columns["valid_zones"]):
        found.zones = columns["valid_zones"]


def _first_nodes(memory: DirectoryOfFiles, root: str, here: list[int], found: Scan) -> list[int] | None:
    # The nodes' directories say the same as the links in the blocks' own, for two calls a node in place of four a block. A
    # copy may lack them or be made by hand, so the blocks at both ends are asked, and those that are of several nodes or none.
    owners = _owners(root)
    if any(owners.get(number, -1) not in {-2, _own_node(memory, number)} for number in {here[0], here[-1]}):
        owners = {}
    nodes = {number: owners[number] if owners.get(number, -1) >= 0 else _own_node(memory, number) for number in here}
    if max(nodes.values()) < 0:
        return None
    if found.configured is None:
        return [nodes[number] for number in found.numbers]
    return [nodes.get(number, 0) if there else 0 for number, there in zip(found.numbers, found.configured, strict=True)]


def _owners(root: str) -> dict[int, int]:
    owners: dict[int, int] = {}
    for node in _listed(root + NODE):
        if node[:4] == "node" and node[4:].isascii() and node[4:].isdigit():
            for number in _numbers(_listed(f"{root}{NODE}/{node}")):
                owners[number] = -2 if number in owners else int(node[4:])
    return owners


def _listed(path: str) -> list[str]:
    try:
        return posix.listdir(path)
    except OSError:
        return []


def _own_node(memory: DirectoryOfFiles, number: int) -> int:
    # lsmem takes the first link that the directory lists, whatever its order.
    try:
        names = memory.names(f"memory{number}")
    except OSError:
        return -1
    return next((int(name[4:]) for name in names if name[:4] == "node" and name[4:].isascii() and name[4:].isdigit()), -1)


def human(size: int) -> str:
    """Write a size in bytes as util-linux does: with one letter and at most one decimal, rounded (``1.3G``, ``128M``)."""
    power = 0
    while power < 6 and size >= 1 << (10 * power + 10):
        power += 1
    shift = 10 * power
    whole, rest = size >> shift, size & ((1 << shift) - 1)
    tenths = ((rest * 1000 >> shift) + 50) // 100
    if tenths == 10:
        whole, tenths = whole + 1, 0
    return f"{whole}{f'.{tenths}' if tenths else ''}{'BKMGTPE'[power]}"
