"""Bringing pages online and taking them offline (``mm/memory_hotplug.c``: ``online_pages``, ``offline_pages``)."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, Interrupted, PageRefusal, Vetoed
from memhp.events import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    NO_CHANGE,
    MemoryAction,
    MemoryNotify,
)
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.zones import NodeState, Zone, ZoneType
from memhp.locking import current, requires
from memhp.units import PAGE_SHIFT, Pfn, format_mem

if TYPE_CHECKING:
    from memhp.kernel.holdings import Allocation
    from memhp.kernel.machine import Machine
    from memhp.notifier import NotifyResult

__all__ = ["adjust_managed_page_count", "adjust_present_page_count", "ask", "offline_pages", "online_pages", "tell"]


# -- asking and telling the chain


def ask(machine: Machine, action: MemoryAction, arg: MemoryNotify, holds: str) -> None:
    """Ask the chain; a refusal is raised as :class:`Vetoed`, with ``holds`` saying what is the case now."""
    _raise_refusal(machine, machine.memory_notify(action, arg), action, arg, holds)


def tell(machine: Machine, action: MemoryAction, arg: MemoryNotify) -> NotifyResult | None:
    """Tell the chain what can't be changed any more; an interrupt in a callback waits until the request has ended."""
    try:
        return machine.memory_notify(action, arg)
    except BaseException as interrupt:  # the chain lets nothing else through here
        current().deferred = interrupt
        return None


def _raise_refusal(
    machine: Machine,
    answer: NotifyResult | None,
    action: MemoryAction,
    arg: MemoryNotify,
    holds: str,
    *,
    undone: bool = True,
) -> None:
    if answer is None or answer.errno == 0:
        return
    block = machine.block_id_of(arg.start_pfn)
    memory = format_mem(arg.start_pfn, arg.nr_pages)
    message = f"memory{block} {memory}: {answer.callback} refused {action.name} with {answer}; {holds}"
    if answer.cause is not None:
        message += f" (it raised {type(answer.cause).__name__}: {answer.cause})"
    error = Vetoed(answer.errno, message, block=block, callback=answer.callback, action=action, undone=undone)
    raise error from answer.cause


# -- online


@requires("mem_hotplug")
def online_pages(machine: Machine, start: Pfn, nr_pages: int, zone: Zone) -> None:
    """Bring the range online in ``zone``.

    When a callback refuses, the range is out of the zone again, and every callback, also one that never saw
    MEM_GOING_ONLINE, has heard MEM_CANCEL_ONLINE.

    Args:
        machine: whose pages; the caller holds its mem_hotplug_lock for writing.
        start: first page frame, of whole blocks; of a block that holds its own memmap, the first one behind that.
        nr_pages: length in pages.
        zone: where to; see :func:`~memhp.kernel.zonechoice.zone_for_pfn_range`.

    Raises:
        HotplugError: EINVAL, the range is not of whole sections or blocks, a part of it is online, or the zone is another node's.
        Vetoed: a callback refused.
    """
    blocks = _blocks_of(machine, start, nr_pages, "online")
    for block in blocks:
        if block.present:
            raise HotplugError(errno.EINVAL, f"{block.name} is online already", block=block.id)
        if block.nid != zone.nid:
            message = f"{block.name} belongs to node {block.nid}, not to node {zone.nid} of the zone"
            raise HotplugError(errno.EINVAL, message, block=block.id)
    _move_into_zone(zone, blocks)
    arg = MemoryNotify(start, nr_pages, *_nids_online(machine, zone))
    try:
        ask(machine, MEM_GOING_ONLINE, arg, "it stays offline")
        # Asked before anything is counted: a driver's callback that raises must leave nothing behind.
        kept = [machine.online_page.withheld(block.usable_pfn, block.usable_pages) for block in blocks]
        for block, parts in zip(blocks, kept, strict=True):
            _withhold(machine, block, parts)
        _make_present(machine, zone, blocks, arg)
    except BaseException:
        tell(machine, MEM_CANCEL_ONLINE, arg)
        _remove_from_zone(zone, blocks)
        raise
    machine.pages.unisolate(blocks)
    answer = tell(machine, MEM_ONLINE, arg)
    if machine.rules.value.done_can_refuse and answer is not None and answer.errno:
        _take_back_online(machine, zone, blocks, arg, answer)
    _enter_tier(machine, arg)


