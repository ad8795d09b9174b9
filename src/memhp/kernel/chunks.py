"""Pages that are allocated chunk by chunk, one or many at a time: who gets them, how they are freed, and how they migrate."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from memhp.errors import HotplugError, InvalidInput
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.holdings import Allocation, Holding, Place
from memhp.kernel.kinds import HUGE_ORDER, MAX_ORDER, Leaving, MigrateType, PageKind
from memhp.kernel.pagemap import LEAVING, ON_CPU_LIST, TAIL, Page, PageArray, PageMap, Pfns, to_bits, to_places
from memhp.kernel.section import Section
from memhp.kernel.watermarks import batch_of, protection_of, watermarks_of
from memhp.kernel.zones import Zone, ZoneType
from memhp.units import PAGES_PER_SECTION, Pfn, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine
    from memhp.kernel.pages import Pages

__all__ = ["Chunks"]

_AT_HAND_HIGH = 1024
"""How many pages are kept at hand before the oldest half goes back."""
_LARGEST_BATCH = 8
"""How many times the usual batch is brought when single pages are taken one after the other (``pcp->alloc_factor``)."""
_ORDINARY = frozenset({MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE})
_REQUESTABLE = _ORDINARY | {MigrateType.HIGHATOMIC}
_NOTHING: list[list[int]] = [[]] * 256


class Chunks:
    """The part of :class:`~memhp.kernel.pages.Pages` that knows single pages; made when the first is asked for.

    Attributes:
        map: the state of the pages.
        at_hand: for each kind, by its code, the list from which single pages of it are taken now.
        cpu_lock: guards the lists of pages at hand and what becomes of such pages; nothing waits while it is held.
        pinned: holdings that have pins.
        pages: what it is a part of.
    """

    def __init__(self, pages: Pages, machine: Machine) -> None:
        self.pages = pages
        self._machine = machine
        self.map = PageMap(self._end_pfn(), machine.pages_per_block)
        self.at_hand = _NOTHING
        self.cpu_lock = threading.Lock()
        self.pinned: list[Holding] = []
        self._stopped = 0
        self._factor = 1
        self._marks: dict[Zone, tuple[tuple[int, int], list[int]]] = {}

    def _end_pfn(self) -> int:
        last = max((block.end_pfn for block in self._machine.blocks.values()), default=0)
        return -(-last // PAGES_PER_SECTION) * PAGES_PER_SECTION

    def resized(self) -> None:
        """Take note that blocks have come or gone."""
        self._marks.clear()
        with self.cpu_lock:
            self.at_hand = _NOTHING
            self.map.forget()  # before their numbers are other sections'
            used = [section for section in self.pages.buddy.sections.values() if section.singles]
            self.map.cover(self._end_pfn(), used)

    # -- taking

    def alloc(
        self,
        order: int,
        kind: PageKind,
        node: int | None,
        owner: str,
        migratetype: MigrateType | None,
        *,
        emergency: bool,
    ) -> Page:
        """Take one chunk, where none was at hand; see :meth:`~memhp.kernel.pages.Pages.alloc_pages`."""
        self.pages.check(kind, node)
        wanted = _migratetype(order, kind, migratetype)
        with self.pages.lock:
            zones = self.pages.zones(wanted, node)
            if order == 0 and wanted in _ORDINARY and not self._stopped:
                at_hand: list[int] = []
                while True:
                    with self.cpu_lock:  # others may take what was just brought
                        if at_hand:
                            if node is None and migratetype is None:
                                self._keep_at_hand(wanted, at_hand)
                            return self.map.hand_out(at_hand.pop(), kind, owner)
                    at_hand = self._refill(zones, wanted, owner, emergency=emergency)
            start = self._one(zones, order, wanted, kind, owner, emergency=emergency)
            self._section(start).singles += 1 << order
            with self.cpu_lock:
                return self.map.new_page(start, kind, order, owner)

    def _keep_at_hand(self, wanted: MigrateType, at_hand: list[int]) -> None:
        lists = self.at_hand.copy()
        for kind in PageKind:
            if kind.migratetype is wanted and kind is not PageKind.POISONED and not kind.order:
                lists[kind.code] = at_hand
        self.at_hand = lists

    def _refill(self, zones: list[Zone], wanted: MigrateType, owner: str, *, emergency: bool) -> list[int]:
        # rmqueue_bulk(): a batch of the first zone that has pages above its mark.
        for zone in self._passing(zones, 0, wanted, emergency=emergency):
            at_hand = self.pages.buddy.lists_of(zone).cpu[wanted]
            if at_hand:
                return at_hand
            room = self._room(zone, wanted, 1, emergency=emergency)
            taken = self.pages.buddy.take_many(zone, min(batch_of(zone) * self._factor, room), 0, wanted)
            if taken:
                self._factor = min(2 * self._factor, _LARGEST_BATCH)
                found = np.concatenate([to_places(bits) + section.start_pfn for section, bits in taken])
                with self.cpu_lock:
                    for section, bits in taken:
                        section.singles += bits.bit_count()
                    self.map.kind[found] = ON_CPU_LIST
                    at_hand[:0] = found[::-1].tolist()
                return at_hand
        if self.drain():
            return self._refill(zones, wanted, owner, emergency=emergency)
        raise self._too_few(1, 0, wanted, owner, zones)

    def _one(self, zones: list[Zone], order: int, wanted: MigrateType, kind: PageKind, owner: str, *, emergency: bool) -> Pfn:
        buddy = self.pages.buddy
        for zone in self._passing(zones, order, wanted, emergency=emergency):
            start = buddy.take(zone, order, wanted)
            if start is None and wanted is MigrateType.HIGHATOMIC:
                start = buddy.take(zone, order, kind.migratetype)
                if start is not None:
                    self._reserve(zone, start)
            if start is not None:
                return start
        if self.drain() or self._unreserve(zones):
            return self._one(zones, order, wanted, kind, owner, emergency=emergency)
        raise self._too_few(1, order, wanted, owner, zones)

    def _reserve(self, zone: Zone, start: Pfn) -> None:
        # reserve_highatomic_pageblock(): up to 1 % of the zone.
        section = self._section(start)
        place = start - section.start_pfn
        held = sum(
            other.types.count(MigrateType.HIGHATOMIC) for other in self.pages.buddy.sections.values() if other.types is not None
        )
        if held << HUGE_ORDER < zone.managed // 100 + (1 << HUGE_ORDER) and section.type_at(place) in _ORDINARY:
            section.set_type(place >> HUGE_ORDER, MigrateType.HIGHATOMIC)
            self.pages.buddy.touch(section)

    def _unreserve(self, zones: list[Zone]) -> bool:
        # unreserve_highatomic_pageblock(): before an allocation fails, the reserve goes back, a pageblock at a time.
        for section in self.pages.buddy.sections.values():
            if section.types is not None and any(zone in zones for zone, _ in section.parts):
                pageblock = section.types.find(MigrateType.HIGHATOMIC)
                if pageblock >= 0:
                    section.set_type(pageblock, MigrateType.MOVABLE)
                    self.pages.buddy.touch(section)
                    return True
        return False

    def alloc_bulk(
        self, nr_chunks: int, order: int, kind: PageKind, node: int | None, owner: str, *, emergency: bool
    ) -> PageArray:
        """Take many chunks; see :meth:`~memhp.kernel.pages.Pages.alloc_pages_bulk`."""
        self.pages.check(kind, node)
        if whole_number(nr_chunks, "alloc_pages_bulk: nr_chunks", "a number of chunks, at least 1") < 1:
            raise InvalidInput(nr_chunks, "alloc_pages_bulk: nr_chunks", "a number of chunks, at least 1")
        wanted = _migratetype(order, kind, None)
        with self.pages.lock:
            zones = self.pages.zones(wanted, node)
            taken = self.take(zones, nr_chunks, order, wanted, emergency=emergency)
            if sum(bits.bit_count() for _, bits in taken) >> order < nr_chunks:
                for section, bits in taken:
                    self.pages.buddy.give(section, bits)
                raise self._too_few(nr_chunks, order, wanted, owner, zones)
            pfns = self._claimed(taken, order)
            with self.cpu_lock:
                return self.map.new_array(pfns, kind, order, owner)

    def take(
        self, zones: list[Zone], nr_chunks: int, order: int, wanted: MigrateType, *, emergency: bool = True
    ) -> list[tuple[Section, int]]:
        """Take up to so many chunks of the zones, as sections with the bits of their pages."""
        self.drain()
        taken: list[tuple[Section, int]] = []
        missing = nr_chunks
        for mark in (1,) if emergency else (0, 1):
            for zone in zones:
                room = self._room(zone, wanted, mark, emergency=emergency) >> order
                if missing and room > 0:
                    part = self.pages.buddy.take_many(zone, min(missing, room), order, wanted)
                    missing -= sum(bits.bit_count() for _, bits in part) >> order
                    taken += part
        return taken

    def _claimed(self, taken: list[tuple[Section, int]], order: int) -> Pfns:
        # One array is filled piece by piece: fresh memory for each step would cost more than the step.
        pfns = np.empty(sum(bits.bit_count() for _, bits in taken) >> order, np.int64)
        end = 0
        for section, bits in taken:
            section.singles += bits.bit_count()
            places = to_places(bits)[:: 1 << order]
            begin, end = end, end + len(places)
            np.add(places, section.start_pfn, out=pfns[begin:end])
        return pfns

    def _passing(self, zones: list[Zone], order: int, wanted: MigrateType, *, emergency: bool) -> list[Zone]:
        # get_page_from_freelist(): all zones down to low, then all down to min.
        marks = (1,) if emergency else (0, 1)
        return [zone for mark in marks for zone in zones if self._room(zone, wanted, mark, emergency=emergency) >= 1 << order]

    def _room(self, zone: Zone, wanted: MigrateType, mark: int, *, emergency: bool) -> int:
        free = self.pages.buddy.free_in(zone)
        if emergency:
            return free
        if zone not in self._marks:
            marks = watermarks_of(self._machine, zone)
            self._marks[zone] = ((marks.low, marks.min), protection_of(self._machine, zone))
        marks_of, reserves = self._marks[zone]
        keep = marks_of[mark] // 2 if wanted is MigrateType.HIGHATOMIC and mark else marks_of[mark]
        highest = ZoneType.MOVABLE if wanted is MigrateType.MOVABLE else ZoneType.NORMAL
        return free - keep - reserves[highest]

    def _too_few(self, nr_chunks: int, order: int, wanted: MigrateType, owner: str, zones: list[Zone]) -> HotplugError:
        free = sum(self.pages.buddy.free_in(zone) for zone in zones)
        what = f"{nr_chunks} {wanted.label.lower()} chunks of order {order}"
        return HotplugError(errno.ENOMEM, f"{owner or 'somebody'} asked for {what}; {free} pages are free, with what zones keep")

    # -- giving back

    def put_at_hand(self, page: Page) -> bool:
        """Keep a page that is freed for the next allocation; False if it must go the long way."""
        try:
            with self.cpu_lock:
                if page.freed or page.order or page.pins or self._stopped or page._map is not self.map:  # noqa: SLF001
                    return False
                pfn: int = self.map.slots[page._slot]  # noqa: SLF001
                section = self.pages.buddy.sections[pfn // PAGES_PER_SECTION]
                if section.cpu_lists is None or section.types is not None or section.block.poisoned:
                    return False
                at_hand = section.cpu_lists[MigrateType.MOVABLE]
                at_hand.append(self.map.take_back(page))
        except (AttributeError, KeyError):  # no chunk at all, or one that is lost
            return False
        if len(at_hand) > _AT_HAND_HIGH:
            with self.pages.lock:
                self._give(at_hand, len(at_hand) - _AT_HAND_HIGH // 2)
        return True

    def _give(self, at_hand: list[int], count: int) -> int:
        with self.cpu_lock:
            pfns = np.array(at_hand[:count], np.int64)
            del at_hand[:count]
            if len(pfns):
                self.map.kind[pfns] = 0
        self._free(pfns)
        return len(pfns)

    def _free(self, pfns: Pfns) -> None:
        numbers = pfns // PAGES_PER_SECTION
        for number in sorted(set(map(int, numbers))):
            marked = np.zeros(PAGES_PER_SECTION, np.bool_)
            marked[pfns[numbers == number] - number * PAGES_PER_SECTION] = True
            self._give_bits(number, to_bits(marked))

    def _give_bits(self, number: int, bits: int) -> None:
        section = self.pages.buddy.sections[number]
        self.pages.buddy.give(section, bits)
        section.singles -= bits.bit_count()
        for pfn in section.block.poisoned:  # bad hardware never goes back to the allocator
            if pfn // PAGES_PER_SECTION == number and bits >> pfn % PAGES_PER_SECTION & 1:
                self.pages.occupy(Allocation(PageKind.POISONED, "memory failure"), section.block, pfn, 1)
        if not section.singles:
            self.map.emptied(section)

    def drain(self) -> int:
        """Give back all pages at hand (``drain_all_pages``); says how many. Called with the zone lock held."""
        count = 0
        self._factor = 1
        for lists in self.pages.buddy.lists.values():
            for at_hand in lists.cpu:
                if at_hand:
                    count += self._give(at_hand, len(at_hand))
        return count

    def stop_lists(self) -> None:
        """Keep no pages at hand for now (``zone_pcp_disable``). Called with the zone lock held."""
        with self.cpu_lock:
            self._stopped += 1
            self.at_hand = _NOTHING
        self.drain()

    @contextlib.contextmanager
    def without_lists(self) -> Iterator[None]:
        """Meanwhile pages change hands only under the zone lock, which the caller holds."""
        self.stop_lists()
        try:
            yield
        finally:
            self.start_lists()

    def start_lists(self) -> None:
        """Keep pages at hand again, if nobody else wants none."""
        with self.cpu_lock:
            self._stopped = max(self._stopped - 1, 0)

    def owns(self, holding: Holding) -> bool:
        """Say whether it is this machine's."""
        return isinstance(holding, Page | PageArray) and holding._map is self.map  # noqa: SLF001

    def free(self, holding: Holding) -> None:
        """Give a chunk, or all of an array, back."""
        if isinstance(holding, PageArray):
            self.free_bulk(holding, None)
            return
        if not isinstance(holding, Page):
            raise InvalidInput(holding, "free", "what this machine allocated")
        with self.pages.lock:
            with self.cpu_lock:  # which alone is held when a page is freed to be at hand
                if holding.freed:
                    raise InvalidInput(str(holding), "free", "an allocation that was not freed yet")
                pfn = self.map.release_page(holding)
            self._unpin(holding)
            if pfn is not None:
                number = pfn // PAGES_PER_SECTION
                self._give_bits(number, ((1 << (1 << holding.order)) - 1) << pfn % PAGES_PER_SECTION)
        self.pages.notice()

    def free_bulk(self, array: PageArray, pfns: Pfns | None) -> None:
        """Give chunks of an array back; see :meth:`~memhp.kernel.pages.Pages.free_pages_bulk`."""
        if not isinstance(array, PageArray) or not self.owns(array):
            raise InvalidInput(array, "free", "what this machine allocated in bulk")
        with self.pages.lock:
            if array.freed:
                raise InvalidInput(str(array), "free", "an allocation that was not freed yet")
            chosen = array.pfns if pfns is None else np.asarray(pfns)
            if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "iu"):
                raise InvalidInput(pfns, "free", "page frames in an array of whole numbers")
            chosen = chosen.astype(np.int64, copy=False)
            if len(chosen):
                with self.cpu_lock:
                    freed = self.map.release(array, chosen)
                for number, bits in freed:
                    self._give_bits(number, bits)
            if array.nr_chunks == 0:
                array.freed = True
            if array.freed:
                self._unpin(array)
        self.pages.notice()

    def _unpin(self, holding: Holding) -> None:
        if holding.pins:
            holding.pins = 0
            self.pinned.remove(holding)

    # -- offlining

    def first_that(self, leaving: Leaving, block: MemoryBlock) -> list[Place]:
        """Give the first page of each section of a block that leaves like that."""
        found = []
        for section in self.pages.buddy.sections_of(block):
            pfn = self.map.first_in(section, LEAVING[leaving]) if section.singles else None
            holder = None if pfn is None else self.map.holder_of(pfn)
            if pfn is not None and holder is not None:
                found.append(Place(pfn, block, holder))
        return found

    def movable_in(self, start: int, end: int) -> int:
        """Count the movable pages from a page frame up to another."""
        return int(np.count_nonzero(LEAVING[Leaving.MIGRATES][self.map.kind[start:end]]))

    def kinds_in(self, block: MemoryBlock, start: int, end: int) -> dict[PageKind, int]:
        """Count the pages of each kind in a part of a block."""
        found: dict[PageKind, int] = {}
        for section in self.pages.buddy.sections_of(block):
            low, high = max(start, section.start_pfn), min(end, section.start_pfn + PAGES_PER_SECTION)
            if section.singles and low < high:
                counts = np.bincount(self.map.kind[low:high], minlength=256)
                for kind in PageKind:
                    found[kind] = found.get(kind, 0) + int(counts[kind.code])
        return found

    def states_in(self, block: MemoryBlock) -> Iterator[tuple[Pfn, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
        """Give, for each section with single pages: its first page, the code of each page's kind, and which go on a chunk."""
        for section in self.pages.buddy.sections_of(block):
            if section.singles:
                here = slice(section.start_pfn, section.start_pfn + PAGES_PER_SECTION)
                yield section.start_pfn, self.map.kind[here], self.map.owner[here] == TAIL

    # -- bad hardware

    def give_up(self, block: MemoryBlock, pfn: Pfn, *, hard: bool) -> Holding | None:
        """Free the page whoever has it, as :meth:`~memhp.kernel.pages.Pages.give_up`; a chunk is given up whole."""
        holder = self.map.holder_of(pfn)
        if holder is None:
            return None
        if holder.kind.leaving is not Leaving.MIGRATES or (holder.pins and not hard):
            return holder
        if not hard:
            moved = self.move_out(block, pfn, self.pages.zones(MigrateType.MOVABLE, block.nid))
            return None if moved else holder
        head = self.map.head_of(pfn)
        with self.cpu_lock:
            order = self.map.lose(pfn)
        block.poisoned.discard(pfn)  # who asks for it takes it in a moment
        self._give_bits(head // PAGES_PER_SECTION, ((1 << (1 << order)) - 1) << head % PAGES_PER_SECTION)
        block.poisoned.add(pfn)
        return None

    def move_out(self, block: MemoryBlock, pfn: Pfn, zones: list[Zone]) -> bool:
        """Move the chunk that a page is in to another block; False if the zones have no room. Called with the lock held."""
        head, holder = self.map.head_of(pfn), self.map.holder_of(pfn)
        order = holder.order if isinstance(holder, Page | PageArray) else 0
        block.isolated = True
        self.pages.set_isolated([block], isolated=True)
        try:
            kept = self.move(self._section(head), np.array([head], np.int64), order, zones)
        finally:
            self.pages.set_isolated([block], isolated=False)
        return not len(kept)

    def move(self, section: Section, old: Pfns, order: int, zones: list[Zone]) -> Pfns:
        """Move chunks of a section, all of one order; gives those for which there is no room."""
        taken = self.take(zones, len(old), order, MigrateType.MOVABLE)
        if not taken:
            return old
        new = self._claimed(taken, order)
        moved = old[: len(new)]
        with self.cpu_lock:
            self.map.move(moved, new, order)
        marked = np.zeros(PAGES_PER_SECTION, np.bool_)
        marked[((moved - section.start_pfn)[:, None] + np.arange(1 << order)).ravel()] = True
        self._give_bits(section.nr, to_bits(marked))
        return old[len(new) :]

    def _section(self, pfn: Pfn) -> Section:
        return self.pages.buddy.sections[pfn // PAGES_PER_SECTION]


def _migratetype(order: object, kind: PageKind, given: object) -> MigrateType:
    if not isinstance(order, int) or isinstance(order, bool) or not 0 <= order <= MAX_ORDER:
        raise InvalidInput(order, "alloc_pages: order", f"a number from 0 to {MAX_ORDER}")
    wanted = kind.migratetype if given is None else MigrateType.of(given)
    if wanted not in _REQUESTABLE:
        raise InvalidInput(wanted.label.lower(), "alloc_pages: migratetype", "unmovable, movable, reclaimable or highatomic")
    if kind.order and order != kind.order:
        raise InvalidInput(order, "alloc_pages: order", f"{kind.order}, the order of {kind.value} pages")
    if wanted is MigrateType.MOVABLE and kind.migratetype is not MigrateType.MOVABLE:
        raise InvalidInput("movable", "alloc_pages: migratetype", f"another one, as {kind.value} pages can't move")
    return wanted
