"""Scenario files: what each construct means, and what a wrong one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memhp import (
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    NOTIFY_BAD,
    NOTIFY_DONE,
    NOTIFY_OK,
    NOTIFY_STOP,
    MhpFlags,
    OnlineType,
    PageKind,
    Rules,
    ScenarioError,
    notifier_from_errno,
)
from memhp.scenario import Scenario, load
from memhp.scenario.model import Allocate, Expectations, MachineSpec, Reaction, Selection, Step
from playing import MACHINE

EMPTY = "steps: []\n"


def decode(directory: Path, text: str) -> Scenario:
    path = directory / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def step(directory: Path, text: str) -> Step:
    """Decode one step; it stands in line 3."""
    (only,) = decode(directory, f"{MACHINE}steps:\n  - {text}\n").steps
    return only


def refused(directory: Path, text: str) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        decode(directory, text)
    return caught.value


# -- good files


def test_the_least_scenario_is_a_machine_and_no_steps(tmp_path: Path) -> None:
    """Title and everything else may be left out; the title is the file's name then."""
    assert decode(tmp_path, MACHINE + EMPTY) == Scenario(
        file=tmp_path / "s.yaml",
        title="s",
        about="",
        machine=MachineSpec({"nodes": ["1GiB"]}, "", Rules.DOCUMENTED, device_hotplug_lock=True),
        callbacks=(),
        steps=(),
        expect=None,
    )


def test_a_machine_is_described_with_all_that_boot_takes(tmp_path: Path) -> None:
    """Nodes are sizes or mappings; the other keys have the names of ``Machine.boot``."""
    scenario = decode(
        tmp_path,
        """
title: All of it
about: |
  Two
  lines.
machine:
  nodes: [2GiB, {memory: 2GiB, cpus: 2, distances: [21, 10, 30]}, 0]
  block_size: 256MiB
  room: 8GiB
  parameters: {memhp_default_state: online_movable, movable_node: true, memory_hotplug.online_policy: auto-movable}
  hypervisor: false
  rules: 6.12
  device_hotplug_lock: false
steps: []
""",
    )
    assert (scenario.title, scenario.about) == ("All of it", "Two\nlines.")
    assert scenario.machine == MachineSpec(
        {
            "nodes": ["2GiB", {"memory": "2GiB", "cpus": 2, "distances": [21, 10, 30]}, 0],
            "block_size": "256MiB",
            "room": "8GiB",
            "parameters": {
                "memhp_default_state": "online_movable",
                "movable_node": True,
                "memory_hotplug.online_policy": "auto-movable",
            },
            "hypervisor": False,
        },
        "",
        Rules.LINUX_6_12,
        device_hotplug_lock=False,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{from: host}", MachineSpec({}, "host")),
        ("{from: dumps/box}", MachineSpec({}, "dumps/box")),
        ("{from: host, otherwise: {nodes: [4GiB]}}", MachineSpec({"nodes": ["4GiB"]}, "host")),
        ("{nodes: 1GiB, rules: documented}", MachineSpec({"nodes": "1GiB"})),
        ('{nodes: [1GiB], rules: "6.1"}', MachineSpec({"nodes": ["1GiB"]}, "", Rules.LINUX_6_1)),
        ("{nodes: [1GiB], parameters: memhp_default_state=online quiet}", None),
    ],
)
def test_a_machine_comes_from_a_description_or_from_files(tmp_path: Path, text: str, expected: MachineSpec | None) -> None:
    """``from`` names a tree, ``otherwise`` what to boot where that has no memory blocks."""
    machine = decode(tmp_path, f"machine: {text}\n{EMPTY}").machine
    if expected is not None:
        assert machine == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DONE", Reaction(NOTIFY_DONE)),
        ("OK", Reaction(NOTIFY_OK)),
        ("STOP", Reaction(NOTIFY_STOP)),
        ("NOTIFY_BAD", Reaction(NOTIFY_BAD)),
        ("ENOMEM", Reaction(notifier_from_errno(-12))),
        ("EOPNOTSUPP", Reaction(notifier_from_errno(-95))),
        ("EHWPOISON", Reaction(notifier_from_errno(-133))),
        ("{}", Reaction(NOTIFY_OK)),
        ("{answer: BAD, times: 2}", Reaction(NOTIFY_BAD, times=2)),
        ("{raise: oh no}", Reaction(raises="oh no")),
        ("{delay: 5ms}", Reaction(delay=0.005)),
        ("{delay: 0.5s}", Reaction(delay=0.5)),
        ("{delay: 250us}", Reaction(delay=0.00025)),
        ("{free: cache}", Reaction(free=("cache",))),
        ("{free: [cache, log]}", Reaction(free=("cache", "log"))),
        (
            "{allocate: {name: x, size: 64MiB, pinned: true}}",
            Reaction(allocate=Allocate("x", 16384, PageKind.MOVABLE, "a", pinned=True)),
        ),
    ],
)
def test_a_callback_says_per_action_what_it_does_and_answers(tmp_path: Path, text: str, expected: Reaction) -> None:
    """A reaction is an answer, or a mapping of what happens before it."""
    (callback,) = decode(tmp_path, f"{MACHINE}{EMPTY}callbacks:\n  a:\n    MEM_ONLINE: {text}\n").callbacks
    assert callback.reactions == {MEM_ONLINE: expected}


