"""The kernel's own callbacks on the memory chain, at their true priorities; none is registered unless it is asked for.

They show what real participants do with each action. :func:`join` registers some of them or all that a kernel has.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from memhp.errors import InvalidInput
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
from memhp.kernel.rules import Rules
from memhp.kernel.zones import NodeState
from memhp.locking import Mutex
from memhp.notifier import NOTIFY_BAD, NOTIFY_OK, NotifierBlock, NotifyResult, notifier_from_errno
from memhp.units import PAGES_PER_SECTION, pfn_to_section_nr

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["PARTICIPANTS", "Participant", "default_names", "join"]


class Participant:
    """One callback of the kernel. ``name`` is its subsystem's, ``priority`` that of its notifier block."""

    name: ClassVar[str]
    priority: ClassVar[int] = 0

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.block = machine.memory_chain.register(NotifierBlock(self._callback, self.priority, self.name))

    def _callback(self, block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        return self.hear(action, arg)

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Take part in one action."""
        raise NotImplementedError

    def leave(self) -> None:
        """Unregister."""
        self.block.unregister()


class Ksm(Participant):
    """Merging of equal pages (``mm/ksm.c``): it doesn't look at pages while memory goes offline."""

    name = "ksm"
    priority = 100

    def __init__(self, machine: Machine) -> None:
        self._lock = Mutex("ksm_thread_mutex", machine.dep)
        self.paused = False
        self.pruned: list[tuple[int, int]] = []
        """Ranges whose pages were taken out of its trees, as (first pfn, pages)."""
        super().__init__(machine)

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Stop at GOING_OFFLINE, go on at OFFLINE and CANCEL_OFFLINE."""
        if action is MEM_OFFLINE:
            self.pruned.append((arg.start_pfn, arg.nr_pages))
        if action in {MEM_GOING_OFFLINE, MEM_OFFLINE, MEM_CANCEL_OFFLINE}:
            with self._lock:
                self.paused = action is MEM_GOING_OFFLINE
        return NOTIFY_OK


class MemoryTiers(Participant):
    """Which nodes are fast memory and which are slow (``mm/memory-tiers.c``), and where pages are demoted to."""

    name = "memory-tiers"
    priority = 100

    def __init__(self, machine: Machine) -> None:
        self._lock = Mutex("memory_tier_lock", machine.dep)
        self.slow: set[int] = set()
        """Nodes that belong to the lower tier once they have memory; set it before."""
        self.nodes = set(machine.node_states[NodeState.N_MEMORY])
        super().__init__(machine)

    @property
    def demotion(self) -> dict[int, list[int]]:
        """Where pages of each fast node are demoted to."""
        return {nid: sorted(self.nodes & self.slow) for nid in sorted(self.nodes - self.slow)}

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Follow nodes that get their first memory or lose their last."""
        if arg.status_change_nid != NO_CHANGE and action in {MEM_ONLINE, MEM_OFFLINE}:
            with self._lock:
                (self.nodes.add if action is MEM_ONLINE else self.nodes.discard)(arg.status_change_nid)
        return NOTIFY_OK


class Cpuset(Participant):
    """Which nodes tasks may use (``kernel/cgroup/cpuset.c``): it looks at N_MEMORY after every action, also a CANCEL."""

    name = "cpuset"
    priority = 10

    def __init__(self, machine: Machine) -> None:
        self.updates = 0
        self.queued = False
        """Under the rules of 6.1 the update is a worker's; see :meth:`work`."""
        self.mems: set[int] = set(machine.node_states[NodeState.N_MEMORY])
        super().__init__(machine)

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Update, or let the worker do it."""
        self.queued = True
        if self.machine.rules is Rules.LINUX_6_12:
            self.work()
        return NOTIFY_OK

    def work(self) -> None:
        """Bring the nodes up to date, if that is due."""
        if self.queued:
            self.queued = False
            self.updates += 1
            self.mems = set(self.machine.node_states[NodeState.N_MEMORY])


class ComputeBatch(Participant):
    """The batch of the counter of committed memory (``mm/mm_init.c``), which grows with memory."""

    name = "mm_compute_batch"
    priority = 10

    def __init__(self, machine: Machine) -> None:
        self.batch = _batch(machine)
        super().__init__(machine)

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Compute it anew."""
        if action in {MEM_ONLINE, MEM_OFFLINE}:
            self.batch = _batch(self.machine)
        return NOTIFY_OK


def _batch(machine: Machine) -> int:
    cpus = max(len(list(machine.cpus)), 1)
    return max((machine.memory_total >> 12) // cpus // 4, cpus * 2, 32)


class Slab(Participant):
    """The slab allocator (``mm/slub.c``), which has structures for each node whose memory it uses."""

    name = "slab"
    priority = 1

    def __init__(self, machine: Machine) -> None:
        self._lock = Mutex("slab_mutex", machine.dep)
        self.nodes = set(machine.node_states[NodeState.N_NORMAL_MEMORY])
        """Nodes that it uses."""
        self.structures = set(self.nodes)
        """Nodes that it has structures for; they are never given back."""
        self.shrinks = 0
        """How often all caches were flushed and shrunk."""
        self.out_of_memory = False
        """Whether the next structures can't be had; for tests."""
        super().__init__(machine)

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Make structures before a node's first kernel memory comes, and stop using a node when its last is gone."""
        nid = arg.status_change_nid_normal
        if action is MEM_GOING_OFFLINE:
            with self._lock:
                self.shrinks += 1
        elif nid != NO_CHANGE and action is MEM_GOING_ONLINE:
            with self._lock:
                if nid not in self.structures and self.out_of_memory:
                    return notifier_from_errno(-errno.ENOMEM)
                self.structures.add(nid)
                self.nodes.add(nid)
        elif nid != NO_CHANGE and action in {MEM_OFFLINE, MEM_CANCEL_ONLINE}:
            with self._lock:
                self.nodes.discard(nid)
        return NOTIFY_OK


class PageExt(Participant):
    """More about each page than struct page has room for (``mm/page_ext.c``): a table for each section of 128 MiB."""

    name = "page_ext"

    def __init__(self, machine: Machine) -> None:
        self.tables: set[int] = set()
        """Sections added since that have a table."""
        self.out_of_memory = False
        """Whether the next table can't be had; for tests."""
        super().__init__(machine)

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Make the tables at GOING_ONLINE, and give them back at OFFLINE and CANCEL_ONLINE."""
        end = -(-arg.end_pfn // PAGES_PER_SECTION)
        sections = set(range(pfn_to_section_nr(arg.start_pfn), end))
        if action is MEM_GOING_ONLINE:
            if self.out_of_memory:
                return notifier_from_errno(-errno.ENOMEM)
            self.tables |= sections
        elif action in {MEM_OFFLINE, MEM_CANCEL_ONLINE}:
            self.tables -= sections
        return NOTIFY_OK


class ReserveMem(Participant):
    """What is kept for users and administrators (``mm/mmap.c``, user_reserve_kbytes and admin_reserve_kbytes), in KiB."""

    name = "reserve_mem"
    _MOST: ClassVar = {"user": 1 << 17, "admin": 1 << 13}

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.kbytes = {name: self._default(name) for name in self._MOST}
        super().__init__(machine)

    def _free(self) -> int:
        return self.machine.pages.count_free() << 2

    def _default(self, name: str) -> int:
        return min(self._free() // 32, self._MOST[name])

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Grow what was small for want of memory; shrink what is more than there is."""
        for name, most in self._MOST.items():
            small = action is MEM_ONLINE and 0 < self.kbytes[name] < most
            if small or (action is MEM_OFFLINE and self.kbytes[name] > self._free()):
                self.kbytes[name] = self._default(name)
        return NOTIFY_OK


class Kcore(Participant):
    """The picture of memory in /proc/kcore (``fs/proc/kcore.c``), which is looked at anew after a change."""

    name = "kcore"

    def __init__(self, machine: Machine) -> None:
        self.needs_update = True
        super().__init__(machine)

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Take note."""
        self.needs_update = self.needs_update or action in {MEM_ONLINE, MEM_OFFLINE}
        return NOTIFY_OK


class Crash(Participant):
    """The headers for a crash kernel (``kernel/crash_core.c``), which list memory."""

    name = "crash"

    def __init__(self, machine: Machine) -> None:
        self.updates = 0
        super().__init__(machine)

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Update them."""
        self.updates += action in {MEM_ONLINE, MEM_OFFLINE}
        return NOTIFY_OK


class Arm64(Participant):
    """arm64 can't do without memory from boot (``arch/arm64/mm/mmu.c``, prevent_bootmem_remove_notifier)."""

    name = "arm64"

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Refuse to let it go."""
        early = self.machine.blocks[self.machine.block_id_of(arg.start_pfn)].early
        return NOTIFY_BAD if action is MEM_GOING_OFFLINE and early else NOTIFY_OK


class Cmm(Participant):
    """pseries collaborative memory (``arch/powerpc/platforms/pseries/cmm.c``): its balloon rests while memory goes offline.

    It takes a mutex at GOING_OFFLINE and gives it back at OFFLINE or CANCEL_OFFLINE. But CANCEL_OFFLINE also comes when somebody
    before it refused, and then it gives back what it does not hold: a bug of the real kernel, and of this model of it.
    """

    name = "cmm"
    priority = 1

    def __init__(self, machine: Machine) -> None:
        # Taken under the chain's rwsem and kept beyond it, so lockdep must not see it.
        self.lock = Mutex("cmm hotplug_mutex", None)
        super().__init__(machine)

    def hear(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Rest from GOING_OFFLINE to the end."""
        if action is MEM_GOING_OFFLINE:
            self.lock.acquire()
        elif action in {MEM_OFFLINE, MEM_CANCEL_OFFLINE}:
            self.lock.release()
        return NOTIFY_OK


PARTICIPANTS: dict[str, type[Participant]] = {
    kind.name: kind for kind in (Ksm, MemoryTiers, Cpuset, ComputeBatch, Slab, Crash, ReserveMem, Kcore, PageExt, Arm64, Cmm)
}
"""All that there are, by name."""

_ON_X86 = ("ksm", "memory-tiers", "cpuset", "mm_compute_batch", "slab", "crash", "reserve_mem", "kcore")


def default_names(machine: Machine) -> list[str]:
    """List those of Debian's kernel whose rules the machine follows, in the order in which they register."""
    return [name for name in _ON_X86 if name != "crash" or machine.rules.value.crash_hotplug]


def join(machine: Machine, names: Iterable[str] | None = None) -> dict[str, Participant]:
    """Register participants, by default those of Debian's kernel whose rules the machine follows; gives them by name.

    Raises:
        InvalidInput: there is no such participant; none was registered.
    """
    chosen = default_names(machine) if names is None else list(names)
    for name in chosen:
        if name not in PARTICIPANTS:
            raise InvalidInput(name, "participants", f"some of {', '.join(PARTICIPANTS)}")
    return {name: PARTICIPANTS[name](machine) for name in chosen}
