"""How a machine begins: from a spec, and as the twin of a real one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memhp import DirTree, InvalidInput, Machine, NodeSpec, Rules
from memhp.kernel import BlockState
from support import BLOCK, GIB, MEMORY, NODE, PARAMETERS, Boot, refusal, snapshot, state, tree_texts, valid_zones, write

LIVE = Path(MEMORY)


# -- from a spec


def test_a_block_with_two_parts_in_a_zone_is_one_of_its_blocks(boot: Boot) -> None:
    """The first MiB leaves two parts of memory0 in zone DMA."""
    zone = boot("1GiB").zone(0, "DMA")
    assert ([block.id for block in zone.ascending()], sorted(zone.blocks)) == ([0], [0])


@pytest.mark.fact("5.14", "6.6")
def test_a_pc_keeps_parts_of_its_first_mebibyte(boot: Boot) -> None:
    """Page 0 and 0x9f..0xff are no RAM: DMA begins at page 1 and has 3998 pages."""
    machine = boot("1GiB")
    dma, dma32, normal, movable = machine.nodes[0].zones
    assert (dma.start_pfn, dma.spanned, dma.present) == (1, 4095, 3998)
    assert (dma32.start_pfn, dma32.spanned, dma32.present) == (0x1000, 0x3F000, 0x3F000)
    assert (normal.spanned, movable.spanned) == (0, 0)
    assert str(machine.iomem) == "00001000-0009efff : System RAM\n00100000-3fffffff : System RAM\n"


@pytest.mark.fact("5.6", "6.2")
def test_ram_leaves_a_hole_from_3_to_4_gib(boot: Boot) -> None:
    """5 GiB are 24 blocks below 3 GiB and 16 from 4 GiB on; DMA32 and Normal meet there."""
    machine = boot("5GiB")
    assert sorted(machine.blocks) == [*range(24), *range(32, 48)]
    _, dma32, normal, _ = machine.nodes[0].zones
    assert (dma32.start_pfn, dma32.spanned, dma32.present) == (0x1000, 0xFF000, 0xBF000)
    assert (normal.start_pfn, normal.spanned, normal.present) == (0x100000, 0x80000, 0x80000)
    assert [valid_zones(machine, block) for block in (0, 23, 32)] == ["none", "DMA32", "Normal"]


@pytest.mark.fact("3.14", "3.41")
def test_a_partial_last_block_has_what_is_left(boot: Boot) -> None:
    """1000 MiB: block 7 has 104 MiB, and can't go offline."""
    machine = boot("1000MiB")
    assert (len(machine.blocks), machine.block(7).ram_pages, machine.block(7).has_holes) == (8, 104 << 8, True)
    assert machine.memory_total == (1000 << 20) - (0x62 << 12)
    assert refusal(write, machine, "memory7/state", "offline") == "EINVAL"


@pytest.mark.parametrize(("memory", "block", "end"), [("512MiB", 3, 0x1FFE0000), ("4GiB", 23, 0xBFFE0000)])
def test_the_firmware_s_tables_lie_at_the_end_of_low_ram(boot: Boot, memory: str, block: int, end: int) -> None:
    """As /proc/iomem of QEMU's PC says: its last 128 KiB below the hole are Reserved, so that block can't go offline."""
    machine = boot([memory], acpi_tables="128KiB")
    assert [n for n, found in machine.blocks.items() if found.has_holes] == [0, block]
    assert max(start + nr for start, nr in machine.blocks[block].ram) << 12 == end


@pytest.mark.fact("5.15a")
def test_the_firmware_s_map_of_a_pc_is_that_of_a_guest(boot: Boot) -> None:
    """As /sys/firmware/memmap of a guest with 512 MiB reads on 6.1 and 6.12; the last range is an AMD CPU's."""
    machine = boot(["512MiB"], acpi_tables="128KiB")
    names = sorted(machine.tree.list("/sys/firmware/memmap"), key=int)
    read = [
        " ".join(machine.tree.read(f"/sys/firmware/memmap/{n}/{file}").strip() for file in ("start", "end", "type"))
        for n in names
    ]
    assert read == [
        "0x0 0x9fbff System RAM",
        "0x9fc00 0x9ffff Reserved",
        "0xf0000 0xfffff Reserved",
        "0x100000 0x1ffdffff System RAM",
        "0x1ffe0000 0x1fffffff Reserved",
        "0xfffc0000 0xffffffff Reserved",
        "0xfd00000000 0xffffffffff Reserved",
    ]


