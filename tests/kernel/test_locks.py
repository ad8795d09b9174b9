"""The locks of the machine: their order at each entry point, who waits for whom, and what lockdep makes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from memhp import (
    MEM_GOING_ONLINE,
    Allocation,
    DeadlockError,
    LockNotHeld,
    Machine,
    MemoryAction,
    MemoryNotify,
    PageKind,
    Rules,
    ZoneType,
)
from memhp.kernel import add, device
from memhp.locking import Op, current, switch
from memhp.units import PhysAddr
from support import (
    ALL,
    BLOCK,
    GIB,
    MEMORY,
    TABLES,
    Boot,
    Log,
    Running,
    another_reads,
    in_thread,
    refusal,
    state,
    three,
    until_parked,
    valid_zones,
    with_node_1,
    write,
)

ROOM = 4 * GIB
MODES = {
    Op.ACQUIRE: "",
    Op.TRY_ACQUIRE: " (try)",
    Op.READ_ACQUIRE: " (read)",
    Op.WRITE_BLOCK: " (write)",
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each acquisition at the one point that all of them pass, but for the allocator's."""
    seen: list[str] = []
    real = switch.point

    def point(op: Op, lock: switch.Waitable) -> None:
        if op in MODES and lock.name not in TABLES:
            seen.append(f"{lock.name}{MODES[op]}")
        real(op, lock)

    monkeypatch.setattr(switch, "point", point)
    return seen


def op_of(thread: threading.Thread) -> tuple[str, Op]:
    """Say what a parked thread waits for, and how."""
    until_parked(thread)
    waiter = switch.task_of(thread).waiting
    assert waiter is not None
    return waiter.lock.name, waiter.op


CHANGE = ["cpu_hotplug_lock (read)", "mem_hotplug_lock (write)"]
CHAIN = "memory_chain.rwsem (read)"
DELETED = ["memory32/device_lock", "memory32/s_active (write)", "memory33/device_lock", "memory33/s_active (write)"]


# -- the order


@ALL
@pytest.mark.fact("4.1", "4.3", "4.5")
def test_a_write_takes_device_hotplug_device_cpu_hotplug_mem_hotplug_and_the_chain(
    boot: Boot, rules: Rules, taken: list[str]
) -> None:
    """``state`` tries device_hotplug_lock; on the way offline pcp_batch_high_lock comes in between."""
    machine = with_node_1(boot, rules)
    three(machine, Log())
    extra = [CHAIN] if rules is Rules.LINUX_6_12 else []
    taken.clear()
    write(machine, "memory32/state", "online")
    assert taken == ["device_hotplug_lock (try)", "memory32/device_lock", *CHANGE, *extra, CHAIN, CHAIN]
    taken.clear()
    write(machine, "memory32/online", "0")
    assert taken == [
        "device_hotplug_lock (try)",
        "memory32/device_lock",
        *CHANGE,
        "pcp_batch_high_lock",
        CHAIN,
        CHAIN,
        *extra,
    ]


@ALL
@pytest.mark.fact("3.14", "3.16", "4.5")
def test_isolation_fails_under_pcp_batch_high_lock_before_the_chain(boot: Boot, rules: Rules, taken: list[str]) -> None:
    """An unmovable page is met with the lock held, and the chain is not reached."""
    machine = with_node_1(boot, rules)
    three(machine, Log())
    write(machine, "memory32/state", "online_kernel")
    machine.alloc_pages(1, PageKind.UNMOVABLE, blocks=[32])
    taken.clear()
    assert refusal(machine.device_offline, 32) == "EBUSY"
    assert taken == ["device_hotplug_lock", "memory32/device_lock", *CHANGE, "pcp_batch_high_lock"]


@ALL
@pytest.mark.fact("4.5")
def test_a_request_from_inside_the_kernel_waits_for_device_hotplug_lock(boot: Boot, rules: Rules, taken: list[str]) -> None:
    """It takes the mutex where a write to sysfs only tries."""
    machine = with_node_1(boot, rules)
    taken.clear()
    machine.device_online(32)
    assert taken == ["device_hotplug_lock", "memory32/device_lock", *CHANGE]


