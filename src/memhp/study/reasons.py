"""Why a block stays: what stood in the way of an offline, from the error that ended it."""

from __future__ import annotations

from memhp.errors import Interrupted, PageRefusal, Vetoed
from memhp.kernel import Machine, PageKind
from memhp.kernel.kinds import Leaving
from memhp.units import Pfn

__all__ = ["REASONS", "SPANS", "reason_of"]

SPANS, PINNED, NO_ROOM, REFUSED = "several zones or holes", "pinned", "no room", "a callback"
REASONS = (
    SPANS,
    *(kind.value for kind in PageKind if kind.leaving in {Leaving.REFUSES, Leaving.HELD}),
    PINNED,
    NO_ROOM,
    REFUSED,
)
"""All that there are."""


def reason_of(machine: Machine, error: BaseException) -> tuple[str, str] | None:
    """Give what stood in the way, and whose it is; None if the error, and what caused it, does not say."""
    if isinstance(error, PageRefusal):
        return error.kind, error.owner
    if isinstance(error, Vetoed):
        return REFUSED, str(getattr(error.callback, "name", ""))
    if isinstance(error, Interrupted) and error.page is not None:
        with machine.pages.lock:
            holder = machine.pages.holder_of(Pfn(error.page))
        if holder is None or not holder.pins:
            return NO_ROOM, ""
        return PINNED, holder.owner
    return None if error.__cause__ is None else reason_of(machine, error.__cause__)