def test_nodes_follow_each_other_in_memory(boot: Boot) -> None:
    """Each has its part; one without memory and CPUs is only possible; CPUs are numbered through."""
    machine = boot(["1GiB", {"memory": "512MiB", "cpus": 2}, 0, NodeSpec(memory=GIB, cpus=1)])
    owners = [block.nid for _, block in sorted(machine.blocks.items())]
    assert owners == [0] * 8 + [1] * 4 + [3] * 8
    assert [machine.tree.read(f"{NODE}/{mask}") for mask in ("possible", "online", "has_cpu")] == ["0-3\n", "0-1,3\n", "1,3\n"]
    assert machine.tree.read(f"{NODE}/node3/cpulist") == "2\n"
    assert machine.tree.read(f"{NODE}/node1/distance") == "20 10 20\n"


def test_distances_are_read_by_node(boot: Boot) -> None:
    """As given; the file lists online nodes only."""
    machine = boot([{"memory": "1GiB", "distances": [10, 15, 40]}, 0, {"memory": "1GiB", "distances": [40, 25, 10]}])
    assert machine.tree.read(f"{NODE}/node0/distance") == "10 40\n"
    assert machine.tree.read(f"{NODE}/node2/distance") == "40 10\n"


def test_one_size_is_a_machine_with_one_node(boot: Boot) -> None:
    """Text, a number of bytes, or a list of one."""
    sizes = [boot(nodes).memory_total for nodes in ("1GiB", 1 << 30, ["1GiB"], [{"memory": "1024M"}], [NodeSpec(GIB)])]
    assert sizes == [GIB - (0x62 << 12)] * 5


def test_the_room_for_new_memory_begins_at_4_gib_or_above_ram(boot: Boot) -> None:
    """And ends where it was said."""
    assert boot("1GiB", room="2GiB").room == (4 * GIB, 2 * GIB)
    assert boot("5GiB", room=GIB).room == (6 * GIB, GIB)


BAD_NODES: list[tuple[object, str]] = [
    ([], "nodes"),
    ([0], "nodes"),
    (["0"], "nodes"),
    ("lots", "nodes[0]"),
    ("4GB", "nodes[0]"),
    ("-1GiB", "nodes[0]"),
    (-1, "nodes[0]"),
    ([True], "nodes[0]"),
    ([None], "nodes[0]"),
    ([1.5], "nodes[0]"),
    (["1GiB", "x"], "nodes[1]"),
    ([1000], "nodes[0]: memory"),
    ([{"memory": "1GiB", "cpu": 1}], "nodes[0]"),
    ([{"memory": "lots"}], "nodes[0]: memory"),
    ([{"memory": "1GiB", "cpus": -1}], "nodes[0]: cpus"),
    ([{"memory": "1GiB", "cpus": True}], "nodes[0]: cpus"),
    ([{"memory": "1GiB", "cpus": "2"}], "nodes[0]: cpus"),
    ([{"memory": "1GiB", "distances": [5]}], "nodes[0]: distances"),
    ([{"memory": "1GiB", "distances": 10}], "nodes[0]: distances"),
    ([{"memory": "1GiB", "distances": "near"}], "nodes[0]: distances"),
    ([{"memory": "1GiB", "distances": [10, 20]}], "nodes[0]: distances"),
    ([{"memory": "1GiB", "distances": [20, 10]}, 0], "nodes[0]: distances"),
    (["1000MiB", "1GiB"], "block_size"),
    (["9" * 5000], "nodes[0]"),
    (["4KiB"], "nodes: memory"),
    (["64PiB"], "nodes: end of memory"),
    ([NodeSpec(memory=-4096)], "nodes"),
    ([NodeSpec(memory=-4096), "1GiB"], "nodes[0]"),
    ([NodeSpec(memory=GIB, cpus=-1)], "nodes[0]"),
]


