"""The kernel's own callbacks: their order, what each does, and the hazard of a CANCEL for something never begun."""

from __future__ import annotations

import logging
from typing import TypeVar

import pytest

from memhp import (
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    NOTIFY_BAD,
    InvalidInput,
    Machine,
    MemoryAction,
    NotifierBlock,
    NotifyResult,
    Rules,
)
from memhp.kernel.drivers import VirtioMem
from memhp.kernel.participants import (
    Arm64,
    Cmm,
    ComputeBatch,
    Cpuset,
    Crash,
    Kcore,
    Ksm,
    MemoryTiers,
    PageExt,
    Participant,
    ReserveMem,
    Slab,
    join,
)
from support import ALL, BLOCK, GIB, MIB, Boot, refusal, snapshot, state, with_node_1, write

PAGES = BLOCK >> 12
START = 4 * GIB >> 12
P = TypeVar("P", bound=Participant)


def one(machine: Machine, kind: type[P]) -> P:
    found = join(machine, [kind.name])[kind.name]
    assert isinstance(found, kind)
    return found


def refuse(machine: Machine, action: MemoryAction, priority: int) -> list[int]:
    """Refuse an action as often as the list has elements."""
    times = [1]

    def callback(block: NotifierBlock, seen: MemoryAction, arg: object) -> NotifyResult:
        return NOTIFY_BAD if seen is action and times and times.pop() else NotifyResult(1)

    machine.hotplug_memory_notifier(callback, priority)
    return times


@pytest.mark.fact("9.1", "9.8")
def test_they_stand_in_the_order_that_was_observed(boot: Boot) -> None:
    """On 6.12 ksm and memory-tiers (100), cpuset and compute_batch (10), slab (1), crash, reserve_mem, kcore (0)."""
    machine = boot("1GiB", rules=Rules.LINUX_6_12)
    join(machine)
    listed = [(block.name, block.priority) for block in machine.memory_chain.blocks]
    assert listed == [
        ("ksm", 100),
        ("memory-tiers", 100),
        ("cpuset", 10),
        ("mm_compute_batch", 10),
        ("slab", 1),
        ("crash", 0),
        ("reserve_mem", 0),
        ("kcore", 0),
    ]
    assert "crash" not in join(boot("1GiB", rules=Rules.LINUX_6_1))
    with pytest.raises(InvalidInput, match="ksm, memory-tiers"):
        join(machine, ["ksm", "kswapd"])
    assert len(list(machine.memory_chain.blocks)) == 8


@ALL
@pytest.mark.fact("9.2")
def test_ksm_rests_while_memory_goes_offline(boot: Boot, rules: Rules) -> None:
    """It goes on after success and after a refusal."""
    machine = with_node_1(boot, rules)
    ksm = one(machine, Ksm)
    seen: list[bool] = []

    def watch(block: NotifierBlock, action: MemoryAction, arg: object) -> NotifyResult:
        if action is MEM_GOING_OFFLINE:
            seen.append(ksm.paused)
        return NotifyResult(1)

    machine.hotplug_memory_notifier(watch)
    refuse(machine, MEM_GOING_OFFLINE, -1)
    write(machine, "memory32/state", "online_movable")
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert (seen, ksm.paused, ksm.pruned) == ([True], False, [])
    write(machine, "memory32/state", "offline")
    assert (ksm.paused, ksm.pruned) == (False, [(START, PAGES)])
    ksm.leave()


@ALL
@pytest.mark.fact("9.2")
def test_memory_tiers_follow_the_first_and_the_last_memory_of_a_node(boot: Boot, rules: Rules) -> None:
    """A slow node becomes the place that pages are demoted to."""
    machine = with_node_1(boot, rules)
    tiers = one(machine, MemoryTiers)
    tiers.slow = {1}
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory33/state", "online_movable")
    assert tiers.demotion == {0: [1]}
    write(machine, "memory32/state", "offline")
    write(machine, "memory33/state", "offline")
    assert tiers.demotion == {0: []}


@ALL
@pytest.mark.fact("9.3")
def test_cpuset_looks_after_every_action(boot: Boot, rules: Rules) -> None:
    """CANCEL, and PREPARE and FINISH too: in the callback on 6.12, by a worker else."""
    machine = with_node_1(boot, rules)
    cpuset, batch = one(machine, Cpuset), one(machine, ComputeBatch)
    small = batch.batch
    refuse(machine, MEM_GOING_ONLINE, -1)
    assert refusal(write, machine, "memory32/state", "online_movable") == "EPERM"
    assert (cpuset.updates, cpuset.queued) == ((4, False) if rules is Rules.LINUX_6_12 else (0, True))
    cpuset.work()
    write(machine, "memory32/state", "online_movable")
    cpuset.work()
    assert cpuset.mems == {0, 1}
    assert batch.batch - small == PAGES // 4
    write(machine, "memory32/state", "offline")
    assert batch.batch == small


