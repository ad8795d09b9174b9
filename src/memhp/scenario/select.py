"""Which blocks a step means, whatever the machine: modelled, or real."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from memhp.abi.paths import MEMORY
from memhp.errors import HotplugError, MemhpError, ScenarioError
from memhp.scenario.model import Expectations, Selection, Step

__all__ = ["BlockView", "Selector", "nobody"]

_NAMING = ("plug", "bind", "group", "memremap")
"""The steps whose ``name`` is one that they give."""
_ALIAS = re.compile(r"\$([A-Za-z_][\w-]*)")


@dataclass(frozen=True, slots=True)
class BlockView:
    """What is looked at in a block to choose it."""

    id: int
    node: int
    state: str
    movable_as_whole: bool
    """Whether it is offline, or in one zone without holes: a block over several zones can never leave."""


def nobody(expect: Expectations, key: str) -> Step:
    """Give a step for what is looked at because it is expected, for errors."""
    return Step(0, expect.line, f"expect: {key}", {}, "", f"expect: {key}")


class Selector:
    """Finds the blocks that steps mean, and remembers the names that steps gave to blocks.

    Args:
        blocks: gives the blocks that are there now.
        block_size: gives the bytes of a block.
        file: the scenario's, for errors.
    """

    def __init__(self, blocks: Callable[[], Iterable[BlockView]], block_size: Callable[[], int], file: Path) -> None:
        self._blocks = blocks
        self._block_size = block_size
        self._file = file
        self._aliases: dict[str, tuple[int, ...]] = {}
        self._lost: dict[str, str] = {}

    def path(self, step: Step, file: str) -> str:
        """Give the absolute path of a file; relative ones are in the memory directory, ``$name`` is a block.

        Raises:
            ScenarioError: a name that no step gave, or that stands for no block.
            HotplugError: ENOENT, the step that would have given the name failed.
        """
        file = _ALIAS.sub(lambda match: self._first_block(step, match[1]), file)
        return file if file.startswith("/") else f"{MEMORY}/{file}"

    def _first_block(self, step: Step, name: str) -> str:
        ids = self._named(step, name)
        if not ids:
            raise self.bad(step, name, "a name of at least one block")
        return f"memory{ids[0]}"

    def remember(self, step: Step, ids: Iterable[int]) -> None:
        """Give the blocks the step's name, if it has one (``as``)."""
        if step.alias:
            self.name(step.alias, ids)

    def name(self, name: str, ids: Iterable[int]) -> None:
        """Give blocks a name."""
        self._aliases[name] = tuple(ids)

    def lose(self, step: Step, result: str) -> None:
        """Note that the step failed; the names that it did not come to give are :meth:`unknown` for that reason."""
        given = [step.alias]
        if step.verb in _NAMING:
            given.append(step.arguments["name"])
        if step.verb == "allocate":
            given.append(step.arguments["wanted"].name)
        for name in filter(None, given):
            self._lost[name] = f"step {step.number} would have named it, and ended with {result}"

    def unknown(self, step: Step, name: str, expected: str) -> MemhpError:
        """Make the error of a step that means something by a name that nothing has.

        That is a mistake in the file (:meth:`bad`), or, if the step that would have given the name failed, ENOENT.
        """
        if name in self._lost:
            return HotplugError(errno.ENOENT, f"{name}: {self._lost[name]}")
        return self.bad(step, name, expected)

    def choose(self, step: Step, selection: Selection, state: str | None = None) -> list[int]:
        """Give the blocks that are meant, and give them the step's name; raises as :meth:`resolve`."""
        chosen = self.resolve(step, selection, state)
        self.remember(step, chosen)
        return chosen

    def resolve(self, step: Step, selection: Selection, state: str | None) -> list[int]:
        """Give the ids of the blocks that are meant; of those in ``state`` where the selection is by size or place.

        Raises:
            ScenarioError: a name that no step gave, or more blocks than there are; with file and line.
            HotplugError: ENOENT, the step that would have given the name failed.
        """
        if selection.name:
            return self._named(step, selection.name)
        if selection.ids:
            return list(selection.ids)
        among = set(self._named(step, selection.among)) if selection.among else None
        fits = [
            block.id
            for block in sorted(self._blocks(), key=lambda block: block.id)
            if (among is None or block.id in among)
            and (selection.node is None or block.node == selection.node)
            and (state is None or block.state == state)
            and block.movable_as_whole
        ]
        if selection.size:
            return self._exactly(step, fits, -(-selection.size // self._block_size()), from_end=state == "online")
        if selection.place:
            return self._exactly(step, fits, selection.count, from_end=selection.place == "last")
        if not fits:
            raise self.bad(step, step.shown, "at least one block; none is there")
        return fits

    def _named(self, step: Step, name: str) -> list[int]:
        if name not in self._aliases:
            raise self.unknown(step, name, "a name given by an earlier step with `as`, or of a DIMM")
        return list(self._aliases[name])

    def _exactly(self, step: Step, fits: list[int], count: int, *, from_end: bool) -> list[int]:
        if len(fits) < count:
            raise self.bad(step, step.shown, f"no more than {len(fits)} blocks, as many as there are")
        return fits[-count:][::-1] if from_end else fits[:count]

    def bad(self, step: Step, value: object, expected: str) -> ScenarioError:
        """Make the error of a step that asks for what isn't there."""
        return ScenarioError(value, str(self._file), step.line, expected, step.verb)
