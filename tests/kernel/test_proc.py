"""The files of /proc and of nodes that count pages, held against those of real kernels."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from memhp import DirTree, HotplugError, PageKind, PageRefusal, Rules
from memhp.kernel.watermarks import batch_of, protection_of, stat_threshold, watermarks_of
from memhp.kernel.zones import ZoneType
from page_checker import check_pages
from support import GIB, Boot, Log, refusal, rounds, three

REAL = Path(__file__).parent.parent / "data" / "proc"
"""Files of Debian's kernels, read in a guest with two nodes of 1 GiB and one CPU each."""
KERNELS = pytest.mark.parametrize("kernel", ["6.1", "6.12"])
NODES = [{"memory": "1GiB", "cpus": 1}, {"memory": "1GiB", "cpus": 1}]
FILES = {
    "meminfo": "/proc/meminfo",
    "zoneinfo": "/proc/zoneinfo",
    "buddyinfo": "/proc/buddyinfo",
    "pagetypeinfo": "/proc/pagetypeinfo",
    "node0-meminfo": "/sys/devices/system/node/node0/meminfo",
    "node0-numastat": "/sys/devices/system/node/node0/numastat",
    "node0-vmstat": "/sys/devices/system/node/node0/vmstat",
}


def shape(text: str) -> list[str]:
    """Give the lines with each number, and the spaces that fill its column, as #."""
    return [re.sub(r"(?<![a-z_-]) *(?<!\w)-?\d+(?!\w)", "#", line) for line in text.splitlines()]


@KERNELS
@pytest.mark.parametrize("name", FILES)
@pytest.mark.fact("5.14")
def test_each_line_is_one_of_the_real_kernel_s(boot: Boot, kernel: str, name: str) -> None:
    """The same names in the same order, numbers aside."""
    machine = boot(NODES, rules=Rules.of(kernel))
    assert shape(machine.tree.read(FILES[name])) == shape((REAL / kernel / name).read_text())


@KERNELS
@pytest.mark.parametrize("name", ["meminfo", "node0-meminfo"])
def test_columns_are_as_wide_as_the_real_kernel_s(boot: Boot, kernel: str, name: str) -> None:
    """Each line is as long as the real one, where the number is no longer than its column."""
    machine = boot(NODES, rules=Rules.of(kernel))
    pairs = zip(machine.tree.read(FILES[name]).splitlines(), (REAL / kernel / name).read_text().splitlines(), strict=True)
    assert [(ours, real) for ours, real in pairs if len(ours) != len(real) and "Vmalloc" not in ours] == []


MANAGED = {  # before the kernel freed its initial code, when the marks were made
    "6.1": {(0, ZoneType.DMA): 3840, (0, ZoneType.DMA32): 243584, (1, ZoneType.DMA32): 236451},
    "6.12": {(0, ZoneType.DMA): 3840, (0, ZoneType.DMA32): 242590, (1, ZoneType.DMA32): 236490},
}
MARKS = {
    "6.1": {(0, ZoneType.DMA): (134, 167, 200), (0, ZoneType.DMA32): (8505, 10631, 12757)},
    "6.12": {
        (0, ZoneType.DMA): (134, 167, 200),
        (0, ZoneType.DMA32): (8487, 10608, 12729),
        (1, ZoneType.DMA32): (8274, 10342, 12410),
        (0, ZoneType.MOVABLE): (32, 32, 32),
    },
}


@KERNELS
def test_watermarks_are_those_of_the_kernel(boot: Boot, kernel: str) -> None:
    """With the managed pages of a guest its zones have the guest's marks, batches and thresholds."""
    machine = boot(NODES, rules=Rules.of(kernel))
    for (nid, kind), managed in MANAGED[kernel].items():
        machine.nodes[nid].zones[kind].managed = managed
    for (nid, kind), marks in MARKS[kernel].items():
        found = watermarks_of(machine, machine.nodes[nid].zones[kind])
        assert (found.min, found.low, found.high) == marks
    dma, dma32 = machine.nodes[0].zones[:2]
    assert [batch_of(dma), batch_of(dma32)] == [1, 63]
    assert [stat_threshold(dma, 2), stat_threshold(dma32, 2)] == [4, 16]


