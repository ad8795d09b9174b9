"""The page frames of a memory block by kind, as far as /proc/kpageflags tells; read in bulk, a block at a time.

What the flags can't tell is a kind of its own rather than a guess. Two things they never tell: whether a page is pinned
(/proc/kpagecount is how often a page is *mapped*, not its references), and what a page without any flag is, which may be free in
a list of some CPU, or the kernel's.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Self

from memhp.abi.pageflags import KPAGECOUNT, KPAGEFLAGS, WORD, Kpf
from memhp.abi.tree import BinaryFile, Tree, open_binary

__all__ = ["BlockFrames", "Fate", "FrameKind", "FrameReader", "kind_of"]


class Fate(enum.Enum):
    """What becomes of a page when its block goes offline."""

    NOTHING = "nothing"
    """It is free, absent or broken: there is nothing to do."""
    MOVES = "moves"
    """It moves elsewhere, unless something that can't be seen keeps it."""
    STOPS = "stops"
    """Outside of ZONE_MOVABLE it stops the block with EBUSY (mm/page_isolation.c, ``has_unmovable_pages``)."""
    UNTOLD = "untold"
    """The flags don't tell."""


class FrameKind(enum.Enum):
    """Kinds of page frames: a word for people, and what becomes of such a page."""

    HOLE = "hole", Fate.NOTHING
    """No page is there, or it is offline already."""
    FREE = "free", Fate.NOTHING
    POISONED = "hwpoison", Fate.NOTHING
    """Its hardware is bad: it is passed over, and keeps the block from coming online again (6.12)."""
    ANON = "anonymous", Fate.MOVES
    """Memory of processes, also shared memory and tmpfs."""
    FILE = "file", Fate.MOVES
    """Page cache."""
    HUGETLB = "hugetlb", Fate.MOVES
    """Of the pool of huge pages: one in use migrates, a free one is dissolved."""
    OFFLINE = "offline", Fate.UNTOLD
    """A driver (balloon, virtio-mem) has taken it; what happens depends on that driver."""
    OFF_LRU = "off-lru", Fate.UNTOLD
    """It has the flags of page cache and is on no LRU list: on its way to one, or the kernel's own."""
    UNTOLD = "no flags", Fate.UNTOLD
    """Free in a list of some CPU, or the kernel's: stacks, vmalloc, drivers; or never initialised."""
    COMPOUND_TAIL = "compound tail", Fate.NOTHING
    """Part of a large page whose head says what it is."""
    RESERVED = "reserved", Fate.STOPS
    """Taken at boot for good. It stops a block of ZONE_MOVABLE, too."""
    SLAB = "slab", Fate.STOPS
    PAGE_TABLE = "page table", Fate.STOPS
    COMPOUND = "kernel compound", Fate.STOPS
    """A large page of the kernel or of a driver."""
    DRIVER = "mapped by a driver", Fate.STOPS
    """The kernel's own, mapped by a process: rings of packets, of perf, of io_uring."""
    ZERO = "huge zero page", Fate.STOPS

    def __init__(self, label: str, fate: Fate) -> None:
        self.label = label
        self.fate = fate

    def __str__(self) -> str:
        return self.label

    __hash__ = object.__hash__
    """There is one object a kind; the hash of an Enum's name takes ten times as long."""


# The first that matches decides. BUDDY stands before what a free page may still carry of its former life, SLAB before ANON and
# KSM, which share a field of the page with the slab's own data (both observed on 6.18).
_BY_FLAG = (
    (Kpf.NOPAGE, FrameKind.HOLE),
    (Kpf.RESERVED, FrameKind.RESERVED),
    (Kpf.BUDDY, FrameKind.FREE),
    (Kpf.HUGE, FrameKind.HUGETLB),
    (Kpf.SLAB, FrameKind.SLAB),
    (Kpf.PGTABLE, FrameKind.PAGE_TABLE),
    (Kpf.HWPOISON, FrameKind.POISONED),
    (Kpf.OFFLINE, FrameKind.OFFLINE),
    (Kpf.ZERO_PAGE, FrameKind.ZERO),
    (Kpf.ANON | Kpf.SWAPBACKED | Kpf.SWAPCACHE, FrameKind.ANON),
    # In 6.1 only the head of a transparent huge page has LRU; its tails have THP.
    (Kpf.LRU | Kpf.THP, FrameKind.FILE),
    (Kpf.LOCKED | Kpf.ERROR | Kpf.REFERENCED | Kpf.UPTODATE | Kpf.DIRTY, FrameKind.OFF_LRU),
    (Kpf.ACTIVE | Kpf.WRITEBACK | Kpf.RECLAIM | Kpf.UNEVICTABLE, FrameKind.OFF_LRU),
    (Kpf.MMAP, FrameKind.DRIVER),
    (Kpf.COMPOUND_HEAD, FrameKind.COMPOUND),
    (Kpf.COMPOUND_TAIL, FrameKind.COMPOUND_TAIL),
)


