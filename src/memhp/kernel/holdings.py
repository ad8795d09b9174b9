"""Who holds pages: runs of them, of a kind and with a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memhp.kernel.kinds import PageKind
from memhp.units import Pfn

if TYPE_CHECKING:
    from memhp.kernel.blocks import MemoryBlock

__all__ = ["Allocation", "Extent", "Holding", "Place"]


class Holding:
    """What somebody holds, however it is kept: the common part of allocations of runs, of many single pages, and of one.

    Attributes:
        kind: what the pages are.
        owner: whose they are, for messages.
        pins: how many references keep them from migrating.
        freed: whether they were given back.
    """

    __slots__ = ("freed", "kind", "owner", "pins")

    kind: PageKind
    owner: str
    pins: int
    freed: bool

    @property
    def nr_pages(self) -> int:
        """How many pages it holds."""
        raise NotImplementedError

    @property
    def blocks(self) -> list[int]:
        """The ids of the blocks that it has pages in, ascending."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.owner or 'somebody'} ({self.kind.value}, {self.nr_pages} pages{', pinned' if self.pins else ''})"


@dataclass(slots=True, eq=False)
class Allocation(Holding):
    """Runs of pages that somebody holds; migration changes where they are, not what they are.

    Attributes:
        kind: what they are.
        owner: whose they are, for messages.
        pins: how many references keep them from migrating.
        extents: where they are now.
        freed: whether they were given back.
    """

    kind: PageKind
    owner: str
    pins: int = 0
    extents: list[Extent] = field(default_factory=list)
    freed: bool = False
    released: bool = False
    """Of a driver's offline pages: whether it has let go of them, so that they may leave with their block (PageOffline)."""

    @property
    def nr_pages(self) -> int:
        """How many pages it holds."""
        return sum(extent.nr_pages for extent in self.extents)

    @property
    def blocks(self) -> list[int]:
        """The ids of the blocks that it has pages in, ascending."""
        return sorted({extent.block.id for extent in self.extents})

    __str__ = Holding.__str__


@dataclass(slots=True, eq=False)
class Extent:
    """A run of pages of one allocation in one block.

    ``kind`` is that of the allocation, except for huge pages that were split.
    """

    start_pfn: Pfn
    nr_pages: int
    block: MemoryBlock
    allocation: Allocation
    kind: PageKind

    @property
    def end_pfn(self) -> Pfn:
        """The page frame after the run."""
        return Pfn(self.start_pfn + self.nr_pages)

    def __str__(self) -> str:
        return f"page {self.start_pfn:#x} of {self.allocation}"


@dataclass(frozen=True, slots=True)
class Place:
    """A page of something that is not kept in runs."""

    start_pfn: Pfn
    block: MemoryBlock
    allocation: Holding

    @property
    def kind(self) -> PageKind:
        """What it is."""
        return self.allocation.kind

    def __str__(self) -> str:
        return f"page {self.start_pfn:#x} of {self.allocation}"
