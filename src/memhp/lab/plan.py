"""What a scenario means on a real kernel: the guest's machine and the injected errors; the rest is refused, by line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from memhp.errors import InvalidInput, ScenarioError
from memhp.events import MEM_GOING_OFFLINE, MEM_GOING_ONLINE, MemoryAction
from memhp.kernel import NodeSpec
from memhp.lab.qemu import Shape, soft_reserved_of
from memhp.notifier import NOTIFY_OK, notifier_from_errno
from memhp.scenario.model import CallbackSpec, Reaction, Scenario, Step, answer_name
from memhp.scenario.reader import Value, read_yaml
from memhp.units import format_size, parse_size

__all__ = ["ACPI_TABLES", "BLOCK", "Injection", "Plan", "ejects", "make_plan"]

BLOCK = 128 << 20
"""The size of a memory block of such guests."""

ACPI_TABLES = 128 << 10
"""What QEMU's firmware keeps at the end of low RAM."""

_LEAST, _MOST = 512 << 20, 16 << 30
_ROOM = 64 << 30
_VERBS = (
    "plug",
    "unplug",
    "resize",
    "plug_cpu",
    "unplug_cpu",
    "online",
    "offline",
    "write",
    "read",
    "register",
    "unregister",
    "load",
    "unload",
    "note",
)
_CHANGE_ADDRESSES = {"plug", "unplug", "resize", "plug_cpu"}
"""What lets QEMU arrange its memory anew."""
_INSTEAD = {"add": "plug", "add_driver_managed": "plug", "remove": "unplug", "offline_and_remove": "unplug"}
_ASKED = {"plug": "add", "unplug": "remove"}
_NO_DEVICE = "no such step: a guest has no such device, and its hypervisor is QEMU"
_NO_CALLBACK = "no such step: a real kernel brings its own participants, and shows nothing of them"
_WITHOUT = {
    **dict.fromkeys(("bind", "unbind", "hypervisor", "hot_add", "reserve_additional", "memremap", "memunmap"), _NO_DEVICE),
    **dict.fromkeys(("join", "leave", "tune", "work", "show"), _NO_CALLBACK),
    "fill": "no such step: what fills a guest's memory is what runs in it",
}
"""Why a step has no meaning there."""


@dataclass(frozen=True, slots=True)
class Injection:
    """The one callback that a real kernel can be given without a compiler (lib/memory-notifier-error-inject.c)."""

    name: str
    priority: int
    registered: bool
    errors: tuple[tuple[str, int], ...]
    """Action and errno, positive."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to boot, what to inject, and what can't be compared there."""

    shape: Shape
    injection: Injection | None
    unseen: tuple[tuple[int, str], ...]
    """Line and name of the expectations that are not looked at."""


def make_plan(scenario: Scenario) -> Plan:
    """Say what the scenario means on a real kernel.

    Raises:
        ScenarioError: something in it has no meaning there; with file, line, and what would have one.
    """
    where = _Where(scenario.file)
    shape = _shape(scenario, where)
    injection = _injection(scenario, where)
    for step in scenario.steps:
        _check(step, scenario, where)
    _check_cpus(scenario, where)
    return Plan(shape, injection, tuple(_unseen(scenario)))


class _Where:
    # Finds the lines of what was decoded without them.

    def __init__(self, file: Path) -> None:
        self.file = str(file)
        self._top = _items(read_yaml(file))

    def line(self, *path: str) -> int:
        """Give the line of a key below others; that of the last one that is there."""
        line, values = 0, self._top
        for name in path:
            if name not in values:
                break
            key, value = values[name]
            line, values = key.line, _items(value)
        return line

    def refuse(self, value: object, line: int, expected: str, place: str) -> NoReturn:
        raise ScenarioError(value, self.file, line, expected, place)


def _items(value: Value) -> dict[str, tuple[Value, Value]]:
    return {key.text(): (key, given) for key, given in value.items()} if value.is_mapping else {}