@ALL
@pytest.mark.fact("4.2", "4.5", "3.48")
def test_add_takes_the_device_locks_inside_mem_hotplug_lock(boot: Boot, rules: Rules, taken: list[str]) -> None:
    """The reverse of online; then each block that comes online automatically is a change of its own."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "online"})
    three(machine, Log())
    chain = [CHAIN] * (3 if rules is Rules.LINUX_6_12 else 2)
    taken.clear()
    machine.add_memory(1, ROOM, 2 * BLOCK)
    assert taken == [
        "device_hotplug_lock",
        *CHANGE,
        "memory32/device_lock",
        "memory33/device_lock",
        "node1/device_lock",
        *["memory32/device_lock", *CHANGE, *chain],
        *["memory33/device_lock", *CHANGE, *chain],
    ]


@pytest.mark.fact("4.2", "4.5", "3.25", "3.49", "13.7")
@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
def test_6_1_deletes_devices_before_mem_hotplug_lock(boot: Boot, rules: Rules, taken: list[str]) -> None:
    """Removal takes the device locks outside, and waits for the files' users; the chain is not called."""
    machine = with_node_1(boot, rules, blocks=2)
    three(machine, Log())
    taken.clear()
    machine.remove_memory(ROOM, 2 * BLOCK)
    assert taken == ["device_hotplug_lock", *DELETED, *CHANGE, "node1/device_lock", "node1/s_active (write)"]


@pytest.mark.fact("4.2", "4.5", "3.25", "3.49", "13.7")
def test_6_12_deletes_devices_under_mem_hotplug_lock(boot: Boot, taken: list[str]) -> None:
    """Removal takes the device locks inside, as add does."""
    machine = with_node_1(boot, Rules.LINUX_6_12, blocks=2)
    three(machine, Log())
    taken.clear()
    machine.remove_memory(ROOM, 2 * BLOCK)
    assert taken == ["device_hotplug_lock", *CHANGE, *DELETED, "node1/device_lock", "node1/s_active (write)"]


@ALL
@pytest.mark.fact("4.1")
def test_what_a_callback_finds_held(boot: Boot, rules: Rules) -> None:
    """Outermost first, in every action."""
    machine = with_node_1(boot, rules)
    seen: dict[str, list[str]] = {}
    three(machine, Log(), act=lambda action, _: seen.update({action.name: current().describe_held()}))
    write(machine, "memory32/state", "online")
    write(machine, "memory32/state", "offline")
    outer = [
        "memory32/s_active (read)",
        "device_hotplug_lock",
        "memory32/device_lock",
        "cpu_hotplug_lock (read)",
        "mem_hotplug_lock",
    ]
    chain = "memory_chain.rwsem (read)"
    expected = {
        "MEM_PREPARE_ONLINE": [*outer, chain],
        "MEM_GOING_ONLINE": [*outer, chain],
        "MEM_ONLINE": [*outer, chain],
        "MEM_GOING_OFFLINE": [*outer, "pcp_batch_high_lock", chain],
        "MEM_OFFLINE": [*outer, chain],
        "MEM_FINISH_OFFLINE": [*outer, chain],
    }
    if rules is not Rules.LINUX_6_12:
        del expected["MEM_PREPARE_ONLINE"], expected["MEM_FINISH_OFFLINE"]
    assert seen == expected


@ALL
@pytest.mark.fact("3.1", "3.2", "5.4", "5.17")
@pytest.mark.parametrize(
    ("file", "text"),
    [("memory32/state", "bogus"), ("memory32/online", "maybe"), ("memory32/state", ""), ("memory32/online", "")],
)
def test_a_malformed_or_empty_write_takes_no_lock(boot: Boot, rules: Rules, taken: list[str], file: str, text: str) -> None:
    """It is EINVAL, or 0 bytes, before the first lock."""
    machine = with_node_1(boot, rules)
    taken.clear()
    if text:
        assert refusal(write, machine, file, text) == "EINVAL"
    else:
        assert write(machine, file, text) == 0
    assert taken == []


@ALL
@pytest.mark.fact("4.4", "5.21")
def test_what_is_read_and_written_without_a_lock(boot: Boot, rules: Rules, taken: list[str]) -> None:
    """``state``, ``valid_zones`` and ``auto_online_blocks`` take none; reading ``online`` takes the device's."""
    machine = with_node_1(boot, rules)
    taken.clear()
    assert (state(machine, 32), valid_zones(machine, 32)) == ("offline", "Normal Movable")
    assert write(machine, "auto_online_blocks", "online_kernel") == 13
    assert machine.tree.read(f"{MEMORY}/auto_online_blocks") == "online_kernel\n"
    assert taken == []
    machine.tree.read(f"{MEMORY}/memory32/online")
    assert taken == ["memory32/device_lock"]


# -- waiting