def test_callbacks_have_priorities_and_need_not_be_registered(tmp_path: Path) -> None:
    """Callbacks keep the order of the file; priority 0, registered and OK are what is meant when nothing is said."""
    plain, full, python = decode(
        tmp_path,
        f"""{MACHINE}{EMPTY}
callbacks:
  plain: {{}}
  full: {{priority: -5, registered: false, MEM_GOING_ONLINE: BAD, MEM_GOING_OFFLINE: STOP, MEM_OFFLINE: DONE}}
  python: {{priority: 0x10, call: "package.module:function"}}
""",
    ).callbacks
    assert (plain.name, plain.priority, plain.registered, plain.reactions, plain.call) == ("plain", 0, True, {}, "")
    assert (full.priority, full.registered) == (-5, False)
    assert full.reactions == {
        MEM_GOING_ONLINE: Reaction(NOTIFY_BAD),
        MEM_GOING_OFFLINE: Reaction(NOTIFY_STOP),
        MEM_OFFLINE: Reaction(NOTIFY_DONE),
    }
    assert (python.priority, python.call) == (16, "package.module:function")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("32", Selection(ids=(32,))),
        ("32-34,40", Selection(ids=(32, 33, 34, 40))),
        ("first", Selection(place="first", count=1)),
        ("last 3", Selection(place="last", count=3)),
        ("new", Selection(name="new")),
        ("{blocks: 32}", Selection(ids=(32,))),
        ("{blocks: last 2, among: new, node: 1}", Selection(place="last", count=2, among="new", node=1)),
        ("{size: 4GiB}", Selection(size=4 << 30)),
        ("{size: 256MiB, node: 1}", Selection(size=256 << 20, node=1)),
        ("{size: 256MiB, among: new}", Selection(size=256 << 20, among="new")),
        ("{node: 1}", Selection(node=1)),
        ("{among: new}", Selection(among="new")),
    ],
)
def test_blocks_are_meant_by_number_name_size_place_or_node(tmp_path: Path, text: str, expected: Selection) -> None:
    """The same words select blocks in remove, online and offline."""
    for verb in ("remove", "online", "offline"):
        assert step(tmp_path, f"{verb}: {text}").arguments["blocks"] == expected


PLAIN_ADD = {"size": 256 << 20, "node": 0, "at": None, "name": "System RAM", "flags": MhpFlags.NONE, "group": ""}


