"""Adding and removing memory, and nodes that come and go with it (``mm/memory_hotplug.c``)."""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
from typing import TYPE_CHECKING

from memhp.abi.paths import MEMORY, NODE
from memhp.errors import DeadlockError, HotplugError, InvalidInput, MemhpError
from memhp.kernel import device
from memhp.kernel.blocks import BlockState, MemoryBlock, OnlineType
from memhp.kernel.groups import MemoryGroup
from memhp.kernel.iomem import SYSTEM_RAM, Resource
from memhp.kernel.zones import Node, NodeState
from memhp.locking import Mode, Mutex, current, requires
from memhp.units import PAGE_SHIFT, PAGE_SIZE, BlockId, PhysAddr, addr_to_pfn, format_ids, format_mem

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = [
    "MhpFlags",
    "add_memory",
    "add_memory_resource",
    "check_driver_name",
    "register_node",
    "remove_memory",
    "supports_memmap_on_memory",
    "try_offline_node",
]

_STRUCT_PAGE = 64
"""Bytes that describe one page (struct page on x86-64)."""
_log = logging.getLogger("memhp.kernel")


class MhpFlags(enum.IntFlag):
    """How memory is added (``include/linux/memory_hotplug.h``)."""

    NONE = 0
    MERGE_RESOURCE = 1
    """Let its range become one with neighbours in /proc/iomem that have the very same name and this flag."""
    MEMMAP_ON_MEMORY = 2
    """Keep each block's memmap in the block itself, if the parameter ``memmap_on_memory`` allows it."""
    NID_IS_MGID = 4
    """What stands in the place of the node is a memory group, whose node it is."""
    OFFLINE_INACCESSIBLE = 8
    """Linux 6.12: nobody may touch it while it is offline, so its own memmap is not prepared before it comes online."""


def check_driver_name(name: str) -> None:
    """Refuse what is no name for a driver's memory, before any lock is taken.

    Raises:
        HotplugError: EINVAL, it is not ``System RAM (something)``.
        InvalidInput: it is no text.
    """
    if not isinstance(name, str):
        raise InvalidInput(name, "name", "the name of a resource")
    if not name.startswith(f"{SYSTEM_RAM} (") or not name.endswith(")"):
        raise HotplugError(errno.EINVAL, f"{name!r} is no name for a driver's memory; expected '{SYSTEM_RAM} (driver)'")


def supports_memmap_on_memory(machine: Machine, size: int) -> bool:
    """Say whether memory of this size can hold its own memmap (``mhp_supports_memmap_on_memory``)."""
    # The memmap of any block from 128 MiB on is whole huge pages and leaves whole pageblocks, so only these two can fail.
    enabled = machine.parameters.memmap_on_memory != "N"
    return enabled and (machine.rules.value.memmap_each_block or size == machine.block_size)


@requires("device_hotplug")
def add_memory(
    machine: Machine, nid: int, start: PhysAddr, size: int, name: str = SYSTEM_RAM, flags: MhpFlags = MhpFlags.NONE
) -> list[BlockId]:
    """Claim a range and add it (``__add_memory``); see :func:`add_memory_resource`.

    Raises:
        HotplugError: E2BIG, it can't be mapped; EEXIST, somebody has a part of it; and what add_memory_resource() raises.
            Nothing was changed.
    """
    if not 0 <= start < start + size <= machine.mappable:
        message = f"{start:#x} + {size:#x} bytes is no range of memory that can be mapped (the end is {machine.mappable:#x})"
        raise HotplugError(errno.E2BIG, message)
    claim = machine.iomem.request(start, size, SYSTEM_RAM if name == SYSTEM_RAM else name)
    try:
        return add_memory_resource(machine, nid, claim, flags)
    except BaseException:
        machine.iomem.release(claim)
        raise