@pytest.mark.parametrize(("nodes", "where"), BAD_NODES)
def test_a_bad_node_is_an_error_that_names_its_place(nodes: Any, where: str) -> None:
    """The value and the place, in one error."""
    with pytest.raises(InvalidInput) as caught:
        Machine.boot(nodes)
    assert caught.value.where.startswith(where)


def test_the_room_for_new_memory_ends_where_addresses_can_be_mapped(boot: Boot) -> None:
    """At 64 TiB, or 4 PiB with five levels of page tables; RAM of 64 TiB - 1 GiB, above the hole, leaves none of the former."""
    spacious = boot(["128TiB"], physical_bits=52, five_level_paging=True, block_size="2GiB")
    start = (128 << 40) + 2 * GIB  # above RAM, which ends 1 GiB above 128 TiB, on a block
    assert spacious.room == (start, (4 << 50) - start)
    assert spacious.plug_dimm(0, 2 * GIB).blocks == [start // (2 * GIB)]
    full = boot([(64 << 40) - GIB], block_size="2GiB")
    assert full.room == (64 << 40, 0)
    assert refusal(full.plug_dimm, 0, 2 * GIB) == "ENOSPC"


@pytest.mark.parametrize("size", ["64MiB", "100MiB", "3GiB", 0, "x", -BLOCK, True])
def test_a_bad_block_size_is_an_error(size: Any) -> None:
    """It must be a power of two of at least 128 MiB."""
    with pytest.raises(InvalidInput) as caught:
        Machine.boot("1GiB", block_size=size)
    assert caught.value.where == "block_size"


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"room": "x"}, "room"),
        ({"room": -1}, "room"),
        ({"parameters": 5}, "parameters"),
        ({"parameters": ["quiet"]}, "parameters"),
        ({"parameters": {"bogus": 1}}, "parameters"),
        ({"parameters": {"memhp_default_state": "maybe"}}, "parameters: memhp_default_state"),
        ({"parameters": {"movable_node": "bogus"}}, "parameters: movable_node"),
        ({"parameters": {"memory_hotplug.online_policy": "x"}}, "parameters: memory_hotplug.online_policy"),
        ({"parameters": {"memory_hotplug.auto_movable_ratio": -1}}, "parameters: memory_hotplug.auto_movable_ratio"),
        ({"parameters": {"memory_hotplug.auto_movable_ratio": 1 << 32}}, "parameters: memory_hotplug.auto_movable_ratio"),
        ({"physical_bits": 30}, "physical_bits"),
        ({"physical_bits": "46"}, "physical_bits"),
    ],
)
def test_a_bad_option_is_an_error_that_names_it(options: Any, where: str) -> None:
    """Parameters of a mapping must all be right."""
    with pytest.raises(InvalidInput) as caught:
        Machine.boot("1GiB", **options)
    assert caught.value.where.startswith(where)


def parameters(machine: Machine) -> list[str]:
    names = [f"{MEMORY}/auto_online_blocks", *(f"{PARAMETERS}/{name}" for name in ("online_policy", "auto_movable_ratio"))]
    return [machine.tree.read(name).strip() for name in [*names, f"{PARAMETERS}/auto_movable_numa_aware"]]


@pytest.mark.fact("5.9")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ["offline", "contig-zones", "301", "Y"]),
        ("quiet memhp_default_state=online_movable ro", ["online_movable", "contig-zones", "301", "Y"]),
        ("memhp_default_state=bogus", ["offline", "contig-zones", "301", "Y"]),
        ("memhp_default_state=online memhp_default_state=bogus", ["online", "contig-zones", "301", "Y"]),
        ("memory_hotplug.online_policy=auto-movable", ["offline", "auto-movable", "301", "Y"]),
        (
            "memory_hotplug.auto_movable_ratio=0x10 memory_hotplug.auto_movable_numa_aware=n",
            ["offline", "contig-zones", "16", "N"],
        ),
        ("online_policy=auto-movable auto_movable_ratio=5", ["offline", "contig-zones", "301", "Y"]),
        ("memory_hotplug.memhp_default_state=online", ["offline", "contig-zones", "301", "Y"]),
    ],
)
def test_a_command_line_sets_what_it_names_and_ignores_the_rest(boot: Boot, line: str, expected: list[str]) -> None:
    """A bogus memhp_default_state is ignored, and so is a module's parameter without the module's name."""
    assert parameters(boot("1GiB", rules=Rules.LINUX_6_1, parameters=line)) == expected


