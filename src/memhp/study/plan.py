"""Study files: which machines are filled with what, and in which combinations."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memhp.errors import InvalidInput
from memhp.kernel import Machine, Rules
from memhp.kernel.boot import parse_policy
from memhp.scenario.reader import Value, read_yaml
from memhp.scenario.workloads import WORKLOADS
from memhp.units import parse_ids, parse_size

__all__ = ["AXES", "Point", "Study", "load_study"]

Point = dict[str, Any]
"""One run: a value for each axis, the seed, and what the study's file says of the machine."""

_MACHINE = ("nodes", "room", "rules", "hypervisor")
_FIELDS = ("study", "machine", "added", "vary", "seeds")


def _share(value: Value) -> float:
    text = value.text().strip()
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value.fail("a share such as 60% or 0.6")
    if not 0 < share < 1:
        value.fail("a share above 0 and below 1, such as 60%")
    return share


def _count(value: Value) -> int:
    number = value.number()
    if not 0 <= number < 1 << 32:
        value.fail("a number from 0 to 2^32 - 1")
    return number


def _size(value: Value) -> int:
    return value.parsed(parse_size)


AXES: dict[str, tuple[Callable[[Value], Any], Any]] = {
    "workload": (lambda value: value.choice(tuple(WORKLOADS)), "database"),
    "policy": (lambda value: value.parsed(parse_policy), "contig-zones"),
    "ratio": (_count, 301),
    "numa_aware": (lambda value: value.boolean(), True),
    "online": (lambda value: value.choice(("online", "online_kernel", "online_movable")), "online"),
    "block_size": (_size, 128 << 20),
    "fill": (_share, 0.6),
    "age": (_count, 0),
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
    """

    title: str
    machine: dict[str, Any]
    added: int
    axes: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]

    @property
    def varied(self) -> list[str]:
        """The axes that have several values."""
        return [name for name, values in self.axes.items() if len(values) > 1]

    def points(self) -> Iterator[Point]:
        """Give every run: each combination of values, with each seed."""
        for values in itertools.product(*self.axes.values()):
            for seed in self.seeds:
                yield {"machine": self.machine, "added": self.added, "seed": seed, **dict(zip(self.axes, values, strict=True))}


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read a study file.

    Raises:
        ScenarioError: it can't be read, or says something that can't be; with file and line.
    """
    document = read_yaml(Path(path))
    fields = document.fields(_FIELDS, ("study", "machine"))
    machine = fields["machine"].fields(_MACHINE, ("nodes",))
    described = {name: value.plain() for name, value in machine.items()}
    vary = fields["vary"].fields(tuple(AXES)) if "vary" in fields else {}
    axes = {name: _values(vary[name], read) if name in vary else (usual,) for name, (read, usual) in AXES.items()}
    study = Study(
        fields["study"].text(),
        described,
        _size(fields["added"]) if "added" in fields else 0,
        axes,
        tuple(fields["seeds"].parsed(parse_ids)) if "seeds" in fields else (1,),
    )
    if not study.seeds:
        fields["seeds"].fail("at least one seed, such as 1-8")
    for size in axes["block_size"]:
        where = vary.get("block_size", fields["machine"])
        where.checked(lambda size=size: _check(study, size))  # type: ignore[misc]
    return study


def _values(value: Value, read: Callable[[Value], Any]) -> tuple[Any, ...]:
    found = tuple(read(one) for one in value.elements()) if value.is_list else (read(value),)
    if not found:
        value.fail("at least one value")
    if len(set(found)) < len(found):
        value.fail("each value once")
    return found


def _check(study: Study, block_size: int) -> None:
    rules = Rules.of(str(study.machine.get("rules", "documented")))
    boot = {name: value for name, value in study.machine.items() if name != "rules"}
    machine = Machine.boot(**boot, block_size=block_size, rules=rules)
    if study.added % block_size:
        raise InvalidInput(study.added, "added", f"a multiple of the block size {block_size}")
    if study.added:
        machine.next_room(study.added)
