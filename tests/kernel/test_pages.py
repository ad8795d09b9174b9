"""Pages: where they can be had at which moment, what migrates, and what keeps a block."""

from __future__ import annotations

import errno as errnos
import itertools
import threading

import pytest

from memhp import (
    MEM_CANCEL_OFFLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    NOTIFY_BAD,
    HotplugError,
    Interrupted,
    InvalidInput,
    Machine,
    MemoryAction,
    MemoryNotify,
    PageKind,
    PageRefusal,
    Rules,
)
from support import (
    ALL,
    GIB,
    Boot,
    Log,
    in_thread,
    refusal,
    rounds,
    snapshot,
    state,
    three,
    until_parked,
    with_node_1,
    write,
)


def take(machine: Machine, block: int) -> str:
    """Try to allocate one page from a block, and give it back."""
    try:
        machine.free_pages(machine.alloc_pages(1, blocks=[block]))
    except HotplugError as error:
        return errnos.errorcode[error.errno or 0]
    return "ok"


# -- when pages can be had


@ALL
@pytest.mark.fact("3.10", "3.14", "3.50")
def test_pages_can_be_had_from_online_until_going_offline(boot: Boot, rules: Rules) -> None:
    """Not before MEM_ONLINE, not any more at MEM_GOING_OFFLINE."""
    machine = with_node_1(boot, rules)
    seen = [("idle", take(machine, 32))]
    three(machine, Log(), act=lambda action, _: seen.append((action.name.removeprefix("MEM_"), take(machine, 32))))
    write(machine, "memory32/state", "online_movable")
    seen.append(("online", take(machine, 32)))
    write(machine, "memory32/state", "offline")
    seen.append(("offline", take(machine, 32)))

    expected = [
        ("idle", "ENOMEM"),
        ("PREPARE_ONLINE", "ENOMEM"),
        ("GOING_ONLINE", "ENOMEM"),
        ("ONLINE", "ok"),
        ("online", "ok"),
        ("GOING_OFFLINE", "ENOMEM"),
        ("OFFLINE", "ENOMEM"),
        ("FINISH_OFFLINE", "ENOMEM"),
        ("offline", "ENOMEM"),
    ]
    only_6_12 = {"PREPARE_ONLINE", "FINISH_OFFLINE"}
    assert seen == [line for line in expected if rules is Rules.LINUX_6_12 or line[0] not in only_6_12]


@ALL
def test_an_ordinary_allocation_never_comes_from_a_block_on_its_way(boot: Boot, rules: Rules) -> None:
    """Also one that names no block: it takes pages elsewhere while block 32 comes and goes."""
    machine = with_node_1(boot, rules)
    where: dict[str, list[int]] = {}

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        allocation = machine.alloc_pages(1, node=1)
        where[action.name] = allocation.blocks
        machine.free_pages(allocation)

    three(machine, Log(), act=act)
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory32/state", "offline")
    assert where[MEM_ONLINE.name] == [32]
    assert all(32 not in where[action.name] for action in (MEM_GOING_ONLINE, MEM_GOING_OFFLINE, MEM_OFFLINE))


@ALL
def test_a_callback_can_free_at_going_offline_what_it_holds(boot: Boot, rules: Rules) -> None:
    """A pinned page that its owner frees when asked does not stop anything."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(1000, blocks=[32], owner="database")
    machine.pages.pin(held)

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        if action is MEM_GOING_OFFLINE:
            machine.free_pages(held)

    log = Log()
    three(machine, log, act=act)
    write(machine, "memory32/state", "offline")
    assert [line for line in rounds(log) if "FINISH" not in line] == ["GOING_OFFLINE(-1,1): 200 0 -1", "OFFLINE(-1,1): 200 0 -1"]
    assert (held.freed, state(machine, 32)) == (True, "offline")


@ALL
@pytest.mark.fact("3.14", "7.5")
def test_a_callback_can_unpin_at_going_offline(boot: Boot, rules: Rules) -> None:
    """Then the pages migrate, and their owner keeps them."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(1000, blocks=[32], owner="rdma")
    machine.pages.pin(held)
    three(machine, Log(), act=lambda action, _: machine.pages.unpin(held) if action is MEM_GOING_OFFLINE else None)
    write(machine, "memory32/state", "offline")
    assert (held.nr_pages, held.blocks, held.pins) == (1000, [0], 0)


