"""The model against what kernels 6.1 and 6.12 really did: ``tests/data/recorded``, whose README tells the format.

Every recording is played on a machine of the same shape. All steps are played even after a difference, and a difference
in the state is reported at the step where it appears, not again where it merely persists.
"""

from __future__ import annotations

import errno
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memhp import (
    Machine,
    MemhpError,
    MemoryAction,
    MemoryNotify,
    NotifierBlock,
    NotifyResult,
    Rules,
    notifier_from_errno,
)
from memhp.abi.uevent import Uevent
from memhp.errors import HotplugError, errno_name
from memhp.kernel.acpi import Dimm
from support import MEMORY, NODE, Boot

DATA = Path(__file__).parents[1] / "data" / "recorded"
RULES = {"6.1": Rules.LINUX_6_1, "6.12": Rules.LINUX_6_12}
NAMES = sorted(str(path.relative_to(DATA).with_suffix("")) for path in DATA.glob("*/*.json"))
TREES = [name for name in NAMES if "/tree-" in name]
RECORDINGS = [name for name in NAMES if "/tree-" not in name]
SHOWN = 12
"""How many differences of one recording are printed."""

LEFT_OUT = {
    # of a node's directory, what counts what else a guest does
    "meminfo",
    "numastat",
    "vmstat",
}
"""Names that real directories have and the model's deliberately don't."""

Json = dict[str, Any]


def load(name: str) -> Json:
    data: Json = json.loads((DATA / f"{name}.json").read_text())
    if "same_steps_as" in data:
        other, own = json.loads((DATA / data["same_steps_as"]).read_text())["steps"], data.get("steps", [])
        data["steps"] = [*own, *other[len(own) :]]
    directories: dict[str, Any] = {}
    for path, entries in data.get("directories", ()):
        directories[path] = directories[entries] if isinstance(entries, str) else entries
    data["directories"] = directories
    return data


def rules_of(name: str) -> Rules:
    return RULES[name.partition("/")[0]]


def boot_guest(boot: Boot, name: str, guest: Json) -> Machine:
    # The rig's CPU (-cpu max of QEMU 7.2) maps with five levels and has 40 bits of physical addresses.
    return boot(
        guest["nodes"],
        parameters=guest["parameters"],
        rules=rules_of(name),
        physical_bits=40,
        five_level_paging=True,
        room="16GiB",
        slots=guest.get("slots", 16),
    )


# -- playing