@ALL
@pytest.mark.fact("4.3", "4.5", "5.17", "13.12")
def test_a_write_waits_by_trying_again(boot: Boot, rules: Rules, taken: list[str]) -> None:
    """It never queues for device_hotplug_lock: it waits until that is free, and restarts."""
    machine = with_node_1(boot, rules)
    machine.locks.device_hotplug.acquire()
    writer = in_thread(lambda: write(machine, "memory32/state", "online"), "writer")
    assert op_of(writer) == ("device_hotplug_lock", Op.AWAIT_FREE)
    kernel = in_thread(lambda: machine.device_online(33), "kernel")
    assert op_of(kernel) == ("device_hotplug_lock", Op.ACQUIRE)
    machine.locks.device_hotplug.release()
    assert (kernel.result(), writer.result()) == (0, 6)
    assert taken.count("device_hotplug_lock (try)") >= 2


@ALL
@pytest.mark.fact("4.3", "13.12")
def test_a_signal_does_not_end_the_wait_of_a_write(boot: Boot, rules: Rules) -> None:
    """A handled signal leaves a write that waits for the lock waiting, and it still succeeds."""
    machine = with_node_1(boot, rules)
    machine.locks.device_hotplug.acquire()
    writer = in_thread(lambda: write(machine, "memory32/state", "online"), "writer")
    until_parked(writer)
    machine.send_signal(writer)
    assert op_of(writer) == ("device_hotplug_lock", Op.AWAIT_FREE)
    machine.locks.device_hotplug.release()
    assert writer.result() == 6


@ALL
@pytest.mark.fact("4.6")
def test_a_reader_keeps_a_change_waiting(boot: Boot, rules: Rules) -> None:
    """While memory is being read, no block comes or goes; nobody is asked before the reader has left."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log)
    machine.get_online_mems()
    change = in_thread(lambda: write(machine, "memory32/state", "online"), "change")
    assert op_of(change) == ("mem_hotplug_lock", Op.WRITE_DRAIN)
    assert (log, state(machine, 32)) == ([], "offline")
    machine.put_online_mems()
    assert change.result() == 6


@ALL
@pytest.mark.fact("4.6")
@pytest.mark.parametrize("request_name", ["add", "remove", "offline"])
def test_a_reader_keeps_every_kind_of_change_waiting(boot: Boot, rules: Rules, request_name: str) -> None:
    """Add, remove and offline wait as online does."""
    machine = with_node_1(boot, rules)
    machine.device_online(35)
    requests: dict[str, Callable[[], object]] = {
        "add": lambda: machine.add_memory(1, ROOM + 4 * BLOCK, BLOCK),
        "remove": lambda: machine.remove_memory(ROOM, BLOCK),
        "offline": lambda: machine.device_offline(35),
    }
    with machine.online_mems():
        change = in_thread(requests[request_name], "change")
        assert op_of(change) == ("mem_hotplug_lock", Op.WRITE_DRAIN)
    change.result()


@ALL
@pytest.mark.fact("4.6")
def test_a_change_keeps_readers_waiting(boot: Boot, rules: Rules) -> None:
    """A reader that comes while a block changes waits for the whole change, and then sees its outcome."""
    machine = with_node_1(boot, rules)
    readers: list[Running] = []

    def read() -> str:
        with machine.online_mems():
            return state(machine, 32)

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        if action is MEM_GOING_ONLINE:
            reader = in_thread(read, "reader")
            assert op_of(reader) == ("mem_hotplug_lock", Op.READ_ACQUIRE)
            readers.append(reader)

    three(machine, Log(), act=act)
    write(machine, "memory32/state", "online")
    # mem_hotplug_lock is free a moment before the word changes, so either word may be read, but never in the middle.
    assert [reader.result() in {"offline", "online"} for reader in readers] == [True]


class Stuck:
    """An offline of block 32 that waits for a pinned page, until ``end``."""

    def __init__(self, machine: Machine) -> None:
        write(machine, "memory32/state", "online_movable")
        self.machine = machine
        self.pinned: Allocation = machine.alloc_pages(1, blocks=[32], owner="vmsplice")
        machine.pages.pin(self.pinned)
        self.thread = in_thread(lambda: write(machine, "memory32/state", "offline"), "stuck")
        until_parked(self.thread)

    def end(self) -> None:
        self.machine.pages.unpin(self.pinned)
        assert self.thread.result() == 7


@ALL
@pytest.mark.fact("4.4", "5.21")
def test_what_still_works_while_an_offline_loops(boot: Boot, rules: Rules) -> None:
    """Reading ``state`` and ``valid_zones``, EINVAL for malformed writes, and auto_online_blocks: all at once."""
    machine = with_node_1(boot, rules)
    stuck = Stuck(machine)
    assert state(machine, 32) == "going-offline"
    assert valid_zones(machine, 32) == "Movable Normal"
    for file, text in [("memory32/state", "bogus"), ("memory33/state", "on"), ("memory32/online", "?"), ("memory33/online", "?")]:
        assert refusal(write, machine, file, text) == "EINVAL"
    assert write(machine, "auto_online_blocks", "online_movable") == 14
    assert write(machine, "memory33/state", "") == 0
    assert machine.tree.read(f"{MEMORY}/memory33/online") == "0\n"
    stuck.end()


@ALL
@pytest.mark.fact("4.4", "4.6", "4.7")
def test_what_waits_while_an_offline_loops(boot: Boot, rules: Rules) -> None:
    """Reading its ``online``, writes to other blocks, adding, readers of memory and CPU hotplug: all wait for its end."""
    machine = with_node_1(boot, rules)
    stuck = Stuck(machine)

    def plug_cpu() -> str:
        with machine.locks.cpu_hotplug.write:
            return "plugged"

    def read_memory() -> str:
        with machine.online_mems():
            return "read"

    waiting = {
        "read online": in_thread(lambda: machine.tree.read(f"{MEMORY}/memory32/online"), "read online"),
        "write state": in_thread(lambda: write(machine, "memory33/state", "online"), "write state"),
        "write online": in_thread(lambda: write(machine, "memory34/online", "1"), "write online"),
        "add": in_thread(lambda: machine.add_memory(1, ROOM + 4 * BLOCK, BLOCK), "add"),
        "cpu": in_thread(plug_cpu, "cpu"),
        "reader": in_thread(read_memory, "reader"),
    }
    assert {name: op_of(thread) for name, thread in waiting.items()} == {
        "read online": ("memory32/device_lock", Op.ACQUIRE),
        "write state": ("device_hotplug_lock", Op.AWAIT_FREE),
        "write online": ("device_hotplug_lock", Op.AWAIT_FREE),
        "add": ("device_hotplug_lock", Op.ACQUIRE),
        "cpu": ("cpu_hotplug_lock", Op.WRITE_DRAIN),
        "reader": ("mem_hotplug_lock", Op.READ_ACQUIRE),
    }
    stuck.end()
    assert {name: thread.result() for name, thread in waiting.items()} == {
        "read online": "0\n",
        "write state": 6,
        "write online": 1,
        "add": [36],
        "cpu": "plugged",
        "reader": "read",
    }


@ALL
@pytest.mark.fact("4.6")
def test_reading_the_tree_does_not_need_the_lock_that_a_reader_keeps(boot: Boot, rules: Rules) -> None:
    """While memory is being read, the files can be read."""
    machine = with_node_1(boot, rules)
    with another_reads(machine):
        assert (state(machine, 32), valid_zones(machine, 32)) == ("offline", "Normal Movable")
        assert machine.tree.read(f"{MEMORY}/memory32/online") == "0\n"


# -- what could never end is an error


@ALL
@pytest.mark.fact("4.6")
def test_changing_memory_while_reading_it_is_a_deadlock_at_once(rules: Rules) -> None:
    """The change would wait for its own thread's read to end; the machine is unchanged."""
    machine = with_node_1(Machine.boot, rules)
    with machine.online_mems(), pytest.raises(DeadlockError, match="mem_hotplug_lock, which it reads"):
        machine.device_online(32)
    assert state(machine, 32) == "offline"
    assert machine.device_online(32) == 0


