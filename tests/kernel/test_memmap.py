"""Memory that holds its own memmap (memmap_on_memory), and the other ways to add: merged ranges, the firmware's list."""

from __future__ import annotations

import pytest

from memhp import (
    MEM_CANCEL_ONLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_ONLINE,
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
)
from memhp.kernel.iomem import ResourceName
from support import (
    ALL,
    BLOCK,
    GIB,
    MEMORY,
    MIB,
    PARAMETERS,
    Boot,
    Log,
    refusal,
    rounds,
    snapshot,
    state,
    three,
    valid_zones,
    write,
)

BEFORE_6_12 = pytest.mark.parametrize("rules", [Rules.DOCUMENTED, Rules.LINUX_6_1])
ROOM = 4 * GIB
PAGES = BLOCK >> 12
START = ROOM >> 12
MEMMAP = MhpFlags.MEMMAP_ON_MEMORY


def hosting(boot: Boot, rules: Rules, blocks: int = 1, flags: MhpFlags = MEMMAP) -> Machine:
    """Boot with memmap_on_memory=1, and add blocks 32, ... to node 1, each by itself, that hold their own memmap."""
    parameters = "memhp_default_state=offline memory_hotplug.memmap_on_memory=1"
    machine = boot(["1GiB", 0], rules=rules, parameters=parameters)
    for number in range(blocks):
        machine.add_memory(1, ROOM + number * BLOCK, BLOCK, flags=flags)
    return machine


def ranges(machine: Machine) -> list[str]:
    """Note from now on what callbacks are told: the action, the range and the altmap."""
    heard: list[str] = []

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        place = f"{arg.start_pfn - START:#x}+{arg.nr_pages:#x}"
        altmap = f" altmap {arg.altmap_start_pfn - START:#x}+{arg.altmap_nr_pages:#x}" if arg.altmap_nr_pages else ""
        heard.append(f"{action.name.removeprefix('MEM_')} {place}{altmap}")
        return NOTIFY_OK

    machine.hotplug_memory_notifier(callback)
    return heard


# -- what is told and counted


@BEFORE_6_12
@pytest.mark.fact("2.8")
def test_callbacks_hear_of_the_part_behind_the_memmap(boot: Boot, rules: Rules) -> None:
    """The range begins 512 pages into the block."""
    machine = hosting(boot, rules)
    heard = ranges(machine)
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory32/state", "offline")
    assert heard == [
        "GOING_ONLINE 0x200+0x7e00",
        "ONLINE 0x200+0x7e00",
        "GOING_OFFLINE 0x200+0x7e00",
        "OFFLINE 0x200+0x7e00",
    ]


@pytest.mark.fact("2.7", "2.8")
def test_on_6_12_prepare_and_finish_name_the_memmap_s_own_range(boot: Boot) -> None:
    """altmap_start_pfn is the block's start and altmap_nr_pages 0x200; the other actions don't have it."""
    machine = hosting(boot, Rules.LINUX_6_12)
    heard = ranges(machine)
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory32/state", "offline")
    assert heard == [
        "PREPARE_ONLINE 0x200+0x7e00 altmap 0x0+0x200",
        "GOING_ONLINE 0x200+0x7e00",
        "ONLINE 0x200+0x7e00",
        "GOING_OFFLINE 0x200+0x7e00",
        "OFFLINE 0x200+0x7e00",
        "FINISH_OFFLINE 0x200+0x7e00 altmap 0x0+0x200",
    ]


@ALL
@pytest.mark.fact("3.20")
def test_the_memmap_is_present_and_not_managed(boot: Boot, rules: Rules) -> None:
    """32768 pages are present and 32256 managed, so MemTotal grows by 129024 kB; all goes back when the block goes."""
    machine = hosting(boot, rules)
    before = machine.memory_total
    write(machine, "memory32/state", "online_movable")
    zone = machine.zone(1, "Movable")
    assert (zone.spanned, zone.present, zone.managed, zone.start_pfn) == (32768, 32768, 32256, START)
    assert (machine.memory_total - before) >> 10 == 129024
    assert machine.pages.count_free([machine.block(32)]) == 32256
    write(machine, "memory32/state", "offline")
    assert (zone.spanned, zone.present, zone.managed, zone.start_pfn) == (0, 0, 0, 0)
    assert machine.memory_total == before


