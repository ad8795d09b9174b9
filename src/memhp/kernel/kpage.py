"""/proc/kpageflags and /proc/kpagecount: a word of 8 bytes for each page frame (``fs/proc/page.c``).

The words are those that Debian's 6.1 and 6.12 kernels show for such pages (observed, except for huge pages in use: read).
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from memhp.errors import HotplugError
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.kinds import PageKind
from memhp.units import PAGES_PER_SECTION, Pfn

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["read_kpagecount", "read_kpageflags"]

_WORD = 8
_BUDDY, _NOPAGE, _RESERVED = 1 << 10, 1 << 20, 1 << 32
_HEAD, _TAIL, _HUGE, _THP = 1 << 15, 1 << 16, 1 << 17, 1 << 22
_ANON = 0x400005828
"""UPTODATE, LRU, MMAP, ANON, SWAPBACKED, and what the kernel calls MAPPEDTODISK: anonymous pages use that bit otherwise."""
_KSM = 1 << 21
"""6.12 shows it on every anonymous page (observed)."""
_SINGLE = {
    PageKind.FILE: 0x28,
    PageKind.SLAB: 0x80,
    PageKind.RECLAIMABLE: 0x80,
    PageKind.PAGE_TABLE: 1 << 26,
    PageKind.RESERVED: _RESERVED,
    PageKind.MEMMAP: _RESERVED,
    PageKind.OFFLINE: 1 << 23,
    PageKind.POISONED: 1 << 19,
}
_MAPPED = frozenset({PageKind.MOVABLE, PageKind.ANONYMOUS, PageKind.THP, PageKind.HUGETLB})

Words = npt.NDArray[np.uint64]


def read_kpageflags(machine: Machine, offset: int, size: int) -> bytes:
    """Read flags; offset and size (-1: all) are in bytes.

    Raises:
        HotplugError: EINVAL, they are no multiples of 8.
    """
    return _read(machine, offset, size, functools.partial(_flags_of, machine), _NOPAGE)


def read_kpagecount(machine: Machine, offset: int, size: int) -> bytes:
    """Read how many times pages are mapped; offset and size (-1: all) are in bytes.

    Raises:
        HotplugError: EINVAL, they are no multiples of 8.
    """
    return _read(machine, offset, size, functools.partial(_counts_of, machine), 0)


def flag_words(kind: PageKind, *, newer: bool) -> tuple[int, int]:
    """Give the words of a first page, and of the others of a huge page, for a kind."""
    anon = _ANON | (_KSM if newer else 0)
    if kind in {PageKind.MOVABLE, PageKind.ANONYMOUS}:
        return anon, anon
    if kind is PageKind.THP:
        # Up to 6.1 a tail shows its own few flags, later those of its folio.
        return anon | _HEAD | _THP, (anon if newer else 0x1800) | _TAIL | _THP
    if kind is PageKind.HUGETLB:
        return 0x1808 | _HEAD | _HUGE, (0x1808 if newer else 0x1800) | _TAIL | _HUGE
    if kind in {PageKind.HUGETLB_FREE, PageKind.HUGETLB_RESERVED}:
        return _HEAD | _HUGE, _TAIL | _HUGE
    word = _SINGLE.get(kind, 0)
    return word, word


def _read(machine: Machine, offset: int, size: int, words_of: Callable[[MemoryBlock], Words], missing: int) -> bytes:
    if offset % _WORD or (size % _WORD and size != -1):
        raise HotplugError(errno.EINVAL, f"pages have words of {_WORD} bytes; can't read {size} bytes at {offset}")
    pfn = offset // _WORD
    end = _end_pfn(machine) if size < 0 else min(pfn + size // _WORD, _end_pfn(machine))
    parts = []
    while pfn < end:
        number = machine.block_id_of(Pfn(pfn))
        first = number * machine.pages_per_block
        until = min(end, first + machine.pages_per_block)
        block = machine.blocks.get(number)
        if block is None or not block.present:
            parts.append(np.full(until - pfn, missing, np.uint64))
        else:
            with machine.pages.lock:
                parts.append(words_of(block)[pfn - first : until - first])
        pfn = until
    return b"".join(part.tobytes() for part in parts)


def _end_pfn(machine: Machine) -> int:
    # The file ends with the section of the last page that there is.
    last = max((block.ram[-1][0] + block.ram[-1][1] for block in machine.blocks.values() if block.ram), default=0)
    return -(-last // PAGES_PER_SECTION) * PAGES_PER_SECTION


def _flags_of(machine: Machine, block: MemoryBlock) -> Words:
    words = np.full(block.nr_pages, _RESERVED, np.uint64)  # holes and what firmware keeps
    for _, start, nr_pages in block.present:
        words[start - block.start_pfn :][:nr_pages] = _BUDDY
    newer = machine.rules.value.counters == "6.12"
    for extent in block.used:
        head, tail = flag_words(extent.kind, newer=newer)
        part = words[extent.start_pfn - block.start_pfn :][: extent.nr_pages]
        part[:] = tail
        part[:: 1 << extent.kind.order] = head
    for start, kinds, tails in machine.pages.chunks.states_in(block) if machine.pages.has_chunks else ():
        here = words[start - block.start_pfn :][: len(kinds)]
        heads_of, tails_of = _tables(newer=newer)
        here[kinds > 0] = np.where(tails, tails_of[kinds], heads_of[kinds])[kinds > 0]
    return words


@functools.lru_cache
def _tables(*, newer: bool) -> tuple[Words, Words]:
    heads, tails = np.zeros(256, np.uint64), np.zeros(256, np.uint64)
    for kind in PageKind:
        heads[kind.code], tails[kind.code] = flag_words(kind, newer=newer)
    return heads, tails


def _counts_of(machine: Machine, block: MemoryBlock) -> Words:
    words = np.zeros(block.nr_pages, np.uint64)
    for extent in block.used:
        if extent.kind in _MAPPED:
            words[extent.start_pfn - block.start_pfn :][: extent.nr_pages] = 1
    mapped = np.isin(np.arange(256), [kind.code for kind in _MAPPED])
    for start, kinds, _ in machine.pages.chunks.states_in(block) if machine.pages.has_chunks else ():
        words[start - block.start_pfn :][: len(kinds)][mapped[kinds]] = 1
    return words
