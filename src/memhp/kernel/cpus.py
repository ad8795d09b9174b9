"""CPUs that come and go (``kernel/cpu.c``, ``drivers/base/cpu.c``), as far as memory hotplug meets them: locks and nodes."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from memhp.errors import HotplugError
from memhp.kernel import add
from memhp.kernel.zones import NodeState
from memhp.locking import ActiveReference, Mutex, requires
from memhp.locking.percpu import WriteSide
from memhp.locking.switch import ending_request
from memhp.units import lowest_free, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["Cpu", "Cpus"]


class Cpu:
    """One CPU that is present.

    Attributes:
        number: its number.
        nid: its node.
        online: whether it runs.
        removed: whether it was taken out.
        device_lock: the device's lock.
        active: what those hold who use its files.
        cooling: the number of its device among those that cool (``drivers/acpi/processor_thermal.c``); None before it has run.
    """

    __slots__ = ("active", "cooling", "device_lock", "nid", "number", "online", "removed")

    def __init__(self, machine: Machine, number: int, nid: int, *, online: bool) -> None:
        self.number = number
        self.nid = nid
        self.online = online
        self.removed = False
        self.cooling: int | None = number if online else None
        self.device_lock = Mutex(f"cpu{number}/device_lock", machine.dep, lock_class="cpu device_lock", order=number)
        self.active = ActiveReference(f"cpu{number}/s_active", machine.dep, lock_class="cpu s_active", order=number)

    def __repr__(self) -> str:
        return f"<Cpu {self.number} node{self.nid} {'online' if self.online else 'offline'}>"

    @property
    def hotpluggable(self) -> bool:
        """Whether it can go offline: on x86-64 all but the first one."""
        return self.number != 0


class Cpus:
    """The CPUs of one machine; iterate over it for those that are present, ascending.

    Attributes:
        at_boot: how many there were at boot.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._cpus: dict[int, Cpu] = {}
        self.at_boot = 0

    def __iter__(self) -> Iterator[Cpu]:
        return iter([cpu for _, cpu in sorted(self._cpus.items())])

    def find(self, number: int) -> Cpu | None:
        """Give the present CPU with that number, or None."""
        return self._cpus.get(number)

    def present_at_boot(self, numbers: Iterable[int], nid: int) -> None:
        """Note CPUs that were there, and running, from the beginning."""
        for number in numbers:
            self._cpus[number] = Cpu(self._machine, number, nid, online=True)
            self.at_boot += 1

    @property
    def possible(self) -> list[int]:
        """The numbers that CPUs can have."""
        count = self.at_boot + self._machine.sockets.possible
        return sorted({*range(count), *self._cpus})

    def online_of(self, nid: int) -> list[int]:
        """Give the numbers of a node's CPUs that are online."""
        return [cpu.number for cpu in self if cpu.nid == nid and cpu.online]

    def up(self, number: int) -> int:
        """Bring a CPU online; 0 when done, 1 when it was online.

        Raises:
            HotplugError: ENODEV, no such CPU is present.
        """
        with ending_request(), self._machine.locks.device_hotplug:
            return self.cpu_device_up(self._present(number))

    def down(self, number: int) -> int:
        """Take a CPU offline; 0 when done, 1 when it was offline.

        Raises:
            HotplugError: ENODEV, no such CPU is present; EPERM, this one can't; EBUSY, it is the last one.
        """
        with ending_request(), self._machine.locks.device_hotplug:
            return self.cpu_device_down(self._present(number))

    def add(self, number: int, nid: int) -> Cpu:
        """Put a CPU in; it is offline, and its node may not be there yet.

        Raises:
            HotplugError: EEXIST, it is there; EINVAL, no such number, or the node is not possible.
        """
        whole_number(number, "cpu", "the number of a CPU")
        with ending_request(), self._machine.locks.device_hotplug:
            return self.hot_add(number, whole_number(nid, "node", "the number of a node"))

    def remove(self, number: int) -> None:
        """Take a CPU out that is offline; its node goes with it if nothing else is there.

        Raises:
            HotplugError: ENODEV, no such CPU is present; EBUSY, it is online.
        """
        with ending_request(), self._machine.locks.device_hotplug:
            self.hot_remove(self._present(number))

    def hot_add(self, number: int, nid: int) -> Cpu:
        """Do as :meth:`add` does. The caller holds device_hotplug_lock."""
        return _hot_add(self._machine, self._cpus, number, nid)

    def hot_remove(self, cpu: Cpu) -> None:
        """Do as :meth:`remove` does. The caller holds device_hotplug_lock."""
        _hot_remove(self._machine, self._cpus, cpu)

    def _present(self, number: int) -> Cpu:
        cpu = self._cpus.get(whole_number(number, "cpu", "the number of a CPU"))
        if cpu is None:
            raise HotplugError(errno.ENODEV, f"there is no cpu{number}")
        return cpu

    def cpu_device_up(self, cpu: Cpu) -> int:
        """Bring a CPU online, its node first; 0 when done, 1 when it was online. The caller holds device_hotplug_lock."""
        return _device_up(self._machine, cpu)

    def cpu_device_down(self, cpu: Cpu) -> int:
        """Take a CPU offline; 0 when done, 1 when it was offline. The caller holds device_hotplug_lock.

        Raises:
            HotplugError: EBUSY, it is the last one; EPERM, this one can't.
        """
        return _device_down(self._machine, cpu)


