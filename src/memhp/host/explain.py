"""Will a block go offline, and if not, why: what the kernel would find in it (mm/memory_hotplug.c, mm/page_isolation.c).

A verdict is knowledge of one moment: pages come and go. YES, COSTS and NO follow from what the kernel shows; where that is not
enough the verdict is UNKNOWN and says what is missing. Three things are never shown, and stand as doubts beside a COSTS:
pins on pages, callbacks that may refuse, and what will have changed by the time of the attempt.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from memhp.abi.proc import covered_pages
from memhp.abi.tree import DirTree
from memhp.errors import InvalidInput, errno_name
from memhp.host.block import Block
from memhp.host.frames import BlockFrames, Fate, FrameKind, FrameReader
from memhp.host.parallel import share, usable_cpus
from memhp.host.survey import Survey
from memhp.units import format_size

__all__ = ["Cause", "Explanation", "Reason", "Verdict", "explain"]

_MANY = 10 << 20
"""Pages from which on importing numpy (150 ms) takes less time than it saves: 40 GiB."""
_SHARE = 1 << 18
"""Pages for which another thread pays: 1 GiB, some 15 ms."""
_MOST_WORKERS = 8
"""What Python does for a block, one thread at a time, takes a tenth of the kernel's part."""
_VIRTIO_MEM = "System RAM (virtio_mem)"


class Verdict(enum.Enum):
    """Whether a block will go offline."""

    YES = "yes"
    """Nothing has to move: each of its pages is free, absent or broken."""
    COSTS = "costs"
    """Each of its pages is free or of a kind that moves."""
    NO = "no"
    """The kernel would refuse."""
    UNKNOWN = "unknown"
    """What can be read is not enough to say."""
    OFFLINE = "offline"
    """It is offline already."""
    BUSY = "going-offline"
    """Somebody is taking it offline right now."""


class Cause(enum.Enum):
    """Why; the words of ``--json``."""

    ZONES = "several-zones"
    HOLES = "memory-holes"
    BOOT_MEMORY = "boot-memory"
    PAGES = "unmovable-pages"
    UNTOLD = "pages-without-flags"
    OFF_LRU = "pages-off-lru"
    DRIVER = "offline-pages"
    RESERVED_HUGE = "reserved-huge-pages"
    HUGE = "huge-pages"
    ROOM = "no-room"
    FLAGS = "flags-unreadable"
    RAM = "iomem-unreadable"
    CMA = "cma"
    STATE = "state-unreadable"


class Reason(NamedTuple):
    """One reason for a verdict.

    Attributes:
        cause: what it is about.
        text: a sentence.
        errno: what a write of ``offline`` would return, 0 if it isn't refused for this.
        pfn: the first page concerned, None if it isn't about one.
        pages: how many pages.
    """

    cause: Cause
    text: str
    errno: int = 0
    pfn: int | None = None
    pages: int = 0


class Explanation(NamedTuple):
    """What is known of one block.

    Attributes:
        block: as it was when it was read.
        node: its node.
        verdict: whether it will go.
        reasons: for NO those for which the kernel would refuse, for UNKNOWN what is missing.
        doubts: what can't be seen and could still keep it.
        pages: its pages by kind; None if they could not be read.
        move_pages: how many must move, at least; None if unknown.
        move_at_most: the same, at most.
        first_stop: pfn of the first page that stops it, None if there is none.
        targets: where its pages would go: node and free pages there (None: unknown).
        owners: who holds pages in it: a cgroup or a process, and how many; only if asked for.
    """

    block: Block
    node: int
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    doubts: tuple[str, ...] = ()
    pages: dict[FrameKind, int] | None = None
    move_pages: int | None = None
    move_at_most: int | None = None
    first_stop: int | None = None
    targets: tuple[tuple[int, int | None], ...] = ()
    owners: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"memory{self.block.id}: {self.sentence}"

    @property
    def sentence(self) -> str:
        """The verdict in words: ``no: slab page at pfn 0x41a00 (EBUSY), 312 such pages``."""
        why = "; ".join(reason.text for reason in self.reasons)
        if self.verdict is Verdict.COSTS:
            most = "" if self.move_at_most == self.move_pages else f" to {self.move_at_most}"
            return f"costs {self.move_pages}{most} pages"
        return f"{self.verdict.value}: {why}" if why else self.verdict.value

    @property
    def certain(self) -> bool:
        """Whether it is a YES or COSTS."""
        return self.verdict in {Verdict.YES, Verdict.COSTS}


