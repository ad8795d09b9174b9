"""The files of the memory tiers (``mm/memory-tiers.c``; observed on 6.1 and 6.12)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from memhp.abi.paths import TIERS
from memhp.kernel.attributes import Attribute, Directory, store_uevent, uevent_of
from memhp.units import format_ids

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["tier_directory", "tiers_directory"]

_DEVICES = TIERS.removeprefix("/sys")
_TIER = re.compile(r"memory_tier(0|[1-9]\d*)")


def tiers_directory(machine: Machine) -> Directory:
    """Give the directory of all tiers."""
    files = {"uevent": uevent_of(_DEVICES, None)}
    return Directory(None, files, lambda: {"power": None, **dict.fromkeys(f"memory_tier{tier}" for tier in machine.tiers.nodes)})


def tier_directory(machine: Machine, name: str) -> Directory | None:
    """Give the directory of a tier by its name, or None if there is none."""
    match = _TIER.fullmatch(name)
    if match is None or int(match[1]) not in machine.tiers.nodes:
        return None
    return Directory(None, _tier_files(int(match[1])), links=lambda: {"subsystem": "../../../../bus/memory_tiering"})


def _tier_files(tier: int) -> dict[str, Attribute]:
    def store(machine: Machine, what: None, text: str) -> None:
        store_uevent(machine, f"{_DEVICES}/memory_tier{tier}", "memory_tiering", text, ())

    return {
        "nodelist": Attribute(0o444, lambda machine, what: f"{format_ids(machine.tiers.nodes.get(tier, ()))}\n"),
        "uevent": Attribute(0o644, lambda machine, what: "", store),
    }