@pytest.mark.parametrize(
    ("text", "arguments", "shown"),
    [
        ("add: {size: 256MiB}", PLAIN_ADD, "add 256 MiB to node 0"),
        (
            "add: {size: 1G, node: 1, at: 0x200000000}",
            {**PLAIN_ADD, "size": 1 << 30, "node": 1, "at": 8 << 30},
            "add 1 GiB to node 1",
        ),
        (
            "add: {size: 256MiB, group: dimm, name: System RAM (x), flags: [merge_resource, memmap_on_memory]}",
            {**PLAIN_ADD, "group": "dimm", "name": "System RAM (x)", "flags": MhpFlags(3)},
            "add 256 MiB to group dimm",
        ),
        ("add: {size: 256MiB, flags: offline_inaccessible}", {**PLAIN_ADD, "flags": MhpFlags(8)}, "add 256 MiB to node 0"),
        (
            "group: {name: dimm, node: 1, size: 1GiB}",
            {"name": "dimm", "node": 1, "size": 1 << 30, "unit": 0},
            "make dimm, a static group of 1 GiB on node 1",
        ),
        (
            "group: {name: vm, unit: 256MiB}",
            {"name": "vm", "node": 0, "size": 0, "unit": 256 << 20},
            "make vm, a dynamic group in units of 256 MiB on node 0",
        ),
        ("ungroup: dimm", {"name": "dimm"}, "ungroup dimm"),
        ("remove: 32-33", {"blocks": Selection(ids=(32, 33))}, "remove 32-33"),
        ("online: 32", {"blocks": Selection(ids=(32,)), "type": OnlineType.ONLINE}, "online 32"),
        (
            "online: {blocks: 32, type: online_movable}",
            {"blocks": Selection(ids=(32,)), "type": OnlineType.ONLINE_MOVABLE},
            "online_movable blocks 32",
        ),
        ("offline: {size: 1GiB, node: 0}", {"blocks": Selection(size=1 << 30, node=0)}, "offline size 1GiB, node 0"),
        (
            "write: {file: memory32/state, text: online}",
            {"file": "memory32/state", "text": "online"},
            "write 'online' to memory32/state",
        ),
        ("read: memory32/state", {"file": "memory32/state"}, "read memory32/state"),
        ("read: {file: memory32/state}", {"file": "memory32/state"}, "read memory32/state"),
        (
            "allocate: {name: x, pages: 3, kind: unmovable, owner: me, node: 1, blocks: 32}",
            {"wanted": Allocate("x", 3, PageKind.UNMOVABLE, "me", 1, Selection(ids=(32,)))},
            "allocate 3 unmovable pages as x",
        ),
        ("free: x", {"name": "x"}, "free x"),
        ("pin: x", {"name": "x"}, "pin x"),
        ("unpin: x", {"name": "x"}, "unpin x"),
        ("signal: worker", {"name": "worker"}, "signal worker"),
        ("note: Once upon a time", {}, "Once upon a time"),
    ],
)
def test_a_step_is_one_verb_with_what_it_needs(tmp_path: Path, text: str, arguments: dict[str, Any], shown: str) -> None:
    """A step knows its number, its line, its arguments and itself in words."""
    found = step(tmp_path, text)
    assert (found.number, found.line, found.verb) == (1, 3, text.partition(":")[0])
    assert (found.arguments, found.shown) == (arguments, shown)
    assert (found.thread, found.alias, found.expect) == ("", "", None)


@pytest.mark.parametrize("verb", ["register", "unregister"])
def test_callbacks_are_registered_by_their_names(tmp_path: Path, verb: str) -> None:
    """A step may register or unregister a callback that the file has, also one further down."""
    (only,) = decode(tmp_path, f"{MACHINE}steps:\n- {verb}: a\ncallbacks: {{a: {{}}}}\n").steps
    assert (only.verb, only.arguments) == (verb, {"name": "a"})


def test_a_step_has_a_thread_a_name_and_expectations(tmp_path: Path) -> None:
    """Expectations are a result, or a mapping of everything that can be looked at; blanks in lines don't matter."""
    found = step(
        tmp_path,
        """offline: 32
    thread: worker
    as: block
    expect:
      result: EINTR
      text: going-offline
      trace:
        - "MEM_GOING_OFFLINE(-1,-1)   memory32 a: OK"
      uevents: []
      files: {$block/state: online, /sys/devices/system/node/online: "0"}
      blocks: {32-33: online, block: going-offline, last 2: offline, 40: absent}
      lockdep: 0
""",
    )
    assert (found.thread, found.alias) == ("worker", "block")
    assert found.expect == Expectations(
        line=7,
        result="EINTR",
        text="going-offline",
        trace=("MEM_GOING_OFFLINE(-1,-1) memory32 a: OK",),
        uevents=(),
        files=(("$block/state", "online"), ("/sys/devices/system/node/online", "0")),
        blocks=(
            (Selection(ids=(32, 33)), "online"),
            (Selection(name="block"), "going-offline"),
            (Selection(place="last", count=2), "offline"),
            (Selection(ids=(40,)), "absent"),
        ),
        lockdep=0,
    )


