"""Helpers for tests: callbacks that write down what they hear, and short ways to name things."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memhp import NOTIFY_OK, HotplugError, Machine, MemoryAction, MemoryNotify, NotifierBlock, NotifyResult, Rules
from memhp.errors import errno_name
from memhp.locking import switch

MIB = 1 << 20
GIB = 1 << 30
BLOCK = 128 * MIB
MEMORY = "/sys/devices/system/memory"
NODE = "/sys/devices/system/node"
PARAMETERS = "/sys/module/memory_hotplug/parameters"
TABLES = {"zone->lock", "resource_lock", "memory_groups", "memory_tier_lock"}
"""Locks of one table each, which are held for a moment and under which nothing else is taken."""
ALL = pytest.mark.parametrize("rules", list(Rules))
"""Under each of the rules."""


class Log(list[str]):
    """What happened, a line each."""

    def callback(
        self,
        name: str,
        answers: dict[MemoryAction, NotifyResult | BaseException] | None = None,
        act: Callable[[MemoryAction, MemoryNotify], None] | None = None,
    ) -> Callable[[NotifierBlock, Any, Any], NotifyResult]:
        """Make a callback that notes ``NAME ACTION(nid_normal,nid)``, acts, and answers as told (NOTIFY_OK if not told)."""

        def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
            short = action.name.removeprefix("MEM_")
            self.append(f"{name} {short}({arg.status_change_nid_normal},{arg.status_change_nid})")
            if act is not None:
                act(action, arg)
            answer = (answers or {}).get(action, NOTIFY_OK)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return callback

    def take(self) -> list[str]:
        """Give the lines so far, and begin anew."""
        lines = list(self)
        self.clear()
        return lines


def state(machine: Machine, block: int) -> str:
    return machine.tree.read(f"{MEMORY}/memory{block}/state").strip()


def valid_zones(machine: Machine, block: int) -> str:
    return machine.tree.read(f"{MEMORY}/memory{block}/valid_zones").strip()


def write(machine: Machine, path: str, text: str) -> int:
    """Write to a file of /sys/devices/system/memory: ``write(machine, "memory32/state", "online")``."""
    return machine.tree.write(f"{MEMORY}/{path}", text)


def in_thread(function: Callable[[], Any], name: str = "T") -> Running:
    """Start a function in a thread; ``result()`` waits for it and gives what it returned, or raises what it raised."""
    return Running(function, name)


class Running(threading.Thread):
    def __init__(self, function: Callable[[], Any], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = 30) -> Any:
        self.join(timeout)
        assert not self.is_alive(), f"{self.name} did not end"
        if self._error is not None:
            raise self._error
        return self._value


def until_parked(thread: threading.Thread) -> None:
    """Wait until a thread waits for a lock or for pages; it polls nothing, the switch point says when."""
    task = switch.task_of(thread)
    parked = threading.Event()
    with switch.guard:
        if task.waiting is None:
            task.on_park = lambda _: parked.set()
        else:
            parked.set()
    assert parked.wait(30), f"{thread.name} did not wait for anything"


Boot = Callable[..., Machine]
PRIORITIES = (200, 0, -1)
Answers = dict[int, dict[MemoryAction, NotifyResult | BaseException]]


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, *, when_woken: bool) -> None:
    """Let Ctrl-C arrive in the thread of that name while it is parked: before it is woken, or just after."""
    wait = switch.Waiter.wait

    def interrupted(waiter: switch.Waiter) -> bool:
        if waiter.task.name != name:
            return wait(waiter)
        while when_woken and not wait(waiter):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(switch.Waiter, "wait", interrupted)


def with_node_1(boot: Boot, rules: Rules = Rules.LINUX_6_1, blocks: int = 4, **options: Any) -> Machine:
    """Boot 1 GiB on node 0 and add blocks 32, 33, ... to node 1, which had no memory; all offline."""
    machine = boot(["1GiB", 0], rules=rules, **{"parameters": {"memhp_default_state": "offline"}, **options})
    machine.add_memory(1, 4 * GIB, blocks * BLOCK)
    return machine


def three(
    machine: Machine,
    log: Log,
    answers: Answers | None = None,
    act: Callable[[MemoryAction, MemoryNotify], None] | None = None,
) -> None:
    """Register callbacks with priorities 200, 0 and -1 that write to ``log``; ``act`` goes to the middle one."""
    for priority in PRIORITIES:
        callback = log.callback(str(priority), (answers or {}).get(priority), act if priority == 0 else None)
        machine.hotplug_memory_notifier(callback, priority)


def rounds(log: Log) -> list[str]:
    """Take the log with neighbours of one action on one line: ``GOING_ONLINE(-1,1): 200 0 -1``."""
    lines: list[str] = []
    for line in log.take():
        name, _, action = line.partition(" ")
        if lines and lines[-1].startswith(f"{action}: "):
            lines[-1] += f" {name}"
        else:
            lines.append(f"{action}: {name}")
    return lines


def snapshot(machine: Machine, *, files: bool = True) -> dict[str, object]:
    """Everything that a failed request must leave as it was; ``files`` adds the whole tree with its texts."""
    picture: dict[str, object] = {
        "masks": {mask.value: sorted(nids) for mask, nids in machine.node_states.items()},
        "iomem": str(machine.iomem),
        "firmware map": list(machine.firmware_map),
        "uevents": machine.uevents.seqnum,
    }
    for block in machine.blocks.values():
        used = [(extent.start_pfn, extent.nr_pages, str(extent.allocation)) for extent in block.used]
        present = [(zone.nid, zone.type.label, start, nr) for zone, start, nr in block.present]
        fields = (block.nid, block.state, block.offline, block.online_type, str(block.zone), block.isolated, block.removed)
        picture[block.name] = (*fields, present, used)
    for node in machine.nodes.values():
        picture[f"node{node.nid}"] = (node.registered, sorted(node.linked))
        for zone in node.zones:
            counts = (zone.start_pfn, zone.spanned, zone.present, zone.managed, zone.present_early, sorted(zone.blocks))
            picture[f"node{node.nid} {zone.type.label}"] = counts
    if files:
        picture["files"] = tree_texts(machine)
    return picture


def tree_texts(machine: Machine, path: str = "/sys") -> dict[str, str]:
    """Read every file below ``path`` but power management's, and every link without following it."""
    found: dict[str, str] = {}
    for name in machine.tree.list(path):
        if name == "power":
            continue
        place = f"{path}/{name}"
        try:
            found[place] = f"-> {machine.tree.readlink(place)}"
        except OSError:
            try:
                found |= tree_texts(machine, place)
            except OSError as error:
                if error.errno != errno.ENOTDIR:
                    raise
                found[place] = _text(machine, place)
    return found


def _text(machine: Machine, path: str) -> str:
    try:
        return machine.tree.read(path)
    except OSError as error:
        return f"errno {error.errno}"


@contextlib.contextmanager
def another_reads(machine: Machine) -> Iterator[None]:
    """Meanwhile another thread holds ``online_mems()``: whoever needs mem_hotplug_lock for writing would wait."""
    inside, leave = threading.Event(), threading.Event()

    def read() -> None:
        with machine.online_mems():
            inside.set()
            leave.wait(60)

    reader = in_thread(read, "reader")
    assert inside.wait(30)
    try:
        yield
    finally:
        leave.set()
        reader.result()


def refusal(request: Callable[..., object], *args: Any) -> str:
    """Make a request that must fail, and name its errno: ``refusal(write, machine, "memory32/state", "online") == "EPERM"``."""
    with pytest.raises(HotplugError) as caught:
        request(*args)
    return errno_name(caught.value.errno or 0)