class _Case:
    # A block while it is judged.
    def __init__(self, block: Block, node: int) -> None:
        self.block = block
        self.node = node
        self.frames: BlockFrames | None = None
        self.stops: list[Reason] = []
        self.gaps: list[Reason] = []
        self.doubts: list[str] = []

    @property
    def movable_zone(self) -> bool:
        return self.block.zone == "Movable"


def explain(survey: Survey, ids: Iterable[int] | None = None) -> list[Explanation]:
    """Explain the blocks, all by default, in ascending order. Only their pages are read, once, a block at a time.

    Raises:
        InvalidInput: a block that doesn't exist.
    """
    blocks = survey.blocks if ids is None else _chosen(survey, ids)
    cases = [_Case(block, survey.node_of(block)) for block in blocks]
    trouble = _read_frames(survey, [case for case in cases if case.block.online])
    slack = _slack(survey, cases)
    return [_judge(survey, case, trouble, slack) for case in cases]


def _chosen(survey: Survey, ids: Iterable[int]) -> list[Block]:
    wanted = sorted(set(ids))
    for number in wanted:
        if number not in survey.by_id:
            raise InvalidInput(
                f"memory{number}", "blocks", f"blocks that exist, from {survey.blocks[0].id} to {survey.blocks[-1].id}"
            )
    return [survey.by_id[number] for number in wanted]


def _read_frames(survey: Survey, cases: Sequence[_Case]) -> str:
    # Gives why they could not be read, or ''.
    if not cases:
        return ""
    pages = len(cases) * survey.block_pages

    def read(some: Iterator[_Case]) -> None:
        with FrameReader(survey.tree, many=pages > _MANY) as reader:
            for case in some:
                case.frames = reader.block(survey.first_pfn(case.block), survey.block_pages)

    try:
        share(cases, read, _workers(survey, pages))
    except OSError as error:
        for case in cases:
            case.frames = None
        if error.errno in {errno.EACCES, errno.EPERM}:
            return "only root may read /proc/kpageflags"
        return f"/proc/kpageflags can't be read ({errno_name(error.errno or 0)})"
    return ""


