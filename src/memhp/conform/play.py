"""Playing scenarios on the model and on real kernels, to be compared."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from types import TracebackType
from typing import Any, Self

from memhp.abi.paths import MEMORY
from memhp.abi.state import changes
from memhp.conform.observation import Observed, observe
from memhp.conform.recording import Recording, fingerprint
from memhp.errors import DimmRefused, GuestFailed
from memhp.kernel import NodeSpec, Rules
from memhp.lab.guest import Guest, GuestErrno
from memhp.lab.image import INJECTORS
from memhp.lab.kernels import Kernel
from memhp.lab.plan import ACPI_TABLES, make_plan
from memhp.lab.play import LabPlayer, hear
from memhp.lab.probes import PROBES
from memhp.lab.qemu import Shape, cpus_of
from memhp.lab.virtio import resize
from memhp.scenario.model import MachineSpec, Scenario
from memhp.scenario.play import Player

__all__ = ["RealKernel", "play_model"]

_PHYSICAL_BITS = 40
"""Of QEMU's CPU `max`."""
_POLICIES = ("online_policy", "auto_movable_ratio", "auto_movable_numa_aware")


def play_model(scenario: Scenario, rules: Rules) -> list[Observed]:
    """Play the scenario on the model of the guest that it would be played in.

    Raises:
        ScenarioError: a step has no meaning on a real kernel, or asks for what isn't there.
    """
    shape = make_plan(scenario).shape
    nodes = [
        NodeSpec(node.memory, count, node.distances, max(count, node.possible_cpus))
        for node, count in zip(shape.nodes, cpus_of(shape), strict=True)
    ]
    description: dict[str, Any] = {
        "nodes": nodes,
        "parameters": shape.parameters,
        "room": shape.most - shape.memory,
        "slots": shape.slots,
        "physical_bits": _PHYSICAL_BITS,
        "five_level_paging": True,
        "acpi_tables": ACPI_TABLES,
        "soft_reserved": shape.soft_reserved,
    }
    events: list[dict[str, Any]] = []
    guest = dataclasses.replace(scenario, machine=MachineSpec(description, rules=rules, virtio=shape.virtio))
    Player(guest, events.append, watch=True).play()
    return observe(events)


class RealKernel:
    """Plays scenarios on one real kernel, as a context manager; as many in one guest as is sound.

    A guest plays the next scenario if it has the shape for it, and if it has been brought back to what it was after its boot: no
    DIMM, no module, each parameter and each block as before. Otherwise a new one is booted.

    Args:
        kernel: what to play on.
        patience: seconds that a boot, or one request, may take.

    Attributes:
        boots: how many guests there were.
        boot_seconds: how long each took.
    """

    def __init__(self, kernel: Kernel, *, patience: float = 60.0) -> None:
        self.kernel = kernel
        self.patience = patience
        self.boots = 0
        self.boot_seconds: list[float] = []
        self._guest: Guest | None = None
        self._first: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end(kind, error, trace)

    @property
    def rules(self) -> Rules:
        """The rules that the model follows beside it."""
        return PROBES[self.kernel.series].rules

    def record(self, scenario: Scenario) -> Recording:
        """Play the scenario and say what was observed.

        Raises:
            ScenarioError: a step has no meaning on a real kernel, or asks for what isn't there.
            LabError: the guest can't be started, or fails; the next scenario gets a new one.
        """
        events: list[dict[str, Any]] = []
        player = LabPlayer(scenario, self.kernel, events.append, patience=self.patience, watch=True)
        try:
            guest = self._ready(player.plan.shape)
            player.play_in(guest)
        except BaseException as error:
            self._end(type(error), error, error.__traceback__)
            raise
        if guest.shape.soft_reserved or any(step.verb in {"plug_cpu", "unplug_cpu"} for step in scenario.steps):
            self._end(None, None, None)  # sockets are never as they were, nor what dax drivers were told
        steps = tuple(observe(events))
        return Recording(self.kernel.release, self.kernel.version, fingerprint(scenario.file), steps)

    def _ready(self, shape: Shape) -> Guest:
        if self._guest is not None and (self._guest.shape != shape or not self._tidied(self._guest)):
            self._end(None, None, None)
        if self._guest is None:
            self._guest = Guest(self.kernel, shape, patience=self.patience)
            self._guest.__enter__()
            hear(self._guest, PROBES[self.kernel.series])
            self._first = self._guest.ask("state")
            self.boots += 1
            self.boot_seconds.append(self._guest.boot_seconds)
        return self._guest

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.__exit__(kind, error, trace)

    def _tidied(self, guest: Guest) -> bool:
        try:
            self._tidy(guest)
            return not changes(self._first, guest.ask("state"))
        except (DimmRefused, GuestErrno, GuestFailed):
            return False

    def _tidy(self, guest: Guest) -> None:
        for module in reversed(INJECTORS):
            with contextlib.suppress(GuestErrno):
                guest.rmmod(module)
        for name in guest.monitor.dimms():
            guest.monitor.unplug(name, self.patience)
        for device in guest.shape.virtio:
            resize(guest, device.name, device.requested)
        for name in self._first:
            if re.fullmatch(r"cpu[1-9]\d*", name):
                guest.write(f"/sys/devices/system/cpu/{name}/online", "1")
        guest.write(f"{MEMORY}/auto_online_blocks", self._first["auto_online_blocks"])
        for name in _POLICIES:
            guest.write(f"/sys/module/memory_hotplug/parameters/{name}", self._first[name])
        for name in self._first:
            if name.startswith("memory") and name[6:].isdigit():
                # Refused, as the block is online, and stored all the same: the next time it comes online as after a boot.
                with contextlib.suppress(GuestErrno):
                    guest.write(f"{MEMORY}/{name}/state", "online")
