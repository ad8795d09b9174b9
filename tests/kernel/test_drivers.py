"""Drivers that add memory and take it away: dax/kmem, DLPAR, s390 standby memory, balloons; by the facts, their source."""

from __future__ import annotations

import pytest

from memhp import (
    MEM_FINISH_OFFLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    MEM_PREPARE_ONLINE,
    NOTIFY_BAD,
    NOTIFY_OK,
    HotplugError,
    InvalidInput,
    Machine,
    MemoryAction,
    MemoryNotify,
    MhpFlags,
    NotifierBlock,
    NotifyResult,
    Rules,
    Vetoed,
)
from memhp.errors import errno_name
from memhp.kernel.drivers import DaxKmem, Dlpar, HyperVBalloon, Lmb, SclpMemory, XenBalloon
from memhp.kernel.holdings import Allocation
from memhp.units import Pfn
from support import (
    ALL,
    BLOCK,
    GIB,
    MIB,
    Boot,
    Log,
    another_reads,
    in_thread,
    refusal,
    snapshot,
    state,
    until_parked,
    valid_zones,
    write,
)

ROOM = 4 * GIB
PAGES = BLOCK >> 12


def make(boot: Boot, rules: Rules, default: str = "offline", **options: str) -> Machine:
    names = {f"memory_hotplug.{name}": value for name, value in options.items()}
    return boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": default, **names})