def test_a_lower_zone_keeps_pages_for_those_who_have_no_choice(boot: Boot) -> None:
    """By the ratios 256 and 32 to what the higher zones manage (the sums are of a host of 24 GiB)."""
    machine = boot("32GiB")
    zones = machine.nodes[0].zones
    for zone, managed in zip(zones, (3840, 772864, 5394432, 0), strict=True):
        zone.managed = managed
    assert protection_of(machine, zones[0]) == [0, 3019, 24091, 24091, 24091]
    assert protection_of(machine, zones[1]) == [0, 0, 21072, 21072, 21072]
    assert protection_of(machine, zones[3]) == [0, 0, 0, 0, 0]


@pytest.mark.fact("5.14")
def test_counters_follow_what_is_allocated(boot: Boot) -> None:
    """Each kind has its line in meminfo, and goes from MemFree."""
    machine = boot("4GiB")
    field = re.compile(r"^(\S+): +(\d+)", re.MULTILINE)
    before = dict(field.findall(machine.tree.read("/proc/meminfo")))
    machine.alloc_pages(1000, PageKind.ANONYMOUS)
    machine.alloc_pages(100, PageKind.FILE)
    machine.alloc_pages(10, PageKind.SLAB)
    machine.alloc_pages(20, PageKind.RECLAIMABLE)
    machine.alloc_pages(1, PageKind.PAGE_TABLE)
    after = dict(field.findall(machine.tree.read("/proc/meminfo")))
    changed = {name: int(after[name]) - int(before[name]) for name in after if after[name] != before[name]}
    del changed["MemAvailable"]
    assert changed == {
        "MemFree": -4524,
        "Cached": 400,
        "Inactive": 4400,
        "Inactive(anon)": 4000,
        "Inactive(file)": 400,
        "AnonPages": 4000,
        "KReclaimable": 80,
        "Slab": 120,
        "SReclaimable": 80,
        "SUnreclaim": 40,
        "PageTables": 4,
        "Committed_AS": 4000,
    }


@pytest.mark.fact("5.14")
def test_zoneinfo_follows_hotplug_at_once(boot: Boot) -> None:
    """Present, managed, spanned and start_pfn, and all 0 once the zone is empty."""
    machine = boot("4GiB")
    (block,) = machine.add_memory(0, machine.next_room(machine.block_size), machine.block_size)

    def movable() -> list[str]:
        text = machine.tree.read("/proc/zoneinfo").split("zone  Movable")[1].split("Node")[0]
        return re.findall(r"(?:pages free|spanned|present|managed|start_pfn:) +\d+", text)

    nothing = ["pages free     0", "spanned  0", "present  0", "managed  0"]
    assert movable() == nothing
    machine.device_online(block, "online_movable")
    start = f"start_pfn:           {machine.block(block).start_pfn}"
    assert movable() == ["pages free     32768", "spanned  32768", "present  32768", "managed  32768", start]
    machine.device_offline(block)
    assert movable() == nothing


# -- free chunks


def test_headings_and_columns_of_free_chunks_are_the_kernel_s(boot: Boot) -> None:
    """Each line that is not of a zone is the real one; the others are as long as these."""
    tree = boot(NODES, rules=Rules.LINUX_6_12).tree
    for name in ("buddyinfo", "pagetypeinfo"):
        pairs = list(zip(tree.read(f"/proc/{name}").splitlines(), (REAL / "6.12" / name).read_text().splitlines(), strict=True))
        assert [ours for ours, real in pairs if "zone" not in real] == [real for _, real in pairs if "zone" not in real]
        assert [len(ours) for ours, _ in pairs] == [len(real) for _, real in pairs]


def test_free_chunks_of_an_empty_machine(boot: Boot) -> None:
    """DMA divided at its ends, DMA32 in chunks of the largest order; all pageblocks movable, as many as the guest's."""
    tree = boot(NODES).tree
    assert tree.read("/proc/buddyinfo").splitlines() == [
        "Node 0, zone      DMA      2      2      2      2      2      1      1      0      1      1      3 ",
        "Node 0, zone    DMA32      0      0      0      0      0      0      0      0      0      0    252 ",
        "Node 1, zone    DMA32      0      0      0      0      0      0      0      0      0      0    256 ",
    ]
    blocks = [line for line in tree.read("/proc/pagetypeinfo").splitlines() if line.startswith("Node 0, zone")]
    assert blocks == [
        "Node 0, zone      DMA            0            8            0            0            0 ",
        "Node 0, zone    DMA32            0          504            0            0            0 ",
    ]


