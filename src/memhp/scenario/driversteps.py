"""Steps of drivers, of device memory and of the kernel's own participants, decoded; :mod:`.attach` carries them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memhp.kernel.participants import PARTICIPANTS
from memhp.scenario import words
from memhp.scenario.reader import Value
from memhp.scenario.words import Decoded
from memhp.units import format_size, parse_ids, parse_size

__all__ = ["DRIVER_STEPS"]

Fields = dict[str, Value]

_U32 = 1 << 32
_MOST = 1 << 20
"""LMBs, or increments, of one partition."""


@dataclass(frozen=True, slots=True)
class _Driver:
    # The keys of a driver beside `driver` and `name`, those that it must have, and who reads them.
    keys: tuple[str, ...]
    required: tuple[str, ...]
    read: Callable[[Value, Fields], dict[str, Any]]


def _bind(value: Value) -> Decoded:
    kind = next((given for key, given in value.items() if key.text() == "driver"), None)
    if kind is None:
        value.fail("a mapping with the key driver")
    driver = _DRIVERS[kind.choice(tuple(_DRIVERS))]
    fields = value.fields(("driver", "name", *driver.keys), driver.required)
    name = words.alias(fields["name"]) if "name" in fields else kind.text()
    shown = f"bind {kind.text()}" if name == kind.text() else f"bind {kind.text()} as {name}"
    return {"driver": kind.text(), "name": name, **driver.read(value, fields)}, shown


def _node(fields: Fields) -> int:
    return fields["node"].number() if "node" in fields else 0


def _positive(value: Value) -> int:
    size = value.parsed(parse_size)
    if not size:
        value.fail("a size above 0")
    return size


def _kmem(value: Value, fields: Fields) -> dict[str, Any]:
    ranges = [one.fields(("at", "size"), ("at", "size")) for one in fields["ranges"].elements()]
    if not ranges:
        fields["ranges"].fail("at least one range, such as [{at: 4GiB, size: 1GiB}]")
    return {
        "node": _node(fields),
        "ranges": tuple((one["at"].parsed(parse_size), _positive(one["size"])) for one in ranges),
        "device": fields["device"].text() if "device" in fields else "dax0.0",
        "memmap_on_memory": fields["memmap_on_memory"].boolean() if "memmap_on_memory" in fields else False,
    }


def _dlpar(value: Value, fields: Fields) -> dict[str, Any]:
    lmbs: list[dict[str, Any]] = []
    seen: set[int] = set()
    for one in fields["lmbs"].elements():
        given = one.fields(("index", "at", "node", "count", "reserved"), ("index", "at"))
        count = given["count"].number() if "count" in given else 1
        if not 0 < count <= _MOST:
            given["count"].fail(f"a number from 1 to {_MOST}")
        index = words.count(given["index"])
        indices = range(index, index + count)
        if indices[-1] >= _U32 or not seen.isdisjoint(indices):
            given["index"].fail("an index below 2^32, that no other LMB has")
        seen.update(indices)
        reserved = given["reserved"].boolean() if "reserved" in given else False
        place = given["at"].parsed(parse_size)
        lmbs.append({"index": index, "at": place, "node": _node(given), "count": count, "reserved": reserved})
    return {"lmbs": tuple(lmbs), "refuses": _refuses(fields)}


def _standby(value: Value, fields: Fields) -> dict[str, Any]:
    place, size, increment = fields["at"].parsed(parse_size), _positive(fields["size"]), _positive(fields["increment"])
    if increment & (increment - 1):
        fields["increment"].fail("a power of two")
    for name, number in (("at", place), ("size", size)):
        if number % increment:
            fields[name].fail(f"a multiple of the increment, {format_size(increment)}")
    if size // increment > _MOST:
        fields["increment"].fail(f"at most {_MOST} increments")
    edat1 = fields["edat1"].boolean() if "edat1" in fields else True
    return {"at": place, "size": size, "increment": increment, "edat1": edat1, "refuses": _refuses(fields)}


def _refuses(fields: Fields) -> frozenset[int]:
    value = fields.get("refuses")
    if value is None:
        return frozenset()
    return frozenset(words.count(one) for one in value.elements()) if value.is_list else frozenset(value.parsed(parse_ids))


def _nothing(value: Value, fields: Fields) -> dict[str, Any]:
    return {}


_DRIVERS = {
    "kmem": _Driver(("node", "ranges", "device", "memmap_on_memory"), ("ranges",), _kmem),
    "dlpar": _Driver(("lmbs", "refuses"), ("lmbs",), _dlpar),
    "standby": _Driver(("at", "size", "increment", "edat1", "refuses"), ("at", "size", "increment"), _standby),
    "hyperv": _Driver((), (), _nothing),
    "xen": _Driver((), (), _nothing),
}


def _hypervisor(value: Value) -> Decoded:
    fields = value.fields(("driver", "refuses"), ("driver", "refuses"))
    return {"driver": words.name(fields["driver"]), "refuses": _refuses(fields)}, f"the hypervisor refuses {_listed(fields)}"


def _listed(fields: Fields) -> str:
    value = fields["refuses"]
    return (", ".join(one.text() for one in value.elements()) if value.is_list else value.text()) or "nothing"


def _hot_add(value: Value) -> Decoded:
    fields = value.fields(("driver", "node", "at", "size", "backed"), ("size",))
    size = _positive(fields["size"])
    backed = fields["backed"].parsed(parse_size) if "backed" in fields else size
    if backed > size:
        fields["backed"].fail(f"at most the size, {format_size(size)}")
    arguments = {**_region(fields, size, "hyperv"), "backed": backed}
    return arguments, f"hot-add {format_size(size)} to node {arguments['node']}, of which {format_size(backed)} are backed"


def _reserve_additional(value: Value) -> Decoded:
    fields = value.fields(("driver", "node", "at", "size"), ("size",))
    arguments = _region(fields, _positive(fields["size"]), "xen")
    return arguments, f"reserve {format_size(arguments['size'])} more on node {arguments['node']}"


def _region(fields: Fields, size: int, driver: str) -> dict[str, Any]:
    return {
        "driver": words.name(fields["driver"]) if "driver" in fields else driver,
        "node": _node(fields),
        "at": fields["at"].parsed(parse_size) if "at" in fields else None,
        "size": size,
    }


def _memremap(value: Value) -> Decoded:
    fields = value.fields(("name", "node", "at", "size", "private"), ("name", "at", "size"))
    name, place, size = words.name(fields["name"]), fields["at"].parsed(parse_size), _positive(fields["size"])
    private = fields["private"].boolean() if "private" in fields else False
    arguments = {"name": name, "node": _node(fields), "at": place, "size": size, "private": private}
    return arguments, f"map {format_size(size)} of {name} into ZONE_DEVICE of node {arguments['node']}"


def _join(value: Value) -> Decoded:
    if not value.is_list and value.text() == "all":
        return {"names": None}, "all of the kernel's own callbacks join"
    given = list(value.elements()) if value.is_list else [value]
    names = tuple(one.choice(tuple(PARTICIPANTS)) for one in given)
    if not names or len(set(names)) < len(names):
        value.fail("all, or some participants, each once")
    return {"names": names}, f"{', '.join(names)} join{'s' if len(names) == 1 else ''}"


def _leave(value: Value) -> Decoded:
    return {"name": value.choice(tuple(PARTICIPANTS))}, f"{value.text()} leaves"


_TUNED: dict[str, tuple[str, Callable[[Value], object]]] = {
    "slab": ("out_of_memory", Value.boolean),
    "page_ext": ("out_of_memory", Value.boolean),
    "memory-tiers": ("slow", lambda value: set(value.parsed(parse_ids))),
}
"""What can be set of a participant."""


def _tune(value: Value) -> Decoded:
    fields = value.fields(("participant", *dict.fromkeys(key for key, _ in _TUNED.values())), ("participant",))
    name = fields["participant"].choice(tuple(_TUNED))
    key, read = _TUNED[name]
    if set(fields) != {"participant", key}:
        value.fail(f"participant and {key}, which is what {name} has")
    return {"name": name, "key": key, "value": read(fields[key])}, f"{key} of {name} becomes {fields[key].text()}"


def _work(value: Value) -> Decoded:
    return {"name": value.choice(("cpuset",))}, f"the worker of {value.text()} runs"


def _named(shown: str) -> Callable[[Value], Decoded]:
    return lambda value: ({"name": words.name(value)}, f"{shown} {value.text()}")


DRIVER_STEPS: dict[str, Callable[[Value], Decoded]] = {
    "bind": _bind,
    "unbind": _named("unbind"),
    "hypervisor": _hypervisor,
    "hot_add": _hot_add,
    "reserve_additional": _reserve_additional,
    "memremap": _memremap,
    "memunmap": _named("unmap"),
    "join": _join,
    "leave": _leave,
    "tune": _tune,
    "work": _work,
    "show": _named("show"),
}
"""How each of the steps is read."""