@pytest.mark.parametrize("word", ["ok", "EBUSY", "EDEADLK", "EOPNOTSUPP", "EHWPOISON"])
def test_a_result_alone_is_an_expectation(tmp_path: Path, word: str) -> None:
    """``expect: EBUSY`` is short for ``expect: {result: EBUSY}``; an errno may go by its second name."""
    assert step(tmp_path, f"offline: 32\n    expect: {word}").expect == Expectations(line=4, result=word)


def test_anchors_of_yaml_repeat_what_was_said(tmp_path: Path) -> None:
    """A trace that occurs twice can be written once."""
    first, second = decode(
        tmp_path,
        f"{MACHINE}steps:\n- note: a\n  expect: {{trace: &same [x]}}\n- note: b\n  expect: {{trace: *same}}\n",
    ).steps
    assert first.expect is not None
    assert second.expect is not None
    assert first.expect.trace == second.expect.trace == ("x",)


# -- bad files


def in_machine(text: str) -> str:
    return f"machine: {text}\n{EMPTY}"


def in_callback(text: str) -> str:
    return f"{MACHINE}{EMPTY}callbacks:\n  a: {text}\n"


def in_step(text: str) -> str:
    return f"{MACHINE}steps:\n  - {text}\n"


def in_expect(text: str) -> str:
    return in_step(f"note: x\n    expect: {text}")