def test_kernel_pages_show_in_their_row(boot: Boot) -> None:
    """One slab page: its pageblock is unmovable, and what is left of it is 511 pages in nine chunks."""
    machine = boot("1GiB")
    machine.pages.alloc_pages(0, PageKind.SLAB)
    machine.pages.chunks.drain()
    lines = machine.tree.read("/proc/pagetypeinfo").splitlines()
    row = next(line for line in lines if line.startswith("Node    0, zone    DMA32, type    Unmovable"))
    assert row.split()[6:] == ["1"] * 10 + ["0"]
    assert "Node 0, zone    DMA32            2          502            0            0            0 " in lines


@pytest.mark.fact("5.15")
def test_iomem_is_in_proc(boot: Boot) -> None:
    """What is claimed, with what was added."""
    machine = boot("1GiB")
    machine.add_memory(0, 4 * GIB, machine.block_size)
    assert machine.tree.read("/proc/iomem").splitlines()[-2:] == [
        "00100000-3fffffff : System RAM",
        "100000000-107ffffff : System RAM",
    ]


# -- a node's huge pages and failures

NODE0 = "/sys/devices/system/node/node0"


@pytest.mark.fact("7.6")
def test_the_pool_of_huge_pages(boot: Boot) -> None:
    """Eight of 2 MiB by a write, shown as the real kernels show them; fewer where there is no room; none again."""
    machine = boot("1GiB")
    tree, size = machine.tree, f"{NODE0}/hugepages/hugepages-2048kB"
    tree.write(f"{size}/nr_hugepages", "8")
    assert [tree.read(f"{size}/{name}") for name in ("nr_hugepages", "free_hugepages", "surplus_hugepages")] == [
        "8\n",
        "8\n",
        "0\n",
    ]
    assert tree.read(f"{NODE0}/meminfo").splitlines()[-3:] == [
        "Node 0 HugePages_Total:     8",
        "Node 0 HugePages_Free:      8",
        "Node 0 HugePages_Surp:      0",
    ]
    tree.write(f"{size}/nr_hugepages", "1000000")
    assert int(tree.read(f"{size}/nr_hugepages")) == 511  # of 512: the first has holes
    tree.write(f"{size}/nr_hugepages", "0")
    assert tree.read(f"{size}/nr_hugepages") == "0\n"
    tree.write(f"{size}/nr_hugepages", "010")  # read with base 10, unlike most files (nr_hugepages_store_common())
    assert tree.read(f"{size}/nr_hugepages") == "10\n"
    assert refusal(tree.write, f"{size}/nr_hugepages", "0x10") == "EINVAL"
    tree.write(f"{size}/nr_hugepages", "0")
    check_pages(machine)


@pytest.mark.fact("7.6")
def test_free_huge_pages_go_with_their_block(boot: Boot) -> None:
    """The pool shrinks, and stays so when the block comes back; huge pages in use take their count along."""
    machine = boot([{"memory": "1GiB"}, 0])
    machine.add_memory(1, 4 * GIB, machine.block_size)
    machine.device_online(32, "online_movable")
    pools = [f"/sys/devices/system/node/node{nid}/hugepages/hugepages-2048kB/nr_hugepages" for nid in (0, 1)]
    machine.tree.write(pools[1], "6")
    used = machine.alloc_pages(4 * 512, PageKind.HUGETLB, node=1, owner="database")
    assert [machine.tree.read(path) for path in pools] == ["0\n", "10\n"]
    machine.device_offline(32)
    assert [machine.tree.read(path) for path in pools] == ["4\n", "0\n"]
    machine.device_online(32, "online_movable")
    assert [machine.tree.read(path) for path in pools] == ["4\n", "0\n"]
    assert (used.nr_pages, used.blocks) == (2048, [0])
    check_pages(machine)


