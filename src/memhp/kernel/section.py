"""The free pages of a section as the bits of one number, and the lists of a zone's free chunks that follow from them.

Buddies merge at once, so which chunks there are follows from which pages are free and what their pageblocks are for: it is the
coarsest division into aligned powers of two. Chunks are worked out when somebody asks.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memhp.kernel.kinds import HUGE_ORDER, MAX_ORDER, MigrateType
from memhp.units import PAGES_PER_SECTION, Pfn

if TYPE_CHECKING:
    from memhp.kernel.blocks import MemoryBlock
    from memhp.kernel.zones import Zone

__all__ = [
    "FULL",
    "MERGE",
    "MERGE_ORDER",
    "ORDERS",
    "PAGEBLOCK",
    "PAGEBLOCKS",
    "WHOLE",
    "FreeLists",
    "Section",
    "aligned",
    "bits_of",
    "chunks_of",
    "lowest_bits",
    "runs_of",
    "spread",
]

PAGEBLOCK = 1 << HUGE_ORDER
PAGEBLOCKS = PAGES_PER_SECTION // PAGEBLOCK
ORDERS = MAX_ORDER + 1
FULL = (1 << PAGES_PER_SECTION) - 1
"""The bits of a section whose pages are all free."""
_STARTS = tuple(FULL // ((1 << (1 << order)) - 1) for order in range(ORDERS))
"""For each order a bit where a chunk of that order can begin."""
_MANY_RUNS = 64
_ONES, _ZEROS = b"\xff" * (PAGEBLOCK // 8), bytes(PAGEBLOCK // 8)

MERGE_ORDER = (MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE)
MERGE = frozenset(MERGE_ORDER)

Counts = tuple[int, ...]
"""Free chunks by order."""
NONE: Counts = (0,) * ORDERS
WHOLE: dict[int, Counts] = {MigrateType.MOVABLE: (*(0,) * MAX_ORDER, PAGES_PER_SECTION >> MAX_ORDER)}


def bits_of(start: int, nr_pages: int) -> int:
    """Give the bits of a run of pages."""
    return ((1 << nr_pages) - 1) << start


def chunks_of(free: int, apart: int = 0) -> list[int]:
    """Give the free chunks of a section: for each order a number with a bit where one begins.

    Args:
        free: its free pages.
        apart: a bit for each chunk of the largest order whose two pageblocks must not merge.
    """
    found: list[int] = []
    level = free
    for order in range(MAX_ORDER):
        if not level:
            return [*found, *(0,) * (ORDERS - order)]
        half = 1 << order
        above = level & (level >> half) & _STARTS[order + 1]
        if apart and order == HUGE_ORDER:
            above &= ~apart
        found.append(level ^ (above | (above << half)))
        level = above
    return [*found, level]


@functools.lru_cache(maxsize=256)
def _bits_by_type(types: bytes) -> dict[int, int]:
    # Pages are taken one by one and the types stay, so the answer is mostly that of the last time.
    return {
        kind: int.from_bytes(b"".join(_ONES if one == kind else _ZEROS for one in types), "little") for kind in sorted(set(types))
    }


def spread(heads: int, order: int) -> int:
    """Give the pages of chunks of an order from where they begin."""
    for step in range(order):
        heads |= heads << (1 << step)
    return heads


def aligned(bits: int, order: int) -> int:
    """Give those of the pages that are in whole chunks of an order."""
    if bits == FULL:
        return FULL
    for step in range(order):
        bits &= (bits >> (1 << step)) & _STARTS[step + 1]
    return spread(bits, order)


def runs_of(bits: int) -> Iterator[tuple[int, int]]:
    """Give the runs of bits that are set, as (first, how many)."""
    if bits == FULL:
        yield 0, PAGES_PER_SECTION
        return
    if (bits ^ bits << 1).bit_count() > 2 * _MANY_RUNS:
        from memhp.kernel.pagemap import runs_in  # noqa: PLC0415 - NumPy, for what is in many pieces only

        yield from runs_in(bits)
        return
    place = 0
    while bits:
        gap = (bits & -bits).bit_length() - 1
        bits >>= gap
        length = (bits + 1 & ~bits).bit_length() - 1
        yield place + gap, length
        bits >>= length
        place += gap + length


def lowest_bits(bits: int, count: int) -> int:
    """Give the lowest so many bits."""
    # Halve the range until just so many are in it.
    low, high = 0, bits.bit_length()
    while low < high:
        middle = (low + high) // 2
        if (bits & ((1 << middle) - 1)).bit_count() < count:
            low = middle + 1
        else:
            high = middle
    return bits & ((1 << low) - 1)


class Section:
    """128 MiB of a block that is online: which of its pages are free, and what its pageblocks are for.

    Attributes:
        free: a bit for each free page; pages in a list of a CPU are not free here.
        types: the migratetype of each pageblock, or None while all are movable.
        parts: the zones it is in, each with the bits of its pages there.
        singles: how many of its pages have a state of their own (:mod:`memhp.kernel.pagemap`).
    """

    __slots__ = ("block", "counts", "cpu_lists", "dirty", "free", "nr", "parts", "singles", "start_pfn", "types")

    def __init__(self, nr: int, block: MemoryBlock, parts: tuple[tuple[Zone, int], ...], free: int) -> None:
        self.nr = nr
        self.block = block
        self.start_pfn = Pfn(nr * PAGES_PER_SECTION)
        self.free = free
        self.types: bytearray | None = None
        self.parts = parts
        self.singles = 0
        self.cpu_lists: list[list[int]] | None = None
        """Where its pages go when they are freed one by one, by migratetype; None if it is in two zones."""
        self.dirty = True
        self.counts: dict[Zone, dict[int, Counts]] = {}
        """What the zones' lists know of it."""

    def type_at(self, page: int) -> MigrateType:
        """Give the migratetype of the pageblock of its ``page``-th page."""
        return MigrateType.MOVABLE if self.types is None else MigrateType(self.types[page >> HUGE_ORDER])

    def zone_at(self, page: int) -> Zone:
        """Give the zone of its ``page``-th page."""
        return next(zone for zone, inside in self.parts if inside >> page & 1)

    def set_type(self, pageblock: int, kind: MigrateType) -> None:
        """Say what a pageblock is for from now on."""
        if self.types is None:
            if kind is MigrateType.MOVABLE:
                return
            self.types = bytearray([MigrateType.MOVABLE]) * PAGEBLOCKS
        self.types[pageblock] = kind
        if self.types.count(MigrateType.MOVABLE) == PAGEBLOCKS:
            self.types = None

    def by_type(self) -> dict[int, int]:
        """Give the bits of the pages of each migratetype."""
        if self.block.isolated:
            return {MigrateType.ISOLATE: FULL}
        if self.types is None:
            return {MigrateType.MOVABLE: FULL}
        if self.types.count(self.types[0]) == PAGEBLOCKS:
            return {self.types[0]: FULL}
        return _bits_by_type(bytes(self.types))

    def apart(self) -> int:
        """Give a bit for each pair of pageblocks of different types."""
        if self.types is None or self.block.isolated:
            return 0
        pairs = zip(self.types[::2], self.types[1::2], strict=True)
        return sum(1 << (number << MAX_ORDER) for number, (one, other) in enumerate(pairs) if one != other)

    def chunks(self) -> list[int]:
        """Give its free chunks, by order, as :func:`chunks_of` does."""
        return chunks_of(self.free, self.apart())

    def settle(self) -> None:
        """Make one type of two free pageblocks that merge (``__free_one_page``: the buddy takes the type of the other)."""
        if self.types is None:
            return
        for first in range(0, PAGEBLOCKS, 2):
            one, other = self.types[first], self.types[first + 1]
            both = bits_of(first << HUGE_ORDER, 2 * PAGEBLOCK)
            if one != other and one in MERGE and other in MERGE and self.free & both == both:
                self.set_type(first + 1, MigrateType(one))
                if self.types is None:
                    return

    def whole(self) -> bool:
        """Say whether it is free, one zone's and of the usual type throughout."""
        return self.free == FULL and self.types is None and not self.block.isolated


