"""What a hypervisor gives a scenario's machine beside DIMMs: virtio-mem devices, and CPUs; decoded, and done on the model."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any

from memhp.errors import HotplugError, InvalidInput, ScenarioError
from memhp.kernel import Machine
from memhp.kernel.drivers import VirtioMem as Driver
from memhp.scenario import words
from memhp.scenario.model import Scenario, Step, VirtioMem
from memhp.scenario.reader import Value
from memhp.scenario.words import Decoded
from memhp.units import format_size, parse_size

__all__ = ["STEPS", "Devices", "decode_virtio_mem", "devices_of"]

_DEVICE_BLOCK = 2 << 20
_SMALLEST = 1 << 20
_MOST_AGAIN = 100

# -- decoding


def decode_virtio_mem(value: Value, description: dict[str, Any]) -> tuple[VirtioMem, ...]:
    """Read the devices of a machine, whose description is known to be right; none if it is read from files.

    Raises:
        ScenarioError: a malformed one, or the machine can't have them all.
    """
    if not description:
        value.fail("no device beside `from` without `otherwise`")
    machine = Machine.boot(**description)
    devices = _read(value, machine)
    try:
        value.checked(lambda: Devices(machine, devices))
    except HotplugError as error:
        value.fail(f"devices that the machine can have ({error.strerror})")
    return devices


def _read(value: Value, machine: Machine) -> tuple[VirtioMem, ...]:
    nodes, size = len(machine.nodes), machine.block_size
    devices = tuple(_device(given, number, nodes, size) for number, given in enumerate(value.elements()))
    names = [device.name for device in devices]
    for given, name in zip(value.elements(), names, strict=True):
        if names.count(name) > 1:
            given.fail("a name for each device, and no two the same")
    return devices


def _device(value: Value, number: int, nodes: int, block_size: int) -> VirtioMem:
    fields = value.fields(("name", "size", "node", "block", "requested"), ("size",))
    sizes = {name: fields[name].parsed(parse_size) for name in ("size", "block", "requested") if name in fields}
    node = fields["node"].number() if "node" in fields else 0
    if not 0 <= node < nodes:
        fields["node"].fail(f"a node from 0 to {nodes - 1}")
    block = sizes.get("block", 0)
    if "block" in fields and (block < _SMALLEST or block & (block - 1)):
        fields["block"].fail("a power of two of at least 1 MiB")
    whole = max(block, block_size)
    if not sizes["size"] or sizes["size"] % whole:
        fields["size"].fail(f"a size of whole {format_size(whole)}")
    requested, unit = sizes.get("requested", 0), block or _DEVICE_BLOCK
    if requested > sizes["size"] or requested % unit:
        fields["requested"].fail(f"whole blocks of {format_size(unit)}, at most {format_size(sizes['size'])}")
    return VirtioMem(node, sizes["size"], requested, block, words.name(fields["name"]) if "name" in fields else f"vm{number}")


def _resize(value: Value) -> Decoded:
    fields = value.fields(("name", "size"), ("size",)) if value.is_mapping else {"size": value}
    name = words.name(fields["name"]) if "name" in fields else "vm0"
    size = fields["size"].parsed(parse_size)
    return {"name": name, "size": size}, f"resize {name} to {format_size(size)}"


def _socket(verb: str) -> Callable[[Value], Decoded]:
    def decode(value: Value) -> Decoded:
        number = value.number()
        return {"socket": number}, f"{verb} socket {number}"

    return decode


STEPS: dict[str, Callable[[Value], Decoded]] = {
    "resize": _resize,
    "plug_cpu": _socket("plug a CPU into"),
    "unplug_cpu": _socket("unplug the CPU in"),
}
"""How the steps are read."""


# -- doing it on the model


class Devices:
    """The virtio-mem devices of a modelled machine, each with its driver, and the machine's sockets.

    The drivers have done what is requested of them at boot.

    Args:
        machine: the machine.
        specs: its devices.

    Raises:
        HotplugError: ENOSPC, they don't fit into the machine's room.
    """

    def __init__(self, machine: Machine, specs: Iterable[VirtioMem]) -> None:
        self._machine = machine
        self.drivers: dict[str, Driver] = {}
        """By the devices' names."""
        for number, spec in enumerate(specs):
            block, device = spec.block or _DEVICE_BLOCK, f"virtio{number}"
            start = machine.next_room(spec.size, align=block)
            driver = self.drivers[spec.name] = Driver(machine, spec.node, start, spec.size, block_size=block, device=device)
            driver.request(spec.requested)
            self.settle()
        self.verbs: dict[str, Callable[[Step], str]] = {
            "resize": self._resize,
            "plug_cpu": self._plug_cpu,
            "unplug_cpu": self._unplug_cpu,
        }
        """What each step does."""

    def settle(self) -> None:
        """Let the drivers work until none has anything to do at once; what they try again much later is not waited for.

        Raises:
            HotplugError: EAGAIN, a hypervisor has given that answer too often, one time after another.
        """
        again = 0
        while due := [driver for driver in self.drivers.values() if driver.queued and not driver.working and not driver.broken]:
            again = again + 1 if due[0].work() == "EAGAIN" else 0
            if again == _MOST_AGAIN:
                message = f"{due[0].claim.name}: the hypervisor has answered EAGAIN {again} times in succession"
                raise HotplugError(errno.EAGAIN, message)

    def resize(self, name: str, size: int) -> int:
        """Ask for another size of a device, and let its driver follow; gives the bytes that it has then.

        Raises:
            HotplugError: ENODEV, there is none of that name.
            InvalidInput: it can't have that size.
        """
        driver = self.drivers.get(name)
        if driver is None:
            raise HotplugError(errno.ENODEV, f"there is no virtio-mem device {name}")
        driver.request(size)  # the hypervisor tells the driver also if nothing is new
        self.settle()
        return driver.plugged

    def _resize(self, step: Step) -> str:
        return format_size(self.resize(step.arguments["name"], step.arguments["size"]))

    def _plug_cpu(self, step: Step) -> str:
        cpu = self._machine.sockets.plug(step.arguments["socket"])
        return f"cpu{cpu.number}"

    def _unplug_cpu(self, step: Step) -> str:
        self._machine.sockets.unplug(step.arguments["socket"])
        return ""


def devices_of(scenario: Scenario, machine: Machine) -> Devices:
    """Give a machine the devices of its scenario.

    Raises:
        ScenarioError: it can't have them; one that was read from files may be quite another than the file describes.
    """
    spec = scenario.machine
    try:
        return Devices(machine, spec.virtio)
    except (HotplugError, InvalidInput) as error:
        names = ", ".join(device.name for device in spec.virtio)
        expected = f"devices that the machine can have ({error})"
        raise ScenarioError(names, str(scenario.file), spec.virtio_line, expected, "machine: virtio_mem") from error
