"""Kinds of page frames: what their flags prove, and what they don't."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.captured import ANON, BUDDY, PAGES, RESERVED, SLAB, words
from memhp import DirTree
from memhp.abi.pageflags import flag_names
from memhp.host import frames
from memhp.host.frames import BlockFrames, Fate, FrameKind, FrameReader, kind_of

HEAD, TAIL, HUGE, THP, LRU, UPTODATE, MMAP = 1 << 15, 1 << 16, 1 << 17, 1 << 22, 1 << 5, 1 << 3, 1 << 11


@pytest.mark.parametrize(
    ("word", "names", "kind"),
    [
        (0x0, "", FrameKind.UNTOLD),
        (0x400, "BUDDY", FrameKind.FREE),
        (0x408, "UPTODATE BUDDY", FrameKind.FREE),
        (0x100000, "NOPAGE", FrameKind.HOLE),
        (0x100000000, "RESERVED", FrameKind.RESERVED),
        (0x80, "SLAB", FrameKind.SLAB),
        (0x10080, "SLAB COMPOUND_TAIL", FrameKind.SLAB),
        (0x201080, "SLAB ANON KSM", FrameKind.SLAB),
        (0x4000000, "PGTABLE", FrameKind.PAGE_TABLE),
        (0x5868, "UPTODATE LRU ACTIVE MMAP ANON SWAPBACKED", FrameKind.ANON),
        (0x5008, "UPTODATE ANON SWAPBACKED", FrameKind.ANON),
        (0x400000028, "UPTODATE LRU OWNER_2", FrameKind.FILE),
        (0x802410028, "UPTODATE LRU COMPOUND_TAIL THP IDLE PRIVATE", FrameKind.FILE),
        (0x410000, "COMPOUND_TAIL THP", FrameKind.FILE),
        (0x1408000, "COMPOUND_HEAD THP ZERO_PAGE", FrameKind.ZERO),
        (0x28000, "COMPOUND_HEAD HUGE", FrameKind.HUGETLB),
        (0x8000, "COMPOUND_HEAD", FrameKind.COMPOUND),
        (0x10000, "COMPOUND_TAIL", FrameKind.COMPOUND_TAIL),
        (0x800, "MMAP", FrameKind.DRIVER),
        (0x9, "LOCKED UPTODATE", FrameKind.OFF_LRU),
        (0x800000, "OFFLINE", FrameKind.OFFLINE),
        (0x80000, "HWPOISON", FrameKind.POISONED),
        (0x2000000, "IDLE", FrameKind.UNTOLD),
        (1 << 61, "bit 61", FrameKind.UNTOLD),
    ],
)
def test_words_of_real_kernels(word: int, names: str, kind: FrameKind) -> None:
    """Each word means one kind; those of free and slab pages may carry bits that mean nothing there."""
    assert flag_names(word) == names
    assert kind_of(word) is kind


@dataclass(frozen=True)
class Page:
    """A page as the kernel sees it; ``head`` is the page itself unless it is a tail."""

    reserved: bool = False
    buddy: bool = False
    refcount: int = 0
    huge: bool = False
    slab: bool = False
    table: bool = False
    lru: bool = False
    anon: bool = False
    uptodate: bool = False
    mapped: bool = False
    poisoned: bool = False
    offline: bool = False
    compound: str = ""  # head, tail


def word_of(page: Page) -> int:
    """fs/proc/page.c of 6.1, stable_page_flags(), in as far as these fields go."""
    word = 0
    if page.mapped and not page.slab:
        word |= MMAP
    if page.anon:
        word |= 1 << 12 | (1 << 14 if page.lru or page.compound != "tail" else 0)
    word |= {"head": HEAD, "tail": TAIL, "": 0}[page.compound]
    if page.huge:
        word |= HUGE
    elif page.compound and (page.lru or page.anon):
        word |= THP
    if page.buddy:
        word |= BUDDY
    for bit, there in ((SLAB, page.slab), (RESERVED, page.reserved), (1 << 26, page.table), (1 << 19, page.poisoned)):
        word |= bit if there else 0
    if page.lru and page.compound != "tail":
        word |= LRU
    if page.uptodate and page.compound != "tail":
        word |= UPTODATE
    return word | (1 << 23 if page.offline else 0)


def stops(page: Page) -> bool:
    """mm/page_isolation.c of 6.1, has_unmovable_pages(), for a page outside of ZONE_MOVABLE."""
    if page.reserved:
        return True
    if page.huge:
        return False
    if page.compound:
        return not page.lru
    if page.refcount == 0 or page.poisoned or page.offline:
        return False
    return not page.lru


COMPOUND = st.sampled_from(["", "head", "tail"])
PAGES_OF_A_KERNEL = st.one_of(
    # ... that is not in the middle of doing something with them.
    st.builds(Page, buddy=st.just(value=True), poisoned=st.booleans()),
    st.just(Page()),  # free, in the list of a CPU
    st.builds(Page, slab=st.just(value=True), refcount=st.just(1), compound=COMPOUND, anon=st.booleans()),
    st.just(Page(table=True, refcount=1)),
    st.builds(
        Page,
        lru=st.just(value=True),
        anon=st.booleans(),
        uptodate=st.just(value=True),
        mapped=st.booleans(),
        refcount=st.just(2),
        compound=COMPOUND,
    ),
    st.builds(Page, uptodate=st.just(value=True), refcount=st.just(2), mapped=st.booleans()),  # on its way to the LRU
    st.builds(Page, refcount=st.just(1), compound=COMPOUND),  # a stack, a buffer
    st.just(Page(refcount=2, mapped=True)),  # a ring of a driver
    st.builds(Page, huge=st.just(value=True), compound=st.sampled_from(["head", "tail"]), refcount=st.integers(0, 1)),
    st.sampled_from([Page(reserved=True, refcount=1), Page(poisoned=True, refcount=1), Page(offline=True, refcount=1)]),
)


@settings(deadline=None)
@given(PAGES_OF_A_KERNEL)
def test_a_fate_is_never_claimed_wrongly(page: Page) -> None:
    """What is called a stop stops the kernel; what is called free or moving doesn't; all else is called untold."""
    kind = kind_of(word_of(page))
    if kind is FrameKind.COMPOUND_TAIL:  # its head decides
        assert page.compound == "tail"
    elif kind.fate is Fate.STOPS:
        assert stops(page)
    elif kind.fate in {Fate.NOTHING, Fate.MOVES}:
        assert not stops(page)


