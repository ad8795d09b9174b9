"""What /proc/kpageflags says of a page (include/uapi/linux/kernel-page-flags.h; fs/proc/page.c, ``stable_page_flags``).

The file is an array of 64-bit words, one a page frame. /proc/kpagecount is such an array of how often each page is mapped,
which is *not* its reference count; /proc/kpagecgroup one of the inode numbers of the memory cgroups that pages are charged to.
"""

from __future__ import annotations

import enum

__all__ = ["KPAGECGROUP", "KPAGECOUNT", "KPAGEFLAGS", "WORD", "Kpf", "flag_names"]

KPAGEFLAGS = "/proc/kpageflags"
KPAGECOUNT = "/proc/kpagecount"
KPAGECGROUP = "/proc/kpagecgroup"

WORD = 8
"""Bytes that a page frame has in each of the three files."""


class Kpf(enum.IntFlag):
    """The flags; those from 32 on are the kernel's own and may change."""

    LOCKED = 1 << 0
    ERROR = 1 << 1
    REFERENCED = 1 << 2
    UPTODATE = 1 << 3
    DIRTY = 1 << 4
    LRU = 1 << 5
    ACTIVE = 1 << 6
    SLAB = 1 << 7
    WRITEBACK = 1 << 8
    RECLAIM = 1 << 9
    BUDDY = 1 << 10
    MMAP = 1 << 11
    ANON = 1 << 12
    SWAPCACHE = 1 << 13
    SWAPBACKED = 1 << 14
    COMPOUND_HEAD = 1 << 15
    COMPOUND_TAIL = 1 << 16
    HUGE = 1 << 17
    UNEVICTABLE = 1 << 18
    HWPOISON = 1 << 19
    NOPAGE = 1 << 20
    KSM = 1 << 21
    THP = 1 << 22
    OFFLINE = 1 << 23
    ZERO_PAGE = 1 << 24
    IDLE = 1 << 25
    PGTABLE = 1 << 26
    RESERVED = 1 << 32
    MLOCKED = 1 << 33
    OWNER_2 = 1 << 34
    PRIVATE = 1 << 35
    PRIVATE_2 = 1 << 36
    OWNER_PRIVATE = 1 << 37
    ARCH = 1 << 38
    UNCACHED = 1 << 39
    SOFTDIRTY = 1 << 40
    ARCH_2 = 1 << 41
    ARCH_3 = 1 << 42


def flag_names(word: int) -> str:
    """Name the flags of a word, lowest first: ``UPTODATE LRU MMAP ANON``; a bit without a name is ``bit N``."""
    known = {flag.value: flag.name or "" for flag in Kpf}
    return " ".join(known.get(1 << bit, f"bit {bit}") for bit in range(word.bit_length()) if word >> bit & 1)
