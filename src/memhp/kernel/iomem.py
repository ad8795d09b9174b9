"""Who claims which physical addresses (``kernel/resource.c``), as far as memory goes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from memhp.errors import HotplugError, InvalidInput
from memhp.locking import Lockdep, Mutex
from memhp.units import whole_number

__all__ = ["SYSTEM_RAM", "Iomem", "Resource", "ResourceName"]


class ResourceName(str):
    """A name of resources that are one owner's.

    Linux compares the names of resources that may merge by their address, not by their text. So a driver that wants its own
    memory to merge keeps one of these; two of the same text stay apart, and so do plain strings.
    """

    __slots__ = ()


SYSTEM_RAM = ResourceName("System RAM")


@dataclass(slots=True, eq=False)
class Resource:
    """A claimed range of addresses, in bytes; ``end`` is inclusive as in /proc/iomem.

    Attributes:
        start: first byte.
        end: last byte.
        name: whose it is.
        busy: whether nobody else can claim a part of it. A device that hands its addresses out as memory clears this.
        mergeable: whether it may become one with a neighbour of the same name (MHP_MERGE_RESOURCE).
        children: what others have claimed in it, ascending.
    """

    start: int
    end: int
    name: str
    busy: bool = True
    mergeable: bool = False
    children: tuple[Resource, ...] = ()

    def __str__(self) -> str:
        return f"{self.start:08x}-{self.end:08x} : {self.name}"

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start + 1


class Iomem:
    """The tree of claimed ranges. Iterate over it for all of them, in the order of /proc/iomem; print it for that file."""

    def __init__(self, size: int, dep: Lockdep | None = None) -> None:
        self._lock = Mutex("resource_lock", dep, interruptible=False)
        self.size = size
        """Bytes of addresses that there are."""
        self._root = Resource(0, size - 1, "", busy=False)

    def __iter__(self) -> Iterator[Resource]:
        return (resource for _, resource in self.walk())

    def __str__(self) -> str:
        return "".join(f"{'  ' * depth}{resource}\n" for depth, resource in self.walk())

    def walk(self) -> Iterator[tuple[int, Resource]]:
        """Give each resource with its depth, parents before their children."""
        yield from _below(self._root, 0)

    def request(self, start: int, size: int, name: str, *, busy: bool = True) -> Resource:
        """Claim a range; inside of a resource that is not busy it becomes a child of that.

        Raises:
            HotplugError: EEXIST, naming the range that it overlaps; also for a range beyond the CPU's addresses, which the
                kernel does not tell apart (observed on 6.1 and 6.12).
            InvalidInput: no range of addresses.
        """
        if whole_number(start, "start") < 0 or whole_number(size, "size") < 1:
            raise InvalidInput((start, size), "iomem: (start, size)", "a range of at least one byte")
        wanted = Resource(start, start + size - 1, name, busy)
        if wanted.end >= self.size:
            raise HotplugError(errno.EEXIST, f"{wanted} is beyond the addresses that this CPU has, which end at {self.size:#x}")
        with self._lock:
            self._insert(wanted)
        return wanted

    def _insert(self, wanted: Resource) -> None:
        parent, start = self._root, wanted.start
        while True:
            conflict = next((child for child in parent.children if child.start <= wanted.end and start <= child.end), None)
            if conflict is None:
                break
            if conflict.busy or not conflict.start <= start <= wanted.end <= conflict.end:
                raise HotplugError(errno.EEXIST, f"{wanted} overlaps {conflict}")
            parent = conflict
        # A new tuple each time: changing one in place would show half of it to whoever looks.
        parent.children = tuple(sorted([*parent.children, wanted], key=lambda resource: resource.start))

    def release(self, resource: Resource) -> None:
        """Give back a claim, with what is inside of it."""
        with self._lock:
            parent = self._parent_of(resource)
            if parent is not None:
                parent.children = tuple(other for other in parent.children if other is not resource)

    def release_adjustable(self, start: int, size: int) -> bool:
        """Cut a range out of the one claim that contains it; False, and nothing done, if none does.

        A range over several claims therefore leaves them all behind (``release_mem_region_adjustable``; observed on 6.1
        and 6.12).
        """
        with self._lock:
            return self._cut_out(start, start + size - 1)

    def _cut_out(self, start: int, end: int) -> bool:
        parent = self._root
        while True:
            found = next((child for child in parent.children if child.start <= start and end <= child.end), None)
            if found is None:
                return False
            if found.busy:
                break
            parent = found
        parts = [(found.start, start - 1), (end + 1, found.end)]
        rest = [Resource(first, last, found.name, mergeable=found.mergeable) for first, last in parts if first <= last]
        siblings = [other for other in parent.children if other is not found]
        parent.children = tuple(sorted([*siblings, *rest], key=lambda resource: resource.start))
        return True

    def merge(self, resource: Resource) -> Resource:
        """Let a claim become one with its neighbours, where both want that and have the very same name; gives the result.

        (``merge_system_ram_resource``, ``system_ram_resources_mergeable``.)
        """
        with self._lock:
            return self._merge(resource)

    def _merge(self, resource: Resource) -> Resource:
        resource.mergeable = True
        parent = self._parent_of(resource)
        row = list(parent.children) if parent is not None else [resource]
        place = row.index(resource)
        if place + 1 < len(row) and _one_owner(resource, row[place + 1]):
            resource.end = row.pop(place + 1).end
        if place and _one_owner(row[place - 1], resource):
            row[place - 1].end = row.pop(place).end
            resource = row[place - 1]
        if parent is not None:
            parent.children = tuple(row)
        return resource

    def _parent_of(self, resource: Resource) -> Resource | None:
        parents = [self._root, *self]
        return next((parent for parent in parents if any(child is resource for child in parent.children)), None)


def _one_owner(first: Resource, second: Resource) -> bool:
    return (
        first.mergeable
        and second.mergeable
        and first.end + 1 == second.start
        and not first.children
        and not second.children
        and isinstance(first.name, ResourceName)
        and first.name is second.name
    )


def _below(parent: Resource, depth: int) -> Iterator[tuple[int, Resource]]:
    for child in parent.children:
        yield depth, child
        yield from _below(child, depth + 1)
