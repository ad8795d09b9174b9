"""virtio-mem: sub-blocks and big blocks, the notifier, plugging and unplugging in order, and retries."""

from __future__ import annotations

import errno
import logging

import pytest

from memhp import (
    MEM_CANCEL_ONLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    NOTIFY_BAD,
    NOTIFY_OK,
    Allocation,
    DeadlockError,
    InvalidInput,
    Machine,
    MemoryAction,
    MemoryNotify,
    NotifierBlock,
    NotifyResult,
    Rules,
    notifier_from_errno,
)
from memhp.kernel.drivers import VirtioMem, XenBalloon
from memhp.kernel.drivers.virtiomem_bbm import BigBlocks
from memhp.kernel.drivers.virtiomem_sbm import SubBlocks
from memhp.kernel.kinds import PageKind
from memhp.kernel.zones import Zone
from support import ALL, BLOCK, GIB, MIB, Boot, Running, in_thread, refusal, snapshot, state, until_parked, write

REAL = pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.LINUX_6_12])
ROOM = 4 * GIB


def guest(
    boot: Boot, rules: Rules = Rules.LINUX_6_12, default: str = "online_movable", *, lockdep: bool = True, **options: str
) -> Machine:
    names = {f"memory_hotplug.{name}": value for name, value in options.items()}
    return boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": default, **names}, lockdep=lockdep)


def want(device: VirtioMem, size: int) -> str:
    device.request(size)
    return device.work()


def blocks(machine: Machine) -> dict[int, str]:
    return {number: state(machine, number) for number in sorted(machine.nodes[1].linked)}