@pytest.mark.fact("5.9")
def test_a_mapping_sets_the_same(boot: Boot) -> None:
    """With the same names; bools and numbers are taken as such."""
    given = {
        "memhp_default_state": "online_kernel",
        "movable_node": True,
        "memory_hotplug.online_policy": "auto-movable",
        "memory_hotplug.auto_movable_ratio": 50,
        "memory_hotplug.auto_movable_numa_aware": False,
    }
    assert parameters(boot("1GiB", parameters=given)) == ["online_kernel", "auto-movable", "50", "N"]


# -- the twin of a machine


def used_machine(boot: Boot) -> Machine:
    """Boot a machine with two nodes that has a past: blocks added, in several zones, offline, and removed."""
    machine = boot(["5GiB", {"cpus": 2}], rules=Rules.LINUX_6_1, parameters={"memory_hotplug.auto_movable_ratio": 77})
    machine.add_memory(1, 8 * GIB, 4 * BLOCK)
    for block, word in [(64, "online_movable"), (66, "online_kernel"), (5, "offline"), (40, "offline")]:
        write(machine, f"memory{block}/state", word)
    write(machine, "auto_online_blocks", "online_movable")
    machine.remove_memory(8 * GIB + 3 * BLOCK, BLOCK)
    return machine


def capture(texts: dict[str, str], root: Path) -> Path:
    """Make the copy of a tree that ``cp -a`` would make."""
    for path, text in texts.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            place.symlink_to(text[3:])
        else:
            place.write_text(text)
    return root


def capture_of(machine: Machine, root: Path) -> Path:
    return capture({path: text for path, text in tree_texts(machine).items() if not text.startswith("errno")}, root)


@pytest.mark.parametrize("rules", list(Rules))
def test_a_twin_of_a_captured_copy_reads_like_the_original(boot: Boot, tmp_path: Path, rules: Rules) -> None:
    """Block size, blocks, states, zones, nodes and parameters, as that machine had them."""
    original = used_machine(boot)
    twin = Machine.from_tree(DirTree(capture_of(original, tmp_path)), rules=rules)
    expected = tree_texts(original)
    got = tree_texts(twin)
    if rules is Rules.LINUX_6_12:  # which has more files, and more lines in others
        more = ("crash_hotplug", "_offline_page", "meminfo", "vmstat", "zoneinfo")
        got, expected = (
            {path: text for path, text in texts.items() if not path.endswith(more) and "memory_failure" not in path}
            for texts in (got, expected)
        )
    assert got == expected


def test_a_twin_can_be_made_of_a_machine_s_own_tree(boot: Boot) -> None:
    """Any tree will do; and spans, counts and masks come out the same."""
    original = used_machine(boot)
    twin = Machine.from_tree(original.tree, rules=Rules.LINUX_6_1)
    names = [f"node{nid} {zone}" for nid in (0, 1) for zone in ("DMA", "DMA32", "Normal", "Movable")]
    ours, theirs = snapshot(original, files=False), snapshot(twin, files=False)
    counts = [(name, picture[name][:4]) for picture in (ours, theirs) for name in names]  # type: ignore[index]
    assert counts[:8] == counts[8:]
    assert ours["masks"] == theirs["masks"]
    assert twin.memory_total == original.memory_total


def test_a_twin_changes_without_the_original(boot: Boot, tmp_path: Path) -> None:
    """What is done to it is done to it alone."""
    root = capture_of(used_machine(boot), tmp_path)
    twin = Machine.from_tree(DirTree(root))
    write(twin, "memory5/state", "online")
    assert state(twin, 5) == "online"
    assert (root / "sys/devices/system/memory/memory5/state").read_text() == "offline\n"


def test_a_twin_knows_the_distances_of_nodes_that_do_not_follow_each_other(boot: Boot) -> None:
    """The file of a node lists distances to online nodes only, here 0 and 2."""
    nodes = [{"memory": "1GiB", "distances": [10, 15, 40]}, 0, {"memory": "1GiB", "distances": [40, 25, 10]}]
    twin = Machine.from_tree(boot(nodes).tree)
    assert [twin.tree.read(f"{NODE}/node{nid}/distance") for nid in (0, 2)] == ["10 40\n", "40 10\n"]


