"""``memhp plan``: which blocks, at which cost, and what is left."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from memhp.abi.tree import DirTree
from memhp.cli.text import columns, common_options, goal_options, guarded, human, print_json, size_option, sysroot_of
from memhp.host.goal import Operation
from memhp.host.inventory import Host
from memhp.host.plan import Plan, Step, make_plan
from memhp.host.survey import Survey
from memhp.units import format_ids

if TYPE_CHECKING:
    import argparse

__all__ = ["configure", "lines_of", "main", "plan_of", "to_json"]

_SCHEMA = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Say which blocks are best to be taken offline or brought online, what that costs, and what is left then. Nothing is "
        "changed. Exit codes: 0 it can be done, 1 it can't, 2 bad input."
    )
    parser.add_argument("operation", choices=("offline", "online"))
    goal_options(parser)
    common_options(parser)


def main(options: argparse.Namespace) -> int:
    """Print a plan; gives the exit code: 0 if it can be carried out, else 1."""
    return guarded(lambda: _plan(options))


def _plan(options: argparse.Namespace) -> int:
    plan = plan_of(options, Operation(options.operation), Host(DirTree(sysroot_of(options))))
    if options.json:
        print_json(to_json(plan))
    else:
        print("\n".join(lines_of(plan)))
    return 0 if plan.feasible else 1


def plan_of(options: argparse.Namespace, operation: Operation, host: Host) -> Plan:
    """Make the plan that the options ask for.

    Raises:
        InvalidInput: a goal or option that makes no sense on this machine.
        HostError: there are no memory blocks, or they can't be read.
    """
    keep_free = size_option(options.keep_free, "--keep-free")
    return make_plan(Survey.take(host), operation, options.goal, zone=options.zone, node=options.node, keep_free=keep_free)


def lines_of(plan: Plan) -> list[str]:
    """Give a plan as lines of text."""
    verb = "Take offline" if plan.operation is Operation.OFFLINE else "Bring online"
    lines = [f"{verb} {human(plan.size)}: {_blocks(len(plan.steps))} of {human(plan.block_size)}"]
    groups = itertools.groupby(plan.steps, key=lambda step: (step.node, step.zone, step.word, step.sentence))
    rows = [
        [f"  memory{format_ids(ids)}", f"node {node}", zone or "-", word, what]
        for (node, zone, word, what), ids in _grouped(groups)
    ]
    lines += columns(rows) if rows else []
    if plan.already:
        lines.append(
            f"  memory{format_ids(plan.already)} already {'offline' if plan.operation is Operation.OFFLINE else 'online'}"
        )
    if plan.spare:
        first = f"memory{plan.spare[0].block.id}{' first' if len(plan.spare) > 1 else ''}"
        lines.append(f"  {_blocks(len(plan.spare), 'more ')} could stand in for one that fails, {first}")
    lines += _what_is_left(plan)
    lines += [f"Mind: {warning}" for warning in plan.warnings]
    return [*lines, *(f"Not possible: {problem}" for problem in plan.problems)]


def _blocks(number: int, word: str = "") -> str:
    return f"{number} {word}block{'s' * (number != 1)}"


def _grouped(groups: Any) -> list[tuple[Any, list[int]]]:
    return [(key, [step.block.id for step in steps]) for key, steps in groups]


def _what_is_left(plan: Plan) -> list[str]:
    changed = [one for one in plan.left if one.present != one.present_after]
    rows = [["  ZONE", "NOW", "AFTER", "FREE NOW", "AFTER"]]
    rows += [
        [
            f"  node {one.node} {one.zone}",
            *(human(pages * plan.page_size) for pages in (one.present, one.present_after, one.free, one.free_after)),
        ]
        for one in changed
    ]
    lines = columns(rows, right=frozenset({1, 2, 3, 4})) if changed else []
    if plan.available is not None and plan.available_after is not None:
        floor = f" (floor {human(plan.floor)})" if plan.floor is not None else ""
        lines.append(f"  available {human(plan.available)}, then {human(plan.available_after)}{floor}")
    if plan.ratio is not None and plan.ratio_after is not None:
        lines.append(f"  movable to kernel memory {plan.ratio:.2f}, then {plan.ratio_after:.2f}")
    return lines


def to_json(plan: Plan) -> dict[str, Any]:
    """Give what ``--json`` prints: sizes in bytes, zones in pages, null where nothing is known."""
    return {
        "schema": _SCHEMA,
        "operation": plan.operation.value,
        "goal": plan.goal.text,
        "feasible": plan.feasible,
        "problems": list(plan.problems),
        "warnings": list(plan.warnings),
        "block_size": plan.block_size,
        "size": plan.size,
        "steps": [_step(step) for step in plan.steps],
        "spare": [_step(step) for step in plan.spare],
        "already": list(plan.already),
        "move_pages": plan.move_pages,
        "available": plan.available,
        "available_after": plan.available_after,
        "floor": plan.floor,
        "ratio": plan.ratio,
        "ratio_after": plan.ratio_after,
        "zones": [
            {
                "node": one.node,
                "zone": one.zone,
                "present": one.present,
                "present_after": one.present_after,
                "free": one.free,
                "free_after": one.free_after,
            }
            for one in plan.left
        ],
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "id": step.block.id,
        "node": step.node,
        "zone": step.zone or None,
        "word": step.word,
        "verdict": None if step.verdict is None else step.verdict.value,
        "move_pages": step.move_pages,
    }
