"""Random steps of what is not a DIMM: virtio-mem devices, CPUs, huge pages; for :mod:`memhp.conform.generate`."""

from __future__ import annotations

import contextlib
from typing import Any

from memhp.conform.generate_steps import Ground, Maker, Step, Steps
from memhp.errors import HotplugError, InvalidInput
from memhp.kernel import BlockState
from memhp.kernel.cpus import Cpu
from memhp.scenario.devices import Devices
from memhp.scenario.model import VirtioMem
from memhp.units import parse_size

__all__ = ["DeviceSteps"]

_GOING_OFFLINE = "/sys/kernel/debug/notifier-error-inject/memory/actions/MEM_GOING_OFFLINE/error"
_CPU_WORDS = ("0", "0", "0", "1", "1", "1", "on", "off\n", "yes", "2", "x", "")
_HUGE = "/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"
_WRONG = 0.06
_GIVES_CPU = 0.6


class DeviceSteps(Steps):
    """Makes steps of devices; ``options`` are the scenario's machine."""

    def __init__(self, ground: Ground, options: dict[str, Any]) -> None:
        super().__init__(ground)
        machines = ground.machines
        self._specs = [_spec(given, number) for number, given in enumerate(options.get("virtio_mem", ()))]
        self._devices = [Devices(machine, self._specs) for machine in machines]
        self._at_boot = machines[0].cpus.at_boot
        self._sockets = self._at_boot + machines[0].sockets.possible
        self._put_in: dict[int, list[Cpu]] = {}
        self.next: list[Maker] = []
        """What has to follow at once."""
        self.kinds = ((2, self._huge_pages),)
        if self._specs:
            self.kinds += ((12, self._resize), (2, self._mix), (2, self._overfill))
        if self._sockets > 1:
            self.kinds += ((14, self._cpu), (5, self._plug_cpu), (1, self._cpu_uevent))

    def settle(self) -> None:
        """Let the drivers work, as they do after a step; the next steps clear up what they would try again in 50 s."""
        for devices in self._devices:
            devices.settle()
        if not self.next and any(driver.retry_ms is not None for devices in self._devices for driver in devices.drivers.values()):
            self.next = [self._let_leave, *(lambda spec=spec: self._nudge(spec) for spec in self._specs)]

    def owns(self, block: int) -> bool:
        """Say whether a memory block is in the region of a virtio-mem device."""
        start = block * self._machines[0].block_size
        return any(driver.start <= start < driver.start + driver.size for driver in self._devices[0].drivers.values())

    # -- virtio-mem

    def _resize(self) -> Step | None:
        spec = self.random.choice(self._specs)
        if self.random.random() < _WRONG:
            return self._ask(spec, self.random.choice((spec.size + (spec.block or 2 << 20), 1 << 20, 3 << 20)))
        return self._ask(spec, self._size(spec))

    def _size(self, spec: VirtioMem) -> int:
        unit, has = spec.block or 2 << 20, self._devices[0].drivers[spec.name].plugged
        near = has + self.random.choice((-1, 1)) * unit * self.random.randrange(1, 5)
        blocks = has + self.random.choice((-1, 1)) * (128 << 20) * self.random.randrange(1, 4)
        size = self.random.choice((near, blocks, self.random.randrange(0, spec.size, unit), self.random.choice((0, spec.size))))
        return min(max(0, size // unit * unit), spec.size)

    def _ask(self, spec: VirtioMem, size: int) -> Step | None:
        drivers = [devices.drivers[spec.name] for devices in self._devices]
        if any(size < driver.plugged for driver in drivers) and self._holds_what_is_used():
            return None
        grows = any(size > driver.plugged for driver in drivers)
        with self._marked(adds=grows):
            for devices in self._devices:
                with contextlib.suppress(HotplugError, InvalidInput):
                    devices.resize(spec.name, size)
        return {"resize": {"name": spec.name, "size": f"{size >> 20}MiB"}}

    def _mix(self) -> Step | None:
        # Which blocks go first depends on their zones; the next growth would take the choice away.
        spec, offline = self.random.choice(self._specs), self._own(BlockState.OFFLINE)
        if len(offline) < 2 or self._holds_what_is_used():
            return None
        kernel, movable = self.random.sample(offline, 2)
        unit, has = spec.block or 2 << 20, self._devices[0].drivers[spec.name].plugged
        self.next = [
            lambda: self._write(f"memory{movable}/state", "online_movable"),
            lambda: self._ask(spec, self.random.randrange(0, has // 2 + unit, unit)),
        ]
        return self._write(f"memory{kernel}/state", "online_kernel")

    def _overfill(self) -> Step | None:
        # More than may be offline; then some comes online, too little for the driver to go on, and some of that goes again.
        spec = self.random.choice(self._specs)
        self.next = [
            *(lambda: self._switch(BlockState.OFFLINE, "online_movable") for _ in range(self.random.choice((2, 3)))),
            lambda: self._switch(BlockState.ONLINE, "offline"),
        ]
        return self._ask(spec, spec.size)

    def _switch(self, state: BlockState, word: str) -> Step | None:
        blocks = [number for number in self._own(state) if number not in self._used]
        return self._write(f"memory{self.random.choice(blocks)}/state", word) if blocks else None

    def _own(self, state: BlockState) -> list[int]:
        return [number for number, block in self._machines[0].blocks.items() if self.owns(number) and block.state is state]

    def _holds_what_is_used(self) -> bool:
        return any(self.owns(number) for number in self._used)

    def _let_leave(self) -> Step | None:
        return self._write(_GOING_OFFLINE, "0") if self._machines[0].tree.exists(_GOING_OFFLINE) else None

    def _nudge(self, spec: VirtioMem) -> Step | None:
        # Another size than before, for which the driver tries at once what it would have tried later.
        driver = self._devices[0].drivers[spec.name]
        unit = max(driver.mode.unit, spec.block)
        return self._ask(spec, driver.requested + (unit if driver.requested < spec.size else -unit))

    # -- CPUs

    def _cpu(self) -> Step:
        wrong = self.random.random() < _WRONG
        number = self.random.choice((0, self._sockets) if wrong else [*range(1, self._at_boot), *self._that_can_run()])
        return self._write(f"/sys/devices/system/cpu/cpu{number}/online", self.random.choice(_CPU_WORDS))

    def _that_can_run(self) -> list[int]:
        # Of those that were put in none, if one is behind an empty socket: QEMU would lose its interrupts.
        filled = list(range(self._at_boot, self._at_boot + len(self._put_in)))
        return filled if sorted(self._put_in) == filled else []

    def _cpu_uevent(self) -> Step:
        number = self.random.randrange(self._at_boot)
        return self._write(f"/sys/devices/system/cpu/cpu{number}/uevent", self.random.choice(("change", "add", "bogus")))

    def _plug_cpu(self) -> Step:
        wrong = self.random.random() < _WRONG
        number = self.random.choice((0, self._sockets)) if wrong else self.random.randrange(self._at_boot, self._sockets)
        with contextlib.suppress(HotplugError):
            self._put_in[number] = [machine.sockets.plug(number) for machine in self._machines]
        return {"plug_cpu": number}

    def last(self) -> Step | None:
        """Make the last step, if it is one after which QEMU 7.2 survives little: a CPU is taken out."""
        # Not one that would leave another that runs behind an empty socket.
        running = [number for number, cpus in self._put_in.items() if any(cpu.online for cpu in cpus)]
        numbers = [number for number in sorted(self._put_in) if number >= max(running, default=0)]
        if not numbers or self.random.random() > _GIVES_CPU:
            return None
        number = self.random.choice(numbers)
        for machine in self._machines:
            machine.sockets.unplug(number)
        return {"unplug_cpu": number}

    # -- huge pages

    def _huge_pages(self) -> Step | None:
        # Which block they are in nobody can foretell, so they don't stay.
        node = len(self._machines[0].nodes) - 1
        if not all(machine.zone(node, "Movable").managed for machine in self._machines):
            return None
        file = _HUGE.format(node=node)
        self.next = [lambda: {"read": file}, lambda: self._write(file, "0"), lambda: {"read": file}]
        return self._write(file, str(self.random.choice((1, 3, 8))))


def _spec(given: dict[str, Any], number: int) -> VirtioMem:
    sizes = {name: parse_size(given.get(name, 0), name) for name in ("size", "requested", "block")}
    return VirtioMem(given["node"], sizes["size"], sizes["requested"], sizes["block"], f"vm{number}")
