"""Doing what a step says, to the blocks that it means."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, MemhpError
from memhp.kernel import Allocation, BlockState, Machine, MhpFlags
from memhp.kernel.iomem import ResourceName
from memhp.scenario.attach import Attached
from memhp.scenario.model import Step
from memhp.scenario.select import BlockView, Selector
from memhp.scenario.workloads import fill
from memhp.units import PAGE_SHIFT, BlockId, format_ids

if TYPE_CHECKING:
    from memhp.kernel.acpi import Dimm
    from memhp.notifier import NotifierBlock
    from memhp.scenario.behaviours import Holdings
    from memhp.scenario.crew import Crew
    from memhp.scenario.devices import Devices

__all__ = ["Actor"]


class Actor:
    """Carries out steps on one machine.

    Attributes:
        selector: which blocks they mean.
    """

    def __init__(
        self,
        machine: Machine,
        holdings: Holdings,
        crew: Crew,
        callbacks: dict[str, NotifierBlock],
        file: Path,
        devices: Devices,
    ) -> None:
        self._machine = machine
        self._holdings = holdings
        self._crew = crew
        self._callbacks = callbacks
        self._devices = devices
        self._dimms: dict[str, Dimm] = {}
        self.selector = Selector(self._views, lambda: machine.block_size, file)
        self._groups: dict[str, int] = {}
        self._driver_names: dict[str, ResourceName] = {}
        self._verbs: dict[str, Callable[[Step], str | None]] = {
            "plug": self._plug,
            "unplug": self._unplug,
            "add": self._add,
            "group": self._make_group,
            "ungroup": self._drop_group,
            "add_driver_managed": self._add_driver_managed,
            "remove": self._remove,
            "offline_and_remove": self._offline_and_remove,
            "online": self._online,
            "offline": self._offline,
            "write": self._write,
            "read": self._read,
            "allocate": self._allocate,
            "free": self._free,
            "pin": self._pin,
            "unpin": self._unpin,
            "register": self._register,
            "unregister": self._unregister,
            "load": self._load,
            "unload": self._unload,
            "signal": self._signal,
            **devices.verbs,
            "fill": self._fill,
            **Attached(machine, self.selector).verbs,
        }

    def act(self, step: Step) -> str:
        """Do the step; gives what there is to say of it, such as the text that was read.

        Raises:
            MemhpError: what the machine raised.
            ScenarioError: the step asks for something that isn't there.
        """
        try:
            return self._verbs[step.verb](step) or ""
        finally:
            self._devices.settle()

    # -- the verbs

    def _plug(self, step: Step) -> str:
        name = step.arguments["name"]
        known = self._dimms.get(name)
        if known is not None and known.plugged:
            raise HotplugError(errno.EEXIST, f"{name} is plugged in: {known!r}")
        dimm = self._machine.plug_dimm(step.arguments["node"], step.arguments["size"], step.arguments["at"])
        self._dimms[name] = dimm
        self.selector.name(name, dimm.blocks)
        self.selector.remember(step, dimm.blocks)
        return f"memory{format_ids(dimm.blocks)}" if dimm.blocks else "no memory block"

    def _unplug(self, step: Step) -> None:
        dimm = self._dimms.get(step.arguments["name"])
        if dimm is None:
            raise self.selector.unknown(step, step.arguments["name"], "the name of a DIMM that an earlier step plugged in")
        self._machine.unplug_dimm(dimm)

    def _load(self, step: Step) -> None:
        self._machine.load_module(step.arguments["module"], **step.arguments["parameters"])

    def _unload(self, step: Step) -> None:
        self._machine.unload_module(step.arguments["module"])

    def _add(self, step: Step) -> str:
        return self._add_with(step, self._machine.add_memory, step.arguments["name"])

    def _add_driver_managed(self, step: Step) -> str:
        # A driver keeps its name, so that what it adds later can merge with what it has.
        text = step.arguments["name"]
        return self._add_with(
            step, self._machine.add_memory_driver_managed, self._driver_names.setdefault(text, ResourceName(text))
        )

    def _add_with(self, step: Step, add: Callable[..., list[BlockId]], name: str) -> str:
        size, at = step.arguments["size"], step.arguments["at"]
        start = self._machine.next_room(size) if at is None else at
        node, flags, group = step.arguments["node"], step.arguments["flags"], step.arguments["group"]
        if group:
            node, flags = self._group_named(step, group), flags | MhpFlags.NID_IS_MGID
        ids = add(node, start, size, name=name, flags=flags)
        self.selector.remember(step, ids)
        return f"memory{format_ids(ids)}"

    def _make_group(self, step: Step) -> None:
        groups, node = self._machine.groups, step.arguments["node"]
        name, size, unit = (step.arguments[key] for key in ("name", "size", "unit"))
        if name in self._groups:
            raise self.selector.bad(step, name, "a name that no group has")
        self._groups[name] = (
            groups.register_dynamic(node, unit >> PAGE_SHIFT) if unit else groups.register_static(node, size >> PAGE_SHIFT)
        )

    def _drop_group(self, step: Step) -> None:
        name = step.arguments["name"]
        self._machine.groups.unregister(self._group_named(step, name))
        del self._groups[name]

    def _group_named(self, step: Step, name: str) -> int:
        if name not in self._groups:
            raise self.selector.unknown(step, name, "a group that an earlier step has made")
        return self._groups[name]

    def _remove(self, step: Step) -> None:
        self._each_run(step, self._machine.remove_memory)

    def _offline_and_remove(self, step: Step) -> None:
        self._each_run(step, self._machine.offline_and_remove_memory)

    def _each_run(self, step: Step, act: Callable[[int, int], object]) -> None:
        size = self._machine.block_size
        for part in format_ids(self.selector.choose(step, step.arguments["blocks"])).split(","):
            first, _, last = part.partition("-")
            act(int(first) * size, (int(last or first) - int(first) + 1) * size)

    def _online(self, step: Step) -> str:
        chosen = self.selector.choose(step, step.arguments["blocks"], BlockState.OFFLINE.value)
        for block in chosen:
            self._machine.device_online(block, step.arguments["type"])
        return f"memory{format_ids(chosen)}"

    def _offline(self, step: Step) -> str:
        chosen = self.selector.choose(step, step.arguments["blocks"], BlockState.ONLINE.value)
        for block in chosen:
            self._machine.device_offline(block)
        return f"memory{format_ids(chosen)}"

    def _write(self, step: Step) -> None:
        self._machine.tree.write(self.selector.path(step, step.arguments["file"]), step.arguments["text"])

    def _read(self, step: Step) -> str:
        return self._machine.tree.read(self.selector.path(step, step.arguments["file"]))

    def _allocate(self, step: Step) -> str:
        wanted = step.arguments["wanted"]
        blocks = self.selector.choose(step, wanted.blocks) if wanted.blocks is not None else None
        allocation = self._holdings.take(wanted, blocks)
        return f"{allocation.nr_pages} pages in memory{format_ids(allocation.blocks)}"

    def _fill(self, step: Step) -> str:
        given = step.arguments
        filled = fill(self._machine, given["workload"], given["share"], seed=given["seed"], age=given["age"])
        return f"{filled.nr_pages} pages"

    def _free(self, step: Step) -> None:
        self._held(step)
        self._holdings.free(step.arguments["name"])

    def _pin(self, step: Step) -> None:
        for allocation in self._held(step):
            self._machine.pages.pin(allocation)

    def _unpin(self, step: Step) -> None:
        for allocation in self._held(step):
            self._machine.pages.unpin(allocation)

    def _held(self, step: Step) -> list[Allocation]:
        held = self._holdings.get(step.arguments["name"])
        if not held:
            raise self._unknown_pages(step)
        return held

    def _unknown_pages(self, step: Step) -> MemhpError:
        return self.selector.unknown(step, step.arguments["name"], "the name of pages that are allocated now")

    def _register(self, step: Step) -> None:
        self._machine.memory_chain.register(self._callbacks[step.arguments["name"]])

    def _unregister(self, step: Step) -> None:
        self._machine.memory_chain.unregister(self._callbacks[step.arguments["name"]])

    def _signal(self, step: Step) -> None:
        thread = self._crew.thread(step.arguments["name"])
        if thread is None:
            raise self.selector.bad(step, step.arguments["name"], "a thread that has had a step")
        self._machine.send_signal(thread)

    def _views(self) -> Iterator[BlockView]:
        for block in self._machine.blocks.values():
            whole = block.state is BlockState.OFFLINE or (block.zone is not None and not block.has_holes)
            yield BlockView(block.id, block.nid, block.state.value, whole)
