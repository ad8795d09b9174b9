"""Which zone a block goes to, and how far zones reach."""

from __future__ import annotations

import pytest

from memhp import Machine, OnlineType, Rules, ZoneType
from memhp.kernel.layout import default_block_size
from support import (
    ALL,
    BLOCK,
    GIB,
    MIB,
    PARAMETERS,
    Boot,
    another_reads,
    in_thread,
    refusal,
    until_parked,
    valid_zones,
    with_node_1,
    write,
)

ROOM = 4 * GIB


def small(boot: Boot, rules: Rules = Rules.LINUX_6_1, **parameters: object) -> Machine:
    """Boot the guest of the recorded examples: 768 MiB on node 0, and blocks 32 to 39 of node 1, offline."""
    machine = boot(["768MiB", 0], rules=rules, parameters={"memhp_default_state": "offline", **parameters})
    machine.add_memory(1, ROOM, 8 * BLOCK)
    return machine


def online(machine: Machine, word: str, *blocks: int) -> None:
    for block in blocks:
        write(machine, f"memory{block}/state", f"online_{word}")


def span(machine: Machine, kind: ZoneType, nid: int = 1) -> tuple[int, int]:
    """Give a zone's span in blocks: the first, and the one after the last."""
    zone = machine.zone(nid, kind)
    return zone.start_pfn // 0x8000, (zone.start_pfn + zone.spanned) // 0x8000


# -- 6.1, 6.2: what was asked for


@ALL
@pytest.mark.fact("6.1")
def test_online_movable_is_movable_wherever_it_is(boot: Boot, rules: Rules) -> None:
    """No contiguity is asked for: zones may interleave and overlap."""
    machine = small(boot, rules)
    online(machine, "kernel", 32, 34, 36)
    online(machine, "movable", 33, 35, 37)
    assert [valid_zones(machine, block) for block in range(32, 38)] == ["Normal", "Movable"] * 3
    assert (span(machine, ZoneType.NORMAL), span(machine, ZoneType.MOVABLE)) == ((32, 37), (33, 38))


@ALL
@pytest.mark.fact("6.2", "6.10")
@pytest.mark.parametrize(("word", "zone"), [("online", "DMA32"), ("online_kernel", "DMA32"), ("online_movable", "Movable")])
def test_boot_memory_comes_back_to_dma32(boot: Boot, rules: Rules, word: str, zone: str) -> None:
    """Block 3 of a 768 MiB guest, offline, reads ``DMA32 Movable``."""
    machine = small(boot, rules)
    write(machine, "memory3/state", "offline")
    assert valid_zones(machine, 3) == "DMA32 Movable"
    write(machine, "memory3/state", word)
    assert valid_zones(machine, 3) == zone


@ALL
@pytest.mark.fact("6.2", "6.10")
@pytest.mark.parametrize("word", ["online", "online_kernel"])
def test_memory_below_4_gib_outside_of_dma32_s_span_goes_to_normal(boot: Boot, rules: Rules, word: str) -> None:
    """Block 8 of node 0, at 1 GiB: the span decides, not the address."""
    machine = small(boot, rules)
    machine.add_memory(0, GIB, BLOCK)
    assert valid_zones(machine, 8) == "Normal Movable"
    write(machine, "memory8/state", word)
    assert valid_zones(machine, 8) == "Normal"


@ALL
@pytest.mark.fact("6.2", "6.4")
def test_the_last_boot_block_does_not_come_back_to_dma32(boot: Boot, rules: Rules) -> None:
    """Its leaving shrinks DMA32's span, which then does not touch it any more."""
    machine = small(boot, rules)
    write(machine, "memory5/state", "offline")
    assert span(machine, ZoneType.DMA32, 0) == (0, 5)
    assert valid_zones(machine, 5) == "Normal Movable"


# -- 6.3, 6.10: contig-zones


@ALL
@pytest.mark.fact("6.3", "6.10")
def test_with_nothing_online_every_block_prefers_normal(boot: Boot, rules: Rules) -> None:
    """Neither zone's span touches it."""
    machine = small(boot, rules)
    assert [valid_zones(machine, block) for block in range(32, 40)] == ["Normal Movable"] * 8


@ALL
@pytest.mark.fact("6.3", "6.10")
def test_a_block_between_movable_blocks_prefers_movable(boot: Boot, rules: Rules) -> None:
    """34 and 36 are Movable: so is 35 by default, but neither 33 nor 37."""
    machine = small(boot, rules)
    online(machine, "movable", 34, 36)
    assert [valid_zones(machine, block) for block in (33, 35, 37)] == ["Normal Movable", "Movable Normal", "Normal Movable"]
    write(machine, "memory35/state", "online")
    assert valid_zones(machine, 35) == "Movable"


@ALL
@pytest.mark.fact("6.3", "6.4", "6.10")
def test_the_only_normal_block_between_movable_ones_prefers_movable_once_offline(boot: Boot, rules: Rules) -> None:
    """Movable's span covers it, Normal's is gone."""
    machine = small(boot, rules)
    online(machine, "kernel", 33)
    online(machine, "movable", 32, 34)
    write(machine, "memory33/state", "offline")
    assert valid_zones(machine, 33) == "Movable Normal"
    assert span(machine, ZoneType.NORMAL) == (0, 0)