BAD = {
    # not YAML, or not one document of a sensible size
    "unclosed bracket": ("machine: [1\nsteps: []\n", 2, "YAML"),
    "tab": ("machine:\n\tnodes: [1GiB]\n", 2, "YAML"),
    "undefined alias": ("machine: *m\n", 1, "undefined alias"),
    "control character": (f"{MACHINE}# \x07\n{EMPTY}", 2, "special characters"),
    "two documents": (f"{MACHINE}{EMPTY}---\na: 1\n", 3, "another document"),
    "empty": ("", 1, "empty"),
    "only a comment": ("# nothing\n", 1, "empty"),
    "an endless anchor": (f"machine: {{nodes: &a [*a]}}\n{EMPTY}", 1, "nested"),
    "a bomb of anchors": (
        "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9) if n else 1}]\n" for n in range(9)),
        1,
        "1,000,000",
    ),
    "nested too deep": (f"machine: {'[' * 900}\n", 1, "nested"),
    "half a surrogate pair": (f'title: "\\ud800"\n{MACHINE}{EMPTY}', 1, "surrogate"),
    # the document
    "a list": ("- machine\n", 1, "mapping"),
    "a word": ("machine\n", 1, "mapping"),
    "unknown key": (f"{MACHINE}{EMPTY}machines: 2\n", 3, "machine, callbacks, steps"),
    "duplicate key": (f"{MACHINE}{EMPTY}{MACHINE}", 3, "once"),
    "no machine": (EMPTY, 1, "machine"),
    "no steps": (MACHINE, 1, "steps"),
    "steps are no list": (f"{MACHINE}steps: 5\n", 2, "list"),
    "a key that is a list": (f"{MACHINE}{EMPTY}? [a]\n: b\n", 3, "single value"),
    # the machine
    "machine: a word": (in_machine("host"), 1, "mapping"),
    "machine: unknown key": (in_machine("{nodes: [1GiB], memory: 1GiB}"), 1, "block_size"),
    "machine: neither nodes nor from": (in_machine("{room: 1GiB}"), 1, "`nodes`"),
    "machine: empty from": (in_machine('{from: ""}'), 1, "`nodes`"),
    "machine: from with a zero byte": (in_machine(r'{from: "a\0b"}'), 1, "directory"),
    "machine: from and nodes": (in_machine("{from: host, nodes: [1GiB]}"), 1, "otherwise"),
    "machine: otherwise alone": (in_machine("{nodes: [1GiB], otherwise: {nodes: [1GiB]}}"), 1, "beside `from`"),
    "machine: otherwise without nodes": (in_machine("{from: host, otherwise: {room: 1GiB}}"), 1, "nodes"),
    "machine: otherwise is wrong": (in_machine("\n  from: host\n  otherwise:\n    nodes: [0]"), 4, "at least one node"),
    "machine: no node": (in_machine("{nodes: []}"), 1, "at least one node"),
    "machine: nodes without memory": (in_machine("{nodes: [0, 0]}"), 1, "memory"),
    "machine: nodes are a mapping": (in_machine("{nodes: {memory: 1GiB}}"), 1, "list of nodes"),
    "machine: node size": (in_machine("\n  rules: documented\n  nodes: [1GiB, lots]"), 3, "a size such as"),
    "machine: decimal unit": (in_machine("{nodes: [1GB]}"), 1, "a size such as"),
    "machine: negative size": (in_machine("{nodes: [-1]}"), 1, "a size such as"),
    "machine: half a page": (in_machine("{nodes: [2048]}"), 1, "page size"),
    "machine: unknown key of a node": (in_machine("{nodes: [{memory: 1GiB, cores: 4}]}"), 1, "cpus"),
    "machine: cpus": (in_machine("{nodes: [{memory: 1GiB, cpus: -1}]}"), 1, "number of CPUs"),
    "machine: distances": (in_machine("{nodes: [{memory: 1GiB, distances: [1]}]}"), 1, "from 10 to 255"),
    "machine: block_size 0": (in_machine("\n  nodes: [1GiB]\n  block_size: 0"), 3, "power of two"),
    "machine: block_size 3": (in_machine("{nodes: [1GiB], block_size: 384MiB}"), 1, "power of two"),
    "machine: block_size too small": (in_machine("{nodes: [1GiB], block_size: 64MiB}"), 1, "128 MiB"),
    "machine: block_size is a list": (in_machine("{nodes: [1GiB], block_size: [1]}"), 1, "a size such as"),
    "machine: room": (in_machine("{nodes: [1GiB], room: enough}"), 1, "a size such as"),
    "machine: unknown parameter": (in_machine("\n  nodes: [1GiB]\n  parameters: {memhp: on}"), 3, "memhp_default_state"),
    "machine: parameter": (in_machine("{nodes: [1GiB], parameters: {memhp_default_state: on}}"), 1, "online_kernel"),
    "machine: policy": (in_machine("{nodes: [1GiB], parameters: {memory_hotplug.online_policy: x}}"), 1, "contig-zones"),
    "machine: hypervisor": (in_machine("{nodes: [1GiB], hypervisor: maybe}"), 1, "true or false"),
    "machine: rules": (in_machine("{nodes: [1GiB], rules: 5.15}"), 1, "documented, 6.1, 6.12"),
    "machine: lock": (in_machine("{nodes: [1GiB], device_hotplug_lock: no}"), 1, "true or false"),
    # callbacks
    "callback: name": (f"{MACHINE}{EMPTY}callbacks:\n  a b: {{}}\n", 4, "a name"),
    "callback: no mapping": (in_callback("BAD"), 4, "mapping"),
    "callback: twice": (f"{MACHINE}{EMPTY}callbacks:\n  a: {{}}\n  a: {{}}\n", 5, "once"),
    "callback: unknown action": (in_callback("{MEM_GONE: OK}"), 4, "MEM_GOING_OFFLINE"),
    "callback: priority": (in_callback("{priority: high}"), 4, "whole number"),
    "callback: fraction of a priority": (in_callback("{priority: 1.5}"), 4, "whole number"),
    "callback: priority out of range": (in_callback("{priority: 2147483648}"), 4, "2147483647"),
    "callback: registered": (in_callback("{registered: 1}"), 4, "true or false"),
    "callback: answer": (in_callback("{MEM_ONLINE: YES}"), 4, "DONE, OK, STOP, BAD"),
    "callback: errno": (in_callback("{MEM_ONLINE: {answer: EFOO}}"), 4, "ENOMEM"),
    "callback: answer is a list": (in_callback("{MEM_ONLINE: [OK]}"), 4, "single value"),
    "callback: unknown key": (in_callback("{MEM_ONLINE: {sleep: 5ms}}"), 4, "delay"),
    "callback: duration": (in_callback("{MEM_ONLINE: {delay: 5}}"), 4, "duration"),
    "callback: long duration": (in_callback("{MEM_ONLINE: {delay: 99999999999999s}}"), 4, "3600"),
    "callback: times 0": (in_callback("{MEM_ONLINE: {times: 0}}"), 4, "at least 1"),
    "callback: times": (in_callback("{MEM_ONLINE: {times: often}}"), 4, "whole number"),
    "callback: free": (in_callback("{MEM_ONLINE: {free: [a b]}}"), 4, "a name"),
    "callback: allocate": (in_callback("{MEM_ONLINE: {allocate: {size: 1MiB}}}"), 4, "name"),
    "callback: call": (in_callback("{call: module.function}"), 4, "module:function"),
    "callback: call and actions": (in_callback('{call: "m:f", MEM_ONLINE: OK}'), 4, "no actions"),
    # steps
    "step: a word": (in_step("online"), 3, "mapping"),
    "step: no verb": (in_step("{thread: a}"), 3, "a verb; there is none. It is one of plug, unplug"),
    "step: unknown": (in_step("{onlin: 32}"), 3, "online"),
    "step: two verbs": (in_step("{online: 32, offline: 32}"), 3, "one verb; here are 2: online, offline"),
    "step: a verb twice": (in_step("{online: 32, online: 33}"), 3, "once"),
    "step: thread": (in_step("{online: 32, thread: a b}"), 3, "a name"),
    "step: as": (in_step("{online: 32, as: 5}"), 3, "a name"),
    "step: as a place": (in_step("{online: 32, as: first}"), 3, "another name"),
    "add: size": (in_step("add: {size: 128 blocks}"), 3, "a size such as"),
    "add: no size": (in_step("add: {node: 0}"), 3, "size"),
    "add: a flag that isn't one": (in_step("add: {size: 1G, flags: [merge_resource, huge]}"), 3, "one of merge_resource, memmap"),
    "add: group and node": (in_step("add: {size: 1G, group: g, node: 1}"), 3, "either a node or a group"),
    "group: both kinds": (in_step("group: {name: g, size: 1G, unit: 1G}"), 3, "either size"),
    "group: neither kind": (in_step("group: {name: g}"), 3, "either size"),
    "add: a word": (in_step("add: 128MiB"), 3, "mapping"),
    "add: node": (in_step("add: {size: 128MiB, node: one}"), 3, "whole number"),
    "add: at": (in_step("add: {size: 128MiB, at: top}"), 3, "a size such as"),
    "add: a size of 5000 digits": (in_step(f"add: {{size: {'9' * 5000}}}"), 3, "a size such as"),
    "add: a node of 5000 digits": (in_step(f"add: {{size: 1G, node: {'9' * 5000}}}"), 3, "a whole number"),
    "online: range backwards": (in_step("online: 35-32"), 3, "32-35,40"),
    "online: number twice": (in_step("online: 32,32"), 3, "once"),
    "online: nothing": (in_step('online: ""'), 3, "32-35,40"),
    "online: a list": (in_step("online: [32, 33]"), 3, "single value"),
    "online: first 0": (in_step("online: first 0"), 3, "at least one"),
    "online: type": (in_step("online: {blocks: 32, type: offline}"), 3, "online_kernel"),
    "online: size 0": (in_step("online: {size: 0}"), 3, "above 0"),
    "online: size and blocks": (in_step("online: {size: 1GiB, blocks: 32}"), 3, "either"),
    "online: numbers of a node": (in_step("online: {blocks: 32, node: 0}"), 3, "first or last"),
    "online: neither": (in_step("online: {}"), 3, "blocks, size, node"),
    "online: unknown key": (in_step("online: {count: 2}"), 3, "among"),
    "offline: type": (in_step("offline: {blocks: 32, type: online}"), 3, "among"),
    "write: no text": (in_step("write: {file: memory32/state}"), 3, "text"),
    "read: no file": (in_step("read: {}"), 3, "file"),
    "allocate: size and pages": (in_step("allocate: {name: x, size: 4KiB, pages: 1}"), 3, "either"),
    "allocate: neither": (in_step("allocate: {name: x}"), 3, "either"),
    "allocate: no page": (in_step("allocate: {name: x, pages: 0}"), 3, "at least one page"),
    "allocate: half a page": (in_step("allocate: {name: x, size: 2KiB}"), 3, "at least one page"),
    "allocate: kind": (in_step("allocate: {name: x, pages: 1, kind: huge}"), 3, "unmovable"),
    "allocate: pinned": (in_step("allocate: {name: x, pages: 1, pinned: always}"), 3, "true or false"),
    "allocate: name": (in_step("allocate: {name: 5, pages: 1}"), 3, "a name"),
    "free: name": (in_step("free: {name: x}"), 3, "single value"),
    "register: unknown callback": (in_step("register: a"), 3, "there is none"),
    "note: a list": (in_step("note: [a]"), 3, "single value"),
    # expectations
    "expect: result": (in_expect("fine"), 4, "ok, or the name of an errno"),
    "expect: unknown key": (in_expect("{calls: []}"), 4, "trace"),
    "expect: trace": (in_expect("{trace: none}"), 4, "list"),
    "expect: files": (in_expect("{files: [memory32/state]}"), 4, "mapping"),
    "expect: state": (in_expect("{blocks: {32: on}}"), 4, "going-offline"),
    "expect: blocks": (in_expect("{blocks: {32-: online}}"), 4, "32-35,40"),
    "expect: lockdep": (in_expect("{lockdep: none}"), 4, "whole number"),
    "machine: more than the CPU reaches": (in_machine("{nodes: [100PiB]}"), 1, "at most 64 TiB on this CPU"),
    "machine: more CPUs than there can be": (in_machine("{nodes: [{memory: 1GiB, cpus: 1000000}]}"), 1, "at most 8192"),
    "fill: age": (in_step("fill: {workload: build, age: 4294967295}"), 3, "rounds from 0 to 1000"),
    "expect: lockdep below zero": (in_expect("{lockdep: -1}"), 4, "0 to"),
    "expect: a result in the end": (f"{MACHINE}{EMPTY}expect: EBUSY\n", 3, "no result or text at the top level"),
    "expect: ok in the end": (f"{MACHINE}{EMPTY}expect:\n  lockdep: 0\n  result: ok\n", 5, "no result or text at the top level"),
    "expect: a text in the end": (f"{MACHINE}{EMPTY}expect:\n  lockdep: 0\n  text: foo\n", 5, "no result or text at the top"),
    "expect: in the end": (f"{MACHINE}{EMPTY}expect:\n  lockdep: [1]\n", 4, "whole number"),
}


