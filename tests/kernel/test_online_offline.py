"""Online and offline of a block: who hears what in which order, and what userland sees meanwhile."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

from memhp import (
    MEM_CANCEL_OFFLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    MEM_PREPARE_ONLINE,
    NOTIFY_BAD,
    NOTIFY_STOP,
    DeadlockError,
    HotplugError,
    InvalidInput,
    Machine,
    MemoryAction,
    MemoryNotify,
    NotifyResult,
    PageKind,
    Rules,
    ZoneType,
    notifier_from_errno,
)
from memhp.kernel import BlockState, Zone, device
from memhp.kernel.zonechoice import zone_for_pfn_range
from memhp.locking import current
from support import (
    ALL,
    GIB,
    MEMORY,
    NODE,
    Boot,
    Log,
    Running,
    another_reads,
    in_thread,
    refusal,
    rounds,
    snapshot,
    state,
    three,
    until_parked,
    valid_zones,
    with_node_1,
    write,
)

ENOMEM = notifier_from_errno(-12)
BOTH = pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.LINUX_6_12])


# -- 3.A: the writes


@ALL
@pytest.mark.fact("3.1", "3.2", "13.6")
def test_being_there_already_is_einval_for_state_and_success_for_online(boot: Boot, rules: Rules) -> None:
    """``echo 1 > online`` on an online block succeeds, ``echo online > state`` is EINVAL; neither calls anybody."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "offline") == "EINVAL"
    assert write(machine, "memory32/online", "0\n") == 2
    assert snapshot(machine) == before

    assert write(machine, "memory32/state", "online\n") == 7
    log.clear()
    assert refusal(write, machine, "memory32/state", "online\n") == "EINVAL"
    assert write(machine, "memory32/online", "1") == 1
    assert log == []


@pytest.mark.fact("3.2")
@pytest.mark.parametrize("text", ["y", "Y", "t", "T", "1", "on", "oN", "yonder", "1\n", "123", "true", "once"])
def test_online_reads_a_bool_by_its_first_characters(boot: Boot, text: str) -> None:
    """Whatever begins with y, t, 1 or on is true; what follows is ignored."""
    machine = with_node_1(boot)
    assert write(machine, "memory32/online", text) == len(text)
    assert state(machine, 32) == "online"


@pytest.mark.fact("3.2")
@pytest.mark.parametrize("text", ["n", "N", "f", "F", "0", "off", "oFf", "never", "0x1", "offset"])
def test_online_reads_a_false_bool_by_its_first_characters(boot: Boot, text: str) -> None:
    """Whatever begins with n, f, 0 or of is false."""
    machine = with_node_1(boot)
    write(machine, "memory32/state", "online")
    assert write(machine, "memory32/online", text) == len(text)
    assert state(machine, 32) == "offline"


@pytest.mark.fact("3.2", "5.17")
@pytest.mark.parametrize("text", ["2", " 1", "\n", "o", "oops", "x", "-1", "ja"])
def test_online_refuses_what_is_no_bool(boot: Boot, text: str) -> None:
    """Anything else is EINVAL, and nothing is called."""
    machine = with_node_1(boot)
    log = Log()
    three(machine, log)
    assert refusal(write, machine, "memory32/online", text) == "EINVAL"
    assert log == []


@BOTH
@pytest.mark.fact("3.3", "13.1")
def test_a_rejected_online_movable_stays_stored_and_is_used_by_the_next_untyped_online(boot: Boot, rules: Rules) -> None:
    """The type of a write that was EINVAL decides where ``echo 1 > online`` brings the block; once."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_kernel")
    assert refusal(write, machine, "memory32/state", "online_movable") == "EINVAL"
    assert valid_zones(machine, 32) == "Normal"
    write(machine, "memory32/state", "offline")
    write(machine, "memory32/online", "1")
    assert valid_zones(machine, 32) == "Movable"

    write(machine, "memory32/online", "0")
    write(machine, "memory32/online", "1")
    assert valid_zones(machine, 32) == "Normal"


@BOTH
@pytest.mark.fact("3.3", "3.5")
def test_a_failed_online_uses_the_stored_type_up(boot: Boot, rules: Rules) -> None:
    """After a vetoed ``online_movable`` an untyped online chooses for itself."""
    machine = with_node_1(boot, rules)
    log = Log()
    veto = machine.hotplug_memory_notifier(log.callback("veto", {MEM_GOING_ONLINE: NOTIFY_BAD}))
    assert refusal(write, machine, "memory32/state", "online_movable") == "EPERM"
    veto.unregister()
    write(machine, "memory32/online", "1")
    assert valid_zones(machine, 32) == "Normal"


@pytest.mark.fact("3.4")
def test_device_online_and_offline_say_1_when_there_is_nothing_to_do(boot: Boot) -> None:
    """0 is done, 1 is there already; the device's own flag decides, not ``state``."""
    machine = with_node_1(boot)
    assert [machine.device_offline(32), machine.device_online(32), machine.device_online(32)] == [1, 0, 1]
    assert [machine.device_offline(32), machine.device_offline(32)] == [0, 1]

    block = machine.block(32)
    block.state = BlockState.ONLINE  # as if it had come online behind the device's back
    assert machine.device_online(32) == 0
    assert not block.offline


