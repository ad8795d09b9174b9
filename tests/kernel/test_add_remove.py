"""Adding and removing memory: what is checked in which order, what is announced, and nodes that come and go."""

from __future__ import annotations

import errno as errnos
import logging
import re

import pytest

from memhp import (
    MEM_CANCEL_OFFLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    NOTIFY_BAD,
    DeadlockError,
    HotplugError,
    InvalidInput,
    Machine,
    MemoryAction,
    NotifyResult,
    Rules,
)
from support import (
    ALL,
    BLOCK,
    GIB,
    MEMORY,
    MIB,
    NODE,
    Boot,
    Log,
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

ROOM = 4 * GIB


def uevents(machine: Machine) -> list[str]:
    """Note the machine's uevents from now on, without the part that all devices share."""
    heard: list[str] = []
    machine.uevents.subscribe(lambda event: heard.append(str(event).replace("/devices/system/", "")))
    return heard


def iomem(machine: Machine) -> list[str]:
    """List what lies above 4 GiB."""
    return [str(resource) for resource in machine.iomem if resource.start >= ROOM]


def added(machine: Machine) -> list[str]:
    """List the entries above 4 GiB in the firmware's list."""
    return [f"{entry.start:08x}-{entry.end:08x} : {entry.type}" for entry in machine.firmware_map if entry.start >= ROOM]


def node_mask(machine: Machine, mask: str) -> str:
    return machine.tree.read(f"{NODE}/{mask}").strip()


# -- 3.D: adding


@ALL
@pytest.mark.fact("3.18", "3.23", "5.15")
def test_added_memory_is_there_and_offline(boot: Boot, rules: Rules) -> None:
    """New blocks are offline devices of the node that the caller names; iomem and the firmware map know the range."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "offline"})
    assert machine.add_memory(1, ROOM, 2 * BLOCK) == [32, 33]

    assert [state(machine, block) for block in (32, 33)] == ["offline", "offline"]
    assert machine.tree.readlink(f"{MEMORY}/memory32/node1") == "../../node/node1"
    assert machine.tree.readlink(f"{NODE}/node1/memory33") == "../../memory/memory33"
    assert iomem(machine) == ["100000000-10fffffff : System RAM"]
    assert added(machine) == ["100000000-10fffffff : System RAM"]
    assert machine.memory_total == (1 << 30) - (1 << 12) - (0x61 << 12)  # without page 0 and 0x9f..0xff


E2BIG = [(0, 0), (ROOM, 0), (ROOM, -BLOCK), ((1 << 46) - BLOCK, 2 * BLOCK), (1 << 46, BLOCK), (1 << 64, BLOCK), (-BLOCK, BLOCK)]


@ALL
@pytest.mark.fact("3.18")
@pytest.mark.parametrize(("start", "size"), E2BIG)
def test_a_range_that_can_not_be_mapped_is_e2big(boot: Boot, rules: Rules, start: int, size: int) -> None:
    """Size 0 too, and before anything else is looked at: neither overlap, nor alignment, nor node matter."""
    machine = boot("1GiB", rules=rules)
    before = snapshot(machine)
    assert refusal(machine.add_memory, 7, start, size) == "E2BIG"
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.18")
@pytest.mark.parametrize(
    ("nid", "start", "size", "errno", "why"),
    [
        (0, GIB - BLOCK, 2 * BLOCK, "EEXIST", "overlaps 00100000-3fffffff : System RAM"),
        (7, GIB - 1, 5, "EEXIST", "overlaps"),  # before alignment and node
        (7, ROOM, BLOCK - 1, "EINVAL", "not aligned to the block size"),  # before node
        (0, ROOM + MIB, BLOCK, "EINVAL", "not aligned to the block size"),
        (0, ROOM, 1, "EINVAL", "not aligned to the block size"),
        (7, ROOM, BLOCK, "EINVAL", "node 7 is not possible"),
        (-1, ROOM, BLOCK, "EINVAL", "node -1 is not possible"),
    ],
)
def test_checks_come_in_the_order_of_linux(
    boot: Boot, rules: Rules, nid: int, start: int, size: int, errno: str, why: str
) -> None:
    """Overlap, then alignment, then the node; each failure leaves everything as it was, iomem too."""
    machine = boot("1GiB", rules=rules)
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    with pytest.raises(HotplugError, match=re.escape(why)):
        machine.add_memory(nid, start, size)
    assert refusal(machine.add_memory, nid, start, size) == errno
    assert snapshot(machine) == before
    assert log == []


@ALL
@pytest.mark.fact("3.18")
def test_memory_that_is_there_already_is_eexist(boot: Boot, rules: Rules) -> None:
    """Adding the same range twice fails the second time, and the first one's blocks are unharmed."""
    machine = with_node_1(boot, rules)
    write(machine, "memory33/state", "online")
    before = snapshot(machine)
    assert refusal(machine.add_memory, 1, ROOM, BLOCK) == "EEXIST"
    assert refusal(machine.add_memory, 0, ROOM + 3 * BLOCK, 2 * BLOCK) == "EEXIST"
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.18")
def test_a_block_that_exists_without_its_resource_undoes_the_whole_add(boot: Boot, rules: Rules) -> None:
    """Creating the devices fails at the last block with EEXIST: the earlier ones are removed, the claim is released."""
    machine = with_node_1(boot, rules)
    assert machine.iomem.release_adjustable(ROOM, BLOCK)
    machine.iomem.request(ROOM, BLOCK, "System RAM")
    machine.iomem.release_adjustable(ROOM + 2 * BLOCK, BLOCK)
    before = snapshot(machine)
    machine.remove_memory(ROOM + BLOCK, BLOCK)
    removed = snapshot(machine)
    assert refusal(machine.add_memory, 1, ROOM + BLOCK, 2 * BLOCK) == "EEXIST"
    assert {**snapshot(machine), "uevents": 0} == {**removed, "uevents": 0}
    assert before != removed
    assert [str(event) for event in machine.uevents][-2:] == [
        "add@/devices/system/memory/memory33",
        "remove@/devices/system/memory/memory33",
    ]


@pytest.mark.fact("3.18")
@pytest.mark.parametrize(("start", "size"), [("4GiB", BLOCK), (ROOM, "128MiB"), (1.5, BLOCK), (None, BLOCK), (ROOM, True)])
def test_what_is_no_number_of_bytes_is_an_error_that_says_so(boot: Boot, start: object, size: object) -> None:
    """One clear error with the value; nothing is changed."""
    machine = boot("1GiB")
    before = snapshot(machine)
    with pytest.raises(InvalidInput, match="a number of bytes"):
        machine.add_memory(0, start, size)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="a number of bytes"):
        machine.remove_memory(start, size)  # type: ignore[arg-type]
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.19", "5.15")
def test_memory_of_a_driver_has_its_name_and_no_place_in_the_firmware_map(boot: Boot, rules: Rules) -> None:
    """Only plain System RAM is in /sys/firmware/memmap."""
    machine = boot(["1GiB", 0], rules=rules)
    machine.add_memory(1, ROOM, BLOCK, name="System RAM (virtio_mem)")
    assert iomem(machine) == ["100000000-107ffffff : System RAM (virtio_mem)"]
    assert added(machine) == []


