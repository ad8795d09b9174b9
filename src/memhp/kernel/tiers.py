"""Memory tiers: which nodes have fast memory, and which slow (``mm/memory-tiers.c``; observed on 6.1 and 6.12).

A node joins the tier of its kind of memory when it gets its first memory, and leaves it with its last. What kind that is the
first driver says that adds memory to the node: dax/kmem says slow; DRAM is what nobody says anything of.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from memhp.kernel.uevents import Uevents
from memhp.kernel.zones import Node
from memhp.locking import Mutex

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["DRAM", "SLOW", "MemoryTiers"]

DRAM, SLOW = 4, 22
"""Numbers of tiers: a kind's abstract distance, 576 or 2880, without its lowest 7 bits."""

_log = logging.getLogger("memhp.kernel")


class MemoryTiers:
    """The tiers of one machine.

    Attributes:
        nodes: the nodes of each tier, by its number.
    """

    def __init__(self, machine: Machine) -> None:
        self._uevents: Uevents = machine.uevents
        self._forgets_any = machine.rules.value.drivers_since_6_12
        self._lock = Mutex("memory_tier_lock", machine.dep, interruptible=False)
        self._kinds: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self.nodes: dict[int, frozenset[int]] = {}

    def boot(self, nodes: list[Node]) -> None:
        """Put the nodes that have memory at boot into the tier of DRAM."""
        for node in nodes:
            self._count(node.nid, DRAM)
        if nodes:
            self.nodes = {DRAM: frozenset(node.nid for node in nodes)}

    def claim_slow(self, nid: int) -> None:
        """Note that a driver adds slow memory to a node (``init_node_memory_type``); a node that has a kind keeps it."""
        with self._lock:
            self._count(nid, SLOW)

    def release_slow(self, nid: int, *, failed: bool = False) -> None:
        """Note that a driver has taken all of its slow memory away, or has ``failed`` to add it (``clear_node_memory_type``).

        6.12 counts down whatever kind the node has, if the driver has not failed. If nothing is counted any more, the kind is
        forgotten; if the node has memory then, real kernels crash when the last of it goes offline, with locks held (observed);
        here the node leaves its tier as it should.
        """
        with self._lock:
            kind = self._kinds.get(nid)
            if kind is None or (kind != SLOW and (failed or not self._forgets_any)):
                return
            if self.forgets_used(nid):
                _log.warning("node %d: a real kernel has forgotten its memory's kind now, and would crash at MEM_OFFLINE", nid)
            self._counts[nid] -= 1
            if not self._counts[nid]:
                del self._kinds[nid]

    def forgets_used(self, nid: int) -> bool:
        """Say whether the next :meth:`release_slow` would make a real kernel crash later."""
        counted = self._forgets_any or self._kinds.get(nid) == SLOW
        return counted and self._counts.get(nid) == 1 and any(nid in members for members in self.nodes.values())

    def online(self, nid: int) -> None:
        """Let a node in that has its first memory."""
        with self._lock:
            self._count(nid, DRAM)
            tier = self._kinds[nid]
            if tier not in self.nodes:
                self._emit("add", tier)
            self.nodes = {**self.nodes, tier: self.nodes.get(tier, frozenset()) | {nid}}

    def offline(self, nid: int) -> None:
        """Let a node go that has lost its last memory."""
        with self._lock:
            tier = next((tier for tier, members in self.nodes.items() if nid in members), None)
            if tier is None:
                return
            others = {number: members for number, members in self.nodes.items() if number != tier}
            left = self.nodes[tier] - {nid}
            self.nodes = {**others, tier: left} if left else others
            if not left:
                self._emit("remove", tier)

    def _count(self, nid: int, kind: int) -> None:
        # Only who has the node's kind is counted (__init_node_memory_type()).
        if self._kinds.setdefault(nid, kind) == kind:
            self._counts[nid] = self._counts.get(nid, 0) + 1

    def _emit(self, action: str, tier: int) -> None:
        self._uevents.emit(action, f"/devices/virtual/memory_tiering/memory_tier{tier}", subsystem="memory_tiering")