@ALL
@pytest.mark.fact("3.20", "2.6")
def test_all_pages_behind_the_memmap_can_be_used_and_leave(boot: Boot, rules: Rules) -> None:
    """The memmap neither moves nor keeps its block, and the block still counts as the node's last."""
    machine = hosting(boot, rules)
    log = Log()
    three(machine, log)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(32256, blocks=[32], owner="cache")
    assert held.extents[0].start_pfn == START + 0x200
    assert refusal(lambda: machine.alloc_pages(1, blocks=[32])) == "ENOMEM"
    log.clear()
    write(machine, "memory32/state", "offline")
    assert [line for line in rounds(log) if not line.startswith("FINISH")] == [
        "GOING_OFFLINE(-1,1): 200 0 -1",
        "OFFLINE(-1,1): 200 0 -1",
    ]
    assert held.blocks != [32]


@ALL
@pytest.mark.fact("3.20", "3.10")
def test_a_refusal_takes_the_memmap_back_too(boot: Boot, rules: Rules) -> None:
    """After a refused online nothing is counted, after a refused offline everything is as before."""
    machine = hosting(boot, rules)
    answers: dict[MemoryAction, NotifyResult | BaseException] = {MEM_GOING_ONLINE: NOTIFY_BAD}
    three(machine, Log(), {0: answers})
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "online_movable") == "EPERM"
    assert snapshot(machine) == before
    answers.clear()
    write(machine, "memory32/state", "online_movable")
    before = snapshot(machine)
    answers[MEM_GOING_OFFLINE] = NOTIFY_BAD
    assert refusal(write, machine, "memory32/state", "offline") == "EPERM"
    assert snapshot(machine) == before


@pytest.mark.fact("3.20")
def test_as_documented_a_refused_mem_online_gives_the_memmap_back(boot: Boot) -> None:
    """The memmap is not taken for pages that somebody holds."""
    machine = hosting(boot, Rules.DOCUMENTED)
    log = Log()
    three(machine, log, {0: {MEM_ONLINE: NOTIFY_BAD}})
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", "online_movable") == "EPERM"
    assert rounds(log)[-1] == f"{MEM_CANCEL_ONLINE.name.removeprefix('MEM_')}(-1,1): 200 0 -1"
    assert {**snapshot(machine), "uevents": before["uevents"]} == before


@pytest.mark.fact("3.10", "2.8")
def test_below_the_devices_the_memmap_is_no_part_of_the_range(boot: Boot) -> None:
    """online_pages() of a whole block that begins with its memmap is EINVAL; the part behind it is a range."""
    machine = hosting(boot, Rules.LINUX_6_1)
    zone = machine.zone(1, "Normal")
    with machine.mem_hotplug():
        for start, pages in [(START, PAGES), (START + 0x200, PAGES), (START + 0x400, 0x7C00), (START, 0x7E00)]:
            assert refusal(machine.online_pages, start, pages, zone) == "EINVAL"
        machine.online_pages(START + 0x200, 0x7E00, zone)
        machine.offline_pages(START + 0x200, 0x7E00, zone)


# -- when it is possible


