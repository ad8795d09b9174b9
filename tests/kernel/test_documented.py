"""The document's rules: a refusal at MEM_ONLINE or MEM_OFFLINE cancels the change too. Linux ignores that answer."""

from __future__ import annotations

import pytest

from memhp import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    NOTIFY_BAD,
    NOTIFY_OK,
    NOTIFY_STOP,
    Allocation,
    HotplugError,
    Machine,
    MemoryAction,
    MemoryNotify,
    NotifyResult,
    PageKind,
    Rules,
    Vetoed,
    ZoneType,
    notifier_from_errno,
)
from support import Boot, Log, in_thread, refusal, rounds, snapshot, state, three, until_parked, valid_zones, with_node_1, write

DOCUMENTED = Rules.DOCUMENTED
ENOMEM = notifier_from_errno(-12)
LINUX = pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.LINUX_6_12])
REFUSALS = pytest.mark.parametrize(("answer", "errno"), [(NOTIFY_BAD, "EPERM"), (ENOMEM, "ENOMEM")])


def test_the_document_is_what_a_machine_follows_by_default() -> None:
    """``Machine.boot()`` follows the document."""
    assert Machine.boot("1GiB").rules is DOCUMENTED


# -- MEM_ONLINE


@REFUSALS
@pytest.mark.parametrize("word", ["online_kernel", "online_movable"])
def test_a_refusal_at_online_takes_the_memory_offline_again(boot: Boot, answer: NotifyResult, errno: str, word: str) -> None:
    """Without asking again; CANCEL_ONLINE goes to the whole chain, the request fails, and everything is as before."""
    machine = with_node_1(boot, DOCUMENTED)
    log = Log()
    three(machine, log, {0: {MEM_ONLINE: answer}})
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", word) == errno

    nids = "(1,1)" if word == "online_kernel" else "(-1,1)"
    assert rounds(log) == [
        f"GOING_ONLINE{nids}: 200 0 -1",
        f"ONLINE{nids}: 200 0",
        f"CANCEL_ONLINE{nids}: 200 0 -1",
    ]
    assert state(machine, 32) == "offline"
    assert snapshot(machine) == before


@pytest.mark.parametrize("refuser", [200, -1])
def test_it_does_not_matter_who_refuses_online(boot: Boot, refuser: int) -> None:
    """The first one, before anybody else heard MEM_ONLINE, or the last one, when everybody did."""
    machine = with_node_1(boot, DOCUMENTED)
    log = Log()
    three(machine, log, {refuser: {MEM_ONLINE: NOTIFY_BAD}})
    assert refusal(write, machine, "memory32/state", "online") == "EPERM"

    heard = {200: "200", -1: "200 0 -1"}[refuser]
    assert rounds(log) == ["GOING_ONLINE(1,1): 200 0 -1", f"ONLINE(1,1): {heard}", "CANCEL_ONLINE(1,1): 200 0 -1"]


def test_masks_and_counts_are_taken_back_before_cancel_online(boot: Boot) -> None:
    """At CANCEL_ONLINE nothing can be allocated from the block any more, and the node has no memory again."""
    machine = with_node_1(boot, DOCUMENTED)
    seen: list[tuple[str, int, str, str]] = []

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        try:
            machine.free_pages(machine.alloc_pages(1, blocks=[32]))
            alloc = "can allocate"
        except HotplugError:
            alloc = "can't allocate"
        has_memory = machine.tree.read("/sys/devices/system/node/has_memory").strip()
        seen.append((action.name, machine.zone(1, ZoneType.NORMAL).present, has_memory, alloc))

    three(machine, Log(), {-1: {MEM_ONLINE: NOTIFY_BAD}}, act)
    assert refusal(write, machine, "memory32/state", "online") == "EPERM"
    assert seen == [
        ("MEM_GOING_ONLINE", 0, "0", "can't allocate"),
        ("MEM_ONLINE", 0x8000, "0-1", "can allocate"),
        ("MEM_CANCEL_ONLINE", 0, "0", "can't allocate"),
    ]


def test_the_error_says_who_refused_online_and_that_it_is_offline_again(boot: Boot) -> None:
    """The error carries the callback and the action, and what holds now."""
    machine = with_node_1(boot, DOCUMENTED)
    block = machine.hotplug_memory_notifier(Log().callback("late", {MEM_ONLINE: ENOMEM}))
    with pytest.raises(Vetoed, match="refused MEM_ONLINE with ENOMEM; it is offline again") as caught:
        machine.device_online(32)
    assert (caught.value.callback, caught.value.action, caught.value.block) == (block, MEM_ONLINE, 32)