@requires("device_hotplug")
def _device_up(machine: Machine, cpu: Cpu) -> int:
    with cpu.device_lock:
        _check_present(cpu)
        if cpu.online:
            return 1
        # cpu_up(): the node before the locks of the CPU, whose write side would shut out the read side in mem_hotplug_begin().
        with machine.mem_hotplug():
            if cpu.nid not in machine.node_states[NodeState.N_ONLINE]:
                add.register_node(machine, machine.nodes[cpu.nid])
        with machine.locks.cpu_add_remove, WriteSide(machine.locks.cpu_hotplug):
            cpu.online = True
            machine.set_node_state(NodeState.N_CPU, cpu.nid, member=True)
            _start(machine, cpu)
        _emit(machine, "online", cpu)
    return 0


@requires("device_hotplug")
def _device_down(machine: Machine, cpu: Cpu) -> int:
    with cpu.device_lock:
        _check_present(cpu)
        if not cpu.hotpluggable:
            raise HotplugError(errno.EPERM, f"cpu{cpu.number} can't go offline")
        if not cpu.online:
            return 1
        with machine.locks.cpu_add_remove:
            if sum(other.online for other in machine.cpus) == 1:
                raise HotplugError(errno.EBUSY, f"cpu{cpu.number} is the last one that is online")
            with WriteSide(machine.locks.cpu_hotplug):
                _emit_machine_check(machine, "remove", cpu)
                cpu.online = False
                if not machine.cpus.online_of(cpu.nid):
                    machine.set_node_state(NodeState.N_CPU, cpu.nid, member=False)
        _emit(machine, "offline", cpu)
    return 0


@requires("device_hotplug")
def _hot_add(machine: Machine, cpus: dict[int, Cpu], number: int, nid: int) -> Cpu:
    if number < 0 or nid not in machine.node_states[NodeState.N_POSSIBLE]:
        raise HotplugError(errno.EINVAL, f"cpu{number} on node {nid!r}: no such CPU, or the node is not possible")
    if number in cpus:
        raise HotplugError(errno.EEXIST, f"cpu{number} is there already")
    with machine.locks.cpu_add_remove, WriteSide(machine.locks.cpu_hotplug):
        cpu = cpus[number] = Cpu(machine, number, nid, online=False)
        machine.nodes[nid].cpus = tuple(sorted([*machine.nodes[nid].cpus, number]))
        with cpu.device_lock:
            pass
    for action in ("add", "bind"):
        _emit(machine, action, cpu)
    return cpu


@requires("device_hotplug")
def _hot_remove(machine: Machine, cpus: dict[int, Cpu], cpu: Cpu) -> None:
    _check_present(cpu)
    if cpu.online:
        raise HotplugError(errno.EBUSY, f"cpu{cpu.number} is online")
    node = machine.nodes[cpu.nid]
    # acpi_processor_remove(): the driver first.
    if cpu.cooling is not None:
        _emit_cooling(machine, "remove", cpu.cooling)
        cpu.cooling = None
    _emit(machine, "unbind", cpu)
    with machine.locks.cpu_add_remove, WriteSide(machine.locks.cpu_hotplug):
        with cpu.device_lock:
            cpu.removed = True
        cpu.active.drain()
        del cpus[cpu.number]
        node.cpus = tuple(other for other in node.cpus if other != cpu.number)
    _emit(machine, "remove", cpu)
    if node.registered:
        add.try_offline_node(machine, node)


def _start(machine: Machine, cpu: Cpu) -> None:
    # What is called for a CPU that comes up: the driver of one that was put in starts only now (acpi_soft_cpu_online()).
    if cpu.cooling is None:
        cpu.cooling = lowest_free({other.cooling for other in machine.cpus})
        _emit_cooling(machine, "add", cpu.cooling)
    _emit_machine_check(machine, "add", cpu)


def _check_present(cpu: Cpu) -> None:
    if cpu.removed:
        raise HotplugError(errno.ENODEV, f"cpu{cpu.number} was removed")


def _emit(machine: Machine, action: str, cpu: Cpu) -> None:
    machine.uevents.emit(action, f"/devices/system/cpu/cpu{cpu.number}", subsystem="cpu")


def _emit_machine_check(machine: Machine, action: str, cpu: Cpu) -> None:
    if machine.rules.value.machine_checks:
        machine.uevents.emit(action, f"/devices/system/machinecheck/machinecheck{cpu.number}", subsystem="machinecheck")


def _emit_cooling(machine: Machine, action: str, number: int) -> None:
    machine.uevents.emit(action, f"/devices/virtual/thermal/cooling_device{number}", subsystem="thermal")
