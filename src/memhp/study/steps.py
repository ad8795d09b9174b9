"""One run of a scenario in a study: its steps on the machine of a point, and what became of each."""

from __future__ import annotations

import dataclasses
from typing import Any

from memhp.errors import ScenarioError
from memhp.kernel import Machine
from memhp.scenario import Player, Scenario
from memhp.scenario.model import Step
from memhp.scenario.play import Event
from memhp.study.plan import Point
from memhp.study.reasons import reason_of

__all__ = ["at_point", "machine_at", "play_steps"]

_PARAMETERS = {
    "policy": "memory_hotplug.online_policy",
    "ratio": "memory_hotplug.auto_movable_ratio",
    "numa_aware": "memory_hotplug.auto_movable_numa_aware",
    "online": "memhp_default_state",
}
_FILLED = {"workload": ("workload", "database"), "fill": ("share", 0.6), "age": ("age", 0)}
"""What the axes are called in the step `fill`, and what they are if neither the study nor the scenario says."""


def machine_at(description: dict[str, Any], point: Point) -> dict[str, Any]:
    """Give the description of a machine with a point's values; what the point leaves open stays."""
    changed = {name: point[axis] for axis, name in _PARAMETERS.items() if point[axis] is not None}
    described = dict(description)
    if point["block_size"] is not None:
        described["block_size"] = point["block_size"]
    given = described.get("parameters") or {}
    if changed and isinstance(given, str):
        described["parameters"] = " ".join([given, *(f"{name}={_word(value)}" for name, value in changed.items())])
    elif changed:
        described["parameters"] = {**given, **changed}
    return described


def _word(value: object) -> object:
    return ("n", "y")[value] if isinstance(value, bool) else value


def at_point(scenario: Scenario, point: Point) -> Scenario:
    """Give the scenario with a point's values: its machine, and what fills it; without a step `fill`, that comes first."""
    filled = {name: point[axis] for axis, (name, _) in _FILLED.items() if point[axis] is not None}
    steps = tuple(
        dataclasses.replace(step, arguments={**step.arguments, **filled, "seed": point["seed"]}) if step.verb == "fill" else step
        for step in scenario.steps
    )
    if filled and not any(step.verb == "fill" for step in steps):
        usual = dict(_FILLED.values())
        steps = (Step(0, 0, "fill", {**usual, **filled, "seed": point["seed"]}, "", "fill"), *steps)
    machine = dataclasses.replace(scenario.machine, description=machine_at(scenario.machine.description, point))
    return dataclasses.replace(scenario, machine=machine, steps=steps)


def play_steps(point: Point) -> tuple[Machine, dict[str, Any]]:
    """Play a point's scenario; gives the machine as it is then, and the columns of the steps.

    For each step its result, how many pages moved meanwhile, and what stopped it. A step that asks for what that machine does
    not have ends the run; ``not played`` says why then, and what was played counts.
    """
    scenario = at_point(point["scenario"], point)
    steps = [step for step in scenario.steps if step.verb != "note" and step.number]
    moved: dict[int, int] = {}
    now = [0, 0]  # the step, and how many pages had moved before it

    def listen(event: Event) -> None:
        if event["event"] in {"step", "end"}:
            migrated = player.machine.pages.migrated
            moved[now[0]] = migrated - now[1]
            now[:] = event.get("number", 0), migrated

    player = Player(scenario, listen, impatient=True)
    why = ""
    try:
        player.play()
    except ScenarioError as error:
        why = str(error)
        listen({"event": "end"})
    columns: dict[str, Any] = {}
    for step in steps:
        outcome = player.outcomes.get(step.number)
        found = None if outcome is None or outcome.error is None else reason_of(player.machine, outcome.error)
        columns[f"step {step.number}"] = "" if outcome is None else outcome.result
        columns[f"step {step.number} moved"] = moved.get(step.number, 0)
        columns[f"step {step.number} stopped by"] = "" if found is None else " of ".join(filter(None, found))
    return player.machine, {**columns, "failed expectations": player.failures, "not played": why}
