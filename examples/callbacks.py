"""A callback for imported.yaml: Python where the built-in behaviours of scenarios are not enough."""

from memhp import (
    MEM_GOING_OFFLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    NOTIFY_BAD,
    NOTIFY_OK,
    MemoryAction,
    MemoryNotify,
    NotifierBlock,
    NotifyResult,
)

RESERVE = 2
"""So many blocks the keeper does not give away."""

_online: set[int] = set()


def keeper(block: NotifierBlock, action: MemoryAction, memory: MemoryNotify) -> NotifyResult:
    """Count the blocks that come online, and refuse to give away the last ones."""
    if action is MEM_ONLINE:
        _online.add(memory.start_pfn)
    elif action is MEM_OFFLINE:
        _online.discard(memory.start_pfn)
    elif action is MEM_GOING_OFFLINE and len(_online) <= RESERVE:
        return NOTIFY_BAD
    return NOTIFY_OK
