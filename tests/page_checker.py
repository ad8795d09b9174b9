"""Recompute, page by page, all that the page allocator knows, and compare."""

from __future__ import annotations

from memhp import Machine
from memhp.kernel.holdings import Holding
from memhp.kernel.kinds import MAX_ORDER, MigrateType
from memhp.kernel.section import Section
from memhp.kernel.zones import Zone
from memhp.units import PAGES_PER_SECTION, Pfn

__all__ = ["check_pages", "owners_in"]


def owners_in(machine: Machine, section: Section) -> list[object]:
    """Say of each page of a section who has it: a holding, 'cpu', 'hole' or None."""
    base = section.start_pfn
    found: list[object] = ["hole"] * PAGES_PER_SECTION
    for _, start, nr_pages in section.block.present:
        for pfn in range(max(start, base), min(start + nr_pages, base + PAGES_PER_SECTION)):
            found[pfn - base] = None
    for extent in section.block.used:
        for pfn in range(max(extent.start_pfn, base), min(extent.end_pfn, base + PAGES_PER_SECTION)):
            assert found[pfn - base] is None, f"page {pfn:#x} is in two runs, or in none of the block's"
            found[pfn - base] = extent.allocation
    if section.singles:
        pages = machine.pages.chunks.map
        for pfn in range(base, base + PAGES_PER_SECTION):
            if pages.kinds[pfn]:
                assert found[pfn - base] is None, f"page {pfn:#x} is single and in a run"
                found[pfn - base] = pages.holder_of(Pfn(pfn)) or "cpu"
    return found


def naive_chunks(free: list[bool], types: list[MigrateType]) -> list[tuple[int, int]]:
    """Give the chunks (first page, order) of free pages, by dividing what isn't wholly free."""
    found = []

    def divide(start: int, order: int) -> None:
        pages = free[start : start + (1 << order)]
        blocks = set(types[start // 512 : max((start + (1 << order)) // 512, start // 512 + 1)])
        if all(pages) and len(blocks) == 1:
            found.append((start, order))
        elif any(pages):
            divide(start, order - 1)
            divide(start + (1 << order - 1), order - 1)

    for start in range(0, PAGES_PER_SECTION, 1 << MAX_ORDER):
        divide(start, MAX_ORDER)
    return found


def check_pages(machine: Machine) -> None:
    """Hold the free pages, the zones' lists and the records of who has what against each other."""
    buddy = machine.pages.buddy
    totals: dict[tuple[Zone, int, int], int] = {}
    known = {zone: buddy.totals(zone) for zone in buddy.lists}
    for section in buddy.sections.values():
        owners = owners_in(machine, section)
        free = [bool(section.free >> place & 1) for place in range(PAGES_PER_SECTION)]
        assert free == [owner is None for owner in owners]
        held = sum(1 for owner in owners if owner == "cpu" or (isinstance(owner, Holding) and not hasattr(owner, "extents")))
        assert section.singles == held
        types = [
            MigrateType.ISOLATE if section.block.isolated else section.type_at(place)
            for place in range(0, PAGES_PER_SECTION, 512)
        ]
        for start, order in naive_chunks(free, types):
            zone = next(
                zone for zone, first, nr_pages in section.block.present if first <= section.start_pfn + start < first + nr_pages
            )
            key = (zone, types[start // 512], order)
            totals[key] = totals.get(key, 0) + 1
    listed = {
        (zone, kind, order): count
        for zone, by_type in known.items()
        for kind, counts in enumerate(by_type)
        for order, count in enumerate(counts)
        if count
    }
    assert listed == totals
    for zone in buddy.lists:
        free_pages = sum(
            count << order for (other, kind, order), count in totals.items() if other is zone and kind != MigrateType.ISOLATE
        )
        assert buddy.free_in(zone) == free_pages
