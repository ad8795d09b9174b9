"""Workloads: what fills a machine's memory, and how it changes as it ages. A seed gives the same pages each time.

The shares are round numbers for what such machines show in /proc/meminfo; they are there to be changed. What matters for
memory hotplug is how they mix: pages that can't move are allocated all the while, between those that can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memhp.errors import HotplugError, InvalidInput
from memhp.kernel import Machine, PageKind
from memhp.kernel.holdings import Holding
from memhp.units import PAGE_SHIFT

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MOST_ROUNDS", "WORKLOADS", "Filled", "Part", "Workload", "fill"]

_ROUNDS = 16
"""In how many steps a machine fills; each takes some of everything."""
_SINGLES = 1 << 19
"""How many single pages a part has at most; what is more comes in larger pieces, as large folios do."""
_HUGE = 512
MOST_ROUNDS = 1000
"""For how many rounds a workload can age; what it uses has settled long before."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what a workload uses.

    Attributes:
        kind: what its pages are.
        share: its share of the pages in use.
        owner: whose it is, for messages.
        large: whether it is allocated in large runs; else page by page.
        churn: which share of it is replaced in one round of ageing.
        pinned: which share of its allocations can't migrate, because a device uses it.
    """

    kind: PageKind
    share: float
    owner: str
    large: bool = False
    churn: float = 0.0
    pinned: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What a machine does.

    Attributes:
        title: in a few words.
        parts: what its memory is used for; the shares add up to 1.
    """

    title: str
    parts: tuple[Part, ...]


WORKLOADS = {
    "database": Workload(
        "a database with a big buffer pool",
        (
            Part(PageKind.HUGETLB, 0.70, "buffer pool", large=True),
            Part(PageKind.FILE, 0.13, "page cache", churn=0.3),
            Part(PageKind.ANONYMOUS, 0.10, "connections", churn=0.5),
            Part(PageKind.SLAB, 0.03, "slab", churn=0.1),
            Part(PageKind.PAGE_TABLE, 0.02, "page tables", churn=0.2),
            Part(PageKind.RECLAIMABLE, 0.02, "inodes and dentries", churn=0.2),
        ),
    ),
    "build": Workload(
        "a machine that builds software",
        (
            Part(PageKind.FILE, 0.45, "page cache", churn=0.4),
            Part(PageKind.ANONYMOUS, 0.35, "compilers", churn=0.9),
            Part(PageKind.RECLAIMABLE, 0.11, "inodes and dentries", churn=0.4),
            Part(PageKind.SLAB, 0.05, "slab", churn=0.2),
            Part(PageKind.PAGE_TABLE, 0.04, "page tables", churn=0.9),
        ),
    ),
    "cache": Workload(
        "a cache server",
        (
            Part(PageKind.THP, 0.60, "cache", large=True),
            Part(PageKind.ANONYMOUS, 0.26, "cache", churn=0.1),
            Part(PageKind.SLAB, 0.06, "sockets", churn=0.5),
            Part(PageKind.FILE, 0.04, "page cache", churn=0.3),
            Part(PageKind.PAGE_TABLE, 0.03, "page tables", churn=0.05),
            Part(PageKind.RECLAIMABLE, 0.01, "inodes and dentries", churn=0.2),
        ),
    ),
    "vmhost": Workload(
        "a host of virtual machines, some of which have devices of their own",
        (
            Part(PageKind.THP, 0.80, "guests", large=True, churn=0.15, pinned=0.1),
            Part(PageKind.ANONYMOUS, 0.06, "qemu", churn=0.2),
            Part(PageKind.FILE, 0.06, "page cache", churn=0.4),
            Part(PageKind.SLAB, 0.04, "slab", churn=0.1),
            Part(PageKind.PAGE_TABLE, 0.03, "page tables", churn=0.15),
            Part(PageKind.RECLAIMABLE, 0.01, "inodes and dentries", churn=0.2),
        ),
    ),
}
"""By the names that studies use."""


@dataclass(slots=True)
class Filled:
    """What a workload holds: for each part, its allocations."""

    machine: Machine
    held: list[tuple[Part, list[Holding]]]

    @property
    def nr_pages(self) -> int:
        """How many pages it holds."""
        return sum(holding.nr_pages for _, holdings in self.held for holding in holdings)