def _workers(survey: Survey, pages: int) -> int:
    # The kernel takes no lock for such a read. A tree that isn't the kernel's files need not bear several readers.
    wanted = min(pages // _SHARE, _MOST_WORKERS) if isinstance(survey.tree, DirTree) else 1
    return min(wanted, usable_cpus()) if wanted > 1 else 1


def _slack(survey: Survey, cases: Sequence[_Case]) -> dict[tuple[int, str], int]:
    # How many pages of a zone may have no flags and yet not be the kernel's: those in lists of the CPUs, those of zsmalloc, and
    # those that the allocator never got, less what of the latter was seen with flags. A block with more than that has some of
    # the kernel's for sure.
    slack = {(zone.node, zone.name): zone.pcp + zone.zspages + max(0, zone.present - zone.managed) for zone in survey.zones}
    for case in cases:
        key = (case.node, case.block.zone or "")
        if case.frames is not None and key in slack:
            seen = case.frames.count(FrameKind.RESERVED, FrameKind.POISONED, FrameKind.OFFLINE)
            slack[key] = max(0, slack[key] - seen)
    return slack


def _judge(survey: Survey, case: _Case, trouble: str, slack: dict[tuple[int, str], int]) -> Explanation:
    block = case.block
    if block.trouble:
        return Explanation(block, case.node, Verdict.UNKNOWN, (Reason(Cause.STATE, block.trouble),))
    if not block.online:
        return Explanation(block, case.node, Verdict.OFFLINE if block.state == "offline" else Verdict.BUSY)
    _check_range(survey, case)
    if case.frames is None:
        case.gaps.append(Reason(Cause.FLAGS, trouble))
        return _conclude(survey, case)
    _check_stops(case, case.frames)
    _check_untold(case, case.frames, slack)
    _check_driver_pages(survey, case, case.frames)
    _check_huge(survey, case, case.frames)
    return _conclude(survey, case)


def _check_range(survey: Survey, case: _Case) -> None:
    block = case.block
    zones = block.valid_zones
    if zones is None:
        case.gaps.append(Reason(Cause.ZONES, "the kernel doesn't say in which zone it lies"))
    elif block.zone is None:
        case.stops.append(Reason(Cause.ZONES, "it lies in several zones (valid_zones: none)", errno.EINVAL))
    if survey.ram is None:
        case.doubts.append("whether it has holes: the addresses in /proc/iomem can't be read")
    else:
        covered = covered_pages(survey.ram, survey.first_pfn(block), survey.block_pages, survey.page_size)
        if covered != survey.block_pages:
            holes = survey.block_pages - covered
            case.stops.append(Reason(Cause.HOLES, f"{holes} of its pages are not RAM (memory holes)", errno.EINVAL, pages=holes))
    if survey.arch == "aarch64" and _resource_of(survey, block) in {"System RAM", ""}:
        # mm/mmu.c of arm64, prevent_bootmem_remove_notifier(): whether a section is early is shown nowhere.
        case.gaps.append(
            Reason(Cause.BOOT_MEMORY, "arm64 doesn't let go of memory that was there at boot, and doesn't say which was")
        )
    if survey.meminfo.get("CmaTotal", 0):
        case.doubts.append(f"whether it has pages of CMA, of which there are {format_size(survey.meminfo['CmaTotal'])} somewhere")


def _resource_of(survey: Survey, block: Block) -> str:
    # Who added the memory: "System RAM", or a driver's name; '' if unknown.
    return next((name for first, last, name in survey.ram or [] if first <= block.start <= last), "")


def _check_stops(case: _Case, frames: BlockFrames) -> None:
    if case.movable_zone:
        number = frames.count(FrameKind.RESERVED)
        if number:
            pfn = frames.first_reserved or 0
            case.stops.append(Reason(Cause.PAGES, _pages_at(FrameKind.RESERVED, pfn, number), errno.EBUSY, pfn, number))
        return
    if frames.first_stop is not None and frames.stop_kind is not None:
        number = frames.fated(Fate.STOPS)
        kinds = [kind for kind in frames.counts if kind.fate is Fate.STOPS]
        more = f", {number} unmovable pages in all" if len(kinds) > 1 else ""
        text = _pages_at(frames.stop_kind, frames.first_stop, frames.count(frames.stop_kind)) + more
        case.stops.append(Reason(Cause.PAGES, text, errno.EBUSY, frames.first_stop, number))


def _pages_at(kind: FrameKind, pfn: int, number: int) -> str:
    return f"{kind} page at pfn {pfn:#x}" + (f" (one of {number})" if number > 1 else "")


def _check_untold(case: _Case, frames: BlockFrames, slack: dict[tuple[int, str], int]) -> None:
    if case.movable_zone:
        # Nothing of the kernel's own is ever allocated there, and isolation takes that for granted.
        return
    untold = frames.count(FrameKind.UNTOLD)
    room = slack.get((case.node, case.block.zone or ""))
    if untold and room is not None and untold > room:
        sure = untold - room
        case.stops.append(
            Reason(
                Cause.UNTOLD, f"at least {sure} of its {untold} pages without flags are the kernel's", errno.EBUSY, pages=untold
            )
        )
    elif untold:
        case.gaps.append(
            Reason(Cause.UNTOLD, f"{untold} pages have no flags: free in a CPU's list, or the kernel's", pages=untold)
        )
    if off := frames.count(FrameKind.OFF_LRU):
        case.gaps.append(Reason(Cause.OFF_LRU, f"{off} pages like page cache are on no LRU list just now", pages=off))


def _check_driver_pages(survey: Survey, case: _Case, frames: BlockFrames) -> None:
    number = frames.count(FrameKind.OFFLINE)
    if not number:
        return
    if _resource_of(survey, case.block) != _VIRTIO_MEM:
        case.gaps.append(
            Reason(Cause.DRIVER, f"a driver has taken {number} pages offline, and must let go of them", pages=number)
        )


def _check_huge(survey: Survey, case: _Case, frames: BlockFrames) -> None:
    number = frames.count(FrameKind.HUGETLB)
    if not number:
        return
    unmapped = number - frames.huge_mapped
    for pool in survey.huge_pools():
        page = pool.page_bytes // survey.page_size
        spare = pool.free - pool.reserved
        if pool.reserved and unmapped // page > spare:
            size = format_size(pool.page_bytes)
            text = f"up to {unmapped // page} free huge pages of {size} in it, and only {spare} are not reserved"
            on_node = [mine for mine in survey.huge_pools(case.node) if mine.page_bytes == pool.page_bytes]
            all_here = len(survey.memory_nodes) == 1 and bool(on_node) and on_node[0].total * page == number
            if all_here and pool.free > spare:
                case.stops.append(Reason(Cause.RESERVED_HUGE, text, errno.EBUSY, pages=unmapped))
            else:
                case.gaps.append(Reason(Cause.RESERVED_HUGE, text, pages=unmapped))
    case.doubts.append("whether there is room elsewhere for its huge pages that are in use")


def _conclude(survey: Survey, case: _Case) -> Explanation:
    frames = case.frames
    least = most = stop = None
    if frames is not None:
        least = frames.count(FrameKind.ANON, FrameKind.FILE) + frames.huge_mapped
        most = least + frames.count(FrameKind.HUGETLB, FrameKind.OFF_LRU) - frames.huge_mapped
        stop = frames.first_reserved if case.movable_zone else frames.first_stop
    verdict, reasons = _verdict(survey, case, most)
    return Explanation(
        block=case.block,
        node=case.node,
        verdict=verdict,
        reasons=tuple(reasons),
        doubts=(*case.doubts, "whether a page is pinned") if verdict is Verdict.COSTS else tuple(case.doubts),
        pages=None if frames is None else frames.counts,
        move_pages=least,
        move_at_most=most,
        first_stop=stop,
        targets=survey.room_for(case.node),
    )


def _verdict(survey: Survey, case: _Case, most: int | None) -> tuple[Verdict, list[Reason]]:
    if case.stops:
        return Verdict.NO, case.stops
    if case.frames is None or most is None or case.gaps:
        return Verdict.UNKNOWN, case.gaps
    if short := _short_of_room(survey, case, case.frames, most):
        return Verdict.UNKNOWN, [short]
    return (Verdict.COSTS if most else Verdict.YES), []


def _short_of_room(survey: Survey, case: _Case, frames: BlockFrames, most: int) -> Reason | None:
    targets = survey.room_for(case.node)
    free = [pages for _, pages in targets if pages is not None]
    if not most or len(free) < len(targets):
        return None
    there = sum(free)
    if targets[0][0] == case.node:
        there -= frames.count(FrameKind.FREE)
    if most <= there:
        return None
    nodes = ", ".join(str(node) for node, _ in targets)
    return Reason(Cause.ROOM, f"{most} pages must move, and node {nodes} has only {max(0, there)} free ones", pages=most)
