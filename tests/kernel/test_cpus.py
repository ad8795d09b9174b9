"""CPUs that come and go: the same locks, and nodes that stay for them. Expectations of the files are those of real kernels."""

from __future__ import annotations

import pytest

from memhp import MEM_GOING_OFFLINE, Machine, MemoryAction, NotifyResult, Rules
from memhp.abi.uevent import Uevent
from support import ALL, BLOCK, GIB, NODE, Boot, another_reads, in_thread, refusal, snapshot, until_parked, write

REAL = pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.LINUX_6_12])
CPU = "/sys/devices/system/cpu"
ROOM = 4 * GIB


def guest(boot: Boot, rules: Rules = Rules.LINUX_6_1) -> Machine:
    """Boot what was recorded: CPUs 0 and 1 on node 0, CPU 2 on node 1, which has no memory."""
    return boot([{"memory": "512MiB", "cpus": 2}, {"cpus": 1}], rules=rules)


def picture(machine: Machine) -> str:
    """Give the masks of CPUs, then each node's cpulist, cpumap and links, then has_cpu and the nodes that are online."""
    read = machine.tree.read
    masks = " ".join(f"{name}={read(f'{CPU}/{name}').strip()}" for name in ("online", "present", "offline"))
    nodes = []
    for name in sorted(entry for entry in machine.tree.list(NODE) if entry[4:].isdigit()):
        links = " ".join(entry for entry in machine.tree.list(f"{NODE}/{name}") if entry[3:].isdigit())
        nodes.append(f"{read(f'{NODE}/{name}/cpulist').strip()}/{read(f'{NODE}/{name}/cpumap').strip()}/{links}")
    return f"{masks}; {'; '.join(nodes)}; has_cpu={read(f'{NODE}/has_cpu').strip()} online={read(f'{NODE}/online').strip()}"


def cpu(machine: Machine, number: int, text: str) -> int:
    return machine.tree.write(f"{CPU}/cpu{number}/online", text)


@ALL
@pytest.mark.fact("8.3a")
def test_cpus_go_offline_and_come_back_through_their_files(boot: Boot, rules: Rules) -> None:
    """Node files list online CPUs, the links are those that are present; has_cpu follows the online ones (observed)."""
    machine = guest(boot, rules)
    heard: list[str] = []
    machine.uevents.subscribe(lambda event: heard.append(str(event)))
    assert picture(machine) == "online=0-2 present=0-2 offline=; 0-1/3/cpu0 cpu1; 2/4/cpu2; has_cpu=0-1 online=0-1"
    assert cpu(machine, 1, "0") == 1
    assert picture(machine) == "online=0,2 present=0-2 offline=1; 0/1/cpu0 cpu1; 2/4/cpu2; has_cpu=0-1 online=0-1"
    assert machine.tree.read(f"{CPU}/cpu1/online") == "0\n"
    assert [cpu(machine, 1, "0"), cpu(machine, 1, "1"), cpu(machine, 1, "1")] == [1, 1, 1]
    assert refusal(cpu, machine, 1, "x") == "EINVAL"
    assert [cpu(machine, 2, "0"), cpu(machine, 1, "0")] == [1, 1]
    assert picture(machine) == "online=0 present=0-2 offline=1-2; 0/1/cpu0 cpu1; /0/cpu2; has_cpu=0 online=0-1"
    assert refusal(cpu, machine, 0, "0") == "ENOENT"
    assert [cpu(machine, 1, "foo"), cpu(machine, 1, "on"), cpu(machine, 2, "yes")] == [3, 2, 3]
    assert picture(machine) == "online=0-2 present=0-2 offline=; 0-1/3/cpu0 cpu1; 2/4/cpu2; has_cpu=0-1 online=0-1"
    devices = "/devices/system/cpu/cpu"
    words = [("offline", 1), ("online", 1), ("offline", 2), ("offline", 1), ("online", 1), ("online", 2)]
    assert [event for event in heard if "machinecheck" not in event] == [
        f"{action}@{devices}{number}" for action, number in words
    ]


