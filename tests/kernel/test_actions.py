"""The actions and what comes with them: numbers of each release, one struct a change, the two node ids."""

from __future__ import annotations

import pytest

from memhp import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_FINISH_OFFLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    MEM_PREPARE_ONLINE,
    NOTIFY_BAD,
    NOTIFY_OK,
    HotplugError,
    Machine,
    MemoryAction,
    MemoryNotify,
    NotifierBlock,
    NotifyResult,
    Rules,
    ZoneType,
)
from memhp.units import Pfn
from support import Boot, Log, rounds, with_node_1, write


@pytest.mark.fact("2.1", "13.2")
@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
def test_actions_are_bit_flags_in_6_1_and_in_the_document(rules: Rules) -> None:
    """The six actions are 1, 2, 4, 8, 16 and 32; the two of 6.12 would be 64 and 128 as flags."""
    assert {action.name: rules.number(action) for action in MemoryAction} == {
        "MEM_ONLINE": 1,
        "MEM_GOING_OFFLINE": 2,
        "MEM_OFFLINE": 4,
        "MEM_GOING_ONLINE": 8,
        "MEM_CANCEL_ONLINE": 16,
        "MEM_CANCEL_OFFLINE": 32,
        "MEM_PREPARE_ONLINE": 64,
        "MEM_FINISH_OFFLINE": 128,
    }


@pytest.mark.fact("2.1", "2.2", "13.2")
def test_actions_count_from_zero_in_6_12() -> None:
    """MEM_ONLINE is 0 in 6.12.117, so the number must not be asked for its truth; the member may."""
    assert {action.name: Rules.LINUX_6_12.number(action) for action in MemoryAction} == {
        "MEM_ONLINE": 0,
        "MEM_GOING_OFFLINE": 1,
        "MEM_OFFLINE": 2,
        "MEM_GOING_ONLINE": 3,
        "MEM_CANCEL_ONLINE": 4,
        "MEM_CANCEL_OFFLINE": 5,
        "MEM_PREPARE_ONLINE": 6,
        "MEM_FINISH_OFFLINE": 7,
    }
    assert bool(MEM_ONLINE)


class Args(list[tuple[MemoryAction, MemoryNotify]]):
    """What one callback was given, in order."""

    def __init__(self, machine: Machine, refuse: MemoryAction | None = None) -> None:
        def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
            self.append((action, arg))
            return NOTIFY_BAD if action is refuse else NOTIFY_OK

        machine.hotplug_memory_notifier(callback)


@pytest.mark.fact("2.4")
def test_one_struct_serves_the_whole_change_and_keeps_its_nids(boot: Boot) -> None:
    """GOING and done get the same struct, so at MEM_ONLINE it still says that node 1 changes although it has changed."""
    machine = with_node_1(boot, Rules.LINUX_6_1)
    seen = Args(machine)
    write(machine, "memory32/state", "online_kernel")
    write(machine, "memory32/state", "offline")

    assert [action for action, _ in seen] == [MEM_GOING_ONLINE, MEM_ONLINE, MEM_GOING_OFFLINE, MEM_OFFLINE]
    assert seen[0][1] is seen[1][1]
    assert seen[2][1] is seen[3][1]
    assert seen[1][1] == MemoryNotify(Pfn(0x100000), 0x8000, 1, 1)
    assert seen[3][1] == MemoryNotify(Pfn(0x100000), 0x8000, 1, 1)


@pytest.mark.fact("2.4")
@pytest.mark.parametrize(
    ("refuse", "cancel", "word"),
    [(MEM_GOING_ONLINE, MEM_CANCEL_ONLINE, "online"), (MEM_GOING_OFFLINE, MEM_CANCEL_OFFLINE, "offline")],
)
def test_cancel_carries_the_struct_of_going(boot: Boot, refuse: MemoryAction, cancel: MemoryAction, word: str) -> None:
    """A CANCEL says the same nids as the GOING that it ends."""
    machine = with_node_1(boot, Rules.LINUX_6_1)
    if word == "offline":
        write(machine, "memory32/state", "online")
    seen = Args(machine, refuse)
    with pytest.raises(HotplugError, match="EPERM"):
        write(machine, "memory32/state", word)

    assert [action for action, _ in seen] == [refuse, cancel]
    assert seen[0][1] is seen[1][1]
    assert seen[1][1] == MemoryNotify(Pfn(0x100000), 0x8000, 1, 1)