# -- what migrates, and where to


@ALL
@pytest.mark.fact("7.4", "3.14")
def test_movable_pages_go_to_other_nodes_first(boot: Boot, rules: Rules) -> None:
    """Even when their own node has room."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory33/state", "online_movable")
    held = machine.alloc_pages(0x8000, blocks=[32], owner="app")
    write(machine, "memory32/state", "offline")
    assert held.nr_pages == 0x8000
    assert {machine.block(block).nid for block in held.blocks} == {0}


@ALL
@pytest.mark.fact("7.4")
def test_movable_pages_stay_on_their_node_if_it_is_the_only_one_with_memory(boot: Boot, rules: Rules) -> None:
    """Where no other node has memory, the own one has to do."""
    machine = boot("1GiB", rules=rules)
    held = machine.alloc_pages(0x100, blocks=[7], owner="app")
    write(machine, "memory7/state", "offline")
    assert held.nr_pages == 0x100
    assert held.blocks == [0]


@ALL
@pytest.mark.fact("7.4")
def test_movable_pages_go_to_the_nearest_other_node(boot: Boot, rules: Rules) -> None:
    """By distance from where they are."""
    nodes = [
        {"memory": "1GiB", "distances": [10, 40, 20]},
        {"memory": "1GiB", "distances": [40, 10, 30]},
        {"memory": "1GiB", "distances": [20, 30, 10]},
    ]
    machine = boot(nodes, rules=rules)
    held = machine.alloc_pages(10, blocks=[7])
    write(machine, "memory7/state", "offline")
    assert [machine.block(block).nid for block in held.blocks] == [2]


@ALL
@pytest.mark.fact("7.4", "7.5", "3.14")
def test_an_offline_waits_until_there_is_room_for_what_must_move(boot: Boot, rules: Rules) -> None:
    """With everything else full it goes on and on, until somebody frees pages."""
    machine = with_node_1(boot, rules)
    full = machine.alloc_pages(machine.pages.count_free(), owner="hog")
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(100, blocks=[32], owner="app")
    thread = in_thread(lambda: write(machine, "memory32/state", "offline"))
    until_parked(thread)
    assert state(machine, 32) == "going-offline"
    machine.free_pages(full)
    assert thread.result() == 7
    assert held.blocks == [0]


@ALL
def test_unmovable_pages_never_come_from_zone_movable(boot: Boot, rules: Rules) -> None:
    """That is what ZONE_MOVABLE is for; movable ones prefer it."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory33/state", "online_kernel")
    assert machine.alloc_pages(1, PageKind.UNMOVABLE, node=1).blocks == [33]
    assert machine.alloc_pages(1, PageKind.MOVABLE, node=1).blocks == [32]
    with pytest.raises(HotplugError, match="only 0 are free") as caught:
        machine.alloc_pages(1, PageKind.UNMOVABLE, blocks=[32], owner="slab")
    assert caught.value.errno == errnos.ENOMEM


# -- what keeps a block


