"""The buddy allocator against a naive one that keeps lists of chunks, splits them and merges them one by one."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memhp import Machine
from memhp.kernel.buddy import Buddy
from memhp.kernel.kinds import MAX_ORDER, MigrateType
from memhp.kernel.section import PAGEBLOCK, Section, aligned, chunks_of, runs_of
from memhp.units import PAGES_PER_SECTION, Pfn
from support import Boot

ORDINARY = [MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE]
FALLBACKS = {
    MigrateType.UNMOVABLE: [MigrateType.RECLAIMABLE, MigrateType.MOVABLE],
    MigrateType.MOVABLE: [MigrateType.RECLAIMABLE, MigrateType.UNMOVABLE],
    MigrateType.RECLAIMABLE: [MigrateType.UNMOVABLE, MigrateType.MOVABLE],
}


class Naive:
    """The kernel's allocator without any cleverness: sets of chunks, and a type for each pageblock."""

    def __init__(self, nr_pages: int) -> None:
        self.types = dict.fromkeys(range(nr_pages // PAGEBLOCK), MigrateType.MOVABLE)
        self.chunks = {(start, MAX_ORDER) for start in range(0, nr_pages, 1 << MAX_ORDER)}
        self.movable: set[int] = set()

    def type_of(self, page: int) -> MigrateType:
        return self.types[page // PAGEBLOCK]

    def smallest(self, order: int, kind: MigrateType) -> tuple[int, int] | None:
        fitting = [(size, start) for start, size in self.chunks if size >= order and self.type_of(start) is kind]
        return (min(fitting)[1], min(fitting)[0]) if fitting else None

    def alloc(self, order: int, kind: MigrateType) -> int | None:
        found = self.smallest(order, kind) or self.fall_back(order, kind)
        if found is None:
            return None
        start, size = found
        self.chunks.remove(found)
        while size > order:
            size -= 1
            self.chunks.add((start + (1 << size), size))
        if kind is MigrateType.MOVABLE:
            self.movable |= set(range(start, start + (1 << order)))
        return start

    def fall_back(self, order: int, kind: MigrateType) -> tuple[int, int] | None:
        for size in range(MAX_ORDER, order - 1, -1):
            for other in FALLBACKS[kind]:
                starts = [start for start, its in self.chunks if its == size and self.type_of(start) is other]
                if not starts:
                    continue
                if kind is MigrateType.MOVABLE and size < 4:
                    return next(found for one in FALLBACKS[kind] if (found := self.smallest(order, one)))
                return self.smallest(order, kind) if self.claim(min(starts), size, kind) else (min(starts), size)
        return None

    def claim(self, start: int, order: int, kind: MigrateType) -> bool:
        first = start // PAGEBLOCK
        if order < 9:
            inside = range(first * PAGEBLOCK, (first + 1) * PAGEBLOCK)
            free = sum(1 << size for place, size in self.chunks if place // PAGEBLOCK == first and size < 9)
            movable = len(self.movable & set(inside))
            others = PAGEBLOCK - free - movable if self.types[first] is MigrateType.MOVABLE else 0
            if free + (movable if kind is MigrateType.MOVABLE else others) < PAGEBLOCK // 2:
                return False
        for pageblock in range(first, first + max(1, (1 << order) // PAGEBLOCK)):
            self.types[pageblock] = kind
        self.merge_blocks(first)
        return True

    def free(self, start: int, order: int) -> None:
        self.movable -= set(range(start, start + (1 << order)))
        while order < MAX_ORDER:
            buddy = start ^ (1 << order)
            if (buddy, order) not in self.chunks:
                break
            self.chunks.remove((buddy, order))
            start, order = min(start, buddy), order + 1
        self.chunks.add((start, order))
        self.merge_blocks(start // PAGEBLOCK)

    def merge_blocks(self, pageblock: int) -> None:
        # The two halves of one free chunk of the largest order have one type.
        first = pageblock & ~1
        if (first * PAGEBLOCK, MAX_ORDER) in self.chunks:
            self.types[first + 1] = self.types[first]

    def totals(self) -> dict[MigrateType, list[int]]:
        return {
            kind: [sum(1 for start, size in self.chunks if size == order and self.type_of(start) is kind) for order in range(11)]
            for kind in ORDINARY
        }


class BuddyAgainstNaive(RuleBasedStateMachine):
    """Both get the same requests and must give the same pages, and have the same chunks and types after each."""

    def __init__(self) -> None:
        super().__init__()
        machine = Machine.boot("256MiB")
        self.block, self.zone = machine.block(1), machine.zone(0, "DMA32")
        self.held: list[tuple[int, int]] = []
        self.naive = Naive(PAGES_PER_SECTION)
        self.movable: set[int] = set()  # as of before each request
        self.buddy = Buddy(self.movable_in)
        self.buddy.add(self.block)
        self.section = self.buddy.sections[1]
        for _ in range(30):  # few chunks are left, so that requests meet
            self.take(MAX_ORDER, MigrateType.UNMOVABLE if len(self.held) % 2 else MigrateType.MOVABLE)

    def movable_in(self, section: Section, pageblock: int) -> int:
        return len(self.movable & set(range(pageblock * PAGEBLOCK, (pageblock + 1) * PAGEBLOCK)))

    def take(self, order: int, kind: MigrateType) -> None:
        expected = self.naive.alloc(order, kind)
        got = self.buddy.take(self.zone, order, kind)
        self.movable = set(self.naive.movable)
        assert got == (None if expected is None else PAGES_PER_SECTION + expected)
        if expected is not None:
            self.held.append((expected, order))

    @rule(order=st.integers(0, MAX_ORDER), kind=st.sampled_from(ORDINARY))
    def alloc(self, order: int, kind: MigrateType) -> None:
        """Take one chunk."""
        self.take(order, kind)

    @rule(count=st.integers(1, 700), order=st.integers(0, 4), kind=st.sampled_from(ORDINARY))
    def alloc_many(self, count: int, order: int, kind: MigrateType) -> None:
        """Take many: the same pages as one by one."""
        expected = []
        for _ in range(count):
            start = self.naive.alloc(order, kind)
            if start is None:
                break
            expected.append(start)
        taken = self.buddy.take_many(self.zone, count, order, kind)
        self.movable = set(self.naive.movable)
        got = {place for _, bits in taken for first, length in runs_of(bits) for place in range(first, first + length)}
        assert got == {page for start in expected for page in range(start, start + (1 << order))}
        self.held += [(start, order) for start in expected]

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        """Give some of what is held back."""
        for _ in range(data.draw(st.integers(1, 200), "how many")):
            if not self.held:
                return
            start, order = self.held.pop(data.draw(st.integers(0, len(self.held) - 1), "which"))
            self.naive.free(start, order)
            self.buddy.give(self.section, ((1 << (1 << order)) - 1) << start)
            self.movable = set(self.naive.movable)

    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        """Somebody frees all but a part of a chunk."""
        large = [one for one in self.held if one[1] > 3]
        if large:
            start, order = data.draw(st.sampled_from(large), "chunk")
            self.held.remove((start, order))
            self.held += [(start, order - 1), (start + (1 << order - 1), order - 1)]

    @invariant()
    def same(self) -> None:
        """Chunks by type and order, and free pages."""
        totals = self.buddy.totals(self.zone)
        assert {kind: list(totals[kind]) for kind in ORDINARY} == self.naive.totals()
        assert self.buddy.free_in(self.zone) == sum(1 << order for _, order in self.naive.chunks)


TestBuddyAgainstNaive = BuddyAgainstNaive.TestCase
TestBuddyAgainstNaive.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_many_pages_of_another_type_come_from_the_largest_chunk_each() -> None:
    """Of two chunks of 32 pages in pageblocks that can't be claimed each gives a page, and not one of them both."""
    both = BuddyAgainstNaive()
    both.alloc_many(count=101, order=4, kind=MigrateType.RECLAIMABLE)
    both.alloc_many(count=88, order=2, kind=MigrateType.RECLAIMABLE)
    both.alloc_many(count=2, order=0, kind=MigrateType.UNMOVABLE)
    assert both.held[-2:] == [(32704, 0), (32736, 0)]
    both.same()


def test_chunks_are_the_coarsest_division() -> None:
    """Five free pages from page 3 on are 1 + 4; from page 4 on 4 + 1."""

    def starts(free: int) -> dict[int, list[int]]:
        return {order: [place for place, _ in runs_of(chunk)] for order, chunk in enumerate(chunks_of(free)) if chunk}

    assert starts(0b11111000) == {0: [3], 2: [4]}
    assert starts(0b111110000) == {0: [8], 2: [4]}
    assert starts((1 << 2048) - 1) == {10: [0, 1024]}
    assert starts(0) == {}


def test_two_pageblocks_of_different_purpose_don_t_merge() -> None:
    """1024 free pages of two such pageblocks are two chunks of order 9."""
    assert [order for order, chunk in enumerate(chunks_of((1 << 1024) - 1, apart=1)) if chunk] == [9]


def test_whole_chunks_of_a_run() -> None:
    """Pages 1 to 9 have the aligned fours from 4 to 7."""
    assert list(runs_of(aligned(0b1111111110, 2))) == [(4, 4)]
    assert list(runs_of(aligned(0b1110, 2))) == []


def test_a_zone_s_chunks_end_where_it_ends(boot: Boot) -> None:
    """DMA has pages 1 to 0x9e and 0x100 to 0xfff, so that its lower part is in small chunks at both ends."""
    machine = boot("1GiB")
    buddy = machine.pages.buddy
    dma = list(buddy.totals(machine.zone(0, "DMA"))[MigrateType.MOVABLE])
    # 1: 0x1, 0x9e; 2: 0x2, 0x9c; 4: 0x4, 0x98; 8: 0x8, 0x90; 16: 0x10, 0x80; 32: 0x20; 64: 0x40; then 0x100, 0x200, 0x400, ...
    by_hand = [2, 2, 2, 2, 2, 1, 1, 0, 1, 1, 3]
    assert sum(count << order for order, count in enumerate(dma)) == 3998
    assert sum(count << order for order, count in enumerate(by_hand)) == 3998
    assert dma == by_hand


@pytest.mark.parametrize("kind", [MigrateType.CMA, MigrateType.HIGHATOMIC])
def test_a_reserve_is_not_touched_by_others(boot: Boot, kind: MigrateType) -> None:
    """Not even when nothing else is left; CMA is for movable pages too."""
    machine = boot("256MiB")
    buddy = Buddy(lambda section, pageblock: 0)
    buddy.add(machine.block(1))
    section, zone = buddy.sections[1], machine.zone(0, "DMA32")
    for pageblock in range(64):
        section.set_type(pageblock, kind)
    buddy.touch(section)
    assert buddy.take(zone, 0, MigrateType.UNMOVABLE) is None
    expected = Pfn(PAGES_PER_SECTION) if kind is MigrateType.CMA else None
    assert buddy.take(zone, 0, MigrateType.MOVABLE) == expected