class TestCallback:
    """A callback of the recording's test module: NOTIFY_OK unless it was told another answer."""

    __test__ = False

    def __init__(self, number: int, events: list[list[Any]] | None) -> None:
        self.number = number
        self.events = events
        self.answers: dict[MemoryAction, tuple[NotifyResult, int | None]] = {}

    def tell(self, step: Json) -> None:
        answer = notifier_from_errno(step["errno"]) if "errno" in step else NotifyResult(step["value"])
        self.answers[MemoryAction[step["action"]]] = (answer, step.get("start_pfn"))

    def __call__(self, block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        answer, only = self.answers.get(action, (NotifyResult(1), None))
        if only not in {None, arg.start_pfn}:
            answer = NotifyResult(1)
        if self.events is not None:
            if not isinstance(self.events[-1][-1], dict):
                self.events[-1].append({})
            self.events[-1][-1].setdefault("answers", []).append([self.number, int(answer)])
        return answer


class Player:
    """Does a recording's steps on a machine, and writes down the events in the recording's form."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.events: list[list[Any]] = []
        self.dimms: dict[str, Dimm] = {}
        self.callbacks: dict[int, tuple[TestCallback, NotifierBlock]] = {}
        machine.hotplug_memory_notifier(self._hear, 2**31 - 1)
        machine.uevents.subscribe(self._note)

    def _hear(self, block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        event = [action.name, arg.start_pfn, arg.nr_pages, arg.status_change_nid_normal, arg.status_change_nid]
        if action in {MemoryAction.MEM_PREPARE_ONLINE, MemoryAction.MEM_FINISH_OFFLINE}:
            altmap = [arg.altmap_start_pfn, arg.altmap_nr_pages]
            event += [{"altmap": altmap}] if altmap != [arg.start_pfn, 0] else []
        self.events.append(event)
        return NotifyResult(1)

    def _note(self, event: Uevent) -> None:
        header, *keys = event.encode().decode().rstrip("\0").split("\0")
        assert keys[:2] == [f"ACTION={event.action}", f"DEVPATH={event.devpath}"]
        self.events.append([header, *(key for key in keys[2:] if not key.startswith("SEQNUM="))])

    def play(self, step: Json) -> Json:
        """Do one step; gives what came back, with the keys of the recording."""
        self.events.clear()
        operation = next(key for key in step if key in OPERATIONS)
        try:
            return OPERATIONS[operation](self, step) or {}
        except MemhpError as error:
            number = getattr(error, "errno", None)
            return {"errno": errno_name(number) if number else repr(error)}

    def write(self, step: Json) -> Json:
        return {"bytes": self.machine.tree.write(absolute(step["write"]), step["text"])}

    def read(self, step: Json) -> Json:
        text = self.machine.tree.read(absolute(step["read"]))
        return {"content": text, "bytes": len(text.encode())}

    def open(self, step: Json) -> None:
        for letter in "rw":
            if letter in step["flags"]:
                self.machine.tree.open(absolute(step["open"]), writing=letter == "w")

    def plug(self, step: Json) -> Json:
        dimm = self.dimms[step["plug"]] = self.machine.plug_dimm(step["nid"], step["size"])
        return reports(step, dimm, 0)

    def unplug(self, step: Json) -> Json:
        dimm = self.dimms[step["unplug"]]
        before = len(dimm.reports)
        try:
            self.machine.unplug_dimm(dimm)
        except HotplugError as error:
            return {"errno": errno_name(error.errno or 0), **reports(step, dimm, before)}
        return reports(step, dimm, before)

    def add(self, step: Json) -> None:
        self.machine.add_memory(step["nid"], step["add"], step["size"])

    def remove(self, step: Json) -> None:
        self.machine.remove_memory(step["remove"], step["size"])

    def offline_and_remove(self, step: Json) -> None:
        self.machine.offline_and_remove_memory(step["offline_and_remove"], step["size"])

    def use(self, step: Json) -> None:
        self.machine.alloc_pages(1, step["kind"], blocks=[step["use"]], owner="the recorded guest")

    def register(self, step: Json) -> None:
        number = step["register"]
        if number not in self.callbacks:
            callback = TestCallback(number, self.events if step.get("traced", True) else None)
            self.callbacks[number] = (callback, NotifierBlock(callback, step["priority"], f"callback {number}"))
        self.machine.memory_chain.register(self.callbacks[number][1])

    def unregister(self, step: Json) -> None:
        self.callbacks[step["unregister"]][1].unregister()

    def answer(self, step: Json) -> None:
        self.callbacks[step["answer"]][0].tell(step)

    def clear(self, step: Json) -> None:
        self.callbacks[step["clear"]][0].answers.clear()


OPERATIONS: dict[str, Callable[[Player, Json], Json | None]] = {
    "write": Player.write,
    "read": Player.read,
    "open": Player.open,
    "plug": Player.plug,
    "unplug": Player.unplug,
    "add": Player.add,
    "remove": Player.remove,
    "offline_and_remove": Player.offline_and_remove,
    "use": Player.use,
    "register": Player.register,
    "unregister": Player.unregister,
    "answer": Player.answer,
    "clear": Player.clear,
}


def reports(step: Json, dimm: Dimm, before: int) -> Json:
    # Not every recording has noted what the kernel told the firmware.
    return {"ost": [list(report) for report in dimm.reports[before:]]} if "ost" in step else {}


def absolute(path: str) -> str:
    return path if path.startswith("/") else f"{MEMORY}/{path}"


# -- comparing


def state_of(machine: Machine) -> dict[str, Any]:
    """Read blocks, node masks and zones, keyed as :func:`expect_state` keys them."""
    tree = machine.tree
    found: dict[str, Any] = {}
    for block in machine.blocks:
        path = f"{MEMORY}/memory{block}"
        found[f"blocks {block}"] = [tree.read(f"{path}/{name}").strip() for name in ("state", "online", "valid_zones")]
    for name in ("possible", "online", "has_memory", "has_normal_memory", "has_cpu"):
        found[f"nodes {name}"] = tree.read(f"{NODE}/{name}").strip()
    for node in machine.nodes.values():
        for zone in node.zones if node.registered else ():  # /proc/zoneinfo has online nodes only
            managed = None if node.nid == 0 else zone.managed  # node 0 of the guest holds the kernel image
            found[f"zones {node.nid}/{zone.type.label}"] = [zone.spanned, zone.present, managed, zone.start_pfn]
    return found


def expect_state(expected: dict[str, Any], step: Json) -> None:
    """Apply a step's changes to the state that is expected; null takes away."""
    for kind in ("blocks", "nodes", "zones"):
        for name, value in step.get(kind, {}).items():
            if value is None:
                del expected[f"{kind} {name}"]
            else:
                expected[f"{kind} {name}"] = value


def compare(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    return [
        f"{key}: expected {expected.get(key)!r}, actual {actual.get(key)!r}"
        for key in sorted({*expected, *actual})
        if expected.get(key) != actual.get(key)
    ]


def result_of(step: Json) -> dict[str, Any]:
    if "answer" in step:  # its errno is what the callback will say
        return {}
    return {key: step.get(key) for key in ("errno", "bytes", "content", "ost")}


def recorded_event(event: list[Any]) -> list[Any]:
    # A uevent without keys has one, the name of its device's directory.
    if len(event) > 1:
        return event
    return [*event, f"SUBSYSTEM={event[0].split('/')[-2]}"]


def compare_events(expected: list[list[Any]], actual: list[list[Any]]) -> list[str]:
    if expected == actual:
        return []
    same = 0
    while expected[: same + 1] == actual[: same + 1]:
        same += 1
    return [f"events from number {same + 1} on: expected {expected[same:]}, actual {actual[same:]}"]


def differences(machine: Machine, data: Json) -> Iterator[str]:
    """Play all steps; gives a line per difference, with the step's number and what it did."""
    player = Player(machine)
    expected: dict[str, Any] = {}
    standing: set[str] = set()
    for number, step in enumerate(data["steps"], 1):
        actual = {**dict.fromkeys(result_of(step)), **player.play(step)}
        found = compare(result_of(step), actual) + compare_events(
            [recorded_event(event) for event in step.get("events", [])], player.events
        )
        expect_state(expected, step)
        state = compare(expected, state_of(machine)) if expected else []
        changed, standing = [line for line in state if line not in standing], set(state)
        what = " ".join(f"{key}={value!r}" for key, value in step.items() if key not in {"events", "blocks", "nodes", "zones"})
        yield from (f"step {number} ({what}): {line}" for line in found + changed)


def show(lines: list[str], where: str) -> str:
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"{where}: {len(lines)} differences", *lines[:SHOWN], *more])


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_machine_does_what_the_kernel_did(boot: Boot, name: str) -> None:
    """Errnos, byte counts, notifier calls, uevents, blocks, node masks and zones are as recorded, step by step."""
    data = load(name)
    found = list(differences(boot_guest(boot, name, data["guest"]), data))
    assert not found, show(found, f"{name} on {data['kernel']}")