def _nids_online(machine: Machine, zone: Zone) -> tuple[int, int]:
    masks = machine.node_states
    normal = zone.type <= ZoneType.NORMAL and zone.nid not in masks[NodeState.N_NORMAL_MEMORY]
    memory = zone.nid not in masks[NodeState.N_MEMORY]
    return zone.nid if normal else NO_CHANGE, zone.nid if memory else NO_CHANGE


def _move_into_zone(zone: Zone, blocks: list[MemoryBlock]) -> None:
    for block in blocks:
        block.isolated = True
        zone.grow(block.start_pfn, block.nr_pages)


def _remove_from_zone(zone: Zone, blocks: list[MemoryBlock]) -> None:
    for block in blocks:
        block.isolated = False
        zone.shrink(block.start_pfn, block.nr_pages)


def _make_present(machine: Machine, zone: Zone, blocks: list[MemoryBlock], arg: MemoryNotify) -> None:
    with machine.pages.lock:
        for block in blocks:
            block.present = tuple((zone, part, nr) for part, nr in block.ram)
            zone.put(block)
            zone.managed += _usable(block) - block.unmanaged
            adjust_present_page_count(zone, block, _usable(block))
        machine.pages.come(blocks)
    _set_masks(machine, arg)


def _withhold(machine: Machine, block: MemoryBlock, parts: list[tuple[Pfn, int, Allocation]]) -> None:
    # What the driver of the online-page callback doesn't give to the allocator is its own, and not managed.
    with machine.pages.lock:
        for start, nr_pages, allocation in parts:
            machine.pages.record(allocation, block, start, nr_pages, allocation.kind)
        block.unmanaged = sum(nr_pages for _, nr_pages, _ in parts)


def adjust_managed_page_count(machine: Machine, block: MemoryBlock, nr_pages: int) -> None:
    """Note that a driver gave pages of an online block to the allocator, or took them if ``nr_pages`` is negative."""
    with machine.pages.lock:  # other blocks may come to the zone and leave it meanwhile
        block.unmanaged -= nr_pages
        for zone in {zone for zone, _, _ in block.present}:
            zone.managed += nr_pages


def _usable(block: MemoryBlock) -> int:
    return block.ram_pages - block.altmap_pages


def adjust_present_page_count(zone: Zone, block: MemoryBlock, nr_pages: int) -> None:
    """Count pages of a block as present in its zone and its group, or no longer if ``nr_pages`` is negative."""
    zone.present += nr_pages
    if block.early:
        zone.present_early += nr_pages
    if block.group is not None:
        block.group.count(zone, nr_pages)


def _set_masks(machine: Machine, arg: MemoryNotify) -> None:
    for state, nid in _mask_changes(arg):
        machine.set_node_state(state, nid, member=True)


def _clear_masks(machine: Machine, arg: MemoryNotify) -> None:
    for state, nid in _mask_changes(arg):
        machine.set_node_state(state, nid, member=False)


def _mask_changes(arg: MemoryNotify) -> list[tuple[NodeState, int]]:
    changes = [
        (NodeState.N_NORMAL_MEMORY, arg.status_change_nid_normal),
        (NodeState.N_MEMORY, arg.status_change_nid),
    ]
    return [(state, nid) for state, nid in changes if nid != NO_CHANGE]


def _enter_tier(machine: Machine, arg: MemoryNotify) -> None:
    # What the kernel's own callback memory-tiers does at MEM_ONLINE, whether the participant of that name has joined or not.
    if arg.status_change_nid != NO_CHANGE:
        machine.tiers.online(arg.status_change_nid)