@ALL
@pytest.mark.fact("3.19")
@pytest.mark.parametrize("name", ["virtio_mem", "System RAM virtio_mem", "System RAM (virtio_mem", "system ram (x)", ""])
def test_a_driver_s_name_must_have_its_form(boot: Boot, rules: Rules, name: str) -> None:
    """It begins with ``System RAM (`` and ends with ``)``, else EINVAL before any lock."""
    machine = boot("1GiB", rules=rules)
    before = snapshot(machine)
    with pytest.raises(HotplugError) as caught:
        machine.add_memory(0, ROOM, BLOCK, name=name)
    assert caught.value.errno == errnos.EINVAL
    assert snapshot(machine) == before


@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
@pytest.mark.fact("3.22", "13.8")
def test_auto_online_stops_at_the_first_failure_and_the_add_succeeds(boot: Boot, rules: Rules) -> None:
    """A veto on block 2 of 4 leaves 2, 3 and 4 offline; 3 and 4 were never notified; add_memory still returns its blocks."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "online"})
    answers: dict[MemoryAction, NotifyResult | BaseException] = {}
    log = Log()
    going = iter([None, NOTIFY_BAD])

    def act(action: MemoryAction, arg: object) -> None:
        if action is MEM_GOING_ONLINE and (answer := next(going)) is not None:
            answers[MEM_GOING_ONLINE] = answer

    three(machine, log, {0: answers}, act)
    assert machine.add_memory(1, ROOM, 4 * BLOCK) == [32, 33, 34, 35]

    assert rounds(log) == [
        "GOING_ONLINE(1,1): 200 0 -1",
        "ONLINE(1,1): 200 0 -1",
        "GOING_ONLINE(-1,-1): 200 0",
        "CANCEL_ONLINE(-1,-1): 200 0 -1",
    ]
    assert [state(machine, block) for block in range(32, 36)] == ["online", "offline", "offline", "offline"]


@ALL
@pytest.mark.fact("3.22", "4.5")
def test_auto_online_runs_after_mem_hotplug_done_under_device_hotplug_lock(boot: Boot, rules: Rules) -> None:
    """Each block is a change of its own, under the one device_hotplug_lock; all `add` were sent before the first."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "online"})
    heard = uevents(machine)
    seen: list[tuple[bool, bool, list[str]]] = []

    def act(action: MemoryAction, arg: object) -> None:
        if action is MEM_GOING_ONLINE:
            seen.append((machine.locks.device_hotplug.held(), machine.block(33).device_lock.held(), list(heard)))

    three(machine, Log(), act=act)
    machine.add_memory(1, ROOM, 2 * BLOCK)
    added = ["add@memory/memory32", "add@memory/memory33", "add@node/node1"]
    assert seen == [(True, False, added), (True, True, [*added, "online@memory/memory32"])]