def test_a_refused_online_can_be_tried_again(boot: Boot) -> None:
    """Once the callback is content, the same block comes online."""
    machine = with_node_1(boot, DOCUMENTED)
    answers: dict[MemoryAction, NotifyResult | BaseException] = {MEM_ONLINE: NOTIFY_BAD}
    log = Log()
    three(machine, log, {0: answers})
    assert refusal(write, machine, "memory32/state", "online_movable") == "EPERM"
    answers.clear()
    log.clear()
    write(machine, "memory32/state", "online_movable")
    assert rounds(log) == ["GOING_ONLINE(-1,1): 200 0 -1", "ONLINE(-1,1): 200 0 -1"]
    assert (state(machine, 32), valid_zones(machine, 32)) == ("online", "Movable")


# -- MEM_ONLINE: what callbacks took in between


class Taker:
    """A callback that takes pages of the block at MEM_ONLINE, and frees them at CANCEL_ONLINE if told so."""

    def __init__(self, machine: Machine, kind: PageKind, *, frees: bool = False, pins: bool = False) -> None:
        self.machine = machine
        self.kind = kind
        self.frees = frees
        self.pins = pins
        self.taken: Allocation | None = None
        self.at_cancel: list[int] = []

    def __call__(self, action: MemoryAction, arg: MemoryNotify) -> None:
        if action is MEM_ONLINE:
            self.taken = self.machine.alloc_pages(100, self.kind, blocks=[32], owner="taker")
            if self.pins:
                self.machine.pages.pin(self.taken)
        if action is MEM_CANCEL_ONLINE and self.taken is not None:
            self.at_cancel = self.taken.blocks
            if self.frees:
                self.machine.free_pages(self.taken)


def test_movable_pages_taken_at_online_migrate(boot: Boot) -> None:
    """The block is empty before CANCEL_ONLINE; the owner keeps its pages, elsewhere."""
    machine = with_node_1(boot, DOCUMENTED)
    taker = Taker(machine, PageKind.MOVABLE)
    log = Log()
    three(machine, log, {-1: {MEM_ONLINE: NOTIFY_BAD}}, taker)
    assert refusal(write, machine, "memory32/state", "online_movable") == "EPERM"

    assert rounds(log) == ["GOING_ONLINE(-1,1): 200 0 -1", "ONLINE(-1,1): 200 0 -1", "CANCEL_ONLINE(-1,1): 200 0 -1"]
    assert taker.taken is not None
    assert taker.taken.nr_pages == 100
    assert 32 not in taker.at_cancel
    assert state(machine, 32) == "offline"
    assert machine.zone(1, ZoneType.MOVABLE).present == 0


@pytest.mark.parametrize(("kind", "pins"), [(PageKind.UNMOVABLE, False), (PageKind.OFFLINE, False), (PageKind.MOVABLE, True)])
def test_pages_that_can_not_move_are_freed_at_cancel(boot: Boot, kind: PageKind, pins: bool) -> None:  # noqa: FBT001
    """CANCEL_ONLINE is their owner's moment to give them back; then all is as before."""
    machine = with_node_1(boot, DOCUMENTED)
    taker = Taker(machine, kind, frees=True, pins=pins)
    log = Log()
    three(machine, log, {-1: {MEM_ONLINE: NOTIFY_BAD}}, taker)
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "online_kernel") == "EPERM"

    assert rounds(log) == ["GOING_ONLINE(1,1): 200 0 -1", "ONLINE(1,1): 200 0 -1", "CANCEL_ONLINE(1,1): 200 0 -1"]
    assert taker.at_cancel == [32]
    assert snapshot(machine) == before


@pytest.mark.parametrize(("kind", "pins"), [(PageKind.UNMOVABLE, False), (PageKind.MOVABLE, True)])
def test_memory_that_is_not_given_back_stays_online(boot: Boot, kind: PageKind, pins: bool) -> None:  # noqa: FBT001
    """It can't be taken away under its user: the block is online in every respect, and the error says so and names the page."""
    machine = with_node_1(boot, DOCUMENTED)
    taker = Taker(machine, kind, pins=pins)
    log = Log()
    three(machine, log, {-1: {MEM_ONLINE: NOTIFY_BAD}}, taker)
    with pytest.raises(Vetoed, match=r"stays online: page 0x100000 of taker .* was not given back"):
        write(machine, "memory32/state", "online_kernel")
    assert rounds(log) == ["GOING_ONLINE(1,1): 200 0 -1", "ONLINE(1,1): 200 0 -1", "CANCEL_ONLINE(1,1): 200 0 -1"]

    assert (state(machine, 32), valid_zones(machine, 32)) == ("online", "Normal")
    assert machine.tree.read("/sys/devices/system/memory/memory32/online") == "1\n"
    assert machine.tree.read("/sys/devices/system/node/has_memory") == "0-1\n"
    zone = machine.zone(1, ZoneType.NORMAL)
    assert (zone.start_pfn, zone.spanned, zone.present, zone.managed) == (0x100000, 0x8000, 0x8000, 0x8000)