def naive(runs: list[tuple[int, int]], start: int) -> BlockFrames:
    """Count pages one by one."""
    flat = [word for count, word in runs for _ in range(count)]
    flat += [BUDDY] * (PAGES - len(flat))
    expected = BlockFrames()
    for pfn, word in enumerate(flat, start):
        kind = kind_of(word)
        expected.counts[kind] = expected.counts.get(kind, 0) + 1
        if kind.fate is Fate.STOPS and expected.first_stop is None:
            expected.first_stop, expected.stop_kind = pfn, kind
        if kind is FrameKind.RESERVED and expected.first_reserved is None:
            expected.first_reserved = pfn
    return expected


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0, BUDDY, SLAB, RESERVED, ANON, 0x8000, 0x10000])), max_size=30))
def test_counting_runs_is_counting_pages(tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]]) -> None:
    """A block counted in bulk has the counts, and the first page that stops, of one counted page by page."""
    root = tmp_path_factory.mktemp("words")
    words(root, {2: runs})
    with FrameReader(DirTree(root)) as reader:
        for way in (frames._distinct, frames._distinct_in_bulk):  # without numpy, and with it
            reader._distinct = way
            assert reader.block(2 * PAGES, PAGES) == naive(runs, 2 * PAGES)


def naive_huge(flags: list[int], mapped: list[int]) -> int:
    """Follow each page of the pool to its head."""
    number = head = 0
    for place, word in enumerate(flags):
        head = place if word & HEAD else head
        in_use = bool(flags[head] & HEAD and mapped[head])
        number += in_use and kind_of(word) is FrameKind.HUGETLB
    return number


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 3, 511, 512, 513, 2048]), st.sampled_from([HUGE, 0, SLAB]), st.integers(0, 2)),
        min_size=1,
        max_size=20,
    )
)
def test_counting_huge_pages_by_chunks_is_counting_them_page_by_page(
    tmp_path_factory: pytest.TempPathFactory, large: list[tuple[int, int, int]]
) -> None:
    """Large pages of any size at any place, of the pool and others, mapped and not; after them free pages."""
    root = tmp_path_factory.mktemp("huge")
    flags = [(1, BUDDY)] + [part for size, bits, _ in large for part in ((1, bits | HEAD), (size - 1, bits | TAIL))]
    mapped = [(1, 0)] + [part for size, _, times in large for part in ((1, times), (size - 1, 0))]
    words(root, {0: flags})
    words(root, {0: mapped}, "kpagecount")
    with FrameReader(DirTree(root)) as reader:
        found = reader.block(0, PAGES).huge_mapped

    one_by_one = [[word for number, word in runs for _ in range(number)][:PAGES] for runs in (flags, mapped)]
    assert found == naive_huge(*one_by_one)


def test_pages_behind_the_end_of_the_file_are_holes(tmp_path: Path) -> None:
    """The kernel's file ends with the last page frame that there is."""
    words(tmp_path, {0: [(PAGES, ANON)]})
    with FrameReader(DirTree(tmp_path)) as reader:
        assert reader.block(PAGES, PAGES).counts == {FrameKind.HOLE: PAGES}
        assert reader.block(PAGES - 2, 4).counts == {FrameKind.ANON: 2, FrameKind.HOLE: 2}


def test_huge_pages_that_are_mapped_are_in_use(tmp_path: Path) -> None:
    """/proc/kpagecount tells a huge page that a process has from one that may be free; the count stands at its head."""
    huge = [(1, HUGE | HEAD), (511, HUGE | TAIL)]
    words(tmp_path, {0: [*huge, *huge, *huge]})
    words(tmp_path, {0: [(512, 0), (1, 3), (511, 0)]}, "kpagecount")
    with FrameReader(DirTree(tmp_path)) as reader:
        found = reader.block(0, PAGES)
    assert (found.count(FrameKind.HUGETLB), found.huge_mapped) == (1536, 512)
