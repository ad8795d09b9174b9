"""Memory devices of the ACPI firmware: slots for DIMMs (``drivers/acpi/acpi_memhotplug.c``, ``scan.c``).

The hypervisor puts a DIMM into a slot or asks for it back; the firmware tells the kernel; the kernel answers with a status
(``_OST``). What QEMU decides before the kernel hears of it (which slot, which address) is decided as QEMU 7.2 does.
"""

from __future__ import annotations

import enum
import errno
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from memhp.errors import HotplugError, InvalidInput, MemhpError
from memhp.kernel import add, device
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.zones import NodeState
from memhp.locking import Lockdep, Mutex, current, requires
from memhp.locking.switch import controlled, ending_request, guard, task_of
from memhp.units import PAGE_SIZE, BlockId, PhysAddr, format_ids, format_size, lowest_free

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["AcpiMemory", "Dimm", "MemoryDevice", "Ost", "OstReport", "OstSource"]

_log = logging.getLogger("memhp.kernel")

CONTAINER = "/devices/system/container/PNP0A06:04"
"""The device of the container that the slots of a QEMU machine are in (observed)."""
_ALIGNMENT = 2 << 20
"""What QEMU aligns the memory of a DIMM to."""
_GIB = 1 << 30


class Ost(enum.IntEnum):
    """What the kernel tells the firmware of how it went (``include/linux/acpi.h``)."""

    SUCCESS = 0
    NON_SPECIFIC_FAILURE = 1
    EJECT_NOT_SUPPORTED = 0x80
    DEVICE_BUSY = 0x82
    EJECT_IN_PROGRESS = 0x84


class OstSource(enum.IntEnum):
    """What a report answers."""

    DEVICE_CHECK = 1
    EJECT_REQUEST = 3
    OSPM_EJECT = 0x103
    """The file ``eject``; that it is in progress is reported as for EJECT_REQUEST all the same (observed)."""


class OstReport(NamedTuple):
    """One status that the kernel reported."""

    source: OstSource
    status: Ost


_STATUSES = {errno.EPERM: Ost.EJECT_NOT_SUPPORTED, errno.EBUSY: Ost.DEVICE_BUSY}


class Dimm:
    """A DIMM, from the moment that it is plugged in.

    Attributes:
        device: the slot's device; it stays there when the DIMM goes.
        nid: node.
        start: physical address, bytes.
        size: bytes.
        plugged: whether it is in its slot.
        reports: what the kernel told the firmware of it, in order.
        error: why the kernel could not use it, or could not let it go, the last time; None if it could.
    """

    def __init__(self, device: MemoryDevice, nid: int, start: PhysAddr, size: int) -> None:
        self.device = device
        self.nid = nid
        self.start = start
        self.size = size
        self.plugged = True
        self.reports: list[OstReport] = []
        self.error: MemhpError | None = None

    def __repr__(self) -> str:
        state = f"in {self.device.name}" if self.plugged else "unplugged"
        return f"<Dimm {format_size(self.size)} at {self.start:#x} node{self.nid} {state}>"

    @property
    def blocks(self) -> list[BlockId]:
        """Ids of its memory blocks, ascending; none if the kernel could not add it, or when it is unplugged."""
        return sorted(block.id for block in self.device.physical_nodes.values()) if self.plugged else []

    @property
    def ost(self) -> OstReport | None:
        """The last status reported of it."""
        return self.reports[-1] if self.reports else None


class MemoryDevice:
    """The device of one slot (``struct acpi_device``), there from boot whether the slot has a DIMM or not.

    Attributes:
        number: of the slot.
        dimm: what is in the slot.
        attached: whether the handler has taken the DIMM: its memory is the kernel's.
        mgid: the static memory group of its memory.
        seen: whether it ever was; ``modalias`` stays empty until then (observed).
        physical_nodes: the blocks bound to it, by the number in the name of their link.
    """

    removed = False

    def __init__(self, number: int, dep: Lockdep | None) -> None:
        self.number = number
        self.dimm: Dimm | None = None
        self.attached = False
        self.mgid: int | None = None
        self.seen = False
        self.physical_nodes: dict[int, MemoryBlock] = {}
        self.lock = Mutex(f"{self.name}/physical_node_lock", dep, lock_class="acpi physical_node_lock")

    def __repr__(self) -> str:
        return f"<MemoryDevice {self.name} {self.dimm!r}>"

    @property
    def name(self) -> str:
        """Its name in sysfs: ``PNP0C80:00``."""
        return f"PNP0C80:{self.number:02x}"

    def bind(self, block: MemoryBlock) -> None:
        """Make the block a physical node of the device."""
        number = lowest_free(self.physical_nodes)
        # A new dictionary each time: whoever reads the old one without a lock reads it undisturbed.
        self.physical_nodes = dict(sorted([*self.physical_nodes.items(), (number, block)]))
        block.firmware_node = self

    def unbind(self, block: MemoryBlock) -> None:
        """End that; device_hotplug_lock is held."""
        self.physical_nodes = {number: other for number, other in self.physical_nodes.items() if other is not block}
        block.firmware_node = None