@pytest.mark.fact("8.3a")
def test_on_6_12_the_device_of_machine_checks_comes_and_goes_with_a_cpu(boot: Boot) -> None:
    """Each time before the CPU's own uevent; 6.1, which is built without CONFIG_X86_MCE, has none (observed)."""
    heard: dict[Rules, list[str]] = {}
    for rules in (Rules.LINUX_6_1, Rules.LINUX_6_12):
        machine = guest(boot, rules)
        events = heard[rules] = []
        machine.uevents.subscribe(lambda event, events=events: events.append(str(event).replace("/devices/system/", "")))  # type: ignore[misc]
        cpu(machine, 1, "0")
        cpu(machine, 1, "1")
    assert heard[Rules.LINUX_6_1] == ["offline@cpu/cpu1", "online@cpu/cpu1"]
    assert heard[Rules.LINUX_6_12] == [
        "remove@machinecheck/machinecheck1",
        "offline@cpu/cpu1",
        "add@machinecheck/machinecheck1",
        "online@cpu/cpu1",
    ]


def sockets(boot: Boot, rules: Rules) -> tuple[Machine, list[str]]:
    """Boot with a CPU on node 0, and sockets 1 on node 0, 2 and 3 on node 1, which is not there; uevents from then on."""
    nodes = [{"memory": "512MiB", "cpus": 1, "possible_cpus": 2}, {"possible_cpus": 2}]
    machine = boot(nodes, rules=rules, parameters="memhp_default_state=offline")
    heard: list[str] = []
    machine.uevents.subscribe(lambda event: heard.append(str(event).replace("/devices/system/", "")))
    return machine, heard


@pytest.mark.fact("8.3b", "8.5")
def test_on_6_1_a_cpu_that_is_put_in_gets_the_next_number_and_is_offline(boot: Boot) -> None:
    """Its driver starts when it is brought online first, and so does its node (observed)."""
    machine, heard = sockets(boot, Rules.LINUX_6_1)
    read = machine.tree.read
    assert [read(f"{CPU}/{mask}") for mask in ("possible", "present", "offline")] == ["0-3\n", "0\n", "1-3\n"]
    assert repr(machine.sockets.plug(3)) == "<Cpu 1 node1 offline>"
    assert repr(machine.sockets.plug(1)) == "<Cpu 2 node0 offline>"
    assert [read(f"{CPU}/{mask}") for mask in ("possible", "present", "offline")] == ["0-3\n", "0-2\n", "1-3\n"]
    assert read(f"{NODE}/online") == "0\n"
    cpu(machine, 1, "1")
    cpu(machine, 1, "0")
    cpu(machine, 1, "1")
    machine.sockets.unplug(3)
    assert heard == [
        *("add@cpu/cpu1", "bind@cpu/cpu1", "add@cpu/cpu2", "bind@cpu/cpu2"),
        *("add@node/node1", "add@/devices/virtual/thermal/cooling_device1", "online@cpu/cpu1"),
        *("offline@cpu/cpu1", "online@cpu/cpu1"),
        *("offline@cpu/cpu1", "remove@/devices/virtual/thermal/cooling_device1", "unbind@cpu/cpu1", "remove@cpu/cpu1"),
        "remove@node/node1",
    ]


@pytest.mark.fact("8.3b", "8.5")
def test_on_6_12_a_cpu_that_is_put_in_has_the_number_of_its_socket(boot: Boot) -> None:
    """The device that cools it comes before that of machine checks, and goes after it (observed)."""
    machine, heard = sockets(boot, Rules.LINUX_6_12)
    read = machine.tree.read
    assert repr(machine.sockets.plug(3)) == "<Cpu 3 node1 offline>"
    assert repr(machine.sockets.plug(1)) == "<Cpu 1 node0 offline>"
    assert [read(f"{CPU}/{mask}") for mask in ("possible", "present", "offline")] == ["0-3\n", "0-1,3\n", "1-3\n"]
    cpu(machine, 3, "1")
    machine.sockets.unplug(3)
    cooling, checks = "/devices/virtual/thermal/cooling_device1", "machinecheck/machinecheck3"
    assert heard == [
        *("add@cpu/cpu3", "bind@cpu/cpu3", "add@cpu/cpu1", "bind@cpu/cpu1"),
        *("add@node/node1", f"add@{cooling}", f"add@{checks}", "online@cpu/cpu3"),
        *(f"remove@{checks}", "offline@cpu/cpu3", f"remove@{cooling}", "unbind@cpu/cpu3", "remove@cpu/cpu3"),
        "remove@node/node1",
    ]