@pytest.mark.fact("3.5")
def test_a_block_in_the_middle_of_another_change_is_einval(boot: Boot) -> None:
    """A change from a state that the block is not in fails without a call."""
    machine = with_node_1(boot)
    log = Log()
    three(machine, log)
    machine.block(32).state = BlockState.GOING_OFFLINE
    assert refusal(machine.device_online, 32) == "EINVAL"
    assert log == []


# -- 3.B, 3.C, 3.F: whole traces


@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
@pytest.mark.fact("3.30", "3.10")
def test_movable_memory_first_then_kernel_memory(boot: Boot, rules: Rules) -> None:
    """On a node without memory, the first Movable block sets N_MEMORY and the first kernel block N_NORMAL_MEMORY."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log)
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory33/state", "online_kernel")
    write(machine, "memory34/state", "online_kernel")

    assert rounds(log) == [
        "GOING_ONLINE(-1,1): 200 0 -1",
        "ONLINE(-1,1): 200 0 -1",
        "GOING_ONLINE(1,-1): 200 0 -1",
        "ONLINE(1,-1): 200 0 -1",
        "GOING_ONLINE(-1,-1): 200 0 -1",
        "ONLINE(-1,-1): 200 0 -1",
    ]


@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
@pytest.mark.fact("3.31")
def test_the_first_block_to_normal_changes_both_masks(boot: Boot, rules: Rules) -> None:
    """Plain ``online`` brings the first block to Normal: both nids are the node."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log)
    write(machine, "memory32/state", "online")

    assert rounds(log) == ["GOING_ONLINE(1,1): 200 0 -1", "ONLINE(1,1): 200 0 -1"]
    assert valid_zones(machine, 32) == "Normal"


@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
@pytest.mark.fact("3.32", "3.14")
def test_the_only_kernel_block_leaves_then_the_last_movable_one(boot: Boot, rules: Rules) -> None:
    """The node loses its normal memory first, and its memory with the last block."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory33/state", "online_kernel")
    log = Log()
    three(machine, log)
    write(machine, "memory33/state", "offline")
    write(machine, "memory32/state", "offline")

    assert rounds(log) == [
        "GOING_OFFLINE(1,-1): 200 0 -1",
        "OFFLINE(1,-1): 200 0 -1",
        "GOING_OFFLINE(-1,1): 200 0 -1",
        "OFFLINE(-1,1): 200 0 -1",
    ]


@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
@pytest.mark.fact("3.33", "3.10", "13.4", "5.5")
def test_a_vetoed_online_is_cancelled_to_the_whole_chain(boot: Boot, rules: Rules) -> None:
    """-1 never heard GOING_ONLINE and hears CANCEL_ONLINE all the same; the write fails with the carried errno."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log, {0: {MEM_GOING_ONLINE: ENOMEM}})
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "online_movable") == "ENOMEM"

    assert rounds(log) == ["GOING_ONLINE(-1,1): 200 0", "CANCEL_ONLINE(-1,1): 200 0 -1"]
    assert state(machine, 32) == "offline"
    assert snapshot(machine) == before


@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
@pytest.mark.fact("3.34", "3.15", "13.4")
def test_a_vetoed_offline_is_cancelled_to_the_whole_chain(boot: Boot, rules: Rules) -> None:
    """The block stays online in its zone; NOTIFY_BAD is EPERM."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    log = Log()
    three(machine, log, {0: {MEM_GOING_OFFLINE: NOTIFY_BAD}})
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"

    assert rounds(log) == ["GOING_OFFLINE(-1,1): 200 0", "CANCEL_OFFLINE(-1,1): 200 0 -1"]
    assert (state(machine, 32), valid_zones(machine, 32)) == ("online", "Movable")
    assert snapshot(machine) == before


@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
@pytest.mark.fact("3.35", "3.11", "13.3", "3.17")
def test_stop_at_going_means_proceed(boot: Boot, rules: Rules) -> None:
    """After NOTIFY_STOP the lower ones miss GOING_ONLINE, but hear ONLINE."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log, {200: {MEM_GOING_ONLINE: NOTIFY_STOP, MEM_GOING_OFFLINE: NOTIFY_STOP}})
    assert write(machine, "memory32/state", "online") == 6
    assert write(machine, "memory32/state", "offline") == 7

    assert rounds(log) == [
        "GOING_ONLINE(1,1): 200",
        "ONLINE(1,1): 200 0 -1",
        "GOING_OFFLINE(1,1): 200",
        "OFFLINE(1,1): 200 0 -1",
    ]