def _take_back_online(machine: Machine, zone: Zone, blocks: list[MemoryBlock], arg: MemoryNotify, answer: NotifyResult) -> None:
    # The document's NOTIFY_BAD at MEM_ONLINE. Callbacks before this one may hold pages of the range already: movable ones
    # migrate; CANCEL is the owner's moment to free the others. What is still held then can't be taken away under its user.
    with machine.pages.lock:
        machine.pages.set_isolated(blocks, isolated=True)
    with contextlib.suppress(PageRefusal):
        machine.pages.evacuate(blocks)
    clean = not machine.pages.held_in(blocks)
    if clean:
        _make_absent(machine, zone, blocks, arg)
    tell(machine, MEM_CANCEL_ONLINE, arg)
    left = [] if clean else machine.pages.held_in(blocks)
    if left:
        machine.pages.unisolate(blocks)
        _enter_tier(machine, arg)
        holds = f"but it stays online: {left[0]} was not given back"
        _raise_refusal(machine, answer, MEM_ONLINE, arg, holds, undone=False)
    if not clean:
        _make_absent(machine, zone, blocks, arg)
    _remove_from_zone(zone, blocks)
    _raise_refusal(machine, answer, MEM_ONLINE, arg, "it is offline again")


# -- offline


@requires("mem_hotplug")
def offline_pages(machine: Machine, start: Pfn, nr_pages: int, zone: Zone) -> None:
    """Take the range offline.

    Free pages are isolated first, so nothing new is allocated from the range; then callbacks are asked; then what is
    movable migrates. A pinned page keeps this going until it is unpinned or a signal arrives. Failing undoes what was
    done in the reverse order; whether callbacks heard of it depends on where it failed.

    Args:
        machine: whose pages; the caller holds its mem_hotplug_lock for writing.
        start: first page frame, of whole blocks; of a block that holds its own memmap, the first one behind that.
        nr_pages: length in pages.
        zone: the one zone that all of the range is in.

    Raises:
        HotplugError: EINVAL, misaligned, has holes, or lies in another zone; no callback was called.
        PageRefusal: EBUSY, an unmovable page (no callback was called) or a referenced offline page (GOING and CANCEL).
        Vetoed: a callback refused; all have heard MEM_CANCEL_OFFLINE.
        Interrupted: EINTR, a signal ended the wait for a page; all have heard MEM_CANCEL_OFFLINE.
    """
    blocks = _blocks_of(machine, start, nr_pages, "offline")
    _check_offlinable(zone, blocks)
    with machine.locks.pcp_batch_high:
        machine.pages.isolate(blocks)
        arg = MemoryNotify(start, nr_pages, *_nids_offline(machine, zone, blocks))
        current().signals = 0
        try:
            ask(machine, MEM_GOING_OFFLINE, arg, "it stays online")
            _drain(machine, blocks)
        except BaseException:
            machine.pages.unisolate(blocks)
            tell(machine, MEM_CANCEL_OFFLINE, arg)
            raise
        finally:
            machine.pages.lists_work()
    _make_absent(machine, zone, blocks, arg)
    answer = tell(machine, MEM_OFFLINE, arg)
    if machine.rules.value.done_can_refuse and answer is not None and answer.errno:
        _take_back_offline(machine, zone, blocks, arg, answer)
    if arg.status_change_nid != NO_CHANGE:
        machine.tiers.offline(arg.status_change_nid)
    machine.pages.forget(blocks)
    _remove_from_zone(zone, blocks)


def _check_offlinable(zone: Zone, blocks: list[MemoryBlock]) -> None:
    for block in blocks:
        if block.has_holes:
            missing = block.nr_pages - block.ram_pages
            message = f"{block.name} has memory holes: {missing} of its {block.nr_pages} pages are no System RAM"
            raise HotplugError(errno.EINVAL, message, block=block.id)
        if any(other is not zone for other, _, _ in block.present) or not block.present:
            message = f"{block.name} is not wholly in zone {zone.type.label} of node {zone.nid}"
            raise HotplugError(errno.EINVAL, message, block=block.id)