@pytest.mark.parametrize(("rules", "numbers"), [(Rules.LINUX_6_1, [1, 2, 1]), (Rules.LINUX_6_12, [3, 1, 3])])
@pytest.mark.fact("8.3b")
def test_a_socket_keeps_the_number_of_its_cpu(boot: Boot, rules: Rules, numbers: list[int]) -> None:
    """When the CPU is taken out, the next socket does not get its number (6.1: allocate_logical_cpuid())."""
    machine, _ = sockets(boot, rules)
    first = machine.sockets.plug(3)
    machine.sockets.unplug(3)
    assert [first.number, machine.sockets.plug(1).number, machine.sockets.plug(3).number] == numbers


@REAL
@pytest.mark.fact("8.3b")
def test_a_socket_holds_one_cpu(boot: Boot, rules: Rules) -> None:
    """One that is taken, also since the boot, is EEXIST; one that does not exist EINVAL; an empty one gives none."""
    machine, _ = sockets(boot, rules)
    machine.sockets.plug(2)
    before = snapshot(machine)
    assert [refusal(machine.sockets.plug, number) for number in (0, 2, 4, -1)] == ["EEXIST", "EEXIST", "EINVAL", "EINVAL"]
    assert [refusal(machine.sockets.unplug, number) for number in (0, 1, 9)] == ["ENODEV", "ENODEV", "ENODEV"]
    assert snapshot(machine) == before


@pytest.mark.fact("8.3a")
def test_a_mask_is_as_wide_as_the_possible_cpus(boot: Boot) -> None:
    """In hexadecimal digits, in groups of 32 bits (the width observed for 5 CPUs; the groups by lib/vsprintf.c)."""
    read = [boot([{"memory": "512MiB", "cpus": 2, "possible_cpus": count}]).tree.read for count in (2, 5, 40)]
    assert [each(f"{NODE}/node0/cpumap") for each in read] == ["3\n", "03\n", "00,00000003\n"]


@ALL
@pytest.mark.fact("8.3")
def test_a_node_with_a_cpu_that_is_present_stays_even_if_that_is_offline(boot: Boot, rules: Rules) -> None:
    """Its last block goes, and it stays; when the CPU is taken out, it goes."""
    machine = boot([{"memory": "512MiB", "cpus": 1}, {"cpus": 1}], rules=rules, parameters="memhp_default_state=offline")
    machine.add_memory(1, ROOM, BLOCK)
    cpu(machine, 1, "0")
    machine.remove_memory(ROOM, BLOCK)
    assert machine.tree.read(f"{NODE}/online") == "0-1\n"
    machine.cpus.remove(1)
    assert machine.tree.read(f"{NODE}/online") == "0\n"


@ALL
@pytest.mark.fact("8.5")
def test_a_cpu_brings_its_node_online_first(boot: Boot, rules: Rules) -> None:
    """Put in, it is present and offline and its node is not there; brought online, the node comes with it."""
    machine = boot([{"memory": "512MiB", "cpus": 1}, 0], rules=rules)
    heard: list[str] = []

    def hear(event: Uevent) -> None:
        if event.subsystem in {"cpu", "node"}:
            heard.append(str(event).replace("/devices/system/", ""))

    machine.uevents.subscribe(hear)
    machine.cpus.add(1, 1)
    assert machine.tree.read(f"{NODE}/online") == "0\n"
    assert machine.tree.read(f"{CPU}/offline") == "1\n"
    machine.cpus.up(1)
    assert heard == ["add@cpu/cpu1", "bind@cpu/cpu1", "add@node/node1", "online@cpu/cpu1"]
    assert picture(machine) == "online=0-1 present=0-1 offline=; 0/1/cpu0; 1/2/cpu1; has_cpu=0-1 online=0-1"
    machine.cpus.down(1)
    machine.cpus.remove(1)
    assert heard[4:] == ["offline@cpu/cpu1", "unbind@cpu/cpu1", "remove@cpu/cpu1", "remove@node/node1"]


