"""Scenarios that nobody thought of: random steps, valid and invalid, the same for the same seed.

What is written can be played on any machine: everything that a step names is there when it is played. One thing is left out,
because no model can foretell it: memory that the kernel itself uses. So no block is asked to leave that came online outside of
ZONE_MOVABLE on a node with CPUs or memory from the boot (the kernel takes pages there at once), or before a DIMM was plugged in
(the ``struct page`` of new memory lie in memory that is online), nor is a page of it said to be bad.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from memhp.conform.generate_dax import DaxSteps
from memhp.conform.generate_devices import DeviceSteps
from memhp.conform.generate_steps import Ground, Maker
from memhp.errors import HotplugError
from memhp.kernel import BlockState, Machine, MemoryBlock, Rules, ZoneType
from memhp.kernel.acpi import Dimm
from memhp.units import PAGE_SHIFT

__all__ = ["SHAPES", "Generated", "generate", "write_scenario"]

BLOCK = 128 << 20
_FIRST_DIMM_BLOCK = 32
_MOST_DIMMS = 5
_RARELY = 0.08
_MOSTLY = 0.7

SHAPES: tuple[dict[str, Any], ...] = (
    {"nodes": ["512MiB", 0], "parameters": {"memhp_default_state": "offline"}},
    {"nodes": ["512MiB", "128MiB", 0], "parameters": {"memhp_default_state": "offline"}},
    {"nodes": ["512MiB", 0], "parameters": {"memhp_default_state": "offline", "movable_node": True}},
    {
        "nodes": ["512MiB", 0],
        "parameters": {
            "memhp_default_state": "online",
            "memory_hotplug.online_policy": "auto-movable",
            "memory_hotplug.auto_movable_numa_aware": "N",
        },
    },
    {"nodes": ["512MiB", 0], "parameters": {"memhp_default_state": "offline", "memory_hotplug.memmap_on_memory": "Y"}},
    {
        "nodes": ["512MiB", 0],
        "virtio_mem": [{"size": "3GiB", "node": 1, "requested": "160MiB"}],
        "parameters": {"memhp_default_state": "offline"},
    },
    {
        "nodes": ["512MiB", 0],
        "virtio_mem": [{"size": "2GiB", "node": 1, "block": "256MiB"}, {"size": "512MiB", "node": 1, "block": "4MiB"}],
        "parameters": {
            "memhp_default_state": "online_movable",
            "memory_hotplug.online_policy": "auto-movable",
            "memory_hotplug.auto_movable_numa_aware": "N",
            "memory_hotplug.memmap_on_memory": "Y",
        },
    },
    {
        "nodes": [{"memory": "512MiB", "cpus": 1, "possible_cpus": 2}, {"cpus": 1, "possible_cpus": 2}],
        "parameters": {"memhp_default_state": "offline"},
    },
    {
        "nodes": ["3GiB", "1GiB", 0],
        "soft_reserved": [{"at": "4GiB", "size": "512MiB"}, {"at": 0x12C000000, "size": "192MiB"}],
        "parameters": {"memhp_default_state": "offline"},
    },
    {
        "nodes": ["3GiB", "768MiB", 0],
        "soft_reserved": [{"at": "4GiB", "size": "768MiB"}],
        "parameters": {
            "memhp_default_state": "online_movable",
            "memory_hotplug.online_policy": "auto-movable",
            "memory_hotplug.auto_movable_numa_aware": "N",
            "memory_hotplug.memmap_on_memory": "Y",
        },
    },
)
"""The machines of generated scenarios."""

_TYPES = ("online", "online", "online_kernel", "online_movable", "online_movable")
_TYPES_FOR_DRIVERS = (*_TYPES, *("online_movable",) * 6)
"""A driver can take back only what the kernel does not use."""
_EJECT = "/sys/bus/acpi/devices/{}/eject"
_EJECTS = ("1", "1", "1", "1", "10", "0", "x", "")
_BAD_WORDS = ("bogus", "ONLINE", " online", "online ", "online\n\n", "going-offline", "1", "on", "offline x", "online\0junk")
_BOOLEANS = ("1", "0", "y", "n", "on", "off", "Yes", "no", "true", "False", "2", "x", "o", " 1", "1junk", "\n")
_POLICY_WRITES = (
    ("online_policy", ("contig-zones", "contig-zones\n", "auto-movable", "auto-movable", "auto-movable\n", "bogus", "")),
    ("auto_movable_ratio", ("301", "25", "50", "100", "0x10", "010", "0", "-1", "7.5", "4294967295", "4294967296", "text")),
    ("auto_movable_numa_aware", ("Y", "N", "N", "foo", "1", "0", "off", "x", "o")),
)
_ERRORS = ("-12", "-12", "-16", "-1", "-28\n", "-0x10", "-4095", "-5000", "0", "0", "0", "12", "text")
_INJECTOR = "/sys/kernel/debug/notifier-error-inject/memory/actions"
_MODULES = ("notifier-error-inject", "memory-notifier-error-inject")
_READS = ("state", "online", "valid_zones", "removable", "phys_index", "phys_device", "uevent", "bogus")
_MASKS = ("possible", "online", "has_memory", "has_normal_memory", "has_cpu")
_HARD_OFFLINES = ("{page}", "{page}", "{page}", "0x700000000", "-1", "text")
_UEVENTS = ("change", "add", "online", "bogus", "change ", "CHANGE", "change 0")


@dataclass(slots=True)
class Generated:
    """A generated scenario: what its file will say."""

    seed: int
    machine: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)

    def text(self) -> str:
        """Give the YAML."""
        document = {"title": f"Generated from seed {self.seed}", "machine": self.machine, "steps": self.steps}
        return yaml.safe_dump(document, sort_keys=False, width=120, default_flow_style=None)


def write_scenario(generated: Generated, directory: Path) -> Path:
    """Write the scenario's file; gives its path."""
    path = directory / f"seed-{generated.seed}.yaml"
    path.write_text(generated.text(), encoding="utf-8")
    return path


