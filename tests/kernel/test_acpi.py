"""DIMMs: which slot and address they get, what the kernel does when one comes or shall go, and what it tells the firmware."""

from __future__ import annotations

import errno
import threading

import pytest

from memhp import (
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    DeadlockError,
    HotplugError,
    InvalidInput,
    Machine,
    MemoryAction,
    MemoryNotify,
    MhpFlags,
    NotifierBlock,
    NotifyResult,
    PageKind,
    Rules,
    Vetoed,
    notifier_from_errno,
)
from memhp.kernel.acpi import Dimm
from memhp.locking import switch
from support import (
    BLOCK,
    GIB,
    MEMORY,
    MIB,
    Boot,
    Log,
    another_reads,
    in_thread,
    interrupt,
    refusal,
    snapshot,
    state,
    until_parked,
    valid_zones,
    write,
)

KERNELS = pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.LINUX_6_12], ids=["6.1", "6.12"])
EJECT = "/sys/bus/acpi/devices/PNP0C80:00/eject"
ENABLED = "/sys/firmware/acpi/hotplug/memory/enabled"
FIRMWARE = "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/PNP0A06:04"
CONTAINER = {Rules.LINUX_6_1: [], Rules.LINUX_6_12: ["online@/devices/system/container/PNP0A06:04"]}
OK = NotifyResult(1)


def boot_two_nodes(boot: Boot, rules: Rules = Rules.LINUX_6_1, **options: object) -> Machine:
    return boot(["1GiB", 0], rules=rules, **{"parameters": {"memhp_default_state": "offline"}, **options})


def uevents(machine: Machine) -> list[str]:
    heard: list[str] = []
    machine.uevents.subscribe(lambda event: heard.append(str(event)))
    return heard


