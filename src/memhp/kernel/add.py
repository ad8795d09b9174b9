"""Adding and removing memory, and nodes that come and go with it (``mm/memory_hotplug.c``)."""

from __future__ import annotations

import contextlib
import errno
import logging
from typing import TYPE_CHECKING

from memhp.abi.paths import MEMORY, NODE
from memhp.errors import DeadlockError, HotplugError, InvalidInput, MemhpError
from memhp.kernel import device
from memhp.kernel.blocks import BlockState, MemoryBlock, OnlineType
from memhp.kernel.iomem import SYSTEM_RAM
from memhp.kernel.zones import Node, NodeState
from memhp.locking import Mode, Mutex, current, requires
from memhp.units import BlockId, PhysAddr, addr_to_pfn, format_ids, format_mem

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["add_memory", "remove_memory"]

_log = logging.getLogger("memhp.kernel")


@requires("device_hotplug")
def add_memory(machine: Machine, nid: int, start: PhysAddr, size: int, name: str = SYSTEM_RAM) -> list[BlockId]:
    """Add a range as offline blocks of node ``nid``, then online them if ``auto_online_blocks`` says so.

    The node is the caller's word, whatever the address. When bringing a block online fails, the rest stays offline and
    the add is a success all the same, as in Linux (logged here).
    """
    if name != SYSTEM_RAM and not (name.startswith(f"{SYSTEM_RAM} (") and name.endswith(")")):
        raise HotplugError(errno.EINVAL, f"{name!r} is no name for memory; expected {SYSTEM_RAM!r} or '{SYSTEM_RAM} (driver)'")
    if not 0 <= start < start + size <= machine.mappable:
        message = f"{start:#x} + {size:#x} bytes is no range of memory that can be mapped (the end is {machine.mappable:#x})"
        raise HotplugError(errno.E2BIG, message)
    claim = machine.iomem.request(start, size, name)
    try:
        blocks = _add_resource(machine, nid, start, size, name)
    except BaseException:
        machine.iomem.release(claim)
        raise
    _auto_online(machine, blocks)
    return [block.id for block in blocks]


def _add_resource(machine: Machine, nid: int, start: PhysAddr, size: int, name: str) -> list[MemoryBlock]:
    if start % machine.block_size or size % machine.block_size:
        message = f"{start:#x} + {size:#x} bytes is not aligned to the block size {machine.block_size:#x}"
        raise HotplugError(errno.EINVAL, message)
    if nid not in machine.node_states[NodeState.N_POSSIBLE]:
        possible = format_ids(machine.node_states[NodeState.N_POSSIBLE])
        raise HotplugError(errno.EINVAL, f"node {nid!r} is not possible on this machine; possible are {possible}")
    with machine.mem_hotplug():
        node = machine.nodes[nid]
        blocks = _create_devices(machine, nid, start, size)
        if nid not in machine.node_states[NodeState.N_ONLINE]:
            _register_node(machine, node)
        for block in blocks:
            node.linked[block.id] = block
        if name == SYSTEM_RAM:
            machine.firmware_map.append((start, size))
    return blocks


def _create_devices(machine: Machine, nid: int, start: PhysAddr, size: int) -> list[MemoryBlock]:
    first = start // machine.block_size
    created: list[MemoryBlock] = []
    try:
        for number in range(first, first + size // machine.block_size):
            block = machine.new_block(BlockId(number), nid)
            if block.id in machine.blocks:
                raise HotplugError(errno.EEXIST, f"{block.name} exists already", block=block.id)
            # A new dictionary each time: whoever reads the old one without a lock reads it undisturbed.
            machine.blocks = {**machine.blocks, block.id: block}
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
    with contextlib.suppress(DeadlockError), block.device_lock:
        pass
    block.removed = True
    _delete_device(machine, block)


def _delete_device(machine: Machine, block: MemoryBlock) -> None:
    machine.nodes[block.nid].linked.pop(block.id, None)
    machine.blocks = {number: other for number, other in machine.blocks.items() if number != block.id}
    machine.power_control.pop(f"{MEMORY}/{block.name}/power", None)
    if block.firmware_node is not None:
        block.firmware_node.unbind(block)
    machine.uevents.emit("remove", block)


def _register_node(machine: Machine, node: Node) -> None:
    machine.set_node_state(NodeState.N_ONLINE, node.nid, member=True)
    node.registered = True
    machine.uevents.emit("add", node)
    with _node_lock(machine, node):
        pass


def _node_lock(machine: Machine, node: Node) -> Mutex:
    return Mutex(f"node{node.nid}/device_lock", machine.dep, lock_class="node device_lock")


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
    if machine.locks.mem_hotplug.held(Mode.READ):
        # The lock comes after the devices are gone in 6.1, so a wait for oneself must be found before.
        raise DeadlockError(
            f"{current().name} holds mem_hotplug_lock and would wait for itself in remove_memory()", machine.locks.mem_hotplug
        )
    under_lock = machine.rules.value.removes_devices_under_lock
    if not under_lock:
        _delete_devices(machine, blocks)
    with machine.mem_hotplug(interruptible=under_lock):
        if under_lock:
            _delete_devices(machine, blocks)
        if (start, size) in machine.firmware_map:
            machine.firmware_map.remove((start, size))
        if not machine.iomem.release_adjustable(start, size):
            _log.warning("no single iomem resource holds %#x + %#x; none is released", start, size)
        if blocks:
            _try_offline_node(machine, machine.nodes[blocks[-1].nid])
    return [block.id for block in blocks]


def _removable(machine: Machine, start: PhysAddr, size: int) -> list[MemoryBlock]:
    first = start // machine.block_size
    found = [machine.blocks.get(n) for n in range(first, first + size // machine.block_size)]
    blocks = [block for block in found if block is not None]
    for block in blocks:
        if block.state is not BlockState.OFFLINE:
            memory = format_mem(addr_to_pfn(start), size >> 12)
            message = f"{block.name} is {block.state.value}, so nothing of {memory} is removed"
            raise HotplugError(errno.EBUSY, message, block=block.id)
    if len(blocks) < len(found):
        _log.warning("remove_memory: %d of %d blocks of the range do not exist", len(found) - len(blocks), len(found))
    return blocks


def _delete_devices(machine: Machine, blocks: list[MemoryBlock]) -> None:
    # Each lock once before anything goes: should one be out of reach (without device_hotplug_lock), none is gone.
    for block in blocks:
        with block.device_lock:
            pass
    for block in blocks:
        block.removed = True
        _delete_device(machine, block)


def _try_offline_node(machine: Machine, node: Node) -> None:
    if not node.spans_nothing or node.linked or node.cpus:
        return
    machine.set_node_state(NodeState.N_ONLINE, node.nid, member=False)
    node.registered = False
    machine.power_control.pop(f"{NODE}/node{node.nid}/power", None)
    with _node_lock(machine, node):
        pass
    machine.uevents.emit("remove", node)