@ALL
@pytest.mark.fact("3.24", "5.13")
def test_uevents_of_an_add_are_the_blocks_in_order_then_the_new_node(boot: Boot, rules: Rules) -> None:
    """A block's ``add`` fires before its link to the node exists."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "offline"})
    heard: list[tuple[str, bool, bool]] = []

    def listen(event: object) -> None:
        blocks = machine.tree.exists(f"{MEMORY}/memory32/state"), machine.tree.exists(f"{MEMORY}/memory32/node1")
        heard.append((str(event).replace("/devices/system/", ""), *blocks))

    machine.uevents.subscribe(listen)
    machine.add_memory(1, ROOM, 2 * BLOCK)
    machine.add_memory(1, ROOM + 2 * BLOCK, BLOCK)
    assert heard == [
        ("add@memory/memory32", True, False),
        ("add@memory/memory33", True, False),
        ("add@node/node1", True, False),
        ("add@memory/memory34", True, True),
    ]


@pytest.mark.fact("3.24", "4.3")
def test_nobody_can_act_on_an_added_block_before_the_add_has_ended(boot: Boot) -> None:
    """A program that answers the ``add`` uevent with a write waits for device_hotplug_lock."""
    machine = boot(["1GiB", 0], rules=Rules.LINUX_6_1)
    waiting = []

    def listen(event: object) -> None:
        if str(event).startswith("add@/devices/system/memory"):
            thread = in_thread(lambda: write(machine, "memory32/state", "online_movable"), "udev")
            until_parked(thread)
            waiting.append(thread)

    machine.uevents.subscribe(listen)
    assert machine.add_memory(1, ROOM, BLOCK) == [32]
    assert [thread.result() for thread in waiting] == [14]
    assert valid_zones(machine, 32) == "Movable"


@ALL
@pytest.mark.fact("3.44", "5.13")
def test_add_with_auto_online_is_all_adds_and_then_each_block_s_whole_sequence(boot: Boot, rules: Rules) -> None:
    """Per block, ascending, the full online sequence; uevents: all ``add`` first, then ``online`` per block."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "online_movable"})
    heard = uevents(machine)
    log = Log()
    three(machine, log)
    machine.add_memory(1, ROOM, 2 * BLOCK)

    prepare = ["PREPARE_ONLINE(0,0): 200 0 -1"] if rules is Rules.LINUX_6_12 else []
    assert rounds(log) == [
        *prepare,
        "GOING_ONLINE(-1,1): 200 0 -1",
        "ONLINE(-1,1): 200 0 -1",
        *prepare,
        "GOING_ONLINE(-1,-1): 200 0 -1",
        "ONLINE(-1,-1): 200 0 -1",
    ]
    assert heard == [
        "add@memory/memory32",
        "add@memory/memory33",
        "add@node/node1",
        "online@memory/memory32",
        "online@memory/memory33",
    ]


