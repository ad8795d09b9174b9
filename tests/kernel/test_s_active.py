"""A file of a device in use keeps the device from going: s_active, and why writes to sysfs restart."""

from __future__ import annotations

import threading

import pytest

from memhp import DeadlockError, Machine, Rules
from memhp.kernel import add
from memhp.kernel.machine import Machine as KernelMachine
from memhp.locking import LockGraph, switch
from memhp.locking.switch import Op
from memhp.units import PhysAddr
from support import ALL, BLOCK, GIB, MEMORY, NODE, Boot, Running, in_thread, refusal, state, until_parked, with_node_1, write

ROOM = 4 * GIB


class User(Running):
    """A thread that is inside of a file of a block until it is told to leave."""

    def __init__(self, machine: Machine, block: int) -> None:
        self._inside, self._leave = threading.Event(), threading.Event()
        active = machine.block(block).active

        def uses() -> None:
            assert active.get()
            self._inside.set()
            assert self._leave.wait(30)
            active.put()

        super().__init__(uses, "user")
        assert self._inside.wait(30)

    def leave(self) -> None:
        self._leave.set()
        self.result()


def waits_for(thread: threading.Thread) -> tuple[str, Op]:
    until_parked(thread)
    waiter = switch.task_of(thread).waiting
    assert waiter is not None
    return waiter.lock.name, waiter.op


@ALL
def test_removal_waits_for_who_is_inside_a_file(boot: Boot, rules: Rules) -> None:
    """Nobody gets in meanwhile: the device is going, ENODEV; when the last user has left it is gone."""
    machine = with_node_1(boot, rules)
    file = machine.tree.open(f"{MEMORY}/memory32/online")
    user = User(machine, 32)
    remover = in_thread(lambda: machine.remove_memory(ROOM, BLOCK), "remover")
    assert waits_for(remover) == ("memory32/s_active", Op.WRITE_DRAIN)
    assert refusal(file.read) == "ENODEV"
    assert refusal(write, machine, "memory32/state", "online") == "ENODEV"
    assert state(machine, 33) == "offline"
    user.leave()
    assert remover.result() == [32]
    assert not machine.tree.exists(f"{MEMORY}/memory32")
    assert refusal(file.read) == "ENODEV"


@ALL
@pytest.mark.fact("4.3")
def test_a_write_that_waits_has_left_the_file(boot: Boot, rules: Rules) -> None:
    """So who holds device_hotplug_lock can remove the device under it, and the write begins anew and finds nothing."""
    machine = with_node_1(boot, rules)
    with machine.locks.device_hotplug:
        writer = in_thread(lambda: refusal(write, machine, "memory32/state", "online"), "writer")
        assert waits_for(writer) == ("device_hotplug_lock", Op.AWAIT_FREE)
        assert switch.task_of(writer).describe_held() == []
        assert add.remove_memory(machine, PhysAddr(ROOM), BLOCK) == [32]
    assert writer.result() == "ENODEV"


# -- what happens if the write waits for the lock instead


@pytest.fixture
def blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the store take device_hotplug_lock as everybody else does."""
    monkeypatch.setattr(KernelMachine, "device_hotplug_sysfs", lambda machine: machine.locks.device_hotplug)


@ALL
@pytest.mark.fact("4.3")
@pytest.mark.usefixtures("blocking")
def test_a_store_that_waits_for_device_hotplug_lock_is_found_out(rules: Rules) -> None:
    """The store has its file and wants the lock, the removal has the lock and wants the file; one thread shows it."""
    machine = with_node_1(Machine.boot, rules, lockdep=True)
    machine.remove_memory(ROOM, BLOCK)
    assert machine.dep is not None
    assert machine.dep.reports == []
    write(machine, "memory33/state", "online")
    (report,) = machine.dep.reports
    assert report.classes == ("memory_block s_active", "device_hotplug_lock")
    lines = str(report).partition(" Nobody gets further:\n\n")[2].splitlines()
    assert lines[:2] == [
        "  CPU0 waits for device_hotplug_lock {write}, held by CPU1 {write}",
        "  CPU1 waits for memory_block s_active {write}, held by CPU0 {read}",
    ]
    besides = ["  CPU1 holds besides: cpu_hotplug_lock, mem_hotplug_lock"] if rules is Rules.LINUX_6_12 else []
    assert lines[2 : lines.index("")] == besides


@ALL
@pytest.mark.fact("4.3")
@pytest.mark.usefixtures("blocking")
def test_a_store_that_waits_for_device_hotplug_lock_really_deadlocks(rules: Rules) -> None:
    """The removal is refused, because it would wait for ever, and the device is as it was."""
    machine = with_node_1(Machine.boot, rules)
    with machine.locks.device_hotplug:
        writer = in_thread(lambda: write(machine, "memory33/state", "online"), "writer")
        assert waits_for(writer) == ("device_hotplug_lock", Op.ACQUIRE)
        with pytest.raises(DeadlockError) as caught:
            add.remove_memory(machine, PhysAddr(ROOM), 2 * BLOCK)
        assert caught.value.chain == (
            "MainThread waits for memory33/s_active (wait for readers), held by writer",
            "writer waits for device_hotplug_lock (acquire), held by MainThread",
        )
    assert writer.result() == 6
    # memory32 had been drained when memory33 could not be.
    assert write(machine, "memory32/state", "online") == 6
    assert [state(machine, block) for block in (32, 33)] == ["online", "online"]


@ALL
def test_readers_of_online_and_removals_do_not_meet(boot: Boot, rules: Rules) -> None:
    """Reading ``online`` waits for the device's lock inside its file; a removal gives that back before it waits for files."""
    machine = with_node_1(boot, rules)
    machine.tree.read(f"{MEMORY}/memory32/online")
    write(machine, "memory33/state", "online")
    write(machine, "memory33/state", "offline")
    machine.remove_memory(ROOM, 2 * BLOCK)
    machine.add_memory(1, ROOM, BLOCK)
    assert machine.dep is not None
    assert (machine.dep.reports, machine.dep.warnings) == ([], [])