def test_memory_that_stayed_online_can_go_offline_once_it_is_given_back(boot: Boot) -> None:
    """Nothing is counted twice: after the owner frees its page the block goes offline like any other."""
    machine = with_node_1(boot, DOCUMENTED)
    before = machine.memory_total
    taker = Taker(machine, PageKind.UNMOVABLE)
    answers: dict[MemoryAction, NotifyResult | BaseException] = {MEM_ONLINE: NOTIFY_BAD}
    three(machine, Log(), {-1: answers}, taker)
    assert refusal(write, machine, "memory32/state", "online_kernel") == "EPERM"
    answers.clear()
    assert machine.memory_total == before + (128 << 20)
    assert taker.taken is not None
    machine.free_pages(taker.taken)
    write(machine, "memory32/state", "offline")
    assert state(machine, 32) == "offline"
    assert machine.memory_total == before
    assert machine.zone(1, ZoneType.NORMAL).spanned == 0


# -- MEM_OFFLINE


@REFUSALS
@pytest.mark.parametrize(
    ("word", "zone", "nids"), [("online_kernel", "Normal", "(1,1)"), ("online_movable", "Movable", "(-1,1)")]
)
def test_a_refusal_at_offline_brings_the_memory_online_again(
    boot: Boot, answer: NotifyResult, errno: str, word: str, zone: str, nids: str
) -> None:
    """In its zone, without asking; CANCEL_OFFLINE goes to the whole chain, the request fails, everything is as before."""
    machine = with_node_1(boot, DOCUMENTED)
    write(machine, "memory32/state", word)
    log = Log()
    three(machine, log, {0: {MEM_OFFLINE: answer}})
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "offline") == errno

    assert rounds(log) == [
        f"GOING_OFFLINE{nids}: 200 0 -1",
        f"OFFLINE{nids}: 200 0",
        f"CANCEL_OFFLINE{nids}: 200 0 -1",
    ]
    assert (state(machine, 32), valid_zones(machine, 32)) == ("online", zone)
    assert snapshot(machine) == before


def test_boot_memory_is_boot_memory_again_after_a_refused_offline(boot: Boot) -> None:
    """What counts as early memory does so still."""
    machine = boot("1GiB")
    three(machine, Log(), {0: {MEM_OFFLINE: NOTIFY_BAD}})
    before = snapshot(machine)
    assert refusal(write, machine, "memory7/state", "offline") == "EPERM"
    assert snapshot(machine) == before


def test_the_block_can_be_used_again_at_cancel_offline(boot: Boot) -> None:
    """By then its node has memory again, and pages can be had."""
    machine = with_node_1(boot, DOCUMENTED)
    write(machine, "memory32/state", "online_movable")
    seen: list[tuple[str, str, list[int]]] = []

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        if action is MEM_CANCEL_OFFLINE:
            has_memory = machine.tree.read("/sys/devices/system/node/has_memory").strip()
            seen.append((state(machine, 32), has_memory, machine.alloc_pages(5, blocks=[32]).blocks))

    three(machine, Log(), {200: {MEM_OFFLINE: NOTIFY_BAD}}, act)
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert seen == [("going-offline", "0-1", [32])]


def test_pages_that_migrated_stay_where_they_went_after_a_refused_offline(boot: Boot) -> None:
    """Taking it back restores the memory, not where its contents were."""
    machine = with_node_1(boot, DOCUMENTED)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(100, blocks=[32], owner="app")
    block = machine.hotplug_memory_notifier(Log().callback("late", {MEM_OFFLINE: ENOMEM}))
    with pytest.raises(Vetoed, match="refused MEM_OFFLINE with ENOMEM; it is online again in zone Movable") as caught:
        machine.device_offline(32)
    assert (caught.value.callback, caught.value.action) == (block, MEM_OFFLINE)
    assert (held.nr_pages, 32 in held.blocks) == (100, False)


