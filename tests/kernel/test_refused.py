"""Requests that make no sense: each is a clear error, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from memhp import InvalidInput, Machine, PageKind, Rules
from memhp.kernel.drivers import DaxKmem, HyperVBalloon, SclpMemory, XenBalloon
from memhp.kernel.holdings import Allocation
from memhp.units import Pfn
from page_checker import check_pages
from support import ALL, BLOCK, GIB, MIB, Boot, another_reads, in_thread, interrupt, refusal, snapshot, with_node_1

ROOM = 4 * GIB
HIGH = 8 * GIB
JUNK: list[Any] = [None, "many", 1.5, float("nan"), True, b"1", [], {}, (), object()]
"""What stands for a number and is none."""

Make = Callable[[Machine], Callable[..., object]]
NUMBERS: dict[str, tuple[Make, tuple[object, ...]]] = {
    "add_memory": (lambda machine: machine.add_memory, (1, HIGH, BLOCK)),
    "remove_memory": (lambda machine: machine.remove_memory, (HIGH, BLOCK)),
    "offline_and_remove_memory": (lambda machine: machine.offline_and_remove_memory, (HIGH, BLOCK)),
    "plug_dimm": (lambda machine: machine.plug_dimm, (1, BLOCK)),
    "device_offline": (lambda machine: machine.device_offline, (32,)),
    "next_room": (lambda machine: machine.next_room, (BLOCK,)),
    "register_static": (lambda machine: machine.groups.register_static, (1, 0x8000)),
    "register_dynamic": (lambda machine: machine.groups.register_dynamic, (1, 0x8000)),
    "unregister": (lambda machine: machine.groups.unregister, (0,)),
    "memremap_pages": (lambda machine: machine.device_memory.memremap_pages, (1, HIGH, BLOCK)),
    "reserve_cma": (lambda machine: machine.pages.reserve_cma, (0x4000, 512)),
    "iomem": (lambda machine: lambda start, size: machine.iomem.request(start, size, "mine"), (HIGH, BLOCK)),
    "dax/kmem": (lambda machine: lambda nid, *place: DaxKmem(machine, nid, [place]).probe(), (1, HIGH, BLOCK)),
    "hyper-v": (lambda machine: partial(HyperVBalloon(machine).hot_add, 1), (HIGH, BLOCK, BLOCK)),
    "xen": (lambda machine: partial(XenBalloon(machine).reserve_additional_memory, 1), (HIGH, BLOCK)),
    "sclp": (lambda machine: lambda *place: SclpMemory(machine, *place[:2], increment=place[2]), (HIGH, BLOCK, MIB)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_an_error_of_its_own(boot: Boot, name: str) -> None:
    """InvalidInput, which names the value, and not whatever Python makes of it somewhere inside."""
    make, arguments = NUMBERS[name]
    machine = with_node_1(boot)
    call = make(machine)
    before = snapshot(machine, files=False)
    for place in range(len(arguments)):
        for junk in JUNK:
            with pytest.raises(InvalidInput):
                call(*arguments[:place], junk, *arguments[place + 1 :])
    assert snapshot(machine, files=False) == before


def test_what_is_something_else_is_an_error_of_its_own(boot: Boot) -> None:
    """Names, DIMMs, threads, holdings, nodes and lists of blocks."""
    machine = with_node_1(boot)
    before = snapshot(machine, files=False)
    calls: list[Callable[[Any], object]] = [
        lambda name: machine.add_memory(1, HIGH, BLOCK, name=name),
        lambda name: machine.add_memory_driver_managed(1, HIGH, BLOCK, name),
        machine.unplug_dimm,
        machine.send_signal,
        machine.load_module,
        machine.unload_module,
        machine.free_pages,
        machine.pages.pin,
        machine.pages.unpin,
        machine.pages.free_pages,
        lambda kind: machine.alloc_pages(1, kind),
        lambda node: machine.zone(node, "Movable"),
    ]
    for call in calls:
        for junk in (None, 1.5, [], {}, object()):
            with pytest.raises(InvalidInput):
                call(junk)
    nodes: list[Any] = [1.5, [], {}, object()]
    for node in nodes:
        with pytest.raises(InvalidInput):
            machine.alloc_pages(1, node=node)
    blocks: list[Any] = [3, 1.5, [None], [[]], ["32"], [99]]
    for some in blocks:
        with pytest.raises(InvalidInput):
            machine.alloc_pages(1, blocks=some)
    assert snapshot(machine, files=False) == before


@ALL
@pytest.mark.fact("3.26", "3.28")
def test_a_range_far_larger_than_the_machine_is_no_more_work(boot: Boot, rules: Rules) -> None:
    """Blocks that aren't there are passed over, also when there are 2^33 of them."""
    machine = with_node_1(boot, rules)
    machine.device_online(33)
    assert refusal(machine.remove_memory, ROOM, 1 << 60) == "EBUSY"
    assert machine.offline_and_remove_memory(ROOM, 1 << 60) == [32, 33, 34, 35]
    assert machine.remove_memory(ROOM, 1 << 60) == []