def fill(machine: Machine, workload: Workload | str, share: float, *, seed: int, age: int = 0) -> Filled:
    """Fill a machine until a share of its pages is in use, and let it age.

    Args:
        machine: what to fill; what is in use already counts.
        workload: with what; a name of :data:`WORKLOADS` or one of your own.
        share: of the managed pages, above 0 and below 1. A machine whose kernel pages find no room in its kernel zones
            stays below.
        seed: the same gives the same pages.
        age: how many rounds of freeing and allocating anew follow, at most :data:`MOST_ROUNDS`.

    Raises:
        InvalidInput: no such workload, or a number out of its range.
    """
    chosen = WORKLOADS.get(workload) if isinstance(workload, str) else workload
    if chosen is None:
        raise InvalidInput(workload, "workload", f"one of {', '.join(WORKLOADS)}")
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise InvalidInput(share, "fill", "a share above 0 and below 1")
    for value, where in ((seed, "seed"), (age, "age")):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidInput(value, where, "a number, at least 0")
    if age > MOST_ROUNDS:
        raise InvalidInput(age, "age", f"at most {MOST_ROUNDS} rounds")
    managed = machine.memory_total >> PAGE_SHIFT
    wanted = max(int(managed * share) - (managed - machine.pages.count_free()), 0)
    worker = _Worker(machine, seed)
    filled = Filled(machine, [(part, []) for part in chosen.parts])
    for number in range(_ROUNDS):
        for part, held in filled.held:
            # What did not fit into large pieces last time is asked for again.
            so_far = sum(holding.nr_pages for holding in held)
            worker.add(part, held, max(int(wanted * part.share) * (number + 1) // _ROUNDS - so_far, 0))
    for _ in range(age):
        worker.age(filled)
    return filled


class _Worker:
    def __init__(self, machine: Machine, seed: int) -> None:
        import numpy as np  # noqa: PLC0415 - with the first machine that is filled, not with this module

        self._pages = machine.pages
        self._random: np.random.Generator = np.random.default_rng(seed)
        nodes = {nid: sum(zone.managed for zone in node.zones) for nid, node in machine.nodes.items()}
        self._nodes = [nid for nid, managed in nodes.items() if managed]
        total = sum(nodes.values())
        self._weights = [nodes[nid] / total for nid in self._nodes]
        self._machine = machine

    def add(self, part: Part, held: list[Holding], nr_pages: int, singles: int = _SINGLES // _ROUNDS) -> None:
        """Allocate so many pages of a part, some on each node; fewer where there is no room."""
        for nid, weight in zip(self._nodes, self._weights, strict=True):
            missing = int(nr_pages * weight)
            if part.large or missing > singles:
                missing -= self._runs(part, held, nid, missing if part.large else missing - singles)
            if missing and not part.large:
                _try(held, lambda nid=nid, missing=missing: self._bulk(part, nid, missing))  # type: ignore[misc]

    def _bulk(self, part: Part, nid: int, nr_pages: int) -> Holding:
        return self._pages.alloc_pages_bulk(nr_pages, kind=part.kind, node=nid, owner=part.owner)

    def _runs(self, part: Part, held: list[Holding], nid: int, nr_pages: int) -> int:
        taken = 0
        while nr_pages - taken >= _HUGE:
            # Eight pieces or more a round, of very different sizes.
            size = max(int((nr_pages / 8) * float(self._random.pareto(3.0) + 0.5)), _HUGE) // _HUGE * _HUGE
            size = min(size, (nr_pages - taken) // _HUGE * _HUGE)
            if not _try(held, lambda size=size: self._machine.alloc_pages(size, part.kind, node=nid, owner=part.owner)):  # type: ignore[misc]
                break
            taken += size
            if part.pinned and self._random.random() < part.pinned:
                self._pages.pin(held[-1])
        return taken

    def age(self, filled: Filled) -> None:
        """Replace a part of everything: what is new comes before what is old goes, so that holes are left behind."""
        for place in self._random.permutation(len(filled.held)).tolist():
            part, held = filled.held[place]
            before = sum(holding.nr_pages for holding in held)
            if not int(before * part.churn):
                continue
            self.add(part, held, int(before * part.churn), _SINGLES)
            added = sum(holding.nr_pages for holding in held) - before
            if part.large:
                self._free_runs(held, added)
            else:
                self._free_singles(held, added / (before + added))

    def _free_runs(self, held: list[Holding], nr_pages: int) -> None:
        for place in sorted(self._random.permutation(len(held)).tolist()[: len(held) // 2], reverse=True):
            if held[place].nr_pages <= nr_pages:
                nr_pages -= held[place].nr_pages
                self._pages.free(held.pop(place))

    def _free_singles(self, held: list[Holding], share: float) -> None:
        for holding in held.copy():
            pfns: Any = getattr(holding, "pfns", None)
            if pfns is None:  # a run
                if self._random.random() < share:
                    self._pages.free(holding)
            else:
                self._pages.free_pages_bulk(holding, pfns[self._random.random(len(pfns)) < share])  # type: ignore[arg-type]
            if not holding.nr_pages:
                held.remove(holding)


def _try(held: list[Holding], allocate: Callable[[], Holding]) -> bool:
    try:
        held.append(allocate())
    except HotplugError:
        return False
    return True