@ALL
@pytest.mark.fact("6.3", "6.10", "5.9")
@pytest.mark.parametrize(("movable_node", "default"), [(False, "Normal Movable"), (True, "Movable Normal")])
def test_where_both_spans_overlap_movable_node_decides(boot: Boot, rules: Rules, movable_node: bool, default: str) -> None:  # noqa: FBT001
    """Normal at 32 and 36, Movable at 33 and 37: 34 and 35 are in both spans."""
    machine = small(boot, rules, movable_node=movable_node)
    online(machine, "kernel", 32, 36)
    online(machine, "movable", 33, 37)
    assert [valid_zones(machine, block) for block in (34, 35)] == [default, default]


@ALL
@pytest.mark.fact("6.3", "5.9")
def test_where_no_span_is_near_movable_node_decides_too(boot: Boot, rules: Rules) -> None:
    """On such a machine new memory is Movable from the beginning; online_kernel still is the kernel's."""
    machine = small(boot, rules, movable_node=True)
    assert valid_zones(machine, 32) == "Movable Normal"
    write(machine, "memory32/state", "online")
    write(machine, "memory33/state", "online_kernel")
    assert [valid_zones(machine, block) for block in (32, 33)] == ["Movable", "Normal"]


# -- 6.4: spans


@ALL
@pytest.mark.fact("6.4", "5.14")
def test_spans_grow_over_holes_and_shrink_at_their_ends_only(boot: Boot, rules: Rules) -> None:
    """Leaving the middle makes a hole; leaving an end goes back to the next block; the last one leaves nothing."""
    machine = small(boot, rules)
    seen = []
    steps = [
        ("online", 35),
        ("online", 33),
        ("online", 38),
        ("offline", 35),
        ("offline", 38),
        ("online", 36),
        ("offline", 33),
        ("offline", 36),
    ]
    for word, block in steps:
        write(machine, f"memory{block}/state", {"online": "online_kernel", "offline": "offline"}[word])
        seen.append((word, block, span(machine, ZoneType.NORMAL), machine.zone(1, ZoneType.NORMAL).present // 0x8000))
    assert seen == [
        ("online", 35, (35, 36), 1),
        ("online", 33, (33, 36), 2),
        ("online", 38, (33, 39), 3),
        ("offline", 35, (33, 39), 2),
        ("offline", 38, (33, 34), 1),
        ("online", 36, (33, 37), 2),
        ("offline", 33, (36, 37), 1),
        ("offline", 36, (0, 0), 0),
    ]


@ALL
@pytest.mark.fact("6.4")
def test_several_blocks_at_once_shrink_as_one(boot: Boot, rules: Rules) -> None:
    """A range that covers an end takes the span back to the next block beyond it."""
    machine = small(boot, rules)
    online(machine, "movable", 32, 34, 35, 36)
    with machine.mem_hotplug():
        machine.offline_pages(34 * 0x8000, 3 * 0x8000, machine.zone(1, ZoneType.MOVABLE))
    assert span(machine, ZoneType.MOVABLE) == (32, 33)


# -- 6.5, 6.6: auto-movable, for memory without groups


def automatic(boot: Boot, rules: Rules, ratio: int, numa_aware: str = "N") -> Machine:
    """Boot the same guest, with 196510 pages of early kernel memory, and auto-movable."""
    machine = small(boot, rules)
    tree = machine.tree
    tree.write(f"{PARAMETERS}/online_policy", "auto-movable")
    tree.write(f"{PARAMETERS}/auto_movable_ratio", str(ratio))
    tree.write(f"{PARAMETERS}/auto_movable_numa_aware", numa_aware)
    assert sum(zone.present for zone in machine.nodes[0].zones) == 196510
    return machine


def fill(machine: Machine) -> list[str]:
    """Bring blocks 32 to 37 online untyped, and list their zones."""
    for block in range(32, 38):
        write(machine, f"memory{block}/state", "online")
    return [valid_zones(machine, block) for block in range(32, 38)]


@ALL
@pytest.mark.fact("6.5", "6.6")
@pytest.mark.parametrize(("ratio", "movable"), [(0, 0), (16, 0), (17, 1), (33, 1), (34, 2), (50, 2), (51, 3), (301, 6)])
def test_auto_movable_allows_as_much_as_the_ratio_says(boot: Boot, rules: Rules, ratio: int, movable: int) -> None:
    """movable + block <= ratio * 196510 / 100; at 50 that is two blocks, and hotplugged kernel blocks don't raise it."""
    assert fill(automatic(boot, rules, ratio)) == ["Movable"] * movable + ["Normal"] * (6 - movable)


@ALL
@pytest.mark.fact("6.5")
def test_numa_aware_a_node_without_memory_at_boot_gets_no_movable(boot: Boot, rules: Rules) -> None:
    """Its own early kernel memory is 0."""
    machine = automatic(boot, rules, 301, "Y")
    assert fill(machine) == ["Normal"] * 6
    machine.add_memory(0, 8 * GIB, BLOCK)
    assert valid_zones(machine, 64) == "Movable Normal"


@ALL
@pytest.mark.fact("6.5", "6.12")
def test_auto_movable_does_not_touch_what_was_asked_for_by_name(boot: Boot, rules: Rules) -> None:
    """online_kernel and online_movable are obeyed whatever the ratio."""
    machine = automatic(boot, rules, 0)
    online(machine, "movable", 32, 33)
    assert [valid_zones(machine, block) for block in (32, 33)] == ["Movable", "Movable"]
    machine.tree.write(f"{PARAMETERS}/auto_movable_ratio", "1000")
    online(machine, "kernel", 34)
    assert valid_zones(machine, 34) == "Normal"


@ALL
@pytest.mark.fact("6.12")
def test_the_default_is_decided_anew_each_time_and_nothing_is_reserved(boot: Boot, rules: Rules) -> None:
    """What valid_zones shows can have changed when it is used: by another block, or by a parameter."""
    machine = automatic(boot, rules, 17)
    assert [valid_zones(machine, block) for block in (32, 33)] == ["Movable Normal", "Movable Normal"]
    write(machine, "memory32/state", "online")
    assert valid_zones(machine, 33) == "Normal Movable"
    machine.tree.write(f"{PARAMETERS}/auto_movable_ratio", "34")
    assert valid_zones(machine, 33) == "Movable Normal"
    machine.tree.write(f"{PARAMETERS}/online_policy", "contig-zones")
    assert valid_zones(machine, 33) == "Normal Movable"


@ALL
@pytest.mark.fact("3.7", "6.12")
def test_the_zone_is_chosen_before_mem_hotplug_lock_is_taken(boot: Boot, rules: Rules) -> None:
    """A policy that changes while the request waits for that lock comes too late for it."""
    machine = automatic(boot, rules, 301)
    with another_reads(machine):
        thread = in_thread(lambda: write(machine, "memory32/state", "online"))
        until_parked(thread)
        machine.tree.write(f"{PARAMETERS}/online_policy", "contig-zones")
    assert thread.result() == 6
    assert [valid_zones(machine, block) for block in (32, 33)] == ["Movable", "Normal Movable"]


@pytest.mark.fact("6.5")
def test_boot_memory_that_went_movable_counts_as_movable(boot: Boot) -> None:
    """Early memory helps the ratio only while it is the kernel's."""
    machine = automatic(boot, Rules.LINUX_6_1, 17)
    write(machine, "memory3/state", "offline")
    write(machine, "memory3/state", "online_movable")
    assert valid_zones(machine, 32) == "Normal Movable"  # 32768 + 32768 > 17 * 163742 / 100


# -- looking zones up


@pytest.mark.parametrize("kind", list(OnlineType)[1:])
def test_requests_take_the_type_as_a_word_or_as_a_member(boot: Boot, kind: OnlineType) -> None:
    """Both mean the same."""
    machine = with_node_1(boot)
    machine.device_online(32, kind)
    machine.device_online(33, kind.value)
    assert valid_zones(machine, 32) == valid_zones(machine, 33)
    assert refusal(machine.device_online, 99, kind) == "ENODEV"


# -- 5.16: the block size


@pytest.mark.fact("5.16")
@pytest.mark.parametrize(
    ("ram_end", "hypervisor", "size"),
    [
        (1 * GIB, True, 128 * MIB),
        (64 * GIB - BLOCK, False, 128 * MIB),
        (64 * GIB, True, 2 * GIB),
        (64 * GIB, False, 2 * GIB),
        (65 * GIB, True, GIB),
        (65 * GIB, False, 2 * GIB),
        (65 * GIB + 512 * MIB, True, 512 * MIB),
        (65 * GIB + 256 * MIB, True, 256 * MIB),
        (65 * GIB + BLOCK, True, 128 * MIB),
        (65 * GIB + BLOCK, False, 2 * GIB),
        (65 * GIB + MIB, True, 128 * MIB),
        (1024 * GIB, True, 2 * GIB),
    ],
)
def test_the_block_size_follows_the_end_of_ram(ram_end: int, hypervisor: bool, size: int) -> None:  # noqa: FBT001
    """128 MiB below 64 GiB; then 2 GiB on bare metal, and on a hypervisor what divides the end of RAM."""
    assert default_block_size(ram_end, hypervisor=hypervisor) == size


@pytest.mark.fact("5.16")
def test_a_machine_of_64_gib_has_larger_blocks(boot: Boot) -> None:
    """Its RAM ends at 65 GiB because of the hole below 4 GiB; 62 GiB are not enough for that."""
    assert boot("64GiB").block_size == GIB
    assert boot("64GiB", hypervisor=False).block_size == 2 * GIB
    assert boot("62GiB").block_size == BLOCK
