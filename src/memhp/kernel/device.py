"""The block as a device: requests to bring it online or take it offline (``drivers/base/core.c``, ``memory.c``)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from memhp.errors import EHWPOISON, HotplugError, Vetoed
from memhp.events import MEM_FINISH_OFFLINE, MEM_PREPARE_ONLINE, MemoryNotify
from memhp.kernel import hotplug
from memhp.kernel.blocks import BlockState, MemoryBlock, OnlineType
from memhp.kernel.zonechoice import zone_for_pfn_range
from memhp.kernel.zones import Zone
from memhp.locking import requires

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["device_offline", "device_online"]


@requires("device_hotplug")
def device_online(machine: Machine, block: MemoryBlock) -> int:
    """Bring the block online as its ``online_type`` says; 0 when done, 1 when the device was online already."""
    with block.device_lock:
        _check_present(block)
        if not block.offline:
            return 1
        try:
            _subsys_online(machine, block)
        except Vetoed as refused:
            if not refused.undone:
                _now_online(machine, block)
            raise
        _now_online(machine, block)
    return 0


def _now_online(machine: Machine, block: MemoryBlock) -> None:
    machine.uevents.emit("online", block)
    block.offline = False


@requires("device_hotplug")
def device_offline(machine: Machine, block: MemoryBlock) -> int:
    """Take the block offline; 0 when done, 1 when the device was offline already."""
    with block.device_lock:
        _check_present(block)
        if block.offline:
            return 1
        _subsys_offline(machine, block)
        machine.uevents.emit("offline", block)
        block.offline = True
    return 0


def _check_present(block: MemoryBlock) -> None:
    if block.removed:
        raise HotplugError(errno.ENODEV, f"{block.name} was removed", block=block.id)


def _subsys_online(machine: Machine, block: MemoryBlock) -> None:
    if block.state is BlockState.ONLINE:
        return
    if block.online_type is OnlineType.OFFLINE:
        block.online_type = OnlineType.ONLINE
    try:
        _change_state(block, BlockState.OFFLINE, BlockState.ONLINE, lambda: _block_online(machine, block))
    finally:
        block.online_type = OnlineType.OFFLINE


def _subsys_offline(machine: Machine, block: MemoryBlock) -> None:
    if block.state is BlockState.OFFLINE:
        return
    _change_state(block, BlockState.ONLINE, BlockState.OFFLINE, lambda: _block_offline(machine, block))


def _change_state(block: MemoryBlock, before: BlockState, after: BlockState, act: Callable[[], None]) -> None:
    if block.state is not before:
        message = f"{block.name} is {block.state.value}, not {before.value}"
        raise HotplugError(errno.EINVAL, message, block=block.id)
    if after is BlockState.OFFLINE:
        block.state = BlockState.GOING_OFFLINE
    try:
        act()
    except BaseException as error:
        block.state = after if isinstance(error, Vetoed) and not error.undone else before
        raise
    block.state = after


def _block_online(machine: Machine, block: MemoryBlock) -> None:
    if machine.rules.value.memory_failure and block.poisoned:
        pfn = min(block.poisoned)
        message = f"{block.name} has {len(block.poisoned)} poisoned pages, the first {pfn:#x}; it stays offline"
        raise HotplugError(EHWPOISON, message, block=block.id)
    # The zone is chosen before mem_hotplug_lock is taken, as in memory_block_online().
    zone = zone_for_pfn_range(machine, block.online_type, block.nid, block.group, block.start_pfn, block.nr_pages)
    with machine.mem_hotplug():
        if machine.rules.value.prepares:
            hotplug.ask(machine, MEM_PREPARE_ONLINE, _prepared(block), "it stays offline")
        machine.pages.hold_memmap(block)
        try:
            hotplug.online_pages(machine, block.usable_pfn, block.usable_pages, zone)
        except BaseException as error:
            if isinstance(error, Vetoed) and not error.undone:
                _now_in(block, zone)
            else:
                machine.pages.forget([block])
                _finish(machine, block)
            raise
        _now_in(block, zone)


def _now_in(block: MemoryBlock, zone: Zone) -> None:
    # The memmap's pages are counted as present last, and never as managed.
    hotplug.adjust_present_page_count(zone, block, block.altmap_pages)
    block.zone = zone


def _block_offline(machine: Machine, block: MemoryBlock) -> None:
    zone = block.zone
    if zone is None:
        message = f"{block.name} spans several zones or nodes, so it can't go offline"
        raise HotplugError(errno.EINVAL, message, block=block.id)
    with machine.mem_hotplug():
        # Not counted from here on, so that what is left tells whether the block is the node's last.
        hotplug.adjust_present_page_count(zone, block, -block.altmap_pages)
        try:
            hotplug.offline_pages(machine, block.usable_pfn, block.usable_pages, zone)
        except BaseException:
            hotplug.adjust_present_page_count(zone, block, block.altmap_pages)
            raise
        block.zone = None
        _finish(machine, block)


def _finish(machine: Machine, block: MemoryBlock) -> None:
    if machine.rules.value.prepares:
        hotplug.tell(machine, MEM_FINISH_OFFLINE, _prepared(block))


def _prepared(block: MemoryBlock) -> MemoryNotify:
    # The kernel leaves the two nids unset in this struct; they read 0 on Debian's 6.12, i.e. like node 0 (observed).
    return MemoryNotify(
        block.usable_pfn, block.usable_pages, 0, 0, altmap_start_pfn=block.start_pfn, altmap_nr_pages=block.altmap_pages
    )
