"""What /proc says about memory as a whole: zones, totals, and which physical addresses are RAM."""

from __future__ import annotations

import re
from typing import NamedTuple

from memhp.errors import InvalidInput

__all__ = [
    "IOMEM",
    "MEMINFO",
    "ZONEINFO",
    "ZoneInfo",
    "covered_pages",
    "parse_meminfo",
    "parse_system_ram",
    "parse_zoneinfo",
]

ZONEINFO = "/proc/zoneinfo"
MEMINFO = "/proc/meminfo"
IOMEM = "/proc/iomem"

_ZONE = re.compile(r"Node (\d+), zone +(\S+)")
_PCP_KEYS = {"count:", "high:", "high_max:", "batch:"}
_RESOURCE = re.compile(r" *([0-9a-f]+)-([0-9a-f]+) : (.*)")


class ZoneInfo(NamedTuple):
    """One zone of /proc/zoneinfo; all counts in pages.

    Attributes:
        node: its node.
        name: DMA, DMA32, Normal, Movable, Device.
        free: pages in the buddy allocator.
        high: the high watermark; below it the kernel reclaims.
        spanned: length of its span, with holes.
        present: pages that exist in it.
        managed: pages that were given to the allocator.
        pcp: the most that the lists of all CPUs hold or may hold.
        zspages: pages of zsmalloc, which move although they are on no LRU list.
        start_pfn: where its span begins.
    """

    node: int
    name: str
    free: int = 0
    high: int = 0
    spanned: int = 0
    present: int = 0
    managed: int = 0
    pcp: int = 0
    zspages: int = 0
    start_pfn: int = 0


def parse_zoneinfo(text: str) -> list[ZoneInfo]:
    """Read /proc/zoneinfo (mm/vmstat.c, ``zoneinfo_show_print``); zones without pages are there too.

    Raises:
        InvalidInput: it has no zone.
    """
    parts = re.split(r"(?m)^(?=Node \d+, zone)", text)
    zones = [_zone(part) for part in parts if _ZONE.match(part)]
    if not zones:
        raise InvalidInput(text[:80], ZONEINFO, "blocks that begin with 'Node 0, zone'")
    return zones


def _zone(text: str) -> ZoneInfo:
    head = _ZONE.match(text)
    values: dict[str, int] = {}
    held: dict[str, int] = {}
    pcp = 0
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or not words[-1].isdigit():
            continue
        if words[0] in _PCP_KEYS:
            held[words[0]] = int(words[-1])
            if words[0] == "batch:":
                # A list is trimmed by a batch once it is over its mark, so it can be over it by one.
                pcp += max(held.values()) + held["batch:"]
                held.clear()
        else:
            # The first zone of a node begins with statistics of the node; the zone's own come later.
            values[" ".join(words[:-1]).rstrip(":")] = int(words[-1])
    return ZoneInfo(
        node=int(head[1]) if head else 0,
        name=head[2] if head else "",
        free=values.get("pages free", values.get("nr_free_pages", 0)),
        high=values.get("high", 0),
        spanned=values.get("spanned", 0),
        present=values.get("present", 0),
        managed=values.get("managed", 0),
        pcp=pcp,
        zspages=values.get("nr_zspages", 0),
        start_pfn=values.get("start_pfn", 0),
    )


def parse_meminfo(text: str) -> dict[str, int]:
    """Read /proc/meminfo or a node's meminfo: names and bytes (HugePages_* are numbers of huge pages)."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"(?:Node \d+ )?(\S+): +(\d+)( kB)?", line)
        if match:
            found[match[1]] = int(match[2]) * (1024 if match[3] else 1)
    return found


def parse_system_ram(text: str) -> list[tuple[int, int, str]] | None:
    """Give the ranges of /proc/iomem that are RAM, ascending: first byte, last byte, name.

    The name is ``System RAM``, or that of the driver which added it: ``System RAM (virtio_mem)``. None if the kernel
    doesn't tell: to others than root every address is 0.
    """
    found = []
    for line in text.splitlines():
        match = _RESOURCE.fullmatch(line)
        if match and match[3].startswith("System RAM"):
            found.append((int(match[1], 16), int(match[2], 16), match[3]))
    return sorted(found) if any(last for _, last, _ in found) else None


def covered_pages(ram: list[tuple[int, int, str]], start_pfn: int, nr_pages: int, page_size: int) -> int:
    """Count the pages of a range that are RAM, as the kernel does before it takes them offline.

    Each resource counts with its whole pages only (kernel/resource.c, ``walk_system_ram_range``).
    """
    end_pfn = start_pfn + nr_pages
    return sum(max(0, min(end_pfn, (last + 1) // page_size) - max(start_pfn, -(-first // page_size))) for first, last, _ in ram)
