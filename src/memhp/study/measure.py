"""One run of a study: a machine is booted, filled and aged; then its blocks are taken offline, as many as will go."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from memhp.errors import HotplugError, PageRefusal
from memhp.kernel import Machine, Rules
from memhp.kernel.blocks import MemoryBlock
from memhp.locking import switch
from memhp.scenario.workloads import fill
from memhp.study.plan import AXES, Point
from memhp.study.reasons import REASONS, why_it_stays
from memhp.study.steps import play_steps

__all__ = ["COLUMNS", "Row", "run_point"]

Row = dict[str, Any]

_NUMBERS = ("blocks", "movable_blocks", "used_pages", "free_pages", "isolable", "gone", "share", "moved_pages")
COLUMNS = (*AXES, "seed", *_NUMBERS, *(f"stopped by {reason}" for reason in REASONS), "most in the way")
"""The columns of the table, in their order; those of a scenario's steps come after them."""


def run_point(point: Point) -> Row:
    """Do one run.

    ``isolable`` counts blocks that hold nothing unmovable, each by itself. ``gone`` counts those that went offline one after
    the other, from the highest down, and stayed offline: their pages have moved to what was left, until no room was.
    """
    steps: Row = {}
    if point["scenario"] is not None:
        machine, steps = play_steps(point)
    else:
        machine = _boot(point)
        fill(machine, point["workload"], point["fill"], seed=point["seed"], age=point["age"])
    return {
        **{name: point[name] for name in AXES},
        "seed": point["seed"],
        **_take_all(machine),
        **steps,
    }


def _take_all(machine: Machine) -> Row:
    blocks = sorted((block for block in machine.blocks.values() if block.present), key=lambda block: -block.id)
    movable = sum(block.zone is not None and block.zone.type.label == "Movable" for block in blocks)
    used, free = sum(machine.pages.count_used(block) for block in blocks), machine.pages.count_free()
    isolable = sum(_isolates(machine, block) for block in blocks)
    stopped: Counter[str] = Counter()
    owners: Counter[str] = Counter()
    migrated = machine.pages.migrated
    for block in blocks:
        found = _take_offline(machine, block)
        if found is not None:
            reason, owner = found
            stopped[reason] += 1
            owners[owner] += bool(owner)
    gone = len(blocks) - stopped.total()
    moved = machine.pages.migrated - migrated
    numbers = (len(blocks), movable, used, free, isolable, gone, gone / max(len(blocks), 1), moved)
    return {
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


def _take_offline(machine: Machine, block: MemoryBlock) -> tuple[str, str] | None:
    # Gives why it stays and whose page it was. Whoever would wait for a page gets a signal instead.
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
    if not errors:
        return None
    if not isinstance(errors[0], HotplugError):
        raise errors[0]
    return why_it_stays(machine, errors[0])
