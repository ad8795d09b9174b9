"""Schedule strings: one execution in a line that can be pasted.

``mhx1:NAME:SHARED:STEPS:KIND:CHECK``. STEPS has for each turn the letter of the thread, small, and the letters of its
steps, large; a choice is ``C`` and its number. ``-c-3.`` at the beginning says that thread c and part 3 of the scene were
left out. SHARED says in
hexadecimal which declared fields were shared variables. CHECK is a sum of the steps in words.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from memhp.errors import InvalidInput
from memhp.explore.ops import CHOOSE, NAMES, letter_of
from memhp.explore.strategies.replay import Turn

__all__ = ["VERSION", "Schedule", "checksum", "encode", "parse"]

VERSION = "mhx1"
_KINDS = {letter_of(kind): kind for kind in range(len(NAMES))}
_STEPS = re.compile(r"((?:-(?:[a-z]+|\d+))+\.)?((?:[a-z]+(?:[ABD-Z]|C\d+)+)*)")
_TURN = re.compile(r"([a-z]+)((?:[ABD-Z]|C\d+)+)")
_STEP = re.compile(r"([ABD-Z])|C(\d+)")
_EXPECTED = f"a schedule string as memhp explore prints it: {VERSION}:NAME:SHARED:STEPS:KIND:CHECK"


class Schedule(NamedTuple):
    """What a schedule string says."""

    name: str
    shared: frozenset[int]
    left_out: frozenset[int]
    left_parts: frozenset[int]
    turns: tuple[Turn, ...]
    kind: str
    check: str


def encode(
    name: str,
    shared: frozenset[int],
    left_out: tuple[frozenset[int], frozenset[int]],
    turns: Sequence[Turn],
    kind: str,
    check: str,
) -> str:
    """Write one; ``left_out`` are the threads and the parts that are."""
    threads, left_parts = left_out
    parts = [f"-{_thread(index)}" for index in sorted(threads)] + [f"-{number}" for number in sorted(left_parts)]
    parts += ["."] if parts else []
    last = -1
    for task, step, number in turns:
        if task != last:
            parts.append(_thread(task))
            last = task
        parts.append(f"C{number}" if step == CHOOSE else letter_of(step))
    mask = sum(1 << position for position in shared)
    return f"{VERSION}:{name}:{mask:x}:{''.join(parts)}:{kind.replace(' ', '-')}:{check}"


def parse(text: str, name: str) -> Schedule:
    """Read one that is for the scene of that name.

    Raises:
        InvalidInput: it is none, of another version, or of another scene.
    """
    parts = text.strip().split(":")
    if len(parts) != 6 or not parts[0].startswith("mhx"):
        raise InvalidInput(text, "schedule", _EXPECTED)
    if parts[0] != VERSION:
        raise InvalidInput(parts[0], "schedule: version", f"{VERSION}, the one that this memhp plays")
    if parts[1] != name:
        raise InvalidInput(parts[1], "schedule: scene", f"{name}, the scene that is to be played")
    try:
        mask = int(parts[2], 16)
    except ValueError:
        raise InvalidInput(parts[2], "schedule: shared fields", "a hexadecimal number") from None
    match = _STEPS.fullmatch(parts[3])
    if match is None:
        raise InvalidInput(parts[3], "schedule: steps", "turns such as aALUbL")
    left_out = (match[1] or "").rstrip(".").split("-")[1:]
    threads = frozenset(_index(one) for one in left_out if one.isalpha())
    left_parts = frozenset(int(one) for one in left_out if one.isdigit())
    return Schedule(
        name,
        frozenset(position for position in range(mask.bit_length()) if mask >> position & 1),
        threads,
        left_parts,
        tuple(_turns(match[2])),
        parts[4].replace("-", " "),
        parts[5],
    )


def _turns(text: str) -> list[Turn]:
    turns: list[Turn] = []
    for match in _TURN.finditer(text):
        task = _index(match[1])
        steps = _STEP.finditer(match[2])
        turns.extend((task, _KINDS[step[1]], -1) if step[1] else (task, CHOOSE, int(step[2])) for step in steps)
    return turns


def checksum(lines: Sequence[str]) -> str:
    """Sum up steps in words."""
    return f"{zlib.crc32(chr(10).join(lines).encode()):08x}"


def _thread(index: int) -> str:
    text = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        text = chr(ord("a") + digit) + text
    return text


def _index(text: str) -> int:
    number = 0
    for letter in text:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1
