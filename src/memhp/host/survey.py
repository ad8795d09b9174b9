"""What explain and plan need to know of a machine besides its blocks: zones, RAM, free memory, huge pages."""

from __future__ import annotations

import errno
import functools
from typing import NamedTuple

from memhp.abi.paths import NODE
from memhp.abi.proc import IOMEM, MEMINFO, ZONEINFO, ZoneInfo, parse_meminfo, parse_system_ram, parse_zoneinfo
from memhp.abi.tree import Tree
from memhp.errors import InvalidInput
from memhp.host.block import Block
from memhp.host.inventory import Host
from memhp.units import PAGE_SIZE, parse_ids

__all__ = ["HugePool", "Survey"]

_ARCH = "/proc/sys/kernel/arch"


class HugePool(NamedTuple):
    """A pool of huge pages of one size, in huge pages: of a node, or (with ``reserved``) of the machine."""

    page_bytes: int
    total: int
    free: int
    reserved: int = 0


class _Facts(NamedTuple):
    tree: Tree
    blocks: tuple[Block, ...]
    zones: tuple[ZoneInfo, ...]
    ram: list[tuple[int, int, str]] | None
    meminfo: dict[str, int]
    memory_nodes: tuple[int, ...]
    arch: str
    page_size: int = PAGE_SIZE


class Survey(_Facts):
    """A machine at one moment, for questions about what can change; everything that could not be read is None or empty.

    Attributes:
        tree: where it came from.
        blocks: ascending.
        zones: those of /proc/zoneinfo, also the empty ones.
        ram: the ranges that are RAM, None if the machine doesn't tell.
        meminfo: /proc/meminfo in bytes.
        memory_nodes: nodes that have memory online.
        arch: x86_64, aarch64, ...; '' if unknown (before 6.1).
        page_size: bytes; a copy doesn't say, so it is 4096 unless the caller knows better.
    """

    @classmethod
    def take(cls, host: Host, *, page_size: int = PAGE_SIZE) -> Survey:
        """Read everything once.

        Raises:
            HostError: as ``Host.blocks`` does.
        """
        blocks = host.blocks(zones=True)
        iomem = _text(host.tree, IOMEM)
        zoneinfo = _text(host.tree, ZONEINFO)
        with_memory = _text(host.tree, f"{NODE}/has_memory")
        nodes = parse_ids(with_memory.strip()) if with_memory else sorted({node for b in blocks if b.online for node in b.nodes})
        return cls(
            tree=host.tree,
            blocks=blocks,
            zones=tuple(_zones(zoneinfo)) if zoneinfo else (),
            ram=parse_system_ram(iomem) if iomem else None,
            meminfo=parse_meminfo(_text(host.tree, MEMINFO) or ""),
            memory_nodes=tuple(nodes) or (0,),
            arch=(_text(host.tree, _ARCH) or "").strip(),
            page_size=page_size,
        )

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return self.blocks[0].size

    @property
    def block_pages(self) -> int:
        """Pages of a block."""
        return self.block_size // self.page_size

    @functools.cached_property
    def by_id(self) -> dict[int, Block]:
        """The blocks by id."""
        return {block.id: block for block in self.blocks}

    def first_pfn(self, block: Block) -> int:
        """Give the pfn with which a block begins."""
        return block.start // self.page_size

    def node_of(self, block: Block) -> int:
        """Give the node of a block, 0 on a machine without nodes."""
        return block.nodes[0] if block.nodes else 0

    def zone(self, node: int, name: str) -> ZoneInfo | None:
        """Give a zone, or None."""
        return next((zone for zone in self.zones if zone.node == node and zone.name == name), None)

    def free_pages(self, node: int) -> int | None:
        """Give the free pages of a node, None if unknown."""
        zones = [zone for zone in self.zones if zone.node == node]
        return sum(zone.free for zone in zones) if zones else None

    def targets(self, node: int) -> tuple[int, ...]:
        """Give the nodes that pages of a node move to when their block goes offline.

        All others that have memory, and the own one only if there is no other (mm/memory_hotplug.c, ``do_migrate_range``).
        """
        return tuple(other for other in self.memory_nodes if other != node) or (node,)

    def room_for(self, node: int) -> tuple[tuple[int, int | None], ...]:
        """Give those nodes with their free pages (None: unknown)."""
        known = self._rooms.get(node)
        if known is None:
            known = self._rooms[node] = tuple((target, self.free_pages(target)) for target in self.targets(node))
        return known

    @functools.cached_property
    def _rooms(self) -> dict[int, tuple[tuple[int, int | None], ...]]:
        return {}

    def huge_pools(self, node: int | None = None) -> list[HugePool]:
        """Give the pools of huge pages of a node, or of the machine."""
        base = "/sys/kernel/mm/hugepages" if node is None else f"{NODE}/node{node}/hugepages"
        try:
            names = self.tree.list(base)
        except OSError:
            return []
        pools = []
        for name in names:
            numbers = [
                _number(self.tree, f"{base}/{name}/{file}") for file in ("nr_hugepages", "free_hugepages", "resv_hugepages")
            ]
            size = name.removeprefix("hugepages-").removesuffix("kB")
            if size.isdigit():
                pools.append(HugePool(int(size) * 1024, *numbers))
        return pools


def _zones(text: str) -> list[ZoneInfo]:
    try:
        return parse_zoneinfo(text)
    except InvalidInput:
        return []


def _text(tree: Tree, path: str) -> str | None:
    try:
        return tree.read(path)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR}:
            return None
        raise


def _number(tree: Tree, path: str) -> int:
    text = (_text(tree, path) or "").strip()
    return int(text) if text.isascii() and text.isdigit() else 0