@pytest.mark.fact("3.36", "3.17", "3.10")
def test_bad_at_online_and_offline_only_hides_the_event_in_linux(boot: Boot) -> None:
    """Linux ignores the answer: the lower callbacks miss the event, and nothing is undone."""
    machine = with_node_1(boot, Rules.LINUX_6_1)
    log = Log()
    three(machine, log, {200: {MEM_ONLINE: NOTIFY_BAD, MEM_OFFLINE: NOTIFY_BAD}})
    assert write(machine, "memory32/state", "online") == 6
    assert state(machine, 32) == "online"
    assert write(machine, "memory32/state", "offline") == 7
    assert state(machine, 32) == "offline"

    assert rounds(log) == [
        "GOING_ONLINE(1,1): 200 0 -1",
        "ONLINE(1,1): 200",
        "GOING_OFFLINE(1,1): 200 0 -1",
        "OFFLINE(1,1): 200",
    ]


@pytest.mark.fact("3.37", "3.8", "3.9", "13.5")
def test_6_12_prepares_before_and_finishes_after(boot: Boot) -> None:
    """PREPARE_ONLINE comes first and FINISH_OFFLINE last; their nids read 0."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    log = Log()
    three(machine, log)
    write(machine, "memory32/state", "online")
    write(machine, "memory32/state", "offline")

    assert rounds(log) == [
        "PREPARE_ONLINE(0,0): 200 0 -1",
        "GOING_ONLINE(1,1): 200 0 -1",
        "ONLINE(1,1): 200 0 -1",
        "GOING_OFFLINE(1,1): 200 0 -1",
        "OFFLINE(1,1): 200 0 -1",
        "FINISH_OFFLINE(0,0): 200 0 -1",
    ]


@pytest.mark.fact("3.38", "3.9")
def test_6_12_finishes_after_the_cancel_of_a_vetoed_online(boot: Boot) -> None:
    """FINISH_OFFLINE goes to all, after CANCEL_ONLINE to all."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    log = Log()
    three(machine, log, {0: {MEM_GOING_ONLINE: ENOMEM}})
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "online") == "ENOMEM"

    assert rounds(log) == [
        "PREPARE_ONLINE(0,0): 200 0 -1",
        "GOING_ONLINE(1,1): 200 0",
        "CANCEL_ONLINE(1,1): 200 0 -1",
        "FINISH_OFFLINE(0,0): 200 0 -1",
    ]
    assert snapshot(machine) == before