def refuse(machine: Machine, action: MemoryAction, *numbers: int) -> list[int]:
    """Refuse an action for some blocks; the list can be changed."""
    blocks = list(numbers)

    def callback(block: NotifierBlock, seen: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        return NOTIFY_BAD if seen is action and machine.block_id_of(arg.start_pfn) in blocks else NOTIFY_OK

    machine.hotplug_memory_notifier(callback)
    return blocks


def above(machine: Machine) -> list[str]:
    return [line for line in str(machine.iomem).splitlines() if int(line.split("-")[0], 16) >= ROOM]


# -- dax/kmem


@ALL
@pytest.mark.fact("10.5", "6.9")
def test_a_dax_device_becomes_memory_of_a_static_group(boot: Boot, rules: Rules) -> None:
    """Each range is trimmed to whole blocks; it is a child of the device's claim, and a driver's memory."""
    machine = make(boot, rules)
    device = DaxKmem(machine, 1, [(ROOM + MIB, 3 * BLOCK), (ROOM + 4 * BLOCK, BLOCK), (ROOM + 6 * BLOCK + MIB, BLOCK)])
    device.probe()
    assert above(machine) == [
        "108000000-117ffffff : dax0.0",
        "  108000000-117ffffff : System RAM (kmem)",
        "120000000-127ffffff : dax0.0",
        "  120000000-127ffffff : System RAM (kmem)",
    ]
    [group] = machine.groups
    assert (group.nid, group.max_pages, sorted(group.blocks)) == (1, 3 * PAGES, [33, 34, 36])
    assert [entry.start for entry in machine.firmware_map if entry.start >= ROOM] == []
    device.unbind()
    assert (above(machine), device.leaked) == ([], False)


@ALL
@pytest.mark.parametrize(("small", "groups"), [(False, 0), (True, 1)])
@pytest.mark.fact("10.5", "9.2a")
def test_the_group_goes_if_every_range_was_used_and_went(boot: Boot, rules: Rules, small: bool, groups: int) -> None:  # noqa: FBT001
    """A range that was too small counts as one that stays; then the node's memory is slow memory for good, too."""
    machine = make(boot, rules)
    ranges = [(ROOM, BLOCK), (ROOM + 2 * BLOCK, BLOCK), *([(ROOM + 4 * BLOCK + MIB, BLOCK)] if small else [])]
    device = DaxKmem(machine, 1, ranges)
    device.probe()
    device.unbind()
    assert (above(machine), len(list(machine.groups))) == ([], groups)
    machine.add_memory(1, ROOM, BLOCK)
    write(machine, "memory32/state", "online_movable")
    assert machine.tiers.nodes == ({4: {0}, 22: {1}} if small else {4: {0, 1}})


@ALL
@pytest.mark.fact("10.5")
def test_a_range_that_fails_after_another_worked_is_passed_over(
    boot: Boot, rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    """But if the first one fails, the device does, and nothing is left behind."""
    machine = make(boot, rules)
    machine.add_memory(0, ROOM + 2 * BLOCK, BLOCK)
    first = DaxKmem(machine, 1, [(ROOM, BLOCK), (ROOM + 2 * BLOCK, BLOCK), (ROOM + 4 * BLOCK, BLOCK)])
    first.probe()
    assert [claim.start for claim in first.claims] == [ROOM, ROOM + 4 * BLOCK]
    assert "are not used" in caplog.text
    before = snapshot(machine)
    second = DaxKmem(machine, 1, [(ROOM + 2 * BLOCK, BLOCK), (ROOM + 8 * BLOCK, BLOCK)], name="dax1.0")
    assert refusal(second.probe) == "EBUSY"
    assert refusal(DaxKmem(machine, 7, [(ROOM + 8 * BLOCK, BLOCK)]).probe) == "EINVAL"
    assert refusal(DaxKmem(machine, -1, [(ROOM + 8 * BLOCK, BLOCK)]).probe) == "EINVAL"
    assert refusal(DaxKmem(machine, 1, [(ROOM + 8 * BLOCK + MIB, BLOCK)]).probe) == "EINVAL"
    assert refusal(DaxKmem(machine, 1, [(1 << 46, BLOCK)]).probe) == "EBUSY"
    assert (snapshot(machine), len(list(machine.groups))) == (before, 1)


@ALL
@pytest.mark.fact("10.5")
def test_a_range_with_a_block_online_leaks_at_unbind(boot: Boot, rules: Rules) -> None:
    """The others go; the group stays for what is left."""
    machine = make(boot, rules)
    device = DaxKmem(machine, 1, [(ROOM, 2 * BLOCK), (ROOM + 4 * BLOCK, BLOCK)])
    device.probe()
    write(machine, "memory33/state", "online_movable")
    device.unbind()
    assert (device.leaked, sorted(machine.nodes[1].linked), len(list(machine.groups))) == (True, [32, 33], 1)


@ALL
@pytest.mark.fact("10.5")
def test_a_device_that_is_bound_is_not_bound_again(boot: Boot, rules: Rules) -> None:
    """EBUSY, and its group and what its node counts stay its own, so all of it goes when it is unbound: once."""
    machine = make(boot, rules)
    device = DaxKmem(machine, 1, [(ROOM, BLOCK)])
    assert refusal(device.unbind) == "ENODEV"
    device.probe()
    before = snapshot(machine)
    assert refusal(device.probe) == "EBUSY"
    assert (snapshot(machine), [sorted(group.blocks) for group in machine.groups]) == (before, [[32]])
    device.unbind()
    assert (list(machine.groups), refusal(device.unbind)) == ([], "ENODEV")
    machine.add_memory(1, ROOM, BLOCK)
    write(machine, "memory32/state", "online_movable")
    assert machine.tiers.nodes == {4: {0, 1}}


@ALL
@pytest.mark.fact("10.5", "10.5i")
def test_the_model_warns_where_unbinding_after_a_range_was_passed_over_crashes(
    boot: Boot, rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    """The range leaked, so it was passed over at the next bind; with its block offline a kernel would use the claim of nobody."""
    machine = make(boot, rules)
    device = DaxKmem(machine, 1, [(ROOM, BLOCK), (ROOM + 2 * BLOCK, BLOCK)])
    device.probe()
    write(machine, "memory34/state", "online_movable")
    device.unbind()
    device.probe()
    assert ([claim.start for claim in device.claims], device.crashes_unbind()) == ([ROOM], False)
    write(machine, "memory34/state", "offline")
    assert device.crashes_unbind()
    assert "a real kernel" not in caplog.text
    device.unbind()
    assert "dax0.0: a real kernel crashes now" in caplog.text
    assert (sorted(machine.nodes[1].linked), device.claims) == ([34], [])


@pytest.mark.fact("10.5", "3.20")
def test_since_6_12_a_dax_device_may_hold_its_own_memmap(boot: Boot) -> None:
    """If it is told to; before, the option has no effect."""
    for rules, pages in ((Rules.LINUX_6_1, 0), (Rules.LINUX_6_12, 512)):
        machine = make(boot, rules, memmap_on_memory="y")
        DaxKmem(machine, 1, [(ROOM, 2 * BLOCK)], memmap_on_memory=True).probe()
        assert [machine.block(number).altmap_pages for number in (32, 33)] == [pages, pages]


@ALL
@pytest.mark.parametrize("action", [MEM_ONLINE, MEM_GOING_ONLINE])
def test_ctrl_c_that_comes_too_late_does_not_take_a_claim_from_its_memory(boot: Boot, rules: Rules, action: MemoryAction) -> None:
    """The memory is added, so Ctrl-C in its automatic online waits until the device is bound."""
    machine = make(boot, rules, default="online_movable")
    device = DaxKmem(machine, 1, [(ROOM, BLOCK), (ROOM + 2 * BLOCK, BLOCK)])
    interrupts = [KeyboardInterrupt()]

    def callback(block: NotifierBlock, heard: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if heard is action and interrupts:
            raise interrupts.pop()
        return NOTIFY_OK

    machine.hotplug_memory_notifier(callback)
    with pytest.raises(KeyboardInterrupt):
        device.probe()
    assert [claim.start for claim in device.claims] == [ROOM, ROOM + 2 * BLOCK]
    assert above(machine)[::2] == ["100000000-107ffffff : dax0.0", "110000000-117ffffff : dax0.0"]


@ALL
def test_a_group_with_memory_of_others_stays_when_the_device_goes(boot: Boot, rules: Rules) -> None:
    """Whoever used its number keeps it; Linux does not look at the answer either."""
    machine = make(boot, rules)
    device = DaxKmem(machine, 1, [(ROOM, BLOCK)])
    device.probe()
    machine.add_memory(0, 2 * ROOM, BLOCK, flags=MhpFlags.NID_IS_MGID)
    device.unbind()
    assert (device.claims, sorted(machine.nodes[1].linked), [sorted(group.blocks) for group in machine.groups]) == (
        [],
        [64],
        [[64]],
    )


# -- DLPAR


def partition(boot: Boot, rules: Rules, count: int = 4) -> tuple[Machine, Dlpar]:
    """Boot a partition with LMBs 0x80000000, ... that it could have at 4 GiB, on node 1."""
    machine = make(boot, rules)
    return machine, Dlpar(machine, [Lmb(0x80000000 + n, ROOM + n * BLOCK, 1) for n in range(count)])


def dlpar(machine: Machine, text: str) -> int:
    return machine.tree.write("/sys/kernel/dlpar", text)


def assigned(driver: Dlpar) -> str:
    return "".join("#" if lmb.assigned else "." for lmb in driver.lmbs)


@ALL
@pytest.mark.fact("10.9", "10.10", "4.8")
def test_lmbs_come_online_whatever_auto_online_blocks_says(boot: Boot, rules: Rules) -> None:
    """By count, by index, and as a range; and they leave in the same ways, online or not."""
    machine, driver = partition(boot, rules)
    assert machine.tree.read("/sys/kernel/dlpar") == ("memory,cpu,dt\n" if rules is Rules.LINUX_6_12 else "memory,cpu\n")
    assert dlpar(machine, "memory add count 2 and more\n") == 28
    assert ([state(machine, number) for number in (32, 33)], assigned(driver)) == (["online", "online"], "##..")
    dlpar(machine, "memory add index 0x80000003")
    assert assigned(driver) == "##.#"
    dlpar(machine, "memory remove indexed-count 2 2147483649")
    assert assigned(driver) == "#..#"
    dlpar(machine, "memory add indexed-count 4 0x80000000")
    assert (assigned(driver), driver.device_tree_updates) == ("####", 4)
    write(machine, "memory33/state", "offline")
    dlpar(machine, "memory remove index 0x80000001")
    dlpar(machine, "memory remove count 3")
    assert (assigned(driver), sorted(machine.nodes[1].linked)) == ("....", [])


@ALL
@pytest.mark.fact("10.9", "10.11")
def test_malformed_requests_are_einval_and_change_nothing(boot: Boot, rules: Rules) -> None:
    """So are a count of 0, more than there are, and an index that isn't there."""
    machine, driver = partition(boot, rules)
    driver.lmbs[3].reserved = True
    before = snapshot(machine)
    wrong = [
        "",
        "memory",
        "memory add",
        "memory add count",
        "memory add count x",
        "memory add 2",
        "cpu add count 1",
        "memory Add count 1",
    ]
    wrong += [
        "memory  add count 1",
        "memory add count  1",
        "memory add indexed-count 1",
        "memory add count -1",
        f"memory add count {1 << 32}",
    ]
    wrong += [
        "memory add count 0",
        "memory add count 4",
        "memory add index 5",
        "memory remove count 1",
        "memory remove index 0x80000000",
    ]
    wrong += ["memory add indexed-count 2 0x80000002", "memory add indexed-count 5 0x80000000", "memory remove indexed-count 1 9"]
    wrong += ["memory add indexed-count 0 0x80000000", "memory remove indexed-count 0 0x80000000"]
    assert [refusal(driver.write, text) for text in wrong] == ["EINVAL"] * len(wrong)
    assert (snapshot(machine), driver.device_tree_updates) == (before, 0)


@ALL
@pytest.mark.fact("10.11")
def test_by_count_lmbs_that_fail_are_passed_over_and_too_few_are_undone(boot: Boot, rules: Rules) -> None:
    """The errno is EINVAL whatever went wrong; a failed online takes its memory away again."""
    machine, driver = partition(boot, rules)
    blocks = refuse(machine, MEM_GOING_ONLINE, 33)
    dlpar(machine, "memory add count 2")
    assert assigned(driver) == "#.#."
    assert 33 not in machine.blocks
    blocks.append(35)
    assert refusal(dlpar, machine, "memory add count 2") == "EINVAL"
    assert assigned(driver) == "#.#."
    blocks.clear()
    refuse(machine, MEM_GOING_OFFLINE, 34)
    dlpar(machine, "memory add count 2")
    assert refusal(dlpar, machine, "memory remove count 4") == "EINVAL"
    assert (assigned(driver), [state(machine, number) for number in range(32, 36)]) == ("####", ["online"] * 4)
    dlpar(machine, "memory remove count 3")
    assert assigned(driver) == "..#."


@ALL
@pytest.mark.fact("10.11")
def test_by_index_the_errno_is_that_of_what_went_wrong(boot: Boot, rules: Rules) -> None:
    """EPERM from a callback, EBUSY from a page, EEXIST from other memory."""
    machine, driver = partition(boot, rules)
    blocks = refuse(machine, MEM_GOING_ONLINE, 32)
    assert refusal(dlpar, machine, "memory add index 0x80000000") == "EPERM"
    blocks.clear()
    machine.add_memory(1, ROOM + BLOCK, BLOCK)
    assert refusal(dlpar, machine, "memory add index 0x80000001") == "EEXIST"
    dlpar(machine, "memory add index 0x80000000")
    machine.alloc_pages(1, "unmovable", blocks=[32])
    assert refusal(dlpar, machine, "memory remove index 0x80000000") == "EBUSY"
    assert assigned(driver) == "#..."
    refusing = Dlpar(machine, [Lmb(1, ROOM + 8 * BLOCK)], acquire=lambda lmb: False)
    assert refusal(refusing.write, "memory add index 1") == "EIO"


@ALL
@pytest.mark.parametrize("nid", [7, -1])
@pytest.mark.fact("10.10")
def test_an_lmb_of_a_node_that_is_not_possible_comes_to_the_first_one_that_is_online(boot: Boot, rules: Rules, nid: int) -> None:
    """Node 1 is possible, and not online yet."""
    machine = make(boot, rules)
    driver = Dlpar(machine, [Lmb(1, ROOM, nid)])
    driver.write("memory add index 1")
    assert (assigned(driver), 32 in machine.nodes[0].linked) == ("#", True)


@pytest.mark.parametrize(("text", "errno"), [("index 0x80000000", "EPERM"), ("indexed-count 1 0x80000000", "EINVAL")])
def test_an_lmb_that_stays_online_when_mem_online_is_refused_is_assigned(
    boot: Boot, caplog: pytest.LogCaptureFixture, text: str, errno: str
) -> None:
    """As documented, the refusal takes it offline, but somebody keeps a page; the error says so, and the LMB can be removed."""
    machine, driver = partition(boot, Rules.DOCUMENTED)

    def keep(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is not MEM_ONLINE:
            return NOTIFY_OK
        held.append(machine.alloc_pages(1, "unmovable", blocks=[32]))
        return NOTIFY_BAD

    held: list[Allocation] = []
    callback = machine.hotplug_memory_notifier(keep)
    with pytest.raises(HotplugError) as error:
        driver.write(f"memory add {text}")
    refused = error.value if isinstance(error.value, Vetoed) else error.value.__cause__
    assert isinstance(refused, Vetoed)
    assert (errno_name(error.value.errno or 0), refused.undone, refused.callback) == (errno, False, callback)
    assert (assigned(driver), state(machine, 32)) == ("#...", "online")
    assert "LMB 0x80000000 stays" in caplog.text
    callback.unregister()
    machine.free_pages(held[0])
    dlpar(machine, "memory remove index 0x80000000")
    dlpar(machine, "memory add index 0x80000000")
    assert assigned(driver) == "#..."


@pytest.mark.parametrize(
    ("lmbs", "message"),
    [
        ([Lmb(1, ROOM + 4096)], "lmbs: start: '0x100001000' is not valid; expected a multiple of 0x8000000"),
        ([Lmb(1, -BLOCK)], "lmbs: start: '-0x8000000' is not valid; expected a multiple of 0x8000000"),
        ([Lmb(1, ROOM), Lmb(2, ROOM)], "lmbs: start: '0x100000000' is not valid; expected a multiple of 0x8000000 that no other"),
        ([Lmb(1, ROOM), Lmb(1, ROOM + BLOCK)], "lmbs: drc_index: '0x1' is not valid; expected a number of 32 bits that no other"),
        ([Lmb(1 << 32, ROOM)], "lmbs: drc_index: '0x100000000' is not valid; expected a number of 32 bits"),
        ([Lmb("1", ROOM)], "lmbs: drc_index: '1' is not valid; expected the number of an LMB"),  # type: ignore[arg-type]
        ([Lmb(1, ROOM, None)], "lmbs: nid: None is not valid; expected the number of a node"),  # type: ignore[arg-type]
        ("12", "lmbs: '1' is not valid; expected an Lmb"),
    ],
)
def test_lmbs_that_a_partition_can_not_have(boot: Boot, lmbs: list[Lmb], message: str) -> None:
    """The error says which and why, before there is a file; a request could take such a one offline and go no further."""
    machine = make(boot, Rules.LINUX_6_12)
    with pytest.raises(InvalidInput) as error:
        Dlpar(machine, lmbs)
    assert message in str(error.value)
    assert not machine.tree.exists("/sys/kernel/dlpar")


@ALL
@pytest.mark.fact("10.11")
def test_a_range_stops_at_the_first_failure_and_is_undone(boot: Boot, rules: Rules) -> None:
    """LMBs that are as they should be are passed over; a failed removal hints the hypervisor at those it puts back."""
    machine, driver = partition(boot, rules)
    dlpar(machine, "memory add index 0x80000001")
    blocks = refuse(machine, MEM_GOING_ONLINE, 35)
    assert refusal(dlpar, machine, "memory add indexed-count 4 0x80000000") == "EINVAL"
    assert assigned(driver) == ".#.."
    blocks.clear()
    dlpar(machine, "memory add indexed-count 4 0x80000000")
    refuse(machine, MEM_GOING_OFFLINE, 34)
    assert refusal(dlpar, machine, "memory remove indexed-count 4 0x80000000") == "EINVAL"
    assert (assigned(driver), driver.hints) == ("####", [0x80000000, 0x80000001])


@ALL
@pytest.mark.fact("10.11")
def test_what_could_not_be_undone_is_named(boot: Boot, rules: Rules) -> None:
    """The kernel says so in its log alone; the block that may not leave stays, and its LMB with it."""
    machine, driver = partition(boot, rules)
    refuse(machine, MEM_GOING_ONLINE, 34)
    refuse(machine, MEM_GOING_OFFLINE, 32)
    with pytest.raises(HotplugError, match="LMB 0x80000002 failed, and LMB 0x80000000 could not be undone"):
        driver.write("memory add indexed-count 4 0x80000000")
    assert (assigned(driver), sorted(machine.nodes[1].linked)) == ("#...", [32])


@ALL
@pytest.mark.parametrize("text", ["memory add count 3", "memory add indexed-count 3 0x80000000"])
def test_ctrl_c_undoes_what_a_request_has_done(boot: Boot, rules: Rules, text: str) -> None:
    """In a callback of the third LMB, and once more while the first one leaves again."""
    machine, driver = partition(boot, rules)
    before = snapshot(machine, files=False)
    interrupts = [(MEM_OFFLINE, 32), (MEM_GOING_ONLINE, 34)]

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if interrupts and (action, machine.block_id_of(arg.start_pfn)) == interrupts[-1]:
            interrupts.pop()
            raise KeyboardInterrupt
        return NOTIFY_OK

    machine.hotplug_memory_notifier(callback)
    with pytest.raises(KeyboardInterrupt):
        driver.write(text)
    after = snapshot(machine, files=False)
    assert (assigned(driver), interrupts, after | {"uevents": 0}) == ("....", [], before | {"uevents": 0})


@pytest.mark.fact("4.5", "10.9")
def test_one_lock_covers_a_whole_dlpar_request(boot: Boot) -> None:
    """A write to a block waits for both LMBs."""
    machine, driver = partition(boot, Rules.LINUX_6_1)
    with another_reads(machine):
        request = in_thread(lambda: dlpar(machine, "memory add count 2"), "dlpar")
        until_parked(request)
        writer = in_thread(lambda: write(machine, "memory3/state", "offline"), "writer")
        until_parked(writer)
        assert assigned(driver) == "...."
    assert (request.result(), writer.result()) == (18, 7)


# -- s390 standby memory


@pytest.mark.parametrize("rules", [Rules.DOCUMENTED, Rules.LINUX_6_1])
@pytest.mark.fact("10.8")
def test_before_6_12_standby_memory_is_backed_from_going_online_to_offline(boot: Boot, rules: Rules) -> None:
    """It is on node 0, block by block; a refusal by somebody else unassigns it again."""
    machine = make(boot, rules)
    memory = SclpMemory(machine, ROOM, 2 * BLOCK, increment=64 * MIB)
    assert (memory.detect(), memory.backed(ROOM, BLOCK)) == ([32, 33], False)
    write(machine, "memory32/state", "online_movable")
    assert (memory.backed(ROOM, BLOCK), memory.standby) == (True, {66, 67})
    write(machine, "memory32/state", "offline")
    assert memory.standby == {64, 65, 66, 67}
    refuse(machine, MEM_GOING_ONLINE, 33)
    assert refusal(write, machine, "memory33/state", "online") == "EPERM"
    assert memory.standby == {64, 65, 66, 67}


@ALL
@pytest.mark.fact("10.8")
def test_what_the_hypervisor_does_not_give_stays_offline(boot: Boot, rules: Rules) -> None:
    """The callback answers BAD; before 6.12 at GOING_ONLINE, then at PREPARE_ONLINE."""
    machine = make(boot, rules)
    memory = SclpMemory(machine, ROOM, BLOCK, increment=64 * MIB, assign=lambda number: number != 65)
    memory.detect()
    assert refusal(write, machine, "memory32/state", "online") == "EPERM"
    # 6.12 sends nothing after a refused PREPARE_ONLINE (fact 3.9), so the increment that was assigned stays so.
    assert memory.standby == ({65} if rules is Rules.LINUX_6_12 else {64, 65})


@ALL
@pytest.mark.fact("10.8")
def test_a_range_with_a_standby_increment_may_not_go_offline(boot: Boot, rules: Rules) -> None:
    """EPERM, and everybody hears CANCEL_OFFLINE."""
    machine = make(boot, rules)
    memory = SclpMemory(machine, ROOM, BLOCK, increment=64 * MIB)
    memory.detect()
    write(machine, "memory32/state", "online_movable")
    memory.standby.add(65)
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert state(machine, 32) == "online"


@pytest.mark.parametrize("rules", [Rules.DOCUMENTED, Rules.LINUX_6_1])
@pytest.mark.fact("10.8")
def test_before_6_12_it_knows_the_six_actions_and_refuses_any_other(boot: Boot, rules: Rules) -> None:
    """CANCEL_OFFLINE is one of the six: callbacks behind it hear it too."""
    machine = make(boot, rules)
    SclpMemory(machine, ROOM, BLOCK, increment=64 * MIB).detect()
    write(machine, "memory32/state", "online_movable")
    refuse(machine, MEM_GOING_OFFLINE, 32)
    log = Log()
    machine.hotplug_memory_notifier(log.callback("last"), -1)
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert log.take() == ["last CANCEL_OFFLINE(-1,-1)"]
    arg = MemoryNotify(Pfn(ROOM >> 12), PAGES, -1, -1)
    assert [int(machine.memory_notify(action, arg)) for action in (MEM_PREPARE_ONLINE, MEM_FINISH_OFFLINE)] == [NOTIFY_BAD] * 2


@ALL
@pytest.mark.fact("10.8")
def test_behind_an_increment_that_can_not_be_had_none_counts_as_backed(boot: Boot, rules: Rules) -> None:
    """They are asked for all the same."""
    machine = make(boot, rules)
    asked: list[int] = []

    def assign(number: int) -> bool:
        asked.append(number)
        return number != 129

    memory = SclpMemory(machine, ROOM, BLOCK, increment=32 * MIB, assign=assign)
    memory.detect()
    assert refusal(write, machine, "memory32/state", "online") == "EPERM"
    assert asked == [128, 129, 130, 131]
    # Before 6.12 CANCEL_ONLINE takes the first one back too; on 6.12 nothing follows a refused PREPARE_ONLINE (fact 3.9).
    assert memory.standby == ({129, 130, 131} if rules is Rules.LINUX_6_12 else {128, 129, 130, 131})


@pytest.mark.parametrize(
    ("start", "size", "increment"),
    [
        (ROOM, 0, MIB),
        (ROOM, -BLOCK, MIB),
        (ROOM, BLOCK, 0),
        (ROOM + MIB, BLOCK, MIB),
        (ROOM, BLOCK // 2, MIB),
        (ROOM, BLOCK, 3 * MIB),
    ],
)
def test_standby_memory_is_of_whole_increments_and_blocks(boot: Boot, start: int, size: int, increment: int) -> None:
    """Nothing is registered otherwise."""
    machine = make(boot, Rules.LINUX_6_1)
    with pytest.raises(InvalidInput, match="sclp"):
        SclpMemory(machine, start, size, increment=increment)
    assert machine.memory_chain.blocks == ()


@pytest.mark.fact("10.8", "2.7", "3.21")
def test_on_6_12_the_memmap_is_backed_before_anything_else_happens(boot: Boot) -> None:
    """Blocks hold their own memmap, inaccessible while offline, and the assigned range begins with it."""
    machine = make(boot, Rules.LINUX_6_12, memmap_on_memory="y")
    memory = SclpMemory(machine, ROOM, BLOCK, increment=MIB)
    memory.detect()
    block = machine.block(32)
    assert (block.altmap_pages, block.inaccessible) == (512, True)
    seen: list[tuple[str, bool, bool]] = []

    def watch(_: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        seen.append((action.name, memory.backed(ROOM, 2 * MIB), memory.backed(ROOM + 2 * MIB, BLOCK - 2 * MIB)))
        return NOTIFY_OK

    machine.hotplug_memory_notifier(watch, -1)
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory32/state", "offline")
    assert seen == [
        ("MEM_PREPARE_ONLINE", True, True),
        ("MEM_GOING_ONLINE", True, True),
        ("MEM_ONLINE", True, True),
        ("MEM_GOING_OFFLINE", True, True),
        ("MEM_OFFLINE", True, True),
        ("MEM_FINISH_OFFLINE", False, False),
    ]
    plain = make(boot, Rules.LINUX_6_12, memmap_on_memory="y")
    SclpMemory(plain, ROOM, BLOCK, increment=MIB, edat1=False).detect()
    assert plain.block(32).altmap_pages == 0


# -- Hyper-V and Xen


@ALL
@pytest.mark.fact("10.12")
def test_hyper_v_adds_chunks_and_keeps_back_what_the_host_does_not_back(boot: Boot, rules: Rules) -> None:
    """It waits for each to come online; EEXIST ends hot-add for good."""
    machine = make(boot, rules)
    balloon = HyperVBalloon(machine)
    assert balloon.hot_add(1, ROOM, 2 * BLOCK, BLOCK + 64 * MIB) == [32, 33]
    assert (balloon.waiting, above(machine)) == (True, ["100000000-10fffffff : System RAM"])
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory33/state", "online_movable")
    assert balloon.waiting is False
    zone = machine.zone(1, "Movable")
    assert (zone.present, zone.managed) == (2 * PAGES, PAGES + PAGES // 2)
    assert refusal(write, machine, "memory33/state", "offline") == "EBUSY"
    assert refusal(lambda: balloon.hot_add(1, ROOM, BLOCK, BLOCK)) == "EEXIST"
    assert (balloon.can_add, refusal(lambda: balloon.hot_add(1, 2 * ROOM, BLOCK, BLOCK))) == (False, "EEXIST")


@ALL
@pytest.mark.fact("10.12")
def test_hyper_v_knows_of_each_region_what_is_backed(boot: Boot, rules: Rules) -> None:
    """Also when a block comes online long after; memory of others is nobody's to give, and so is kept back."""
    machine = make(boot, rules)
    balloon = HyperVBalloon(machine)
    balloon.hot_add(1, ROOM, 2 * BLOCK, BLOCK + 32 * MIB)
    balloon.hot_add(1, 2 * ROOM, BLOCK, BLOCK)
    machine.add_memory(1, 3 * ROOM, BLOCK)
    zone = machine.zone(1, "Movable")
    managed = []
    for block in (33, 64, 96, 32):
        write(machine, f"memory{block}/state", "online_movable")
        managed.append(zone.managed)
    assert managed == [PAGES // 4, PAGES // 4 + PAGES, PAGES // 4 + PAGES, PAGES // 4 + 2 * PAGES]
    assert balloon.pages_onlined == PAGES // 4 + 2 * PAGES
    write(machine, "memory64/state", "offline")
    assert balloon.pages_onlined == PAGES // 4 + PAGES
    before = snapshot(machine)
    refuse(machine, MEM_GOING_ONLINE, 64)
    assert refusal(write, machine, "memory64/state", "online_movable") == "EPERM"
    assert (snapshot(machine), balloon.pages_onlined) == (before, PAGES // 4 + PAGES)


@ALL
@pytest.mark.fact("10.12")
def test_hyper_v_forgets_what_was_backed_of_memory_that_has_gone(boot: Boot, rules: Rules) -> None:
    """A region that comes again may be backed in part only; one that can't come changes nothing."""
    machine = make(boot, rules)
    balloon = HyperVBalloon(machine)
    balloon.hot_add(1, ROOM, BLOCK, BLOCK)
    machine.remove_memory(ROOM, BLOCK)
    balloon.hot_add(1, ROOM, BLOCK, 64 * MIB)
    assert refusal(lambda: balloon.hot_add(1, ROOM, BLOCK, BLOCK)) == "EEXIST"
    write(machine, "memory32/state", "online_movable")
    assert (balloon.pages_onlined, machine.zone(1, "Movable").managed) == (PAGES // 2, PAGES // 2)


@pytest.mark.parametrize(
    ("nid", "start", "size", "backed"),
    [
        (1, ROOM, -BLOCK, 0),
        (1, ROOM, 0, 0),
        (1, ROOM, BLOCK, 2 * BLOCK),
        (1, ROOM, BLOCK, -1),
        (1, ROOM, "1GiB", 0),
        ([1], ROOM, BLOCK, 0),
    ],
)
def test_a_region_that_hyper_v_can_not_have_is_told(boot: Boot, nid: object, start: object, size: object, backed: object) -> None:
    """An empty one, one with more backed than there is, and what are no numbers."""
    machine = make(boot, Rules.LINUX_6_12)
    balloon = HyperVBalloon(machine)
    before = snapshot(machine)
    with pytest.raises(InvalidInput, match="hv_balloon"):
        balloon.hot_add(nid, start, size, backed)  # type: ignore[arg-type]
    assert (snapshot(machine), balloon.can_add, balloon.waiting) == (before, True, False)


@pytest.mark.fact("10.12")
@pytest.mark.parametrize("priority", [-1, 1])
def test_hyper_v_counts_what_is_online_in_the_end(boot: Boot, priority: int) -> None:
    """The document's NOTIFY_BAD at MEM_ONLINE and MEM_OFFLINE, whether the driver has heard that action or not."""
    machine = make(boot, Rules.DOCUMENTED)
    balloon = HyperVBalloon(machine)
    balloon.hot_add(1, ROOM, BLOCK, BLOCK)
    refused = {MEM_ONLINE, MEM_OFFLINE}
    machine.hotplug_memory_notifier(lambda block, seen, arg: NOTIFY_BAD if seen in refused else NOTIFY_OK, priority)
    assert refusal(write, machine, "memory32/state", "online_movable") == "EPERM"
    assert (state(machine, 32), balloon.pages_onlined) == ("offline", 0)
    refused.remove(MEM_ONLINE)
    write(machine, "memory32/state", "online_movable")
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert (state(machine, 32), balloon.pages_onlined) == ("online", PAGES)
    refused.clear()
    write(machine, "memory32/state", "offline")
    assert balloon.pages_onlined == 0


@ALL
@pytest.mark.fact("10.12")
def test_xen_adds_memory_that_is_all_in_the_balloon_at_first(boot: Boot, rules: Rules) -> None:
    """Its thread is woken when it is online; only one driver can have the online-page callback."""
    machine = make(boot, rules, default="online_movable")
    balloon = XenBalloon(machine)
    assert balloon.reserve_additional_memory(1, ROOM, BLOCK) == [32]
    zone = machine.zone(1, "Movable")
    assert (zone.present, zone.managed, balloon.woken) == (PAGES, 0, 1)
    assert refusal(lambda: machine.alloc_pages(1, blocks=[32])) == "ENOMEM"
    assert refusal(lambda: balloon.reserve_additional_memory(1, ROOM, BLOCK)) == "EEXIST"
    assert refusal(lambda: balloon.reserve_additional_memory(9, 2 * ROOM, BLOCK)) == "EINVAL"
    with pytest.raises(InvalidInput, match="xen balloon: nid"):
        balloon.reserve_additional_memory([1], 2 * ROOM, BLOCK)  # type: ignore[arg-type]
    assert above(machine) == ["100000000-107ffffff : System RAM"]
    assert refusal(HyperVBalloon, machine) == "EINVAL"
    assert refusal(machine.online_page.restore, lambda start, pages: []) == "EINVAL"
    assert valid_zones(machine, 32) == "Movable"
