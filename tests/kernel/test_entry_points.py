"""The locks that each way into the hotplug core takes, in order, as read in the kernels' source and seen in their traces.

Not played, for the model has no such thing: memremap_pages(), pseries DLPAR, CPU hotplug, the page-online callback, ``probe``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from memhp import NOTIFY_OK, Machine, Rules
from memhp.locking import Lockdep, switch
from memhp.locking.switch import Op
from support import BLOCK, GIB, MEMORY, TABLES, write

OLD = (Rules.DOCUMENTED, Rules.LINUX_6_1)
NEW = (Rules.LINUX_6_12,)
ALL = (*OLD, *NEW)
SHORT = {
    "device_hotplug_lock": "DH",
    "cpu_hotplug_lock": "cpus",
    "mem_hotplug_lock": "mem",
    "memory_chain.rwsem": "MC",
    "memory_block device_lock": "DL",
    "node device_lock": "node DL",
    "memory_block s_active": "s_active",
    "node s_active": "node s_active",
    "acpi physical_node_lock": "physical_node_lock",
    "the hypervisor's slots": "(slots, not the kernel's)",
}
VERBS = {Op.ACQUIRE: "", Op.TRY_ACQUIRE: "try ", Op.READ_ACQUIRE: "read ", Op.TRY_READ: "try read ", Op.WRITE_BLOCK: "write "}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the class of each lock that is taken, where all of them pass, but for those of one table."""
    seen: list[str] = []
    real = switch.point

    def point(op: Op, lock: switch.Waitable) -> None:
        lock_class = getattr(lock, "lock_class", "")
        if op in VERBS and lock_class not in TABLES:
            seen.append(f"{VERBS[op]}{SHORT.get(lock_class, lock_class)}")
        real(op, lock)

    monkeypatch.setattr(switch, "point", point)
    return seen


MH = "read cpus, write mem"
ONLINE = f"DL, {MH}, read MC, read MC"
ONLINE_NEW = f"DL, {MH}, read MC, read MC, read MC"
OFFLINE = f"DL, {MH}, pcp_batch_high_lock, read MC, read MC"
OFFLINE_NEW = f"{OFFLINE}, read MC"
CREATE = f"{MH}, DL"
DELETE = "DL, write s_active"
DELETE_NODE = "node DL, write node s_active"


class Entry(NamedTuple):
    """One way in, by rules: what is done before, what is done, and the locks that the latter takes."""

    name: str
    rules: tuple[Rules, ...]
    before: tuple[Callable[[Machine], object], ...]
    act: Callable[[Machine], object]
    locks: str


def add(machine: Machine) -> None:
    machine.add_memory(1, 4 * GIB, BLOCK)


def add_another(machine: Machine) -> None:
    machine.add_memory(1, 5 * GIB, BLOCK)


def online(machine: Machine) -> None:
    machine.device_online(32)


def auto(machine: Machine) -> None:
    write(machine, "auto_online_blocks", "online")


def plug(machine: Machine) -> None:
    machine.plug_dimm(1, BLOCK)


def unplug(machine: Machine) -> None:
    machine.unplug_dimm(machine.dimms[0])