@pytest.mark.parametrize(("text", "line", "word"), BAD.values(), ids=BAD)
def test_a_wrong_file_is_told_where_and_what_was_expected(tmp_path: Path, text: str, line: int, word: str) -> None:
    """One error with file, line, the value and what would be right, in one line."""
    error = refused(tmp_path, text)
    assert (error.file, error.line) == (str(tmp_path / "s.yaml"), line)
    assert word in error.expected
    message = str(error)
    assert message.startswith(f"{tmp_path}/s.yaml:{line}: ")
    assert "\n" not in message


def test_an_unknown_callback_is_told_who_there_is(tmp_path: Path) -> None:
    """Registering somebody that the file doesn't have names those that it has."""
    error = refused(tmp_path, f"{MACHINE}steps:\n- unregister: c\ncallbacks: {{b: {{}}, a: {{}}}}\n")
    assert str(error) == f"{tmp_path}/s.yaml:3: steps[0]: unregister: 'c' is not valid; expected the name of a callback: a, b"


def test_a_missing_file_is_a_wrong_file(tmp_path: Path) -> None:
    """There is no line to name, but the file."""
    with pytest.raises(ScenarioError, match="can be read \\(No such file or directory\\)") as caught:
        load(tmp_path / "none.yaml")
    assert caught.value.file == str(tmp_path / "none.yaml")


