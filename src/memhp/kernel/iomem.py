"""Who claims which physical addresses (``kernel/resource.c``), as far as memory goes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from memhp.errors import HotplugError

__all__ = ["Iomem", "Resource"]

SYSTEM_RAM = "System RAM"


@dataclass(frozen=True, slots=True, order=True)
class Resource:
    """A claimed range of addresses, in bytes; ``end`` is inclusive as in /proc/iomem."""

    start: int
    end: int
    name: str

    def __str__(self) -> str:
        return f"{self.start:08x}-{self.end:08x} : {self.name}"


class Iomem:
    """The list of claimed ranges, ascending; iterate over it or print it."""

    def __init__(self, size: int) -> None:
        self.size = size
        """Bytes of addresses that there are."""
        self._resources: list[Resource] = []

    def __iter__(self) -> Iterator[Resource]:
        return iter(tuple(self._resources))

    def __str__(self) -> str:
        return "".join(f"{resource}\n" for resource in self._resources)

    def request(self, start: int, size: int, name: str) -> Resource:
        """Claim a range.

        Raises:
            HotplugError: EEXIST, naming the range that it overlaps; also for a range beyond the CPU's addresses, which the
                kernel does not tell apart (observed on 6.1 and 6.12).
        """
        wanted = Resource(start, start + size - 1, name)
        if wanted.end >= self.size:
            raise HotplugError(errno.EEXIST, f"{wanted} is beyond the addresses that this CPU has, which end at {self.size:#x}")
        for resource in self._resources:
            if resource.start <= wanted.end and wanted.start <= resource.end:
                raise HotplugError(errno.EEXIST, f"{wanted} overlaps {resource}")
        # A new list each time: sorting in place would show an empty one to whoever looks.
        self._resources = sorted([*self._resources, wanted])
        return wanted

    def release(self, resource: Resource) -> None:
        """Give back a claim whole."""
        self._resources = [other for other in self._resources if other != resource]

    def release_adjustable(self, start: int, size: int) -> bool:
        """Cut a range out of the one claim that contains it; False, and nothing done, if none does.

        A range over several claims therefore leaves them all behind (``release_mem_region_adjustable``; observed on 6.1
        and 6.12).
        """
        end = start + size - 1
        for index, resource in enumerate(self._resources):
            if resource.start <= start and end <= resource.end:
                parts = [(resource.start, start - 1), (end + 1, resource.end)]
                rest = [Resource(first, last, resource.name) for first, last in parts if first <= last]
                self._resources = [*self._resources[:index], *rest, *self._resources[index + 1 :]]
                return True
        return False
