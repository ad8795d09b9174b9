"""Carrying out the steps of :mod:`.driversteps`: drivers, device memory and participants, by the names that steps gave them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from memhp.kernel import participants as parts
from memhp.kernel.devicememory import PageMap
from memhp.kernel.drivers import DaxKmem, Dlpar, HyperVBalloon, Lmb, SclpMemory, XenBalloon
from memhp.scenario.model import Step
from memhp.scenario.select import Selector
from memhp.units import PhysAddr, addr_to_pfn, format_ids, format_mem, format_size

if TYPE_CHECKING:
    from memhp.kernel import Machine

__all__ = ["Attached"]

T = TypeVar("T")
_SHOWN = 60


class Attached:
    """What steps have attached to one machine.

    Attributes:
        verbs: who carries out each step.
    """

    def __init__(self, machine: Machine, selector: Selector) -> None:
        self._machine = machine
        self._selector = selector
        self._things: dict[str, object] = {}
        self._refused: dict[str, frozenset[int]] = {}
        self._known: dict[str, list[int]] = {}
        self.verbs: dict[str, Callable[[Step], str | None]] = {
            "bind": self._bind,
            "unbind": self._unbind,
            "hypervisor": self._hypervisor,
            "hot_add": self._hot_add,
            "reserve_additional": self._reserve_additional,
            "memremap": self._memremap,
            "memunmap": self._memunmap,
            "join": self._join,
            "leave": self._leave,
            "tune": self._tune,
            "work": self._work,
            "show": self._show,
        }
        self._binders: dict[str, Callable[[Step, str], Iterable[int]]] = {
            "kmem": self._bind_kmem,
            "dlpar": self._bind_dlpar,
            "standby": self._bind_standby,
            "hyperv": lambda _step, name: self._keep(name, HyperVBalloon(machine)),
            "xen": lambda _step, name: self._keep(name, XenBalloon(machine)),
        }

    # -- what is attached, by name

    def _keep(self, name: str, thing: object) -> tuple[int, ...]:
        self._things[name] = thing
        return ()

    def _unused(self, step: Step, name: str) -> None:
        if name in self._things:
            raise self._selector.bad(step, name, "a name that nothing has that is attached")

    def _named(self, step: Step, name: str, kind: type[T], what: str) -> T:
        found = self._things.get(name)
        if not isinstance(found, kind):
            raise self._selector.unknown(step, name, f"the name of {what}")
        return found

    def _added(self, step: Step, ids: Iterable[int]) -> str:
        blocks = list(ids)
        self._selector.remember(step, blocks)
        return f"memory{format_ids(blocks)}" if blocks else ""

    # -- drivers

    def _bind(self, step: Step) -> str:
        name = step.arguments["name"]
        self._unused(step, name)
        self._known[name] = _known(step)
        self._refuse(step, name)
        blocks = list(self._binders[step.arguments["driver"]](step, name))
        self._selector.name(name, blocks)
        return self._added(step, blocks)

    def _bind_kmem(self, step: Step, name: str) -> list[int]:
        given, size = step.arguments, self._machine.block_size
        device = DaxKmem(
            self._machine, given["node"], given["ranges"], name=given["device"], memmap_on_memory=given["memmap_on_memory"]
        )
        device.probe()
        self._keep(name, device)
        return [block for claim in device.claims for block in range(claim.start // size, (claim.end + 1) // size)]

    def _bind_dlpar(self, step: Step, name: str) -> Iterable[int]:
        if any(isinstance(thing, Dlpar) for thing in self._things.values()):
            raise self._selector.bad(step, name, "only one dlpar, because there is one file /sys/kernel/dlpar")
        size = self._machine.block_size
        lmbs = [
            Lmb(one["index"] + number, one["at"] + number * size, one["node"], reserved=one["reserved"])
            for one in step.arguments["lmbs"]
            for number in range(one["count"])
        ]
        lmbs.sort(key=lambda lmb: lmb.start)
        return self._keep(name, Dlpar(self._machine, lmbs, acquire=lambda lmb: lmb.drc_index not in self._refused[name]))

    def _bind_standby(self, step: Step, name: str) -> list[int]:
        start, length, block = step.arguments["at"], step.arguments["size"], self._machine.block_size
        if start % block or length % block:
            raise self._selector.bad(step, format_size(length), f"whole memory blocks of {format_size(block)}")
        memory = SclpMemory(
            self._machine,
            start,
            length,
            increment=step.arguments["increment"],
            edat1=step.arguments["edat1"],
            assign=lambda number: number not in self._refused[name],
        )
        self._keep(name, memory)
        return memory.detect()

    def _unbind(self, step: Step) -> str:
        name = step.arguments["name"]
        device = self._named(step, name, DaxKmem, "a dax/kmem device that a step has bound")
        device.unbind()
        if device.leaked:
            return "leaked"
        del self._things[name]
        return ""

    def _hypervisor(self, step: Step) -> None:
        name = step.arguments["driver"]
        if not isinstance(self._things.get(name), Dlpar | SclpMemory):
            raise self._selector.unknown(step, name, "the name of a dlpar or standby that a step has bound")
        self._refuse(step, name)

    def _refuse(self, step: Step, name: str) -> None:
        refuses = step.arguments.get("refuses", frozenset())
        unknown = refuses - set(self._known[name])
        if unknown:
            raise self._selector.bad(step, min(unknown), f"refuses: only what {name} has, {_few(self._known[name])}")
        self._refused[name] = refuses

    def _hot_add(self, step: Step) -> str:
        given = step.arguments
        balloon = self._named(step, given["driver"], HyperVBalloon, "a hyperv that a step has bound")
        return self._added(step, balloon.hot_add(given["node"], self._place(step), given["size"], given["backed"]))

    def _reserve_additional(self, step: Step) -> str:
        given = step.arguments
        balloon = self._named(step, given["driver"], XenBalloon, "a xen that a step has bound")
        return self._added(step, balloon.reserve_additional_memory(given["node"], self._place(step), given["size"]))

    def _place(self, step: Step) -> int:
        place: int | None = step.arguments["at"]
        return self._machine.next_room(step.arguments["size"]) if place is None else place

    # -- device memory

    def _memremap(self, step: Step) -> str:
        name, node, start, size, private = (step.arguments[key] for key in ("name", "node", "at", "size", "private"))
        self._unused(step, name)
        made = self._machine.device_memory.memremap_pages(node, start, size, private=private)
        self._keep(name, made)
        return str(made)

    def _memunmap(self, step: Step) -> None:
        name = step.arguments["name"]
        self._machine.device_memory.memunmap_pages(self._named(step, name, PageMap, "device memory that a step has mapped"))
        del self._things[name]

    # -- participants

    def _join(self, step: Step) -> None:
        names = step.arguments["names"]
        for name in parts.default_names(self._machine) if names is None else names:
            self._unused(step, name)
        self._things |= parts.join(self._machine, names)

    def _participant(self, step: Step) -> parts.Participant:
        return self._named(step, step.arguments["name"], parts.Participant, "a participant that has joined")

    def _leave(self, step: Step) -> None:
        self._participant(step).leave()
        del self._things[step.arguments["name"]]

    def _tune(self, step: Step) -> None:
        setattr(self._participant(step), step.arguments["key"], step.arguments["value"])

    def _work(self, step: Step) -> None:
        self._named(step, step.arguments["name"], parts.Cpuset, "a participant that has joined").work()

    # -- their states

    def _show(self, step: Step) -> str:
        name = step.arguments["name"]
        if name not in self._things:
            raise self._selector.unknown(step, name, "the name of something that is attached")
        found = self._things[name]
        state = _STATES.get(type(found), lambda _: {})(found)
        return "; ".join(f"{name} {_text(value)}" for name, value in state.items())


def _known(step: Step) -> list[int]:
    # The numbers of the LMBs, or of the increments, that the hypervisor can refuse.
    given = step.arguments
    if given["driver"] == "dlpar":
        return sorted(index for one in given["lmbs"] for index in range(one["index"], one["index"] + one["count"]))
    if given["driver"] == "standby":
        return list(range(given["at"] // given["increment"], (given["at"] + given["size"]) // given["increment"]))
    return []


def _few(numbers: list[int]) -> str:
    shown = format_ids(numbers)
    return shown if len(shown) <= _SHOWN else f"from {numbers[0]} to {numbers[-1]}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int):
        return str(value)
    return format_ids(value) or "none" if isinstance(value, set) else ", ".join(map(str, value)) or "none"  # type: ignore[call-overload]


def _lmbs(driver: Dlpar) -> Mapping[str, object]:
    assigned = [f"{lmb.drc_index:#x}" for lmb in driver.lmbs if lmb.assigned]
    return {"assigned": assigned, "hints": [f"{index:#x}" for index in driver.hints], "updates": driver.device_tree_updates}


_STATES: dict[type, Callable[[Any], Mapping[str, object]]] = {
    DaxKmem: lambda device: {
        "claims": [format_mem(addr_to_pfn(PhysAddr(claim.start)), claim.size >> 12) for claim in device.claims],
        "leaked": device.leaked,
    },
    Dlpar: _lmbs,
    SclpMemory: lambda memory: {"standby": memory.standby},
    HyperVBalloon: lambda balloon: {"can add": balloon.can_add, "waiting": balloon.waiting},
    XenBalloon: lambda balloon: {"ballooned": sum(one.nr_pages for one in balloon.ballooned), "woken": balloon.woken},
    PageMap: lambda made: {"node": made.nid, "place": str(made), "private": made.private},
    parts.Ksm: lambda ksm: {"paused": ksm.paused, "pruned": len(ksm.pruned)},
    parts.MemoryTiers: lambda tiers: {"nodes": tiers.nodes, "slow": tiers.slow},
    parts.Cpuset: lambda cpuset: {"mems": cpuset.mems, "updates": cpuset.updates, "queued": cpuset.queued},
    parts.ComputeBatch: lambda counter: {"batch": counter.batch},
    parts.Slab: lambda slab: {"nodes": slab.nodes, "structures": slab.structures, "shrinks": slab.shrinks},
    parts.Crash: lambda crash: {"updates": crash.updates},
    parts.ReserveMem: lambda reserve: {f"{name} KiB": size for name, size in reserve.kbytes.items()},
    parts.Kcore: lambda kcore: {"needs update": kcore.needs_update},
    parts.PageExt: lambda ext: {"tables": ext.tables},
    parts.Cmm: lambda cmm: {"resting": cmm.lock.owner is not None},
}
"""What there is to say of each; arm64 has nothing."""
