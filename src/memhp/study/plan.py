"""Study files: which machines are filled with what, and in which combinations."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memhp.errors import InvalidInput
from memhp.kernel import Machine, Rules
from memhp.kernel.boot import parse_policy
from memhp.scenario import Scenario, load
from memhp.scenario.decode import FIELDS, scenario_of
from memhp.scenario.reader import Value, read_yaml
from memhp.scenario.words import count, share
from memhp.scenario.workloads import WORKLOADS
from memhp.units import parse_ids, parse_size

__all__ = ["AXES", "Point", "Study", "load_study"]

Point = dict[str, Any]
"""One run: a value for each axis, the seed, and what the study's file says of the machine."""

_MACHINE = ("nodes", "room", "rules", "hypervisor")
_FIELDS = ("study", "machine", "added", "vary", "seeds")


def _size(value: Value) -> int:
    return value.parsed(parse_size)


AXES: dict[str, tuple[Callable[[Value], Any], Any]] = {
    "workload": (lambda value: value.choice(tuple(WORKLOADS)), "database"),
    "policy": (lambda value: value.parsed(parse_policy), "contig-zones"),
    "ratio": (count, 301),
    "numa_aware": (lambda value: value.boolean(), True),
    "online": (lambda value: value.choice(("online", "online_kernel", "online_movable")), "online"),
    "block_size": (_size, 128 << 20),
    "fill": (share, 0.6),
    "age": (count, 0),
}
"""What can be varied: how a value is read, and what it is where a study says nothing."""


@dataclass(frozen=True, slots=True)
class Study:
    """What a study file says.

    Attributes:
        title: its first line.
        machine: arguments of ``Machine.boot``, without what varies.
        added: bytes that are added to the first node after boot, before the workload begins.
        axes: the values of each axis.
        seeds: the seeds.
        scenario: what happens, if steps do: then it has the machine, and an axis with the value None leaves it as it is.
    """

    title: str
    machine: dict[str, Any]
    added: int
    axes: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    scenario: Scenario | None = None

    @property
    def varied(self) -> list[str]:
        """The axes that have several values."""
        return [name for name, values in self.axes.items() if len(values) > 1]

    def points(self) -> Iterator[Point]:
        """Give every run: each combination of values, with each seed."""
        for values in itertools.product(*self.axes.values()):
            for seed in self.seeds:
                fixed = {"machine": self.machine, "added": self.added, "scenario": self.scenario, "seed": seed}
                yield {**fixed, **dict(zip(self.axes, values, strict=True))}


def load_study(path: str | os.PathLike[str], *, seeds: int = 0) -> Study:
    """Read a study file, or a scenario that is to be studied as it is.

    Args:
        path: the file.
        seeds: how many seeds, from 1 on, in place of those of the file.

    Raises:
        ScenarioError: it can't be read, or says something that can't be; with file and line.
    """
    document = read_yaml(Path(path))
    study, where = _read(document, Path(path))
    if seeds:
        study = dataclasses.replace(study, seeds=tuple(range(1, seeds + 1)))
    if study.scenario is not None and study.scenario.machine.source:
        where.get("scenario", where.get("machine", document)).fail("a scenario whose machine is described with `nodes`")
    for size in study.axes["block_size"]:
        where.get("block_size", where.get("machine", document)).checked(lambda size=size: _check(study, size))  # type: ignore[misc]
    return study


Read = tuple["Study", dict[str, Value]]
"""A study, and where in its file the parts are that can only be checked together."""


def _read(document: Value, path: Path) -> Read:
    keys = {key.text() for key, _ in document.items()}
    if "study" in keys and keys & {"scenario", "steps"}:
        return _with_steps(document, path)
    if "steps" in keys:
        scenario = scenario_of(document.fields(FIELDS, ("machine", "steps")), path)
        return Study(scenario.title, {}, 0, _axes({}, usual=False), (1,), scenario), {}
    return _without(document)


def _without(document: Value) -> Read:
    fields = document.fields(_FIELDS, ("study", "machine"))
    fields["machine"].fields(_MACHINE, ("nodes",))
    vary = _varied(fields)
    study = Study(
        fields["study"].text(),
        {key.text(): value.plain() for key, value in fields["machine"].items()},
        _size(fields["added"]) if "added" in fields else 0,
        _axes(vary, usual=True),
        _seeds(fields),
    )
    return study, {**fields, **vary}


def _with_steps(document: Value, path: Path) -> Read:
    inline = tuple(name for name in FIELDS if name != "title")
    fields = document.fields(("study", "scenario", "vary", "seeds", *inline), ("study",))
    if "scenario" in fields:
        extra = next((fields[name] for name in inline if name in fields), None)
        if extra is not None:
            extra.fail("either a scenario's file or its parts")
        scenario = load(path.parent / fields["scenario"].text())
    else:
        document.fields(("study", "vary", "seeds", *inline), ("machine", "steps"))
        scenario = scenario_of({name: fields[name] for name in inline if name in fields}, path)
    vary = _varied(fields)
    study = Study(fields["study"].text(), {}, 0, _axes(vary, usual=False), _seeds(fields), scenario)
    return study, {**fields, **vary}


def _varied(fields: dict[str, Value]) -> dict[str, Value]:
    return fields["vary"].fields(tuple(AXES)) if "vary" in fields else {}


def _axes(vary: dict[str, Value], *, usual: bool) -> dict[str, tuple[Any, ...]]:
    # A scenario says itself what is not varied.
    left = {name: (value if usual else None,) for name, (_, value) in AXES.items()}
    return {name: _values(vary[name], AXES[name][0]) if name in vary else left[name] for name in AXES}


def _seeds(fields: dict[str, Value]) -> tuple[int, ...]:
    seeds = tuple(fields["seeds"].parsed(parse_ids)) if "seeds" in fields else (1,)
    if not seeds:
        fields["seeds"].fail("at least one seed, such as 1-8")
    return seeds


def _values(value: Value, read: Callable[[Value], Any]) -> tuple[Any, ...]:
    found = tuple(read(one) for one in value.elements()) if value.is_list else (read(value),)
    if not found:
        value.fail("at least one value")
    if len(set(found)) < len(found):
        value.fail("each value once")
    return found


def _check(study: Study, block_size: int | None) -> None:
    if study.scenario is not None:
        machine = study.scenario.machine
        Machine.boot(**{**machine.description, **({"block_size": block_size} if block_size else {})}, rules=machine.rules)
        return
    rules = Rules.of(str(study.machine.get("rules", "documented")))
    boot = {name: value for name, value in study.machine.items() if name != "rules"}
    booted = Machine.boot(**boot, block_size=block_size, rules=rules)
    if study.added % (block_size or 1):
        raise InvalidInput(study.added, "added", f"a multiple of the block size {block_size}")
    if study.added:
        booted.next_room(study.added)
