"""Sockets that a CPU can be put into while the machine runs (``drivers/acpi/acpi_processor.c``; observed in QEMU)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING

from memhp.errors import HotplugError
from memhp.locking.switch import ending_request

if TYPE_CHECKING:
    from memhp.kernel.cpus import Cpu
    from memhp.kernel.machine import Machine

__all__ = ["Sockets"]


class Sockets:
    """The sockets that were empty at boot; sockets are numbered as the firmware does, those of the CPUs at boot first.

    Args:
        machine: whose they are.
        nodes: the node of each, by its number.
    """

    def __init__(self, machine: Machine, nodes: Mapping[int, int]) -> None:
        self._machine = machine
        self._nodes = dict(nodes)
        self._taken: dict[int, Cpu | None] = {}

    @property
    def possible(self) -> int:
        """How many of them the kernel counts among its possible CPUs."""
        return len(self._nodes) if self._machine.rules.value.absent_cpus else 0

    def plug(self, number: int) -> Cpu | None:
        """Put a CPU into a socket; it is offline. Gives it, or None: this kernel makes nothing of it.

        It gets the lowest number that no CPU has, which need not be the socket's.

        Raises:
            HotplugError: EINVAL, no such socket; EEXIST, there is a CPU in it.
        """
        machine = self._machine
        if number not in range(machine.cpus.at_boot + len(self._nodes)):
            raise HotplugError(errno.EINVAL, f"there is no socket {number}")
        if number not in self._nodes or number in self._taken:
            raise HotplugError(errno.EEXIST, f"there is a CPU in socket {number}")
        cpu = None
        if machine.rules.value.absent_cpus:
            with ending_request(), machine.locks.device_hotplug, machine.locks.acpi_scan:
                present = {other.number for other in machine.cpus}
                free = next(free for free in range(len(present) + 1) if free not in present)
                cpu = machine.cpus.hot_add(free, self._nodes[number])
        self._taken[number] = cpu
        return cpu

    def unplug(self, number: int) -> None:
        """Ask the kernel for the CPU in a socket: it takes it offline, removes it, and its node if nothing else is there.

        Raises:
            HotplugError: ENODEV, none was put in there; EBUSY, it is the last one that is online.
        """
        machine = self._machine
        if number not in self._taken:
            raise HotplugError(errno.ENODEV, f"no CPU was put into socket {number}")
        cpu = self._taken[number]
        if cpu is not None:
            with ending_request(), machine.locks.device_hotplug, machine.locks.acpi_scan:
                machine.cpus.cpu_device_down(cpu)
                machine.cpus.hot_remove(cpu)
        del self._taken[number]
