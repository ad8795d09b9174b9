"""Taking memory offline and away in one go (``mm/memory_hotplug.c``: ``offline_and_remove_memory``)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from memhp.errors import MemhpError
from memhp.kernel.add import remove_memory
from memhp.kernel.blocks import MemoryBlock, OnlineType
from memhp.kernel.device import device_offline, device_online
from memhp.kernel.zones import ZoneType
from memhp.locking import current, requires
from memhp.units import BlockId, PhysAddr

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["offline_and_remove_memory"]

_log = logging.getLogger("memhp.kernel")


@requires("device_hotplug")
def offline_and_remove_memory(machine: Machine, start: PhysAddr, size: int) -> list[BlockId]:
    """Take the blocks of a range offline, in ascending order, and remove them.

    When that fails, the blocks that were taken offline here are brought online again, each to the kind of zone that it was in;
    others stay as they were. A failure of that is only logged.
    """
    taken: list[tuple[MemoryBlock, OnlineType]] = []
    try:
        for block in machine.blocks_within(start, size):
            kind = _kind_of(block)
            if device_offline(machine, block) == 0:
                taken.append((block, kind))
        return remove_memory(machine, start, size)
    except BaseException:
        for block, kind in taken:
            _bring_back(machine, block, kind)
        raise


def _kind_of(block: MemoryBlock) -> OnlineType:
    # The zone of its first page says it.
    in_movable = bool(block.present) and block.present[0][0].type is ZoneType.MOVABLE
    return OnlineType.ONLINE_MOVABLE if in_movable else OnlineType.ONLINE_KERNEL


def _bring_back(machine: Machine, block: MemoryBlock, kind: OnlineType) -> None:
    block.online_type = kind
    try:
        device_online(machine, block)
    except MemhpError as error:
        _log.warning("%s could not be brought online again: %s", block.name, error)
    except BaseException as interrupt:
        # The other blocks must come back before Ctrl-C takes effect.
        _log.warning("%s could not be brought online again: interrupted", block.name)
        current().deferred = interrupt
