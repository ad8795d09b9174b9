"""Memory groups: blocks that belong to one device, and go to zones together (``drivers/base/memory.c``, memory_group_*).

A static group has a known end, as a DIMM has; a dynamic one grows and shrinks in units, as a virtio-mem device does. Only the
policy auto-movable looks at them (:mod:`memhp.kernel.zonechoice`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memhp.errors import HotplugError
from memhp.kernel.zones import NodeState, Zone, ZoneType
from memhp.locking import Mutex
from memhp.units import format_ids, lowest_free, whole_number

if TYPE_CHECKING:
    from memhp.kernel.blocks import MemoryBlock
    from memhp.kernel.machine import Machine

__all__ = ["MemoryGroup", "MemoryGroups"]

_log = logging.getLogger("memhp.kernel")


class MemoryGroup:
    """One group; all counts are in pages.

    Attributes:
        id: its number, by which memory is added to it.
        nid: its node, which is that of all its memory.
        max_pages: how large it can become; 0 for a dynamic group.
        unit_pages: in what steps it grows; 0 for a static group.
        present_kernel_pages: its pages that are online in kernel zones.
        present_movable_pages: its pages that are online in ZONE_MOVABLE.
        blocks: its blocks by id, whatever their state.
    """

    __slots__ = ("blocks", "id", "max_pages", "nid", "present_kernel_pages", "present_movable_pages", "unit_pages")

    def __init__(self, mgid: int, nid: int, *, max_pages: int = 0, unit_pages: int = 0) -> None:
        self.id = mgid
        self.nid = nid
        self.max_pages = max_pages
        self.unit_pages = unit_pages
        self.present_kernel_pages = 0
        self.present_movable_pages = 0
        self.blocks: dict[int, MemoryBlock] = {}

    def __repr__(self) -> str:
        size = f"unit {self.unit_pages:#x}" if self.is_dynamic else f"max {self.max_pages:#x}"
        return f"<MemoryGroup {self.id} node{self.nid} {size} in {format_ids(self.blocks) or 'no'} blocks>"

    @property
    def is_dynamic(self) -> bool:
        """Whether it grows in units rather than up to a known end."""
        return self.unit_pages > 0

    def count(self, zone: Zone, nr_pages: int) -> None:
        """Note that pages of it came to a zone, or left it if ``nr_pages`` is negative."""
        if zone.type is ZoneType.MOVABLE:
            self.present_movable_pages += nr_pages
        else:
            self.present_kernel_pages += nr_pages


class MemoryGroups:
    """The groups of one machine; iterate over it for the groups in the order of their ids."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._groups: dict[int, MemoryGroup] = {}
        self._lock = Mutex("memory_groups", machine.dep, interruptible=False)

    def __iter__(self) -> Iterator[MemoryGroup]:
        return iter([group for _, group in sorted(self._groups.items())])

    def find(self, mgid: int) -> MemoryGroup | None:
        """Give the group with that id, or None."""
        return self._groups.get(whole_number(mgid, "group", "the number of a memory group"))

    def register_static(self, nid: int, max_pages: int) -> int:
        """Make a group that will have ``max_pages`` at most; gives its id.

        Raises:
            HotplugError: EINVAL, no pages, or the node is not possible.
        """
        if whole_number(max_pages, "max_pages", "a number of pages") < 1:
            raise HotplugError(errno.EINVAL, f"a static memory group can't have {max_pages} pages at most")
        return self._register(nid, max_pages=max_pages)

    def register_dynamic(self, nid: int, unit_pages: int) -> int:
        """Make a group that grows in units of ``unit_pages``; gives its id.

        Raises:
            HotplugError: EINVAL, not a power of two from the size of a block on, or the node is not possible.
        """
        least = self._machine.pages_per_block
        if whole_number(unit_pages, "unit_pages", "a number of pages") < least or unit_pages & (unit_pages - 1):
            message = f"the unit of a dynamic memory group is a power of two, {least:#x} pages or more, not {unit_pages:#x}"
            raise HotplugError(errno.EINVAL, message)
        return self._register(nid, unit_pages=unit_pages)

    def _register(self, nid: int, *, max_pages: int = 0, unit_pages: int = 0) -> int:
        possible = self._machine.node_states[NodeState.N_POSSIBLE]
        if whole_number(nid, "nid", "the number of a node") not in possible:
            raise HotplugError(errno.EINVAL, f"node {nid!r} is not possible on this machine; possible are {format_ids(possible)}")
        with self._lock:
            mgid = lowest_free(self._groups)
            self._groups = {**self._groups, mgid: MemoryGroup(mgid, nid, max_pages=max_pages, unit_pages=unit_pages)}
        return mgid

    def unregister(self, mgid: int) -> None:
        """Take a group away, whose memory was removed before.

        Raises:
            HotplugError: EINVAL, there is no such group; EBUSY, it has blocks.
        """
        with self._lock:
            group = self.find(mgid)
            if group is None:
                raise HotplugError(errno.EINVAL, f"there is no memory group {mgid!r}")
            if group.blocks:
                raise HotplugError(errno.EBUSY, f"memory group {mgid} has blocks {format_ids(group.blocks)}")
            self._groups = {number: other for number, other in self._groups.items() if number != mgid}

    def drop(self, mgid: int) -> None:
        """Take a driver's group away; as in Linux it stays, silently but for the log, if somebody else's memory is in it."""
        try:
            self.unregister(mgid)
        except HotplugError as error:
            _log.warning("%s", error.strerror)