@functools.lru_cache(maxsize=4096)
def kind_of(word: int) -> FrameKind:
    """Tell the kind of a page from its word of /proc/kpageflags.

    Each rule follows from how the kernel makes the words (fs/proc/page.c, ``stable_page_flags``) and what it does with such
    pages (mm/page_isolation.c, ``has_unmovable_pages``); docs/explain.md has them one by one.
    """
    return next((kind for flags, kind in _BY_FLAG if word & flags), FrameKind.UNTOLD)


class BlockFrames(SimpleNamespace):
    """What is in a block.

    Attributes:
        counts: pages by kind.
        first_stop: pfn of the first page of a kind that stops, or None.
        first_reserved: pfn of the first reserved page, which stops in ZONE_MOVABLE too, or None.
        stop_kind: its kind.
        huge_mapped: pages of the hugetlb pool in use by a process for sure.
    """

    counts: dict[FrameKind, int]
    first_stop: int | None
    stop_kind: FrameKind | None
    first_reserved: int | None
    huge_mapped: int

    def __init__(self) -> None:
        super().__init__(counts={}, first_stop=None, stop_kind=None, first_reserved=None, huge_mapped=0)

    def note_stop(self, kind: FrameKind, pfn: int) -> None:
        """Note the first page of a word that stops."""
        if self.first_stop is None or pfn < self.first_stop:
            self.first_stop, self.stop_kind = pfn, kind
        if kind is FrameKind.RESERVED and (self.first_reserved is None or pfn < self.first_reserved):
            self.first_reserved = pfn

    def count(self, *kinds: FrameKind) -> int:
        """Count the pages of these kinds."""
        return sum(self.counts.get(kind, 0) for kind in kinds)

    def fated(self, fate: Fate) -> int:
        """Count the pages with that fate."""
        return sum(number for kind, number in self.counts.items() if kind.fate is fate)


class FrameReader:
    """Reads blocks; as a context manager, so that its files are closed.

    Args:
        tree: the machine.
        many: whether so much will be read that it pays to wait for numpy; if it is imported already, it is used anyway.

    Raises:
        OSError: EACCES or EPERM, only root may read; ENOENT, the kernel or the copy has no such file.
    """

    def __init__(self, tree: Tree, *, many: bool = False) -> None:
        self._tree = tree
        self._files = contextlib.ExitStack()
        self._flags = self._open(KPAGEFLAGS)
        self._counts: BinaryFile | None = None
        self._room = array("Q")
        self._distinct = _distinct_in_bulk if "numpy" in sys.modules or (many and _has_numpy()) else _distinct

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def _open(self, path: str) -> BinaryFile:
        file = open_binary(self._tree, path)
        self._files.callback(file.close)
        return file

    def words(self, start_pfn: int, nr_pages: int) -> array[int]:
        """Give the words of a range; shorter where the file ends. The next call may use the same memory again."""
        if len(self._room) != nr_pages:
            self._room = array("Q", bytes(nr_pages * WORD))
        number = _fill(self._flags, self._room, start_pfn) // WORD
        return self._room if number == nr_pages else self._room[:number]

    def block(self, start_pfn: int, nr_pages: int) -> BlockFrames:
        """Count a range by kind. Pages beyond the end of the file are holes, as the kernel has no page for them."""
        words = self.words(start_pfn, nr_pages)
        frames = BlockFrames()
        counts = frames.counts
        for word, number, first in self._distinct(words):
            kind = kind_of(word)
            counts[kind] = counts.get(kind, 0) + number
            if kind.fate is Fate.STOPS:
                frames.note_stop(kind, start_pfn + first)
        if len(words) < nr_pages:
            counts[FrameKind.HOLE] = counts.get(FrameKind.HOLE, 0) + nr_pages - len(words)
        if FrameKind.HUGETLB in counts:
            frames.huge_mapped = self._huge_mapped(words, start_pfn)
        return frames

    def _huge_mapped(self, words: array[int], start_pfn: int) -> int:
        # Only the head of a huge page has a count of mappings that means the whole (6.1), so each page follows its head.
        try:
            self._counts = self._counts or self._open(KPAGECOUNT)
        except OSError:
            return 0
        mapped = array("Q", bytes(len(words) * WORD))
        _fill(self._counts, mapped, start_pfn)
        number, in_use = 0, False
        for at, chunk in _chunks(words):
            for head, pages in _huge_parts(chunk):
                in_use = in_use if head is None else mapped[at + head] > 0
                number += in_use * pages
        return number