@pytest.mark.fact("3.39", "3.9", "13.5", "5.17")
def test_6_12_undoes_nothing_after_a_vetoed_prepare(boot: Boot) -> None:
    """Neither FINISH_OFFLINE nor CANCEL_ONLINE is sent, not even to callbacks that had accepted."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    log = Log()
    three(machine, log, {0: {MEM_PREPARE_ONLINE: ENOMEM}})
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "online") == "ENOMEM"

    assert rounds(log) == ["PREPARE_ONLINE(0,0): 200 0"]
    assert snapshot(machine) == before


@pytest.mark.fact("3.40", "3.15")
def test_6_12_does_not_finish_a_vetoed_offline(boot: Boot) -> None:
    """CANCEL_OFFLINE to all, and no FINISH_OFFLINE."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    write(machine, "memory32/state", "online")
    log = Log()
    three(machine, log, {0: {MEM_GOING_OFFLINE: NOTIFY_BAD}})
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"

    assert rounds(log) == ["GOING_OFFLINE(1,1): 200 0", "CANCEL_OFFLINE(1,1): 200 0 -1"]
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.41", "3.14", "3.17")
def test_a_signal_during_migration_cancels_to_all(boot: Boot, rules: Rules) -> None:
    """A page that can't move keeps it going; the signal ends it with EINTR, and all hear CANCEL_OFFLINE."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(1, blocks=[32], owner="vmsplice")
    machine.pages.pin(held)
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    thread = in_thread(lambda: write(machine, "memory32/state", "offline"))
    until_parked(thread)
    assert state(machine, 32) == "going-offline"
    machine.send_signal(thread)

    assert refusal(thread.result) == "EINTR"
    assert rounds(log) == ["GOING_OFFLINE(-1,1): 200 0 -1", "CANCEL_OFFLINE(-1,1): 200 0 -1"]
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.41", "3.14", "3.16", "13.10", "5.17")
def test_an_unmovable_page_fails_isolation_without_a_call(boot: Boot, rules: Rules) -> None:
    """EBUSY, and nobody hears of it."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_kernel")
    machine.alloc_pages(1, PageKind.UNMOVABLE, blocks=[32], owner="slab")
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "offline") == "EBUSY"
    assert log == []
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.41", "3.14", "5.17")
@pytest.mark.parametrize("file", ["state", "online"])
def test_a_block_with_holes_can_not_go_offline(boot: Boot, rules: Rules, file: str) -> None:
    """``valid_zones`` says DMA32, and still it is EINVAL, without a call."""
    machine = boot("1000MiB", rules=rules)
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    assert valid_zones(machine, 7) == "DMA32"
    assert refusal(write, machine, f"memory7/{file}", {"state": "offline", "online": "0"}[file]) == "EINVAL"
    assert log == []
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.13", "3.41", "5.17", "5.6")
@pytest.mark.parametrize("file", ["state", "online"])
def test_a_block_of_several_zones_can_not_go_offline(boot: Boot, rules: Rules, file: str) -> None:
    """Block 0 has DMA and DMA32: valid_zones is ``none``, and the write is EINVAL before mem_hotplug_lock, without a call."""
    machine = boot("1GiB", rules=rules)
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    assert valid_zones(machine, 0) == "none"
    with another_reads(machine):  # so that it would hang if it came to mem_hotplug_lock
        assert refusal(write, machine, f"memory0/{file}", {"state": "offline", "online": "0"}[file]) == "EINVAL"
    assert log == []
    assert snapshot(machine) == before


@pytest.mark.parametrize(
    "wrong", [(None, 0x8000, "zone"), (0x100000, "0x8000", "zone"), (0x100000, True, "zone"), (0x100000, 0x8000, None)]
)
def test_what_is_no_range_or_no_zone_is_an_error_of_its_own(boot: Boot, wrong: tuple[Any, Any, Any]) -> None:
    """InvalidInput, as of any argument; nothing was changed."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    start, nr_pages, zone = wrong[0], wrong[1], machine.zone(1, "Normal") if wrong[2] else None
    before = snapshot(machine)
    with machine.mem_hotplug():
        for request in (machine.online_pages, machine.offline_pages):
            with pytest.raises(InvalidInput):
                request(start, nr_pages, zone)  # type: ignore[arg-type]
    assert snapshot(machine) == before


@BOTH
@pytest.mark.fact("3.10", "3.14")
@pytest.mark.parametrize(
    ("start", "nr_pages"), [(0x100000, 0), (0x100001, 0x8000), (0x100000, 0x4000), (0x100200, 0x8000), (0x100000, 1 << 62)]
)
def test_a_misaligned_range_is_einval_without_a_call(boot: Boot, rules: Rules, start: int, nr_pages: int) -> None:
    """Nothing, not whole sections, or far more than there are: EINVAL both ways, at once and before anybody is called."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log)
    zone = machine.zone(1, ZoneType.NORMAL)
    before = snapshot(machine)
    with machine.mem_hotplug():
        assert refusal(machine.online_pages, start, nr_pages, zone) == "EINVAL"
        assert refusal(machine.offline_pages, start, nr_pages, zone) == "EINVAL"
    assert log == []
    assert snapshot(machine) == before


@BOTH
@pytest.mark.fact("3.14")
def test_a_range_of_another_zone_is_einval_without_a_call(boot: Boot, rules: Rules) -> None:
    """The range must lie in the zone that is named."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    with machine.mem_hotplug():
        assert refusal(machine.offline_pages, 0x100000, 0x8000, machine.zone(1, ZoneType.NORMAL)) == "EINVAL"
    assert log == []
    assert snapshot(machine) == before


@pytest.mark.fact("3.6", "5.17", "7.7")
@pytest.mark.parametrize(("file", "text"), [("state", "online"), ("online", "1")])
def test_a_poisoned_block_does_not_come_online_again_in_6_12(boot: Boot, file: str, text: str) -> None:
    """A poisoned page lets its block go offline, but not come back: EHWPOISON before any lock of mm, without a call."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    write(machine, "memory32/state", "online_movable")
    write(machine, "hard_offline_page", hex(4 * GIB))
    write(machine, "memory32/state", "offline")
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    assert refusal(write, machine, f"memory32/{file}", text) == "EHWPOISON"
    assert log == []
    assert snapshot(machine) == before


