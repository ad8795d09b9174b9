"""Where two runs of one scenario differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memhp.conform.observation import Observed

__all__ = ["Difference", "differences"]

_MANAGED = re.compile(r"(?<= managed )\d+")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same after a step."""

    number: int
    line: int
    shown: str
    what: str
    model: str
    real: str

    def __str__(self) -> str:
        where = f"step {self.number} (line {self.line}), {self.shown}" if self.number else self.shown
        return f"{where}: {self.what}\n    model  {self.model}\n    real   {self.real}"


def differences(model: Sequence[Observed], real: Sequence[Observed]) -> list[Difference]:
    """Compare two runs step by step.

    A difference of state is given where it begins, and not again while it lasts. What is compared of MemTotal and of the managed
    pages of a zone is how they change, because an unknown part of node 0 holds the kernel's image.
    """
    found: list[Difference] = []
    standing: dict[str, tuple[str, str]] = {}
    for ours, theirs in zip(model, real, strict=False):
        found += _of_step(ours, theirs)
        now = dict(_of_state(_relative(ours, model[0]), _relative(theirs, real[0])))
        found += [_difference(theirs, key, *pair) for key, pair in now.items() if standing.get(key) != pair]
        standing = now
    if len(model) != len(real):
        last = max(model, real, key=len)[-1]
        found.append(_difference(last, "the number of steps that were played", str(len(model) - 1), str(len(real) - 1)))
    return found


def _of_step(ours: Observed, theirs: Observed) -> Iterator[Difference]:
    for name in ("result", "text"):
        pair = getattr(ours, name), getattr(theirs, name)
        if pair[0] != pair[1]:
            yield _difference(theirs, name, *pair)
    if ours.heard != theirs.heard:
        same = next((n for n, pair in enumerate(zip(ours.heard, theirs.heard, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(ours.heard), len(theirs.heard)) if same is None else same
        rest = [", ".join(heard[same:]) or "nothing more" for heard in (ours.heard, theirs.heard)]
        yield _difference(theirs, f"notifier calls and uevents from number {same + 1} on", *rest)


def _of_state(ours: dict[str, str], theirs: dict[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    for key in sorted({*ours, *theirs}):
        pair = ours.get(key, "(absent)"), theirs.get(key, "(absent)")
        if pair[0] != pair[1]:
            yield key, pair


def _relative(step: Observed, first: Observed) -> dict[str, str]:
    state = dict(step.state)
    total, began_with = state.get("MemTotal", ""), first.state.get("MemTotal", "")
    if total.isdigit() and began_with.isdigit():
        state["MemTotal"] = f"{int(total) - int(began_with):+} kB since the beginning"
    for key, value in state.items():
        began = _MANAGED.search(first.state.get(key, ""))
        if key.startswith("zone ") and began:
            state[key] = _MANAGED.sub(lambda match, began=began: f"{int(match[0]) - int(began[0]):+}", value)  # type: ignore[misc]
    return state


def _difference(step: Observed, what: str, ours: str, theirs: str) -> Difference:
    return Difference(step.number, step.line, step.shown, what, ours or "(nothing)", theirs or "(nothing)")