def refuse(machine: Machine, action: MemoryAction, number: int, *blocks: int) -> NotifierBlock:
    """Register a callback that answers ``action`` for these blocks with an errno."""

    def callback(block: NotifierBlock, heard: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        return notifier_from_errno(-number) if heard is action and machine.block_id_of(arg.start_pfn) in blocks else OK

    return machine.hotplug_memory_notifier(callback)


def without_modalias(picture: dict[str, object]) -> dict[str, object]:
    """Leave out the files that tell whether there ever was a DIMM (fact 10.4a)."""
    files = picture["files"]
    assert isinstance(files, dict)
    return {**picture, "files": {path: text for path, text in files.items() if not path.endswith(("/modalias", "/uevent"))}}


def reports(dimm: Dimm) -> list[tuple[int, int]]:
    return [(int(source), int(status)) for source, status in dimm.reports]


def places(machine: Machine) -> list[tuple[int, int, int]]:
    """Slot, address and size in MiB of every DIMM, by address."""
    found = [(dimm.start, dimm.device.number, dimm.size // MIB) for dimm in machine.dimms]
    return [(slot, start, size) for start, slot, size in sorted(found)]


# -- slots and addresses: the expected ones are those of QEMU 7.2, asked with query-memory-devices


def test_dimms_get_the_slots_and_addresses_that_qemu_gives_them(boot: Boot) -> None:
    """The first free slot, and the first gap: a smaller DIMM fills a hole, a bigger one goes behind all others."""
    machine = boot_two_nodes(boot, slots=6, room="3GiB")
    a, b = machine.plug_dimm(1, 128 * MIB), machine.plug_dimm(1, 256 * MIB)
    machine.plug_dimm(1, 128 * MIB)
    assert places(machine) == [(0, 0x100000000, 128), (1, 0x108000000, 256), (2, 0x118000000, 128)]

    machine.unplug_dimm(a)
    machine.plug_dimm(1, 256 * MIB)
    machine.plug_dimm(1, 128 * MIB)
    assert places(machine) == [
        (3, 0x100000000, 128),
        (1, 0x108000000, 256),
        (2, 0x118000000, 128),
        (0, 0x120000000, 256),
    ]

    machine.unplug_dimm(b)
    machine.plug_dimm(1, 128 * MIB)
    machine.plug_dimm(1, 256 * MIB)
    machine.plug_dimm(1, 64 * MIB)
    assert places(machine) == [
        (3, 0x100000000, 128),
        (1, 0x108000000, 128),
        (5, 0x110000000, 64),
        (2, 0x118000000, 128),
        (0, 0x120000000, 256),
        (4, 0x130000000, 256),
    ]


@pytest.mark.parametrize(
    ("nid", "size", "start", "expected"),
    [
        (1, 128 * MIB, 0x108000000, "EEXIST"),  # where another DIMM is
        (1, 128 * MIB, 0x100001000, "EINVAL"),  # not a multiple of 2 MiB
        (1, 3 * MIB, None, "EINVAL"),
        (1, 0, None, "EINVAL"),
        (7, 128 * MIB, None, "EINVAL"),  # no such node
        (1, 3 * GIB, None, "ENOSPC"),  # more than is left of the room
        (1, 128 * MIB, 0x80000000, "EINVAL"),  # outside of the room
        (1, 128 * MIB, 0x4000000000, "EINVAL"),
    ],
)
def test_a_dimm_that_the_slot_does_not_take_changes_nothing(
    boot: Boot, nid: int, size: int, start: int | None, expected: str
) -> None:
    """It is refused where QEMU refuses it."""
    machine = boot_two_nodes(boot, slots=6, room="3GiB")
    machine.plug_dimm(1, 256 * MIB)
    before = snapshot(machine)
    assert refusal(machine.plug_dimm, nid, size, start) == expected
    assert (snapshot(machine), len(machine.dimms)) == (before, 1)


def test_all_slots_can_be_full(boot: Boot) -> None:
    """One DIMM more is ENOSPC."""
    machine = boot_two_nodes(boot, slots=1)
    machine.plug_dimm(1, BLOCK)
    assert refusal(machine.plug_dimm, 1, BLOCK) == "ENOSPC"


@pytest.mark.parametrize("value", [-1, 257, "16", True])
def test_a_number_of_slots_is_checked(boot: Boot, value: object) -> None:
    """It is a number from 0 to 256."""
    with pytest.raises(InvalidInput, match=r"slots.*from 0 to 256"):
        boot(["1GiB"], slots=value)


# -- plug


@KERNELS
@pytest.mark.fact("10.1", "5.13")
def test_plugging_adds_blocks_and_binds_them(boot: Boot, rules: Rules) -> None:
    """Blocks, then a new node, are announced; 6.12 announces the container last. Links lead both ways."""
    machine = boot_two_nodes(boot, rules)
    heard = uevents(machine)
    dimm = machine.plug_dimm(1, 256 * MIB)
    assert heard == [
        "add@/devices/system/memory/memory32",
        "add@/devices/system/memory/memory33",
        "add@/devices/system/node/node1",
        *CONTAINER[rules],
    ]
    assert (dimm.blocks, reports(dimm), dimm.error) == ([32, 33], [(1, 0)], None)
    tree = machine.tree
    assert tree.readlink(f"{MEMORY}/memory33/firmware_node") == "../../../LNXSYSTM:00/LNXSYBUS:00/PNP0A06:04/PNP0C80:00"
    assert tree.readlink(f"{FIRMWARE}/PNP0C80:00/physical_node1") == "../../../../system/memory/memory33"
    assert tree.read(f"{MEMORY}/memory33/firmware_node/physical_node/phys_index") == "00000020\n"


@KERNELS
@pytest.mark.fact("3.44", "5.13")
def test_auto_online_comes_before_the_container(boot: Boot, rules: Rules) -> None:
    """Blocks come online while the DIMM is being dealt with."""
    machine = boot_two_nodes(boot, rules, parameters={"memhp_default_state": "online"})
    heard = uevents(machine)
    machine.plug_dimm(1, BLOCK)
    assert heard == [
        "add@/devices/system/memory/memory32",
        "add@/devices/system/node/node1",
        "online@/devices/system/memory/memory32",
        *CONTAINER[rules],
    ]


@KERNELS
@pytest.mark.fact("10.1a", "5.13a")
def test_a_dimm_that_the_kernel_can_not_add_is_a_success_to_the_firmware(boot: Boot, rules: Rules) -> None:
    """Half a block can't be added; the status is 0 all the same, and the DIMM can be pulled out again."""
    machine = boot_two_nodes(boot, rules)
    heard = uevents(machine)
    dimm = machine.plug_dimm(1, 64 * MIB)
    assert (dimm.blocks, reports(dimm), heard) == ([], [(1, 0)], CONTAINER[rules])
    assert isinstance(dimm.error, HotplugError)
    assert (dimm.error.errno, "not aligned to the block size" in str(dimm.error)) == (errno.EINVAL, True)
    machine.unplug_dimm(dimm)
    assert (machine.dimms, reports(dimm)) == ([], [(1, 0), (3, 0x84), (3, 0)])


@pytest.mark.parametrize(("rules", "blocks"), [(Rules.LINUX_6_1, []), (Rules.LINUX_6_12, [32])], ids=["6.1", "6.12"])
@pytest.mark.fact("10.1a")
def test_the_next_dimm_lets_6_12_try_again(boot: Boot, rules: Rules, blocks: list[int]) -> None:
    """6.12 scans the whole container, so it also takes what it could not take before; 6.1 looks at the new DIMM alone."""
    machine = boot_two_nodes(boot, rules)
    machine.mappable, whole = 4 * GIB, machine.mappable
    first = machine.plug_dimm(1, BLOCK)
    machine.mappable = whole
    assert (first.blocks, isinstance(first.error, HotplugError)) == ([], True)
    machine.plug_dimm(1, BLOCK)
    assert first.blocks == blocks


@pytest.mark.fact("10.1")
def test_memory_that_is_there_already_is_bound(boot: Boot) -> None:
    """EEXIST is no error: the blocks of the range become the DIMM's, and go with it."""
    machine = boot_two_nodes(boot)
    machine.add_memory(1, 4 * GIB, BLOCK)
    dimm = machine.plug_dimm(1, BLOCK, 4 * GIB)
    assert (dimm.blocks, dimm.error) == ([32], None)
    machine.unplug_dimm(dimm)
    assert 32 not in machine.blocks


def test_a_dimm_can_not_come_from_inside_a_callback(boot: Boot) -> None:
    """The locks are held; nothing is left in the slot."""
    machine = boot_two_nodes(boot, lockdep=False)
    dimm = machine.plug_dimm(1, BLOCK)
    caught: list[BaseException] = []

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        for request in (lambda: machine.plug_dimm(1, BLOCK), lambda: machine.unplug_dimm(dimm)):
            with pytest.raises(DeadlockError) as error:
                request()
            caught.append(error.value)
        return OK

    callback_ = machine.hotplug_memory_notifier(callback)
    write(machine, "memory32/state", "online")
    callback_.unregister()
    assert (len(caught), machine.dimms) == (4, [dimm])


def test_a_plug_that_is_interrupted_leaves_a_dimm_that_another_one_attaches(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """6.12 tries all slots when a DIMM comes; Ctrl-C in the meantime must not take one out whose memory is being added."""
    machine = boot_two_nodes(boot, Rules.LINUX_6_12, parameters={"memhp_default_state": "online_movable"})
    wait, adding, settled = switch.Waiter.wait, threading.Event(), threading.Event()

    def interrupted(waiter: switch.Waiter) -> bool:
        if waiter.task.name != "impatient":
            return wait(waiter)
        if not adding.is_set():
            assert adding.wait(30)
            raise KeyboardInterrupt
        settled.set()
        return wait(waiter)

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is MEM_GOING_ONLINE and machine.block_id_of(arg.start_pfn) == 33:
            adding.set()
            assert settled.wait(30)
        return OK

    def plug_impatiently() -> None:
        try:
            machine.plug_dimm(1, BLOCK)
        finally:
            settled.set()

    machine.hotplug_memory_notifier(callback)
    monkeypatch.setattr(switch.Waiter, "wait", interrupted)
    with machine.locks.device_hotplug:
        first = in_thread(lambda: machine.plug_dimm(1, BLOCK), "first")
        until_parked(first)
        second = in_thread(plug_impatiently, "impatient")
        until_parked(second)
    first.result()
    with pytest.raises(KeyboardInterrupt):
        second.result()
    assert [(dimm.plugged, dimm.blocks) for dimm in machine.dimms] == [(True, [32]), (True, [33])]


# -- unplug


@KERNELS
@pytest.mark.fact("10.2", "5.13")
def test_unplugging_takes_offline_removes_and_reports(boot: Boot, rules: Rules) -> None:
    """Offline blocks are only removed; the device stays for the next DIMM."""
    machine = boot_two_nodes(boot, rules)
    dimm = machine.plug_dimm(1, 256 * MIB)
    write(machine, "memory33/state", "online_movable")
    heard = uevents(machine)
    machine.unplug_dimm(dimm)
    assert heard == [
        "offline@/devices/system/memory/memory33",
        "remove@/devices/system/memory/memory32",
        "remove@/devices/system/memory/memory33",
        "remove@/devices/system/node/node1",
    ]
    assert (dimm.plugged, dimm.blocks, reports(dimm)) == (False, [], [(1, 0), (3, 0x84), (3, 0)])
    assert machine.tree.read(f"{FIRMWARE}/PNP0C80:00/status") == "0\n"
    assert refusal(machine.unplug_dimm, dimm) == "ENODEV"


def test_a_dimm_of_another_machine_is_refused(boot: Boot) -> None:
    """It stays in its slot, with its memory; the machine that was asked does nothing."""
    asked, other = boot_two_nodes(boot), boot_two_nodes(boot)
    dimm = other.plug_dimm(1, 256 * MIB)
    before = snapshot(asked), snapshot(other)
    with pytest.raises(InvalidInput, match="expected a DIMM of this machine"):
        asked.unplug_dimm(dimm)
    assert (snapshot(asked), snapshot(other)) == before
    assert (dimm.plugged, dimm.blocks, reports(dimm)) == (True, [32, 33], [(1, 0)])


@pytest.mark.fact("3.42", "10.2", "10.3")
def test_a_failed_eject_retries_once_and_brings_back_into_another_zone(boot: Boot) -> None:
    """Three Movable blocks, the third refused: it is asked twice, and the others come back to ZONE_NORMAL."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, 3 * BLOCK)
    for block in (32, 33, 34):
        write(machine, f"memory{block}/state", "online_movable")
    log = Log()
    names: list[str] = []

    def note(action: MemoryAction, arg: MemoryNotify) -> None:
        names.append(f"memory{machine.block_id_of(arg.start_pfn)}")

    machine.hotplug_memory_notifier(log.callback("all", act=note), 10)
    refuse(machine, MEM_GOING_OFFLINE, errno.EBUSY, 34)
    with pytest.raises(HotplugError) as caught:
        machine.unplug_dimm(dimm)

    assert [f"{name} {line.removeprefix('all ')}" for name, line in zip(names, log, strict=True)] == [
        "memory32 GOING_OFFLINE(-1,-1)",
        "memory32 OFFLINE(-1,-1)",
        "memory33 GOING_OFFLINE(-1,-1)",
        "memory33 OFFLINE(-1,-1)",
        "memory34 GOING_OFFLINE(-1,1)",
        "memory34 CANCEL_OFFLINE(-1,1)",
        "memory34 GOING_OFFLINE(-1,1)",
        "memory34 CANCEL_OFFLINE(-1,1)",
        "memory32 GOING_ONLINE(1,-1)",
        "memory32 ONLINE(1,-1)",
        "memory33 GOING_ONLINE(-1,-1)",
        "memory33 ONLINE(-1,-1)",
    ]
    assert [valid_zones(machine, block) for block in (32, 33, 34)] == ["Normal", "Normal", "Movable"]
    assert (caught.value.errno, caught.value.block, dimm.error) == (errno.EBUSY, 34, caught.value)
    assert isinstance(caught.value.__cause__, Vetoed)
    assert str(caught.value).endswith("it stays online; memory32-33 online again in Normal (Device or resource busy)")
    assert reports(dimm) == [(1, 0), (3, 0x84), (3, 0x82)]


@pytest.mark.fact("3.43")
def test_the_second_pass_stops_at_the_first_refusal(boot: Boot) -> None:
    """Both refused: the first pass asks both, the second one only the first; nothing is brought online."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, 2 * BLOCK)
    for block in (32, 33):
        write(machine, f"memory{block}/state", "online_movable")
    log = Log()
    machine.hotplug_memory_notifier(log.callback("all"), 10)
    refuse(machine, MEM_GOING_OFFLINE, errno.EPERM, 32, 33)
    assert refusal(machine.unplug_dimm, dimm) == "EBUSY"
    assert [line.split("(")[0] for line in log] == ["all GOING_OFFLINE", "all CANCEL_OFFLINE"] * 3
    assert str(dimm.error).endswith("nothing was taken offline (Device or resource busy)")


@pytest.mark.fact("10.2")
def test_the_second_pass_succeeds_when_the_others_are_gone(boot: Boot) -> None:
    """A block that holds what another one needs refuses in the first pass and goes in the second."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, 2 * BLOCK)
    for block in (32, 33):
        write(machine, f"memory{block}/state", "online_kernel")
    held = machine.alloc_pages(1, PageKind.UNMOVABLE, blocks=[32])

    def give_back(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is MEM_GOING_OFFLINE and machine.block_id_of(arg.start_pfn) == 33:
            machine.free_pages(held)
        return OK

    machine.hotplug_memory_notifier(give_back)
    machine.unplug_dimm(dimm)
    assert (machine.dimms, reports(dimm)[-1]) == ([], (3, 0))


@pytest.mark.fact("10.2")
def test_blocks_that_were_offline_stay_offline(boot: Boot) -> None:
    """The rollback brings back only what this request has taken."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, 3 * BLOCK)
    write(machine, "memory33/state", "online_movable")
    write(machine, "memory34/state", "online_movable")
    refuse(machine, MEM_GOING_OFFLINE, errno.EBUSY, 34)
    assert refusal(machine.unplug_dimm, dimm) == "EBUSY"
    assert [state(machine, block) for block in (32, 33, 34)] == ["offline", "online", "online"]


@pytest.mark.fact("10.3", "3.3")
def test_the_rollback_uses_a_type_that_a_refused_write_left(boot: Boot) -> None:
    """``auto_online_blocks`` has no say in it."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, 3 * BLOCK)
    for block in (32, 33, 34):
        write(machine, f"memory{block}/state", "online")
    write(machine, "auto_online_blocks", "online_movable")
    assert refusal(write, machine, "memory33/state", "online_movable") == "EINVAL"
    refuse(machine, MEM_GOING_OFFLINE, errno.EPERM, 34)
    assert refusal(machine.unplug_dimm, dimm) == "EBUSY"
    assert [valid_zones(machine, block) for block in (32, 33, 34)] == ["Normal", "Movable", "Normal"]
    assert str(dimm.error).endswith(
        "it stays online; memory32 online again in Normal, memory33 online again in Movable (Device or resource busy)"
    )


def test_a_block_that_can_not_come_back_is_named(boot: Boot) -> None:
    """The kernel ignores that its rollback fails; the error says so."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, 2 * BLOCK)
    for block in (32, 33):
        write(machine, f"memory{block}/state", "online")
    refuse(machine, MEM_GOING_OFFLINE, errno.EPERM, 33)
    refuse(machine, MEM_GOING_ONLINE, errno.ENOMEM, 32)
    assert refusal(machine.unplug_dimm, dimm) == "EBUSY"
    assert str(dimm.error).endswith("memory32 could not be brought online again (Device or resource busy)")
    assert [state(machine, block) for block in (32, 33)] == ["offline", "online"]


def test_an_interrupt_while_a_dimm_goes_brings_its_blocks_back(boot: Boot) -> None:
    """Ctrl-C in a callback undoes what was done."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, 2 * BLOCK)
    for block in (32, 33):
        write(machine, f"memory{block}/state", "online")

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is MEM_GOING_OFFLINE and machine.block_id_of(arg.start_pfn) == 33:
            raise KeyboardInterrupt
        return OK

    machine.hotplug_memory_notifier(callback)
    with pytest.raises(KeyboardInterrupt):
        machine.unplug_dimm(dimm)
    assert ([state(machine, block) for block in (32, 33)], machine.dimms) == (["online", "online"], [dimm])


def test_an_interrupt_while_a_dimm_comes_leaves_neither_it_nor_its_group(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the kernel waits for those who read memory: the slot is empty, as if nothing had come."""
    machine = boot_two_nodes(boot)
    before = snapshot(machine)
    interrupt(monkeypatch, "victim", when_woken=False)
    with another_reads(machine):
        victim = in_thread(lambda: machine.plug_dimm(1, BLOCK), "victim")
        with pytest.raises(KeyboardInterrupt):
            victim.result()
    assert without_modalias(snapshot(machine)) == without_modalias(before)
    assert (machine.dimms, list(machine.groups), sorted(machine.blocks)) == ([], [], list(range(8)))


@KERNELS
@pytest.mark.fact("10.1", "10.2")
def test_a_dimm_of_odd_size_on_memory_that_was_there_can_not_go(boot: Boot, rules: Rules) -> None:
    """EEXIST counts as added, so whole blocks are bound to it. Where the kernel would stop with BUG(), they come back."""
    machine = boot_two_nodes(boot, rules)
    machine.add_memory(1, 4 * GIB, 2 * BLOCK)
    dimm = machine.plug_dimm(1, 130 * MIB, 4 * GIB)
    write(machine, "memory32/state", "online")
    assert (dimm.blocks, refusal(machine.unplug_dimm, dimm)) == ([32, 33], "EINVAL")
    assert reports(dimm) == [(1, 0), (3, 0x84), (3, 1)]
    assert ([state(machine, block) for block in (32, 33)], machine.dimms) == (["online", "offline"], [dimm])


@KERNELS
def test_memory_of_others_in_the_group_of_a_dimm_does_not_keep_it(boot: Boot, rules: Rules) -> None:
    """The kernel does not look at what unregistering the group says; the group stays for who uses it."""
    machine = boot_two_nodes(boot, rules)
    dimm = machine.plug_dimm(1, BLOCK)
    [group] = machine.groups
    machine.add_memory(group.id, 8 * GIB, BLOCK, flags=MhpFlags.NID_IS_MGID)
    machine.unplug_dimm(dimm)
    assert (machine.dimms, reports(dimm)[-1], sorted(group.blocks)) == ([], (3, 0), [64])


# -- the files


@pytest.mark.parametrize("text", ["0\n", "2", "x", "\0", " 1"])
@pytest.mark.fact("10.4")
def test_the_eject_file_wants_a_1(boot: Boot, text: str) -> None:
    """Whatever begins otherwise is EINVAL, whether the slot has a DIMM or not."""
    machine = boot_two_nodes(boot)
    assert refusal(machine.tree.write, EJECT, text) == "EINVAL"
    machine.plug_dimm(1, BLOCK)
    assert refusal(machine.tree.write, EJECT, text) == "EINVAL"


@pytest.mark.fact("10.4")
def test_the_eject_file_of_an_empty_slot_is_no_device(boot: Boot) -> None:
    """ENODEV; a write of nothing does nothing."""
    machine = boot_two_nodes(boot)
    assert machine.tree.write(EJECT, "") == 0
    assert refusal(machine.tree.write, EJECT, "1") == "ENODEV"


@pytest.mark.parametrize("text", ["1", "1\n", "1junk"])
@pytest.mark.fact("10.4")
def test_the_eject_file_ejects(boot: Boot, text: str) -> None:
    """The kernel reports that it is in progress as if the firmware had asked, and the end with the file's own source."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, BLOCK)
    write(machine, "memory32/state", "online")
    assert machine.tree.write(EJECT, text) == len(text)
    assert (machine.dimms, reports(dimm)) == ([], [(1, 0), (3, 0x84), (0x103, 0)])


@pytest.mark.fact("10.4")
def test_writing_eject_succeeds_even_if_the_eject_fails(boot: Boot) -> None:
    """The writer hears nothing of it."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, BLOCK)
    write(machine, "memory32/state", "online")
    refuse(machine, MEM_GOING_OFFLINE, errno.ENOMEM, 32)
    assert machine.tree.write(EJECT, "1") == 1
    assert (reports(dimm)[1:], state(machine, 32)) == ([(3, 0x84), (0x103, 0x82)], "online")


@pytest.mark.fact("10.4")
def test_writing_eject_does_not_wait_for_the_end(boot: Boot) -> None:
    """A pinned page keeps the kernel's own thread waiting, not the writer."""
    machine = boot_two_nodes(boot)
    dimm = machine.plug_dimm(1, BLOCK)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(1, blocks=[32])
    machine.pages.pin(held)
    assert machine.tree.write(EJECT, "1") == 1
    worker = next(thread for thread in threading.enumerate() if thread.name == "kacpi_hotplug")
    until_parked(worker)
    assert (reports(dimm)[-1], state(machine, 32)) == ((3, 0x84), "going-offline")
    machine.pages.unpin(held)
    worker.join(30)
    assert (machine.dimms, reports(dimm)[-1]) == ([], (0x103, 0))


@pytest.mark.fact("10.4")
def test_ejecting_can_be_disabled(boot: Boot) -> None:
    """DIMMs still come in; the file is ENODEV, and the firmware's request EPERM with a status of its own."""
    machine = boot_two_nodes(boot)
    assert (machine.tree.write(ENABLED, "0\n"), machine.tree.read(ENABLED)) == (2, "0\n")
    dimm = machine.plug_dimm(1, BLOCK)
    assert dimm.blocks == [32]
    assert refusal(machine.tree.write, EJECT, "1") == "ENODEV"
    assert refusal(machine.unplug_dimm, dimm) == "EPERM"
    assert reports(dimm) == [(1, 0), (3, 0x80)]


# Written and read back on 6.1 and 6.12; "1" before each.
@pytest.mark.parametrize(
    ("text", "result"),
    [("0\n", "0\n"), ("00", "0\n"), ("01", "1\n"), ("1\n", "1\n")],
)
@pytest.mark.fact("10.4")
def test_the_switch_takes_numbers(boot: Boot, text: str, result: str) -> None:
    """0 and 1, however they are written."""
    machine = boot_two_nodes(boot)
    machine.tree.write(ENABLED, text)
    assert machine.tree.read(ENABLED) == result


@pytest.mark.parametrize("text", ["2", "y", "-1", "x", "10", "1 ", "1\n\n", "0x2"])
@pytest.mark.fact("10.4")
def test_the_switch_takes_nothing_else(boot: Boot, text: str) -> None:
    """EINVAL, and it stays as it is."""
    machine = boot_two_nodes(boot)
    assert refusal(machine.tree.write, ENABLED, text) == "EINVAL"
    assert machine.tree.read(ENABLED) == "1\n"


def test_the_files_of_a_slot_are_those_of_a_guest(boot: Boot) -> None:
    """Listed on 6.1 and 6.12 in QEMU before, with and after a DIMM; modalias is empty until there was one."""
    machine = boot_two_nodes(boot)
    path = f"{FIRMWARE}/PNP0C80:0a"
    names = ["eject", "hid", "modalias", "path", "power", "status", "subsystem", "uevent", "uid"]
    assert machine.tree.list(path) == names
    texts = {name: machine.tree.read(f"{path}/{name}") for name in ("hid", "modalias", "path", "status", "uevent", "uid")}
    assert texts == {
        "hid": "PNP0C80\n",
        "modalias": "",
        "path": "\\_SB_.MHPC.MP0A\n",
        "status": "0\n",
        "uevent": "MODALIAS=\n",
        "uid": "0x0A\n",
    }
    first = f"{FIRMWARE}/PNP0C80:00"
    dimm = machine.plug_dimm(1, 256 * MIB)
    assert machine.tree.list(first) == sorted([*names, "physical_node", "physical_node1"])
    machine.unplug_dimm(dimm)
    assert machine.tree.list(first) == names
    assert (machine.tree.read(f"{first}/modalias"), machine.tree.read(f"{first}/uevent")) == (
        "acpi:PNP0C80:\n",
        "MODALIAS=acpi:PNP0C80:\n",
    )