# -- what the machine is like at each of these moments


def counts(machine: Machine, kind: ZoneType) -> tuple[int, int, int]:
    """Give span's start, span and present pages of a zone of node 1."""
    zone = machine.zone(1, kind)
    return zone.start_pfn, zone.spanned, zone.present


def masks(machine: Machine) -> tuple[str, str]:
    read = machine.tree.read
    return read(f"{NODE}/has_normal_memory").strip(), read(f"{NODE}/has_memory").strip()


@ALL
@pytest.mark.fact("3.10", "3.12", "3.14", "6.4")
def test_spans_counts_and_masks_change_in_the_order_of_linux(boot: Boot, rules: Rules) -> None:
    """GOING_ONLINE: the span has grown; ONLINE: present and masks too; OFFLINE: those are gone, and the span afterwards."""
    machine = with_node_1(boot, rules)
    seen: list[object] = []
    three(machine, Log(), act=lambda action, _: seen.append((action.name, *counts(machine, ZoneType.NORMAL), *masks(machine))))
    write(machine, "memory33/state", "online_kernel")
    write(machine, "memory33/state", "offline")

    middle = [
        ("MEM_GOING_ONLINE", 0x108000, 0x8000, 0, "0", "0"),
        ("MEM_ONLINE", 0x108000, 0x8000, 0x8000, "0-1", "0-1"),
        ("MEM_GOING_OFFLINE", 0x108000, 0x8000, 0x8000, "0-1", "0-1"),
        ("MEM_OFFLINE", 0x108000, 0x8000, 0, "0", "0"),
    ]
    first = [("MEM_PREPARE_ONLINE", 0, 0, 0, "0", "0")] if rules is Rules.LINUX_6_12 else []
    last = [("MEM_FINISH_OFFLINE", 0, 0, 0, "0", "0")] if rules is Rules.LINUX_6_12 else []
    assert seen == [*first, *middle, *last]
    assert counts(machine, ZoneType.NORMAL) == (0, 0, 0)


@pytest.mark.fact("3.14", "3.8")
def test_finish_offline_comes_after_the_block_has_lost_its_zone(boot: Boot) -> None:
    """At MEM_OFFLINE the block still remembers it; PREPARE_ONLINE comes before it has one."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    seen: list[tuple[str, bool]] = []
    three(machine, Log(), act=lambda action, _: seen.append((action.name, machine.block(32).zone is None)))
    write(machine, "memory32/state", "online")
    write(machine, "memory32/state", "offline")
    assert seen == [
        ("MEM_PREPARE_ONLINE", True),
        ("MEM_GOING_ONLINE", True),
        ("MEM_ONLINE", True),
        ("MEM_GOING_OFFLINE", False),
        ("MEM_OFFLINE", False),
        ("MEM_FINISH_OFFLINE", True),
    ]


@ALL
@pytest.mark.fact("3.15", "3.50")
def test_free_pages_are_back_before_cancel_offline(boot: Boot, rules: Rules) -> None:
    """Isolation ends before CANCEL_OFFLINE, so a callback can allocate there from the block that stays."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    got: list[list[int]] = []

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        if action is MEM_CANCEL_OFFLINE:
            got.append(machine.alloc_pages(10, blocks=[32]).blocks)

    three(machine, Log(), {-1: {MEM_GOING_OFFLINE: NOTIFY_BAD}}, act)
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert got == [[32]]


# -- 3.G: what userland sees


def look(machine: Machine) -> tuple[str, str, str]:
    return state(machine, 32), valid_zones(machine, 32), masks(machine)[1]