@pytest.mark.fact("5.21")
def test_auto_online_is_read_when_an_add_reaches_it(boot: Boot) -> None:
    """It applies to adds from now on; blocks that are there keep their state."""
    machine = with_node_1(boot, blocks=1)
    write(machine, "auto_online_blocks", "online_movable\n")
    assert state(machine, 32) == "offline"
    machine.add_memory(1, ROOM + BLOCK, BLOCK)
    assert valid_zones(machine, 33) == "Movable"

    def listen(event: object) -> None:
        write(machine, "auto_online_blocks", "online_kernel")

    machine.uevents.subscribe(listen)
    machine.add_memory(1, ROOM + 2 * BLOCK, BLOCK)
    assert valid_zones(machine, 34) == "Normal"


@ALL
@pytest.mark.fact("3.23")
def test_the_node_is_the_caller_s_word_whatever_the_address(boot: Boot, rules: Rules) -> None:
    """Blocks side by side can belong to different nodes."""
    machine = boot(["1GiB", 0], rules=rules)
    machine.add_memory(1, ROOM, BLOCK)
    machine.add_memory(0, ROOM + BLOCK, BLOCK)
    machine.add_memory(1, ROOM + 2 * BLOCK, BLOCK)
    links = [name for block in (32, 33, 34) for name in machine.tree.list(f"{MEMORY}/memory{block}") if name[:4] == "node"]
    assert links == ["node1", "node0", "node1"]


# -- 3.E: removal


@ALL
@pytest.mark.fact("3.25", "5.13", "8.3")
def test_offline_blocks_are_removed_in_order_and_the_empty_node_after_them(boot: Boot, rules: Rules) -> None:
    """``remove`` of the blocks, ascending, then of the node; nothing of them is left, and no callback is called."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "offline"})
    before = snapshot(machine)
    machine.add_memory(1, ROOM, 2 * BLOCK)
    heard = uevents(machine)
    log = Log()
    three(machine, log)
    assert machine.remove_memory(ROOM, 2 * BLOCK) == [32, 33]

    assert heard == ["remove@memory/memory32", "remove@memory/memory33", "remove@node/node1"]
    assert {**snapshot(machine), "uevents": 0} == {**before, "uevents": 0}
    assert log == []


@ALL
@pytest.mark.fact("5.13", "3.44")
def test_a_whole_life_in_uevents(boot: Boot, rules: Rules) -> None:
    """plug: add of blocks and node, online; unplug: offline, remove of blocks and node."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "online"})
    heard = uevents(machine)
    machine.add_memory(1, ROOM, 2 * BLOCK)
    write(machine, "memory32/state", "offline")
    write(machine, "memory33/state", "offline")
    machine.remove_memory(ROOM, 2 * BLOCK)
    assert heard == [
        "add@memory/memory32",
        "add@memory/memory33",
        "add@node/node1",
        "online@memory/memory32",
        "online@memory/memory33",
        "offline@memory/memory32",
        "offline@memory/memory33",
        "remove@memory/memory32",
        "remove@memory/memory33",
        "remove@node/node1",
    ]


