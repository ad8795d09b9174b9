"""The firmware's list of memory, /sys/firmware/memmap (``drivers/firmware/memmap.c``): what kexec tells the next kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memhp.kernel.iomem import SYSTEM_RAM

__all__ = ["RESERVED", "FirmwareEntry", "FirmwareMap"]

RESERVED = "Reserved"


@dataclass(frozen=True, slots=True)
class FirmwareEntry:
    """One range: ``number`` is the name of its directory, ``end`` its last byte."""

    number: int
    start: int
    end: int
    type: str


class FirmwareMap:
    """The entries in the order of their numbers; a number is never used again."""

    def __init__(self) -> None:
        self._entries: dict[int, FirmwareEntry] = {}
        self._next = 0

    def __iter__(self) -> Iterator[FirmwareEntry]:
        return iter(self._entries.copy().values())

    def find(self, number: int) -> FirmwareEntry | None:
        """Give the entry of that number, or None."""
        return self._entries.get(number)

    def add(self, start: int, size: int, kind: str = SYSTEM_RAM) -> FirmwareEntry:
        """Note a range, in bytes."""
        entry = FirmwareEntry(self._next, start, start + size - 1, kind)
        self._next += 1
        self._entries = {**self._entries, entry.number: entry}
        return entry

    def remove(self, start: int, size: int, kind: str = SYSTEM_RAM) -> FirmwareEntry | None:
        """Forget a range, and give its entry; only one of exactly this extent, so memory removed in other pieces stays noted."""
        for entry in self:
            if (entry.start, entry.end, entry.type) == (start, start + size - 1, kind):
                self._entries = {number: other for number, other in self._entries.items() if other is not entry}
                return entry
        return None

    def put_back(self, entry: FirmwareEntry) -> None:
        """Undo :meth:`remove`; the entry keeps its number."""
        self._entries = dict(sorted([*self._entries.items(), (entry.number, entry)]))
