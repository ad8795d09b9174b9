"""Why a block stays: what stood in the way of an offline, from the error that ended it."""

from __future__ import annotations

import errno

from memhp.errors import HotplugError, Interrupted, PageRefusal, Vetoed
from memhp.kernel import Machine, PageKind
from memhp.kernel.kinds import Leaving
from memhp.units import Pfn

__all__ = ["REASONS", "reason_of", "why_it_stays"]

_SPANS, _PINNED, _NO_ROOM, _REFUSED, _OTHER = "several zones or holes", "pinned", "no room", "a callback", "another error"
REASONS = (
    _SPANS,
    *(kind.value for kind in PageKind if kind.leaving in {Leaving.REFUSES, Leaving.HELD}),
    PageKind.HUGETLB_RESERVED.value,
    "cma",
    "isolated",
    _PINNED,
    _NO_ROOM,
    _REFUSED,
    _OTHER,
)
"""All that there are."""


def why_it_stays(machine: Machine, error: HotplugError) -> tuple[str, str]:
    """Give the one of :data:`REASONS` for which a block stays, and whose it is."""
    found = reason_of(machine, error)
    if found is None:
        return _SPANS if error.errno == errno.EINVAL else _OTHER, ""
    return found


def reason_of(machine: Machine, error: BaseException) -> tuple[str, str] | None:
    """Give what stood in the way, and whose it is; None if the error, and what caused it, does not say."""
    if isinstance(error, PageRefusal):
        return error.kind, error.owner
    if isinstance(error, Vetoed):
        return _REFUSED, str(getattr(error.callback, "name", ""))
    if isinstance(error, Interrupted) and error.page is not None:
        with machine.pages.lock:
            holder = machine.pages.holder_of(Pfn(error.page))
        if holder is None or not holder.pins:
            return _NO_ROOM, ""
        return _PINNED, holder.owner
    return None if error.__cause__ is None else reason_of(machine, error.__cause__)