_CHUNK = 512
"""Pages that are counted together; a huge page of 2 MiB has as many."""


def _has_numpy() -> bool:
    from importlib.util import find_spec  # noqa: PLC0415 - it imports others, for a question that is rarely asked

    return find_spec("numpy") is not None


Distinct = tuple[int, int, int]
"""A word, how often it is there, and of a word that stops where it is first."""


def _chunks(words: array[int]) -> Iterator[tuple[int, bytes]]:
    with memoryview(words) as whole, whole.cast("B") as view:
        for at in range(0, len(words), _CHUNK):
            yield at, bytes(view[at * WORD : (at + _CHUNK) * WORD])


@functools.lru_cache(maxsize=64)
def _huge_parts(chunk: bytes) -> list[tuple[int | None, int]]:
    # Each head in it, and how many pages of the pool follow up to the next; None before the first head.
    parts: list[tuple[int | None, int]] = [(None, 0)]
    for place, word in enumerate(memoryview(chunk).cast("Q")):
        if word & Kpf.COMPOUND_HEAD:
            parts.append((place, 0))
        head, pages = parts[-1]
        parts[-1] = head, pages + (kind_of(word) is FrameKind.HUGETLB)
    return parts


def _distinct(words: array[int]) -> Iterator[Distinct]:
    # Most chunks of a block are like another one, so few words have to be counted one by one.
    places: dict[bytes, list[int]] = {}
    for at, chunk in _chunks(words):
        places.setdefault(chunk, []).append(at)
    found: dict[int, list[int]] = {}
    for chunk, where in places.items():
        flags = memoryview(chunk).cast("Q").tolist()
        for word, number in Counter(flags).items():
            if word in found:
                found[word][0] += number * len(where)
            else:
                found[word] = [number * len(where), where[0] + flags.index(word)]
    yield from ((word, number, first) for word, (number, first) in found.items())


def _distinct_in_bulk(words: array[int]) -> Iterator[Distinct]:
    # The same, five times as fast with numpy. Pages of a kind lie together, so runs are counted rather than words.
    import numpy as np  # noqa: PLC0415 - it takes as long to import as to count 40 GiB without it

    if not words:
        return
    numbers = np.frombuffer(words, np.uint64)
    ends = np.flatnonzero(numbers[1:] != numbers[:-1])
    if not len(ends):
        yield words[0], len(words), 0
        return
    starts = np.empty(len(ends) + 2, np.int64)
    starts[0], starts[1:-1], starts[-1] = 0, ends + 1, len(words)
    runs = numbers[starts[:-1]]
    values = np.unique(runs)
    which = np.searchsorted(values, runs)  # sorting the runs for np.unique(return_inverse=True) would take three times as long
    counts = np.bincount(which, starts[1:] - starts[:-1])
    for index, (value, count) in enumerate(zip(values.tolist(), counts.tolist(), strict=True)):
        first = int(starts[int((which == index).argmax())]) if kind_of(value).fate is Fate.STOPS else 0
        yield value, int(count), first


def _fill(file: BinaryFile, words: array[int], start_pfn: int) -> int:
    done = 0
    with memoryview(words) as whole, whole.cast("B") as view:
        while done < len(view):
            with view[done:] as rest:
                got = file.readinto(rest, start_pfn * WORD + done)
            if got <= 0:
                break
            done += got
    return done
