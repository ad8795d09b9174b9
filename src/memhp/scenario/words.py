"""Values that occur in many places of a scenario: names, blocks, shares."""

from __future__ import annotations

import re
from typing import Any

from memhp.scenario.model import Selection
from memhp.scenario.reader import Value
from memhp.scenario.workloads import MOST_ROUNDS
from memhp.units import parse_ids, parse_size

__all__ = ["Decoded", "alias", "blocks", "count", "name", "rounds", "selection", "share", "show"]

Decoded = tuple[dict[str, Any], str]
"""What a step asks for, and the step in words."""

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_PLACE = re.compile(r"(first|last)(?:\s+(\d+))?")


def name(value: Value) -> str:
    """Read a name."""
    if not _NAME.fullmatch(value.text()):
        value.fail("a name: letters, digits, _ and -")
    return value.text()


def alias(value: Value) -> str:
    """Read a name that can stand for blocks."""
    if _PLACE.fullmatch(value.text()):
        value.fail("another name; first and last are places")
    return name(value)


def count(value: Value) -> int:
    """Read a number that is not negative."""
    number = value.number()
    if not 0 <= number < 1 << 32:
        value.fail("a number from 0 to 2^32 - 1")
    return number


def rounds(value: Value) -> int:
    """Read for how many rounds something ages."""
    number = value.number()
    if not 0 <= number <= MOST_ROUNDS:
        value.fail(f"a number of rounds from 0 to {MOST_ROUNDS}")
    return number


def share(value: Value) -> float:
    """Read a share of a whole: ``60%`` or ``0.6``."""
    text = value.text().strip()
    try:
        found = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value.fail("a share such as 60% or 0.6")
    if not 0 < found < 1:
        value.fail("a share above 0 and below 1, such as 60%")
    return found


def show(value: Value) -> str:
    """Give a selection of blocks as the file has it."""
    if not value.is_mapping:
        return value.text()
    shown = {key.text(): given.text() for key, given in value.items()}
    shown.pop("type", None)
    return ", ".join(f"{key} {text}" for key, text in shown.items())


def selection(value: Value, beside: tuple[str, ...] = ()) -> Selection:
    """Read which blocks are meant; ``beside`` are keys of the mapping that somebody else reads."""
    if not value.is_mapping:
        return blocks(value)
    fields = value.fields(("blocks", "size", "node", "among", *beside))
    among = name(fields["among"]) if "among" in fields else ""
    node = fields["node"].number() if "node" in fields else None
    if "size" in fields and "blocks" in fields:
        fields["size"].fail("either blocks or size")
    if "size" in fields:
        size = fields["size"].parsed(parse_size)
        if not size:
            fields["size"].fail("a size above 0")
        return Selection(size=size, among=among, node=node)
    if "blocks" not in fields:
        if node is None and not among:
            value.fail("blocks: blocks, size, node or among")
        return Selection(among=among, node=node)
    chosen = blocks(fields["blocks"])
    if (node is not None or among) and not chosen.place:
        fields["blocks"].fail("first or last beside node and among")
    return Selection(chosen.ids, chosen.name, place=chosen.place, count=chosen.count, among=among, node=node)


def blocks(value: Value) -> Selection:
    """Read blocks: by number, by name or by place."""
    text = value.text().strip()
    match = _PLACE.fullmatch(text)
    if match:
        count = int(match[2] or 1)
        if not count:
            value.fail("at least one block")
        return Selection(place=match[1], count=count)
    if _NAME.fullmatch(text):
        return Selection(name=text)
    ids = value.parsed(parse_ids)
    if not ids:
        value.fail("blocks such as 32-35,40, first 2, last, or a name given with `as`")
    return Selection(ids=tuple(ids))