def plugged(device: VirtioMem) -> dict[int, int]:
    """Count plugged MiB by block."""
    assert isinstance(device.mode, SubBlocks)
    return {mine.id: len(mine.plugged) * device.mode.unit // MIB for mine in device.mode.blocks if mine.plugged}


def refuse(machine: Machine, action: MemoryAction, *numbers: int, priority: int = 0) -> list[int]:
    found = list(numbers)

    def callback(block: NotifierBlock, seen: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        return NOTIFY_BAD if seen is action and machine.block_id_of(arg.start_pfn) in found else NOTIFY_OK

    machine.hotplug_memory_notifier(callback, priority)
    return found


# -- sub-blocks: plugging


@ALL
@pytest.mark.fact("10.7", "7.9", "6.9", "5.15")
def test_a_block_is_added_with_as_much_of_it_as_is_plugged(boot: Boot, rules: Rules) -> None:
    """160 MiB are a block and a quarter; MemTotal grows by what is plugged; the range is the device's child, and merges."""
    machine = guest(boot, rules)
    before = machine.memory_total
    device = VirtioMem(machine, 1, ROOM, GIB)
    assert want(device, 160 * MIB) == "ok"
    assert (blocks(machine), plugged(device)) == ({32: "online", 33: "online"}, {32: 128, 33: 32})
    assert machine.memory_total - before == 160 * MIB
    assert machine.zone(1, "Movable").present == 65536
    assert str(machine.iomem).splitlines()[-2:] == [
        "100000000-13fffffff : virtio0",
        "  100000000-10fffffff : System RAM (virtio_mem)",
    ]
    [group] = machine.groups
    assert (group.nid, group.unit_pages, group.present_movable_pages) == (1, 32768, 65536)
    assert refusal(lambda: machine.alloc_pages(8193, blocks=[33])) == "ENOMEM"
    machine.alloc_pages(8192, blocks=[33])


@REAL
@pytest.mark.fact("10.7", "7.9")
def test_growing_fills_what_is_partly_plugged_first(boot: Boot, rules: Rules) -> None:
    """Kernel blocks, then movable ones, then offline ones, then new blocks."""
    machine = guest(boot, rules, "offline")
    device = VirtioMem(machine, 1, ROOM, GIB)
    asked: list[tuple[int, int]] = []

    def answer(what: str, start: int, size: int) -> int:
        asked.append((start // BLOCK, size // MIB))
        return 0

    device._answer = answer
    want(device, 384 * MIB)
    assert blocks(machine) == {32: "offline", 33: "offline", 34: "offline"}
    want(device, 378 * MIB)  # from an offline block, the highest
    assert plugged(device) == {32: 128, 33: 128, 34: 122}
    write(machine, "memory33/state", "online_movable")
    write(machine, "memory32/state", "online_kernel")
    for number in (33, 32):
        assert isinstance(device.mode, SubBlocks)
        device.mode._take(device.mode._at(number * BLOCK), 63)
        device.send("unplug", *device.mode._place(device.mode._at(number * BLOCK), 63))
        device.mode._at(number * BLOCK).plugged.discard(63)
    before = machine.memory_total
    asked.clear()
    assert want(device, 386 * MIB) == "ok"
    assert asked == [(32, 2), (33, 2), (34, 6), (35, 2)]
    assert machine.memory_total - before == 4 * MIB  # the offline blocks don't count


@REAL
@pytest.mark.fact("10.7")
def test_it_adds_no_more_while_too_much_is_offline(boot: Boot, rules: Rules) -> None:
    """At most 1 GiB, or two blocks; bringing half of that online lets it go on by itself."""
    machine = guest(boot, rules, "offline")
    device = VirtioMem(machine, 1, ROOM, 4 * GIB, offline_at_most=0)
    assert want(device, 512 * MIB) == "ENOSPC"
    assert (len(blocks(machine)), device.queued, device.retry_ms, device.broken) == (2, False, None, "")
    write(machine, "memory32/state", "online_movable")
    assert device.queued
    assert device.work() == "ENOSPC"
    assert len(blocks(machine)) == 3


@REAL
@pytest.mark.fact("10.7")
def test_it_looks_again_at_once_when_it_has_removed_a_block_and_not_when_one_goes_offline(boot: Boot, rules: Rules) -> None:
    """Removing gives back the memmap too; a block that goes offline by hand is left to the next request (observed)."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 256 * MIB)
    write(machine, "memory32/state", "offline")
    assert not device.queued
    assert want(device, 128 * MIB) == "ok"
    assert device.queued
    assert device.work() == "ok"
    assert not device.queued


@pytest.mark.fact("10.7")
def test_a_full_region_is_enospc(boot: Boot) -> None:
    """What doesn't fill a block at either end of the region is never used."""
    machine = guest(boot)
    device = VirtioMem(machine, 1, ROOM + 64 * MIB, 256 * MIB)
    assert want(device, 256 * MIB) == "ENOSPC"
    assert plugged(device) == {33: 128}


# -- sub-blocks: unplugging


@REAL
@pytest.mark.fact("10.7", "7.9")
def test_shrinking_takes_from_offline_blocks_then_from_partial_ones_then_from_the_highest(boot: Boot, rules: Rules) -> None:
    """A block that is wholly unplugged is taken offline and removed."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 512 * MIB)
    write(machine, "memory32/state", "offline")
    assert want(device, 448 * MIB) == "ok"
    assert plugged(device) == {32: 64, 33: 128, 34: 128, 35: 128}
    assert want(device, 320 * MIB) == "ok"
    assert (plugged(device), blocks(machine)) == ({33: 128, 34: 128, 35: 64}, {33: "online", 34: "online", 35: "online"})
    before = machine.memory_total
    assert want(device, 0) == "ok"
    assert (plugged(device), blocks(machine), before - machine.memory_total) == ({}, {}, 320 * MIB)
    assert (device.plugged, device.offline_size) == (0, 0)


@REAL
@pytest.mark.fact("10.7")
@pytest.mark.parametrize("default", ["offline", "online_movable"])
def test_sub_blocks_that_are_neighbours_go_in_one_request(boot: Boot, rules: Rules, default: str) -> None:
    """Whether they come or go; only those of an online block that stays in part go one by one. A refusal is for all of them."""
    machine = guest(boot, rules, default)
    asked: list[tuple[str, int, int]] = []
    refused: set[int] = set()

    def answer(what: str, start: int, size: int) -> int:
        asked.append((what, (start - ROOM) // MIB, size // MIB))
        return errno.ETXTBSY if size in refused else 0

    device = VirtioMem(machine, 1, ROOM, GIB, answer=answer)
    want(device, 256 * MIB)
    want(device, 248 * MIB)
    want(device, 256 * MIB)
    refused.add(128 * MIB)
    assert want(device, 0) == "ETXTBSY"
    one_by_one = [("unplug", place, 2) for place in (254, 252, 250, 248)]
    assert asked == [
        ("plug", 0, 128),
        ("plug", 128, 128),
        *([("unplug", 248, 8)] if default == "offline" else one_by_one),
        ("plug", 248, 8),
        ("unplug", 128, 128),
    ]
    assert (device.plugged, plugged(device)) == (256 * MIB, {32: 128, 33: 128})


@REAL
@pytest.mark.fact("10.7")
def test_movable_pages_move_out_of_the_way_and_others_are_passed_over(boot: Boot, rules: Rules) -> None:
    """One busy sub-block stays plugged, and the rest of its block goes; EBUSY, and a retry is due."""
    machine = guest(boot, rules, "online_kernel")
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 128 * MIB)
    slab = machine.alloc_pages(1, "slab", blocks=[32], owner="dentry")
    cache = machine.alloc_pages(2048, blocks=[32], owner="cache")
    assert slab.extents[0].start_pfn == ROOM >> 12
    assert want(device, 0) == "EBUSY"
    assert (plugged(device), device.retry_ms, cache.blocks) == (
        {32: 2},
        50_000,
        [0, 32],
    )  # 511 pages found room beside the slab page
    machine.free_pages(slab)
    device.timer_expired()
    assert (device.queued, device.work(), blocks(machine)) == (True, "ok", {})


def huge_pages(machine: Machine, node: int, name: str) -> int:
    return int(machine.tree.read(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/{name}"))


@ALL
@pytest.mark.parametrize("kind", ["hugetlb-free", "hugetlb-reserved"])
def test_huge_pages_that_nobody_uses_are_replaced_on_their_node(boot: Boot, rules: Rules, kind: str) -> None:
    """The pool keeps its size and node, unlike when a block goes offline; EBUSY if that node has no room (__GFP_THISNODE)."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 256 * MIB)
    pool = machine.alloc_pages(64 * 512, kind, blocks=[33], owner="pool")
    assert (want(device, 128 * MIB), plugged(device), pool.blocks) == ("ok", {32: 128}, [32])
    assert (huge_pages(machine, 1, "nr_hugepages"), huge_pages(machine, 0, "nr_hugepages")) == (64, 0)
    before = machine.pages.count_free()
    assert (want(device, 0), plugged(device), pool.blocks) == ("EBUSY", {32: 128}, [32])
    assert (pool.nr_pages, machine.pages.count_free()) == (64 * 512, before)
    machine.free_pages(pool)
    device.timer_expired()
    assert (device.work(), blocks(machine)) == ("ok", {})


def test_huge_pages_of_the_pool_that_were_taken_one_by_one_are_replaced_too(boot: Boot) -> None:
    """They stay on their node, and are as many as before."""
    machine = guest(boot)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 256 * MIB)
    cache = machine.alloc_pages(32768, blocks=[32], owner="cache")
    pool = [machine.pages.alloc_pages(9, PageKind.HUGETLB_FREE, node=1) for _ in range(8)]
    assert [page.blocks for page in pool] == [[33]] * 8
    machine.free_pages(cache)
    assert (want(device, 128 * MIB), [page.blocks for page in pool]) == ("ok", [[32]] * 8)
    assert len({page.pfn for page in pool}) == huge_pages(machine, 1, "nr_hugepages") == 8


@pytest.mark.fact("10.7")
def test_each_retry_waits_twice_as_long(boot: Boot) -> None:
    """From 50 s up to 300 s; a success begins anew."""
    machine = guest(boot)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 128 * MIB)
    held = machine.alloc_pages(32768, blocks=[32])
    machine.pages.pin(held)
    device.request(0)
    waits = []
    for _ in range(5):
        assert device.work() == "EBUSY"
        waits.append(device.retry_ms)
        device.timer_expired()
    assert waits == [50_000, 100_000, 200_000, 300_000, 300_000]
    machine.pages.unpin(held)
    assert device.work() == "ok"
    device._answer = lambda what, start, size: errno.ETXTBSY
    assert want(device, 2 * MIB) == "ETXTBSY"
    assert device.retry_ms == 50_000


@pytest.mark.fact("10.7")
def test_an_errno_that_nobody_knows_breaks_the_device(boot: Boot, caplog: pytest.LogCaptureFixture) -> None:
    """It does nothing any more; why is logged once."""
    machine = guest(boot)
    device = VirtioMem(machine, 1, ROOM, GIB, answer=lambda what, start, size: errno.EIO)
    assert [want(device, 2 * MIB), device.work(), device.broken] == ["EIO", "EIO", "EIO"]
    assert blocks(machine) == {}
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("virtio0: unknown error, marking device broken: [EIO] the hypervisor does not plug 0x100000000")


@pytest.mark.fact("10.7")
def test_eagain_is_tried_again_at_once(boot: Boot) -> None:
    """That is a NACK, such as for a size that has just changed; the device is not broken, and nothing waits."""
    machine = guest(boot)
    answers = [errno.EAGAIN]
    device = VirtioMem(machine, 1, ROOM, GIB, answer=lambda what, start, size: answers.pop() if answers else 0)
    assert (want(device, 128 * MIB), device.queued, device.retry_ms, device.broken) == ("EAGAIN", True, None, "")
    assert (device.work(), device.queued, plugged(device)) == ("ok", False, {32: 128})


@pytest.mark.fact("10.7")
@pytest.mark.parametrize(("requested", "has"), [(3, 2), (1, 0), (4, 4), (5, 4)])
def test_a_size_that_is_not_of_whole_sub_blocks_is_had_as_far_as_it_can_be(boot: Boot, requested: int, has: int) -> None:
    """A hypervisor's block may be smaller than a sub-block; what is less than that is neither plugged nor unplugged."""
    device = VirtioMem(guest(boot), 1, ROOM, GIB, block_size=MIB)
    assert (want(device, requested * MIB), device.plugged // MIB) == ("ok", has)
    want(device, 6 * MIB)
    assert (want(device, requested * MIB), device.plugged // MIB) == ("ok", has + has % 2 + requested % 2 * 2)


@ALL
@pytest.mark.fact("10.7")
def test_its_worker_never_runs_twice_at_once(boot: Boot, rules: Rules) -> None:
    """As an item of a workqueue doesn't; the second run begins when the first has ended, and finds nothing to do."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    second: list[Running] = []
    asked: list[int] = []

    def answer(what: str, start: int, size: int) -> int:
        asked.append(start)
        second.append(in_thread(device.work, "second"))
        until_parked(second[0])
        return 0

    device._answer = answer
    assert want(device, 128 * MIB) == "ok"
    assert (second[0].result(), asked, plugged(device), device.plugged) == ("ok", [ROOM], {32: 128}, 128 * MIB)


@pytest.mark.parametrize("answer", [-errno.EBUSY, "no", True, 2.5, None, 4096])
def test_an_answer_that_is_no_errno_is_told(boot: Boot, answer: object) -> None:
    """The device is not broken by it, and goes on with what is one."""
    machine = guest(boot)
    device = VirtioMem(machine, 1, ROOM, GIB, answer=lambda what, start, size: answer)  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidInput, match=r"virtio-mem: answer: .* expected 0, or an errno such as ETXTBSY"):
        want(device, 128 * MIB)
    device._answer = lambda what, start, size: 0
    assert (device.broken, device.work(), plugged(device)) == ("", "ok", {32: 128})


@REAL
@pytest.mark.fact("10.7")
def test_a_block_that_another_callback_keeps_stays_with_nothing_in_it(boot: Boot, rules: Rules) -> None:
    """6.1 leaves it; 6.12 tries again, and at last removes it."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 128 * MIB)
    kept = refuse(machine, MEM_GOING_OFFLINE, 32)
    before = machine.memory_total
    assert want(device, 0) == {Rules.LINUX_6_1: "ok", Rules.LINUX_6_12: "EBUSY"}[rules]
    assert (blocks(machine), before - machine.memory_total, machine.zone(1, "Movable").managed) == ({32: "online"}, 128 * MIB, 0)
    kept.clear()
    device.timer_expired()
    device.work()
    assert blocks(machine) == ({32: "online"} if rules is Rules.LINUX_6_1 else {})


@ALL
@pytest.mark.fact("10.7")
def test_each_block_that_is_wholly_unplugged_is_tried_also_after_one_that_had_to_stay(boot: Boot, rules: Rules) -> None:
    """Both are asked about, the highest first, and both stay with nothing in them."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 256 * MIB)
    refuse(machine, MEM_GOING_OFFLINE, 32, 33)
    log: list[int] = []

    def listener(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is MEM_GOING_OFFLINE:
            log.append(machine.block_id_of(arg.start_pfn))
        return NOTIFY_OK

    machine.hotplug_memory_notifier(listener, 1)
    want(device, 0)
    assert (log, blocks(machine), plugged(device)) == ([33, 32], {32: "online", 33: "online"}, {})


@pytest.mark.fact("10.7")
def test_memory_that_could_not_be_added_is_unplugged_again(boot: Boot) -> None:
    """And if that fails too, the next run does it first."""
    machine = guest(boot, Rules.LINUX_6_1)
    machine.device_memory.memremap_pages(0, ROOM, 2 * MIB)
    device = VirtioMem(machine, 1, ROOM, BLOCK)
    assert want(device, 4 * MIB) == "EEXIST"
    assert (device.plugged, device.broken) == (0, "EEXIST")
    stuck = VirtioMem(machine, 1, 2 * ROOM, BLOCK)
    machine.device_memory.memremap_pages(0, 2 * ROOM, 2 * MIB)
    stuck._answer = lambda what, start, size: errno.EBUSY if what == "unplug" else 0
    assert want(stuck, 4 * MIB) == "EEXIST"
    assert stuck.plugged == 4 * MIB


# -- the notifier


@ALL
@pytest.mark.fact("7.8", "10.6", "7.9")
def test_unplugged_pages_go_offline_with_their_block_and_come_back(boot: Boot, rules: Rules) -> None:
    """The driver lets go of them at GOING_OFFLINE; MemTotal falls by the plugged part only."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 32 * MIB)
    before = machine.memory_total
    write(machine, "memory32/state", "offline")
    assert (before - machine.memory_total, device.offline_size) == (32 * MIB, BLOCK)
    write(machine, "memory32/state", "online_movable")
    assert (machine.memory_total, device.offline_size) == (before, 0)


@ALL
@pytest.mark.fact("7.8", "10.6")
def test_after_a_refused_offline_the_driver_holds_them_again(boot: Boot, rules: Rules) -> None:
    """Whoever refuses, and whether the driver was asked before or not at all."""
    for priority in (-1, 1):
        machine = guest(boot, rules)
        device = VirtioMem(machine, 1, ROOM, GIB)
        want(device, 32 * MIB)
        kept = refuse(machine, MEM_GOING_OFFLINE, 32, priority=priority)
        before = snapshot(machine)
        assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
        assert snapshot(machine) == before
        assert isinstance(device.mode, SubBlocks)
        assert not any(held.released for held in device.mode.blocks[0].held.values())
        kept.clear()
        write(machine, "memory32/state", "offline")


@ALL
@pytest.mark.fact("10.6")
def test_the_driver_s_mutex_is_held_from_going_to_the_end(boot: Boot, rules: Rules) -> None:
    """So its worker waits for an offline that waits for a page, and nothing of it is left afterwards."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 128 * MIB)
    held = machine.alloc_pages(1, blocks=[32])
    machine.pages.pin(held)
    admin = in_thread(lambda: write(machine, "memory32/state", "offline"), "admin")
    until_parked(admin)
    device.request(64 * MIB)
    worker = in_thread(device.work, "worker")
    until_parked(worker)
    machine.pages.unpin(held)
    assert (admin.result(), worker.result(), plugged(device)) == (7, "ok", {32: 64})


@ALL
def test_nothing_is_unplugged_from_a_block_that_is_on_its_way_offline(boot: Boot, rules: Rules) -> None:
    """Its pageblocks are isolated before the driver hears of it, and can't be a second time (start_isolate_page_range)."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 128 * MIB)
    ended: list[str] = []

    def before_the_driver(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is MEM_GOING_OFFLINE:
            ended.append(in_thread(lambda: want(device, 64 * MIB)).result())
        return NOTIFY_OK

    machine.hotplug_memory_notifier(before_the_driver, priority=10)
    write(machine, "memory32/state", "offline")
    assert (ended, plugged(device)) == (["EBUSY"], {32: 128})


def test_managed_pages_are_counted_under_the_lock_of_the_zones(boot: Boot) -> None:
    """As elsewhere, so that no count is lost while another block comes to the zone or leaves it."""
    counted: list[bool] = []

    class Watched(Zone):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            if name == "managed":
                counted.append(machine.pages.lock.held())
            super().__setattr__(name, value)

    machine = guest(boot)
    machine.nodes[1].zones = tuple(Watched(1, zone.type) for zone in machine.nodes[1].zones)
    counted.clear()
    device = VirtioMem(machine, 1, ROOM, GIB)
    assert [want(device, size * MIB) for size in (128, 64, 96, 0)] == ["ok"] * 4
    assert len(counted) > 4
    assert all(counted)


@ALL
@pytest.mark.fact("10.6")
def test_a_block_that_is_being_removed_does_not_come_online_any_more(boot: Boot, rules: Rules) -> None:
    """Not for who was waiting for the driver's mutex already when its last sub-block was unplugged."""
    machine = guest(boot, rules, "offline")
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 2 * MIB)
    waiting: list[Running] = []

    def answer(what: str, start: int, size: int) -> int:
        waiting.append(in_thread(lambda: machine.device_online(32), "admin"))
        until_parked(waiting[0])
        return 0

    device._answer = answer
    assert want(device, 0) == "ok"
    assert refusal(waiting[0].result) == "EPERM"
    assert (blocks(machine), device.offline_size, machine.zone(1, "Normal").managed) == ({}, 0, 0)


@ALL
@pytest.mark.fact("10.6")
def test_who_keeps_a_block_that_is_wholly_unplugged_is_logged(boot: Boot, rules: Rules, caplog: pytest.LogCaptureFixture) -> None:
    """For the driver goes on without it."""
    caplog.set_level(logging.INFO, "memhp.kernel")
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 128 * MIB)
    machine.memory_chain.register(
        NotifierBlock(lambda block, seen, arg: NOTIFY_BAD if seen is MEM_GOING_OFFLINE else NOTIFY_OK, name="keeper")
    )
    want(device, 0)
    [said] = [record.getMessage() for record in caplog.records if "wholly unplugged" in record.getMessage()]
    assert "memory32" in said
    assert "keeper" in said


@ALL
@pytest.mark.fact("10.6")
def test_a_range_that_is_not_one_block_is_refused_and_others_do_not_matter(boot: Boot, rules: Rules) -> None:
    """Below the devices two blocks can go at once; the driver says BAD. Memory of others it leaves alone."""
    machine = guest(boot, rules, "offline")
    VirtioMem(machine, 1, ROOM, GIB).request(0)
    device = VirtioMem(machine, 1, 2 * ROOM, GIB)
    want(device, 256 * MIB)
    with machine.mem_hotplug():
        assert refusal(machine.online_pages, 2 * ROOM >> 12, 65536, machine.zone(1, "Movable")) == "EPERM"
    write(machine, "memory3/state", "offline")
    write(machine, "memory64/state", "online_movable")


@ALL
@pytest.mark.fact("10.6")
def test_a_driver_that_is_being_removed_refuses_with_ebusy(boot: Boot, rules: Rules) -> None:
    """And gives its mutex back at once. Unbound, it lets partly plugged offline blocks go, and leaves the rest as it is."""
    machine = guest(boot, rules, "offline")
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 160 * MIB)
    device.removing = True
    assert refusal(write, machine, "memory32/state", "online_movable") == "EBUSY"
    device.removing = False
    write(machine, "memory32/state", "online_movable")
    assert device.unbind() is False
    assert blocks(machine) == {32: "online"}
    write(machine, "memory32/state", "offline")


@ALL
@pytest.mark.fact("10.6")
def test_a_driver_that_is_unbound_does_nothing_any_more(boot: Boot, rules: Rules) -> None:
    """The group of its number may be another device's by then; nobody can unbind it twice."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    device.request(128 * MIB)
    assert (device.unbind(), device.queued) == (True, False)
    VirtioMem(machine, 1, 2 * ROOM, GIB, device="virtio1")
    before = (snapshot(machine), list(machine.groups))
    for call in (lambda: device.request(2 * MIB), device.work, device.timer_expired, device.unbind):
        assert refusal(call) == "ENODEV"
    assert (snapshot(machine), list(machine.groups)) == before


@ALL
@pytest.mark.fact("10.6")
def test_unbinding_waits_for_a_run_that_has_begun(boot: Boot, rules: Rules) -> None:
    """Then what that has plugged is taken into account; another run does not begin."""
    machine = guest(boot, rules, "offline")
    device = VirtioMem(machine, 1, ROOM, GIB)
    leaving: list[Running] = []

    def answer(what: str, start: int, size: int) -> int:
        leaving.append(in_thread(device.unbind, "unbind"))
        until_parked(leaving[0])
        return 0

    device._answer = answer
    device.request(64 * MIB)
    assert device.work() == "ok"
    assert (leaving[0].result(), blocks(machine), refusal(device.work)) == (True, {}, "ENODEV")


@ALL
@pytest.mark.fact("10.6")
def test_a_driver_that_could_not_be_unbound_goes_on(boot: Boot, rules: Rules) -> None:
    """Here its caller holds the lock that removing needs, and then calls it from inside of the chain."""
    machine = guest(boot, rules, "offline", lockdep=False)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 32 * MIB)
    with machine.locks.device_hotplug, pytest.raises(DeadlockError):
        device.unbind()
    write(machine, "memory32/state", "online_movable")
    assert (want(device, 64 * MIB), plugged(device)) == ("ok", {32: 64})
    write(machine, "memory32/state", "offline")
    inside = machine.memory_chain.register(NotifierBlock(lambda block, action, arg: NOTIFY_BAD if device.unbind() else NOTIFY_OK))
    assert refusal(write, machine, "memory3/state", "offline") == "EPERM"
    inside.unregister()
    assert (want(device, 160 * MIB), device.plugged) == ("ok", 160 * MIB)


@ALL
@pytest.mark.fact("10.6")
def test_a_device_that_can_not_follow_blocks_leaves_nothing_behind(boot: Boot, rules: Rules) -> None:
    """Nobody can register on the chain from inside of a call of it; afterwards it works."""
    machine = guest(boot, rules, lockdep=False)
    first = VirtioMem(machine, 1, ROOM, GIB)
    before = (str(machine.iomem), list(machine.groups))
    raised: list[BaseException] = []

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is MEM_GOING_OFFLINE:
            with pytest.raises(DeadlockError) as caught:
                VirtioMem(machine, 1, 2 * ROOM, GIB, device="virtio1")
            raised.append(caught.value)
        return NOTIFY_OK

    machine.hotplug_memory_notifier(callback)
    write(machine, "memory3/state", "offline")
    assert (len(raised), (str(machine.iomem), list(machine.groups))) == (1, before)
    second = VirtioMem(machine, 1, 2 * ROOM, GIB, device="virtio1")
    assert (first.unbind(), second.unbind(), machine.online_page.callback) == (True, True, None)


@ALL
@pytest.mark.fact("10.6")
def test_a_block_that_is_not_known_as_offline_may_not_come_online(boot: Boot, rules: Rules) -> None:
    """Somebody has added memory into the region behind the driver's back."""
    machine = guest(boot, rules, "offline")
    VirtioMem(machine, 1, ROOM, GIB)
    machine.add_memory_driver_managed(1, ROOM, BLOCK, "System RAM (someone)")
    assert refusal(write, machine, "memory32/state", "online") == "EPERM"


# -- big blocks


@REAL
@pytest.mark.fact("10.7", "6.9")
def test_devices_with_large_blocks_plug_big_blocks(boot: Boot, rules: Rules) -> None:
    """256 MiB here, two memory blocks; the group's unit is that, and a unit stays together under auto-movable."""
    machine = guest(boot, rules, "online", online_policy="auto-movable", auto_movable_numa_aware="n")
    device = VirtioMem(machine, 1, ROOM, 2 * GIB, block_size=256 * MIB)
    assert isinstance(device.mode, BigBlocks)
    assert want(device, GIB) == "ok"
    [group] = machine.groups
    assert (group.unit_pages, len(blocks(machine)), machine.zone(1, "Movable").present) == (65536, 8, 262144)
    assert want(device, 512 * MIB) == "ok"
    assert sorted(blocks(machine)) == [32, 33, 34, 35]
    assert (device.unbind(), want(VirtioMem(machine, 1, 2 * ROOM, GIB, block_size=GIB), GIB)) == (False, "ok")


@REAL
@pytest.mark.fact("10.7")
def test_big_blocks_that_are_offline_go_first_then_movable_ones(boot: Boot, rules: Rules) -> None:
    """Then the others; of equals the highest."""
    machine = guest(boot, rules, "offline")
    device = VirtioMem(machine, 1, ROOM, 2 * GIB, block_size=128 * MIB)
    want(device, 640 * MIB)
    for number, word in [(32, "online_movable"), (33, "online_kernel"), (35, "online_movable"), (36, "online_kernel")]:
        write(machine, f"memory{number}/state", word)
    order = []
    for size in (512, 384, 256, 128, 0):
        before = set(blocks(machine))
        assert want(device, size * MIB) == "ok"
        order += sorted(before - set(blocks(machine)))
    assert order == [34, 35, 32, 36, 33]


@REAL
@pytest.mark.fact("10.7")
def test_two_big_blocks_may_always_be_offline(boot: Boot, rules: Rules) -> None:
    """Also if one alone is more than the 1 GiB that may be; the third has to wait for one of them."""
    machine = guest(boot, rules, "offline")
    device = VirtioMem(machine, 1, ROOM, 8 * GIB, block_size=2 * GIB)
    assert (want(device, 4 * GIB), device.plugged) == ("ok", 4 * GIB)
    assert (want(device, 6 * GIB), device.plugged) == ("ENOSPC", 4 * GIB)


@REAL
@pytest.mark.fact("10.7", "7.8")
def test_a_big_block_in_use_or_refused_stays_as_it_was(boot: Boot, rules: Rules) -> None:
    """All its pages are taken first, so a busy one costs no offline; a refusal gives them back."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB, block_size=256 * MIB)
    want(device, 256 * MIB)
    held = machine.alloc_pages(10, blocks=[33])
    machine.pages.pin(held)
    before = snapshot(machine, files=False)
    assert want(device, 0) == "EBUSY"
    assert snapshot(machine, files=False) == before
    machine.pages.unpin(held)
    kept = refuse(machine, MEM_GOING_OFFLINE, 33)
    total = machine.memory_total
    device.timer_expired()
    assert device.work() == {Rules.LINUX_6_1: "EPERM", Rules.LINUX_6_12: "EBUSY"}[rules]
    assert (machine.memory_total, blocks(machine)) == (total, {32: "online", 33: "online"})
    machine.free_pages(machine.alloc_pages(65526, blocks=[32, 33]))
    kept.clear()
    assert refuse(machine, MEM_GOING_ONLINE) == []


@REAL
@pytest.mark.fact("10.7")
def test_a_big_block_that_the_hypervisor_keeps_is_unplugged_by_the_next_run(boot: Boot, rules: Rules) -> None:
    """It is no memory any more, but stays plugged; the next run unplugs it first, and then it can be used again."""
    machine = guest(boot, rules)
    asked: list[tuple[str, int]] = []
    refused = {"unplug"}

    def answer(what: str, start: int, size: int) -> int:
        asked.append((what, (start - ROOM) // MIB))
        return errno.ETXTBSY if what in refused else 0

    device = VirtioMem(machine, 1, ROOM, GIB, block_size=256 * MIB, answer=answer)
    want(device, 512 * MIB)
    assert want(device, 256 * MIB) == "ETXTBSY"
    assert (device.plugged, sorted(blocks(machine)), device.retry_ms) == (512 * MIB, [32, 33], 50_000)
    refused.clear()
    asked.clear()
    device.timer_expired()
    assert (device.work(), device.plugged, asked) == ("ok", 256 * MIB, [("unplug", 256)])
    asked.clear()
    assert want(device, GIB) == "ok"
    assert asked == [("plug", 256), ("plug", 512), ("plug", 768)]
    assert list(blocks(machine)) == list(range(32, 40))


@REAL
@pytest.mark.fact("10.7")
def test_a_big_block_that_could_not_be_added_is_unplugged_again(boot: Boot, rules: Rules) -> None:
    """The error is that of adding, also if the hypervisor keeps the block then; unbound, nothing of it is memory."""
    for keeps, plugged_then in ((False, 0), (True, 256)):
        machine = guest(boot, rules)
        device = VirtioMem(machine, 1, ROOM, GIB, block_size=256 * MIB)
        if keeps:
            device._answer = lambda what, start, size: errno.ETXTBSY if what == "unplug" else 0
        machine.device_memory.memremap_pages(0, ROOM, 2 * MIB)
        assert want(device, 256 * MIB) == "EEXIST"
        assert (device.plugged // MIB, device.offline_size, blocks(machine)) == (plugged_then, 0, {})
        assert (device.unbind(), list(machine.groups)) == (True, [])


@pytest.mark.fact("10.6")
def test_a_block_that_is_taken_back_after_it_was_offline_is_as_before(boot: Boot) -> None:
    """The document's NOTIFY_BAD at MEM_OFFLINE, from a callback behind the driver: CANCEL_OFFLINE follows OFFLINE."""
    machine = guest(boot, Rules.DOCUMENTED)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 160 * MIB)
    before = snapshot(machine)
    refused = refuse(machine, MEM_OFFLINE, 33, priority=-1)
    assert refusal(write, machine, "memory33/state", "offline") == "EPERM"
    assert (snapshot(machine) | {"uevents": 0}, device.offline_size) == (before | {"uevents": 0}, 0)
    refused.clear()
    assert (want(device, 256 * MIB), plugged(device), machine.zone(1, "Movable").managed) == ("ok", {32: 128, 33: 128}, 65536)
    assert machine.pages.count_free([machine.block(33)]) == 32768
    write(machine, "memory33/state", "offline")
    assert device.offline_size == 128 * MIB


@REAL
@pytest.mark.fact("10.7")
@pytest.mark.parametrize(("answer", "on_6_12"), [(NOTIFY_BAD, "EBUSY"), (notifier_from_errno(-errno.ENOMEM), "ENOMEM")])
def test_a_big_block_that_another_callback_keeps_is_tried_again_since_6_12(
    boot: Boot, rules: Rules, answer: NotifyResult, on_6_12: str
) -> None:
    """There any refusal but ENOMEM counts as EBUSY; 6.1 gives up if it does not know the errno, such as the EPERM of BAD."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB, block_size=256 * MIB)
    want(device, 256 * MIB)
    keeper = machine.hotplug_memory_notifier(lambda block, seen, arg: answer if seen is MEM_GOING_OFFLINE else NOTIFY_OK)
    done = want(device, 0)
    keeper.unregister()
    device.timer_expired()
    if rules is Rules.LINUX_6_1 and answer is NOTIFY_BAD:
        assert (done, device.broken, device.work(), device.plugged) == ("EPERM", "EPERM", "EPERM", 256 * MIB)
    else:
        assert (done, device.broken, device.work(), device.plugged) == (on_6_12, "", "ok", 0)


@pytest.mark.fact("10.6")
@pytest.mark.parametrize("priority", [-1, 1])
@pytest.mark.parametrize("number", [32, 33])
def test_a_block_that_is_taken_back_after_it_was_online_is_as_before(boot: Boot, priority: int, number: int) -> None:
    """The document's NOTIFY_BAD at MEM_ONLINE, whether the driver has heard MEM_ONLINE or not; one block is plugged in part."""
    machine = guest(boot, Rules.DOCUMENTED, "offline")
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 160 * MIB)
    before = snapshot(machine)
    refused = refuse(machine, MEM_ONLINE, number, priority=priority)
    assert refusal(write, machine, f"memory{number}/state", "online_movable") == "EPERM"
    assert (snapshot(machine) | {"uevents": 0}, device.offline_size) == (before | {"uevents": 0}, 256 * MIB)
    refused.clear()
    write(machine, f"memory{number}/state", "online_movable")
    assert (machine.zone(1, "Movable").managed << 12, device.offline_size) == ({32: 128, 33: 32}[number] * MIB, 128 * MIB)
    assert (want(device, 0), blocks(machine), device.plugged, device.offline_size) == ("ok", {}, 0, 0)