@ALL
@pytest.mark.parametrize("request_name", ["online", "write", "add", "remove", "read memory", "register"])
def test_a_callback_that_asks_for_another_change_is_a_deadlock_and_a_refusal(rules: Rules, request_name: str) -> None:
    """The locks are its own change's; the error it gets at once refuses that change."""
    machine = with_node_1(Machine.boot, rules)
    requests: dict[str, Callable[[], object]] = {
        "online": lambda: machine.device_online(33),
        "write": lambda: write(machine, "memory33/state", "online"),
        "add": lambda: machine.add_memory(1, ROOM + 4 * BLOCK, BLOCK),
        "remove": lambda: machine.remove_memory(ROOM + BLOCK, BLOCK),
        "read memory": machine.get_online_mems,
        "register": lambda: machine.hotplug_memory_notifier(Log().callback("late")),
    }

    def act(action: MemoryAction, arg: MemoryNotify) -> None:
        if action is MEM_GOING_ONLINE:
            requests[request_name]()

    three(machine, Log(), act=act)
    with pytest.raises(OSError, match="DeadlockError") as caught:
        machine.device_online(32)
    assert caught.value.errno == 1
    assert isinstance(caught.value.__cause__, DeadlockError)
    assert [state(machine, block) for block in (32, 33)] == ["offline", "offline"]
    assert current().describe_held() == []