def test_what_another_machine_allocated_is_not_this_one_s(boot: Boot) -> None:
    """It can be neither freed nor pinned here: a pin would keep whatever has the same place."""
    machine, other = boot("1GiB"), boot("1GiB")
    mine, page = machine.pages.alloc_pages(), other.pages.alloc_pages()
    assert mine.pfn == page.pfn
    holdings: list[Any] = [page, other.pages.alloc_pages_bulk(3), other.alloc_pages(7)]
    for holding in holdings:
        for call in (machine.pages.pin, machine.pages.unpin, machine.free_pages, machine.pages.free_pages):
            with pytest.raises(InvalidInput, match=r"an allocation of this machine|what this machine allocated"):
                call(holding)
        assert (holding.pins, holding.freed) == (0, False)
    check_pages(machine)
    check_pages(other)


# -- the online-page callback


def withhold_beyond(start: Pfn, nr_pages: int) -> list[tuple[Pfn, int, Allocation]]:
    return [(Pfn(start + nr_pages - 512), 1024, Allocation(PageKind.OFFLINE, "somebody"))]


def withhold_twice(start: Pfn, nr_pages: int) -> list[tuple[Pfn, int, Allocation]]:
    return [(start, 1024, Allocation(PageKind.OFFLINE, "one")), (Pfn(start + 512), 512, Allocation(PageKind.OFFLINE, "two"))]


def raise_an_error(start: Pfn, nr_pages: int) -> list[tuple[Pfn, int, Allocation]]:
    raise ZeroDivisionError


@ALL
@pytest.mark.parametrize(
    ("callback", "error"), [(withhold_beyond, InvalidInput), (withhold_twice, InvalidInput), (raise_an_error, ZeroDivisionError)]
)
def test_a_driver_that_gives_pages_wrongly_leaves_the_block_offline(
    boot: Boot, rules: Rules, callback: Any, error: type[Exception]
) -> None:
    """It is asked before anything is counted; afterwards the block comes online as any other."""
    machine = with_node_1(boot, rules)
    machine.device_online(33)
    machine.online_page.set(callback)
    before = snapshot(machine)
    with pytest.raises(error):
        machine.device_online(32)
    assert snapshot(machine) == before
    machine.online_page.restore(callback)
    machine.device_online(32)
    assert machine.zone(1, "Normal").managed == 2 * 0x8000
    check_pages(machine)


# -- Ctrl-C


@pytest.mark.fact("3.25")
def test_ctrl_c_before_the_devices_are_gone_leaves_the_firmware_s_entry(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 6.12 the entry goes first, and then the request waits for those who read memory."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    before, entries = snapshot(machine), list(machine.firmware_map)
    interrupt(monkeypatch, "victim", when_woken=False)
    with another_reads(machine):
        victim = in_thread(lambda: machine.remove_memory(ROOM, 4 * BLOCK), "victim")
        with pytest.raises(KeyboardInterrupt):
            victim.result()
    assert (snapshot(machine), list(machine.firmware_map)) == (before, entries)
    machine.remove_memory(ROOM, 4 * BLOCK)
    assert list(machine.firmware_map) == entries[:-1]
