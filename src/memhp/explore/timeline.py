"""A finding as a person reads it: the reason in one line, then a column for each thread."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from memhp.explore.fibers import Place
from memhp.explore.findings import Finding, Line
from memhp.explore.ops import READ, WRITE, letter_of

__all__ = ["counts", "timeline"]

_NARROWEST = 12
_GAP = 2
_WIDEST = 50
_DATA = {letter_of(READ), letter_of(WRITE)}


def timeline(finding: Finding, *, places: bool = True) -> str:
    """Give the finding as text: reason, counts, and a row for each step with its place in the program.

    Accesses to shared fields that one thread makes in a row share a row.
    """
    used = [index for index in range(len(finding.names)) if any(line.task == index for line in finding.lines)]
    rows = _rows(finding)
    widths = {
        index: max([_NARROWEST, len(finding.names[index]), *(len(row.text) for row in rows if row.task == index)])
        for index in used
    }
    head = "       " + "".join(f"{finding.names[index]:<{widths[index] + _GAP}}" for index in used)
    lines = [finding.headline, counts(finding), "", head.rstrip()]
    for row in rows:
        cells = "".join(f"{row.text if row.task == index else '':<{widths[index] + _GAP}}" for index in used)
        where = str(row.place) if places and row.place is not None else ""
        lines.append(f"{row.number:>5}  {cells}{where}".rstrip())
    return "\n".join(lines)


class _Row(NamedTuple):
    task: int
    number: str
    text: str
    place: Place | None


def _rows(finding: Finding) -> list[_Row]:
    rows = []
    numbered = list(enumerate(finding.lines, 1))
    for (task, waits, data), group in itertools.groupby(numbered, key=lambda pair: _sort(pair[1])):
        many = list(group)
        if data:
            first, last = many[0][0], many[-1][0]
            number = str(first) if first == last else f"{first}-{last}"
            rows.append(_Row(task, number, _accesses([line.text for _, line in many]), many[0][1].place))
        else:
            for place, line in many:
                text = f"waits: {line.text}" if waits else line.text
                rows.append(_Row(task, "" if waits else str(place), text, line.place))
    return rows


def _sort(line: Line) -> tuple[int, bool, bool]:
    return line.task, line.waits, line.letter in _DATA and not line.waits


def _accesses(texts: list[str]) -> str:
    # "read a.x, .y, write a.x": what is said once is not said again.
    parts: list[str] = []
    verb = thing = ""
    for text in dict.fromkeys(texts):
        how, _, name = text.partition(" ")
        whose, dot, attribute = name.rpartition(".")
        short = f".{attribute}" if dot and how == verb and whose == thing else name
        parts.append(short if how == verb else f"{how} {short}")
        verb, thing = how, whose
    shown = list(itertools.takewhile(lambda count: len(", ".join(parts[:count])) <= _WIDEST, range(1, len(parts) + 1)))
    most = max(1, len(shown))
    rest = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {rest} more" if rest else "")


def counts(finding: Finding) -> str:
    """Say how large it is, and how large it was."""
    threads = len({line.task for line in finding.lines})
    text = (
        f"{threads} thread{_s(threads)}, {finding.steps} steps, {finding.switches} switch{'' if finding.switches == 1 else 'es'}"
    )
    text += f", {finding.preemptions} of them leave{'s' if finding.preemptions == 1 else ''} a thread that could go on"
    if finding.original is not None and finding.original.steps != finding.steps:
        text += f" (made smaller from {finding.original.steps} steps, {finding.original.switches} switches)"
    if finding.without:
        text += f"; left out: {', '.join(finding.without)}"
    return text


def _s(number: int) -> str:
    return "" if number == 1 else "s"