# -- what is no refusal


@pytest.mark.parametrize("answer", [NOTIFY_STOP, NOTIFY_OK, NotifyResult(-12)])
def test_stop_and_raw_negatives_refuse_nothing(boot: Boot, answer: NotifyResult) -> None:
    """NOTIFY_STOP hides the event from lower ones; what decodes to no errno is no refusal."""
    machine = with_node_1(boot, DOCUMENTED)
    log = Log()
    three(machine, log, {0: {MEM_ONLINE: answer, MEM_OFFLINE: answer}})
    write(machine, "memory32/state", "online")
    write(machine, "memory32/state", "offline")
    heard = "200 0 -1" if answer is NOTIFY_OK else "200 0"
    assert rounds(log) == [
        "GOING_ONLINE(1,1): 200 0 -1",
        f"ONLINE(1,1): {heard}",
        "GOING_OFFLINE(1,1): 200 0 -1",
        f"OFFLINE(1,1): {heard}",
    ]


@pytest.mark.parametrize("rules", list(Rules))
def test_exceptions_at_online_and_offline_do_not_refuse(boot: Boot, rules: Rules, caplog: pytest.LogCaptureFixture) -> None:
    """They are logged and counted on the block, and the chain goes on."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log, {0: {MEM_ONLINE: RuntimeError("oops"), MEM_OFFLINE: RuntimeError("again")}})
    write(machine, "memory32/state", "online")
    write(machine, "memory32/state", "offline")

    inner = ["GOING_ONLINE(1,1)", "ONLINE(1,1)", "GOING_OFFLINE(1,1)", "OFFLINE(1,1)"]
    whole = ["PREPARE_ONLINE(0,0)", *inner, "FINISH_OFFLINE(0,0)"] if rules is Rules.LINUX_6_12 else inner
    assert rounds(log) == [f"{action}: 200 0 -1" for action in whole]
    assert [block.errors for block in machine.memory_chain.blocks] == [0, 2, 0]
    assert [record.levelname for record in caplog.records if record.name == "memhp.notifier"] == ["ERROR", "ERROR"]
    assert ("oops" in caplog.text, "again" in caplog.text) == (True, True)


@LINUX
@REFUSALS
@pytest.mark.fact("3.36", "3.17", "3.10", "3.14")
def test_linux_ignores_a_refusal_at_online_and_offline(boot: Boot, rules: Rules, answer: NotifyResult, errno: str) -> None:
    """The change is done; lower callbacks just don't hear of it, and no CANCEL is sent."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log, {0: {MEM_ONLINE: answer, MEM_OFFLINE: answer}})
    write(machine, "memory32/state", "online_movable")
    assert (state(machine, 32), valid_zones(machine, 32)) == ("online", "Movable")
    write(machine, "memory32/state", "offline")
    assert state(machine, 32) == "offline"

    inner = [
        "GOING_ONLINE(-1,1): 200 0 -1",
        "ONLINE(-1,1): 200 0",
        "GOING_OFFLINE(-1,1): 200 0 -1",
        "OFFLINE(-1,1): 200 0",
    ]
    before = ["PREPARE_ONLINE(0,0): 200 0 -1"] if rules is Rules.LINUX_6_12 else []
    after = ["FINISH_OFFLINE(0,0): 200 0 -1"] if rules is Rules.LINUX_6_12 else []
    assert rounds(log) == [*before, *inner, *after]


def test_a_change_after_a_taken_back_one_finds_nothing_locked(boot: Boot) -> None:
    """After a refused online another thread can change the same block at once."""
    machine = with_node_1(boot, DOCUMENTED)
    answers: dict[MemoryAction, NotifyResult | BaseException] = {MEM_ONLINE: NOTIFY_BAD}
    three(machine, Log(), {0: answers})
    assert refusal(write, machine, "memory32/state", "online") == "EPERM"
    answers.clear()
    assert in_thread(lambda: write(machine, "memory32/state", "online")).result() == 6


def test_a_pinned_page_keeps_a_documented_offline_waiting_too(boot: Boot) -> None:
    """The rules differ in the answer at the end only: a pinned page still has to be let go."""
    machine = with_node_1(boot, DOCUMENTED)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(1, blocks=[32])
    machine.pages.pin(held)
    thread = in_thread(lambda: write(machine, "memory32/state", "offline"))
    until_parked(thread)
    machine.pages.unpin(held)
    assert thread.result() == 7