class AcpiMemory:
    """The slots of a machine, and the kernel's side of them.

    Attributes:
        devices: one a slot.
        enabled: what ``/sys/firmware/acpi/hotplug/memory/enabled`` says. False still lets DIMMs in, and none out.
        run: runs what the kernel does in a thread of its own (``kacpi_hotplug``); may be replaced.
    """

    def __init__(self, machine: Machine, slots: int) -> None:
        self._machine = machine
        self._slots = Mutex("the hypervisor's slots", interruptible=False)
        self.devices = tuple(MemoryDevice(number, machine.dep) for number in range(slots))
        self.enabled: bool = True
        self.run: Callable[[str, Callable[[], None]], object] = _start

    @property
    def dimms(self) -> list[Dimm]:
        """The DIMMs that are plugged in, by slot."""
        return [dimm for device in self.devices if (dimm := device.dimm) is not None]

    # -- the hypervisor

    def insert(self, nid: int, size: int, start: int | None) -> Dimm:
        """Put a DIMM into the first free slot, at the first address where it fits if ``start`` is None.

        Raises:
            HotplugError: as :meth:`memhp.Machine.plug_dimm`.
        """
        if size < 1:
            raise HotplugError(errno.EINVAL, f"a DIMM of {size} bytes")
        with self._slots:
            free = next((device for device in self.devices if device.dimm is None), None)
            if free is None:
                raise HotplugError(errno.ENOSPC, f"all {len(self.devices)} slots have a DIMM")
            self._check_room(size)
            if size % _ALIGNMENT or (start or 0) % _ALIGNMENT:
                place = "" if start is None else f" at {start:#x}"
                message = f"a DIMM of {size:#x} bytes{place}: size and address must be multiples of {_ALIGNMENT:#x}"
                raise HotplugError(errno.EINVAL, message)
            address = self._first_fit(size) if start is None else self._check_place(start, size)
            possible = self._machine.node_states[NodeState.N_POSSIBLE]
            if nid not in possible:
                message = f"node {nid} is not possible on this machine; possible are {format_ids(possible)}"
                raise HotplugError(errno.EINVAL, message)
            free.dimm = Dimm(free, nid, PhysAddr(address), size)
            return free.dimm

    def _check_room(self, size: int) -> None:
        used, total = sum(dimm.size for dimm in self.dimms), self._machine.room[1]
        if used + size > total:
            message = f"no room for {format_size(size)}: DIMMs have {format_size(used)} of {format_size(total)}"
            raise HotplugError(errno.ENOSPC, message)

    def _area(self) -> tuple[int, int]:
        # QEMU lays the room out with a GiB for each slot to spare.
        start, size = self._machine.room
        return start, start + size + _GIB * len(self.devices)

    def _taken(self) -> list[tuple[int, int]]:
        # Memory that came by add_memory() is no DIMM; QEMU would not know of it, but a DIMM there would be of no use.
        first, _ = self._area()
        claims = [(resource.start, resource.end + 1) for resource in self._machine.iomem if resource.end >= first]
        return sorted({*claims, *((dimm.start, dimm.start + dimm.size) for dimm in self.dimms)})

    def _first_fit(self, size: int) -> int:
        place, end = self._area()
        for taken, behind in self._taken():
            if taken < place + size and place < behind:
                place = -(-behind // _ALIGNMENT) * _ALIGNMENT
        if place + size > end:
            raise HotplugError(errno.ENOSPC, f"no gap of {format_size(size)} among the DIMMs")
        return place

    def _check_place(self, start: int, size: int) -> int:
        first, end = self._area()
        if not first <= start <= start + size <= end:
            message = f"{start:#x} + {size:#x} bytes is outside of the room for DIMMs, {first:#x} to {end:#x}"
            raise HotplugError(errno.EINVAL, message)
        for dimm in self.dimms:
            if start < dimm.start + dimm.size and dimm.start < start + size:
                raise HotplugError(errno.EEXIST, f"{start:#x} + {size:#x} bytes overlaps {dimm!r}")
        return start

    # -- what the firmware tells the kernel

    def device_check(self, dimm: Dimm) -> None:
        """A DIMM has come (``acpi_scan_device_check``): add its memory, and report.

        That the kernel could not add it is not told: the status is SUCCESS all the same (observed on 6.1 and 6.12).
        """
        machine = self._machine
        rescans = machine.rules.value.rescans_container
        try:
            with machine.locks.device_hotplug, machine.locks.acpi_scan:
                for device_ in self.devices if rescans else (dimm.device,):
                    if device_.dimm is not None and not device_.attached:
                        self._attach(device_)
                if rescans:
                    machine.uevents.emit("online", CONTAINER, subsystem="container")
                dimm.reports.append(OstReport(OstSource.DEVICE_CHECK, Ost.SUCCESS))
        except BaseException:
            self._take_out(dimm)
            raise

    def _attach(self, device_: MemoryDevice) -> None:
        # Under the lock, lest whoever put the DIMM there gives up and takes it out meanwhile.
        with self._slots:
            if device_.dimm is not None:
                _attach(self._machine, device_, device_.dimm)

    def _take_out(self, dimm: Dimm) -> None:
        with self._slots:
            if dimm.device.dimm is dimm and not dimm.device.attached:
                dimm.plugged = False
                dimm.device.dimm = None

    def eject(self, dimm: Dimm, source: OstSource) -> None:
        """The DIMM shall go (``acpi_device_hotplug`` and below): try, and report.

        Raises:
            HotplugError: as :meth:`memhp.Machine.unplug_dimm`.
        """
        machine = self._machine
        if not isinstance(dimm, Dimm) or dimm.device not in self.devices:
            raise InvalidInput(dimm, "unplug_dimm", "a DIMM of this machine, as plug_dimm() gives it")
        with machine.locks.device_hotplug, machine.locks.acpi_scan:
            if not dimm.plugged:
                raise HotplugError(errno.ENODEV, f"{dimm!r} is not plugged in")
            try:
                self._eject(dimm.device, dimm)
            except HotplugError as error:
                dimm.error = error
                dimm.reports.append(OstReport(source, _STATUSES.get(error.errno or 0, Ost.NON_SPECIFIC_FAILURE)))
                raise
            dimm.error = None
            dimm.reports.append(OstReport(source, Ost.SUCCESS))

    def _eject(self, device: MemoryDevice, dimm: Dimm) -> None:
        if device.attached and not self.enabled:
            raise HotplugError(
                errno.EPERM, f"{device.name}: ejecting memory is disabled (/sys/firmware/acpi/hotplug/memory/enabled)"
            )
        dimm.reports.append(OstReport(OstSource.EJECT_REQUEST, Ost.EJECT_IN_PROGRESS))
        if device.attached:
            _take_away(self._machine, device, dimm)
            _drop_group(self._machine, device)
            device.attached = False
        self._take_out(dimm)

    def schedule_eject(self, dimm: Dimm) -> None:
        """Eject in a thread of the kernel's own; how it ends is told to the firmware and to the log alone."""

        def work() -> None:
            try:
                with ending_request():
                    self.eject(dimm, OstSource.OSPM_EJECT)
            except MemhpError as error:
                _log.warning("%s: not ejected: %s", dimm.device.name, error)

        self.run("kacpi_hotplug", work)


# -- adding


@requires("device_hotplug")
def _attach(machine: Machine, device_: MemoryDevice, dimm: Dimm) -> None:
    # acpi_memory_device_add(): what is the kernel's already (EEXIST) is bound as if it had been added.
    device_.seen = True
    try:
        device_.mgid = machine.groups.register_static(dimm.nid, -(-dimm.size // PAGE_SIZE))
        add.add_memory(machine, device_.mgid, dimm.start, dimm.size, flags=_flags(machine, dimm.size))
    except HotplugError as error:
        if error.errno != errno.EEXIST:
            dimm.error = error
            _log.warning("acpi %s: add_memory failed: %s", device_.name, error)
            _drop_group(machine, device_)
            return
    except BaseException:
        _drop_group(machine, device_)
        raise
    with device_.lock:
        for block in _blocks_within(machine, dimm):
            device_.bind(block)
    dimm.error = None
    device_.attached = True


def _flags(machine: Machine, size: int) -> add.MhpFlags:
    # acpi_memory_enable_device(): 6.1 asks whether the memory can hold its own memmap, 6.12 leaves that to whoever adds it.
    if machine.rules.value.memmap_each_block or add.supports_memmap_on_memory(machine, size):
        return add.MhpFlags.NID_IS_MGID | add.MhpFlags.MEMMAP_ON_MEMORY
    return add.MhpFlags.NID_IS_MGID


def _drop_group(machine: Machine, device_: MemoryDevice) -> None:
    mgid, device_.mgid = device_.mgid, None
    if mgid is not None:
        machine.groups.drop(mgid)


def _blocks_within(machine: Machine, dimm: Dimm) -> list[MemoryBlock]:
    first, end = dimm.start // machine.block_size, -(-(dimm.start + dimm.size) // machine.block_size)
    return [block for number, block in sorted(machine.blocks.items()) if first <= number < end and block.firmware_node is None]


# -- removing


@requires("device_hotplug")
def _take_away(machine: Machine, device_: MemoryDevice, dimm: Dimm) -> None:
    taken = _try_to_offline(machine, device_)
    try:
        add.remove_memory(machine, dimm.start, dimm.size)
    except BaseException as error:
        holds = _bring_back(machine, device_, taken)
        if isinstance(error, InvalidInput):
            # A DIMM of odd size whose memory was there before (EEXIST) is bound to whole blocks. The kernel stops with BUG().
            raise HotplugError(errno.EINVAL, f"{device_.name} is no range of whole blocks; {holds}") from error
        raise


@requires("device_hotplug")
def _try_to_offline(machine: Machine, device_: MemoryDevice) -> list[MemoryBlock]:
    # acpi_scan_try_to_offline(): the first pass goes over all, because one block may hold what another one needs to go.
    taken: list[MemoryBlock] = []
    try:
        refused = _pass(machine, device_, taken, stop=False) and _pass(machine, device_, taken, stop=True)
    except BaseException:
        _bring_back(machine, device_, taken)
        raise
    if refused:
        stays, why = refused[0]
        holds = _bring_back(machine, device_, taken)
        message = f"{device_.name} can't be ejected: {why.strerror or why}; {holds}"
        raise HotplugError(errno.EBUSY, message, block=stays.id) from why
    return taken


Refusals = list[tuple[MemoryBlock, HotplugError]]


def _pass(machine: Machine, device_: MemoryDevice, taken: list[MemoryBlock], *, stop: bool) -> Refusals:
    refused: Refusals = []
    with device_.lock:
        for block in device_.physical_nodes.values():
            if block in taken:
                continue
            try:
                unchanged = device.device_offline(machine, block)
            except HotplugError as error:
                refused.append((block, error))
                if stop:
                    break
            else:
                if not unchanged:
                    taken.append(block)
    return refused


def _bring_back(machine: Machine, device_: MemoryDevice, taken: list[MemoryBlock]) -> str:
    # acpi_bus_online(): the type is whatever a block has stored, mostly nothing, and then the zone is chosen anew.
    lost: list[MemoryBlock] = []
    with device_.lock:
        for block in sorted(taken, key=lambda block: block.id):
            try:
                device.device_online(machine, block)
            except MemhpError as error:
                _log.warning("memory %s: not online again: %s", block.name, error)
                lost.append(block)
            except BaseException as interrupt:
                current().deferred = interrupt
                lost.append(block)
    return _holds([block for block in taken if block not in lost], lost)


def _holds(back: list[MemoryBlock], lost: list[MemoryBlock]) -> str:
    # What is the case after a rollback, for the error.
    zones: dict[str, list[int]] = {}
    for block in back:
        zones.setdefault(block.zone.type.label if block.zone is not None else "several zones", []).append(block.id)
    parts = [f"memory{format_ids(ids)} online again in {label}" for label, ids in zones.items()]
    if lost:
        parts.append(f"memory{format_ids(block.id for block in lost)} could not be brought online again")
    return ", ".join(parts) or "nothing was taken offline"


def _start(name: str, work: Callable[[], None]) -> None:
    # The writer of `eject` goes on when the thread has done its work, or has to wait for something itself.
    if controlled():
        work()
        return
    settled = threading.Event()

    def body() -> None:
        try:
            work()
        finally:
            settled.set()

    thread = threading.Thread(target=body, name=name, daemon=True)
    task = task_of(thread)
    with guard:
        task.on_park = lambda _task: settled.set()
    thread.start()
    settled.wait()
