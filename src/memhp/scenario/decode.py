"""From a YAML file to a :class:`~memhp.scenario.model.Scenario`; whatever is wrong is said with file and line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memhp.events import MemoryAction
from memhp.kernel import Machine, MhpFlags, OnlineType, PageKind, Rules
from memhp.kernel.iomem import SYSTEM_RAM
from memhp.notifier import NOTIFY_OK
from memhp.scenario import words
from memhp.scenario.devices import STEPS as DEVICE_STEPS
from memhp.scenario.devices import decode_virtio_mem
from memhp.scenario.driversteps import DRIVER_STEPS
from memhp.scenario.expectations import expectations, expectations_of_nothing
from memhp.scenario.model import (
    Allocate,
    CallbackSpec,
    Expectations,
    MachineSpec,
    Reaction,
    Scenario,
    Step,
    parse_answer,
)
from memhp.scenario.reader import Value, read_yaml
from memhp.scenario.words import Decoded
from memhp.scenario.workloads import WORKLOADS
from memhp.units import PAGE_SIZE, format_size, parse_size

__all__ = ["FIELDS", "load", "scenario_of"]

FIELDS = ("title", "about", "machine", "callbacks", "steps", "expect")
"""The keys of a scenario."""

_FLAGS = {str(flag.name).lower(): flag for flag in MhpFlags if flag is not MhpFlags.NID_IS_MGID}
_RULES = {rules.text: rules for rules in Rules}
_ACTIONS = tuple(action.name for action in MemoryAction)
_DESCRIPTION = (
    "nodes",
    "block_size",
    "room",
    "slots",
    "parameters",
    "hypervisor",
    "physical_bits",
    "five_level_paging",
    "acpi_tables",
    "soft_reserved",
    "memory_probe",
)
_MACHINE = (*_DESCRIPTION, "virtio_mem", "rules", "device_hotplug_lock", "from", "otherwise")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|us)")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_LONGEST = 3600
_MODULES = ("notifier-error-inject", "memory-notifier-error-inject")


def load(path: str | os.PathLike[str]) -> Scenario:
    """Read a scenario file.

    Raises:
        ScenarioError: the first thing that is wrong in it, with file, line, and what was expected there.
    """
    return scenario_of(read_yaml(Path(path)).fields(FIELDS, ("machine", "steps")), Path(path))


def scenario_of(top: dict[str, Value], file: Path) -> Scenario:
    """Decode the keys of a document that stand for a scenario; raises as :func:`load`."""
    callbacks = _callbacks(top["callbacks"]) if "callbacks" in top else ()
    names = {callback.name for callback in callbacks}
    return Scenario(
        file=file,
        title=top["title"].text() if "title" in top else file.stem,
        about=top["about"].text().strip() if "about" in top else "",
        machine=_machine(top["machine"]),
        callbacks=callbacks,
        steps=_steps(top["steps"], names),
        expect=expectations_of_nothing(top["expect"], "at the top level, which is no step") if "expect" in top else None,
    )


# -- the machine


def _machine(value: Value) -> MachineSpec:
    fields = value.fields(_MACHINE)
    rules = _RULES[fields["rules"].choice(tuple(_RULES))] if "rules" in fields else Rules.DOCUMENTED
    lock = fields["device_hotplug_lock"].boolean() if "device_hotplug_lock" in fields else True
    source = fields["from"].text() if "from" in fields else ""
    described = {name: given for name, given in fields.items() if name in _DESCRIPTION}
    if source and described:
        next(iter(described.values())).fail("either a description or `from`; put the description under `otherwise`")
    if "otherwise" in fields:
        if not source:
            fields["otherwise"].fail("`otherwise` only beside `from`")
        described = fields["otherwise"].fields(_DESCRIPTION, ("nodes",))
    elif not source and "nodes" not in fields:
        value.fail("a machine: `nodes`, or `from: host`, or `from: DIRECTORY`")
    if "\0" in source:
        fields["from"].fail("host, or a directory")
    if "nodes" in described and described["nodes"].is_mapping:
        described["nodes"].fail("a list of nodes, such as [4GiB, {memory: 1GiB, cpus: 2}]")
    if "hypervisor" in described:
        described["hypervisor"].boolean()
    description = {name: given.plain() for name, given in described.items()}
    _check_description(value, described, description, rules)
    virtio = fields.get("virtio_mem")
    return MachineSpec(
        description,
        source,
        rules,
        lock,
        () if virtio is None else decode_virtio_mem(virtio, description),
        source_line=fields["from"].line if source else 0,
        parameters_line=described["parameters"].line if "parameters" in described else 0,
        virtio_line=0 if virtio is None else virtio.line,
    )


def _check_description(value: Value, given: dict[str, Value], description: dict[str, Any], rules: Rules) -> None:
    # Boot once now, so that a wrong machine is an error of the file, with its line.
    if not description:
        return
    where = given.get("nodes", value)
    for name in ("block_size", "room", "slots", "parameters", "acpi_tables", "nodes", "soft_reserved"):
        if name in given:
            where = given[name]
            part = {key: description[key] for key in description if key in {"nodes", "physical_bits", "five_level_paging", name}}
            where.checked(lambda part=part: Machine.boot(**part, rules=rules))  # type: ignore[misc]
    where.checked(lambda: Machine.boot(**description, rules=rules))


# -- callbacks


def _callbacks(value: Value) -> tuple[CallbackSpec, ...]:
    return tuple(_callback(key, given) for key, given in value.items())


def _callback(key: Value, value: Value) -> CallbackSpec:
    name = words.name(key)
    fields = value.fields(("priority", "registered", "call", *_ACTIONS))
    reactions = {MemoryAction[action]: _reaction(name, fields[action]) for action in _ACTIONS if action in fields}
    call = fields["call"].text() if "call" in fields else ""
    if call and (reactions or not re.fullmatch(r"[\w.]+:\w+", call)):
        fields["call"].fail("module:function, and then no actions beside it")
    priority = fields["priority"].number() if "priority" in fields else 0
    if not -(2**31) <= priority < 2**31:
        fields["priority"].fail("a whole number from -2147483648 to 2147483647")
    registered = fields["registered"].boolean() if "registered" in fields else True
    return CallbackSpec(name, key.line, priority, registered, reactions, call)


def _reaction(callback: str, value: Value) -> Reaction:
    if not value.is_mapping:
        return Reaction(answer=_answer(value))
    fields = value.fields(("answer", "raise", "delay", "free", "allocate", "times"))
    free = fields.get("free")
    names = () if free is None else tuple(words.name(v) for v in free.elements()) if free.is_list else (words.name(free),)
    return Reaction(
        answer=_answer(fields["answer"]) if "answer" in fields else NOTIFY_OK,
        raises=fields["raise"].text() if "raise" in fields else "",
        delay=_duration(fields["delay"]) if "delay" in fields else 0.0,
        free=names,
        allocate=_allocate(fields["allocate"], callback, in_range=True) if "allocate" in fields else None,
        times=_times(fields["times"]) if "times" in fields else 0,
    )


def _times(value: Value) -> int:
    times = value.number()
    if times < 1:
        value.fail("a whole number, at least 1")
    return times


def _answer(value: Value) -> Any:
    answer = parse_answer(value.text())
    if answer is None:
        value.fail("an answer: DONE, OK, STOP, BAD, or an errno such as ENOMEM")
    return answer


def _duration(value: Value) -> float:
    match = _DURATION.fullmatch(value.text())
    if not match:
        value.fail("a duration such as 5ms or 0.5s")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST:
        value.fail(f"a duration of at most {_LONGEST} s")
    return seconds


def _allocate(value: Value, owner: str, *, in_range: bool = False) -> Allocate:
    # A callback allocates from the blocks that it is told of, so there is no place to name.
    place = () if in_range else ("node", "blocks")
    fields = value.fields(("name", "size", "pages", "kind", "owner", "pinned", *place), ("name",))
    if ("size" in fields) == ("pages" in fields):
        value.fail("either size or pages")
    nr_pages = fields["pages"].number() if "pages" in fields else fields["size"].parsed(parse_size) // PAGE_SIZE
    if nr_pages < 1:
        fields.get("pages", fields.get("size", value)).fail("at least one page (4 KiB)")
    kinds = tuple(kind.value for kind in PageKind if kind is not PageKind.POISONED)
    return Allocate(
        name=words.name(fields["name"]),
        nr_pages=nr_pages,
        kind=PageKind(fields["kind"].choice(kinds)) if "kind" in fields else PageKind.MOVABLE,
        owner=fields["owner"].text() if "owner" in fields else owner,
        node=fields["node"].number() if "node" in fields else None,
        blocks=words.selection(fields["blocks"]) if "blocks" in fields else None,
        pinned=fields["pinned"].boolean() if "pinned" in fields else False,
    )


# -- steps


def _steps(value: Value, callbacks: set[str]) -> tuple[Step, ...]:
    # Notes say something and do nothing, so they have no number.
    steps: list[Step] = []
    for element in value.elements():
        number = sum(step.verb != "note" for step in steps) + 1
        steps.append(_step(number, element, callbacks))
    return tuple(steps)


def _step(number: int, value: Value, callbacks: set[str]) -> Step:
    verbs = tuple(_STEPS)
    found = [(key, given) for key, given in value.items() if key.text() in verbs]
    _check_keys(value, verbs)
    if not found:
        value.fail(f"a verb; there is none. It is one of {', '.join(verbs)}")
    if len(found) > 1:
        found[1][0].fail(f"one verb; here are {len(found)}: {', '.join(key.text() for key, _ in found)}")
    key, given = found[0]
    extra = {k.text(): v for k, v in value.items()}
    if key.text() == "note" and ("thread" in extra or "as" in extra):
        value.fail("nothing but expect beside a note")
    arguments, shown = _STEPS[key.text()](given)
    if key.text() in {"register", "unregister"} and arguments["name"] not in callbacks:
        given.fail(f"the name of a callback: {', '.join(sorted(callbacks)) or 'there is none'}")
    return Step(
        number=number,
        line=value.line,
        verb=key.text(),
        arguments=arguments,
        thread=_thread(extra["thread"]) if "thread" in extra else "",
        shown=shown,
        alias=words.alias(extra["as"]) if "as" in extra else "",
        expect=None if "expect" not in extra else _expectations(key.text(), extra["expect"]),
    )


def _check_keys(step: Value, verbs: tuple[str, ...]) -> None:
    known = (*verbs, "thread", "expect", "as")
    for key in (key for key, _ in step.items()):
        if key.text() not in known:
            close = difflib.get_close_matches(key.text(), known, 1)
            key.fail(f"{f'{close[0]} (did you mean that?), or another' if close else 'one'} of the keys {', '.join(known)}")


def _expectations(verb: str, value: Value) -> Expectations:
    return expectations_of_nothing(value, "of a note, which does nothing") if verb == "note" else expectations(value)


def _thread(value: Value) -> str:
    if value.text() == "main":
        value.fail("another name; main is the thread of the steps that name none")
    return words.name(value)


_ADDED = ("size", "node", "at", "name", "flags", "group")


def _add(value: Value) -> Decoded:
    return _memory_to_add(value.fields(_ADDED, ("size",)), "add")


def _add_driver_managed(value: Value) -> Decoded:
    fields = value.fields(_ADDED, ("size", "name"))
    return _memory_to_add(fields, f"add driver-managed {fields['name'].text()!r},")


def _memory_to_add(fields: dict[str, Value], shown: str) -> Decoded:
    size = fields["size"].parsed(parse_size)
    if "group" in fields and "node" in fields:
        fields["node"].fail("either a node or a group, whose node it is")
    group = words.name(fields["group"]) if "group" in fields else ""
    node = fields["node"].number() if "node" in fields else 0
    arguments = {
        "size": size,
        "node": node,
        "at": fields["at"].parsed(parse_size) if "at" in fields else None,
        "name": fields["name"].text() if "name" in fields else SYSTEM_RAM,
        "flags": _flags(fields["flags"]) if "flags" in fields else MhpFlags.NONE,
        "group": group,
    }
    return arguments, f"{shown} {format_size(size)} to {f'group {group}' if group else f'node {node}'}"


def _flags(value: Value) -> MhpFlags:
    flags = MhpFlags.NONE
    for given in value.elements() if value.is_list else [value]:
        flags |= _FLAGS[given.choice(tuple(_FLAGS))]
    return flags


def _group(value: Value) -> Decoded:
    fields = value.fields(("name", "node", "size", "unit"), ("name",))
    if ("size" in fields) == ("unit" in fields):
        value.fail("either size, the most that it can have, or unit, in which it grows")
    name, node = words.name(fields["name"]), fields["node"].number() if "node" in fields else 0
    size = fields["size"].parsed(parse_size) if "size" in fields else 0
    unit = fields["unit"].parsed(parse_size) if "unit" in fields else 0
    kind = f"static group of {format_size(size)}" if size else f"dynamic group in units of {format_size(unit)}"
    return {"name": name, "node": node, "size": size, "unit": unit}, f"make {name}, a {kind} on node {node}"


def _plug(value: Value) -> Decoded:
    fields = value.fields(("name", "size", "node", "at"), ("name", "size"))
    name = words.alias(fields["name"])
    size = fields["size"].parsed(parse_size)
    node = fields["node"].number() if "node" in fields else 0
    at = fields["at"].parsed(parse_size) if "at" in fields else None
    return {"name": name, "size": size, "node": node, "at": at}, f"plug {name}, {format_size(size)} on node {node}"


def _load(value: Value) -> Decoded:
    fields = value.fields(("module", "priority"), ("module",)) if value.is_mapping else {"module": value}
    given = {name: text.text() for name, text in fields.items() if name != "module"}
    shown = "".join(f" {name}={text}" for name, text in given.items())
    module = fields["module"].choice(_MODULES)
    return {"module": module, "parameters": given}, f"load {module}{shown}"


def _unload(value: Value) -> Decoded:
    return {"module": value.choice(_MODULES)}, f"unload {value.text()}"


def _blocks_only(verb: str) -> Callable[[Value], Decoded]:
    def decode(value: Value) -> Decoded:
        return {"blocks": words.selection(value)}, f"{verb} {words.show(value)}"

    return decode


def _online(value: Value) -> Decoded:
    if value.is_mapping:
        known = ("online", "online_kernel", "online_movable")
        kind = next((given for key, given in value.items() if key.text() == "type"), None)
        word = kind.choice(known) if kind is not None else "online"
        return {"blocks": words.selection(value, ("type",)), "type": OnlineType(word)}, f"{word} {words.show(value)}"
    return {"blocks": words.selection(value), "type": OnlineType.ONLINE}, f"online {words.show(value)}"


def _write(value: Value) -> Decoded:
    fields = value.fields(("file", "text"), ("file", "text"))
    file, text = fields["file"].text(), fields["text"].text()
    return {"file": file, "text": text}, f"write {text!r} to {file}"


def _read(value: Value) -> Decoded:
    file = value.fields(("file",), ("file",))["file"].text() if value.is_mapping else value.text()
    return {"file": file}, f"read {file}"


def _allocate_step(value: Value) -> Decoded:
    wanted = _allocate(value, "")
    return {"wanted": wanted}, f"allocate {wanted.nr_pages} {wanted.kind.value} pages as {wanted.name}"


def _fill(value: Value) -> Decoded:
    fields = value.fields(("workload", "share", "seed", "age"), ("workload",)) if value.is_mapping else {"workload": value}
    arguments = {
        "workload": fields["workload"].choice(tuple(WORKLOADS)),
        "share": words.share(fields["share"]) if "share" in fields else 0.6,
        "seed": words.count(fields["seed"]) if "seed" in fields else 1,
        "age": words.rounds(fields["age"]) if "age" in fields else 0,
    }
    return arguments, f"fill {arguments['share']:.0%} with {arguments['workload']}"


def _named(verb: str) -> Callable[[Value], Decoded]:
    def decode(value: Value) -> Decoded:
        return {"name": words.name(value)}, f"{verb} {value.text()}"

    return decode


def _note(value: Value) -> Decoded:
    return {}, value.text()


_STEPS: dict[str, Callable[[Value], Decoded]] = {
    "plug": _plug,
    "unplug": _named("unplug"),
    "add": _add,
    "add_driver_managed": _add_driver_managed,
    "group": _group,
    "ungroup": _named("ungroup"),
    "remove": _blocks_only("remove"),
    "offline_and_remove": _blocks_only("offline_and_remove"),
    "online": _online,
    "offline": _blocks_only("offline"),
    "write": _write,
    "read": _read,
    "allocate": _allocate_step,
    "fill": _fill,
    "free": _named("free"),
    "pin": _named("pin"),
    "unpin": _named("unpin"),
    "register": _named("register"),
    "unregister": _named("unregister"),
    "load": _load,
    "unload": _unload,
    "signal": _named("signal"),
    **DEVICE_STEPS,
    "note": _note,
    **DRIVER_STEPS,
}
