"""offline_and_remove_memory(), the file probe, and memory of devices: other ways in and out."""

from __future__ import annotations

import pytest

from memhp import (
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    NOTIFY_BAD,
    NOTIFY_OK,
    HotplugError,
    InvalidInput,
    Machine,
    MemoryAction,
    MemoryNotify,
    MhpFlags,
    NotifyResult,
    Rules,
)
from memhp.kernel.iomem import ResourceName
from memhp.locking import current
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
    snapshot,
    state,
    until_parked,
    valid_zones,
    with_node_1,
    write,
)

ROOM = 4 * GIB
BAD: dict[MemoryAction, NotifyResult | BaseException] = {MEM_GOING_OFFLINE: NOTIFY_BAD}


def refuse_block(machine: Machine, number: int, *actions: MemoryAction) -> None:
    """Register a callback that refuses these actions of one block."""

    def callback(block: object, action: MemoryAction, arg: object) -> NotifyResult:
        return NOTIFY_BAD if action in actions and machine.block_id_of(arg.start_pfn) == number else NotifyResult(1)  # type: ignore[attr-defined]

    machine.hotplug_memory_notifier(callback)


def mixed(boot: Boot, rules: Rules) -> Machine:
    """Boot with blocks 32 and 33 in Normal, 34 in Movable, 35 offline, as in the recorded guests."""
    machine = with_node_1(boot, rules)
    for block, word in [(34, "online_movable"), (33, "online_kernel"), (32, "online_kernel")]:
        write(machine, f"memory{block}/state", word)
    return machine


# -- offline and away


@ALL
@pytest.mark.fact("3.28")
def test_all_blocks_go_offline_and_then_away(boot: Boot, rules: Rules) -> None:
    """Blocks that were offline before don't mind."""
    machine = mixed(boot, rules)
    assert machine.offline_and_remove_memory(ROOM, 4 * BLOCK) == [32, 33, 34, 35]
    assert 32 not in machine.blocks
    assert machine.tree.read(f"{NODE}/online") == "0\n"


@ALL
@pytest.mark.fact("3.28", "13.9")
def test_a_failure_brings_back_what_it_took_and_to_the_zone_that_it_was_in(boot: Boot, rules: Rules) -> None:
    """33 was Movable beside Normal neighbours and 34 refuses: 32 and 33 come back as they were, 35 stays offline."""
    machine = mixed(boot, rules)
    write(machine, "memory33/state", "offline")
    write(machine, "memory33/state", "online_movable")
    heard: list[str] = []
    machine.uevents.subscribe(lambda event: heard.append(str(event).replace("/devices/system/memory/", "")))
    refuse_block(machine, 34, MEM_GOING_OFFLINE)
    assert refusal(machine.offline_and_remove_memory, ROOM, 4 * BLOCK) == "EPERM"
    assert [state(machine, block) for block in range(32, 36)] == ["online", "online", "online", "offline"]
    assert [valid_zones(machine, block) for block in (32, 33, 34)] == ["Normal", "Movable", "Movable"]
    assert heard == ["offline@memory32", "offline@memory33", "online@memory32", "online@memory33"]


@ALL
@pytest.mark.fact("3.28")
def test_the_first_error_counts_also_if_the_way_back_fails(boot: Boot, rules: Rules, caplog: pytest.LogCaptureFixture) -> None:
    """A block that can't come back stays offline; that is logged, and the others come back all the same."""
    machine = mixed(boot, rules)
    refuse_block(machine, 32, MEM_GOING_ONLINE)
    refuse_block(machine, 34, MEM_GOING_OFFLINE)
    assert refusal(machine.offline_and_remove_memory, ROOM, 4 * BLOCK) == "EPERM"
    assert [state(machine, block) for block in range(32, 36)] == ["offline", "online", "online", "offline"]
    assert "memory32 could not be brought online again" in caplog.text