@requires("device_hotplug")
def add_memory_resource(machine: Machine, nid: int, claim: Resource, flags: MhpFlags = MhpFlags.NONE) -> list[BlockId]:
    """Add a claimed range as offline blocks of node ``nid``, then online them if ``auto_online_blocks`` says so.

    The node is the caller's word, whatever the address. When bringing a block online fails, the rest stays offline and
    the add is a success all the same, as in Linux (logged here). The claim stays the caller's after an error.

    Raises:
        HotplugError: EINVAL, not aligned, no such group or node, or on 6.1 a memmap that can't be on it; EEXIST, a block.
    """
    start, size = claim.start, claim.size
    if start % machine.block_size or size % machine.block_size:
        message = f"{start:#x} + {size:#x} bytes is not aligned to the block size {machine.block_size:#x}"
        raise HotplugError(errno.EINVAL, message)
    group: MemoryGroup | None = None
    if flags & MhpFlags.NID_IS_MGID:
        group = machine.groups.find(nid)
        if group is None:
            raise HotplugError(errno.EINVAL, f"there is no memory group {nid!r}")
        nid = group.nid
    if nid not in machine.node_states[NodeState.N_POSSIBLE]:
        possible = format_ids(machine.node_states[NodeState.N_POSSIBLE])
        raise HotplugError(errno.EINVAL, f"node {nid!r} is not possible on this machine; possible are {possible}")
    with machine.mem_hotplug():
        blocks = _make_blocks(
            machine, nid, group, range(start // machine.block_size, (claim.end + 1) // machine.block_size), flags
        )
        if nid not in machine.node_states[NodeState.N_ONLINE]:
            register_node(machine, machine.nodes[nid])
        for block in blocks:
            machine.nodes[nid].linked[block.id] = block
        if claim.name == SYSTEM_RAM:
            machine.firmware_map.add(start, size)
    if flags & MhpFlags.MERGE_RESOURCE:
        machine.iomem.merge(claim)
    _auto_online(machine, blocks)
    return [block.id for block in blocks]


def _make_blocks(machine: Machine, nid: int, group: MemoryGroup | None, numbers: range, flags: MhpFlags) -> list[MemoryBlock]:
    altmap_pages = 0
    if flags & MhpFlags.MEMMAP_ON_MEMORY:
        if supports_memmap_on_memory(machine, len(numbers) * machine.block_size):
            altmap_pages = machine.pages_per_block * _STRUCT_PAGE // PAGE_SIZE
        elif not machine.rules.value.memmap_each_block:
            message = (
                f"{len(numbers)} blocks can't hold their own memmap (memmap_on_memory={machine.parameters.memmap_on_memory})"
            )
            raise HotplugError(errno.EINVAL, message)
    blocks = [machine.new_block(BlockId(number), nid) for number in numbers]
    for block in blocks:
        block.group = group
        block.altmap_pages = altmap_pages
        block.inaccessible = bool(
            altmap_pages and flags & MhpFlags.OFFLINE_INACCESSIBLE and machine.rules.value.memmap_each_block
        )
    return _create_devices(machine, blocks)


def _create_devices(machine: Machine, blocks: list[MemoryBlock]) -> list[MemoryBlock]:
    created: list[MemoryBlock] = []
    try:
        for block in blocks:
            if block.id in machine.blocks:
                raise HotplugError(errno.EEXIST, f"{block.name} exists already", block=block.id)
            pagemap = machine.device_memory.overlapping(block.id * machine.block_size, machine.block_size)
            if pagemap is not None:
                raise HotplugError(errno.EEXIST, f"{block.name}: device memory {pagemap} is there", block=block.id)
            # A new dictionary each time: whoever reads the old one without a lock reads it undisturbed.
            machine.blocks = {**machine.blocks, block.id: block}
            if block.group is not None:
                block.group.blocks[block.id] = block
            created.append(block)
            machine.uevents.emit("add", block)
            # device_add() reaches the driver core's probe, which takes the device's lock inside mem_hotplug_lock.
            with block.device_lock:
                pass
    except BaseException:
        for block in reversed(created):
            _undo_create(machine, block)
        raise
    return created


def _undo_create(machine: Machine, block: MemoryBlock) -> None:
    # On a machine without device_hotplug_lock the lock may be the very thing that could not be had.
    with contextlib.suppress(DeadlockError):
        _drain(block)
    block.removed = True
    _delete_device(machine, block)


def _drain(block: MemoryBlock) -> None:
    # device_del(): the lock once, then, without it, the wait for everybody who uses the device's files.
    with block.device_lock:
        pass
    block.active.drain()


def _delete_device(machine: Machine, block: MemoryBlock) -> None:
    machine.nodes[block.nid].linked.pop(block.id, None)
    if block.group is not None:
        del block.group.blocks[block.id]
    machine.blocks = {number: other for number, other in machine.blocks.items() if number != block.id}
    machine.power_control.pop(f"{MEMORY}/{block.name}/power", None)
    if block.firmware_node is not None:
        block.firmware_node.unbind(block)
    machine.uevents.emit("remove", block)


@requires("mem_hotplug")
def register_node(machine: Machine, node: Node) -> None:
    """Bring a node online, without memory yet (``try_online_node``)."""
    machine.set_node_state(NodeState.N_ONLINE, node.nid, member=True)
    node.register(machine.dep)
    machine.uevents.emit("add", node)
    with _node_lock(machine, node):
        pass


def _node_lock(machine: Machine, node: Node) -> Mutex:
    return Mutex(f"node{node.nid}/device_lock", machine.dep, lock_class="node device_lock", order=node.nid)


def _auto_online(machine: Machine, blocks: list[MemoryBlock]) -> None:
    online_type = machine.parameters.auto_online_blocks
    if online_type is OnlineType.OFFLINE:
        return
    for block in blocks:
        block.online_type = online_type
        try:
            device.device_online(machine, block)
        except MemhpError as error:
            _log.warning("auto-online stopped at %s: %s", block.name, error)
            return
        except BaseException as interrupt:
            # The memory is added; that can't be an error any more.
            current().deferred = interrupt
            return


@requires("device_hotplug")
def remove_memory(machine: Machine, start: PhysAddr, size: int) -> list[BlockId]:
    """Remove a range whose blocks are all offline, and its node if that has nothing left.

    Blocks that aren't there are passed over, so removing an empty range succeeds with a warning, as in Linux.
    """
    if size < 1 or start < 0 or start % machine.block_size or size % machine.block_size:
        # The kernel stops with BUG() here.
        raise InvalidInput((start, size), "remove_memory: (start, size)", f"whole blocks of {machine.block_size:#x} bytes")
    blocks = _removable(machine, start, size)
    _check_memmaps(machine, blocks, start, size, at_once=True)
    if machine.locks.mem_hotplug.held(Mode.READ):
        # The lock comes after the devices are gone in 6.1, so a wait for oneself must be found before.
        raise DeadlockError(
            f"{current().name} holds mem_hotplug_lock and would wait for itself in remove_memory()", machine.locks.mem_hotplug
        )
    entry = machine.firmware_map.remove(start, size)
    try:
        _take_away(machine, blocks, start, size)
    except HotplugError:  # under the lock the kernel refuses when the entry has gone already
        raise
    except BaseException:
        if entry is not None:
            machine.firmware_map.put_back(entry)
        raise
    return [block.id for block in blocks]


@requires("device_hotplug")
def _take_away(machine: Machine, blocks: list[MemoryBlock], start: PhysAddr, size: int) -> None:
    # Ctrl-C and a deadlock are found before the first device goes, or not at all.
    under_lock = machine.rules.value.removes_devices_under_lock
    if not under_lock:
        _delete_devices(machine, blocks)
    with machine.mem_hotplug(interruptible=under_lock):
        if under_lock:
            _check_memmaps(machine, blocks, start, size, at_once=False)
            _delete_devices(machine, blocks)
        if not machine.iomem.release_adjustable(start, size):
            _log.warning("no single iomem resource holds %#x + %#x; none is released", start, size)
        if blocks:
            try_offline_node(machine, machine.nodes[blocks[-1].nid])


def _removable(machine: Machine, start: PhysAddr, size: int) -> list[MemoryBlock]:
    blocks = machine.blocks_within(start, size)
    for block in blocks:
        if block.state is not BlockState.OFFLINE:
            memory = format_mem(addr_to_pfn(start), size >> 12)
            message = f"{block.name} is {block.state.value}, so nothing of {memory} is removed"
            raise HotplugError(errno.EBUSY, message, block=block.id)
    count = size // machine.block_size
    if len(blocks) < count:
        _log.warning("remove_memory: %d of %d blocks of the range do not exist", count - len(blocks), count)
    return blocks


def _check_memmaps(machine: Machine, blocks: list[MemoryBlock], start: PhysAddr, size: int, *, at_once: bool) -> None:
    # Memory that holds its own memmap leaves as it came: on 6.1 as a single block, which is looked at before anything is done; on
    # 6.12 not together with memory that doesn't hold its own, which is looked at under mem_hotplug_lock.
    each_block = machine.rules.value.memmap_each_block
    if at_once is each_block:
        return
    hosting = [block for block in blocks if block.altmap_pages]
    if hosting and (len(hosting) != len(blocks) if each_block else size != machine.block_size):
        memory = format_mem(addr_to_pfn(start), size >> PAGE_SHIFT)
        which = format_ids(block.id for block in hosting)
        message = f"blocks {which} of {memory} hold their own memmap, so they can't be removed together with others"
        raise HotplugError(errno.EINVAL, message, block=hosting[0].id)


def _delete_devices(machine: Machine, blocks: list[MemoryBlock]) -> None:
    # Each lock and each wait before anything goes: should one be out of reach (without device_hotplug_lock), none is gone.
    drained: list[MemoryBlock] = []
    try:
        for block in blocks:
            _drain(block)
            drained.append(block)
    except BaseException:
        for block in reversed(drained):
            block.active.revive()
        raise
    for block in blocks:
        block.removed = True
        _delete_device(machine, block)


@requires("device_hotplug")
def try_offline_node(machine: Machine, node: Node) -> None:
    """Let a node go if it spans nothing and has neither a block nor a CPU that is present; else it stays, silently."""
    if not node.spans_nothing or node.linked or node.cpus:
        return
    machine.set_node_state(NodeState.N_ONLINE, node.nid, member=False)
    node.registered = False
    machine.power_control.pop(f"{NODE}/node{node.nid}/power", None)
    with _node_lock(machine, node):
        pass
    if node.active is not None:
        # Memory is gone by now: who removes it from inside a file of the node's can't be waited for, nor told.
        with contextlib.suppress(DeadlockError):
            node.active.drain()
    machine.uevents.emit("remove", node)