SLOTS = "(slots, not the kernel's)"
ENTRIES = [
    Entry(
        "write online to state",
        OLD,
        (add,),
        lambda m: write(m, "memory32/state", "online"),
        f"try read s_active, try DH, {ONLINE}",
    ),
    Entry(
        "write online to state",
        NEW,
        (add,),
        lambda m: write(m, "memory32/state", "online"),
        f"try read s_active, try DH, {ONLINE_NEW}",
    ),
    Entry(
        "write 0 to online",
        OLD,
        (add, online),
        lambda m: write(m, "memory32/online", "0"),
        f"try read s_active, try DH, {OFFLINE}",
    ),
    Entry(
        "write 0 to online",
        NEW,
        (add, online),
        lambda m: write(m, "memory32/online", "0"),
        f"try read s_active, try DH, {OFFLINE_NEW}",
    ),
    Entry("read online", ALL, (add,), lambda m: m.tree.read(f"{MEMORY}/memory32/online"), "try read s_active, DL"),
    Entry("read state", ALL, (add,), lambda m: m.tree.read(f"{MEMORY}/memory32/state"), ""),
    Entry("add_memory to a new node", ALL, (), add, f"DH, {CREATE}, node DL"),
    Entry("add_memory", ALL, (add,), add_another, f"DH, {CREATE}"),
    Entry("add_memory with auto-online", OLD, (add, auto), add_another, f"DH, {CREATE}, {ONLINE}"),
    Entry("add_memory with auto-online", NEW, (add, auto), add_another, f"DH, {CREATE}, {ONLINE_NEW}"),
    Entry("remove_memory", OLD, (add,), lambda m: m.remove_memory(4 * GIB, BLOCK), f"DH, {DELETE}, {MH}, {DELETE_NODE}"),
    Entry("remove_memory", NEW, (add,), lambda m: m.remove_memory(4 * GIB, BLOCK), f"DH, {MH}, {DELETE}, {DELETE_NODE}"),
    Entry(
        "remove_memory of a node that stays",
        OLD,
        (add, add_another),
        lambda m: m.remove_memory(4 * GIB, BLOCK),
        f"DH, {DELETE}, {MH}",
    ),
    Entry("a DIMM comes", ALL, (add_another,), plug, f"{SLOTS}, DH, acpi_scan_lock, {SLOTS}, {CREATE}, physical_node_lock"),
    Entry(
        "a DIMM goes",
        OLD,
        (add_another, plug, online),
        unplug,
        f"DH, acpi_scan_lock, physical_node_lock, {OFFLINE}, {DELETE}, {MH}, {SLOTS}",
    ),
    Entry(
        "a DIMM goes",
        NEW,
        (add_another, plug, online),
        unplug,
        f"DH, acpi_scan_lock, physical_node_lock, {OFFLINE_NEW}, {MH}, {DELETE}, {SLOTS}",
    ),
    Entry("get_online_mems", ALL, (), Machine.get_online_mems, "read mem"),
    Entry("soft_offline_page", NEW, (), lambda m: write(m, "soft_offline_page", "0x1000000"), "mf_mutex, read mem"),
    Entry("hard_offline_page", NEW, (), lambda m: write(m, "hard_offline_page", "0x1000000"), "mf_mutex"),
    Entry("register a callback", ALL, (), lambda m: m.hotplug_memory_notifier(lambda *_: NOTIFY_OK, 1), "write MC"),
]


def machine_with(rules: Rules, lockdep: Lockdep) -> Machine:
    """Boot a machine with two nodes, two slots and one callback."""
    machine = Machine.boot(["1GiB", 0], slots=2, rules=rules, lockdep=lockdep, parameters={"memhp_default_state": "offline"})
    machine.hotplug_memory_notifier(lambda *_: NOTIFY_OK)
    return machine


def cases() -> Iterator[object]:
    for entry in ENTRIES:
        for rules in entry.rules:
            yield pytest.param(entry, rules, id=f"{entry.name}, {rules.text}")


@pytest.mark.fact("4.1", "4.2", "4.3", "4.5")
@pytest.mark.parametrize(("entry", "rules"), list(cases()))
def test_an_entry_point_takes_its_locks_in_order(entry: Entry, rules: Rules, taken: list[str]) -> None:
    """Outermost first; lockdep has nothing against it."""
    machine = machine_with(rules, Lockdep())
    for step in entry.before:
        step(machine)
    taken.clear()
    entry.act(machine)
    assert ", ".join(taken) == entry.locks
    if entry.act is Machine.get_online_mems:
        machine.put_online_mems()
    assert machine.dep is not None
    assert (machine.dep.reports, machine.dep.warnings) == ([], [])


@pytest.mark.fact("4.2")
@pytest.mark.parametrize("rules", ALL)
def test_all_entry_points_together_have_no_cycle(rules: Rules) -> None:
    """One lockdep over all of them, in one machine after the other: no order of any two is wrong."""
    dep = Lockdep()
    for entry in ENTRIES:
        if rules not in entry.rules:
            continue
        dep.next_run()
        machine = machine_with(rules, dep)
        for step in (*entry.before, entry.act):
            step(machine)
        if entry.act is Machine.get_online_mems:
            machine.put_online_mems()
    assert ([str(report) for report in dep.reports], dep.warnings) == ([], [])
    assert len(dep.graph.edges()) > 20