@ALL
@pytest.mark.fact("3.5", "3.12", "5.6", "13.1")
def test_what_userland_sees_while_a_block_comes_online_and_goes(boot: Boot, rules: Rules) -> None:
    """There is no going-online: ``state`` reads offline up to the end, and valid_zones has two names until then."""
    machine = with_node_1(boot, rules)
    seen: dict[str, tuple[str, str, str]] = {"idle": look(machine)}
    three(machine, Log(), act=lambda action, _: seen.update({action.name: look(machine)}))
    write(machine, "memory32/state", "online_movable")
    seen["online"] = look(machine)
    write(machine, "memory32/state", "offline")
    seen["offline"] = look(machine)

    expected = {
        "idle": ("offline", "Normal Movable", "0"),
        "MEM_PREPARE_ONLINE": ("offline", "Normal Movable", "0"),
        "MEM_GOING_ONLINE": ("offline", "Movable Normal", "0"),
        "MEM_ONLINE": ("offline", "Movable Normal", "0-1"),
        "online": ("online", "Movable", "0-1"),
        "MEM_GOING_OFFLINE": ("going-offline", "Movable Normal", "0-1"),
        "MEM_OFFLINE": ("going-offline", "Movable Normal", "0"),
        "MEM_FINISH_OFFLINE": ("going-offline", "Normal Movable", "0"),
        "offline": ("offline", "Normal Movable", "0"),
    }
    if rules is not Rules.LINUX_6_12:
        del expected["MEM_PREPARE_ONLINE"], expected["MEM_FINISH_OFFLINE"]
    assert seen == expected


@ALL
@pytest.mark.fact("3.15", "3.34")
def test_what_userland_sees_around_failures(boot: Boot, rules: Rules) -> None:
    """At each CANCEL the words are still those of the change; afterwards they are the ones from before."""
    machine = with_node_1(boot, rules)
    seen: list[tuple[str, tuple[str, str, str]]] = []

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        if action.name.startswith("MEM_CANCEL"):
            seen.append((action.name, look(machine)))

    veto: dict[MemoryAction, NotifyResult | BaseException] = {MEM_GOING_ONLINE: NOTIFY_BAD}
    three(machine, Log(), {-1: veto}, act)
    assert refusal(write, machine, "memory32/state", "online_movable") == "EPERM"
    seen.append(("failed", look(machine)))
    veto.clear()
    write(machine, "memory32/state", "online_movable")
    veto[MEM_GOING_OFFLINE] = NOTIFY_BAD
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    seen.append(("failed", look(machine)))

    assert seen == [
        ("MEM_CANCEL_ONLINE", ("offline", "Movable Normal", "0")),
        ("failed", ("offline", "Normal Movable", "0")),
        ("MEM_CANCEL_OFFLINE", ("going-offline", "Movable Normal", "0-1")),
        ("failed", ("online", "Movable", "0-1")),
    ]


@ALL
@pytest.mark.fact("4.4")
def test_reading_online_from_inside_the_change_is_a_deadlock_at_once(rules: Rules) -> None:
    """``online`` needs the device_lock that the callback's own change holds; that wait could never end."""
    machine = with_node_1(Machine.boot, rules)  # without lockdep, which would report the attempt
    raised: list[str] = []

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        with pytest.raises(DeadlockError, match="memory32/device_lock"):
            machine.tree.read("/sys/devices/system/memory/memory32/online")
        raised.append(action.name.removeprefix("MEM_"))

    three(machine, Log(), act=act)
    write(machine, "memory32/state", "online")
    write(machine, "memory32/state", "offline")
    inner = ["GOING_ONLINE", "ONLINE", "GOING_OFFLINE", "OFFLINE"]
    assert raised == (["PREPARE_ONLINE", *inner, "FINISH_OFFLINE"] if rules is Rules.LINUX_6_12 else inner)


@ALL
@pytest.mark.fact("4.4", "3.45")
@pytest.mark.parametrize("moment", [MEM_GOING_ONLINE, MEM_ONLINE, MEM_GOING_OFFLINE, MEM_OFFLINE])
def test_reading_online_from_another_thread_waits_for_the_end(boot: Boot, rules: Rules, moment: MemoryAction) -> None:
    """The reader gets the value after the change, whenever it asked."""
    machine = with_node_1(boot, rules)
    readers: list[Running] = []

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        if action is moment:
            reader = in_thread(lambda: machine.tree.read("/sys/devices/system/memory/memory32/online"), "reader")
            until_parked(reader)
            readers.append(reader)

    three(machine, Log(), act=act)
    write(machine, "memory32/state", "online")
    if moment in {MEM_GOING_OFFLINE, MEM_OFFLINE}:
        write(machine, "memory32/state", "offline")
    expected = "1\n" if moment in {MEM_GOING_ONLINE, MEM_ONLINE} else "0\n"
    assert [reader.result() for reader in readers] == [expected]