@BEFORE_6_12
@pytest.mark.fact("3.20", "13.7")
@pytest.mark.parametrize(("parameter", "blocks"), [("N", 1), ("Y", 2)])
def test_before_6_12_asking_for_what_can_not_be_is_einval(boot: Boot, rules: Rules, parameter: str, blocks: int) -> None:
    """The parameter is N, or the range is more than one block; nothing is changed."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memory_hotplug.memmap_on_memory": parameter})
    before = snapshot(machine)
    assert refusal(lambda: machine.add_memory(1, ROOM, blocks * BLOCK, flags=MEMMAP)) == "EINVAL"
    assert snapshot(machine) == before


@pytest.mark.fact("3.20", "13.7")
@pytest.mark.parametrize(("parameter", "pages"), [("N", [0, 0]), ("Y", [512, 512]), ("force", [512, 512])])
def test_on_6_12_every_block_has_its_own_or_none_has(boot: Boot, parameter: str, pages: list[int]) -> None:
    """It is silently left out where the parameter says N."""
    machine = boot(["1GiB", 0], rules=Rules.LINUX_6_12, parameters={"memory_hotplug.memmap_on_memory": parameter})
    machine.add_memory(1, ROOM, 2 * BLOCK, flags=MEMMAP)
    assert [machine.block(block).altmap_pages for block in (32, 33)] == pages


@pytest.mark.fact("3.20")
def test_larger_blocks_have_larger_memmaps(boot: Boot) -> None:
    """A page of memmap describes 64 pages: 8192 pages for a block of 2 GiB."""
    parameters = "memhp_default_state=offline memory_hotplug.memmap_on_memory=1"
    machine = boot(["4GiB", 0], block_size="2GiB", rules=Rules.LINUX_6_1, parameters=parameters)
    [block] = machine.add_memory(1, 6 * GIB, 2 * GIB, flags=MEMMAP)
    write(machine, f"memory{block}/state", "online_movable")
    zone = machine.zone(1, "Movable")
    assert (zone.present, zone.managed) == (524288, 524288 - 8192)


@pytest.mark.fact("3.21")
def test_memory_that_is_inaccessible_while_offline_is_so_on_6_12_only(boot: Boot) -> None:
    """And only if it holds its own memmap."""
    flags = MEMMAP | MhpFlags.OFFLINE_INACCESSIBLE
    assert hosting(boot, Rules.LINUX_6_12, flags=flags).block(32).inaccessible
    assert not hosting(boot, Rules.LINUX_6_12, flags=MhpFlags.OFFLINE_INACCESSIBLE).block(32).inaccessible
    assert not hosting(boot, Rules.LINUX_6_1, flags=flags).block(32).inaccessible


@ALL
@pytest.mark.fact("3.21")
def test_flags_have_the_kernel_s_numbers(boot: Boot, rules: Rules) -> None:
    """MERGE 1, MEMMAP_ON_MEMORY 2, NID_IS_MGID 4, OFFLINE_INACCESSIBLE 8; another number is an error."""
    assert [int(flag) for flag in MhpFlags] == [1, 2, 4, 8]
    machine = boot(["1GiB", 0], rules=rules)
    before = snapshot(machine)
    for wrong in (16, -1, True, "MERGE"):
        with pytest.raises(InvalidInput, match="MERGE_RESOURCE, MEMMAP_ON_MEMORY, NID_IS_MGID, OFFLINE_INACCESSIBLE"):
            machine.add_memory(1, ROOM, BLOCK, flags=wrong)  # type: ignore[arg-type]
    assert snapshot(machine) == before


# -- the parameter


@pytest.mark.fact("5.8", "5.9")
@pytest.mark.parametrize(
    ("line", "on_6_1", "on_6_12"),
    [
        ("memory_hotplug.memmap_on_memory=1", "Y", "Y"),
        ("memory_hotplug.memmap_on_memory=off", "N", "N"),
        ("memory_hotplug.memmap_on_memory=force", "N", "force"),  # on 6.1 "f" means false
        ("memory_hotplug.memmap_on_memory=FORCE", "N", "force"),
        ("memory_hotplug.memmap_on_memory=Force", "N", "N"),
        ("memory_hotplug.memmap_on_memory=maybe", "N", "N"),
        ("memory_hotplug.memmap_on_memory", "Y", "N"),  # a bool needs no value on the command line
        ("memory-hotplug.memmap-on-memory=y", "Y", "Y"),
        ("memory_hotplug.memmap_on_memory=1 -- memory_hotplug.memmap_on_memory=0", "Y", "Y"),
        ("memmap_on_memory=1", "N", "N"),
    ],
)
def test_memmap_on_memory_is_read_from_the_command_line(boot: Boot, line: str, on_6_1: str, on_6_12: str) -> None:
    """As each kernel reads it; the file is read-only."""
    for rules, expected in ((Rules.LINUX_6_1, on_6_1), (Rules.LINUX_6_12, on_6_12)):
        machine = boot("1GiB", rules=rules, parameters=line)
        assert machine.tree.read(f"{PARAMETERS}/memmap_on_memory") == f"{expected}\n"
        assert refusal(machine.tree.write, f"{PARAMETERS}/memmap_on_memory", "1") == "EACCES"


@pytest.mark.fact("5.9", "5.9b")
def test_words_of_a_command_line_are_linux_s(boot: Boot) -> None:
    """movable_node means yes whatever is behind it, dashes are underscores, quotes keep spaces, -- ends it (observed)."""
    line = 'movable_node=n memory-hotplug.auto-movable-ratio=40 x="memory_hotplug.online_policy=auto-movable"'
    line += " -- memhp_default_state=online"
    machine = boot(["1GiB", 0], rules=Rules.LINUX_6_1, parameters=line)
    assert machine.parameters.movable_node
    names = ("online_policy", "auto_movable_ratio")
    assert [machine.tree.read(f"{PARAMETERS}/{name}") for name in names] == ["contig-zones\n", "40\n"]
    assert machine.tree.read(f"{MEMORY}/auto_online_blocks") == "offline\n"


# -- removing


@BEFORE_6_12
@pytest.mark.fact("3.25")
def test_before_6_12_it_leaves_block_by_block(boot: Boot, rules: Rules) -> None:
    """Two at once are EINVAL before anything is done, also if only one of them holds its memmap."""
    machine = hosting(boot, rules, 2)
    machine.add_memory(1, ROOM + 2 * BLOCK, BLOCK)
    before = snapshot(machine)
    for first, count in [(0, 2), (1, 2), (0, 3)]:
        with pytest.raises(HotplugError, match="hold their own memmap") as caught:
            machine.remove_memory(ROOM + first * BLOCK, count * BLOCK)
        assert caught.value.errno == 22
    assert snapshot(machine) == before
    for number in range(3):
        machine.remove_memory(ROOM + number * BLOCK, BLOCK)
    assert list(machine.nodes[1].linked) == []


@pytest.mark.fact("3.25")
def test_on_6_12_blocks_with_their_own_memmap_leave_together(boot: Boot) -> None:
    """Only a mixture is EINVAL; by then the firmware's entry is gone, if there is one of just that range."""
    machine = hosting(boot, Rules.LINUX_6_12, 2)
    machine.add_memory(1, ROOM + 2 * BLOCK, BLOCK)
    machine.firmware_map.add(ROOM + BLOCK, 2 * BLOCK)
    before = snapshot(machine, files=False)
    assert refusal(machine.remove_memory, ROOM + BLOCK, 2 * BLOCK) == "EINVAL"
    after = snapshot(machine, files=False)
    assert [entry.start for entry in machine.firmware_map if entry.start >= ROOM] == [ROOM, ROOM + BLOCK, ROOM + 2 * BLOCK]
    assert {**after, "firmware map": before["firmware map"]} == before
    assert machine.remove_memory(ROOM, 2 * BLOCK) == [32, 33]