# -- the machine


def _shape(scenario: Scenario, where: _Where) -> Shape:
    spec = scenario.machine
    given = spec.description
    if spec.source:
        where.refuse(spec.source, where.line("machine", "from"), "nodes: a guest is made from a description", "machine: from")
    if not spec.device_hotplug_lock:
        line = where.line("machine", "device_hotplug_lock")
        where.refuse("false", line, "true: a real kernel always has that lock", "machine: device_hotplug_lock")
    for name in ("physical_bits", "five_level_paging", "memory_probe"):
        if name in given:
            where.refuse(given[name], where.line("machine", name), "no such key for a guest", f"machine: {name}")
    if given.get("hypervisor", True) is not True:
        where.refuse("false", where.line("machine", "hypervisor"), "true: a guest is a VM", "machine: hypervisor")
    if parse_size(given.get("acpi_tables", ACPI_TABLES), "acpi_tables") != ACPI_TABLES:
        expected = f"{format_size(ACPI_TABLES)}, as QEMU's firmware keeps it"
        where.refuse(given["acpi_tables"], where.line("machine", "acpi_tables"), expected, "machine: acpi_tables")
    if parse_size(given.get("block_size", BLOCK), "block_size") != BLOCK:
        line = where.line("machine", "block_size")
        where.refuse(
            given["block_size"], line, f"{format_size(BLOCK)}, as the kernel chooses it for a guest", "machine: block_size"
        )
    slots = {"slots": given["slots"]} if "slots" in given else {}
    if slots == {"slots": 0}:
        where.refuse(0, where.line("machine", "slots"), "at least one slot for a guest", "machine: slots")
    nodes, parameters = _nodes(given, where), _parameters(given.get("parameters", ""))
    gives_cpus = any(step.verb == "unplug_cpu" for step in scenario.steps)
    kept = _soft_reserved(given, where)
    return Shape(
        nodes, parameters, room=_room(given, where), virtio=spec.virtio, soft_reserved=kept, gives_cpus=gives_cpus, **slots
    )


def _nodes(given: dict[str, Any], where: _Where) -> tuple[NodeSpec, ...]:
    nodes = tuple(NodeSpec.of(node, f"nodes[{number}]") for number, node in enumerate(given["nodes"]))
    total = sum(node.memory for node in nodes)
    if not _LEAST <= total <= _MOST or any(node.memory % BLOCK for node in nodes):
        expected = f"nodes of whole blocks, from {format_size(_LEAST)} to {format_size(_MOST)} together, for a guest"
        where.refuse(format_size(total), where.line("machine", "nodes"), expected, "machine: nodes")
    for number, node in enumerate(nodes[1:-1], 1):
        if not node.memory and not node.cpus:
            # The firmware's tables name a node by its memory or CPUs, and the last one by the room for DIMMs.
            expected = "memory or CPUs for each node but the last, else the guest's kernel does not know of it"
            where.refuse(number, where.line("machine", "nodes"), expected, "machine: nodes")
    return nodes


def _soft_reserved(given: dict[str, Any], where: _Where) -> tuple[tuple[int, int], ...]:
    try:
        return soft_reserved_of([NodeSpec.of(node, "nodes") for node in given["nodes"]], given.get("soft_reserved", ()))
    except InvalidInput as error:
        where.refuse(error.value, where.line("machine", "soft_reserved"), error.expected, "machine: soft_reserved")


def _room(given: dict[str, Any], where: _Where) -> int:
    room = min(parse_size(given.get("room", _ROOM), "room"), _ROOM) // BLOCK * BLOCK
    if not room:
        where.refuse(given["room"], where.line("machine", "room"), f"at least {format_size(BLOCK)} for a guest", "machine: room")
    return room


def _parameters(given: object) -> str:
    if not isinstance(given, dict):
        return str(given)
    return " ".join(name if value is True else f"{name}={value}" for name, value in given.items())