@ALL
@pytest.mark.fact("3.45", "3.4", "13.1")
def test_state_then_uevent_then_online(boot: Boot, rules: Rules) -> None:
    """At the uevent ``state`` is final and mem_hotplug_lock free, but the device's flag is the old one and its lock held."""
    machine = with_node_1(boot, rules)
    block = machine.block(32)
    seen: list[tuple[str, str, bool, bool, bool, bool]] = []

    def listen(event: object) -> None:
        locks = machine.locks
        held = (block.device_lock.held(), locks.device_hotplug.held(), locks.mem_hotplug.held())
        seen.append((str(event), state(machine, 32), block.offline, *held))

    machine.uevents.subscribe(listen)
    three(machine, Log())
    write(machine, "memory32/state", "online")
    assert not block.offline
    write(machine, "memory32/state", "offline")
    assert block.offline

    assert seen == [
        ("online@/devices/system/memory/memory32", "online", True, True, True, False),
        ("offline@/devices/system/memory/memory32", "offline", False, True, True, False),
    ]


@pytest.mark.fact("3.45")
def test_a_uevent_reader_may_see_the_new_state_while_online_still_blocks(boot: Boot) -> None:
    """Whoever reacts to the uevent at once waits in ``online`` until the request has ended."""
    machine = with_node_1(boot)
    readers: list[tuple[str, Running]] = []

    def listen(event: object) -> None:
        reader = in_thread(lambda: machine.tree.read("/sys/devices/system/memory/memory32/online"), "reader")
        until_parked(reader)
        readers.append((state(machine, 32), reader))

    machine.uevents.subscribe(listen)
    write(machine, "memory32/state", "online")
    assert [(word, reader.result()) for word, reader in readers] == [("online", "1\n")]


@ALL
@pytest.mark.fact("3.17", "5.12")
def test_failures_and_rollbacks_send_no_uevent(boot: Boot, rules: Rules) -> None:
    """Only what ends well is announced."""
    machine = with_node_1(boot, rules)
    write(machine, "memory33/state", "online")
    heard: list[str] = []
    machine.uevents.subscribe(lambda event: heard.append(str(event)))
    three(machine, Log(), {0: {MEM_GOING_ONLINE: NOTIFY_BAD, MEM_GOING_OFFLINE: NOTIFY_BAD}})
    assert refusal(write, machine, "memory32/state", "online") == "EPERM"
    assert refusal(write, machine, "memory33/state", "offline") == "EPERM"
    assert heard == []


@ALL
@pytest.mark.fact("5.17", "1.9", "1.8")
def test_raw_answers_do_what_they_do_in_c(boot: Boot, rules: Rules) -> None:
    """A raw negative stops the chain and refuses nothing; a raw 5 refuses with EINTR from the last place only."""
    machine = with_node_1(boot, rules)
    middle: dict[MemoryAction, NotifyResult | BaseException] = {MEM_GOING_ONLINE: NotifyResult(5)}
    last: dict[MemoryAction, NotifyResult | BaseException] = {}
    log = Log()
    three(machine, log, {0: middle, -1: last})
    write(machine, "memory32/state", "online")
    last[MEM_GOING_ONLINE] = NotifyResult(5)
    assert refusal(write, machine, "memory33/state", "online") == "EINTR"
    middle[MEM_GOING_ONLINE] = NotifyResult(-12)
    write(machine, "memory34/state", "online")

    assert [line for line in rounds(log) if "PREPARE" not in line and "FINISH" not in line] == [
        "GOING_ONLINE(1,1): 200 0 -1",
        "ONLINE(1,1): 200 0 -1",
        "GOING_ONLINE(-1,-1): 200 0 -1",
        "CANCEL_ONLINE(-1,-1): 200 0 -1",
        "GOING_ONLINE(-1,-1): 200 0",
        "ONLINE(-1,-1): 200 0 -1",
    ]


@ALL
@pytest.mark.fact("3.5")
def test_a_change_that_nobody_hears_works_too(boot: Boot, rules: Rules) -> None:
    """With an empty chain a block comes and goes."""
    machine = with_node_1(boot, rules)
    write(machine, "memory35/state", "online_movable")
    assert (state(machine, 35), valid_zones(machine, 35)) == ("online", "Movable")
    write(machine, "memory35/state", "offline")
    assert (state(machine, 35), valid_zones(machine, 35)) == ("offline", "Normal Movable")


def test_the_error_names_who_refused_what(boot: Boot) -> None:
    """The refusal carries the callback, the action and the block, and says what holds now."""
    from memhp import Vetoed

    machine = with_node_1(boot)
    block = machine.hotplug_memory_notifier(Log().callback("picky", {MEM_GOING_ONLINE: ENOMEM}), 7)
    with pytest.raises(Vetoed, match=r"memory32 .*MEM_GOING_ONLINE with ENOMEM; it stays offline") as caught:
        write(machine, "memory32/state", "online")
    error = caught.value
    assert (error.callback, error.action, error.block, error.errno) == (block, MEM_GOING_ONLINE, 32, 12)
    assert isinstance(error, HotplugError)


