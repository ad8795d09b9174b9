"""Watermarks, reserves and batch sizes of zones, as the kernel computes them (``mm/page_alloc.c``, ``mm/vmstat.c``)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memhp.kernel.zones import Zone, ZoneType

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["Watermarks", "batch_of", "protection_of", "stat_threshold", "watermarks_of"]

_PAGEBLOCK = 512
_RESERVE_RATIO = {ZoneType.DMA: 256, ZoneType.DMA32: 256, ZoneType.NORMAL: 32}
_PCP_TYPES = 3
"""Migratetypes that have lists of their own on each CPU (MIGRATE_PCPTYPES)."""


@dataclass(frozen=True, slots=True)
class Watermarks:
    """The marks of one zone, in pages."""

    min: int
    low: int
    high: int
    promo: int


def watermarks_of(machine: Machine, zone: Zone) -> Watermarks:
    """Compute the marks of a zone (``__setup_per_zone_wmarks``), with transparent huge pages switched on.

    On 6.12 ZONE_MOVABLE does not share in min_free_kbytes; it gets 1/1024 of itself, from 32 to 128 pages.
    """
    apart = machine.rules.value.counters == "6.12"
    zones = [other for node in machine.nodes.values() for other in node.zones]
    low = [other for other in zones if not (apart and other.type is ZoneType.MOVABLE)]
    lowmem = sum(other.managed for other in low)
    populated = sum(1 for other in zones if other.managed and other.type is not ZoneType.MOVABLE)
    share = _min_free_pages(lowmem, populated) * zone.managed
    least = min(max(zone.managed // 1024, 32), 128) if apart and zone.type is ZoneType.MOVABLE else share // (lowmem or 1)
    gap = max((share // (lowmem or 1)) // 4, zone.managed * 10 // 10000)
    return Watermarks(least, least + gap, least + 2 * gap, least + 3 * gap)


def _min_free_pages(lowmem: int, populated: int) -> int:
    # init_per_zone_wmark_min(), then khugepaged's set_recommended_min_free_kbytes(): enough pageblocks of each type.
    by_size = min(max(math.isqrt(lowmem * 4 * 16), 128), 262144) >> 2
    by_blocks = _PAGEBLOCK * populated * (2 + _PCP_TYPES * _PCP_TYPES)
    return max(by_size, min(by_blocks, lowmem // 20))


def protection_of(machine: Machine, zone: Zone) -> list[int]:
    """Compute what allocations that could use a higher zone leave in this one (``setup_per_zone_lowmem_reserve``)."""
    zones = machine.nodes[zone.nid].zones
    ratio = _RESERVE_RATIO.get(zone.type, 0) if zone.managed else 0
    reserves, above = [], 0
    for other in zones:
        if other.type > zone.type:
            above += other.managed
        reserves.append(above // ratio if ratio and other.type > zone.type else 0)
    return [*reserves, reserves[-1]]  # ZONE_DEVICE has no managed pages


def batch_of(zone: Zone) -> int:
    """Compute how many pages a CPU takes from the zone at a time (``zone_batchsize``)."""
    size = max(min(zone.managed >> 10, 256) // 4, 1)
    return max((1 << (size + size // 2).bit_length() - 1) - 1, 1)


def stat_threshold(zone: Zone, cpus: int) -> int:
    """Compute how far a CPU's counters may be off (``calculate_normal_threshold``)."""
    return min(125, 2 * cpus.bit_length() * (1 + (zone.managed >> 15).bit_length()))