@pytest.mark.fact("7.6", "3.16")
def test_promised_huge_pages_keep_their_block(boot: Boot) -> None:
    """EBUSY after MEM_GOING_OFFLINE; with other free ones the promise moves to them, and the block goes."""
    machine = boot([{"memory": "1GiB"}, 0])
    machine.add_memory(1, 4 * GIB, machine.block_size)
    machine.device_online(32, "online_movable")
    promised = machine.alloc_pages(10 * 512, PageKind.HUGETLB_RESERVED, node=1, owner="mapping")
    log = Log()
    three(machine, log)
    with pytest.raises(PageRefusal, match="every free huge page is promised") as caught:
        machine.device_offline(32)
    assert (caught.value.kind, caught.value.owner, caught.value.page) == ("hugetlb-reserved", "mapping", 0x100000)
    assert rounds(log) == ["GOING_OFFLINE(-1,1): 200 0 -1", "CANCEL_OFFLINE(-1,1): 200 0 -1"]
    machine.tree.write("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "12")
    machine.device_offline(32)
    assert (promised.nr_pages, promised.blocks) == (5120, [0])
    assert "HugePages_Total:      12\nHugePages_Free:       12\nHugePages_Rsvd:       10\n" in machine.tree.read("/proc/meminfo")
    check_pages(machine)


@pytest.mark.fact("7.4")
def test_huge_pages_migrate_whole_or_split(boot: Boot) -> None:
    """A transparent one is divided where there are only pieces; what was 512 pages is 512 pages still."""
    machine = boot("1GiB")
    (block,) = machine.add_memory(0, 4 * GIB, machine.block_size)
    machine.device_online(block, "online_movable")
    whole = machine.alloc_pages(1024, PageKind.THP, owner="app")
    machine.device_offline(block)
    assert {extent.kind for extent in whole.extents} == {PageKind.THP}
    assert not any(extent.start_pfn % 512 for extent in whole.extents)
    machine.device_online(block, "online_movable")
    split = machine.alloc_pages(1024, PageKind.THP, owner="app")
    pieces = machine.pages.alloc_pages_bulk(machine.pages.count_free() - 31_744, kind=PageKind.SLAB, emergency=True)
    machine.pages.free_pages_bulk(pieces, pieces.pfns[pieces.pfns % 2 == 0][:40_000])
    machine.device_offline(block)
    assert ({extent.kind for extent in split.extents}, split.nr_pages) == ({PageKind.ANONYMOUS}, 1024)
    check_pages(machine)


@pytest.mark.fact("7.7")
def test_corrupted_memory_is_counted_until_it_is_removed(boot: Boot) -> None:
    """4 kB a page, also while the block is offline; then the node's failures are history, and the page forgotten."""
    machine = boot(["1GiB", 0], rules=Rules.LINUX_6_12, parameters="memhp_default_state=online_movable")
    machine.add_memory(1, 4 * GIB, 128 << 20)
    seen = []

    def note() -> None:
        seen.append(re.findall(r"HardwareCorrupted: +(\d+) kB", machine.tree.read("/proc/meminfo")))

    for page in (0, 7):
        machine.tree.write("/sys/devices/system/memory/hard_offline_page", hex(4 * GIB + (page << 12)))
        note()
    machine.device_offline(32)
    note()
    machine.remove_memory(4 * GIB, 128 << 20)
    note()
    assert seen == [["4"], ["8"], ["8"], ["0"]]


@pytest.mark.fact("7.7", "7.7b")
def test_failures_are_counted_on_their_node(boot: Boot) -> None:
    """A free page recovers; a page of the kernel's own is left alone; soft offlining is not counted; 6.1 has no such files."""
    machine = boot("1GiB", rules=Rules.LINUX_6_12)
    slab = machine.alloc_pages(1, PageKind.SLAB, blocks=[7])
    hard = "/sys/devices/system/memory/hard_offline_page"
    machine.tree.write(hard, hex(3 << 28))
    machine.tree.write("/sys/devices/system/memory/soft_offline_page", hex((3 << 28) + 4096))
    for address in (slab.extents[0].start_pfn << 12, 0xA0000):
        with pytest.raises(HotplugError, match="EBUSY"):
            machine.tree.write(hard, hex(address))
    names = machine.tree.list(f"{NODE0}/memory_failure")
    assert {name: machine.tree.read(f"{NODE0}/memory_failure/{name}") for name in names} == {
        "delayed": "0\n",
        "failed": "0\n",
        "ignored": "2\n",
        "recovered": "1\n",
        "total": "3\n",
    }
    assert not boot("1GiB", rules=Rules.LINUX_6_1).tree.exists(f"{NODE0}/memory_failure")
    machine.free_pages(slab)
    check_pages(machine)


# -- a word a page

WORDS = {  # the words of a first and of a second page that guests with each kernel showed
    ("6.1", PageKind.ANONYMOUS): (0x400005828, 0x400005828),
    ("6.12", PageKind.ANONYMOUS): (0x400205828, 0x400205828),
    ("6.1", PageKind.THP): (0x40040D828, 0x411800),
    ("6.12", PageKind.THP): (0x40060D828, 0x400615828),
    ("6.1", PageKind.HUGETLB_FREE): (0x28000, 0x30000),
    ("6.12", PageKind.HUGETLB_FREE): (0x28000, 0x30000),
    ("6.1", PageKind.PAGE_TABLE): (0x4000000, 0x4000000),
    ("6.12", PageKind.SLAB): (0x80, 0x80),
    ("6.1", PageKind.UNMOVABLE): (0, 0),
}


@pytest.mark.parametrize(("kernel", "kind"), WORDS)
def test_page_flags_are_those_of_the_kernel(boot: Boot, kernel: str, kind: PageKind) -> None:
    """One word a page; a free page says BUDDY, a hole RESERVED."""
    machine = boot("2GiB", rules=Rules.of(kernel))
    start = machine.block(9).start_pfn
    machine.alloc_pages(512, kind, blocks=[9])
    words = struct.unpack("<514Q", machine.tree.read_bytes("/proc/kpageflags", 8 * start, 514 * 8))
    head, tail = WORDS[kernel, kind]
    assert words == (head, *[tail] * 511, 0x400, 0x400)
    counts = struct.unpack("<513Q", machine.tree.read_bytes("/proc/kpagecount", 8 * start, 513 * 8))
    mapped = int(kind in {PageKind.ANONYMOUS, PageKind.THP})
    assert counts == (*[mapped] * 512, 0)
    assert struct.unpack("<2Q", machine.tree.read_bytes("/proc/kpageflags", 8 * 0x9F, 16)) == (0x100000000, 0x100000000)


def test_a_poisoned_page_says_so(boot: Boot) -> None:
    """As 6.12 shows a free page that was taken out of use."""
    machine = boot("2GiB", rules=Rules.LINUX_6_12)
    machine.tree.write("/sys/devices/system/memory/hard_offline_page", hex(GIB))
    assert struct.unpack("<2Q", machine.tree.read_bytes("/proc/kpageflags", GIB >> 9, 16)) == (0x80000, 0x400)


def test_what_is_not_online_has_no_page(boot: Boot) -> None:
    """NOPAGE for an offline block and for addresses between blocks; the file ends with the last section."""
    machine = boot("4GiB")
    machine.device_offline(10)
    for block in (10, 25):
        words = machine.tree.read_bytes("/proc/kpageflags", 8 * block * 0x8000 + 8 * 0x7FFF, 8)
        assert (block, words) == (block, struct.pack("<Q", 0x100000))
    end = 8 * (5 << 30 >> 12)  # 1 GiB of the four is above 4 GiB
    assert len(machine.tree.read_bytes("/proc/kpageflags", end - 16, 80)) == 16
    assert machine.tree.read_bytes("/proc/kpageflags", end, 80) == b""
    assert machine.tree.read_bytes("/proc/kpagecount", 1 << 40, 8) == b""


def test_half_a_word_can_not_be_read(boot: Boot) -> None:
    """EINVAL, as of the kernel; nothing reads as nothing; and the file is no text."""
    tree = boot("1GiB").tree
    for offset, size in ((0, 7), (1, 8), (4, 8), (8, 12)):
        with pytest.raises(HotplugError, match="EINVAL"):
            tree.read_bytes("/proc/kpageflags", offset, size)
    assert tree.read_bytes("/proc/kpageflags", 0, 0) == b""
    with pytest.raises(HotplugError, match=r"EINVAL.*read_bytes"):
        tree.read("/proc/kpageflags")
    with pytest.raises(HotplugError, match="EACCES"):
        tree.write("/proc/kpageflags", "0")


def test_text_can_be_read_in_parts_too(boot: Boot) -> None:
    """``pread()`` works on every file."""
    tree = boot("1GiB").tree
    path = "/sys/devices/system/memory/block_size_bytes"
    assert [tree.read_bytes(path), tree.read_bytes(path, 2, 3), tree.read_bytes(path, 99)] == [b"8000000\n", b"000", b""]


def test_a_directory_can_be_read_in_parts(tmp_path: Path) -> None:
    """DirTree gives what pread() gives, and what is left at the end."""
    (tmp_path / "words").write_bytes(bytes(range(64)))
    tree = DirTree(tmp_path)
    assert tree.read_bytes("/words", 8, 16) == bytes(range(8, 24))
    assert tree.read_bytes("/words", 56, 80) == bytes(range(56, 64))
    assert tree.read_bytes("/words") == bytes(range(64))