@ALL
@pytest.mark.fact("7.1", "3.16", "13.10")
@pytest.mark.parametrize(
    "kind", [PageKind.UNMOVABLE, PageKind.RESERVED, PageKind.SLAB, PageKind.RECLAIMABLE, PageKind.PAGE_TABLE]
)
def test_a_page_that_can_not_move_is_ebusy_without_any_event(boot: Boot, rules: Rules, kind: PageKind) -> None:
    """The refusal names the page, its kind and its owner, and nobody was called."""
    machine = with_node_1(boot, rules)
    write(machine, "memory33/state", "online_kernel")
    machine.alloc_pages(16, blocks=[33], owner="app")
    machine.alloc_pages(3, kind, blocks=[33], owner="slab")
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    with pytest.raises(PageRefusal, match=rf"memory33: page 0x108010 of slab \({kind.value}, 3 pages\) can't move") as caught:
        write(machine, "memory33/state", "offline")
    error = caught.value
    assert (error.errno, error.block, error.page) == (errnos.EBUSY, 33, 0x108010)
    assert (error.kind, error.owner) == (kind.value, "slab")
    assert log == []
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.16", "7.3", "7.8", "5.17", "13.10")
def test_a_driver_s_offline_page_is_ebusy_after_going_with_cancel(boot: Boot, rules: Rules) -> None:
    """Isolation lets it pass; when nobody drops it at GOING_OFFLINE, it is EBUSY with CANCEL_OFFLINE to all."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_kernel")
    machine.alloc_pages(512, PageKind.OFFLINE, blocks=[32], owner="balloon")
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    with pytest.raises(PageRefusal, match=r"page 0x100000 of balloon \(offline, 512 pages\)") as caught:
        write(machine, "memory32/state", "offline")
    error = caught.value
    assert (error.errno, error.page, error.kind, error.owner) == (errnos.EBUSY, 0x100000, "offline", "balloon")
    assert rounds(log) == ["GOING_OFFLINE(1,1): 200 0 -1", "CANCEL_OFFLINE(1,1): 200 0 -1"]
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("7.8")
def test_a_driver_that_lets_its_offline_page_go_at_going_lets_the_block_go(boot: Boot, rules: Rules) -> None:
    """It drops its reference when asked, and the block goes offline."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_kernel")
    held = machine.alloc_pages(512, PageKind.OFFLINE, blocks=[32], owner="balloon")
    three(machine, Log(), act=lambda action, _: machine.free_pages(held) if action is MEM_GOING_OFFLINE else None)
    write(machine, "memory32/state", "offline")
    assert state(machine, 32) == "offline"


@ALL
@pytest.mark.fact("7.8")
def test_a_driver_can_take_its_page_again_at_cancel(boot: Boot, rules: Rules) -> None:
    """Dropped at GOING_OFFLINE, retaken at CANCEL_OFFLINE from the block that stays."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_kernel")
    held = [machine.alloc_pages(512, PageKind.OFFLINE, blocks=[32], owner="balloon")]

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        if action is MEM_GOING_OFFLINE:
            machine.free_pages(held.pop())
        if action is MEM_CANCEL_OFFLINE:
            held.append(machine.alloc_pages(512, PageKind.OFFLINE, blocks=[32], owner="balloon"))

    three(machine, Log(), {-1: {MEM_GOING_OFFLINE: NOTIFY_BAD}}, act)
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert [allocation.blocks for allocation in held] == [[32]]
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("7.5", "3.14", "13.11")
def test_a_pinned_page_keeps_it_going_until_it_is_unpinned(boot: Boot, rules: Rules) -> None:
    """``going-offline`` for as long as it takes; two pins need two unpins."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(7, blocks=[32], owner="vmsplice")
    machine.pages.pin(held)
    machine.pages.pin(held)
    log = Log()
    three(machine, log)
    thread = in_thread(lambda: write(machine, "memory32/state", "offline"))
    until_parked(thread)
    assert rounds(log) == ["GOING_OFFLINE(-1,1): 200 0 -1"]
    machine.pages.unpin(held)
    until_parked(thread)
    assert state(machine, 32) == "going-offline"
    machine.pages.unpin(held)
    assert thread.result() == 7
    assert [line for line in rounds(log) if "FINISH" not in line] == ["OFFLINE(-1,1): 200 0 -1"]
    assert held.blocks == [0]