# -- callbacks


def _injection(scenario: Scenario, where: _Where) -> Injection | None:
    if not scenario.callbacks:
        return None
    spec, *others = scenario.callbacks
    if others:
        expected = "at most one callback, because a kernel has one module that injects errors"
        where.refuse(others[0].name, where.line("callbacks", others[0].name), expected, "callbacks")
    if spec.call:
        line = where.line("callbacks", spec.name, "call")
        where.refuse(spec.call, line, "no Python function in a real kernel", f"callbacks: {spec.name}: call")
    errors = tuple((action.name, _error(spec, action, reaction, where)) for action, reaction in spec.reactions.items())
    return Injection(spec.name, spec.priority, spec.registered, errors)


def _error(spec: CallbackSpec, action: MemoryAction, reaction: Reaction, where: _Where) -> int:
    number = reaction.answer.errno
    line = where.line("callbacks", spec.name, action.name)
    simple = reaction == Reaction(reaction.answer) and reaction.answer == (notifier_from_errno(-number) if number else NOTIFY_OK)
    if not simple or (number and action not in {MEM_GOING_ONLINE, MEM_GOING_OFFLINE}):
        expected = (
            "an errno as the only answer to MEM_GOING_ONLINE or MEM_GOING_OFFLINE, because a kernel can inject nothing else"
        )
        where.refuse(answer_name(reaction.answer), line, expected, f"callbacks: {spec.name}: {action.name}")
    return number


# -- steps


def _check(step: Step, scenario: Scenario, where: _Where) -> None:
    if step.verb in _INSTEAD:
        instead = _INSTEAD[step.verb]
        expected = f"{instead}, because a stock kernel is asked to {_ASKED[instead]} memory by a DIMM alone"
        where.refuse(step.verb, step.line, expected, f"steps: {step.shown}")
    if step.verb in {"load", "unload"} and scenario.callbacks:
        expected = "no module beside callbacks, which the same module stands for"
        where.refuse(step.verb, step.line, expected, f"steps: {step.shown}")
    if step.verb in _WITHOUT:
        where.refuse(step.verb, step.line, _WITHOUT[step.verb], f"steps: {step.shown}")
    if step.verb not in _VERBS:
        where.refuse(step.verb, step.line, f"one of the steps {', '.join(_VERBS)} for a real kernel", f"steps: {step.shown}")
    if step.verb == "plug" and step.arguments["name"] in {device.name for device in scenario.machine.virtio}:
        expected = "another name: a virtio-mem device has it"
        where.refuse(step.arguments["name"], step.line, expected, f"steps: {step.shown}")
    if step.thread:
        where.refuse(step.thread, step.line, "no thread: the steps of a guest come one after the other", f"steps: {step.shown}")


def _check_cpus(scenario: Scenario, where: _Where) -> None:
    taken_out = False
    for step in scenario.steps:
        if taken_out and (step.verb in _CHANGE_ADDRESSES or ejects(step)):
            expected = "neither CPU nor memory plugged, unplugged or ejected once a CPU is out: QEMU 7.2 does not survive that"
            where.refuse(step.verb, step.line, expected, f"steps: {step.shown}")
        taken_out = taken_out or step.verb == "unplug_cpu"


def ejects(step: Step) -> bool:
    """Say whether the step writes to an ``eject`` file, which nothing follows if no byte is written.

    The write is answered before the kernel has done it, if at all.
    """
    return step.verb == "write" and step.arguments["file"].endswith("/eject") and step.arguments["text"] != ""


def _unseen(scenario: Scenario) -> list[tuple[int, str]]:
    wanted = [step.expect for step in scenario.steps] + [scenario.expect]
    found = []
    for expect in wanted:
        if expect is not None:
            found += [(expect.line, name) for name in ("trace", "lockdep") if getattr(expect, name) is not None]
    return found