def test_a_directory_is_a_wrong_file(tmp_path: Path) -> None:
    """A directory can't be read as a scenario."""
    with pytest.raises(ScenarioError, match="can be read \\(Is a directory\\)"):
        load(tmp_path)


def test_bytes_that_are_no_text_are_a_wrong_file(tmp_path: Path) -> None:
    """A scenario is UTF-8."""
    path = tmp_path / "s.yaml"
    path.write_bytes(b"title: \xff\n")
    with pytest.raises(ScenarioError, match="not UTF-8 text"):
        load(path)


# -- whatever stands in a file, it is a scenario or a ScenarioError

any_file = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_is_refused(directory: Path, content: bytes) -> None:
    path = directory / "s.yaml"
    path.write_bytes(content)
    try:
        outcome: object = load(path)
    except ScenarioError as error:
        outcome = error
    if isinstance(outcome, ScenarioError):
        assert outcome.file == str(path)
        assert "\n" not in str(outcome)
    else:
        assert isinstance(outcome, Scenario)


@any_file
@given(content=st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=100))
def test_any_text_loads_or_is_refused(tmp_path: Path, content: bytes) -> None:
    """No text makes anything but a scenario or a ScenarioError."""
    loads_or_is_refused(tmp_path, content)


WORDS = [
    *("machine", "nodes", "memory", "cpus", "distances", "from", "otherwise", "host", "rules", "6.1", "block_size", "room"),
    *("parameters", "memhp_default_state", "callbacks", "priority", "registered", "call", "a:b", "MEM_ONLINE", "OK", "EBUSY"),
    *("answer", "raise", "delay", "5ms", "free", "allocate", "times", "name", "size", "128MiB", "1GiB", "pages", "kind"),
    *("steps", "add", "remove", "online", "offline", "write", "file", "text", "read", "pin", "register", "signal", "note"),
    *("blocks", "first 2", "32-33", "among", "node", "type", "as", "thread", "expect", "result", "trace", "uevents", "files"),
    *("lockdep", "state", "true", "false", "ok", "hypervisor", "device_hotplug_lock", "", "-", "x", "$x/state", "1e3"),
]
scalars = (
    st.sampled_from(WORDS) | st.integers(-2, 40) | st.booleans() | st.none() | st.text(alphabet="ab1-, :$\u00e9\0", max_size=4)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=8,
)
KEYS = {
    "machine": ["nodes", "block_size", "room", "parameters", "hypervisor", "rules", "device_hotplug_lock", "from", "otherwise"],
    "callback": ["priority", "registered", "call", "MEM_ONLINE", "MEM_GOING_OFFLINE"],
    "reaction": ["answer", "raise", "delay", "free", "allocate", "times"],
    "step": ["add", "remove", "online", "offline", "write", "read", "allocate", "free", "pin", "register", "as", "expect"],
    "expect": ["result", "text", "trace", "uevents", "files", "blocks", "lockdep"],
}


def mapping(kind: str, inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(KEYS[kind]), inner, max_size=3) | inner


documents = st.fixed_dictionaries(
    {
        "machine": st.just({"nodes": ["1GiB"]}) | mapping("machine", values),
        "steps": st.lists(mapping("step", mapping("expect", values)), max_size=3) | values,
    },
    optional={
        "callbacks": st.dictionaries(
            st.sampled_from(["a", "x", "a b"]), mapping("callback", mapping("reaction", values)), max_size=2
        ),
        "expect": mapping("expect", values),
        "title": values,
    },
)


@any_file
@given(document=documents | values)
def test_any_structure_loads_or_is_refused(tmp_path: Path, document: object) -> None:
    """No structure of the words that scenarios know makes anything but a scenario or a ScenarioError."""
    loads_or_is_refused(tmp_path, json.dumps(document).encode())
