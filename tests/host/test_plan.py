"""Plans: the cheapest blocks that are sure to go, what is left then, and what must not be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.captured import ANON, PAGES, SLAB, block, proc, ram, words, zones
from memhp import DirTree, InvalidInput, Machine, PageKind
from memhp.cli import main
from memhp.host import Host
from memhp.host.plan import Plan

GIB = 1 << 30
BLOCK = 128 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight blocks: 0 and 1 stay, 2 costs 9 pages, 3 is free, 4 costs 5, 5 is unknown; 6 and 7 are Movable, of node 1."""
    ram(tmp_path, (0, 0x3FFFFFFF, "System RAM"))
    zones(tmp_path, (0, "Normal", 5 * PAGES, 6 * PAGES, 6 * PAGES), (1, "Movable", 2 * PAGES, 2 * PAGES, 2 * PAGES), pcp=50)
    for number in range(6):
        block(tmp_path, number)
    for number in (6, 7):
        block(tmp_path, number, zones="Movable", node=1)
    stay = [(3, SLAB)]
    words(tmp_path, {0: stay, 1: stay, 2: [(9, ANON)], 3: [], 4: [(5, ANON)], 5: [(4, 0)], 6: [(7, ANON)], 7: []})
    proc(tmp_path, "meminfo", f"MemTotal: {GIB >> 10} kB\nMemFree: {GIB >> 10} kB\nMemAvailable: {900 << 10} kB\n")
    return tmp_path


def plan(root: Path, goal: str, **wishes: object) -> Plan:
    return Host(DirTree(root)).plan("offline", goal, **wishes)  # type: ignore[arg-type]


def test_the_cheapest_blocks_come_first(root: Path) -> None:
    """Free before costly, Movable before others, high before low; what nobody can know comes last, the impossible never."""
    found = plan(root, "128M")

    assert found.ids == (7,)
    assert [step.block.id for step in found.spare] == [3, 4, 6, 2, 5]
    assert plan(root, "512M").move_pages == 12
    assert plan(root, "768M").warnings == (
        "nobody can know whether memory5 will go",
        "14 pages must move to node 1, where 7 are free: the kernel must reclaim others",
        "node 1 will have no memory",
    )


@pytest.mark.parametrize(
    ("goal", "ids"),
    [
        ("0x18000000-0x27ffffff", (3, 4)),
        ("3-4", (3, 4)),
        ("memory4", (4,)),
        ("node:1", (7, 6)),
        ("256M", (7, 3)),
        ("0x8000000", (7,)),
    ],
)
def test_an_amount_a_range_blocks_or_a_node(root: Path, goal: str, ids: tuple[int, ...]) -> None:
    """Four ways to say what is meant."""
    assert plan(root, goal).ids == ids


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ("100M", r"size: '100M' is not valid; expected a multiple of the memory blocks' size, 128 MiB"),
        ("0G", r"size: '0G'"),
        ("0x1000-0x7ffffff", r"range: '0x1000-0x7ffffff' is not valid; expected the first and last address of memory blocks"),
        ("0x80000000-0x87ffffff", r"expected addresses where there are memory blocks"),
        ("7-9", r"blocks: 'memory8-9' is not valid; expected blocks that exist"),
        ("node:3", r"'node:3' is not valid; expected a node that has memory blocks"),
        ("much", r"goal: 'much' is not valid; expected a size such as 4G"),
        ("", r"goal: '' is not valid"),
        ("4GB", r"goal: '4GB' is not valid"),
    ],
)
def test_goals_that_make_no_sense(root: Path, goal: str, message: str) -> None:
    """The error names the value, and what would be right."""
    with pytest.raises(InvalidInput, match=message):
        plan(root, goal)


def test_only_blocks_of_a_zone_or_a_node(root: Path) -> None:
    """--zone and --node narrow the choice; named blocks outside are a problem."""
    assert plan(root, "256M", zone="movable").ids == (7, 6)
    assert plan(root, "128M", node=0).ids == (3,)
    assert plan(root, "3,7", zone="Movable").problems == ("memory3: not in zone Movable",)
    with pytest.raises(InvalidInput, match=r"--zone: 'Highmem' is not valid; expected one of Movable, Normal"):
        plan(root, "128M", zone="Highmem")
    with pytest.raises(InvalidInput, match=r"--node: 5 is not valid"):
        plan(root, "128M", node=5)


def test_a_named_block_that_stays_is_a_problem(root: Path) -> None:
    """Nothing can stand in for it; the reason is that of explain."""
    assert plan(root, "0,3").problems == ("memory0: no: slab page at pfn 0x0 (one of 3)",)


def test_more_than_can_go_is_a_problem(root: Path) -> None:
    """The plan says how much could."""
    assert plan(root, "1G", keep_free=0).problems == ("1 GiB were asked for, and 768 MiB can go offline",)


def test_a_floor_below_which_the_machine_is_not_shrunk(root: Path) -> None:
    """By default a 20th of what is left must be available; somebody may want more, or less."""
    low = f"MemTotal: {GIB >> 10} kB\nMemAvailable: {200 << 10} kB\n"
    proc(root, "meminfo", low)

    assert plan(root, "128M").floor == (GIB - BLOCK) // 20
    assert plan(root, "128M").problems == ()
    assert plan(root, "256M").problems == ("256 MiB less would leave 0 B available, and the floor is 38 MiB (--keep-free)",)
    assert plan(root, "128M", keep_free=100 << 20).problems == (
        "128 MiB less would leave 72 MiB available, and the floor is 100 MiB (--keep-free)",
    )