@pytest.mark.fact("10.6")
@pytest.mark.parametrize("priority", [-2, 2])
@pytest.mark.parametrize("taker", [-1, 3])
@pytest.mark.parametrize("gives_back", [False, True])
@pytest.mark.parametrize("size", [32, 128])
def test_the_driver_knows_how_a_block_is_in_the_end_if_somebody_holds_a_page_of_it(
    boot: Boot,
    priority: int,
    taker: int,
    gives_back: bool,  # noqa: FBT001
    size: int,
) -> None:
    """That keeps it online in spite of the document's NOTIFY_BAD; if it is given back at CANCEL, the block can come again."""
    machine = guest(boot, Rules.DOCUMENTED, "offline")
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, size * MIB)
    taken: list[Allocation] = []

    def take(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is MEM_ONLINE:
            taken.append(machine.alloc_pages(1, "unmovable", blocks=[32]))
        if action is MEM_CANCEL_ONLINE and taken and gives_back:
            machine.free_pages(taken.pop())
        return NOTIFY_OK

    taking = machine.hotplug_memory_notifier(take, taker)
    refused = refuse(machine, MEM_ONLINE, 32, priority=priority)
    assert refusal(write, machine, "memory32/state", "online_movable") == "EPERM"
    refused.clear()
    taking.unregister()
    if state(machine, 32) == "offline":
        write(machine, "memory32/state", "online_movable")
    assert (device.offline_size, machine.zone(1, "Movable").managed) == (0, size * MIB >> 12)
    assert refusal(lambda: machine.alloc_pages((size * MIB >> 12) + 1, blocks=[32])) == "ENOMEM"
    for allocation in taken:
        machine.free_pages(allocation)
    assert (want(device, 0), blocks(machine), device.offline_size) == ("ok", {}, 0)


@pytest.mark.fact("10.6")
def test_a_block_that_does_not_come_back_while_its_big_block_leaves_is_as_before(boot: Boot) -> None:
    """One block may not go, and the document's NOTIFY_BAD keeps the other, which did, from coming back online."""
    machine = guest(boot, Rules.DOCUMENTED)
    device = VirtioMem(machine, 1, ROOM, GIB, block_size=256 * MIB)
    want(device, 256 * MIB)
    refused = refuse(machine, MEM_GOING_OFFLINE, 33)
    stays = refuse(machine, MEM_ONLINE, 32, priority=-1)
    assert want(device, 0) == "EPERM"
    assert (blocks(machine), device.offline_size) == ({32: "offline", 33: "online"}, 128 * MIB)
    assert machine.zone(1, "Movable").managed == 32768
    refused.clear()
    stays.clear()
    write(machine, "memory32/state", "online_movable")
    assert (machine.zone(1, "Movable").managed, device.offline_size) == (65536, 0)


@ALL
@pytest.mark.fact("10.7")
def test_ctrl_c_while_it_grows_is_raised_when_the_request_is_done(boot: Boot, rules: Rules) -> None:
    """So the driver and the machine agree on what is plugged, and shrinking finds it."""
    machine = guest(boot, rules)
    device = VirtioMem(machine, 1, ROOM, GIB)
    interrupts = [KeyboardInterrupt()]

    def interrupted(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if interrupts and action is MEM_ONLINE:
            raise interrupts.pop()
        return NOTIFY_OK

    machine.hotplug_memory_notifier(interrupted)
    with pytest.raises(KeyboardInterrupt):
        want(device, 256 * MIB)
    assert (blocks(machine), plugged(device), device.plugged) == ({32: "online", 33: "online"}, {32: 128, 33: 128}, 256 * MIB)
    assert (want(device, 0), blocks(machine), device.plugged) == ("ok", {}, 0)


# -- bad input


def test_malformed_devices_and_requests_are_refused(boot: Boot) -> None:
    """Sizes that don't fit, a region that is taken, and a second owner of the online-page callback."""
    machine = guest(boot)
    for start, size, unit in [
        (ROOM + 4096, GIB, 2 * MIB),
        (ROOM, MIB, 2 * MIB),
        (ROOM, 0, 2 * MIB),
        (ROOM, GIB, 3 * MIB),
        (ROOM, GIB, 512),
    ]:
        with pytest.raises(InvalidInput, match="virtio-mem"):
            VirtioMem(machine, 1, start, size, block_size=unit)
    for wrong in [("1", ROOM, GIB), (1, None, GIB), (1, ROOM, 1e9)]:
        with pytest.raises(InvalidInput, match="virtio-mem"):
            VirtioMem(machine, *wrong)  # type: ignore[arg-type]
    for given, text in [
        ({"offline_at_most": "1GiB"}, "offline_at_most"),
        ({"device": None}, "the name of a virtio device"),
        ({"device": ""}, "the name of a virtio device"),
        ({"answer": None}, "a function"),
    ]:
        with pytest.raises(InvalidInput, match=text):
            VirtioMem(machine, 1, ROOM, GIB, **given)  # type: ignore[arg-type]
    device = VirtioMem(machine, 1, ROOM, GIB)
    for wanted in (-1, MIB, 2 * GIB, "1GiB"):
        with pytest.raises(InvalidInput, match="requested"):
            device.request(wanted)  # type: ignore[arg-type]
    assert refusal(XenBalloon, machine) == "EINVAL"
    assert device.unbind() is True
    before = snapshot(machine)
    assert [refusal(VirtioMem, machine, *place) for place in [(1, 1 << 46, GIB), (1, 0, GIB), (7, ROOM, GIB)]] == [
        "EEXIST",
        "EEXIST",
        "EINVAL",
    ]
    XenBalloon(machine)
    assert refusal(VirtioMem, machine, 1, ROOM, GIB) == "EINVAL"
    assert (snapshot(machine), list(machine.groups)) == (before, [])


@pytest.mark.fact("10.7", "7.4")
def test_pages_that_were_allocated_one_by_one_move_too(boot: Boot) -> None:
    """Single pages leave a sub-block for another block; pinned ones keep theirs."""
    machine = guest(boot)
    device = VirtioMem(machine, 1, ROOM, GIB)
    want(device, 128 * MIB)
    pages = machine.pages.alloc_pages_bulk(1000, 0, node=1, owner="cache")
    assert pages.blocks == [32]
    machine.pages.pin(pages)
    assert (want(device, 0), list(plugged(device))) == ("EBUSY", [32])
    machine.pages.unpin(pages)
    device.timer_expired()
    assert (device.work(), blocks(machine), pages.nr_pages) == ("ok", {}, 1000)
