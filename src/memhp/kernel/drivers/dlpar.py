"""pseries DLPAR: a hypervisor gives and takes logical memory blocks (``arch/powerpc/platforms/pseries/hotplug-memory.c``).

Requests are text, written to /sys/kernel/dlpar: ``memory add count 4``, ``memory remove index 0x80000002``,
``memory add indexed-count 2 0x80000004``. Zones are those of the modelled machine, not those of ppc64.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memhp.abi.formats import sysfs_word
from memhp.errors import HotplugError, InvalidInput
from memhp.kernel import add, device
from memhp.kernel.add import MhpFlags
from memhp.kernel.attributes import Attribute, Directory
from memhp.kernel.kstrtox import kstrtoull
from memhp.kernel.zones import NodeState
from memhp.locking import current, requires
from memhp.locking.switch import ending_request
from memhp.units import BlockId, PhysAddr, whole_number

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["Dlpar", "Lmb"]

_ACTIONS = ("add", "remove")
_NUMBERS = {"count": 1, "index": 1, "indexed-count": 2}
"""How many numbers follow each kind of request."""

_log = logging.getLogger("memhp.kernel")


@dataclass(slots=True, eq=False)
class Lmb:
    """One logical memory block, as large as a memory block.

    Attributes:
        drc_index: its number at the hypervisor, of 32 bits; no other LMB has it.
        start: its address, a multiple of the size of a memory block.
        nid: its node; for one that is not possible the partition takes its first node that is online.
        assigned: whether the partition has it.
        reserved: whether it must not be touched.
    """

    drc_index: int
    start: int
    nid: int = 0
    assigned: bool = False
    reserved: bool = False


class Dlpar:
    """The partition's side. ``/sys/kernel/dlpar`` is served as soon as it is made.

    Args:
        machine: the partition.
        lmbs: its logical memory blocks, by address.
        acquire: asks the hypervisor for one; gives False if it says no.

    Raises:
        InvalidInput: an LMB is none, or has the index or the address of another one, or is no memory block.
    """

    def __init__(self, machine: Machine, lmbs: Sequence[Lmb], *, acquire: Callable[[Lmb], bool] = lambda lmb: True) -> None:
        self._machine = machine
        self.lmbs = _checked(lmbs, machine.block_size)
        self._acquire = acquire
        self.hints: list[int] = []
        """LMBs of which the hypervisor was told that they could not be removed."""
        self.device_tree_updates = 0
        """How often the device tree was brought up to date: once for each request that succeeded."""
        reads = "memory,cpu,dt\n" if machine.rules.value.drivers_since_6_12 else "memory,cpu\n"
        files = {"dlpar": Attribute(0o644, lambda _machine, _what: reads, lambda _machine, _what, text: self.write(text))}
        kernel = "/sys/kernel"
        machine.tree.mount({kernel: lambda _machine: Directory(None, files, lambda: dict.fromkeys(machine.tree.below(kernel)))})

    def write(self, text: str) -> None:
        """Make a request; all of it under one device_hotplug_lock.

        Raises:
            HotplugError: EINVAL, malformed, not enough LMBs, or one failed and what was done is undone; by index the errno of
                what went wrong.
        """
        action, by, numbers = _parse(text)
        with ending_request(), self._machine.locks.device_hotplug:
            getattr(self, f"_{action}_by_{by}")(*numbers)
            self.device_tree_updates += 1

    # -- by count: in order, passing over those that fail

    def _add_by_count(self, count: int) -> None:
        self._enough(count, [lmb for lmb in self.lmbs if not lmb.assigned and not lmb.reserved])
        candidates = [lmb for lmb in self.lmbs if not lmb.assigned]
        self._try_all(candidates, count, self._add, self._remove)

    def _remove_by_count(self, count: int) -> None:
        candidates = [lmb for lmb in self.lmbs if lmb.assigned and not lmb.reserved]
        self._enough(count, candidates)
        self._try_all(candidates, count, self._remove, self._add_back)

    def _enough(self, count: int, candidates: list[Lmb]) -> None:
        if not count or len(candidates) < count:
            raise HotplugError(errno.EINVAL, f"{count} LMBs wanted, {len(candidates)} there")

    def _try_all(self, candidates: list[Lmb], count: int, act: Callable[[Lmb], None], undo: Callable[[Lmb], None]) -> None:
        done: list[Lmb] = []
        before = self._assigned()
        for lmb in candidates:
            try:
                act(lmb)
            except HotplugError as error:
                _log.info("LMB %#x is passed over: %s", lmb.drc_index, error)
                continue
            except BaseException:
                _undo(done, undo)
                raise
            done.append(lmb)
            if len(done) == count:
                return
        _undo(done, undo)
        raise HotplugError(errno.EINVAL, f"only {len(done)} of {count} LMBs worked, {self._holds(before)}")

    def _assigned(self) -> set[Lmb]:
        return {lmb for lmb in self.lmbs if lmb.assigned}

    def _holds(self, before: set[Lmb]) -> str:
        # What is the case after a rollback, for the error.
        changed = self._assigned() ^ before
        which = ", ".join(f"{lmb.drc_index:#x}" for lmb in self.lmbs if lmb in changed)
        return f"and LMB {which} could not be undone" if changed else "so none was changed in the end"

    # -- by index: just that one

    def _add_by_index(self, index: int) -> None:
        self._add(self._find(index))

    def _remove_by_index(self, index: int) -> None:
        self._remove(self._find(index))

    def _find(self, index: int) -> Lmb:
        for lmb in self.lmbs:
            if lmb.drc_index == index:
                return lmb
        raise HotplugError(errno.EINVAL, f"there is no LMB {index:#x}")

    # -- by indexed count: a range, up to the first failure

    def _add_by_indexed_count(self, count: int, index: int) -> None:
        self._try_range([lmb for lmb in self._range(count, index) if not lmb.assigned], self._add, self._remove)

    def _remove_by_indexed_count(self, count: int, index: int) -> None:
        def add_back(lmb: Lmb) -> None:
            self.hints.append(lmb.drc_index)
            self._add_back(lmb)

        self._try_range([lmb for lmb in self._range(count, index) if lmb.assigned], self._remove, add_back)

    def _range(self, count: int, index: int) -> list[Lmb]:
        first = self.lmbs.index(self._find(index))
        chosen = self.lmbs[first : first + count]
        if not count or len(chosen) < count or any(lmb.reserved for lmb in chosen):
            raise HotplugError(errno.EINVAL, f"{count} LMBs from {index:#x} on: none wanted, not that many, or one is reserved")
        return chosen

    def _try_range(self, chosen: list[Lmb], act: Callable[[Lmb], None], undo: Callable[[Lmb], None]) -> None:
        done: list[Lmb] = []
        before = self._assigned()
        for lmb in chosen:
            try:
                act(lmb)
            except BaseException as error:
                _undo(done, undo)
                if not isinstance(error, HotplugError):
                    raise
                raise HotplugError(errno.EINVAL, f"LMB {lmb.drc_index:#x} failed, {self._holds(before)}") from error
            done.append(lmb)

    # -- one LMB

    def _add(self, lmb: Lmb) -> None:
        if not self._acquire(lmb):
            raise HotplugError(errno.EIO, f"the hypervisor does not give LMB {lmb.drc_index:#x}")
        self._add_back(lmb)

    def _add_back(self, lmb: Lmb) -> None:
        _add_lmb(self._machine, lmb)

    def _remove(self, lmb: Lmb) -> None:
        _remove_lmb(self._machine, lmb)


def _checked(lmbs: Sequence[Lmb], block_size: int) -> list[Lmb]:
    checked: list[Lmb] = []
    for lmb in lmbs:
        if not isinstance(lmb, Lmb):
            raise InvalidInput(lmb, "lmbs", "an Lmb")
        index = whole_number(lmb.drc_index, "lmbs: drc_index", "the number of an LMB")
        if not 0 <= index < 1 << 32 or any(index == other.drc_index for other in checked):
            raise InvalidInput(hex(index), "lmbs: drc_index", "a number of 32 bits that no other LMB has")
        start = whole_number(lmb.start, "lmbs: start", "an address")
        if start < 0 or start % block_size or any(start == other.start for other in checked):
            raise InvalidInput(hex(start), "lmbs: start", f"a multiple of {block_size:#x} that no other LMB has")
        whole_number(lmb.nid, "lmbs: nid", "the number of a node")
        checked.append(lmb)
    return checked


def _undo(done: list[Lmb], undo: Callable[[Lmb], None]) -> None:
    for lmb in done:
        try:
            undo(lmb)
        except HotplugError as error:
            _log.warning("LMB %#x could not be undone: %s", lmb.drc_index, error)
        except BaseException as interrupt:
            # The others must be undone before Ctrl-C takes effect.
            _log.warning("LMB %#x could not be undone: interrupted", lmb.drc_index)
            current().deferred = interrupt


@requires("device_hotplug")
def _add_lmb(machine: Machine, lmb: Lmb) -> None:
    if lmb.assigned:
        raise HotplugError(errno.EINVAL, f"the partition has LMB {lmb.drc_index:#x} already")
    start, size = PhysAddr(lmb.start), machine.block_size
    flags = MhpFlags.MEMMAP_ON_MEMORY if machine.rules.value.drivers_since_6_12 else MhpFlags.NONE
    [number] = add.add_memory(machine, _node_of(machine, lmb), start, size, flags=flags)
    block = machine.blocks[number]
    try:
        # Whatever auto_online_blocks says; if that has brought it online already, there is nothing to do.
        if block.offline:
            device.device_online(machine, block)
    except BaseException:
        _take_back(machine, lmb)
        raise
    lmb.assigned = True


def _node_of(machine: Machine, lmb: Lmb) -> int:
    possible = lmb.nid in machine.node_states[NodeState.N_POSSIBLE]
    return lmb.nid if possible else min(machine.node_states[NodeState.N_ONLINE])


@requires("device_hotplug")
def _take_back(machine: Machine, lmb: Lmb) -> None:
    # The kernel stops with BUG() if it can't. What stays here, such as a block that is online because somebody kept its pages at
    # a refusal of MEM_ONLINE, is the partition's, which can remove it later.
    try:
        add.remove_memory(machine, PhysAddr(lmb.start), machine.block_size)
    except BaseException as error:
        _log.warning("LMB %#x stays: %r", lmb.drc_index, error)
        lmb.assigned = True
        if not isinstance(error, Exception):
            current().deferred = error


@requires("device_hotplug")
def _remove_lmb(machine: Machine, lmb: Lmb) -> None:
    if not lmb.assigned or lmb.reserved:
        raise HotplugError(errno.EINVAL, f"LMB {lmb.drc_index:#x} is {'reserved' if lmb.reserved else 'not there'}")
    block = machine.blocks.get(BlockId(lmb.start // machine.block_size))
    if block is None:
        raise HotplugError(errno.EINVAL, f"LMB {lmb.drc_index:#x} has no memory block")
    if not block.offline:
        device.device_offline(machine, block)
    add.remove_memory(machine, PhysAddr(lmb.start), machine.block_size)
    lmb.assigned = False


def _parse(text: str) -> tuple[str, str, list[int]]:
    # One blank apart, and what stands behind a request is ignored (dlpar_parse_id_type()).
    words = text.partition("\0")[0].split(" ")
    resource, action, by = (*map(sysfs_word, words[:3]), "", "", "")[:3]
    count = _NUMBERS.get(by, 0)
    if resource != "memory" or action not in _ACTIONS or not count or len(words) < 3 + count:
        raise HotplugError(errno.EINVAL, f"{text!r} is no request; such as 'memory add count 2'")
    try:
        return action, by.replace("-", "_"), [kstrtoull(word, "dlpar", 32) for word in words[3 : 3 + count]]
    except (HotplugError, InvalidInput) as error:
        raise HotplugError(errno.EINVAL, str(error)) from error
