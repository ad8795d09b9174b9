"""What a page can be, and what that means for the allocator and for offlining."""

from __future__ import annotations

import enum

from memhp.errors import InvalidInput

__all__ = ["HUGE_ORDER", "MAX_ORDER", "Leaving", "MigrateType", "PageKind"]

MAX_ORDER = 10
"""The largest order of a free chunk: 1024 pages, 4 MiB (x86-64)."""
HUGE_ORDER = 9
"""The order of a pageblock, of a transparent huge page and of a 2 MiB page of hugetlb."""


class MigrateType(enum.IntEnum):
    """What a pageblock is for; numbers and names as in /proc/pagetypeinfo."""

    UNMOVABLE = 0
    MOVABLE = 1
    RECLAIMABLE = 2
    HIGHATOMIC = 3
    CMA = 4
    ISOLATE = 5

    @property
    def label(self) -> str:
        """The name that /proc/pagetypeinfo prints."""
        return ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate")[self]

    @classmethod
    def of(cls, value: object) -> MigrateType:
        """Give a migratetype by its name in any case, its number, or as it is.

        Raises:
            InvalidInput: there is no such type.
        """
        for kind in cls:
            if value is kind or (isinstance(value, str) and value.lower() == kind.label.lower()):
                return kind
        if isinstance(value, int) and not isinstance(value, bool) and value in tuple(cls):
            return cls(value)
        raise InvalidInput(value, "migratetype", f"one of {', '.join(kind.label.lower() for kind in cls)}")


class Leaving(enum.Enum):
    """What becomes of a page when its block goes offline (``mm/page_isolation.c``, ``mm/memory_hotplug.c``)."""

    MIGRATES = "moves elsewhere, unless it is pinned"
    DISSOLVES = "goes back to the allocator: a huge page that nobody uses"
    REFUSES = "EBUSY before anybody is called"
    HELD = "EBUSY after MEM_GOING_OFFLINE, unless its driver lets go"
    GOES_ALONG = "nothing: it goes with its block"


class PageKind(enum.Enum):
    """What a page in use is. ``value`` is its name in scenarios and messages."""

    MOVABLE = "movable"
    """Anonymous or file pages, where it doesn't matter which: they migrate, unless pinned. Counted as anonymous."""
    ANONYMOUS = "anonymous"
    """A process's memory: migrates, unless pinned."""
    FILE = "file"
    """The page cache: migrates, unless pinned."""
    THP = "thp"
    """Transparent huge pages, 512 pages each: migrate whole, or split into anonymous pages where there is no room for one."""
    HUGETLB = "hugetlb"
    """Huge pages of 2 MiB in use: migrate to a free one of another node, or into a new one."""
    HUGETLB_FREE = "hugetlb-free"
    """Huge pages in the pool: dissolved, and the pool shrinks."""
    HUGETLB_RESERVED = "hugetlb-reserved"
    """Huge pages in the pool that are promised to a mapping: EBUSY after MEM_GOING_OFFLINE, unless other free ones can keep
    the promise."""
    UNMOVABLE = "unmovable"
    """Kernel stacks, drivers' buffers and the like: isolation of their block fails with EBUSY."""
    SLAB = "slab"
    """Kernel objects: as unmovable."""
    RECLAIMABLE = "reclaimable"
    """Slab of caches that can shrink (inodes, dentries); isolation doesn't shrink them, so: as unmovable."""
    PAGE_TABLE = "page-table"
    """Page tables: as unmovable."""
    RESERVED = "reserved"
    """Taken at boot for good, e.g. the kernel's image; as unmovable."""
    OFFLINE = "offline"
    """Logically offline by a driver that holds a reference (a balloon): EBUSY, but only after MEM_GOING_OFFLINE,
    where the driver may let go."""
    MEMMAP = "memmap"
    """The block's own page structs (memmap on memory): they go with the block."""
    POISONED = "hwpoison"
    """Bad hardware: it doesn't keep its block from going offline, but from coming online again."""

    leaving: Leaving
    """What becomes of it when its block goes offline."""
    migratetype: MigrateType
    """Which pageblocks it is allocated from."""
    order: int
    """The order of one of it: 9 for huge pages, else 0."""
    code: int
    """Its number in arrays, from 1."""

    @classmethod
    def of(cls, value: object) -> PageKind:
        """Give a kind by its name, or as it is.

        Raises:
            InvalidInput: there is no such kind.
        """
        for kind in cls:
            if value is kind or value == kind.value:
                return kind
        raise InvalidInput(value, "alloc: kind", f"one of {', '.join(kind.value for kind in cls)}")


_TRAITS = {
    PageKind.MOVABLE: (Leaving.MIGRATES, MigrateType.MOVABLE, 0),
    PageKind.ANONYMOUS: (Leaving.MIGRATES, MigrateType.MOVABLE, 0),
    PageKind.FILE: (Leaving.MIGRATES, MigrateType.MOVABLE, 0),
    PageKind.THP: (Leaving.MIGRATES, MigrateType.MOVABLE, HUGE_ORDER),
    PageKind.HUGETLB: (Leaving.MIGRATES, MigrateType.MOVABLE, HUGE_ORDER),
    PageKind.HUGETLB_FREE: (Leaving.DISSOLVES, MigrateType.MOVABLE, HUGE_ORDER),
    PageKind.HUGETLB_RESERVED: (Leaving.DISSOLVES, MigrateType.MOVABLE, HUGE_ORDER),
    PageKind.UNMOVABLE: (Leaving.REFUSES, MigrateType.UNMOVABLE, 0),
    PageKind.SLAB: (Leaving.REFUSES, MigrateType.UNMOVABLE, 0),
    PageKind.RECLAIMABLE: (Leaving.REFUSES, MigrateType.RECLAIMABLE, 0),
    PageKind.PAGE_TABLE: (Leaving.REFUSES, MigrateType.UNMOVABLE, 0),
    PageKind.RESERVED: (Leaving.REFUSES, MigrateType.UNMOVABLE, 0),
    PageKind.OFFLINE: (Leaving.HELD, MigrateType.UNMOVABLE, 0),
    PageKind.MEMMAP: (Leaving.GOES_ALONG, MigrateType.UNMOVABLE, 0),
    PageKind.POISONED: (Leaving.GOES_ALONG, MigrateType.UNMOVABLE, 0),
}
for _code, (_kind, (_leaving, _migratetype, _order)) in enumerate(_TRAITS.items(), 1):
    _kind.leaving, _kind.migratetype, _kind.order, _kind.code = _leaving, _migratetype, _order, _code
