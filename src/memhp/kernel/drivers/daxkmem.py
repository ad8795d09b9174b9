"""dax/kmem: a device's own memory (CXL, persistent memory) used as System RAM (``drivers/dax/kmem.c``)."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from memhp.errors import HotplugError
from memhp.kernel.add import MhpFlags
from memhp.kernel.blocks import BlockState
from memhp.kernel.iomem import Resource, ResourceName
from memhp.locking import Mutex, current
from memhp.locking.switch import ending_request
from memhp.units import PAGE_SHIFT, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["DaxKmem"]

T = TypeVar("T")
_log = logging.getLogger("memhp.kernel")
_NAME = ResourceName("System RAM (kmem)")


class DaxKmem:
    """One dax device, with one range or several.

    Args:
        machine: whose memory it becomes.
        nid: the device's node.
        ranges: (start, size) in bytes; what doesn't fill a memory block at either end is not used.
        name: the device's.
        memmap_on_memory: whether blocks shall hold their own memmap (Linux 6.12; ignored under other rules).
    """

    def __init__(
        self,
        machine: Machine,
        nid: int,
        ranges: Sequence[tuple[int, int]],
        *,
        name: str = "dax0.0",
        memmap_on_memory: bool = False,
    ) -> None:
        self._machine = machine
        self._nid = whole_number(nid, "dax/kmem: nid", "the number of a node")
        self.name = name
        self._ranges = [(whole_number(start, "dax/kmem: start"), whole_number(size, "dax/kmem: size")) for start, size in ranges]
        self._memmap = memmap_on_memory and machine.rules.value.drivers_since_6_12
        self._lock = Mutex(f"{name}/kmem", machine.dep, lock_class="dax/kmem device_lock")
        self._bound = False
        self._group: int | None = None
        self._used: dict[tuple[int, int], Resource | None] = {}
        """The claim of each range, by its start and size once aligned; None if it was passed over."""
        self.leaked = False
        """Whether memory could not be removed at unbind; it stays until the machine boots anew."""

    @property
    def claims(self) -> list[Resource]:
        """The ranges that are in use as memory."""
        return [claim for claim in self._used.values() if claim is not None]

    @ending_request()
    def probe(self) -> None:
        """Bind the driver: claim the ranges and add them, in one static group.

        A range that fails after another one worked is passed over.

        Raises:
            HotplugError: EINVAL, no node or nothing left after alignment; EBUSY, it is bound, or somebody has the first range; or
                what adding it raised. Nothing is left behind then.
        """
        with self._lock:
            if self._bound:
                raise HotplugError(errno.EBUSY, f"{self.name} is bound to kmem")
            ranges = [aligned for start, size in self._ranges if (aligned := self._aligned(start, size))[1] > 0]
            if self._nid < 0 or not ranges:
                why = f"no range has a whole memory block of {self._machine.block_size:#x} bytes"
                raise HotplugError(errno.EINVAL, f"{self.name}: {f'{self._nid} is no node' if self._nid < 0 else why}")
            self._bind(ranges)

    def _bind(self, ranges: list[tuple[int, int]]) -> None:
        mgid = self._machine.groups.register_static(self._nid, sum(size for _, size in ranges) >> PAGE_SHIFT)
        self._machine.tiers.claim_slow(self._nid)
        self._used = {}
        try:
            for start, size in ranges:
                self._used = {**self._used, (start, size): self._use(mgid, start, size)}
        except BaseException:
            self._let_go(mgid, failed=True)
            raise
        self._bound, self._group = True, mgid

    def _use(self, mgid: int, start: int, size: int) -> Resource | None:
        add = functools.partial(self._add, mgid, start, size)
        if not self._used:
            return add()
        try:
            # A part of the device is memory already, so Ctrl-C waits for the rest.
            return _insist(add)
        except HotplugError as error:
            _log.warning("%s: %#x + %#x bytes are not used: %s", self.name, start, size, error)
            return None

    def _let_go(self, mgid: int, *, failed: bool = False) -> None:
        self._machine.groups.drop(mgid)
        self._machine.tiers.release_slow(self._nid, failed=failed)

    def _aligned(self, start: int, size: int) -> tuple[int, int]:
        block = self._machine.block_size
        first = -(-start // block) * block
        return first, (start + size) // block * block - first

    def _add(self, mgid: int, start: int, size: int) -> Resource:
        iomem = self._machine.iomem
        try:
            # Not busy, so that the memory can be a child of it.
            claim = iomem.request(start, size, self.name, busy=False)
        except HotplugError as error:
            raise HotplugError(errno.EBUSY, f"{self.name}: {error.strerror}") from error
        flags = MhpFlags.NID_IS_MGID | (MhpFlags.MEMMAP_ON_MEMORY if self._memmap else MhpFlags.NONE)
        try:
            self._machine.add_memory_driver_managed(mgid, start, size, _NAME, flags=flags)
        except BaseException:
            iomem.release(claim)
            raise
        return claim

    @ending_request()
    def unbind(self) -> None:
        """Unbind the driver: remove each range whose blocks are all offline; one with an online block leaks.

        The group goes, and the node's memory is no slow memory any more, only if each of the device's ranges went; one that
        was too small to be used counts as one that stays. One that was passed over is left alone; where it has no block that is
        online, a real kernel crashes (:meth:`crashes_unbind`), and a warning is logged.

        Raises:
            HotplugError: ENODEV, it is not bound.
        """
        with self._lock:
            if not self._bound:
                raise HotplugError(errno.ENODEV, f"kmem does not have {self.name}")
            self._bound = False
            if self.crashes_unbind():
                _log.warning("%s: a real kernel crashes now, because it was bound without one of its ranges", self.name)
            gone = [one for one, claim in self._used.items() if claim is not None and self._remove(claim)]
            self._used = {one: claim for one, claim in self._used.items() if one not in gone}
            if len(gone) == len(self._ranges) and self._group is not None:
                self._let_go(self._group)

    def crashes_unbind(self) -> bool:
        """Say whether a real kernel would crash at :meth:`unbind`.

        It removes the memory of a range that it had passed over, too, and if that succeeds it uses the claim, a null pointer.
        """
        return any(claim is None and self._all_offline(start, size) for (start, size), claim in self._used.items())

    def _all_offline(self, start: int, size: int) -> bool:
        return all(block.state is BlockState.OFFLINE for block in self._machine.blocks_within(start, size))

    def _remove(self, claim: Resource) -> bool:
        try:
            _insist(functools.partial(self._machine.remove_memory, claim.start, claim.size))
        except HotplugError as error:
            self.leaked = True
            _log.warning("%s: %s can't be removed until the next boot: %s", self.name, claim, error)
            return False
        self._machine.iomem.release(claim)
        return True


def _insist(act: Callable[[], T]) -> T:
    # What is half done can't be left so: Ctrl-C is raised when the request is at its end.
    while True:
        try:
            return act()
        except KeyboardInterrupt as interrupt:
            current().deferred = interrupt