@pytest.mark.fact("2.5", "3.30")
def test_online_names_the_node_whose_masks_will_be_set(boot: Boot) -> None:
    """Movable first sets N_MEMORY only; the first kernel block then sets N_NORMAL_MEMORY; a third changes nothing."""
    machine = with_node_1(boot, Rules.LINUX_6_1)
    log = Log()
    machine.hotplug_memory_notifier(log.callback("cb"))
    for block, word in [(32, "online_movable"), (33, "online_kernel"), (34, "online_kernel"), (35, "online_movable")]:
        write(machine, f"memory{block}/state", word)

    assert rounds(log) == [
        "GOING_ONLINE(-1,1): cb",
        "ONLINE(-1,1): cb",
        "GOING_ONLINE(1,-1): cb",
        "ONLINE(1,-1): cb",
        "GOING_ONLINE(-1,-1): cb",
        "ONLINE(-1,-1): cb",
        "GOING_ONLINE(-1,-1): cb",
        "ONLINE(-1,-1): cb",
    ]


@pytest.mark.fact("2.6")
@pytest.mark.parametrize(
    ("online", "offline", "nids"),
    [
        (["kernel"], 32, (1, 1)),
        (["movable"], 32, (-1, 1)),
        (["kernel", "movable"], 32, (1, -1)),
        (["kernel", "movable"], 33, (-1, -1)),
        (["kernel", "kernel"], 32, (-1, -1)),
        (["movable", "movable"], 33, (-1, -1)),
        (["kernel", "kernel", "movable"], 33, (-1, -1)),
    ],
)
def test_offline_names_the_node_whose_masks_will_be_cleared(
    boot: Boot, online: list[str], offline: int, nids: tuple[int, int]
) -> None:
    """The last kernel pages clear N_NORMAL_MEMORY, the last pages of all N_MEMORY."""
    machine = with_node_1(boot, Rules.LINUX_6_1)
    for block, kind in enumerate(online, 32):
        write(machine, f"memory{block}/state", f"online_{kind}")
    seen = Args(machine)
    write(machine, f"memory{offline}/state", "offline")

    assert [(arg.status_change_nid_normal, arg.status_change_nid) for _, arg in seen] == [nids, nids]


@pytest.mark.fact("2.6")
def test_a_range_of_several_blocks_counts_as_a_whole(boot: Boot) -> None:
    """Two blocks that are all the kernel memory of the node go in one call: it is the last of it."""
    machine = with_node_1(boot, Rules.LINUX_6_1)
    for block, kind in [(32, "kernel"), (33, "kernel"), (34, "movable")]:
        write(machine, f"memory{block}/state", f"online_{kind}")
    seen = Args(machine)
    with machine.mem_hotplug():
        machine.offline_pages(0x100000, 0x10000, machine.zone(1, ZoneType.NORMAL))

    expected = MemoryNotify(Pfn(0x100000), 0x10000, 1, -1)
    assert seen == [(MEM_GOING_OFFLINE, expected), (MEM_OFFLINE, expected)]


@pytest.mark.fact("2.7", "13.5")
def test_prepare_and_finish_have_a_struct_of_their_own_that_looks_like_node_0(boot: Boot) -> None:
    """Their nids were never set and read 0; their altmap starts at the block although it has no pages; the others' is 0."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    seen = Args(machine)
    write(machine, "memory33/state", "online")
    write(machine, "memory33/state", "offline")

    outer = MemoryNotify(Pfn(0x108000), 0x8000, 0, 0, altmap_start_pfn=Pfn(0x108000), altmap_nr_pages=0)
    inner = MemoryNotify(Pfn(0x108000), 0x8000, 1, 1, altmap_start_pfn=Pfn(0), altmap_nr_pages=0)
    assert seen == [
        (MEM_PREPARE_ONLINE, outer),
        (MEM_GOING_ONLINE, inner),
        (MEM_ONLINE, inner),
        (MEM_GOING_OFFLINE, inner),
        (MEM_OFFLINE, inner),
        (MEM_FINISH_OFFLINE, outer),
    ]
    assert seen[0][1] is not seen[1][1]