def _nids_offline(machine: Machine, zone: Zone, blocks: list[MemoryBlock]) -> tuple[int, int]:
    nr_pages = sum(_usable(block) for block in blocks)
    node = machine.nodes[zone.nid]
    kernel = node.present_up_to(ZoneType.NORMAL)
    total = kernel + node.zones[ZoneType.MOVABLE].present
    last_kernel = zone.type <= ZoneType.NORMAL and nr_pages >= kernel
    return zone.nid if last_kernel else NO_CHANGE, zone.nid if nr_pages >= total else NO_CHANGE


def _drain(machine: Machine, blocks: list[MemoryBlock]) -> None:
    pages = machine.pages
    name = ", ".join(block.name for block in blocks)
    while True:
        seen = pages.changed.look()
        if current().signals:
            message = f"{name}: a signal arrived; it stays online"
            raise Interrupted(message, block=blocks[0].id, page=None)
        stuck = pages.evacuate(blocks)
        if stuck is None:
            return
        if not pages.changed.wait_interruptible(lambda seen=seen: pages.changed.wakes != seen):  # type: ignore[misc]
            message = f"{name}: a signal arrived while {stuck} could not be moved; it stays online"
            raise Interrupted(message, block=blocks[0].id, page=stuck.start_pfn)


def _make_absent(machine: Machine, zone: Zone, blocks: list[MemoryBlock], arg: MemoryNotify) -> None:
    with machine.pages.lock:
        machine.pages.go(blocks)
        for block in blocks:
            zone.managed -= _usable(block) - block.unmanaged
            adjust_present_page_count(zone, block, -_usable(block))
            zone.drop(block)
            block.present = ()
    _clear_masks(machine, arg)


def _take_back_offline(machine: Machine, zone: Zone, blocks: list[MemoryBlock], arg: MemoryNotify, answer: NotifyResult) -> None:
    # The document's NOTIFY_BAD at MEM_OFFLINE: the range has not left its zone's span yet.
    _make_present(machine, zone, blocks, arg)
    machine.pages.unisolate(blocks)
    tell(machine, MEM_CANCEL_OFFLINE, arg)
    _raise_refusal(machine, answer, MEM_OFFLINE, arg, f"it is online again in zone {zone.type.label}")


def _blocks_of(machine: Machine, start: Pfn, nr_pages: int, verb: str) -> list[MemoryBlock]:
    # Whole blocks; of one that holds its own memmap, the part behind it.
    first = machine.block_id_of(start)
    begin, length = Pfn(first * machine.pages_per_block), nr_pages
    if start != begin:
        begin, length = _with_memmap(machine, first, start, nr_pages)
    if length < 1 or length % machine.pages_per_block:
        raise HotplugError(errno.EINVAL, f"can't {verb} {format_mem(start, nr_pages)}: not a range of whole memory blocks")
    blocks = machine.blocks_within(begin << PAGE_SHIFT, length << PAGE_SHIFT)
    if len(blocks) != length // machine.pages_per_block:
        raise HotplugError(errno.EINVAL, f"can't {verb} {format_mem(start, nr_pages)}: it has no memory block everywhere")
    for block in blocks:
        if block.altmap_pages and start == begin:
            message = f"can't {verb} {format_mem(start, nr_pages)}: {block.name} begins with its own memmap"
            raise HotplugError(errno.EINVAL, message, block=block.id)
    return blocks


def _with_memmap(machine: Machine, number: int, start: Pfn, nr_pages: int) -> tuple[Pfn, int]:
    block = machine.blocks.get(number)
    if block is not None and (start, nr_pages) == (block.usable_pfn, block.usable_pages):
        return block.start_pfn, block.nr_pages
    return start, 0
