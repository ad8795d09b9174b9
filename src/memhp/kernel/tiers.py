"""Memory tiers: which nodes have fast memory, and which slow (``mm/memory-tiers.c``; observed on 6.1 and 6.12).

A node joins the tier of its kind of memory when it gets its first memory, and leaves it with its last. What kind that is the
first driver says that adds memory to the node: dax/kmem says slow; DRAM is what nobody says anything of.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from memhp.kernel.uevents import Uevents
from memhp.kernel.zones import Node

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["DRAM", "SLOW", "MemoryTiers"]

DRAM, SLOW = 4, 22
"""Numbers of tiers: a kind's abstract distance, 576 or 2880, without its lowest 7 bits."""

_log = logging.getLogger("memhp.kernel")


class MemoryTiers:
    """The tiers of one machine; iterate over ``nodes`` for the nodes of each, by the tier's number."""

    def __init__(self, machine: Machine) -> None:
        self._uevents: Uevents = machine.uevents
        self._kinds: dict[int, int] = {}
        self._claims: dict[int, int] = {}
        self.nodes: dict[int, frozenset[int]] = {}

    def boot(self, nodes: list[Node]) -> None:
        """Put the nodes that have memory at boot into the tier of DRAM."""
        for node in nodes:
            self._kinds[node.nid] = DRAM
        if nodes:
            self.nodes = {DRAM: frozenset(node.nid for node in nodes)}

    def claim_slow(self, nid: int) -> None:
        """Note that a driver adds slow memory to a node (``init_node_memory_type``); that of a node with DRAM stays DRAM."""
        if self._kinds.setdefault(nid, SLOW) == SLOW:
            self._claims[nid] = self._claims.get(nid, 0) + 1

    def release_slow(self, nid: int) -> None:
        """Note that a driver has taken all of its slow memory away (``clear_node_memory_type``).

        If the node has other memory still, both kernels then crash when that goes offline, with locks held (observed); here
        the node leaves its tier as it should.
        """
        if self._kinds.get(nid) != SLOW:
            return
        self._claims[nid] -= 1
        if not self._claims[nid]:
            if nid in self.nodes.get(SLOW, ()):
                _log.warning("node %d: a real kernel has forgotten its memory's kind now, and would crash at MEM_OFFLINE", nid)
            del self._kinds[nid]

    def forgets_used(self, nid: int) -> bool:
        """Say whether the next :meth:`release_slow` would make a real kernel crash later."""
        return self._claims.get(nid) == 1 and nid in self.nodes.get(SLOW, ())

    def online(self, nid: int) -> None:
        """A node has its first memory."""
        tier = self._kinds.setdefault(nid, DRAM)
        if tier not in self.nodes:
            self._emit("add", tier)
        self.nodes = {**self.nodes, tier: self.nodes.get(tier, frozenset()) | {nid}}

    def offline(self, nid: int) -> None:
        """A node has lost its last memory."""
        for tier, members in self.nodes.items():
            if nid in members:
                left = members - {nid}
                others = {number: nodes for number, nodes in self.nodes.items() if number != tier}
                self.nodes = {**others, tier: left} if left else others
                if not left:
                    self._emit("remove", tier)
                return

    def _emit(self, action: str, tier: int) -> None:
        self._uevents.emit(action, f"/devices/virtual/memory_tiering/memory_tier{tier}", subsystem="memory_tiering")
