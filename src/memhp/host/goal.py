"""What a person asks for: an amount, a range of addresses, blocks, or a node."""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

from memhp.errors import InvalidInput
from memhp.host.survey import Survey
from memhp.units import format_ids, format_size, parse_ids, parse_size

__all__ = ["Goal", "Operation", "parse_goal"]

_RANGE = re.compile(r"(0[xX][0-9a-fA-F]+)\s*-\s*(0[xX][0-9a-fA-F]+)")
_NODE = re.compile(r"node:?(\d+)")
EXPECTED = "a size such as 4G, a range such as 0x100000000-0x17fffffff, blocks such as 32-35,40, or node:1"


class Operation(enum.Enum):
    """Which way."""

    OFFLINE = "offline"
    ONLINE = "online"

    @property
    def from_state(self) -> str:
        """The state that blocks have before."""
        return "online" if self is Operation.OFFLINE else "offline"


class Goal(NamedTuple):
    """What is asked for.

    Attributes:
        text: as it was written.
        size: bytes, of whatever blocks are best; None if the blocks are named.
        ids: the blocks that are named, also through a range or a node; () with a size.
    """

    text: str
    size: int | None = None
    ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return format_size(self.size) if self.size is not None else f"memory{format_ids(self.ids)}"


def parse_goal(text: str, survey: Survey) -> Goal:
    """Read a goal. A plain number is a block, as an amount has a unit (``4G``).

    Blocks that don't exist inside a range are a hole and left out; a range must begin and end where blocks do.

    Raises:
        InvalidInput: none of the four, not in whole blocks, or of blocks that don't exist.
    """
    if match := _NODE.fullmatch(text):
        node = int(match[1])
        ids = tuple(int(block.id) for block in survey.blocks if node in (block.nodes or (0,)))
        if not ids:
            raise InvalidInput(text, "goal", "a node that has memory blocks")
        return Goal(text, ids=ids)
    if match := _RANGE.fullmatch(text):
        return Goal(text, ids=_range(text, int(match[1], 16), int(match[2], 16), survey))
    if re.fullmatch(r"[\d,\s-]+|(memory\d+,?)+", text):
        ids = tuple(parse_ids(text.replace("memory", ""), "blocks"))
        missing = [number for number in ids if number not in survey.by_id]
        if missing or not ids:
            raise InvalidInput(f"memory{format_ids(missing)}" if missing else text, "blocks", "blocks that exist")
        return Goal(text, ids=ids)
    try:
        size = parse_size(text)
    except InvalidInput:
        raise InvalidInput(text, "goal", EXPECTED) from None
    if size == 0 or size % survey.block_size:
        raise InvalidInput(text, "size", f"a multiple of the memory blocks' size, {format_size(survey.block_size)}")
    return Goal(text, size=size)


def _range(text: str, first: int, last: int, survey: Survey) -> tuple[int, ...]:
    size = survey.block_size
    if first % size or (last + 1) % size or last < first:
        raise InvalidInput(text, "range", f"the first and last address of memory blocks, which are {format_size(size)} each")
    ids = tuple(int(block.id) for block in survey.blocks if first <= block.start <= last)
    if not ids:
        raise InvalidInput(text, "range", "addresses where there are memory blocks")
    return ids
