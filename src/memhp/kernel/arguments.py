"""What a machine is given, checked before anything else happens."""

from __future__ import annotations

from memhp.errors import InvalidInput
from memhp.kernel.add import MhpFlags
from memhp.kernel.blocks import OnlineType

__all__ = ["flags_of", "online_type_of"]


def flags_of(value: MhpFlags | int) -> MhpFlags:
    """Give flags from a number; raises InvalidInput if a bit of it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value & ~sum(MhpFlags):
        raise InvalidInput(value, "flags", f"members of MhpFlags: {', '.join(str(flag.name) for flag in MhpFlags)}")
    return MhpFlags(value)


def online_type_of(value: OnlineType | str) -> OnlineType:
    """Give a way to come online by its word; raises InvalidInput if it is none."""
    try:
        kind = OnlineType(value)
    except ValueError:
        kind = OnlineType.OFFLINE
    if kind is OnlineType.OFFLINE:
        raise InvalidInput(value, "online_type", "online, online_kernel or online_movable")
    return kind
