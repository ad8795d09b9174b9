"""Pages with bad hardware (``mm/memory-failure.c``; CONFIG_MEMORY_FAILURE, in Debian's 6.12 but not in its 6.1 cloud kernel)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from memhp.errors import EHWPOISON, HotplugError
from memhp.kernel.pages import Allocation, PageKind

if TYPE_CHECKING:
    from memhp.kernel.blocks import MemoryBlock
    from memhp.kernel.machine import Machine
    from memhp.units import Pfn

__all__ = ["hard_offline_page", "soft_offline_page"]


def hard_offline_page(machine: Machine, pfn: Pfn) -> None:
    """Take a page out of use at once, as an uncorrected memory error does; what was in it is lost to its owner.

    The node's counters of such failures (``memory_failure/``) tell what came of it.

    Raises:
        HotplugError: ENXIO, there is no such page or it is offline; EHWPOISON, it is poisoned already; EBUSY, the kernel
            uses it itself, so it is marked but stays where it is.
    """
    block = machine.blocks.get(machine.block_id_of(pfn))
    if block is None:
        raise HotplugError(errno.ENXIO, f"there is no page {pfn:#x}")
    with machine.locks.mf, machine.pages.lock:
        if not block.present:
            raise HotplugError(errno.ENXIO, f"page {pfn:#x} of {block.name} is not online", block=block.id)
        if pfn in block.poisoned:
            raise HotplugError(EHWPOISON, f"page {pfn:#x} of {block.name} is poisoned already", block=block.id)
        counters = machine.nodes[block.nid].memory_failure
        counters["total"] += 1
        if not _is_ram(block, pfn):
            counters["ignored"] += 1
            raise HotplugError(errno.EBUSY, f"page {pfn:#x} of {block.name} is reserved by firmware", block=block.id)
        block.poisoned.add(pfn)
        owner = machine.pages.give_up(block, pfn, hard=True)
        counters["ignored" if owner is not None else "recovered"] += 1
        if owner is not None:
            raise HotplugError(errno.EBUSY, f"page {pfn:#x} of {owner} can't be taken out of use", block=block.id)
        _occupy(machine, block, pfn)
    machine.pages.notice()


def soft_offline_page(machine: Machine, pfn: Pfn) -> None:
    """Take a page out of use after moving what is in it; one that is poisoned already is left as it is.

    Raises:
        HotplugError: ENXIO, there is no such page; EIO, it is offline, or what is in it can't move.
    """
    block = machine.blocks.get(machine.block_id_of(pfn))
    if block is None:
        raise HotplugError(errno.ENXIO, f"there is no page {pfn:#x}")
    # soft_offline_page() keeps the page online only until it has it; the model does the rest in the same moment.
    with machine.locks.mf, machine.online_mems(), machine.pages.lock:
        if not block.present:
            raise HotplugError(errno.EIO, f"page {pfn:#x} of {block.name} is not online", block=block.id)
        if pfn in block.poisoned:
            return
        if not _is_ram(block, pfn):
            raise HotplugError(errno.EIO, f"page {pfn:#x} of {block.name} is reserved by firmware", block=block.id)
        owner = machine.pages.give_up(block, pfn, hard=False)
        if owner is not None:
            raise HotplugError(errno.EIO, f"page {pfn:#x} of {owner} can't move", block=block.id)
        block.poisoned.add(pfn)
        _occupy(machine, block, pfn)


def _is_ram(block: MemoryBlock, pfn: Pfn) -> bool:
    return any(start <= pfn < start + nr_pages for _, start, nr_pages in block.present)


def _occupy(machine: Machine, block: MemoryBlock, pfn: Pfn) -> None:
    machine.pages.occupy(Allocation(PageKind.POISONED, "memory failure"), block, pfn, 1)