class FreeLists:
    """The free chunks of one zone.

    Attributes:
        free: free pages that can be allocated, without those that are isolated.
        totals: chunks by migratetype and order.
        cpu: page frames kept at hand for single allocations, by migratetype; the last is the next.
    """

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.free = 0
        self.totals = [[0] * ORDERS for _ in MigrateType]
        self.cpu: list[list[int]] = [[], [], []]
        # By migratetype; the last is the next. One CPU's worth: the model's allocations have no CPU.
        # Where chunks are: sections in heaps, some of which have none any more. Those are dropped when they come up.
        self._heaps: list[list[list[int]]] = [[[] for _ in range(ORDERS)] for _ in MigrateType]
        self._listed: list[list[set[int]]] = [[set() for _ in range(ORDERS)] for _ in MigrateType]

    def note(self, section: Section, counts: dict[int, Counts]) -> None:
        """Take over what a section has now, in place of what it had."""
        before = section.counts.get(self.zone, {})
        if before == counts:
            return
        section.counts[self.zone] = counts
        for kind in {*before, *counts}:
            old, new = before.get(kind, NONE), counts.get(kind, NONE)
            for order in range(ORDERS):
                change = new[order] - old[order]
                if change:
                    self.totals[kind][order] += change
                    if kind != MigrateType.ISOLATE:
                        self.free += change << order
                    if new[order] and section.nr not in self._listed[kind][order]:
                        self._listed[kind][order].add(section.nr)
                        heapq.heappush(self._heaps[kind][order], section.nr)

    def lowest(self, sections: dict[int, Section], kind: int, order: int) -> Section | None:
        """Give the section with the lowest chunk of just this type and order."""
        heap = self._heaps[kind][order]
        while heap:
            section = sections.get(heap[0])
            if section is not None and section.counts.get(self.zone, {}).get(kind, NONE)[order]:
                return section
            self._listed[kind][order].discard(heapq.heappop(heap))
        return None
