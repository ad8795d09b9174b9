"""Whatever happens to a machine in whatever order, it agrees with a naive one that is computed from scratch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memhp import (
    NOTIFY_BAD,
    NOTIFY_OK,
    Allocation,
    HotplugError,
    Machine,
    MemoryAction,
    MemoryNotify,
    NotifierBlock,
    NotifyResult,
    PageKind,
    Rules,
)
from memhp.errors import errno_name
from memhp.kernel import BlockState
from memhp.locking import current, switch
from memhp.units import BlockId
from support import BLOCK, MEMORY, NODE, in_thread, snapshot

PAGES = 0x8000
BOOT = 4
SLOTS = range(32, 38)
KERNEL = ("DMA", "DMA32", "Normal")
PRIORITIES = (10, 0, -10)
KINDS = [PageKind.MOVABLE, PageKind.MOVABLE, PageKind.MOVABLE, PageKind.UNMOVABLE, PageKind.OFFLINE]
WAYS_IN = st.sampled_from([None, None, None, "PREPARE_ONLINE", "GOING_ONLINE", "ONLINE"])
WAYS_OUT = st.sampled_from([None, None, None, None, "GOING_OFFLINE", "OFFLINE"])


class Oracle:
    """The naive machine: which block exists, of which node, in which zone; all else is computed from that."""

    def __init__(self) -> None:
        self.node = dict.fromkeys(range(BOOT), 0)
        self.zone: dict[int, str] = dict.fromkeys(range(1, BOOT), "DMA32")
        self.claims = [(0, BOOT)]
        self.nodes_online = {0}

    def parts(self) -> list[tuple[int, str, int, int]]:
        """Every present run of pages: node, zone, first page, the page after the last one."""
        boot = [(0, "DMA", 1, 0x9F), (0, "DMA", 0x100, 0x1000), (0, "DMA32", 0x1000, PAGES)]
        return boot + [(self.node[b], zone, b * PAGES, (b + 1) * PAGES) for b, zone in self.zone.items()]

    def online(self) -> set[int]:
        return {0, *self.zone}

    def present(self, nid: int, zone: str) -> int:
        return sum(end - first for node, kind, first, end in self.parts() if (node, kind) == (nid, zone))

    def span(self, nid: int, zone: str) -> tuple[int, int]:
        runs = [(first, end) for node, kind, first, end in self.parts() if (node, kind) == (nid, zone)]
        return (min(runs)[0], max(end for _, end in runs)) if runs else (0, 0)

    def touches(self, nid: int, zone: str, block: int) -> bool:
        first, end = self.span(nid, zone)
        return first < (block + 1) * PAGES and end > block * PAGES

    def choose(self, block: int, word: str) -> str:
        """Say where contig-zones brings a block."""
        nid = self.node[block]
        kernel = next((zone for zone in KERNEL[:2] if self.touches(nid, zone, block)), "Normal")
        if word == "online_movable":
            return "Movable"
        in_kernel, in_movable = self.touches(nid, kernel, block), self.touches(nid, "Movable", block)
        return "Movable" if word == "online" and in_movable and not in_kernel else kernel

    def has(self, nid: int, zones: tuple[str, ...]) -> bool:
        return any(self.present(nid, zone) for zone in zones)

    def change(self, block: int, zone: str) -> str:
        """Give the two node ids of a change, as the log prints them; the same on the way in and on the way out."""
        nid = self.node[block]
        after = Oracle()
        after.node, after.zone = dict(self.node), {b: z for b, z in self.zone.items() if b != block}
        kernel = zone in KERNEL and not after.has(nid, KERNEL)
        memory = not after.has(nid, (*KERNEL, "Movable"))
        return f"({nid if kernel else -1},{nid if memory else -1})"

    def trim(self, first: int, end: int) -> None:
        """Take a range out of the one claim that contains it."""
        for index, (low, high) in enumerate(self.claims):
            if low <= first and end <= high:
                self.claims[index : index + 1] = [part for part in ((low, first), (end, high)) if part[0] < part[1]]
                return


def trace(direction: str, nids: str, refused: str | None, rules: Rules, *, stuck: bool = False) -> list[str]:
    """Say what three callbacks hear of one change, the middle one refusing one action, or a page in the way."""
    up_to = PRIORITIES[:2]
    heard: list[tuple[str, tuple[int, ...]]] = []
    prepares = rules is Rules.LINUX_6_12
    going, done, cancel = f"GOING_{direction}{nids}", f"{direction}{nids}", f"CANCEL_{direction}{nids}"
    finish = [("FINISH_OFFLINE(0,0)", PRIORITIES)] if prepares else []
    if direction == "ONLINE" and prepares:
        if refused == "PREPARE_ONLINE":
            return lines([("PREPARE_ONLINE(0,0)", up_to)])
        heard.append(("PREPARE_ONLINE(0,0)", PRIORITIES))
    if refused == f"GOING_{direction}" or stuck:
        heard += [(going, up_to if refused == f"GOING_{direction}" else PRIORITIES), (cancel, PRIORITIES)]
        return lines([*heard, *(finish if direction == "ONLINE" else [])])
    heard += [(going, PRIORITIES), (done, up_to if refused == direction else PRIORITIES)]
    if refused == direction and rules is Rules.DOCUMENTED:
        return lines([*heard, (cancel, PRIORITIES)])
    return lines([*heard, *(finish if direction == "OFFLINE" else [])])


def lines(heard: list[tuple[str, tuple[int, ...]]]) -> list[str]:
    return [f"{priority} {action}" for action, called in heard for priority in called]


def picture(machine: Machine, *, pages: bool) -> dict[str, object]:
    """Everything but the stored online_type, which a failed request may use up; pages may have migrated."""
    found = snapshot(machine, files=False)
    for name, value in found.items():
        if name.startswith("memory") and isinstance(value, tuple):
            found[name] = (*value[:3], *(value[4:] if pages else value[4:-1]))
    return found


class Hotplug(RuleBasedStateMachine):
    """Two nodes, of which one has no memory at boot, and everything that can be done to them."""

    machine: Machine
    follows: Rules

    @initialize(rules=st.sampled_from(list(Rules)))
    def boot(self, rules: Rules) -> None:
        options = {"memhp_default_state": "offline"}
        self.follows = rules
        self.machine = Machine.boot(["512MiB", 0], rules=rules, parameters=options, lockdep=True)
        self.oracle = Oracle()
        self.allocations: list[Allocation] = []
        self.sizes: list[int] = []
        self.refuse: str | None = None
        self.log: list[str] = []
        for priority in PRIORITIES:
            self.machine.hotplug_memory_notifier(self.callback(priority), priority)
        self.add(first=SLOTS[0], count=3, nid=1)

    def callback(self, priority: int) -> Callable[[NotifierBlock, Any, Any], NotifyResult]:
        def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
            name = action.name.removeprefix("MEM_")
            self.log.append(f"{priority} {name}({arg.status_change_nid_normal},{arg.status_change_nid})")
            return NOTIFY_BAD if priority == 0 and name == self.refuse else NOTIFY_OK

        return callback

    def fails(self, errno: str, call: Callable[[], object], *, pages: bool = True) -> None:
        """Make a request that must fail with one errno, and change nothing."""
        before = picture(self.machine, pages=pages)
        with pytest.raises(HotplugError) as caught:
            call()
        assert errno_name(caught.value.errno or 0) == errno
        assert picture(self.machine, pages=pages) == before

    def free_in(self, block: int) -> int:
        """Count a block's free pages from the run of its users."""
        runs = [end - first for _, _, first, end in self.oracle.parts() if first // PAGES == block]
        return sum(runs) - sum(extent.nr_pages for extent in self.machine.block(block).used)

    # -- what can be done

    @rule(block=st.sampled_from([0, 99]))
    def change_what_can_not_be_changed(self, block: int) -> None:
        """Block 0 has two zones, and block 99 does not exist."""
        self.log.clear()
        errno = {0: "EINVAL", 99: "ENODEV"}[block]
        self.fails(errno, lambda: self.machine.device_offline(block))
        if block == 99:
            self.fails(errno, lambda: self.machine.device_online(block))
        assert self.log == []

    @rule(data=st.data(), word=st.sampled_from(["online", "online_kernel", "online_movable"]), refuse=WAYS_IN)
    def online(self, data: st.DataObject, word: str, refuse: str | None) -> None:
        machine, oracle = self.machine, self.oracle
        block = data.draw(st.sampled_from(sorted(oracle.node)), "block")
        self.refuse = refuse
        self.log.clear()
        if block in oracle.online():
            assert machine.device_online(block, word) == 1
            assert self.log == []
        else:
            zone = oracle.choose(block, word)
            expected = trace("ONLINE", oracle.change(block, zone), self.refuse, self.follows)
            refused = {"GOING_ONLINE"}
            refused |= {"PREPARE_ONLINE"} if self.follows is Rules.LINUX_6_12 else set()
            refused |= {"ONLINE"} if self.follows is Rules.DOCUMENTED else set()
            if self.refuse in refused:
                self.fails("EPERM", lambda: machine.device_online(block, word))
            else:
                assert machine.device_online(block, word) == 0
                oracle.zone[block] = zone
            assert self.log == expected

    @rule(data=st.data(), refuse=WAYS_OUT)
    def offline(self, data: st.DataObject, refuse: str | None) -> None:
        machine, oracle = self.machine, self.oracle
        block = data.draw(st.sampled_from(sorted(oracle.node)[1:]), "block")
        self.refuse = refuse
        self.log.clear()
        kinds = {extent.allocation.kind for extent in machine.block(block).used}
        pinned = any(extent.allocation.pins for extent in machine.block(block).used)
        if block not in oracle.online():
            assert machine.device_offline(block) == 1
        elif PageKind.UNMOVABLE in kinds:
            self.fails("EBUSY", lambda: machine.device_offline(block))
        else:
            self.ask_to_go(block, kinds, pinned=pinned)
            return
        assert self.log == []

    def ask_to_go(self, block: int, kinds: set[PageKind], *, pinned: bool) -> None:
        machine, oracle = self.machine, self.oracle
        nids = oracle.change(block, oracle.zone[block])
        if self.refuse == "GOING_OFFLINE":
            self.fails("EPERM", lambda: machine.device_offline(block))
            assert self.log == trace("OFFLINE", nids, self.refuse, self.follows)
        elif PageKind.OFFLINE in kinds:
            self.fails("EBUSY", lambda: machine.device_offline(block), pages=False)
            assert self.log == trace("OFFLINE", nids, self.refuse, self.follows, stuck=True)
        elif pinned or not self.room_elsewhere(block):
            self.fails("EINTR", lambda: self.offline_until_parked(block), pages=False)
            assert self.log == trace("OFFLINE", nids, self.refuse, self.follows, stuck=True)
        elif self.refuse == "OFFLINE" and self.follows is Rules.DOCUMENTED:
            self.fails("EPERM", lambda: machine.device_offline(block), pages=False)
            assert self.log == trace("OFFLINE", nids, self.refuse, self.follows)
        else:
            assert machine.device_offline(block) == 0
            del oracle.zone[block]
            assert self.log == trace("OFFLINE", nids, self.refuse, self.follows)

    def room_elsewhere(self, block: int) -> bool:
        """Say whether what is in the block fits on the other nodes, or on its own if no other has memory."""
        need = sum(extent.nr_pages for extent in self.machine.block(block).used)
        online = [other for other in self.oracle.online() if other != block]
        others = [other for other in online if self.oracle.node[other] != self.oracle.node[block]]
        return need <= sum(self.free_in(other) for other in others or online)

    def offline_until_parked(self, block: int) -> None:
        """Go offline in a thread, and send it a signal when it waits."""
        go, stopped = threading.Event(), threading.Event()

        def request() -> None:
            go.wait(30)
            try:
                self.machine.device_offline(block)
            finally:
                stopped.set()

        thread = in_thread(request, "offline")
        with switch.guard:
            switch.task_of(thread).on_park = lambda _: stopped.set()
        go.set()
        assert stopped.wait(30)
        self.machine.send_signal(thread)
        thread.result()

    @rule(first=st.sampled_from(SLOTS), count=st.integers(1, 3), nid=st.integers(0, 2))
    def add(self, first: int, count: int, nid: int) -> None:
        machine, oracle = self.machine, self.oracle
        end = first + count
        self.log.clear()

        def call() -> list[BlockId]:
            return machine.add_memory(nid, first * BLOCK, count * BLOCK)

        if any(low < end and first < high for low, high in oracle.claims):
            self.fails("EEXIST", call)
        elif nid == 2:
            self.fails("EINVAL", call)
        else:
            assert call() == list(range(first, end))
            oracle.node |= dict.fromkeys(range(first, end), nid)
            oracle.claims.append((first, end))
            oracle.nodes_online.add(nid)
        assert self.log == []

    @rule(first=st.sampled_from([2, *SLOTS]), count=st.integers(1, 3))
    def remove(self, first: int, count: int) -> None:
        machine, oracle = self.machine, self.oracle
        found = [block for block in range(first, first + count) if block in oracle.node]
        self.log.clear()

        def call() -> list[BlockId]:
            return machine.remove_memory(first * BLOCK, count * BLOCK)

        if any(block in oracle.online() for block in found):
            self.fails("EBUSY", call)
        else:
            assert call() == found
            last = oracle.node[found[-1]] if found else 0
            for block in found:
                del oracle.node[block]
            oracle.trim(first, first + count)
            if last not in oracle.node.values():
                oracle.nodes_online.discard(last)
        assert self.log == []

    @rule(
        size=st.one_of(st.integers(1, 64), st.integers(1, 3 * PAGES)),
        kind=st.sampled_from(KINDS),
        node=st.sampled_from([None, 0, 1]),
        only=st.one_of(st.none(), st.sampled_from(SLOTS)),
        pins=st.integers(0, 1),
    )
    def alloc(self, size: int, kind: PageKind, node: int | None, only: int | None, pins: int) -> None:
        usable = [block for block in self.oracle.online() if kind is PageKind.MOVABLE or self.oracle.zone.get(block) != "Movable"]
        where: dict[str, Any] = {}
        if only in self.oracle.node:
            where = {"blocks": [only]}
            usable = [block for block in usable if block == only]
        if size > sum(self.free_in(block) for block in usable):
            self.fails("ENOMEM", lambda: self.machine.alloc_pages(size, kind, node=node, **where))
            return
        allocation = self.machine.alloc_pages(size, kind, node=node, **where)
        for _ in range(pins):
            self.machine.pages.pin(allocation)
        self.allocations.append(allocation)
        self.sizes.append(size)

    @precondition(lambda self: self.allocations)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.allocations) - 1), "allocation")
        self.machine.free_pages(self.allocations.pop(index))
        self.sizes.pop(index)

    @precondition(lambda self: self.allocations)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        self.machine.pages.pin(data.draw(st.sampled_from(self.allocations), "allocation"))

    @precondition(lambda self: any(allocation.pins for allocation in self.allocations))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        pinned = [allocation for allocation in self.allocations if allocation.pins]
        self.machine.pages.unpin(data.draw(st.sampled_from(pinned), "allocation"))

    # -- what must always hold

    @invariant()
    def blocks_are_as_the_oracle_has_them(self) -> None:
        online = self.oracle.online()
        seen = {block.id: (block.nid, block.state, block.offline, block.isolated) for block in self.machine.blocks.values()}
        expected = {
            block: (nid, BlockState.ONLINE, False, False) if block in online else (nid, BlockState.OFFLINE, True, False)
            for block, nid in self.oracle.node.items()
        }
        assert seen == expected

    @invariant()
    def zones_are_the_sum_of_their_blocks(self) -> None:
        for node in self.machine.nodes.values():
            for zone in node.zones:
                first, end = self.oracle.span(node.nid, zone.type.label)
                present = self.oracle.present(node.nid, zone.type.label)
                assert (zone.start_pfn, zone.spanned, zone.present, zone.managed) == (first, end - first, present, present)

    @invariant()
    def masks_follow_from_the_counts(self) -> None:
        oracle, read = self.oracle, self.machine.tree.read
        masks = {
            "online": oracle.nodes_online,
            "has_memory": {nid for nid in (0, 1) if oracle.has(nid, (*KERNEL, "Movable"))},
            "has_normal_memory": {nid for nid in (0, 1) if oracle.has(nid, KERNEL)},
        }
        text = {(): "\n", (0,): "0\n", (1,): "1\n", (0, 1): "0-1\n"}
        for name, nids in masks.items():
            assert read(f"{NODE}/{name}") == text[tuple(sorted(nids))], name

    @invariant()
    def the_tree_shows_the_same(self) -> None:
        tree = self.machine.tree
        names = [name for name in tree.list(MEMORY) if name[6:].isdigit()]
        assert sorted(names) == sorted(f"memory{block}" for block in self.oracle.node)
        for block, nid in self.oracle.node.items():
            assert tree.exists(f"{NODE}/node{nid}/memory{block}")
            if block:
                words = tree.read(f"{MEMORY}/memory{block}/valid_zones").split()
                zone = self.oracle.zone.get(block)
                assert words[0] == (zone or self.oracle.choose(block, "online"))
                assert len(words) == (1 if zone else 2)

    @invariant()
    def the_claims_are_those_that_were_made(self) -> None:
        seen = sorted((resource.start // BLOCK, (resource.end + 1) // BLOCK) for resource in self.machine.iomem)
        first_mib = [(0, 0)]  # page 0 and 0x9f..0xff are nobody's, so the first claim is in two parts
        assert seen == sorted([*first_mib, *self.oracle.claims])

    @invariant()
    def pages_have_one_owner_and_lie_in_online_blocks(self) -> None:
        runs = []
        for allocation, size in zip(self.allocations, self.sizes, strict=True):
            assert allocation.nr_pages == size
            runs += [(extent.start_pfn, extent.end_pfn) for extent in allocation.extents]
        runs.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(runs))
        present = [(first, end) for _, _, first, end in self.oracle.parts()]
        assert all(any(first <= start and stop <= end for first, end in present) for start, stop in runs)
        free = sum(end - first for first, end in present) - sum(end - start for start, end in runs)
        assert self.machine.pages.count_free() == free >= 0

    @invariant()
    def nobody_holds_a_lock_and_no_order_was_wrong(self) -> None:
        assert current().describe_held() == []
        assert self.machine.dep is not None
        assert [str(report) for report in self.machine.dep.reports] == []


Hotplug.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestHotplug = pytest.mark.fact("6.4", "13.1", "13.3", "13.4", "3.10", "3.14", "3.27", "8.2", "8.3")(Hotplug.TestCase)