@pytest.mark.fact("8.3a")
def test_what_can_not_be_done_with_cpus_is_refused(boot: Boot) -> None:
    """The first can't go offline, nor can the last; nothing changes."""
    machine = boot([{"memory": "512MiB", "cpus": 1}, 0])
    machine.cpus.add(4, 0)
    before = snapshot(machine)
    assert refusal(machine.cpus.down, 0) == "EPERM"
    assert [refusal(machine.cpus.add, *place) for place in [(4, 0), (5, 9), (-1, 0)]] == ["EEXIST", "EINVAL", "EINVAL"]
    assert [refusal(machine.cpus.up, 9), refusal(machine.cpus.remove, 9)] == ["ENODEV", "ENODEV"]
    assert refusal(machine.cpus.remove, 0) == "EBUSY"
    assert snapshot(machine) == before
    alone = boot("512MiB")
    alone.cpus.add(3, 0)
    assert alone.cpus.up(3) == 0
    assert refusal(alone.cpus.down, 3) == "EBUSY"
    assert [machine.cpus.up(4), machine.cpus.up(4), machine.cpus.down(4), machine.cpus.down(4)] == [0, 1, 0, 1]


@pytest.mark.fact("4.5", "4.6", "4.7")
def test_a_cpu_waits_for_a_whole_offline(boot: Boot) -> None:
    """A stuck offline holds device_hotplug_lock, so a write to a CPU's file waits as long."""
    machine = guest(boot)
    held = machine.alloc_pages(1, blocks=[2], owner="rdma")
    machine.pages.pin(held)
    stuck = in_thread(lambda: write(machine, "memory2/state", "offline"), "offline")
    until_parked(stuck)
    writer = in_thread(lambda: cpu(machine, 1, "0"), "cpu")
    until_parked(writer)
    assert machine.tree.read(f"{CPU}/online") == "0-2\n"
    machine.pages.unpin(held)
    assert (stuck.result(), writer.result()) == (7, 1)


@pytest.mark.fact("4.6", "8.5")
def test_a_cpu_coming_up_waits_for_readers_of_memory(boot: Boot) -> None:
    """try_online_node() takes mem_hotplug_lock for writing, even if the node is online; going down doesn't."""
    machine = guest(boot)
    with another_reads(machine):
        assert cpu(machine, 1, "0") == 1
        up = in_thread(lambda: cpu(machine, 1, "1"), "up")
        until_parked(up)
    assert up.result() == 1


@pytest.mark.fact("4.6")
def test_cpu_hotplug_is_shut_out_while_memory_changes(boot: Boot) -> None:
    """mem_hotplug_begin() holds cpu_hotplug_lock for reading, so its write side waits for the whole of an offline."""
    machine = guest(boot)
    seen: list[bool] = []

    def callback(block: object, action: MemoryAction, arg: object) -> NotifyResult:
        if action is MEM_GOING_OFFLINE:
            seen.append(machine.locks.cpu_hotplug.readers() > 0)
        return NotifyResult(1)

    machine.hotplug_memory_notifier(callback)
    write(machine, "memory2/state", "offline")
    assert seen == [True]


@pytest.mark.fact("8.3a")
def test_a_file_of_a_cpu_that_was_taken_out_is_enodev(boot: Boot) -> None:
    """An open file notices."""
    machine = guest(boot)
    machine.cpus.down(2)
    file = machine.tree.open(f"{CPU}/cpu2/online")
    machine.cpus.remove(2)
    assert refusal(file.read) == "ENODEV"
    assert machine.tree.list(CPU) == ["cpu0", "cpu1", "offline", "online", "possible", "power", "present", "uevent"]