# -- merging


@ALL
@pytest.mark.fact("3.18", "3.21", "3.27")
def test_neighbours_merge_if_both_were_added_so(boot: Boot, rules: Rules) -> None:
    """With MERGE_RESOURCE; one that was added without it stays apart. What merged can be removed at once."""
    machine = boot(["1GiB", 0], rules=rules, parameters="memhp_default_state=offline")
    for number, flags in [(0, 1), (2, 1), (1, 1), (3, 0), (4, 1)]:
        machine.add_memory(1, ROOM + number * BLOCK, BLOCK, flags=flags)
    above = [str(resource) for resource in machine.iomem if resource.start >= ROOM]
    assert above == [
        "100000000-117ffffff : System RAM",
        "118000000-11fffffff : System RAM",
        "120000000-127ffffff : System RAM",
    ]
    machine.remove_memory(ROOM + BLOCK, BLOCK)
    machine.remove_memory(ROOM, BLOCK)
    assert [str(resource) for resource in machine.iomem if resource.start >= ROOM][:1] == ["110000000-117ffffff : System RAM"]


@ALL
@pytest.mark.fact("3.19")
def test_a_driver_s_memory_merges_only_under_the_very_same_name(boot: Boot, rules: Rules) -> None:
    """Linux compares where the name lies, not what it says: two copies of one text are two names."""
    machine = boot(["1GiB", 0], rules=rules, parameters="memhp_default_state=offline")
    mine, yours = ResourceName("System RAM (x)"), ResourceName("System RAM (x)")
    for number, name in enumerate([mine, mine, yours, "System RAM (x)", "System RAM (x)"]):
        machine.add_memory_driver_managed(1, ROOM + number * BLOCK, BLOCK, name, flags=MhpFlags.MERGE_RESOURCE)
    assert [str(resource) for resource in machine.iomem if resource.start >= ROOM] == [
        "100000000-10fffffff : System RAM (x)",
        "110000000-117ffffff : System RAM (x)",
        "118000000-11fffffff : System RAM (x)",
        "120000000-127ffffff : System RAM (x)",
    ]


