"""Explain: a verdict is what the kernel's own rules say of what can be read, and nothing else."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from host.captured import ANON, PAGES, RESERVED, SLAB, block, proc, ram, words, zones
from memhp import DirTree, InvalidInput, Machine, PageKind
from memhp.cli import main
from memhp.host import Host
from memhp.host.explain import Cause, Verdict

RAM = (0, 0x7FFFFFFF, "System RAM")
OFFLINE, HUGE, HUGE_TAIL, UPTODATE = 1 << 23, 1 << 17 | 1 << 15, 1 << 17 | 1 << 16, 1 << 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of a machine of node 0 with all its pages managed, and none in a list of a CPU."""
    ram(tmp_path, RAM)
    zones(tmp_path, (0, "Normal", 100_000, 8 * PAGES, 8 * PAGES), (0, "Movable", 50_000, 8 * PAGES, 8 * PAGES))
    return tmp_path


@pytest.mark.parametrize("words", ["", " ", ","])
def test_no_block_at_all_is_bad_input(root: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rather than an answer about nothing; such as a script's empty variable."""
    block(root, 0)
    assert main(["explain", words, "-s", str(root)]) == 2
    assert capsys.readouterr().err.startswith(f"memhp: BLOCKS: {words!r} is not valid; expected ")


def verdicts(root: Path) -> list[str]:
    return [str(known) for known in Host(DirTree(root)).explain()]


def test_free_movable_and_stopping_pages(root: Path) -> None:
    """A free block goes, one with pages of processes costs them, and one page of the kernel's keeps it."""
    for number in range(4):
        block(root, number)
    words(root, {0: [], 1: [(700, ANON)], 2: [(5, ANON), (2, SLAB)], 3: [(1, 1 << 26), (7, SLAB)]})

    assert verdicts(root) == [
        "memory0: yes",
        "memory1: costs 700 pages",
        "memory2: no: slab page at pfn 0x10005 (one of 2)",
        "memory3: no: page table page at pfn 0x18000, 8 unmovable pages in all",
    ]
    stopped = Host(DirTree(root)).explain([2])[0]
    assert (stopped.first_stop, stopped.move_pages, stopped.reasons[0].errno) == (0x10005, 5, errno.EBUSY)


@pytest.mark.fact("7.1")
def test_in_zone_movable_only_reserved_pages_stop(root: Path) -> None:
    """There the kernel takes for granted that all else moves."""
    block(root, 0, zones="Movable")
    block(root, 1, zones="Movable")
    words(root, {0: [(3, SLAB), (4, 0), (10, ANON)], 1: [(3, ANON), (2, RESERVED)]})

    assert verdicts(root) == ["memory0: costs 10 pages", "memory1: no: reserved page at pfn 0x8003 (one of 2)"]


@pytest.mark.fact("3.13", "3.14")
def test_several_zones_and_holes_are_refused_before_any_page_is_looked_at(root: Path) -> None:
    """Both are EINVAL: a block without one zone, and one that is not RAM throughout."""
    ram(root, (0, 0x7FFFFFF, "System RAM"), (0x8000000, 0xFFEFFFF, "System RAM"))
    block(root, 0, zones="none")
    block(root, 1)
    words(root, {0: [], 1: []})

    known = Host(DirTree(root)).explain()

    assert [(reason.cause, reason.errno, reason.pages) for one in known for reason in one.reasons] == [
        (Cause.ZONES, errno.EINVAL, 0),
        (Cause.HOLES, errno.EINVAL, 16),
    ]
    assert [one.verdict for one in known] == [Verdict.NO, Verdict.NO]


def test_pages_without_flags_are_not_guessed_at(root: Path) -> None:
    """They may be free in a CPU's list or the kernel's; more of them than those lists hold are the kernel's for sure."""
    zones(root, (0, "Normal", 100_000, 8 * PAGES, 8 * PAGES - 50), pcp=150)
    block(root, 0)
    block(root, 1)
    words(root, {0: [(200, 0)], 1: [(201, 0)]})

    assert verdicts(root) == [
        "memory0: unknown: 200 pages have no flags: free in a CPU's list, or the kernel's",
        "memory1: no: at least 1 of its 201 pages without flags are the kernel's",
    ]


def test_reserved_pages_explain_why_pages_are_not_managed(root: Path) -> None:
    """What was never given to the allocator and shows as reserved can't be what has no flags."""
    zones(root, (0, "Normal", 100_000, 8 * PAGES, 8 * PAGES - 50), pcp=0)
    block(root, 0)
    block(root, 1)
    words(root, {0: [(50, RESERVED)], 1: [(1, 0)]})

    assert verdicts(root)[1] == "memory1: no: at least 1 of its 1 pages without flags are the kernel's"


def test_page_cache_off_the_lists_is_not_guessed_at(root: Path) -> None:
    """Without LRU it may be on its way to a list, or be the kernel's own buffer."""
    block(root, 0)
    words(root, {0: [(3, UPTODATE), (4, ANON)]})

    known = Host(DirTree(root)).explain()[0]

    assert (known.verdict, known.move_pages, known.move_at_most) == (Verdict.UNKNOWN, 4, 7)
    assert known.sentence == "unknown: 3 pages like page cache are on no LRU list just now"


@pytest.mark.fact("7.3", "7.8")
def test_pages_that_a_driver_has_set_offline_depend_on_it(root: Path) -> None:
    """virtio-mem lets go of them, of others nobody can know."""
    ram(root, (0, 0x7FFFFFF, "System RAM"), (0x8000000, 0xFFFFFFF, "System RAM (virtio_mem)"))
    block(root, 0)
    block(root, 1)
    words(root, {0: [(9, OFFLINE)], 1: [(9, OFFLINE)]})

    assert verdicts(root) == ["memory0: unknown: a driver has taken 9 pages offline, and must let go of them", "memory1: yes"]


def hugepages(root: Path, total: int, free: int, reserved: int) -> None:
    for base in ("sys/kernel/mm/hugepages", "sys/devices/system/node/node0/hugepages"):
        place = root / base / "hugepages-2048kB"
        place.mkdir(parents=True)
        for name, number in (("nr", total), ("free", free), ("resv", reserved)):
            (place / f"{name}_hugepages").write_text(f"{number}\n")


@pytest.mark.fact("7.6")
@pytest.mark.parametrize(
    ("reserved", "expected"),
    [
        (0, "memory0: costs 512 to 1536 pages"),
        (1, "memory0: no: up to 2 free huge pages of 2 MiB in it, and only 1 are not reserved"),
    ],
)
def test_huge_pages_move_or_dissolve_unless_reserved(root: Path, reserved: int, expected: str) -> None:
    """One of three is in use; the free ones are dissolved, which fails when somebody has reserved them."""
    block(root, 0)
    one = [(1, HUGE), (511, HUGE_TAIL)]
    words(root, {0: [*one, *one, *one]})
    words(root, {0: [(1, 1), (511, 0)]}, "kpagecount")
    hugepages(root, 3, 2, reserved)

    assert verdicts(root) == [expected]


@pytest.mark.fact("7.4")
def test_pages_go_to_other_nodes_and_need_room_there(root: Path) -> None:
    """The own node is no target when another has memory, however much is free on it."""
    zones(root, (0, "Normal", 90_000, PAGES, PAGES), (1, "Normal", 50, PAGES, PAGES))
    block(root, 0)
    block(root, 1, node=1)
    words(root, {0: [(51, ANON)], 1: [(50, ANON)]})
    proc(root, "meminfo", "")

    known = Host(DirTree(root)).explain()

    assert [(one.targets, str(one)) for one in known] == [
        (((1, 50),), "memory0: unknown: 51 pages must move, and node 1 has only 50 free ones"),
        (((0, 90_000),), "memory1: costs 50 pages"),
    ]


def test_offline_blocks_are_offline(root: Path) -> None:
    """Their pages are not looked at."""
    block(root, 0, state="offline", zones="Normal Movable")
    block(root, 1, state="going-offline", zones="Normal Movable")

    assert verdicts(root) == ["memory0: offline", "memory1: going-offline"]


def test_a_state_that_no_kernel_has_is_told_and_not_guessed_from(root: Path) -> None:
    """As of a copy that is damaged; nor is one that is missing."""
    block(root, 0, state="weird", zones="Normal Movable")
    block(root, 1, state="", zones="Normal Movable")
    assert verdicts(root) == ["memory0: unknown: its state says 'weird'", "memory1: unknown: its state can't be read"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_an_ordinary_user_learns_what_can_be_known(root: Path) -> None:
    """Zones are known to everybody, pages to root only."""
    block(root, 0, zones="none")
    block(root, 1)
    words(root, {0: []})
    (root / "proc/kpageflags").chmod(0o400)
    for place in [root, *root.parents]:
        if place.stat().st_uid == 0 and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        found = verdicts(root)
    finally:
        os.seteuid(0)

    assert found == [
        "memory0: no: it lies in several zones (valid_zones: none)",
        "memory1: unknown: only root may read /proc/kpageflags",
    ]


def test_a_copy_without_page_flags_says_so(root: Path) -> None:
    """A copy of /sys alone is enough for what does not depend on pages."""
    block(root, 0)

    assert verdicts(root) == ["memory0: unknown: /proc/kpageflags can't be read (ENOENT)"]


def test_the_model_agrees_with_what_it_does() -> None:
    """On a modelled machine a verdict is what the machine then does: costs goes, no is refused at that very page."""
    machine = Machine.boot(["1GiB", "1GiB"], lockdep=True)
    machine.pages.alloc(300, PageKind.MOVABLE, blocks=[9], owner="db")
    machine.pages.alloc(2, PageKind.SLAB, blocks=[10])
    host = Host(machine.tree)

    found = {int(known.block.id): str(known) for known in host.explain()}
    assert (found[9], found[10]) == ("memory9: costs 300 pages", "memory10: no: slab page at pfn 0x50000 (one of 2)")
    machine.tree.write("/sys/devices/system/memory/memory9/state", "offline")
    with pytest.raises(OSError, match=r"\[EBUSY\] memory10: page 0x50000"):
        machine.tree.write("/sys/devices/system/memory/memory10/state", "offline")


def test_unknown_blocks_are_named(root: Path) -> None:
    """The error says which one, and which there are."""
    block(root, 0)
    with pytest.raises(InvalidInput, match=r"blocks: 'memory7' is not valid; expected blocks that exist, from 0 to 0"):
        Host(DirTree(root)).explain([7])


def test_the_command_prints_a_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a block, then what it comes to."""
    for number in range(3):
        block(root, number)
    words(root, {0: [], 1: [(700, ANON)], 2: [(2, SLAB)]})

    assert main(["explain", "--sysroot", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "BLOCK  NODE  ZONE    VERDICT  MOVE  WHY",
        "    0  0     Normal  yes         0",
        "    1  0     Normal  costs     700",
        "    2  0     Normal  no             slab page at pfn 0x10000 (one of 2)",
        "",
        "  128 MiB  yes      would go, nothing has to move: 0",
        "  128 MiB  costs    would go, pages move: 1",
        "  128 MiB  no       would not go: 2",
        "Pins on pages, callbacks that may refuse, and what changes from now on can't be seen.",
    ]


def test_the_command_prints_details_and_owners(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A named block is shown with its pages, where they would go, and whose they are as far as the kernel tells."""
    block(root, 1)
    words(root, {1: [(700, ANON), (2, SLAB)]})
    words(root, {1: [(600, 77), (100, 78), (2, 78)]}, "kpagecgroup")
    owner = "Page allocated via order 0, mask 0x0(), pid 812, tgid 811 (postgres), ts 1 ns\nPFN 0x82bc type Unmovable\n\n"
    (root / "sys/kernel/debug").mkdir(parents=True)
    with (root / "sys/kernel/debug/page_owner").open("wb") as file:
        file.seek(0x82BC)
        file.write(owner.encode())

    assert main(["explain", "1", "--owners", "--sysroot", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "memory1 [mem 0x08000000-0x0fffffff], node 0, Normal: no",
        "  because   slab page at pfn 0x82bc (one of 2) (EBUSY)",
        "  pages     free: 32066, anonymous: 700, slab: 2",
        "  to move   700 pages, to node 0 (150000 free)",
        "  held by   cgroup 77: 600 pages",
        "  held by   cgroup 78: 100 pages",
        "  held by   process 811 (postgres): 1 pages",
        "",
        "  128 MiB  no       would not go: 1",
        "Pins on pages, callbacks that may refuse, and what changes from now on can't be seen.",
    ]


def test_the_command_prints_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All keys are always there, numbers are integers, and null is what nobody knows."""
    block(root, 0, state="offline", zones="Normal Movable")
    block(root, 1)
    words(root, {1: [(700, ANON), (2, SLAB)]})

    assert main(["explain", "--json", "--sysroot", str(root)]) == 0
    printed = json.loads(capsys.readouterr().out)
    nothing: dict[str, object] = {
        "reasons": [],
        "doubts": [],
        "pages": None,
        "move_pages": None,
        "move_at_most": None,
        "first_stop": None,
    }
    assert printed == {
        "schema": 1,
        "block_size": 134217728,
        "page_size": 4096,
        "blocks": [
            {"id": 0, "node": 0, "zone": None, "state": "offline", "verdict": "offline", **nothing, "targets": [], "owners": []},
            {
                "id": 1,
                "node": 0,
                "zone": "Normal",
                "state": "online",
                "verdict": "no",
                "reasons": [
                    {
                        "cause": "unmovable-pages",
                        "text": "slab page at pfn 0x82bc (one of 2)",
                        "errno": 16,
                        "pfn": 0x82BC,
                        "pages": 2,
                    }
                ],
                "doubts": [],
                "pages": {"free": 32066, "anonymous": 700, "slab": 2},
                "move_pages": 700,
                "move_at_most": 700,
                "first_stop": 0x82BC,
                "targets": [{"node": 0, "free_pages": 150000}],
                "owners": [],
            },
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "3-1"], "memhp: BLOCKS: '3-1' is not valid; expected numbers and ranges such as 32-35,40, each number once"),
        (["explain", "9"], "memhp: blocks: 'memory9' is not valid; expected blocks that exist, from 0 to 0"),
    ],
)
def test_bad_blocks_are_one_line(root: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 2, and there is no traceback."""
    block(root, 0)
    assert main([*arguments, "--sysroot", str(root)]) == 2
    assert capsys.readouterr().err == f"{said}\n"


def test_a_machine_without_memory_blocks_is_told_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the kernel options."""
    assert main(["explain", "--sysroot", str(tmp_path)]) == 1
    assert "CONFIG_MEMORY_HOTPLUG" in capsys.readouterr().err
