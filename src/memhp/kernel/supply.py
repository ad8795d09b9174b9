"""Where pages come from, and the records of the runs that are in use: what :class:`memhp.kernel.pages.Pages` stands on."""

from __future__ import annotations

import bisect
import contextlib
import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, InvalidInput
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.buddy import Buddy
from memhp.kernel.holdings import Allocation, Extent
from memhp.kernel.kinds import HUGE_ORDER, Leaving, MigrateType, PageKind
from memhp.kernel.section import Section, aligned, lowest_bits, runs_of
from memhp.kernel.zones import NodeState, Zone, ZoneType
from memhp.locking import Mutex
from memhp.units import Pfn, whole_number

if TYPE_CHECKING:
    from memhp.kernel.chunks import Chunks
    from memhp.kernel.machine import Machine

__all__ = ["Supply"]


class Supply:
    """The free pages of one machine, and the runs of those that are in use.

    Attributes:
        lock: guards all of it.
        huge_pool: allocations of free huge pages, by identity; some may have none any more.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        # The kernel has a lock per zone; one for all keeps an allocation over several zones in one piece.
        self.lock = Mutex("zone->lock", machine.dep, interruptible=False)
        self.huge_pool: dict[int, Allocation] = {}
        self._buddy: Buddy | None = None
        self._chunks: Chunks | None = None

    # -- what is free

    @property
    def buddy(self) -> Buddy:
        """The free pages; set up when they are first asked for."""
        if self._buddy is None:
            self._buddy = Buddy(self._movable_in)
            for block in self._machine.blocks.values():
                if block.present:
                    self.come([block])
        return self._buddy

    def come(self, blocks: list[MemoryBlock]) -> None:
        """Take in the pages of blocks whose zones count them now. Called with the lock held."""
        if self._buddy is None:
            return
        for block in blocks:
            self._buddy.add(block)
            for extent in block.used:
                for section, bits in self._buddy.each(extent.start_pfn, extent.nr_pages):
                    self._buddy.clear(section, bits)
        self._resized()

    def go(self, blocks: list[MemoryBlock]) -> None:
        """Forget the pages of blocks that leave their zones. Called with the lock held."""
        if self._buddy is None:
            return
        for block in blocks:
            self._buddy.drop(block)
        self._resized()

    def _resized(self) -> None:
        if self._chunks is not None:
            self._chunks.resized()

    def drain(self) -> None:
        """Give back the pages that are at hand for single allocations. Called with the lock held."""
        if self._chunks is not None:
            self._chunks.drain()

    def without_lists(self) -> contextlib.AbstractContextManager[None]:
        """Keep single pages from changing hands without the lock, which the caller holds."""
        return contextlib.nullcontext() if self._chunks is None else self._chunks.without_lists()

    def by_distance(self, node: int | None) -> list[int]:
        """Give the nodes with memory, the nearest to ``node`` first."""
        nodes = sorted(self._machine.node_states[NodeState.N_MEMORY])
        if node is None:
            return nodes
        distances = self._machine.nodes[node].distances
        return sorted(nodes, key=lambda nid: (distances.get(nid, 20), nid))

    def zones(self, kind: MigrateType, node: int | None) -> list[Zone]:
        """Give the zones that pages of a type may come from, in the order in which they are asked (the zonelist)."""
        return self.zones_of(self.by_distance(node), kind)

    def zones_of(self, nodes: Iterable[int], kind: MigrateType = MigrateType.MOVABLE) -> list[Zone]:
        """Give the zones of the nodes that pages of a type may come from, the highest of each node first."""
        first = ZoneType.MOVABLE if kind in {MigrateType.MOVABLE, MigrateType.CMA} else ZoneType.NORMAL
        zones = (self._machine.nodes[nid].zones[zone_type] for nid in nodes for zone_type in range(first, -1, -1))
        return [zone for zone in zones if zone.present]

    def free_in(self, zone: Zone) -> int:
        """Count the free pages of a zone; those at hand for single allocations and isolated ones don't count."""
        return self.buddy.free_in(zone)

    def available(self, zones: Iterable[Zone], kind: PageKind) -> int:
        """Count the free pages of the zones that can become such pages."""
        return sum(self.buddy.available(zone, kind.migratetype, kind.order) for zone in zones)

    def reserve_cma(self, start: Pfn, nr_pages: int) -> None:
        """Give free pageblocks to CMA: only movable pages use them meanwhile, and their block can't go offline.

        Raises:
            InvalidInput: not whole pageblocks, or not free and movable.
        """
        whole_number(start, "reserve_cma: start", "a page frame")
        whole_number(nr_pages, "reserve_cma: nr_pages", "a number of pages")
        with self.lock:
            sections = self.buddy.sections
            ends = -(start % 512) or -(nr_pages % 512) or -(nr_pages < 1)
            runs = [] if ends else list(self.buddy.each(start, nr_pages)) if _known(sections, start, nr_pages) else []
            if not runs or any(section.free & bits != bits or section.block.isolated for section, bits in runs):
                raise InvalidInput(f"{start:#x}+{nr_pages:#x}", "reserve_cma", "whole pageblocks that are online and free")
            for section, bits in runs:
                for place, length in runs_of(bits):
                    for pageblock in range(place >> HUGE_ORDER, place + length >> HUGE_ORDER):
                        if section.type_at(pageblock << HUGE_ORDER) is not MigrateType.CMA:
                            section.set_type(pageblock, MigrateType.CMA)
                            section.zone_at(pageblock << HUGE_ORDER).cma += 1 << HUGE_ORDER
                self.buddy.touch(section)

    # -- runs

    def take(self, allocation: Allocation, nr_pages: int, zones: list[Zone], kind: PageKind | None = None) -> None:
        """Add pages of the zones to an allocation, of its kind or of another; all or none. Called with the lock held.

        Raises:
            HotplugError: ENOMEM.
        """
        kind = kind or allocation.kind
        free = self.available(zones, kind)
        if free < nr_pages:
            raise _too_few(allocation, nr_pages, free)
        missing = nr_pages
        for zone in zones:
            while missing and (section := self.buddy.lowest(zone, kind.migratetype, kind.order)) is not None:
                inside = next(part for other, part in section.parts if other is zone)
                missing -= self._take_in(allocation, kind, section, inside, missing)

    def _take_from(self, allocation: Allocation, nr_pages: int, blocks: list[MemoryBlock], kind: PageKind | None = None) -> None:
        kind = kind or allocation.kind
        sections = [section for block in blocks for section in self.buddy.sections_of(block)]
        free = sum(aligned(self.buddy.usable(section, kind.migratetype), kind.order).bit_count() for section in sections)
        if free < nr_pages:
            raise _too_few(allocation, nr_pages, free)
        missing = nr_pages
        for section in sections:
            for _, inside in section.parts:
                missing -= self._take_in(allocation, kind, section, inside, missing)

    def _take_in(self, allocation: Allocation, kind: PageKind, section: Section, inside: int, missing: int) -> int:
        bits = aligned(self.buddy.usable(section, kind.migratetype) & inside, kind.order)
        count = bits.bit_count()
        if count > missing:
            bits, count = lowest_bits(bits, missing), missing
        if count:
            self._occupy_in(allocation, section, bits, kind)
        return count

    def _occupy_in(self, allocation: Allocation, section: Section, bits: int, kind: PageKind) -> None:
        self.buddy.claim(section, bits, kind.migratetype)
        self.buddy.clear(section, bits)
        for place, length in runs_of(bits):
            self.record(allocation, section.block, Pfn(section.start_pfn + place), length, kind)

    def occupy(self, allocation: Allocation, block: MemoryBlock, start: Pfn, nr_pages: int) -> None:
        """Note that free pages are in use now. Called with the lock held."""
        for section, bits in self.buddy.each(start, nr_pages):
            self._occupy_in(allocation, section, bits, allocation.kind)

    def record(self, allocation: Allocation, block: MemoryBlock, start: Pfn, nr_pages: int, kind: PageKind) -> None:
        """Note whose pages these are, that are not free; a run that goes on grows."""
        place = bisect.bisect_left(block.used, start, key=lambda extent: extent.start_pfn)
        before = block.used[place - 1] if place else None
        if before is not None and before.allocation is allocation and before.end_pfn == start and before.kind is kind:
            before.nr_pages += nr_pages
            return
        extent = Extent(start, nr_pages, block, allocation, kind)
        if kind is PageKind.HUGETLB_FREE:
            self.huge_pool[id(allocation)] = allocation
        block.used.insert(place, extent)
        allocation.extents.append(extent)

    def vacate(self, extent: Extent) -> None:
        """Give the pages of a run back. Called with the lock held."""
        self.unrecord(extent)
        for section, bits in self.buddy.each(extent.start_pfn, extent.nr_pages):
            self.buddy.give(section, bits)

    def unrecord(self, extent: Extent) -> None:
        """Forget whose pages these are."""
        place = bisect.bisect_left(extent.block.used, extent.start_pfn, key=lambda other: other.start_pfn)
        del extent.block.used[place]
        extent.allocation.extents.remove(extent)

    def extent_at(self, block: MemoryBlock, pfn: Pfn) -> Extent | None:
        """Give the run that a page is in."""
        place = bisect.bisect_right(block.used, pfn, key=lambda extent: extent.start_pfn)
        found = block.used[place - 1] if place else None
        return found if found is not None and pfn < found.end_pfn else None

    def cut_out(self, extent: Extent, first: Pfn, nr_pages: int) -> None:
        """Give back a part of a run; what is before and after it stays. Called with the lock held."""
        block, allocation, end = extent.block, extent.allocation, extent.end_pfn
        self.unrecord(extent)
        for section, bits in self.buddy.each(first, nr_pages):
            self.buddy.give(section, bits)
        for start, until in ((extent.start_pfn, first), (Pfn(first + nr_pages), end)):
            if start < until:
                self.record(allocation, block, start, until - start, extent.kind)

    def _free_in(self, block: MemoryBlock) -> int:
        return sum(section.free.bit_count() for section in self.buddy.sections_of(block))

    def _movable_in(self, section: Section, pageblock: int) -> int:
        # Movable pages in use in a pageblock, for the rule by which pageblocks change their type.
        start = section.start_pfn + (pageblock << HUGE_ORDER)
        end = start + (1 << HUGE_ORDER)
        count = self._chunks.movable_in(start, end) if self._chunks is not None and section.singles else 0
        for extent in section.block.used:
            if extent.kind.leaving is Leaving.MIGRATES:
                count += max(0, min(extent.end_pfn, end) - max(extent.start_pfn, start))
        return count


def _too_few(allocation: Allocation, nr_pages: int, free: int) -> HotplugError:
    who, what = allocation.owner or "somebody", allocation.kind.value
    return HotplugError(errno.ENOMEM, f"{who} asked for {nr_pages} {what} pages; only {free} are free where they may come from")


def _known(sections: dict[int, Section], start: Pfn, nr_pages: int) -> bool:
    return all(number in sections for number in range(start >> 15, (start + nr_pages - 1 >> 15) + 1))