@ALL
@pytest.mark.fact("9.4")
def test_slab_makes_its_structures_first_and_keeps_them(boot: Boot, rules: Rules) -> None:
    """Only for a node's first kernel memory; ENOMEM refuses it; afterwards only the node's use ends."""
    machine = with_node_1(boot, rules)
    slab = one(machine, Slab)
    slab.out_of_memory = True
    write(machine, "memory33/state", "online_movable")
    assert (slab.nodes, slab.structures) == ({0}, {0})
    assert refusal(write, machine, "memory32/state", "online_kernel") == "ENOMEM"
    slab.out_of_memory = False
    refuse(machine, MEM_GOING_ONLINE, 0)
    assert refusal(write, machine, "memory32/state", "online_kernel") == "EPERM"
    assert (slab.nodes, slab.structures) == ({0}, {0, 1})
    slab.out_of_memory = True  # what it has it needn't make
    write(machine, "memory32/state", "online_kernel")
    assert slab.nodes == {0, 1}
    write(machine, "memory32/state", "offline")
    assert (slab.nodes, slab.structures, slab.shrinks) == ({0}, {0, 1}, 1)


@ALL
@pytest.mark.fact("9.5")
def test_page_ext_has_a_table_for_each_section_that_is_online(boot: Boot, rules: Rules) -> None:
    """It may fail; a CANCEL gives back, also one for a table that was never made."""
    machine = with_node_1(boot, rules)
    tables = one(machine, PageExt)
    write(machine, "memory32/state", "online_movable")
    assert tables.tables == {32}
    tables.out_of_memory = True
    assert refusal(write, machine, "memory33/state", "online_movable") == "ENOMEM"
    tables.out_of_memory = False
    refuse(machine, MEM_GOING_ONLINE, -1)
    assert refusal(write, machine, "memory33/state", "online_movable") == "EPERM"
    assert tables.tables == {32}
    write(machine, "memory32/state", "offline")
    assert tables.tables == set()


@ALL
@pytest.mark.fact("9.5")
def test_those_without_a_say_take_note(boot: Boot, rules: Rules) -> None:
    """Reserves grow with memory up to 128 and 8 MiB; kcore and the crash headers are brought up to date."""
    machine = with_node_1(boot, rules)
    reserve, kcore, crash = one(machine, ReserveMem), one(machine, Kcore), one(machine, Crash)
    free = machine.pages.count_free() << 2
    assert reserve.kbytes == {"user": free // 32, "admin": 8192}
    kcore.needs_update = False
    write(machine, "memory32/state", "online_movable")
    assert (kcore.needs_update, crash.updates, reserve.kbytes["user"]) == (True, 1, (free + (128 << 10)) // 32)
    write(machine, "memory32/state", "offline")
    assert (crash.updates, reserve.kbytes["user"]) == (2, (free + (128 << 10)) // 32)
    machine.alloc_pages(machine.pages.count_free() - 256)
    write(machine, "memory32/state", "online_movable")
    assert reserve.kbytes == {"user": 4128, "admin": 8192}
    write(machine, "memory32/state", "offline")
    assert reserve.kbytes == {"user": 32, "admin": 32}


@ALL
@pytest.mark.fact("9.6")
def test_arm64_keeps_memory_from_boot(boot: Boot, rules: Rules) -> None:
    """What was added may go."""
    machine = with_node_1(boot, rules)
    one(machine, Arm64)
    assert refusal(write, machine, "memory3/state", "offline") == "EPERM"
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory32/state", "offline")


# -- the hazard


@ALL
@pytest.mark.fact("9.7")
def test_cmm_gives_back_a_mutex_that_it_never_took(boot: Boot, rules: Rules, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody before it refuses, so it hears CANCEL_OFFLINE without GOING_OFFLINE."""
    machine = with_node_1(boot, rules)
    cmm = one(machine, Cmm)
    write(machine, "memory32/state", "online_movable")
    refuse(machine, MEM_GOING_OFFLINE, 2)
    with caplog.at_level(logging.ERROR):
        assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert cmm.block.errors == 1
    assert "cmm hotplug_mutex" in caplog.text
    write(machine, "memory32/state", "offline")  # without a refusal it is all right
    assert cmm.block.errors == 1


@ALL
@pytest.mark.fact("9.7")
def test_virtio_mem_knows_whether_it_has_begun(boot: Boot, rules: Rules) -> None:
    """The fixed twin: the same refusal does nothing to it, and everything is as before."""
    machine = boot(["1GiB", 0], rules=rules, parameters="memhp_default_state=online_movable")
    device = VirtioMem(machine, 1, 4 * GIB, GIB)
    device.request(32 * MIB)
    assert device.work() == "ok"
    refuse(machine, MEM_GOING_OFFLINE, 2)
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert (snapshot(machine), device.callback.errors, state(machine, 32)) == (before, 0, "online")
    write(machine, "memory32/state", "offline")
