"""The state of single pages, in arrays: who has which page, and where in the owner's list it is (the reverse map).

The arrays cover all page frames and are backed by memory only where something was written, section by section, as the
kernel's own page structs are. A section without such pages costs nothing, and one that has no more of them gives it back.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from memhp.errors import InvalidInput
from memhp.kernel.holdings import Holding
from memhp.kernel.kinds import Leaving, PageKind
from memhp.kernel.section import FULL, Section
from memhp.units import PAGES_PER_SECTION, Pfn

__all__ = ["LEAVING", "ON_CPU_LIST", "TAIL", "Page", "PageArray", "PageMap", "runs_in", "to_bits", "to_places"]

Pfns = npt.NDArray[np.int64]

ON_CPU_LIST = 254
"""The kind of a page that is in a CPU's list: not free to the buddy allocator, and nobody's."""
_MARKED = 255
TAIL = 0xFFFFFFFF
"""The owner of the pages of a chunk after its first."""
_SINGLES = 1
_KEPT_EMPTY = 64
"""Sections, of 288 KiB each."""
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def to_bits(places: npt.NDArray[np.bool_]) -> int:
    """Give the bits of the pages of a section that are marked."""
    return int.from_bytes(np.packbits(places, bitorder="little").tobytes(), "little")


def to_places(bits: int) -> Pfns:
    """Give the places of the bits that are set."""
    if bits == FULL:
        return np.arange(PAGES_PER_SECTION)
    raw = np.frombuffer(bits.to_bytes(PAGES_PER_SECTION // 8, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(raw, bitorder="little"))


def _pieces(pfns: Pfns) -> Iterator[slice]:
    # Intermediate results of a piece fit into the cache, and need no fresh memory each time.
    return (slice(low, low + PAGES_PER_SECTION) for low in range(0, len(pfns), PAGES_PER_SECTION))


def runs_in(bits: int) -> list[tuple[int, int]]:
    """Give the runs of bits that are set, as :func:`~memhp.kernel.buddy.runs_of` does, for sections in many pieces."""
    places = to_places(bits)
    ends = np.flatnonzero(np.diff(places) != 1)
    firsts, lasts = places[np.append(0, ends + 1)], places[np.append(ends, len(places) - 1)]
    return list(zip(firsts.tolist(), (lasts - firsts + 1).tolist(), strict=True))


def _kinds_where(leaving: Leaving) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    for kind in PageKind:
        table[kind.code] = kind.leaving is leaving
    return table


LEAVING = {leaving: _kinds_where(leaving) for leaving in Leaving}
"""For each way to leave, a table of which kinds leave like that, by their code."""


class Page(Holding):
    """One chunk, a single page or an aligned power of two of them, as ``alloc_pages`` gives it; ``pfn`` follows it around."""

    __slots__ = ("_map", "_slot", "order")

    def __init__(self, pages: PageMap, slot: int, kind: PageKind, order: int, owner: str) -> None:
        self._map = pages
        self._slot = slot
        self.kind = kind
        self.order = order
        self.owner = owner
        self.pins = 0
        self.freed = False

    @property
    def pfn(self) -> Pfn | None:
        """Its first page frame now; None once it is freed, or lost to bad hardware."""
        place = -1 if self.freed else self._map.slots[self._slot]
        return None if place < 0 else Pfn(place)

    @property
    def nr_pages(self) -> int:
        """How many pages it holds."""
        return 0 if self.pfn is None else 1 << self.order

    @property
    def blocks(self) -> list[int]:
        """The id of the block that it is in."""
        return [] if self.pfn is None else [self.pfn // self._map.pages_per_block]


class PageArray(Holding):
    """Many chunks of one size that somebody holds, each of which can migrate or be freed by itself.

    Attributes:
        order: the order of each chunk.
    """

    __slots__ = ("_all", "_map", "id", "lost", "order")

    def __init__(self, pages: PageMap, pfns: Pfns, kind: PageKind, order: int, owner: str) -> None:
        self._map = pages
        self._all = pfns
        self.id = 0
        self.kind = kind
        self.order = order
        self.owner = owner
        self.pins = 0
        self.lost = 0
        """How many chunks of the list are not held any more."""
        self.freed = False

    @property
    def pfns(self) -> Pfns:
        """The first page frames of its chunks, as they are now: a copy, true until the next migration."""
        return self._all[self._all >= 0] if self.lost else self._all.copy()

    @property
    def nr_chunks(self) -> int:
        """How many chunks it holds."""
        return len(self._all) - self.lost

    @property
    def nr_pages(self) -> int:
        """How many pages it holds."""
        return self.nr_chunks << self.order

    @property
    def blocks(self) -> list[int]:
        """The ids of the blocks that it has pages in, ascending."""
        found: list[int] = np.unique(self.pfns // self._map.pages_per_block).tolist()
        return found


class PageMap:
    """The arrays of one machine. Its user holds a lock around each call.

    Attributes:
        kind: code of what each page is; 0, nothing that is known here.
        owner: whose it is; the pages of a chunk after the first say so.
        index: its place in the owner's list.
        slots: page frames of single chunks, by slot.
    """

    def __init__(self, end_pfn: int, pages_per_block: int) -> None:
        self.pages_per_block = pages_per_block
        self._owners: list[PageArray | None] = [None, None]
        self._vacant: list[int] = []
        self.pages: list[Page | None] = []
        self._slots = np.zeros(0, np.int64)
        self.slots: Any = self._slots.data
        self.vacant_slots: list[int] = []
        self._empty: dict[int, Section] = {}
        self._cover(end_pfn)

    def _cover(self, end_pfn: int) -> None:
        self.end_pfn = end_pfn
        self._memory = [_sparse(end_pfn * width) for width in (1, 4, 4)]
        self.kind = np.frombuffer(self._memory[0], np.uint8)
        self.owner = np.frombuffer(self._memory[1], np.uint32)
        self.index = np.frombuffer(self._memory[2], np.uint32)
        # Scalars go through memory views: four times as fast as through arrays.
        self.kinds: Any = memoryview(self._memory[0])
        self.owners: Any = memoryview(self._memory[1]).cast("I")
        self.indices: Any = memoryview(self._memory[2]).cast("I")

    def cover(self, end_pfn: int, sections: Iterable[Section]) -> None:
        """Make the arrays reach up to a page frame; ``sections`` are those that have something in them."""
        if end_pfn <= self.end_pfn:
            return
        kind, owner, index = self.kind, self.owner, self.index
        self._cover(max(end_pfn, 2 * self.end_pfn))
        for section in sections:
            here = slice(section.start_pfn, section.start_pfn + PAGES_PER_SECTION)
            self.kind[here], self.owner[here], self.index[here] = kind[here], owner[here], index[here]

    def emptied(self, section: Section) -> None:
        """Note that a section has no such pages any more; the memory of a few is kept, for who allocates again."""
        self._empty[section.nr] = section
        if len(self._empty) > _KEPT_EMPTY:
            self.forget()

    def forget(self) -> None:
        """Give back the memory of sections without such pages."""
        for section in self._empty.values():
            if not section.singles:
                for memory, width in zip(self._memory, (1, 4, 4), strict=True):
                    memory.madvise(mmap.MADV_DONTNEED, section.start_pfn * width, PAGES_PER_SECTION * width)
        self._empty.clear()

    # -- one page at hand

    def hand_out(self, pfn: int, kind: PageKind, owner: str) -> Page:
        """Give a page that was at hand to somebody."""
        slot = self.vacant_slots.pop() if self.vacant_slots else self.new_slot()
        self.kinds[pfn] = kind.code
        self.owners[pfn] = _SINGLES
        self.indices[pfn] = slot
        self.slots[slot] = pfn
        page = self.pages[slot] = Page(self, slot, kind, 0, owner)
        return page

    def take_back(self, page: Page) -> int:
        """Take a page from its holder in order to keep it at hand; gives where it is."""
        slot = page._slot  # noqa: SLF001
        pfn: int = self.slots[slot]
        page.freed = True
        self.kinds[pfn] = ON_CPU_LIST
        self.owners[pfn] = 0
        self.pages[slot] = None
        self.vacant_slots.append(slot)
        return pfn

    # -- many chunks

    def new_array(self, pfns: Pfns, kind: PageKind, order: int, owner: str) -> PageArray:
        """Note that somebody has these chunks now."""
        array = PageArray(self, pfns, kind, order, owner)
        array.id = self._vacant.pop() if self._vacant else len(self._owners)
        if array.id == len(self._owners):
            self._owners.append(array)
        else:
            self._owners[array.id] = array
        self._write(pfns, order, kind, array.id, np.arange(len(pfns), dtype=np.uint32))
        return array

    def _write(self, pfns: Pfns, order: int, kind: PageKind, owner: int, index: npt.NDArray[np.uint32]) -> None:
        if order:
            every = (pfns[:, None] + np.arange(1 << order)).ravel()
            self.kind[every] = kind.code
            self.owner[every] = TAIL
            self.owner[pfns] = owner
            self.index[pfns] = index
            return
        for piece in _pieces(pfns):
            self._write_some(pfns[piece], kind, owner, index[piece])

    def _write_some(self, pfns: Pfns, kind: PageKind, owner: int, index: npt.NDArray[np.uint32]) -> None:
        # Whole runs of pages are written as such, which is ten times as fast as page by page.
        ends = np.flatnonzero(pfns[1:] - pfns[:-1] != 1) + 1
        if len(ends) > len(pfns) // 64:
            self.kind[pfns], self.owner[pfns], self.index[pfns] = kind.code, owner, index
            return
        for low, high in zip([0, *ends.tolist()], [*ends.tolist(), len(pfns)], strict=True):
            here = slice(int(pfns[low]), int(pfns[low]) + high - low)
            self.kind[here], self.owner[here], self.index[here] = kind.code, owner, index[low:high]

    def release(self, array: PageArray, pfns: Pfns) -> list[tuple[int, int]]:
        """Take chunks from the array that holds them; gives the sections they were in, each with the bits of their pages.

        Raises:
            InvalidInput: one is somebody else's or nobody's, or is named twice; nothing was changed.
        """
        low, high = (int(pfns.min()), int(pfns.max()))
        if low < 0 or high >= self.end_pfn:
            raise InvalidInput(hex(low if low < 0 else high), "free", "the page frame of a page that exists")
        # All page frames exist, so the fastest way to read at them is safe: the one that would wrap around.
        for piece in _pieces(pfns):
            if (self.owner.take(pfns[piece], mode="wrap") != array.id).any():
                raise self._strange(array, pfns)
        listed = array._all  # noqa: SLF001 - lists and map are one
        for piece in _pieces(pfns):
            places = self.index.take(pfns[piece], mode="wrap")
            listed[places.astype(np.int64)] = -1  # NumPy is slower with other types of index
        lost = int(np.count_nonzero(listed < 0))
        if lost - array.lost != len(pfns):
            listed[self.index[pfns]] = pfns
            values, counts = np.unique(pfns, return_counts=True)
            raise InvalidInput(hex(int(values[counts.argmax()])), "free", "pages that are each named once")
        array.lost = lost
        every = (pfns[:, None] + np.arange(1 << array.order)).ravel() if array.order else pfns
        self.owner[every] = 0
        self.kind[every] = _MARKED
        if lost == len(listed):
            self._owners[array.id] = None
            self._vacant.append(array.id)
            array.freed = True
        return list(self._marked(low, high + (1 << array.order)))

    def _strange(self, array: PageArray, pfns: Pfns) -> InvalidInput:
        pfn = int(pfns[(self.owner[pfns] != array.id).argmax()])
        holder = self.holder_of(Pfn(pfn))
        expected = f"a page that {array} holds; " + (f"this is one of {holder}" if holder else "this is not allocated")
        return InvalidInput(hex(pfn), "free", expected)

    def _marked(self, low: int, end: int) -> Iterator[tuple[int, int]]:
        # Sections between may have none; where nothing was ever written, looking is cheap but not free.
        for number in range(low // PAGES_PER_SECTION, (end - 1) // PAGES_PER_SECTION + 1):
            here = self.kind[number * PAGES_PER_SECTION : (number + 1) * PAGES_PER_SECTION]
            marked = here == _MARKED
            bits = to_bits(marked)
            if bits:
                here[marked] = 0
                yield number, bits

    # -- one chunk

    def new_slot(self) -> int:
        """Give a place in the list of single chunks."""
        if not self.vacant_slots:
            first = len(self.pages)
            more = max(first, 1024)
            self._slots = np.concatenate([self._slots, np.full(more, -1, np.int64)])
            self.slots = self._slots.data
            self.pages += [None] * more
            self.vacant_slots += range(first + more - 1, first - 1, -1)
        return self.vacant_slots.pop()

    def new_page(self, pfn: Pfn, kind: PageKind, order: int, owner: str) -> Page:
        """Note that somebody has this chunk now."""
        slot = self.new_slot()
        page = self.pages[slot] = Page(self, slot, kind, order, owner)
        self.slots[slot] = pfn
        self._write(np.array([pfn]), order, kind, _SINGLES, np.array([slot], np.uint32))
        return page

    def release_page(self, page: Page) -> Pfn | None:
        """Take a chunk from its holder; gives where it is."""
        pfn, slot = page.pfn, page._slot  # noqa: SLF001
        page.freed = True
        self.pages[slot] = None
        self.vacant_slots.append(slot)
        if pfn is not None:
            end = pfn + (1 << page.order)
            self.kind[pfn:end] = 0
            self.owner[pfn:end] = 0
        return pfn

    # -- who and where

    def holder_of(self, pfn: Pfn) -> Holding | None:
        """Say who has a page, if it is one of these."""
        code = self.kinds[pfn]
        if not code or code >= ON_CPU_LIST:
            return None
        head = self.head_of(pfn)
        owner: int = self.owners[head]
        return self.pages[self.indices[head]] if owner == _SINGLES else self._owners[owner]

    def head_of(self, pfn: Pfn) -> Pfn:
        """Give the first page of the chunk that a page is in."""
        place = pfn
        while self.owners[place] == TAIL:
            place = Pfn(place - 1)
        return place

    def heads_in(self, section: Section, wanted: npt.NDArray[np.bool_]) -> Pfns:
        """Give the chunks of a section whose kind is among the wanted ones, ascending."""
        here = slice(section.start_pfn, section.start_pfn + PAGES_PER_SECTION)
        return np.flatnonzero(wanted[self.kind[here]] & (self.owner[here] != TAIL)) + section.start_pfn

    def first_in(self, section: Section, wanted: npt.NDArray[np.bool_]) -> Pfn | None:
        """Give the first page of a section whose kind is among the wanted ones."""
        found = wanted[self.kind[section.start_pfn : section.start_pfn + PAGES_PER_SECTION]]
        place = int(found.argmax())
        return Pfn(section.start_pfn + place) if found[place] else None

    def by_holder(self, pfns: Pfns) -> Iterator[tuple[Holding | None, Pfns]]:
        """Give the chunks of each holder of several; None stands for all that are held one by one."""
        for owner, chosen in self._by_owner(pfns):
            yield (None if owner == _SINGLES else self._owners[owner]), pfns[chosen]

    def _by_owner(self, pfns: Pfns) -> Iterator[tuple[int, Pfns | slice]]:
        owners = self.owner[pfns]
        if len(owners) and (owners == owners[0]).all():  # the usual case, which needs no sorting
            yield int(owners[0]), slice(None)
            return
        order = np.argsort(owners, kind="stable")
        begins = np.flatnonzero(np.diff(owners[order], prepend=-1))
        for chosen in np.split(order, begins[1:]) if len(begins) else ():
            yield int(owners[chosen[0]]), chosen

    def move(self, old: Pfns, new: Pfns, order: int) -> None:
        """Move chunks of one order, whoever has them; the old places are nobody's afterwards."""
        index = self.index[old]
        for owner, chosen in self._by_owner(old):
            holder = None if owner == _SINGLES else self._owners[owner]
            places = holder._all if isinstance(holder, PageArray) else self._slots  # noqa: SLF001
            places[index[chosen]] = new[chosen]
        offsets = np.arange(1 << order)
        before, after = (old[:, None] + offsets).ravel(), (new[:, None] + offsets).ravel()
        self.kind[after], self.owner[after], self.index[after] = self.kind[before], self.owner[before], self.index[before]
        self.kind[before], self.owner[before] = 0, 0

    def lose(self, pfn: Pfn) -> int:
        """Take the chunk that a page is in from its holder, who keeps the others; gives its order."""
        head, holder = self.head_of(pfn), self.holder_of(pfn)
        index = self.indices[head]
        if isinstance(holder, PageArray):
            holder._all[index] = -1  # noqa: SLF001
            holder.lost += 1
            order = holder.order
        else:
            order = holder.order if isinstance(holder, Page) else 0
            self._slots[index] = -1
        self.kind[head : head + (1 << order)] = 0
        self.owner[head : head + (1 << order)] = 0
        return order


def _sparse(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # else a word written here and there would cost 2 MiB each
    return memory
