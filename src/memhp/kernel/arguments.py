"""What a machine is given, checked before anything else happens."""

from __future__ import annotations

from memhp.errors import InvalidInput
from memhp.kernel.add import MhpFlags
from memhp.kernel.blocks import OnlineType
from memhp.kernel.zones import Zone
from memhp.units import Pfn, whole_number

__all__ = ["flags_of", "online_type_of", "pages_of"]


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


def pages_of(start_pfn: object, nr_pages: object, zone: object) -> tuple[Pfn, int, Zone]:
    """Give a range of pages and its zone as they are; raises InvalidInput if they are none."""
    start = whole_number(start_pfn, "start_pfn", "a page frame")
    count = whole_number(nr_pages, "nr_pages", "a number of pages")
    if not isinstance(zone, Zone):
        raise InvalidInput(zone, "zone", "a zone of the machine, such as machine.zone(0, 'Normal')")
    return Pfn(start), count, zone