def test_an_exception_at_going_is_a_refusal_with_its_cause(boot: Boot) -> None:
    """The caller gets EPERM, chained to what the callback raised."""
    machine = with_node_1(boot)
    log = Log()
    cause = RuntimeError("out of hamsters")
    three(machine, log, {0: {MEM_GOING_ONLINE: cause}})
    with pytest.raises(HotplugError, match="out of hamsters") as caught:
        write(machine, "memory32/state", "online")
    assert caught.value.__cause__ is cause
    assert rounds(log) == ["GOING_ONLINE(1,1): 200 0", "CANCEL_ONLINE(1,1): 200 0 -1"]


def test_many_threads_change_blocks_at_once_and_all_get_their_turn(boot: Boot) -> None:
    """Requests from many threads run one after another; each block's trace is whole."""
    machine = with_node_1(boot, blocks=8)
    log = Log()
    machine.hotplug_memory_notifier(
        lambda block, action, arg: log.callback(f"{arg.start_pfn:#x}")(block, action, arg),
    )
    start = threading.Barrier(8)

    def cycle(block: int) -> None:
        start.wait()
        write(machine, f"memory{block}/state", "online")
        write(machine, f"memory{block}/state", "offline")

    threads = [in_thread(functools.partial(cycle, block), f"T{block}") for block in range(32, 40)]
    for thread in threads:
        thread.result()
    words = [line.split("(")[0] for line in log]
    for block in range(32, 40):
        name = f"{block * 0x8000:#x}"
        assert [word for word in words if word.startswith(name)] == [
            f"{name} GOING_ONLINE",
            f"{name} ONLINE",
            f"{name} GOING_OFFLINE",
            f"{name} OFFLINE",
        ]
    pairs = [(first.split()[0], second.split()[0]) for first, second in zip(words[::2], words[1::2], strict=True)]
    assert all(first == second for first, second in pairs)


@ALL
@pytest.mark.fact("3.7")
def test_the_zone_is_chosen_before_mem_hotplug_lock_is_taken(boot: Boot, rules: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a reader of memory does not see the choice wait for it."""
    machine = with_node_1(boot, rules)
    chosen = zone_for_pfn_range
    held: list[list[str]] = []

    def choose(*arguments: Any) -> Zone:
        held.append(current().describe_held())
        return chosen(*arguments)

    monkeypatch.setattr(device, "zone_for_pfn_range", choose)
    write(machine, "memory32/state", "online")
    assert held == [["memory32/s_active (read)", "device_hotplug_lock", "memory32/device_lock"]]


@ALL
@pytest.mark.fact("7.2", "3.14", "3.16")
def test_a_block_that_is_isolated_already_is_ebusy_without_a_call(boot: Boot, rules: Rules) -> None:
    """As where somebody else is at its pageblocks."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online")
    log = Log()
    three(machine, log)
    machine.pages.isolate([machine.block(32)])
    assert refusal(write, machine, "memory32/state", "offline") == "EBUSY"
    assert log == []
    machine.pages.unisolate([machine.block(32)])
    write(machine, "memory32/state", "offline")


@ALL
@pytest.mark.fact("7.10", "0.1")
def test_memory_from_boot_goes_offline_like_any_other(boot: Boot, rules: Rules) -> None:
    """And `removable` says 1 of every block, so it says nothing."""
    machine = boot("1GiB", rules=rules)
    assert [machine.tree.read(f"{MEMORY}/memory{block}/removable") for block in machine.blocks] == ["1\n"] * 8
    write(machine, "memory5/state", "offline")
    assert state(machine, 5) == "offline"


def test_pages_that_are_online_are_not_brought_online_again(boot: Boot) -> None:
    """Nothing is counted twice."""
    machine = with_node_1(boot)
    write(machine, "memory32/state", "online")
    before = snapshot(machine)
    with machine.mem_hotplug():
        assert refusal(machine.online_pages, 0x100000, 0x8000, machine.zone(1, "Normal")) == "EINVAL"
    assert snapshot(machine) == before


def test_pages_do_not_come_online_in_another_nodes_zone(boot: Boot) -> None:
    """A zone is a part of its node."""
    machine = with_node_1(boot)
    before = snapshot(machine)
    with machine.mem_hotplug():
        assert refusal(machine.online_pages, 0x100000, 0x8000, machine.zone(0, "Normal")) == "EINVAL"
    assert snapshot(machine) == before