@ALL
@pytest.mark.fact("7.5")
def test_a_pinned_page_that_is_freed_lets_the_block_go(boot: Boot, rules: Rules) -> None:
    """Freeing is as good as unpinning."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(7, blocks=[32])
    machine.pages.pin(held)
    thread = in_thread(lambda: machine.device_offline(32))
    until_parked(thread)
    machine.free_pages(held)
    assert thread.result() == 0


@ALL
@pytest.mark.fact("7.5", "3.41", "3.15", "5.17")
def test_a_signal_ends_the_wait_with_eintr_and_names_the_page(boot: Boot, rules: Rules) -> None:
    """All hear CANCEL_OFFLINE, and everything is as before."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(7, blocks=[32], owner="vmsplice")
    machine.pages.pin(held)
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    thread = in_thread(lambda: machine.device_offline(32))
    until_parked(thread)
    machine.send_signal(thread)
    with pytest.raises(Interrupted, match=r"page 0x100000 of vmsplice \(movable, 7 pages, pinned\)") as caught:
        thread.result()
    assert (caught.value.errno, caught.value.block, caught.value.page) == (errnos.EINTR, 32, 0x100000)
    assert rounds(log) == ["GOING_OFFLINE(-1,1): 200 0 -1", "CANCEL_OFFLINE(-1,1): 200 0 -1"]
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.14", "7.5")
def test_a_signal_that_comes_during_going_offline_ends_it_too(boot: Boot, rules: Rules) -> None:
    """Any pending signal is EINTR before the first page is moved."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(7, blocks=[32])
    ready: list[threading.Thread] = []

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        if action is MEM_GOING_OFFLINE:
            machine.send_signal(ready[0])

    log = Log()
    three(machine, log, act=act)
    gate = threading.Event()

    def request() -> int:
        gate.wait(30)
        return machine.device_offline(32)

    thread = in_thread(request)
    ready.append(thread)
    gate.set()
    assert refusal(thread.result) == "EINTR"
    assert rounds(log) == ["GOING_OFFLINE(-1,1): 200 0 -1", "CANCEL_OFFLINE(-1,1): 200 0 -1"]
    assert held.blocks == [32]


@ALL
@pytest.mark.fact("7.5", "4.3")
def test_a_signal_to_a_thread_that_does_something_else_does_nothing(boot: Boot, rules: Rules) -> None:
    """It does not end an online, nor is it kept for the next offline."""
    machine = with_node_1(boot, rules)
    three(machine, Log(), act=lambda action, _: machine.send_signal(threading.current_thread()) if action is MEM_ONLINE else None)
    assert machine.device_online(32, "online_movable") == 0
    machine.send_signal(threading.current_thread())
    assert machine.device_offline(32) == 0


@pytest.mark.fact("7.7")
def test_a_poisoned_page_does_not_keep_its_block(boot: Boot) -> None:
    """It goes with its block, without a wait, also from memory of the kernel."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    write(machine, "memory32/state", "online_kernel")
    write(machine, "hard_offline_page", hex(4 * GIB + 0x5000))
    write(machine, "memory32/state", "offline")
    assert state(machine, 32) == "offline"


def test_poisoned_pages_can_not_be_allocated(boot: Boot) -> None:
    """Only a broken DIMM makes them."""
    with pytest.raises(InvalidInput, match="hard_offline_page"):
        boot("1GiB").alloc_pages(1, PageKind.POISONED)


# -- misuse


def test_freeing_twice_is_an_error(boot: Boot) -> None:
    """The second time there is nothing to give back; nothing is changed."""
    machine = boot("1GiB")
    held = machine.alloc_pages(5, owner="app")
    machine.free_pages(held)
    before = snapshot(machine)
    with pytest.raises(InvalidInput, match="not freed yet"):
        machine.free_pages(held)
    assert snapshot(machine) == before