def test_a_floor_that_can_not_be_checked_is_not_taken_as_held(root: Path) -> None:
    """Without /proc/meminfo a wish for one is a problem, and the usual one a warning."""
    (root / "proc/meminfo").unlink()
    assert plan(root, "128M", keep_free=100 << 20).problems == (
        "whether 100 MiB stay free is not known: /proc/meminfo can't be read",
    )
    found = plan(root, "128M")
    assert (found.problems, found.warnings) == (
        (),
        ("how much would be left available is not known: /proc/meminfo can't be read",),
    )
    assert plan(root, "128M", keep_free=0).warnings == ()


def test_what_is_left_of_each_zone(root: Path) -> None:
    """Pages present and free before and after, of the zones that there are."""
    found = plan(root, "256M")

    assert [(one.node, one.zone, one.present, one.present_after, one.free, one.free_after) for one in found.left] == [
        (0, "Normal", 6 * PAGES, 5 * PAGES, 5 * PAGES, 4 * PAGES),
        (1, "Movable", 2 * PAGES, PAGES, 2 * PAGES, PAGES),
    ]
    assert (found.available, found.available_after) == (900 << 20, 644 << 20)
    assert found.ratio == pytest.approx(1 / 3)
    assert found.ratio_after == pytest.approx(0.2)


def test_moves_without_room_are_warned_of(root: Path) -> None:
    """All pages of a plan move to the same free pages, less those that leave themselves."""
    zones(root, (0, "Normal", 12, 6 * PAGES, 6 * PAGES), (1, "Movable", 2 * PAGES, 2 * PAGES, 2 * PAGES))
    words(root, {6: [(7, ANON)], 7: [(6, ANON)]})

    assert plan(root, "6-7").warnings == (
        "13 pages must move to node 0, where 12 are free: the kernel must reclaim others",
        "node 1 will have no memory",
    )


def test_bringing_online(root: Path) -> None:
    """The lowest blocks first, to the zone that is wanted; what must be added first needs memory for its memmap."""
    for number in (8, 9):
        block(root, number, state="offline", zones="Normal Movable")
    host = Host(DirTree(root))

    assert [(step.block.id, step.word, step.zone) for step in host.plan("online", "256M").steps] == [
        (8, "online", "Normal"),
        (9, "online", "Normal"),
    ]
    assert [(step.word, step.zone) for step in host.plan("online", "9", zone="movable").steps] == [("online_movable", "Movable")]
    assert [(step.word, step.zone) for step in host.plan("online", "9", zone="kernel").steps] == [("online_kernel", "Normal")]
    assert host.plan("online", "8,7").already == (7,)
    more = host.plan("online", "1G")
    assert more.problems == ("1 GiB were asked for, and 256 MiB can come online",)
    assert more.warnings == (
        (
            "768 MiB would have to be added first, which takes 12 MiB of the memory that is there for its memmap, unless "
            "memmap_on_memory is in use"
        ),
    )
    with pytest.raises(InvalidInput, match="--zone: 'high' is not valid; expected movable, or kernel"):
        host.plan("online", "8", zone="high")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 400), min_size=3, max_size=7), st.data())
def test_no_other_set_of_blocks_is_cheaper(costs: list[int], data: st.DataObject) -> None:
    """Against all subsets of that size, tried one by one."""
    import itertools

    machine = Machine.boot(f"{2 + len(costs)}GiB", block_size="1GiB")
    for number, cost in enumerate(costs, 5):
        if cost and number in machine.blocks:
            machine.pages.alloc(cost, PageKind.MOVABLE, blocks=[number])
    known = {one.block.id: one.move_pages or 0 for one in Host(machine.tree).explain() if one.certain}
    number = data.draw(st.integers(1, len(known)))
    found = Host(machine.tree).plan("offline", f"{number}G", keep_free=0)

    assert found.move_pages == min(sum(known[one] for one in some) for some in itertools.combinations(known, number))


def test_the_command_prints_the_plan(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks that are alike share a line; then what is left."""
    assert main(["plan", "offline", "512M", "--sysroot", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Take offline 512 MiB: 4 blocks of 128 MiB",
        "  memory7  node 1  Movable  offline  yes",
        "  memory3  node 0  Normal   offline  yes",
        "  memory4  node 0  Normal   offline  costs 5 pages",
        "  memory6  node 1  Movable  offline  costs 7 pages",
        "  2 more blocks could stand in for one that fails, memory2 first",
        "  ZONE                NOW    AFTER  FREE NOW      AFTER",
        "  node 0 Normal   768 MiB  512 MiB   640 MiB  384.0 MiB",
        "  node 1 Movable  256 MiB      0 B   256 MiB     28 KiB",
        "  available 900 MiB, then 388 MiB (floor 25.6 MiB)",
        "  movable to kernel memory 0.33, then 0.00",
        "Mind: node 1 will have no memory",
    ]


def test_the_command_says_what_is_not_possible(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 1."""
    assert main(["plan", "offline", "0-1", "--sysroot", str(root), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["feasible"], printed["steps"], printed["problems"]) == (
        False,
        [],
        ["memory0: no: slab page at pfn 0x0 (one of 3)", "memory1: no: slab page at pfn 0x8000 (one of 3)"],
    )


@pytest.mark.parametrize("arguments", [["plan", "offline", "1.3G"], ["plan", "online", "1G", "--keep-free", "x"]])
def test_bad_input_is_one_line_and_2(root: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Never a traceback."""
    assert main([*arguments, "--sysroot", str(root)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
