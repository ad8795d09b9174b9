"""Which blocks a step means, whatever the machine: modelled, or real."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from memhp.abi.paths import MEMORY
from memhp.errors import ScenarioError
from memhp.scenario.model import Selection, Step

__all__ = ["BlockView", "Selector"]

_ALIAS = re.compile(r"\$([A-Za-z_][\w-]*)")


@dataclass(frozen=True, slots=True)
class BlockView:
    """What is looked at in a block to choose it."""

    id: int
    node: int
    state: str
    movable_as_whole: bool
    """Whether it is offline, or in one zone without holes: a block over several zones can never leave."""


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

    def path(self, file: str) -> str:
        """Give the absolute path of a file; relative ones are in the memory directory, ``$name`` is a block."""
        file = _ALIAS.sub(self._first_block, file)
        return file if file.startswith("/") else f"{MEMORY}/{file}"

    def _first_block(self, match: re.Match[str]) -> str:
        ids = self._aliases.get(match[1])
        return f"memory{ids[0]}" if ids else match[0]

    def remember(self, step: Step, ids: Iterable[int]) -> None:
        """Give the blocks the step's name, if it has one (``as``)."""
        if step.alias:
            self.name(step.alias, ids)

    def name(self, name: str, ids: Iterable[int]) -> None:
        """Give blocks a name."""
        self._aliases[name] = tuple(ids)

    def choose(self, step: Step, selection: Selection, state: str | None = None) -> list[int]:
        """Give the blocks that are meant, and give them the step's name; raises as :meth:`resolve`."""
        chosen = self.resolve(step, selection, state)
        self.remember(step, chosen)
        return chosen

    def resolve(self, step: Step, selection: Selection, state: str | None) -> list[int]:
        """Give the ids of the blocks that are meant; of those in ``state`` where the selection is by size or place.

        Raises:
            ScenarioError: a name that no step gave, or more blocks than there are; with file and line.
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
            raise self.bad(step, name, "a name given by an earlier step with `as`, or of a DIMM")
        return list(self._aliases[name])

    def _exactly(self, step: Step, fits: list[int], count: int, *, from_end: bool) -> list[int]:
        if len(fits) < count:
            raise self.bad(step, step.shown, f"no more than {len(fits)} blocks, as many as there are")
        return fits[-count:][::-1] if from_end else fits[:count]

    def bad(self, step: Step, value: object, expected: str) -> ScenarioError:
        """Make the error of a step that asks for what isn't there."""
        return ScenarioError(value, str(self._file), step.line, expected, step.verb)