@pytest.mark.fact("5.6")
def test_a_twin_of_a_block_of_two_nodes_can_not_take_it_offline_either(boot: Boot, tmp_path: Path) -> None:
    """Where valid_zones says ``none``, so does the twin's."""
    root = capture_of(boot("5GiB", rules=Rules.LINUX_6_1), tmp_path)
    (root / "sys/devices/system/memory/memory33/valid_zones").write_text("none\n")
    twin = Machine.from_tree(DirTree(root))
    assert valid_zones(twin, 33) == "none"
    assert refusal(write, twin, "memory33/state", "offline") == "EINVAL"


def test_a_block_that_is_going_offline_is_online_in_the_twin(boot: Boot, tmp_path: Path) -> None:
    """Nobody will end that change in the twin, so it hasn't begun there."""
    root = capture_of(boot("1GiB"), tmp_path)
    (root / "sys/devices/system/memory/memory5/state").write_text("going-offline\n")
    (root / "sys/devices/system/memory/memory5/valid_zones").write_text("DMA32 Movable\n")
    twin = Machine.from_tree(DirTree(root))
    assert (twin.block(5).state, valid_zones(twin, 5)) == (BlockState.ONLINE, "DMA32")


def test_a_kernel_without_numa_has_one_node(boot: Boot, tmp_path: Path) -> None:
    """It has no node directory, and no links to it."""
    texts = {p: t for p, t in tree_texts(boot("1GiB")).items() if "/node" not in p and not t.startswith("errno")}
    twin = Machine.from_tree(DirTree(capture(texts, tmp_path)))
    assert {block.nid for block in twin.blocks.values()} == {0}


Spoil = Callable[[Path], object]
BAD_TREES: list[tuple[str, Spoil, str]] = [
    ("no memory directory", lambda m: m.rename(m.with_name("nothing")), "block_size_bytes"),
    ("no block size", lambda m: (m / "block_size_bytes").unlink(), "block_size_bytes"),
    ("an empty block size", lambda m: (m / "block_size_bytes").write_text(""), "block_size_bytes"),
    ("block size 0", lambda m: (m / "block_size_bytes").write_text("0\n"), "block_size_bytes"),
    ("a block size of no power of two", lambda m: (m / "block_size_bytes").write_text("9000000\n"), "block_size_bytes"),
    ("a block size that is too small", lambda m: (m / "block_size_bytes").write_text("1000\n"), "block_size_bytes"),
    ("a block size of letters", lambda m: (m / "block_size_bytes").write_text("large\n"), "block_size_bytes"),
    ("a negative block size", lambda m: (m / "block_size_bytes").write_text("-8000000\n"), "block_size_bytes"),
    ("no state", lambda m: (m / "memory3/state").unlink(), "memory3/state"),
    ("an empty state", lambda m: (m / "memory3/state").write_text(""), "memory3/state"),
    ("a truncated state", lambda m: (m / "memory3/state").write_text("onl"), "memory3/state"),
    ("a state of another case", lambda m: (m / "memory3/state").write_text("Online\n"), "memory3/state"),
    ("no phys_index", lambda m: (m / "memory3/phys_index").unlink(), "memory3/phys_index"),
    ("an empty phys_index", lambda m: (m / "memory3/phys_index").write_text(""), "memory3/phys_index"),
    ("another block's phys_index", lambda m: (m / "memory3/phys_index").write_text("00000004\n"), "memory3/phys_index"),
    ("no valid_zones", lambda m: (m / "memory3/valid_zones").unlink(), "memory3/valid_zones"),
    ("an empty valid_zones", lambda m: (m / "memory3/valid_zones").write_text("\n"), "memory3/valid_zones"),
    ("a zone that is none", lambda m: (m / "memory3/valid_zones").write_text("HighMem\n"), "memory3/valid_zones"),
    ("one block twice", lambda m: (m / "memory03").symlink_to("memory3"), MEMORY),
    ("a block that is a file", lambda m: (m / "memory99").write_text(""), "memory99"),
    ("a bogus default", lambda m: (m / "auto_online_blocks").write_text("maybe\n"), "auto_online_blocks"),
    ("an empty default", lambda m: (m / "auto_online_blocks").write_text(""), "auto_online_blocks"),
    ("no possible nodes", lambda m: (m / "../node/possible").unlink(), "node/possible"),
    ("empty possible nodes", lambda m: (m / "../node/possible").write_text("\n"), "node/possible"),
    ("bad possible nodes", lambda m: (m / "../node/possible").write_text("0-\n"), "node/possible"),
    ("an empty distance", lambda m: (m / "../node/node0/distance").write_text("\n"), "node0/distance"),
    ("a bad cpulist", lambda m: (m / "../node/node0/cpulist").write_text("all\n"), "node0/cpulist"),
]