@ALL
@pytest.mark.fact("3.25")
def test_a_block_that_is_not_offline_keeps_the_whole_range(boot: Boot, rules: Rules) -> None:
    """EBUSY, naming the block, and nothing is changed."""
    machine = with_node_1(boot, rules)
    write(machine, "memory34/state", "online")
    before = snapshot(machine)
    with pytest.raises(HotplugError, match="memory34 is online") as caught:
        machine.remove_memory(ROOM, 4 * BLOCK)
    assert (caught.value.errno, caught.value.block) == (16, 34)
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.25")
@pytest.mark.parametrize(("start", "size"), [(ROOM, 0), (ROOM + 1, BLOCK), (ROOM, BLOCK + 4096), (ROOM, -BLOCK), (-BLOCK, BLOCK)])
def test_a_misaligned_or_empty_removal_is_an_error_not_a_bug(boot: Boot, rules: Rules, start: int, size: int) -> None:
    """Where the kernel stops with BUG() here is an error with the value, and nothing is changed."""
    machine = with_node_1(boot, rules)
    before = snapshot(machine)
    with pytest.raises(InvalidInput, match="whole blocks"):
        machine.remove_memory(start, size)
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.26")
def test_removing_a_range_where_nothing_is_succeeds_with_a_warning(
    boot: Boot, rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    """Absent blocks are passed over."""
    machine = with_node_1(boot, rules)
    before = snapshot(machine)
    with caplog.at_level(logging.WARNING, "memhp.kernel"):
        assert machine.remove_memory(8 * GIB, 2 * BLOCK) == []
    assert "2 of 2 blocks of the range do not exist" in caplog.text
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("3.26")
def test_a_half_empty_range_loses_its_half(boot: Boot, rules: Rules) -> None:
    """Blocks that exist in the range go."""
    machine = with_node_1(boot, rules)
    assert machine.remove_memory(ROOM + 3 * BLOCK, 2 * BLOCK) == [35]
    assert sorted(machine.blocks)[-3:] == [32, 33, 34]


@ALL
@pytest.mark.fact("3.27")
def test_a_removal_over_several_resources_leaves_them_all_in_iomem(boot: Boot, rules: Rules) -> None:
    """The blocks go, the entries stay, and a later add there is EEXIST."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "offline"})
    machine.add_memory(1, ROOM, BLOCK)
    machine.add_memory(1, ROOM + BLOCK, BLOCK)
    assert machine.remove_memory(ROOM, 2 * BLOCK) == [32, 33]
    assert iomem(machine) == ["100000000-107ffffff : System RAM", "108000000-10fffffff : System RAM"]
    assert refusal(machine.add_memory, 1, ROOM, BLOCK) == "EEXIST"
    assert refusal(machine.add_memory, 1, ROOM, 2 * BLOCK) == "EEXIST"


@ALL
@pytest.mark.fact("3.27")
def test_a_removal_trims_the_one_resource_that_contains_it(boot: Boot, rules: Rules) -> None:
    """Taken from the middle, two pieces stay; the room in between can be used again."""
    machine = with_node_1(boot, rules)
    machine.remove_memory(ROOM + BLOCK, BLOCK)
    assert iomem(machine) == ["100000000-107ffffff : System RAM", "110000000-11fffffff : System RAM"]
    machine.remove_memory(ROOM, BLOCK)
    assert iomem(machine) == ["110000000-11fffffff : System RAM"]
    assert machine.add_memory(1, ROOM, 2 * BLOCK) == [32, 33]


@ALL
@pytest.mark.fact("3.29", "5.17")
@pytest.mark.parametrize("file", ["state", "online"])
def test_a_file_held_open_across_removal_is_enodev(boot: Boot, rules: Rules, file: str) -> None:
    """On read and on write; the path itself is gone (ENOENT)."""
    machine = with_node_1(boot, rules)
    reading = machine.tree.open(f"{MEMORY}/memory32/{file}")
    writing = machine.tree.open(f"{MEMORY}/memory32/{file}", writing=True)
    machine.remove_memory(ROOM, 4 * BLOCK)
    assert refusal(reading.read) == "ENODEV"
    assert refusal(writing.write, "online") == "ENODEV"
    assert refusal(writing.write, "bogus") == "ENODEV"
    assert refusal(machine.tree.open, f"{MEMORY}/memory32/{file}") == "ENOENT"
    assert refusal(machine.tree.read, f"{MEMORY}/memory32/{file}") == "ENOENT"


@ALL
@pytest.mark.fact("3.29")
def test_an_old_file_does_not_come_back_to_life_with_a_new_block(boot: Boot, rules: Rules) -> None:
    """The same block added again is a new device; the old file stays ENODEV and changes nothing."""
    machine = with_node_1(boot, rules)
    old = machine.tree.open(f"{MEMORY}/memory32/state", writing=True)
    machine.remove_memory(ROOM, 4 * BLOCK)
    machine.add_memory(1, ROOM, 4 * BLOCK)
    assert refusal(old.write, "online") == "ENODEV"
    assert state(machine, 32) == "offline"


@pytest.mark.fact("3.29", "4.3", "5.17")
def test_a_write_that_waits_while_its_block_is_removed_is_enodev(boot: Boot) -> None:
    """It waited for device_hotplug_lock, and finds the device gone."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    with another_reads(machine):
        remover = in_thread(lambda: machine.remove_memory(ROOM, 4 * BLOCK), "remover")
        until_parked(remover)  # it holds device_hotplug_lock, and has not deleted anything yet
        writers = [in_thread(lambda: refusal(write, machine, "memory34/state", "online"), "writer")]
        writers += [in_thread(lambda: refusal(write, machine, "memory35/online", "1"), "writer")]
        for writer in writers:
            until_parked(writer)
    assert remover.result() == [32, 33, 34, 35]
    assert [writer.result() for writer in writers] == ["ENODEV", "ENODEV"]


@ALL
@pytest.mark.fact("3.4")
def test_a_block_that_does_not_exist_is_enodev_and_its_files_enoent(boot: Boot, rules: Rules) -> None:
    """A request by id says ENODEV, a path ENOENT."""
    machine = boot("1GiB", rules=rules)
    assert refusal(machine.device_online, 99) == "ENODEV"
    assert refusal(machine.device_offline, 99) == "ENODEV"
    assert refusal(write, machine, "memory99/state", "online") == "ENOENT"


@pytest.mark.parametrize("kind", ["offline", "bogus", "", "ONLINE", 3])
def test_an_online_type_that_is_none_is_an_error_that_says_so(boot: Boot, kind: object) -> None:
    """The machine is unchanged."""
    machine = with_node_1(boot)
    before = snapshot(machine)
    with pytest.raises(InvalidInput, match="online, online_kernel or online_movable"):
        machine.device_online(32, kind)  # type: ignore[arg-type]
    assert snapshot(machine) == before


# -- 8: nodes


@ALL
@pytest.mark.fact("8.1")
def test_node_masks_print_lists(boot: Boot, rules: Rules) -> None:
    """``0-1``, ``0,2-3``, or nothing."""
    machine = boot([{"memory": "1GiB", "cpus": 2}, 0, "1GiB", {"memory": "1GiB", "cpus": 1}], rules=rules)
    masks = ["possible", "online", "has_memory", "has_normal_memory", "has_cpu"]
    assert [machine.tree.read(f"{NODE}/{mask}") for mask in masks] == ["0-3\n", "0,2-3\n", "0,2-3\n", "0,2-3\n", "0,3\n"]
    assert boot("1GiB").tree.read(f"{NODE}/has_cpu") == "\n"


def masks(machine: Machine) -> tuple[str, str, str, bool]:
    """Give online, has_memory, has_normal_memory, and whether node 1 is a device."""
    names = node_mask(machine, "online"), node_mask(machine, "has_memory"), node_mask(machine, "has_normal_memory")
    return *names, machine.tree.exists(f"{NODE}/node1")


@ALL
@pytest.mark.fact("8.2", "8.3")
def test_a_node_comes_with_its_first_block_and_goes_with_its_last(boot: Boot, rules: Rules) -> None:
    """Online with the first block added, memory with the first online, none after the last offline, gone after removal."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "offline"})
    seen = [masks(machine)]
    machine.add_memory(1, ROOM, 2 * BLOCK)
    seen.append(masks(machine))
    write(machine, "memory32/state", "online_movable")
    seen.append(masks(machine))
    write(machine, "memory33/state", "online_kernel")
    seen.append(masks(machine))
    write(machine, "memory33/state", "offline")
    write(machine, "memory32/state", "offline")
    seen.append(masks(machine))
    machine.remove_memory(ROOM, BLOCK)
    seen.append(masks(machine))
    machine.remove_memory(ROOM + BLOCK, BLOCK)
    seen.append(masks(machine))
    assert seen == [
        ("0", "0", "0", False),
        ("0-1", "0", "0", True),
        ("0-1", "0-1", "0", True),
        ("0-1", "0-1", "0-1", True),
        ("0-1", "0", "0", True),
        ("0-1", "0", "0", True),
        ("0", "0", "0", False),
    ]


@ALL
@pytest.mark.fact("8.3")
def test_a_node_with_a_cpu_stays_when_its_memory_goes(boot: Boot, rules: Rules) -> None:
    """It is there before its memory, and is silently kept."""
    machine = boot(["1GiB", {"cpus": 1}], rules=rules, parameters={"memhp_default_state": "offline"})
    assert masks(machine) == ("0-1", "0", "0", True)
    machine.add_memory(1, ROOM, BLOCK)
    heard = uevents(machine)
    machine.remove_memory(ROOM, BLOCK)
    assert heard == ["remove@memory/memory32"]
    assert masks(machine) == ("0-1", "0", "0", True)


@ALL
@pytest.mark.fact("8.4", "8.3")
def test_the_node_that_is_tried_is_that_of_the_last_block(boot: Boot, rules: Rules) -> None:
    """A range over two nodes drops the last one's; the other stays as an empty node."""
    machine = boot(["1GiB", 0, 0], rules=rules, parameters={"memhp_default_state": "offline"})
    machine.add_memory(1, ROOM, BLOCK)
    machine.add_memory(2, ROOM + BLOCK, BLOCK)
    heard = uevents(machine)
    machine.remove_memory(ROOM, 2 * BLOCK)
    assert heard == ["remove@memory/memory32", "remove@memory/memory33", "remove@node/node2"]
    assert node_mask(machine, "online") == "0-1"


@ALL
@pytest.mark.fact("8.2", "3.29")
def test_a_file_of_a_node_held_open_across_its_end_is_enodev(boot: Boot, rules: Rules) -> None:
    """The node's device goes like a block's."""
    machine = with_node_1(boot, rules)
    distance = machine.tree.open(f"{NODE}/node1/distance")
    assert distance.read() == "20 10\n"
    machine.remove_memory(ROOM, 4 * BLOCK)
    assert refusal(distance.read) == "ENODEV"


@ALL
def test_memory_can_come_and_go_again_and_again(boot: Boot, rules: Rules) -> None:
    """After any number of rounds everything is as it was at the beginning."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "online"})
    before = {**snapshot(machine), "uevents": 0}
    for _ in range(3):
        machine.add_memory(1, ROOM, 2 * BLOCK)
        for block in (33, 32):
            write(machine, f"memory{block}/online", "0")
        machine.remove_memory(ROOM, 2 * BLOCK)
        assert {**snapshot(machine), "uevents": 0} == before


@pytest.mark.parametrize("size", [BLOCK, 3 * BLOCK])
def test_next_room_finds_the_lowest_gap(boot: Boot, size: int) -> None:
    """A gap that is large enough is used before the end."""
    machine = boot(["1GiB", 0], room="1GiB")
    machine.add_memory(1, ROOM, BLOCK)
    machine.add_memory(1, ROOM + 2 * BLOCK, BLOCK)
    assert machine.next_room(size) == {BLOCK: ROOM + BLOCK, 3 * BLOCK: ROOM + 3 * BLOCK}[size]
    assert refusal(machine.next_room, 6 * BLOCK) == "ENOSPC"


@ALL
def test_a_removal_that_would_wait_for_itself_changes_nothing(boot: Boot, rules: Rules) -> None:
    """Who reads memory can't remove any; the devices, the claim and the firmware's entry stay."""
    machine = with_node_1(boot, rules, lockdep=False)  # to take the locks in this order is what lockdep would report
    before = snapshot(machine)
    with machine.online_mems(), pytest.raises(DeadlockError):
        machine.remove_memory(ROOM, 4 * BLOCK)
    assert snapshot(machine) == before
    machine.remove_memory(ROOM, 4 * BLOCK)


def test_the_blocks_can_be_read_while_others_come_and_go(boot: Boot) -> None:
    """A reader has the dictionary as it was, whole."""
    machine = with_node_1(boot)
    seen = iter(machine.blocks.items())
    next(seen)
    machine.remove_memory(ROOM, 4 * BLOCK)
    assert len(list(seen)) == len(machine.blocks) + 3


def test_an_interrupt_in_auto_online_is_raised_and_the_memory_is_there(boot: Boot) -> None:
    """Ctrl-C in a callback of the automatic online ends that, not the add that is done."""
    machine = boot("1GiB", parameters={"memhp_default_state": "online"})
    three(machine, Log(), {0: {MEM_GOING_ONLINE: KeyboardInterrupt()}})
    with pytest.raises(KeyboardInterrupt):
        machine.add_memory(0, ROOM, 2 * BLOCK)
    assert [state(machine, 32), state(machine, 33)] == ["offline", "offline"]
    machine.remove_memory(ROOM, 2 * BLOCK)


def test_an_interrupt_that_waited_comes_with_the_request_that_failed(boot: Boot) -> None:
    """It is not kept for the next one."""
    machine = with_node_1(boot)
    write(machine, "memory32/state", "online")
    answers: dict[MemoryAction, NotifyResult | BaseException] = {
        MEM_GOING_OFFLINE: NOTIFY_BAD,
        MEM_CANCEL_OFFLINE: KeyboardInterrupt(),
    }
    three(machine, Log(), {0: answers})
    with pytest.raises(KeyboardInterrupt):
        write(machine, "memory32/state", "offline")
    answers.clear()
    write(machine, "memory32/state", "offline")