@ALL
def test_a_file_of_a_node_does_not_outlive_the_node(boot: Boot, rules: Rules) -> None:
    """Also when the node comes back: that is another device."""
    machine = with_node_1(boot, rules, blocks=1)
    file = machine.tree.open(f"{NODE}/node1/cpulist")
    assert file.read() == "\n"
    machine.remove_memory(ROOM, BLOCK)
    assert refusal(file.read) == "ENODEV"
    machine.add_memory(1, ROOM, BLOCK)
    assert refusal(file.read) == "ENODEV"
    assert machine.tree.read(f"{NODE}/node1/cpulist") == "\n"


# -- the graph


def life(machine: Machine, blocks: int) -> None:
    """Bring every block of node 1 online and offline, read its files, remove it."""
    for number in range(32, 32 + blocks):
        write(machine, f"memory{number}/state", "online")
        machine.tree.read(f"{MEMORY}/memory{number}/online")
        machine.device_offline(number)
        write(machine, f"memory{number}/online", "1")
        machine.tree.write(f"{MEMORY}/memory{number}/online", "0")
    machine.remove_memory(ROOM, blocks * BLOCK)


@ALL
def test_the_graph_does_not_grow_with_the_blocks(boot: Boot, rules: Rules) -> None:
    """Forty blocks make the edges that two make."""
    seen = []
    for blocks in (2, 40):
        machine = with_node_1(boot, rules, blocks=blocks)
        life(machine, blocks)
        assert machine.dep is not None
        edges = machine.dep.graph.edges()
        seen.append((len(edges), {(edge.before.key, edge.after.key) for edge in edges}))
    assert seen[0] == seen[1]


@pytest.mark.fact("4.2")
def test_two_runs_without_a_report_show_the_inversion_together() -> None:
    """One run only brings a block online, another only adds one; the merged graph has the document's inversion."""

    def run(act: str) -> LockGraph:
        machine = Machine.boot("1GiB", device_hotplug_lock=False, lockdep=True)
        if act == "add":
            machine.add_memory(0, ROOM, BLOCK)
        else:
            machine.device_offline(7)
        assert machine.dep is not None
        assert (machine.dep.reports, machine.dep.graph.cycles()) == ([], [])
        return machine.dep.graph

    cycles = {cycle.classes: cycle for cycle in LockGraph.merged([run("add"), run("offline")]).cycles()}
    assert set(cycles) == {
        ("mem_hotplug_lock", "memory_block device_lock"),
        *[("cpu_hotplug_lock", *middle, "memory_block device_lock") for middle in ((), ("mem_hotplug_lock",))],
    }
    # Nobody wrote cpu_hotplug_lock, which it would take.
    assert [classes for classes, cycle in cycles.items() if not cycle.unwritten] == [
        ("mem_hotplug_lock", "memory_block device_lock")
    ]
    inversion = cycles["mem_hotplug_lock", "memory_block device_lock"]
    assert [(edge.before.name, edge.after.name) for edge in inversion.edges] == [
        ("mem_hotplug_lock", "memory32/device_lock"),
        ("memory7/device_lock", "mem_hotplug_lock"),
    ]
    functions = [[line.split("()")[0] for line in edge.after.site.lines()] for edge in inversion.edges if edge.after.site]
    assert ["_create_devices" in functions[0], "device_offline" in functions[1]] == [True, True]
