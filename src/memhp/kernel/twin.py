"""The twin of a real machine: a plan read from the files of a live /sys, or of a copy of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from memhp.abi.formats import parse_hex, parse_uint
from memhp.abi.paths import FIRMWARE_MEMMAP, MEMORY, NODE, PARAMETERS
from memhp.abi.tree import Tree
from memhp.errors import InvalidInput
from memhp.kernel.blocks import BlockState
from memhp.kernel.boot import BootBlock, NodeSpec, Parameters, Plan, Ram, online_type_of
from memhp.kernel.layout import room_start, without_gaps
from memhp.kernel.rules import Rules
from memhp.kernel.zones import ZoneType
from memhp.units import PAGE_SHIFT, PAGE_SIZE, SECTION_SIZE, BlockId, Pfn, format_ids, parse_ids

__all__ = ["plan_from_tree"]

T = TypeVar("T")
_MAX_NODES = 1024
_MAX_BLOCK_SIZE = 1 << 40

_BLOCK_NAME = re.compile(r"memory(\d+)")
_NODE_NAME = re.compile(r"node(\d+)")


def plan_from_tree(tree: Tree, *, rules: Rules) -> Plan:
    """Read blocks, states, zones, nodes and parameters from a live /sys or a copy of it; needs no privilege.

    Whether a block has holes is not in these files, so each is taken as full, but for the gaps that the first MiB of a PC
    always has.

    Raises:
        InvalidInput: a file is missing or malformed; the error names it.
    """
    size = _read(tree, f"{MEMORY}/block_size_bytes", parse_hex)
    if not PAGE_SIZE <= size <= _MAX_BLOCK_SIZE or size & (size - 1):
        raise InvalidInput(size, f"{MEMORY}/block_size_bytes", "a power of two that a block can have")
    if size < SECTION_SIZE:
        raise InvalidInput(size, f"{MEMORY}/block_size_bytes", f"at least the x86-64 section size, {SECTION_SIZE:#x}")
    numbers = [int(match[1]) for name in _list(tree, MEMORY) if (match := _BLOCK_NAME.fullmatch(name))]
    if not numbers:
        raise InvalidInput(MEMORY, MEMORY, "at least one memory block")
    if max(numbers) * size >= 1 << 52:
        raise InvalidInput(f"memory{max(numbers)}", MEMORY, "blocks below 2^52 bytes")
    if len(set(numbers)) != len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise InvalidInput(f"memory{twice}", MEMORY, "each block once")
    possible, nodes = _nodes_of_tree(tree)
    owners = _owners(tree, possible)
    blocks = [_block_of_tree(tree, BlockId(number), size, owners, possible) for number in sorted(numbers)]
    ram_end = (max(numbers) + 1) * size
    return Plan(
        block_size=size,
        nodes=nodes,
        blocks=blocks,
        parameters=_parameters_of_tree(tree, rules),
        room_start=room_start(ram_end, size),
        cpu_ids={nid: _cpus_of(tree, nid) for nid in possible},
        firmware=_firmware_of_tree(tree),
    )


def _read(tree: Tree, path: str, parse: Callable[[str, str], T]) -> T:
    try:
        text = tree.read(path)
    except OSError as error:
        raise InvalidInput(path, path, f"a file that can be read ({error.strerror})") from error
    return parse(text, path)


def _list(tree: Tree, path: str) -> list[str]:
    try:
        return tree.list(path)
    except OSError as error:
        raise InvalidInput(path, path, f"a directory that can be listed ({error.strerror})") from error


def _word(text: str, where: str) -> str:
    if not text.strip():
        raise InvalidInput(text, where, "a word; the file is empty")
    return text.strip()


def _nodes_of_tree(tree: Tree) -> tuple[list[int], list[NodeSpec | None]]:
    if not tree.exists(NODE):  # a kernel without CONFIG_NUMA
        return [0], [NodeSpec()]
    possible = _read(tree, f"{NODE}/possible", lambda text, where: parse_ids(text.strip(), where))
    if not possible or max(possible) >= _MAX_NODES:
        raise InvalidInput(format_ids(possible), f"{NODE}/possible", f"at least one node, and none from {_MAX_NODES} on")
    online = [nid for nid in possible if tree.exists(f"{NODE}/node{nid}")]
    nodes: list[NodeSpec | None] = [None] * (max(possible) + 1)
    for nid in possible:
        nodes[nid] = NodeSpec(distances=_distances(tree, nid, online, len(nodes)))
    return possible, nodes


def _distances(tree: Tree, nid: int, online: list[int], count: int) -> tuple[int, ...]:
    # The file lists the nodes that are online, in their order; of the others nothing is known.
    path = f"{NODE}/node{nid}/distance"
    if not tree.exists(path):
        return ()
    row = _read(tree, path, _numbers)
    if len(row) != len(online):
        raise InvalidInput(" ".join(map(str, row)), path, f"{len(online)} numbers, one for each node that is online")
    known = dict(zip(online, row, strict=True))
    return tuple(known.get(other, 20) for other in range(count))


def _numbers(text: str, where: str) -> tuple[int, ...]:
    words = text.split()
    if not words or not all(word.isdigit() for word in words):
        raise InvalidInput(text, where, "numbers")
    return tuple(int(word) for word in words)


def _cpus_of(tree: Tree, nid: int) -> tuple[int, ...]:
    path = f"{NODE}/node{nid}/cpulist"
    if not tree.exists(path):
        return ()
    return tuple(_read(tree, path, lambda text, where: parse_ids(text.strip(), where)))


def _owners(tree: Tree, possible: list[int]) -> dict[int, int]:
    owners: dict[int, int] = {}
    for nid in possible:
        path = f"{NODE}/node{nid}"
        for name in _list(tree, path) if tree.exists(path) else ():
            match = _BLOCK_NAME.fullmatch(name)
            if match:
                owners.setdefault(int(match[1]), nid)
    return owners


def _block_of_tree(tree: Tree, number: BlockId, size: int, owners: dict[int, int], possible: list[int]) -> BootBlock:
    path = f"{MEMORY}/memory{number}"
    index = _read(tree, f"{path}/phys_index", parse_hex)
    if index != number:
        raise InvalidInput(f"{index:x}", f"{path}/phys_index", f"{number:x}, the number in the directory's name")
    nid = owners.get(number)
    if nid is None:
        linked = [int(match[1]) for name in _list(tree, path) if (match := _NODE_NAME.fullmatch(name))]
        nid = linked[0] if linked else 0
        if linked and tree.exists(NODE) and nid not in possible:
            raise InvalidInput(f"node{nid}", path, f"a node that is possible here ({format_ids(possible)})")
    word = _read(tree, f"{path}/state", _word)
    if word not in {"online", "offline", "going-offline"}:
        raise InvalidInput(word, f"{path}/state", "online, offline or going-offline")
    pages = size >> PAGE_SHIFT
    start = Pfn(number * pages)
    ram: Ram = ((start, pages),)
    if number == 0:
        parts = without_gaps([(0, 0, size)])
        ram = tuple((Pfn(a >> PAGE_SHIFT), (b - a) >> PAGE_SHIFT) for _, a, b in parts)
    if word == "offline":
        return BootBlock(number, nid, ram, BlockState.OFFLINE)
    zone = _zone_of_tree(tree, path)
    return BootBlock(number, nid, ram, BlockState.ONLINE, zone, in_several=zone is None)


def _zone_of_tree(tree: Tree, path: str) -> ZoneType | None:
    names = _read(tree, f"{path}/valid_zones", _word).split()
    if names[0].lower() == "none":
        return None
    for kind in ZoneType:
        if kind.label == names[0] and kind is not ZoneType.DEVICE:
            return kind
    raise InvalidInput(names[0], f"{path}/valid_zones", "none, DMA, DMA32, Normal or Movable")


def _parameters_of_tree(tree: Tree, rules: Rules) -> Parameters:
    parameters = Parameters.of(None, rules)
    path = f"{MEMORY}/auto_online_blocks"
    if tree.exists(path):
        parameters.auto_online_blocks = online_type_of(_read(tree, path, _word), path)
    for name in ("online_policy", "auto_movable_ratio", "auto_movable_numa_aware", "memmap_on_memory"):
        path = f"{PARAMETERS}/{name}"
        if tree.exists(path):
            parameters.set(name, _read(tree, path, _word), rules)
    return parameters


def _firmware_of_tree(tree: Tree) -> tuple[tuple[int, int, str], ...] | None:
    # Many architectures don't have it, and a container may hide it.
    if not tree.exists(FIRMWARE_MEMMAP):
        return None
    entries = []
    for name in sorted(filter(str.isdecimal, _list(tree, FIRMWARE_MEMMAP)), key=int):
        path = f"{FIRMWARE_MEMMAP}/{name}"
        start, end = (_read(tree, f"{path}/{file}", parse_uint) for file in ("start", "end"))
        entries.append((start, end, _read(tree, f"{path}/type", _word)))
    return tuple(entries)