# -- lockdep


@pytest.mark.fact("4.2")
@pytest.mark.parametrize("rules", list(Rules))
def test_without_device_hotplug_lock_lockdep_finds_the_inversion_in_a_run_without_a_deadlock(rules: Rules) -> None:
    """device_online takes device_lock and then mem_hotplug_lock, add_memory_resource the reverse; one thread shows it."""
    machine = with_node_1(Machine.boot, rules, device_hotplug_lock=False, lockdep=True)
    assert machine.dep is not None
    assert machine.dep.reports == []
    machine.device_online(32)
    machine.add_memory(1, ROOM + 4 * BLOCK, BLOCK)

    classes = [set(report.classes) for report in machine.dep.reports]
    assert {"memory_block device_lock", "mem_hotplug_lock"} in classes
    text = str(machine.dep.reports[classes.index({"memory_block device_lock", "mem_hotplug_lock"})])
    assert "possible circular locking dependency detected" in text
    assert "device_online() at" in text
    assert "_create_devices() at" in text or "add_memory" in text


@pytest.mark.fact("4.2")
@pytest.mark.parametrize("rules", list(Rules))
def test_with_device_hotplug_lock_the_same_run_has_no_report(boot: Boot, rules: Rules) -> None:
    """Both orders are taken under the one lock, so they can't meet (the fixture finds no report)."""
    machine = with_node_1(boot, rules)
    machine.device_online(32)
    machine.add_memory(1, ROOM + 4 * BLOCK, BLOCK)
    machine.device_offline(32)
    machine.remove_memory(ROOM, BLOCK)
    assert machine.dep is not None
    assert machine.dep.reports == []


@pytest.mark.fact("4.2")
def test_without_device_hotplug_lock_the_two_can_really_meet(boot: Boot) -> None:
    """Interleaved, each holds what the other wants; the second wait is refused because it could never end."""
    machine = with_node_1(Machine.boot, device_hotplug_lock=False)
    holds, go = threading.Event(), threading.Event()

    def adder() -> None:
        with machine.mem_hotplug():
            holds.set()
            go.wait(30)
            with machine.block(32).device_lock:
                pass

    thread = in_thread(adder, "adder")
    assert holds.wait(30)
    onliner = in_thread(lambda: machine.device_online(32), "onliner")
    until_parked(onliner)
    go.set()
    with pytest.raises(DeadlockError) as caught:
        thread.result()
    assert "onliner waits for mem_hotplug_lock" in str(caught.value)
    assert onliner.result() == 0


# -- guards


@ALL
@pytest.mark.fact("4.5")
def test_functions_without_their_lock_raise(boot: Boot, rules: Rules) -> None:
    """Each says what it needs and what is held, and does nothing."""
    machine = with_node_1(boot, rules)
    zone = machine.zone(1, ZoneType.NORMAL)
    block = machine.block(32)
    log = Log()
    three(machine, log)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("online_pages", lambda: machine.online_pages(0x100000, 0x8000, zone)),
        ("offline_pages", lambda: machine.offline_pages(0x100000, 0x8000, zone)),
        ("device_online", lambda: device.device_online(machine, block)),
        ("device_offline", lambda: device.device_offline(machine, block)),
        ("add_memory", lambda: add.add_memory(machine, 1, PhysAddr(ROOM + 4 * BLOCK), BLOCK)),
        ("remove_memory", lambda: add.remove_memory(machine, PhysAddr(ROOM), BLOCK)),
    ]
    for name, call in calls:
        lock = "mem_hotplug_lock (write)" if name.endswith("pages") else "device_hotplug_lock (write)"
        with pytest.raises(LockNotHeld) as caught:
            call()
        assert (caught.value.needed, caught.value.held) == (lock, ())
        assert str(caught.value).startswith(f"{name}()")
    assert (log, state(machine, 32), max(machine.blocks)) == ([], "offline", 35)


@pytest.mark.fact("4.5")
def test_a_guard_says_what_is_held_instead(boot: Boot) -> None:
    """Reading is not enough for what needs the write side, nor is another thread's lock."""
    machine = with_node_1(boot)
    zone = machine.zone(1, ZoneType.NORMAL)
    with machine.online_mems(), pytest.raises(LockNotHeld) as caught:
        machine.online_pages(0x100000, 0x8000, zone)
    assert caught.value.held == ("mem_hotplug_lock (read)",)
    with machine.mem_hotplug():
        other = in_thread(lambda: machine.online_pages(0x100000, 0x8000, zone))
        with pytest.raises(LockNotHeld):
            other.result()
