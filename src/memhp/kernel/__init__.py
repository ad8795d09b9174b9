"""The modelled machine: below the seam, it serves the same files that a real kernel does."""

from memhp.kernel.add import MhpFlags
from memhp.kernel.blocks import BlockState, MemoryBlock, OnlineType
from memhp.kernel.boot import NodeSpec
from memhp.kernel.groups import MemoryGroup
from memhp.kernel.machine import Machine
from memhp.kernel.pages import Allocation, PageKind
from memhp.kernel.rules import Rules
from memhp.kernel.zones import Zone, ZoneType

__all__ = [
    "Allocation",
    "BlockState",
    "Machine",
    "MemoryBlock",
    "MemoryGroup",
    "MhpFlags",
    "NodeSpec",
    "OnlineType",
    "PageKind",
    "Rules",
    "Zone",
    "ZoneType",
]