# -- trees of files


class CapturedTree:
    """The files of a recorded guest, as a Tree."""

    def __init__(self, directories: dict[str, dict[str, list[str]]]) -> None:
        self.directories = directories

    def _find(self, path: str) -> tuple[str, list[str]]:
        # Gives the path without links, and the entry: ["dir"], or [mode, content, error] of a file.
        path = posixpath.normpath(path)
        if path in self.directories:
            return path, ["dir"]
        parent, name = posixpath.split(path)
        if parent == path:
            raise FileNotFoundError(errno.ENOENT, "not in the recording", path)
        real, _ = self._find(parent)
        entry = self.directories.get(real, {}).get(name)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "not in the recording", path)
        return self._find(f"{real}/{entry[1]}") if entry[0] == "link" else (f"{real}/{name}", entry)

    def read(self, path: str) -> str:
        _, entry = self._find(path)
        if entry == ["dir"]:
            raise IsADirectoryError(errno.EISDIR, "a directory", path)
        if len(entry) != 2:
            raise OSError(getattr(errno, entry[2]) if len(entry) > 2 else errno.EACCES, "could not be read", path)
        return entry[1]

    def read_bytes(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        raw = self.read(path).encode()
        return raw[offset:] if size < 0 else raw[offset : offset + size]

    def write(self, path: str, data: str | bytes) -> int:
        raise OSError(errno.EROFS, "a recording", path)

    def list(self, path: str) -> list[str]:
        real, _ = self._find(path)
        return sorted(self.directories[real])

    def readlink(self, path: str) -> str:
        parent, name = posixpath.split(path)
        entry = self.directories[self._find(parent)[0]][name]
        if entry[0] != "link":
            raise OSError(errno.EINVAL, "not a link", path)
        return entry[1]

    def exists(self, path: str) -> bool:
        try:
            self._find(path)
        except OSError:
            return False
        return True


def at_moment(machine: Machine, moment: str) -> Machine:
    """Bring a booted machine to where the tree was captured: after boot, plug, or online."""
    if moment == "boot":
        return machine
    machine.plug_dimm(1, 256 << 20)
    if moment == "online":
        machine.tree.write(f"{MEMORY}/memory32/state", "online_movable")
        machine.tree.write(f"{MEMORY}/memory33/state", "online_kernel")
    return machine


def text_or_errno(read: Callable[[str], str], path: str) -> str:
    try:
        return read(path)
    except OSError as error:
        return errno_name(error.errno or 0)


def describe(machine: Machine, path: str, entry: list[str]) -> list[str]:
    """Say of the model's file what the recording says of the real one."""
    if not machine.tree.exists(path) and entry[0] != "link":
        return ["ENOENT"]
    if entry[0] == "dir":
        return ["dir"] if machine.tree.mode(path) == 0o755 else [f"{machine.tree.mode(path):04o}"]
    if entry[0] == "link":
        return ["link", text_or_errno(machine.tree.readlink, path)]
    return [f"{machine.tree.mode(path):04o}", text_or_errno(machine.tree.read, path)]


def recorded_entry(entry: list[str]) -> list[str]:
    # A file that could not be read has its errno in the place of the text; one that was not tried is write-only.
    if entry[0] in {"dir", "link"}:
        return entry
    return [entry[0], entry[2] if len(entry) > 2 else entry[1] if len(entry) > 1 else "EACCES"]


def compare_directory(machine: Machine, path: str, entries: dict[str, list[str]], kept: Callable[[str], bool]) -> Iterator[str]:
    names = {name for name in entries if kept(name)}
    actual = {name for name in machine.tree.list(path) if kept(name)} if machine.tree.exists(path) else set()
    if names != actual:
        yield f"{path}: missing {sorted(names - actual)}, too many {sorted(actual - names)}"
    for name in sorted(names & actual):
        expected, found = recorded_entry(entries[name]), describe(machine, f"{path}/{name}", entries[name])
        if expected != found:
            yield f"{path}/{name}: expected {expected}, actual {found}"


def compare_tree(machine: Machine, data: Json, kept: Callable[[str], bool]) -> list[str]:
    return [line for path, entries in data["directories"].items() for line in compare_directory(machine, path, entries, kept)]


@pytest.mark.parametrize("name", TREES)
def test_the_files_are_those_of_the_kernel(boot: Boot, name: str) -> None:
    """Listings, modes, links and contents of all directories are as captured."""
    data = load(name)
    machine = at_moment(boot_guest(boot, name, data["guest"]), name.rpartition("-")[2])
    found = compare_tree(machine, data, lambda name: name not in LEFT_OUT)
    assert not found, show(found, f"{name} on {data['kernel']}")


TWIN_FILES = re.compile(
    "state|online|valid_zones|phys_index|possible|has_(memory|normal_memory|cpu)|cpulist|cpumap|distance|(memory|node|cpu)[0-9]+"
)
"""What a twin must have in common with its original: files of blocks and nodes, and the links between them."""


@pytest.mark.parametrize("name", TREES)
def test_a_twin_of_a_captured_tree_has_its_blocks_and_nodes(name: str) -> None:
    """``Machine.from_tree`` gives a machine whose blocks and nodes read as those that it was made from."""
    data = load(name)
    machine = Machine.from_tree(CapturedTree(data["directories"]), rules=rules_of(name), lockdep=True)
    found = compare_tree(machine, data, lambda name: TWIN_FILES.fullmatch(name) is not None)
    assert not found, show(found, f"{name} on {data['kernel']}")