@ALL
@pytest.mark.fact("3.19")
def test_a_wrong_name_is_refused_before_any_lock(boot: Boot, rules: Rules) -> None:
    """Also inside of a callback, where any lock would be an error of its own."""
    machine = boot("1GiB", rules=rules)
    with machine.mem_hotplug():
        assert refusal(machine.add_memory_driver_managed, 0, ROOM, BLOCK, "System RAM") == "EINVAL"


@pytest.mark.fact("5.15")
def test_a_claim_inside_of_a_device_is_its_child(boot: Boot) -> None:
    """If the device's resource isn't busy; /proc/iomem shows it two columns in, and removing it leaves the device."""
    machine = boot(["1GiB", 0], rules=Rules.LINUX_6_1, parameters="memhp_default_state=offline")
    machine.iomem.request(ROOM, 4 * BLOCK, "virtio0", busy=False)
    machine.add_memory_driver_managed(1, ROOM, BLOCK, "System RAM (virtio_mem)")
    machine.iomem.request(ROOM + 8 * BLOCK, BLOCK, "busy device")
    shown = str(machine.iomem).splitlines()[-3:]
    assert shown == [
        "100000000-11fffffff : virtio0",
        "  100000000-107ffffff : System RAM (virtio_mem)",
        "140000000-147ffffff : busy device",
    ]
    for first, count in [(3, 2), (8, 1), (0, 1)]:
        assert refusal(machine.add_memory, 1, ROOM + first * BLOCK, count * BLOCK) == "EEXIST"
    machine.remove_memory(ROOM, BLOCK)
    assert str(machine.iomem).splitlines()[-2:] == ["100000000-11fffffff : virtio0", "140000000-147ffffff : busy device"]


# -- /sys/firmware/memmap


def firmware(machine: Machine) -> list[str]:
    root = "/sys/firmware/memmap"
    numbers = sorted(machine.tree.list(root), key=int)
    return [
        " ".join([n, *(machine.tree.read(f"{root}/{n}/{file}").strip() for file in ("start", "end", "type"))]) for n in numbers
    ]


@ALL
@pytest.mark.fact("5.15", "5.15a")
def test_the_firmware_s_list_has_boot_memory_and_what_was_added(boot: Boot, rules: Rules) -> None:
    """Numbers go on and are never used again (observed on both kernels, but for the firmware's own ranges above 1 MiB)."""
    machine = boot([{"memory": 512 * MIB - 0x20000}, 0], rules=rules, parameters="memhp_default_state=offline")
    at_boot = [
        "0 0x0 0x9fbff System RAM",
        "1 0x9fc00 0x9ffff Reserved",
        "2 0xf0000 0xfffff Reserved",
        "3 0x100000 0x1ffdffff System RAM",
    ]
    assert firmware(machine) == at_boot
    machine.add_memory(1, ROOM, 2 * BLOCK)
    assert firmware(machine) == [*at_boot, "4 0x100000000 0x10fffffff System RAM"]
    machine.remove_memory(ROOM, 2 * BLOCK)
    machine.add_memory(1, ROOM, BLOCK)
    assert firmware(machine) == [*at_boot, "5 0x100000000 0x107ffffff System RAM"]
    assert machine.tree.mode("/sys/firmware/memmap/5/type") == 0o444
    assert [refusal(machine.tree.read, f"/sys/firmware/memmap/{name}/type") for name in ("4", "05", "x")] == ["ENOENT"] * 3


@pytest.mark.fact("3.25", "5.15")
def test_only_a_range_of_just_that_extent_leaves_the_firmware_s_list(boot: Boot) -> None:
    """Two blocks that came at once and leave one by one stay in the list."""
    machine = boot([{"memory": "512MiB"}, 0], rules=Rules.LINUX_6_1, parameters="memhp_default_state=offline")
    machine.add_memory(1, ROOM, 2 * BLOCK)
    machine.remove_memory(ROOM, BLOCK)
    machine.remove_memory(ROOM + BLOCK, BLOCK)
    assert firmware(machine)[-1] == "4 0x100000000 0x10fffffff System RAM"
    assert state(machine, 3) == "online"
    assert valid_zones(machine, 3) == "DMA32"