def generate(seed: int, steps: int) -> Generated:
    """Make a scenario of so many steps."""
    return _Generator(seed).make(steps)


class _Generator:
    # Every step is done on machines of both kernels' rules, so that what the next one names is there.

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - the same steps for the same seed
        self.generated = Generated(seed, SHAPES[seed % len(SHAPES)])
        options = self.generated.machine
        self.machines = [
            Machine.boot(
                options["nodes"],
                parameters=options["parameters"],
                rules=rules,
                room="16GiB",
                acpi_tables="128KiB",
                soft_reserved=options.get("soft_reserved", ()),
            )
            for rules in (Rules.LINUX_6_1, Rules.LINUX_6_12)
        ]
        first = self.machines[0]
        self.kernels_nodes = {block.nid for block in first.blocks.values()} | {cpu.nid for cpu in first.cpus}
        self.dimms: dict[str, list[Dimm]] = {}
        self.made = 0
        self.used: set[int] = set()
        ground = Ground(self.random, self.machines, self._write, self._mark, self.used)
        self.devices = DeviceSteps(ground, options)
        self.dax = DaxSteps(ground, self._follow)
        self.types = _TYPES_FOR_DRIVERS if "virtio_mem" in options or "soft_reserved" in options else _TYPES
        self.kinds: tuple[tuple[int, Maker], ...] = (
            (3, self._plug),
            (3, self._unplug),
            (2, self._eject),
            (18, self._online),
            (12, self._offline),
            (6, self._boolean),
            (3, self._bad_word),
            (3, self._auto_online),
            (2, self._policy),
            (3, self._read_block),
            (2, self._read_mask),
            (4, self._load),
            (1, self._unload),
            (6, self._error),
            (1, self._uevent),
            (1, self._poison),
            *self.devices.kinds,
            *self.dax.kinds,
        )
        self._look()

    def make(self, count: int) -> Generated:
        weights, makers = [weight for weight, _ in self.kinds], [maker for _, maker in self.kinds]
        while len(self.generated.steps) < count:
            # Little can happen before there is memory that is new.
            if self.devices.next:
                step = self.devices.next.pop(0)()
            elif len(self.generated.steps) == count - 1 and (last := self.devices.last()):
                step = last
            elif any(number >= _FIRST_DIMM_BLOCK for number in self.blocks) or self.random.random() < _RARELY:
                step = self.random.choices(makers, weights)[0]()
            else:
                step = self._plug()
            if step is not None:
                self.generated.steps.append(step)
                self.devices.settle()
                self._look()
        return self.generated

    # -- what is there

    @property
    def blocks(self) -> dict[int, MemoryBlock]:
        # What only one of the kernels has, because its drivers took a device, is there as well.
        return {**self.machines[1].blocks, **self.machines[0].blocks}

    def _look(self) -> None:
        # The kernel may use what is online in its zones of nodes where it runs, or had memory from the beginning.
        for machine in self.machines:
            for block in machine.blocks.values():
                if block.nid in self.kernels_nodes and _is_kernels(block):
                    self.used.add(block.id)
        self.used.intersection_update(self.blocks)

    def _mark(self) -> None:
        # The struct pages of new memory lie in what is online for the kernel, wherever that is.
        for machine in self.machines:
            self.used |= {block.id for block in machine.blocks.values() if _is_kernels(block)}

    def _follow(self, makers: list[Maker]) -> None:
        self.devices.next = makers

    def _some_block(self, state: BlockState | None = None) -> MemoryBlock:
        # New ones rather than those of the boot, and in that state rather than in another one.
        new = [block for number, block in self.blocks.items() if number >= _FIRST_DIMM_BLOCK]
        fitting = [block for block in new if block.state is state]
        if fitting and self.random.random() < _MOSTLY:
            return self.random.choice(fitting)
        return self.random.choice(new if new and self.random.random() > _RARELY else list(self.blocks.values()))

    def _may_leave(self, block: MemoryBlock) -> bool:
        return block.id not in self.used or block.has_holes or block.zone is None

    def _write(self, file: str, text: str) -> dict[str, Any]:
        path = file if file.startswith("/") else f"/sys/devices/system/memory/{file}"
        for machine in self.machines:
            with contextlib.suppress(HotplugError):
                machine.tree.write(path, text)
        return {"write": {"file": file, "text": text}}

    # -- kinds of steps

    def _plug(self) -> dict[str, Any] | None:
        size = BLOCK * self.random.choice((1, 2, 3, 4, 6, 8))
        last = len(self.machines[0].nodes) - 1
        node = last if self.random.random() < 0.7 else self.random.randrange(last)
        if len(self.dimms) >= _MOST_DIMMS:
            return None
        name = f"d{self.made}"
        self.made += 1
        self._mark()
        self.dimms[name] = [machine.plug_dimm(node, size) for machine in self.machines]
        return {"plug": {"name": name, "size": f"{size >> 20}MiB", "node": node}}

    def _dimm_that_may_leave(self) -> str | None:
        names = [name for name, dimms in self.dimms.items() if self.used.isdisjoint(dimms[0].blocks + dimms[1].blocks)]
        return self.random.choice(names) if names else None

    def _eject(self) -> dict[str, Any] | None:
        word = self.random.choice(_EJECTS)
        name = self._dimm_that_may_leave()
        if name is None or len({dimm.device.name for dimm in self.dimms[name]}) > 1:
            return self._write(_EJECT.format(f"PNP0C80:0{self.random.randrange(6, 10)}"), word) if word != "1" else None
        step = self._write(_EJECT.format(self.dimms[name][0].device.name), word)
        self._forget(name)
        return step

    def _forget(self, name: str) -> None:
        if not any(dimm.plugged for dimm in self.dimms[name]):
            del self.dimms[name]

    def _unplug(self) -> dict[str, Any] | None:
        name = self._dimm_that_may_leave()
        if name is None:
            return None
        for machine, dimm in zip(self.machines, self.dimms[name], strict=True):
            with contextlib.suppress(HotplugError):
                machine.unplug_dimm(dimm)
        self._forget(name)
        return {"unplug": name}

    def _online(self) -> dict[str, Any]:
        return self._write(f"memory{self._some_block(BlockState.OFFLINE).id}/state", self.random.choice(self.types))

    def _offline(self) -> dict[str, Any] | None:
        block = self._some_block(BlockState.ONLINE)
        return self._write(f"memory{block.id}/state", "offline") if self._may_leave(block) else None

    def _boolean(self) -> dict[str, Any] | None:
        block = self._some_block()
        return self._write(f"memory{block.id}/online", self.random.choice(_BOOLEANS)) if self._may_leave(block) else None

    def _bad_word(self) -> dict[str, Any] | None:
        block = self._some_block()
        return self._write(f"memory{block.id}/state", self.random.choice(_BAD_WORDS)) if self._may_leave(block) else None

    def _auto_online(self) -> dict[str, Any]:
        return self._write("auto_online_blocks", self.random.choice((*self.types, "offline", "offline", "bogus", "online ")))

    def _policy(self) -> dict[str, Any]:
        name, values = self.random.choice(_POLICY_WRITES)
        return self._write(f"/sys/module/memory_hotplug/parameters/{name}", self.random.choice(values))

    def _read_block(self) -> dict[str, Any]:
        number = self._some_block().id if self.random.random() > _RARELY else 999
        return {"read": f"memory{number}/{self.random.choice(_READS)}"}

    def _read_mask(self) -> dict[str, Any]:
        return {"read": f"/sys/devices/system/node/{self.random.choice(_MASKS)}"}

    def _load(self) -> dict[str, Any]:
        module = self.random.choice(_MODULES)
        if self.random.random() > _RARELY:  # the one that can be loaded, mostly
            module = _MODULES[self.machines[0].tree.exists(_INJECTOR.partition("/memory")[0])]
        given = {"priority": self.random.choice((-5, 0, 0, 7, 200))} if module == _MODULES[1] else {}
        for machine in self.machines:
            with contextlib.suppress(HotplugError):
                machine.load_module(module, **given)
        return {"load": {"module": module, **given}}

    def _unload(self) -> dict[str, Any]:
        module = self.random.choice(_MODULES)
        for machine in self.machines:
            with contextlib.suppress(HotplugError):
                machine.unload_module(module)
        return {"unload": module}

    def _error(self) -> dict[str, Any] | None:
        file = f"{_INJECTOR}/{self.random.choice(('MEM_GOING_ONLINE', 'MEM_GOING_OFFLINE'))}/error"
        there = self.machines[0].tree.exists(file)
        return self._write(file, self.random.choice(_ERRORS)) if there or self.random.random() < _RARELY else None

    def _uevent(self) -> dict[str, Any]:
        return self._write(f"memory{self._some_block().id}/uevent", self.random.choice(_UEVENTS))

    def _poison(self) -> dict[str, Any] | None:
        block = self._some_block()
        if block.id < _FIRST_DIMM_BLOCK or block.id in self.used or self.devices.owns(block.id):
            return None
        page = block.start_pfn + self.random.choice((0x1000, 0x1001, 0x7FFF))
        return self._write("hard_offline_page", self.random.choice(_HARD_OFFLINES).format(page=hex(page << PAGE_SHIFT)))


def _is_kernels(block: MemoryBlock) -> bool:
    return block.state is BlockState.ONLINE and (block.zone is None or block.zone.type is not ZoneType.MOVABLE)
