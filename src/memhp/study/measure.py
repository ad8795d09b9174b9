"""One run of a study: a machine is booted, filled and aged; then its blocks are taken offline, as many as will go."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from memhp.errors import HotplugError, Interrupted, PageRefusal
from memhp.kernel import Machine, PageKind, Rules
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.kinds import Leaving
from memhp.locking import switch
from memhp.scenario.workloads import fill
from memhp.study.plan import AXES, Point
from memhp.units import Pfn

__all__ = ["COLUMNS", "REASONS", "Row", "run_point"]

Row = dict[str, Any]

SPANS, PINNED, NO_ROOM = "several zones or holes", "pinned", "no room"
REASONS = (SPANS, *(kind.value for kind in PageKind if kind.leaving in {Leaving.REFUSES, Leaving.HELD}), PINNED, NO_ROOM)
"""Why a block stays."""
_NUMBERS = ("blocks", "movable_blocks", "used_pages", "free_pages", "isolable", "gone", "share", "moved_pages")
COLUMNS = (*AXES, "seed", *_NUMBERS, *(f"stopped by {reason}" for reason in REASONS), "most in the way")
"""The columns of the table, in their order."""


def run_point(point: Point) -> Row:
    """Do one run.

    ``isolable`` counts blocks that hold nothing unmovable, each by itself. ``gone`` counts those that went offline one after
    the other, from the highest down, and stayed offline: their pages have moved to what was left, until no room was.
    """
    machine = _boot(point)
    filled = fill(machine, point["workload"], point["fill"], seed=point["seed"], age=point["age"])
    blocks = sorted((block for block in machine.blocks.values() if block.present), key=lambda block: -block.id)
    movable = sum(block.zone is not None and block.zone.type.label == "Movable" for block in blocks)
    used, free = filled.nr_pages, machine.pages.count_free()
    isolable = sum(_isolates(machine, block) for block in blocks)
    stopped: Counter[str] = Counter()
    owners: Counter[str] = Counter()
    gone = moved = 0
    for block in blocks:
        held = machine.pages.count_used(block)
        reason, owner = _take_offline(machine, block)
        if reason:
            stopped[reason] += 1
            owners[owner] += bool(owner)
        else:
            gone, moved = gone + 1, moved + held
    numbers = (len(blocks), movable, used, free, isolable, gone, gone / len(blocks), moved)
    return {
        **{name: point[name] for name in AXES},
        "seed": point["seed"],
        **dict(zip(_NUMBERS, numbers, strict=True)),
        **{f"stopped by {reason}": stopped[reason] for reason in REASONS},
        "most in the way": max(sorted(owners), key=lambda owner: owners[owner], default=""),
    }


def _boot(point: Point) -> Machine:
    described = dict(point["machine"])
    rules = Rules.of(str(described.pop("rules", "documented")))
    parameters = {
        "memhp_default_state": "offline",
        "memory_hotplug.online_policy": point["policy"],
        "memory_hotplug.auto_movable_ratio": point["ratio"],
        "memory_hotplug.auto_movable_numa_aware": point["numa_aware"],
    }
    machine = Machine.boot(**described, block_size=point["block_size"], rules=rules, parameters=parameters)
    if point["added"]:
        for block in machine.add_memory(min(machine.nodes), machine.next_room(point["added"]), point["added"]):
            machine.device_online(block, point["online"])
    return machine


def _isolates(machine: Machine, block: MemoryBlock) -> bool:
    if block.zone is None or block.has_holes:
        return False
    try:
        machine.pages.isolate([block])
    except PageRefusal:
        return False
    machine.pages.unisolate([block])
    machine.pages.lists_work()
    return True


def _take_offline(machine: Machine, block: MemoryBlock) -> tuple[str, str]:
    # Gives why it stays and whose page it was, or '' if it went. Whoever would wait for a page gets a signal instead.
    go, over = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def request() -> None:
        go.wait()
        try:
            machine.device_offline(block.id)
        except BaseException as error:
            errors.append(error)
        finally:
            over.set()

    thread = threading.Thread(target=request, daemon=True)
    switch.task_of(thread).on_park = lambda _: over.set()
    thread.start()
    go.set()
    over.wait()
    machine.send_signal(thread)
    thread.join()
    return _reason(machine, errors[0]) if errors else ("", "")


def _reason(machine: Machine, error: BaseException) -> tuple[str, str]:
    if isinstance(error, PageRefusal):
        return error.kind, error.owner
    if isinstance(error, Interrupted) and error.page is not None:
        with machine.pages.lock:
            holder = machine.pages.holder_of(Pfn(error.page))
        pinned = holder is not None and holder.pins > 0
        return (PINNED if pinned else NO_ROOM), (holder.owner if holder is not None and pinned else "")
    if isinstance(error, HotplugError):
        return SPANS, ""
    raise error
