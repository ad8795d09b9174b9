"""Sockets that a CPU can be put into while the machine runs (``drivers/acpi/acpi_processor.c``; observed in QEMU)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING

from memhp.errors import HotplugError
from memhp.locking.switch import ending_request
from memhp.units import whole_number

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
        self._taken: dict[int, Cpu] = {}
        self._numbers: dict[int, int] = {}

    @property
    def possible(self) -> int:
        """How many there are; the kernel counts each among its possible CPUs."""
        return len(self._nodes)

    def plug(self, number: int) -> Cpu:
        """Put a CPU into a socket; it is offline.

        Its number is the socket's on 6.12. Before, each socket gets the next one with its first CPU, and keeps it.

        Raises:
            HotplugError: EINVAL, no such socket; EEXIST, there is a CPU in it.
        """
        machine = self._machine
        if whole_number(number, "socket", "the number of a socket") not in range(machine.cpus.at_boot + len(self._nodes)):
            raise HotplugError(errno.EINVAL, f"there is no socket {number}")
        with ending_request(), machine.locks.device_hotplug, machine.locks.acpi_scan:
            if number not in self._nodes or number in self._taken:
                raise HotplugError(errno.EEXIST, f"there is a CPU in socket {number}")
            cpu = self._taken[number] = machine.cpus.hot_add(self._cpu_number(number), self._nodes[number])
        return cpu

    def _cpu_number(self, socket: int) -> int:
        # topo_get_cpunr() of 6.12, allocate_logical_cpuid() of 6.1.
        if self._machine.rules.value.numbers_sockets:
            return socket
        return self._numbers.setdefault(socket, self._machine.cpus.at_boot + len(self._numbers))

    def unplug(self, number: int) -> None:
        """Ask the kernel for the CPU in a socket: it takes it offline, removes it, and its node if nothing else is there.

        Raises:
            HotplugError: ENODEV, none was put in there; EBUSY, it is the last one that is online.
        """
        machine = self._machine
        whole_number(number, "socket", "the number of a socket")
        with ending_request(), machine.locks.device_hotplug, machine.locks.acpi_scan:
            if number not in self._taken:
                raise HotplugError(errno.ENODEV, f"no CPU was put into socket {number}")
            machine.cpus.cpu_device_down(self._taken[number])
            machine.cpus.hot_remove(self._taken[number])
            del self._taken[number]