@ALL
@pytest.mark.fact("3.28")
def test_an_interrupt_on_the_way_back_waits_for_the_others(boot: Boot, rules: Rules) -> None:
    """Ctrl-C while 32 comes online again keeps that one offline; 33 comes back, and only then is it raised."""
    machine = mixed(boot, rules)
    refuse_block(machine, 34, MEM_GOING_OFFLINE)

    def callback(block: object, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action is MEM_GOING_ONLINE and machine.block_id_of(arg.start_pfn) == 32:
            raise KeyboardInterrupt
        return NOTIFY_OK

    machine.hotplug_memory_notifier(callback)
    with pytest.raises(KeyboardInterrupt):
        machine.offline_and_remove_memory(ROOM, 4 * BLOCK)
    assert [state(machine, block) for block in range(32, 36)] == ["offline", "online", "online", "offline"]
    assert current().deferred is None


@ALL
@pytest.mark.fact("3.28")
@pytest.mark.parametrize(("start", "size"), [(ROOM, 0), (ROOM, 4096), (ROOM + 4096, BLOCK), (-BLOCK, BLOCK), (ROOM, -BLOCK)])
def test_what_is_no_range_of_blocks_is_einval(boot: Boot, rules: Rules, start: int, size: int) -> None:
    """Before any lock; nothing is changed."""
    machine = mixed(boot, rules)
    before = snapshot(machine)
    with machine.mem_hotplug():
        assert refusal(machine.offline_and_remove_memory, start, size) == "EINVAL"
    assert snapshot(machine) == before


@pytest.mark.fact("3.28", "3.25")
def test_blocks_with_their_own_memmap_come_back_when_they_can_not_leave_together(boot: Boot) -> None:
    """On 6.1 they are offline when that is found, so they come online again."""
    parameters = "memhp_default_state=offline memory_hotplug.memmap_on_memory=1"
    machine = boot(["1GiB", 0], rules=Rules.LINUX_6_1, parameters=parameters)
    for number in range(2):
        machine.add_memory(1, ROOM + number * BLOCK, BLOCK, flags=MhpFlags.MEMMAP_ON_MEMORY)
        write(machine, f"memory{32 + number}/state", "online_movable")
    assert refusal(machine.offline_and_remove_memory, ROOM, 2 * BLOCK) == "EINVAL"
    assert [valid_zones(machine, block) for block in (32, 33)] == ["Movable", "Movable"]


@pytest.mark.fact("4.5", "3.28")
def test_one_device_hotplug_lock_covers_all_of_it(boot: Boot) -> None:
    """While a reader of memory holds it up, a write to another block waits, and comes after the removal."""
    machine = mixed(boot, Rules.LINUX_6_12)
    with another_reads(machine):
        remover = in_thread(lambda: machine.offline_and_remove_memory(ROOM, 4 * BLOCK), "remover")
        until_parked(remover)
        writer = in_thread(lambda: refusal(write, machine, "memory34/state", "offline"), "writer")
        until_parked(writer)
    assert remover.result() == [32, 33, 34, 35]
    assert writer.result() == "ENODEV"


# -- probe


@ALL
@pytest.mark.fact("5.11", "4.5")
def test_probe_adds_the_block_at_an_address(boot: Boot, rules: Rules) -> None:
    """Numbers in any base; a part of a block is EINVAL, what is there EEXIST, too large a number ERANGE."""
    machine = boot(["1GiB", 0], rules=rules, memory_probe=True, parameters="memhp_default_state=offline")
    assert machine.tree.mode(f"{MEMORY}/probe") == 0o200
    assert write(machine, "probe", "0x100000000\n") == 12
    assert write(machine, "probe", str(ROOM + BLOCK)) == 10
    assert [(block, machine.block(block).nid, state(machine, block)) for block in (32, 33)] == [
        (32, 0, "offline"),
        (33, 0, "offline"),
    ]
    wrong = {
        "0x100000000": "EEXIST",
        "0x100001000": "EINVAL",
        "32": "EINVAL",
        "top": "EINVAL",
        "-1": "EINVAL",
        str(1 << 64): "ERANGE",
    }
    assert {text: refusal(write, machine, "probe", text) for text in wrong} == wrong
    assert refusal(machine.tree.read, f"{MEMORY}/probe") == "EACCES"


@pytest.mark.fact("5.11")
def test_probe_finds_the_node_of_boot_memory(boot: Boot) -> None:
    """Memory that was there at boot comes back to its node; other addresses go to the node of the lowest memory."""
    machine = boot(["512MiB", "512MiB"], rules=Rules.LINUX_6_1, memory_probe=True)
    machine.offline_and_remove_memory(6 * BLOCK, BLOCK)
    write(machine, "probe", f"{6 * BLOCK:#x}")
    write(machine, "probe", f"{ROOM:#x}")
    assert [machine.block(block).nid for block in (6, 32)] == [1, 0]


@pytest.mark.fact("5.1", "5.11")
def test_most_machines_have_no_probe(boot: Boot) -> None:
    """Both kernels were built without it; the option is a boolean."""
    assert refusal(write, boot("1GiB"), "probe", "0") == "ENOENT"
    with pytest.raises(InvalidInput, match="memory_probe"):
        Machine.boot("1GiB", memory_probe=1)  # type: ignore[arg-type]


# -- memory of devices


@ALL
@pytest.mark.fact("10.5", "4.5")
def test_device_memory_has_a_span_and_nothing_else(boot: Boot, rules: Rules) -> None:
    """No block, no callback, no uevent; its pages are neither present nor managed, and no mask changes."""
    machine = boot(["1GiB", "1GiB"], rules=rules)
    log = Log()
    machine.hotplug_memory_notifier(log.callback("a"))
    seqnum, total, blocks = machine.uevents.seqnum, machine.memory_total, dict(machine.blocks)
    made = machine.device_memory.memremap_pages(1, ROOM, 10 * MIB)
    zone = machine.nodes[1].device_zone
    assert (zone.start_pfn, zone.spanned, zone.present, zone.managed) == (ROOM >> 12, 2560, 0, 0)
    assert (machine.uevents.seqnum, machine.memory_total, machine.blocks, log) == (seqnum, total, blocks, [])
    assert "Node 1, zone   Device" in machine.tree.read("/proc/zoneinfo")
    assert "        spanned  2560" in machine.tree.read("/proc/zoneinfo")
    machine.device_memory.memunmap_pages(made)
    assert list(machine.device_memory) == []


@pytest.mark.fact("4.5", "10.5")
def test_device_memory_needs_mem_hotplug_lock_alone(boot: Boot) -> None:
    """It comes while somebody holds device_hotplug_lock, and waits for readers of memory."""
    machine = boot("1GiB")
    with machine.locks.device_hotplug:
        in_thread(lambda: machine.device_memory.memremap_pages(0, ROOM, BLOCK)).result()
    with another_reads(machine):
        mapper = in_thread(lambda: machine.device_memory.memremap_pages(0, 2 * ROOM, BLOCK))
        until_parked(mapper)
        assert len(list(machine.device_memory)) == 1
    assert mapper.result().start == 2 * ROOM


@pytest.mark.fact("8.3", "2.6")
def test_a_node_that_had_device_memory_stays(boot: Boot) -> None:
    """Linux never shrinks the span of ZONE_DEVICE; yet it doesn't count when the last block goes offline."""
    machine = with_node_1(boot, Rules.LINUX_6_1, 1)
    log = Log()
    machine.hotplug_memory_notifier(log.callback("a"))
    machine.device_memory.memunmap_pages(machine.device_memory.memremap_pages(1, 2 * ROOM, BLOCK))
    write(machine, "memory32/state", "online_movable")
    machine.offline_and_remove_memory(ROOM, BLOCK)
    assert log == ["a GOING_ONLINE(-1,1)", "a ONLINE(-1,1)", "a GOING_OFFLINE(-1,1)", "a OFFLINE(-1,1)"]
    assert machine.tree.read(f"{NODE}/online") == "0-1\n"


@pytest.mark.fact("10.5")
def test_device_memory_that_can_not_be_is_refused(boot: Boot) -> None:
    """RAM is ENXIO, other device memory ENOMEM; EINVAL off 2 MiB, off the map, on a node that is offline. Nothing changes."""
    machine = boot(["1GiB", 0])
    machine.device_memory.memremap_pages(0, ROOM, 4 * MIB, private=True)
    before = snapshot(machine)
    remap = machine.device_memory.memremap_pages
    wrong = [
        (0, GIB - 2 * MIB, 4 * MIB),
        (0, ROOM + 2 * MIB, 4 * MIB),
        (0, 2 * ROOM + MIB, 2 * MIB),
        (0, 2 * ROOM, 0),
        (0, 1 << 46, 2 * MIB),
    ]
    assert [refusal(remap, *place) for place in wrong] == ["ENXIO", "ENOMEM", "EINVAL", "EINVAL", "EINVAL"]
    assert [refusal(remap, nid, 2 * ROOM, 2 * MIB) for nid in (1, 7)] == ["EINVAL", "EINVAL"]
    assert refusal(machine.add_memory, 0, ROOM, BLOCK) == "EEXIST"
    assert snapshot(machine) == before
    [made] = machine.device_memory
    machine.device_memory.memunmap_pages(made)
    with pytest.raises(InvalidInput, match="device memory that is there"):
        machine.device_memory.memunmap_pages(made)


@pytest.mark.fact("3.19")
def test_a_resource_name_reads_like_its_text() -> None:
    """Only its identity is its own."""
    assert ResourceName("System RAM (x)") == "System RAM (x)"
    assert isinstance(HotplugError(22, ""), OSError)