def test_unpinning_what_is_not_pinned_is_an_error(boot: Boot) -> None:
    """Each unpin needs its pin, and what is freed can't be pinned."""
    machine = boot("1GiB")
    held = machine.alloc_pages(5, owner="app")
    with pytest.raises(InvalidInput, match="a pinned allocation"):
        machine.pages.unpin(held)
    machine.pages.pin(held)
    machine.pages.unpin(held)
    with pytest.raises(InvalidInput, match="a pinned allocation"):
        machine.pages.unpin(held)
    machine.free_pages(held)
    with pytest.raises(InvalidInput, match="not freed"):
        machine.pages.pin(held)


def test_a_freed_allocation_has_no_pins_left(boot: Boot) -> None:
    """Freed while pinned, there is nothing to unpin any more."""
    machine = boot("1GiB")
    held = machine.alloc_pages(5, owner="app")
    machine.pages.pin(held)
    machine.free_pages(held)
    with pytest.raises(InvalidInput):
        machine.pages.unpin(held)


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "3", None])
def test_a_bad_count_is_an_error(boot: Boot, count: object) -> None:
    """Only whole numbers from 1 on are numbers of pages."""
    machine = boot("1GiB")
    before = snapshot(machine)
    with pytest.raises(InvalidInput, match="a number of pages, at least 1"):
        machine.alloc_pages(count)  # type: ignore[arg-type]
    assert snapshot(machine) == before


@pytest.mark.parametrize("where", [{"node": 5}, {"node": -1}, {"blocks": [99]}, {"blocks": [0, 99]}, {"kind": "chewing gum"}])
def test_a_place_or_kind_that_does_not_exist_is_an_error_that_says_so(boot: Boot, where: dict[str, object]) -> None:
    """The value is named, and nothing is taken."""
    machine = boot("1GiB")
    before = snapshot(machine)
    with pytest.raises(InvalidInput, match=r"5|-1|99|chewing gum"):
        machine.alloc_pages(1, **where)  # type: ignore[arg-type]
    assert snapshot(machine) == before


def test_too_many_pages_are_enomem_and_nothing_is_taken(boot: Boot) -> None:
    """The error says what was asked for and what is free."""
    machine = boot("1GiB")
    free = machine.pages.count_free()
    assert free == (GIB >> 12) - 1 - 0x61
    before = snapshot(machine)
    with pytest.raises(HotplugError, match=rf"app asked for {free + 1} movable pages; only {free} are free") as caught:
        machine.alloc_pages(free + 1, owner="app")
    assert caught.value.errno == errnos.ENOMEM
    assert snapshot(machine) == before
    assert machine.alloc_pages(free).nr_pages == free
    assert machine.pages.count_free() == 0


def test_allocations_of_many_threads_never_overlap(boot: Boot) -> None:
    """Each page has at most one owner, and every page comes back."""
    machine = boot("1GiB")
    free = machine.pages.count_free()

    def churn() -> list[tuple[int, int]]:
        for size in range(1, 60):
            machine.free_pages(machine.alloc_pages(size))
        kept = machine.alloc_pages(997)
        return [(extent.start_pfn, extent.end_pfn) for extent in kept.extents]

    threads = [in_thread(churn, f"T{n}") for n in range(8)]
    runs = sorted(run for thread in threads for run in thread.result())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(runs))
    assert sum(end - start for start, end in runs) == 8 * 997
    assert machine.pages.count_free() == free - 8 * 997


def test_the_room_of_a_block_in_two_zones_is_counted_once(boot: Boot) -> None:
    """Block 0 lies in DMA and DMA32: pages that only fit in it twice have nowhere to go, and the offline waits."""
    machine = boot("256MiB")
    room = machine.pages.count_free([machine.block(0)])
    machine.alloc_pages(room - 100, blocks=[0], owner="first")
    machine.alloc_pages(150, blocks=[1], owner="second")
    thread = in_thread(lambda: refusal(write, machine, "memory1/state", "offline"))
    until_parked(thread)
    machine.send_signal(thread)
    assert thread.result() == "EINTR"