@pytest.mark.parametrize(("spoil", "where"), [bad[1:] for bad in BAD_TREES], ids=[bad[0] for bad in BAD_TREES])
def test_a_bad_tree_is_an_error_that_names_the_path(boot: Boot, tmp_path: Path, spoil: Spoil, where: str) -> None:
    """One clear error with the value and the place."""
    root = capture_of(boot("1GiB"), tmp_path)
    spoil(root / MEMORY.lstrip("/"))
    with pytest.raises(InvalidInput) as caught:
        Machine.from_tree(DirTree(root))
    assert where in caught.value.where


def test_a_tree_without_blocks_is_an_error(boot: Boot, tmp_path: Path) -> None:
    """A directory without one block is no machine with memory."""
    texts = {p: t for p, t in tree_texts(boot("1GiB")).items() if "memory/memory" not in p and "/node/node" not in p}
    with pytest.raises(InvalidInput, match="at least one memory block"):
        Machine.from_tree(DirTree(capture(texts, tmp_path)))


def test_a_block_of_a_node_that_does_not_exist_is_an_error(boot: Boot, tmp_path: Path) -> None:
    """Its link names node 7, and that is not possible there."""
    root = capture_of(boot("1GiB"), tmp_path)
    (root / NODE.lstrip("/") / "node0/memory3").unlink()
    block = root / MEMORY.lstrip("/") / "memory3"
    (block / "node0").unlink()
    (block / "node7").symlink_to("../../node/node7")
    with pytest.raises(InvalidInput, match="node7") as caught:
        Machine.from_tree(DirTree(root))
    assert caught.value.where == f"{MEMORY}/memory3"


def test_a_link_that_leads_out_of_the_copy_is_not_followed(boot: Boot, tmp_path: Path) -> None:
    """A copy is read as it is, never the machine that it lies on."""
    outside = tmp_path / "outside"
    outside.write_text("online\n")
    root = capture_of(boot("1GiB"), tmp_path / "copy")
    file = root / MEMORY.lstrip("/") / "memory3/state"
    file.unlink()
    file.symlink_to(outside)
    with pytest.raises(InvalidInput) as caught:
        Machine.from_tree(DirTree(root))
    assert caught.value.where.endswith("memory3/state")


@pytest.mark.skipif(not list(LIVE.glob("memory[0-9]*")), reason="this machine has no memory blocks in /sys")
def test_the_twin_of_this_machine_has_its_blocks_states_and_zones() -> None:
    """Read from /sys by os calls here, and by the twin's tree there."""
    twin = Machine.from_tree(DirTree("/"))
    names = sorted(name for name in os.listdir(LIVE) if name[6:].isdigit() and name[:6] == "memory")
    assert sorted(block.name for block in twin.blocks.values()) == names
    assert twin.tree.read(f"{MEMORY}/block_size_bytes") == (LIVE / "block_size_bytes").read_text()
    for name in names:
        for file in ("phys_index", "state", "online", "valid_zones"):
            assert twin.tree.read(f"{MEMORY}/{name}/{file}") == (LIVE / name / file).read_text(), f"{name}/{file}"
    if Path(NODE).exists():
        for mask in ("possible", "online", "has_memory", "has_normal_memory", "has_cpu"):
            assert twin.tree.read(f"{NODE}/{mask}") == (Path(NODE) / mask).read_text(), mask
