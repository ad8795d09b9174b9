"""The buddy allocator: free chunks by order and migratetype, zone by zone (``mm/page_alloc.c``).

A section keeps one number whose bits are its free pages (:mod:`memhp.kernel.section`), so what is done to many pages at a time
costs no more than what is done to one.

Where Linux takes the chunk that came to its list last, this takes the lowest, so that the same requests give the same pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from memhp.kernel.kinds import HUGE_ORDER, MAX_ORDER, MigrateType
from memhp.kernel.section import (
    FULL,
    MERGE,
    MERGE_ORDER,
    ORDERS,
    PAGEBLOCK,
    PAGEBLOCKS,
    WHOLE,
    FreeLists,
    Section,
    bits_of,
    lowest_bits,
    spread,
)
from memhp.units import PAGES_PER_SECTION, Pfn

if TYPE_CHECKING:
    from memhp.kernel.blocks import MemoryBlock
    from memhp.kernel.zones import Zone

__all__ = ["Buddy"]

_ONE_PAGEBLOCK = (1 << PAGEBLOCK) - 1
_FALLBACKS = {
    MigrateType.UNMOVABLE: (MigrateType.RECLAIMABLE, MigrateType.MOVABLE),
    MigrateType.MOVABLE: (MigrateType.RECLAIMABLE, MigrateType.UNMOVABLE),
    MigrateType.RECLAIMABLE: (MigrateType.UNMOVABLE, MigrateType.MOVABLE),
}


class Buddy:
    """The free pages of a machine. Its user holds a lock around each call.

    Args:
        movable_in: counts movable pages in use in a run of pages, which decides whether a pageblock changes its type.
    """

    def __init__(self, movable_in: Callable[[Section, int], int]) -> None:
        self.sections: dict[int, Section] = {}
        """By number; those of blocks that are online."""
        self.lists: dict[Zone, FreeLists] = {}
        self._dirty: list[Section] = []
        # The chunks of the section that was looked at last: most of the time it is the next one, too.
        self._recent: tuple[Section | None, list[int]] = (None, [])
        self._movable_in = movable_in
        # Movable pages that were taken in the call that is under way; nobody has recorded them yet.
        self._taking: dict[int, int] = {}

    # -- what there is

    def add(self, block: MemoryBlock) -> None:
        """Take in the pages of a block that has come online; all are free and movable."""
        first, end = block.start_pfn // PAGES_PER_SECTION, block.end_pfn // PAGES_PER_SECTION
        for number in range(first, end):
            parts: dict[Zone, int] = {}
            base = number * PAGES_PER_SECTION
            for zone, start, nr_pages in block.present:
                low, high = max(start, base), min(start + nr_pages, base + PAGES_PER_SECTION)
                if low < high:
                    whole = high - low == PAGES_PER_SECTION
                    parts[zone] = parts.get(zone, 0) | (FULL if whole else bits_of(low - base, high - low))
                self.lists_of(zone)
            free = FULL if FULL in parts.values() else sum(parts.values())
            section = self.sections[number] = Section(number, block, tuple(parts.items()), free)
            if len(parts) == 1:
                section.cpu_lists = self.lists_of(section.parts[0][0]).cpu
            self._dirty.append(section)

    def drop(self, block: MemoryBlock) -> None:
        """Forget the pages of a block."""
        for section in self.sections_of(block):
            self._refresh_one(section, gone=True)
            section.dirty = False
            del self.sections[section.nr]

    def sections_of(self, block: MemoryBlock) -> list[Section]:
        """Give the sections of a block that are known."""
        numbers = range(block.start_pfn // PAGES_PER_SECTION, block.end_pfn // PAGES_PER_SECTION)
        return [section for number in numbers if (section := self.sections.get(number)) is not None]

    def lists_of(self, zone: Zone) -> FreeLists:
        """Give the lists of a zone."""
        lists = self.lists.get(zone)
        if lists is None:
            lists = self.lists[zone] = FreeLists(zone)
        return lists

    def touch(self, section: Section) -> None:
        """Note that a section's pages or types have changed."""
        if self._recent[0] is section:
            self._recent = (None, [])
        if not section.dirty:
            section.dirty = True
            self._dirty.append(section)

    def _chunks(self, section: Section) -> list[int]:
        if self._recent[0] is not section:
            self._recent = (section, section.chunks())
        return self._recent[1]

    def refresh(self) -> None:
        """Bring the zones' lists up to date."""
        dirty, self._dirty = self._dirty, []
        for section in dirty:
            if section.dirty:
                section.dirty = False
                self._refresh_one(section)

    def _refresh_one(self, section: Section, *, gone: bool = False) -> None:
        if gone:
            for zone, _ in section.parts:
                self.lists_of(zone).note(section, {})
            return
        if section.whole() and section.parts[0][1] == FULL:
            self.lists_of(section.parts[0][0]).note(section, WHOLE)
            return
        if not section.free:
            for zone, _ in section.parts:
                self.lists_of(zone).note(section, {})
            return
        section.settle()
        chunks, types = self._chunks(section), section.by_type()
        for zone, inside in section.parts:
            counts = {kind: tuple((chunk & bits & inside).bit_count() for chunk in chunks) for kind, bits in types.items()}
            self.lists_of(zone).note(section, {kind: found for kind, found in counts.items() if any(found)})

    # -- taking

    def take(self, zone: Zone, order: int, kind: MigrateType) -> Pfn | None:
        """Take the best chunk of an order: of the own type, the smallest that does and of these the lowest; else another's.

        The rest of a larger chunk stays free (``__rmqueue``).
        """
        self.refresh()
        lists = self.lists_of(zone)
        found = self._smallest(lists, order, kind)
        if found is None and kind is MigrateType.MOVABLE:
            found = self._smallest(lists, order, MigrateType.CMA)
        if found is None and kind in _FALLBACKS:
            found = self._fallback(lists, order, kind)
        if found is None:
            return None
        section, place, _ = found
        self.clear(section, bits_of(place, 1 << order))
        return Pfn(section.start_pfn + place)

    def take_many(self, zone: Zone, nr_chunks: int, order: int, kind: MigrateType) -> list[tuple[Section, int]]:
        """Take so many chunks, or fewer if the zone has no more: sections, and the bits of the pages taken in each.

        The same pages as so many calls of :meth:`take` would give: small chunks first.
        """
        taken: dict[int, int] = {}
        missing = nr_chunks << order
        while missing:
            self.refresh()
            found = self._run(self.lists_of(zone), order, kind, missing)
            if found is None:
                break
            section, bits = found
            self.clear(section, bits)
            taken[section.nr] = taken.get(section.nr, 0) | bits
            missing -= bits.bit_count()
            if kind is MigrateType.MOVABLE:
                self._taking = taken
        self._taking = {}
        return [(self.sections[number], bits) for number, bits in taken.items()]

    def _run(self, lists: FreeLists, order: int, kind: MigrateType, missing: int) -> tuple[Section, int] | None:
        # All chunks of the smallest order in one section, or as many as are missing.
        for source in (kind, MigrateType.CMA) if kind is MigrateType.MOVABLE else (kind,):
            for size in range(order, ORDERS):
                section = lists.lowest(self.sections, source, size)
                if section is not None:
                    return section, self._part(lists.zone, section, source, size, missing)
        if kind not in _FALLBACKS:
            return None
        found = self._fallback(lists, order, kind)
        if found is None:
            return None
        section, place, size = found
        # What stays another type's is taken chunk by chunk: the next one comes from what is the largest then. Small ones for
        # movable pages don't: the rest of the smallest is the smallest again.
        whole = section.type_at(place) is kind or (size < HUGE_ORDER // 2 and kind is MigrateType.MOVABLE)
        return section, bits_of(place, min(missing, 1 << size) if whole else 1 << order)

    def _part(self, zone: Zone, section: Section, kind: int, order: int, missing: int) -> int:
        if missing >= PAGES_PER_SECTION and section.whole() and section.parts[0][1] == FULL:
            return FULL
        heads = self._heads(zone, section, kind)[order]
        while heads.bit_count() << order > missing:
            # Too many: those from the middle on are not needed, or the last is split.
            if heads.bit_count() == 1:
                return bits_of(heads.bit_length() - 1, missing)
            heads = lowest_bits(heads, max(missing >> order, 1))
        return spread(heads, order)

    def _heads(self, zone: Zone, section: Section, kind: int) -> list[int]:
        bits = section.by_type().get(kind, 0)
        inside = next((part for other, part in section.parts if other is zone), 0)
        if bits == FULL == inside:
            return self._chunks(section)
        return [chunk & bits & inside for chunk in self._chunks(section)]

    def _smallest(self, lists: FreeLists, order: int, kind: int) -> tuple[Section, int, int] | None:
        for size in range(order, ORDERS):
            section = lists.lowest(self.sections, kind, size)
            if section is not None:
                heads = self._heads(lists.zone, section, kind)[size]
                return section, (heads & -heads).bit_length() - 1, size
        return None

    def _fallback(self, lists: FreeLists, order: int, kind: MigrateType) -> tuple[Section, int, int] | None:
        # __rmqueue_fallback(): from the largest chunk of another type, so that a whole pageblock changes sides if possible.
        for size in range(MAX_ORDER, order - 1, -1):
            for other in _FALLBACKS[kind]:
                section = lists.lowest(self.sections, other, size)
                if section is None:
                    continue
                if size < HUGE_ORDER // 2 and kind is MigrateType.MOVABLE:
                    return next(found for smaller in _FALLBACKS[kind] if (found := self._smallest(lists, order, smaller)))
                heads = self._heads(lists.zone, section, other)[size]
                place = (heads & -heads).bit_length() - 1
                if not self._claim(section, place, size, kind):
                    return section, place, size
                self.refresh()
                return self._smallest(lists, order, kind)
        return None

    def _claim(self, section: Section, place: int, order: int, kind: MigrateType) -> bool:
        # steal_suitable_fallback(): the pageblock changes its type if half of it is free or used in the new way.
        first = place >> HUGE_ORDER
        if order >= HUGE_ORDER:
            for pageblock in range(first, first + (1 << order - HUGE_ORDER)):
                section.set_type(pageblock, kind)
        else:
            free = (section.free >> (first << HUGE_ORDER) & _ONE_PAGEBLOCK).bit_count()
            movable = self._movable_in(section, first)
            movable += (self._taking.get(section.nr, 0) >> (first << HUGE_ORDER) & _ONE_PAGEBLOCK).bit_count()
            was = section.type_at(place)
            alike = movable if kind is MigrateType.MOVABLE else PAGEBLOCK - free - movable if was is MigrateType.MOVABLE else 0
            if free + alike < PAGEBLOCK // 2:
                return False
            section.set_type(first, kind)
        self.touch(section)
        return True

    # -- changing

    def clear(self, section: Section, bits: int) -> None:
        """Note that pages are not free any more."""
        section.free ^= bits
        self.touch(section)

    def give(self, section: Section, bits: int) -> None:
        """Note that pages are free again; they merge with their buddies."""
        free = section.free | bits
        section.free = FULL if free == FULL else free  # one number for all that are wholly free
        self.touch(section)

    def each(self, start: Pfn, nr_pages: int) -> Iterator[tuple[Section, int]]:
        """Give the sections of a run of pages, each with the bits of the pages in it."""
        while nr_pages > 0:
            section = self.sections[start // PAGES_PER_SECTION]
            place = start - section.start_pfn
            part = min(nr_pages, PAGES_PER_SECTION - place)
            yield section, FULL if part == PAGES_PER_SECTION else bits_of(place, part)
            start, nr_pages = Pfn(start + part), nr_pages - part

    def claim(self, section: Section, bits: int, kind: MigrateType) -> None:
        """Give the pageblocks of pages to a type: those that are free, and those of which the pages are at least half."""
        if kind is MigrateType.MOVABLE and section.types is None:
            return
        self.touch(section)
        if bits == FULL == section.free and (section.types is None or MERGE.issuperset(section.types)):
            section.types = None if kind is MigrateType.MOVABLE else bytearray([kind]) * PAGEBLOCKS
            return
        first, last = (bits & -bits).bit_length() - 1 >> HUGE_ORDER, bits.bit_length() - 1 >> HUGE_ORDER
        for pageblock in range(first, last + 1):
            inside = (bits >> (pageblock << HUGE_ORDER) & _ONE_PAGEBLOCK).bit_count()
            free = (section.free >> (pageblock << HUGE_ORDER) & _ONE_PAGEBLOCK).bit_count()
            if inside and section.type_at(pageblock << HUGE_ORDER) in MERGE and (free == PAGEBLOCK or 2 * inside >= PAGEBLOCK):
                section.set_type(pageblock, kind)

    def lowest(self, zone: Zone, kind: MigrateType, order: int) -> Section | None:
        """Give the lowest section of a zone that has a chunk of at least this order for pages of this type, other types' too."""
        self.refresh()
        lists = self.lists_of(zone)
        best: Section | None = None
        for one in _open_to(kind):
            totals = lists.totals[one]
            for size in range(order, ORDERS):
                section = lists.lowest(self.sections, one, size) if totals[size] else None
                if section is not None and (best is None or section.nr < best.nr):
                    best = section
        return best

    def available(self, zone: Zone, kind: MigrateType, order: int) -> int:
        """Count the free pages of a zone that are in chunks of at least this order and may become pages of this type."""
        self.refresh()
        totals = self.lists_of(zone).totals
        return sum(totals[one][size] << size for one in _open_to(kind) for size in range(order, ORDERS))

    def usable(self, section: Section, kind: MigrateType) -> int:
        """Give the free pages of a section that a run of this type may have: not another purpose's reserve."""
        if section.types is None:
            return section.free
        return section.free & sum(pages for other, pages in section.by_type().items() if other in _open_to(kind))

    def free_in(self, zone: Zone) -> int:
        """Count the free pages of a zone that can be allocated."""
        self.refresh()
        return self.lists_of(zone).free

    def totals(self, zone: Zone) -> Sequence[Sequence[int]]:
        """Give the free chunks of a zone by migratetype and order."""
        self.refresh()
        return self.lists_of(zone).totals


def _open_to(kind: MigrateType) -> tuple[MigrateType, ...]:
    # Whose pageblocks pages of a type can come from: CMA is for movable ones, HIGHATOMIC for its own only.
    if kind not in MERGE:
        return (kind,)
    return (*MERGE_ORDER, MigrateType.CMA) if kind is MigrateType.MOVABLE else MERGE_ORDER
