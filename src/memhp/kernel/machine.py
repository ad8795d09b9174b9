"""The machine: what a program that takes part in memory hotplug talks to."""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from memhp.abi.tree import Tree
from memhp.errors import HotplugError, InvalidInput
from memhp.events import MemoryAction, MemoryNotify
from memhp.kernel import add, device
from memhp.kernel import hotplug as core
from memhp.kernel.acpi import AcpiMemory, Dimm, OstSource
from memhp.kernel.acpi_files import acpi_directories
from memhp.kernel.add import MhpFlags
from memhp.kernel.arguments import flags_of, online_type_of, pages_of
from memhp.kernel.blocks import BlockState, MemoryBlock, OnlineType
from memhp.kernel.boot import NodeSpec, Parameters, Plan
from memhp.kernel.bringup import bringup
from memhp.kernel.cpus import Cpus
from memhp.kernel.dax_files import dax_directories
from memhp.kernel.daxbus import DaxBus
from memhp.kernel.devicememory import DeviceMemory
from memhp.kernel.error_inject import Modules
from memhp.kernel.firmwaremap import FirmwareMap
from memhp.kernel.groups import MemoryGroups
from memhp.kernel.holdings import Allocation, Holding
from memhp.kernel.iomem import SYSTEM_RAM, Iomem
from memhp.kernel.layout import check_ram, plan_from_spec
from memhp.kernel.locks import Locks, MemHotplug
from memhp.kernel.lookup import Lookup
from memhp.kernel.offlineremove import offline_and_remove_memory
from memhp.kernel.onlinepage import OnlinePage
from memhp.kernel.pages import PageKind, Pages
from memhp.kernel.rules import Rules
from memhp.kernel.sockets import Sockets
from memhp.kernel.sysfs import SysfsTree
from memhp.kernel.tiers import MemoryTiers
from memhp.kernel.twin import plan_from_tree
from memhp.kernel.uevents import Uevents
from memhp.kernel.zones import Node, NodeState, Zone
from memhp.locking import Lockdep, Task
from memhp.locking.guards import Guardable
from memhp.locking.percpu import ReadSide
from memhp.locking.switch import ending_request, task_of
from memhp.notifier import Callback, NotifierBlock, NotifierChain, NotifyResult
from memhp.units import PAGE_SHIFT, PAGE_SIZE, BlockId, PhysAddr, whole_number

__all__ = ["Machine"]

P = ParamSpec("P")
R = TypeVar("R")


def _request(method: Callable[Concatenate[Machine, P], R]) -> Callable[Concatenate[Machine, P], R]:
    # A request from outside.
    @functools.wraps(method)
    def request(self: Machine, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with ending_request():
            return method(self, *args, **kwargs)

    return request


class Machine(Lookup):
    """A machine whose memory can be added, brought online, taken offline and removed while it runs.

    Make one with :meth:`boot` or :meth:`from_tree`. Every request may be made from any thread; requests that change memory
    wait for each other. Inside a callback no further request can be made: the locks are held, and it is an error.

    Attributes:
        rules: the document, or the kernel, that it follows.
        block_size: bytes of a memory block.
        blocks: memory blocks by id.
        nodes: possible nodes by id.
        node_states: the node masks, as sets of ids.
        memory_chain: the notifier chain.
        cpus: the CPUs that are present.
        sockets: where CPUs can be put in, as a hypervisor does.
        tiers: which nodes have fast memory, and which slow.
        device_memory: memory of devices, in ZONE_DEVICE.
        dax: the bus of devices that soft-reserved memory is.
        online_page: who gives pages of memory that comes online to the allocator.
        groups: memory groups, to which memory can be added.
        iomem: who claims which addresses.
        firmware_map: what /sys/firmware/memmap has.
        pages: the page allocator.
        tree: the files of /sys that it serves.
        uevents: its uevents.
        acpi: the firmware's memory devices.
        dep: lockdep, or None when it is off; ``dep.reports`` lists lock orders that could deadlock.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        rules: Rules | str = Rules.DOCUMENTED,
        device_hotplug_lock: bool = True,
        lockdep: bool | Lockdep = False,
    ) -> None:
        self.rules = Rules.of(rules)
        check_ram(plan)
        self.dep = lockdep if isinstance(lockdep, Lockdep) else Lockdep() if lockdep else None
        self.locks = Locks(self.dep, device_hotplug_lock=device_hotplug_lock)
        self.memory_chain = NotifierChain(dep=self.dep)
        self.block_size: int = plan.block_size
        self.pages_per_block = plan.block_size >> PAGE_SHIFT
        self.parameters: Parameters = plan.parameters
        self.room = plan.room
        self.blocks: dict[int, MemoryBlock] = {}
        self.nodes: dict[int, Node] = {}
        self.node_states: dict[NodeState, set[int]] = {state: set() for state in NodeState}
        self.iomem = Iomem(1 << plan.physical_bits, self.dep)
        self.mappable = plan.mappable
        """Where the addresses end that can be mapped (x86-64, by levels of page tables)."""
        self.firmware_map = FirmwareMap()
        self.groups = MemoryGroups(self)
        self.cpus: Cpus = Cpus(self)
        self.sockets = Sockets(self, plan.sockets)
        self.device_memory = DeviceMemory(self)
        self.online_page = OnlinePage(self)
        self.boot_nodes = tuple((block.id, block.nid) for block in plan.blocks)
        """Block ids of boot memory, ascending, with their nodes."""
        self.memory_probe = plan.memory_probe
        """Whether there is the file ``probe`` (CONFIG_ARCH_MEMORY_PROBE)."""
        self.uevents = Uevents()
        self.tiers: MemoryTiers = MemoryTiers(self)
        self.drivers_autoprobe: bool = True
        self.power_control: dict[str, str] = {}
        """What was written to a ``power/control``, by its directory."""
        self.pages = Pages(self)
        self.acpi: AcpiMemory = AcpiMemory(self, plan.slots)
        self.tree = SysfsTree(self)
        self.tree.mount(acpi_directories(self))
        self._modules = Modules(self)
        self._online_mems: ReadSide = self.locks.mem_hotplug.read
        self.dax: DaxBus = DaxBus(self)
        bringup(self, plan)
        self.tree.mount(dax_directories(self))

    def __repr__(self) -> str:
        online = [block for block in self.blocks.values() if block.state is BlockState.ONLINE]
        gib = sum(block.ram_pages for block in online) * PAGE_SIZE / 2**30
        return f"<Machine {gib:.4g} GiB online in {len(online)} of {len(self.blocks)} blocks, {self.rules.value.title}>"

    # -- how it begins

    @classmethod
    def boot(
        cls,
        nodes: Sequence[object] | str | int | NodeSpec = ("4GiB",),
        *,
        block_size: str | int | None = None,
        room: str | int | None = None,
        slots: int = 16,
        parameters: object = None,
        hypervisor: bool = True,
        physical_bits: int = 46,
        five_level_paging: bool = False,
        acpi_tables: str | int = 0,
        soft_reserved: Sequence[object] = (),
        memory_probe: bool = False,
        rules: Rules | str = Rules.DOCUMENTED,
        device_hotplug_lock: bool = True,
        lockdep: bool | Lockdep = False,
    ) -> Machine:
        """Boot a machine from a description.

        Args:
            nodes: one entry a node: a size (``"4GiB"``, bytes), a mapping (memory, cpus, distances) or a NodeSpec. A single
                size is a machine with one node.
            block_size: bytes of a block; as x86-64 chooses it by default.
            room: bytes of addresses for memory to add; as much as can be mapped by default.
            slots: how many DIMMs can be plugged in, up to 256.
            parameters: kernel parameters as a mapping (``{"memhp_default_state": "online"}``) or a command line.
            hypervisor: whether it is a VM, which matters for the default block size only.
            physical_bits: how many bits of a physical address the CPU has; memory can't be claimed above.
            five_level_paging: whether 2^52 bytes can be mapped, not 2^46.
            acpi_tables: bytes that the firmware keeps at the end of RAM below the hole, 128 KiB in QEMU's PC; the block has
                a hole then, and can't go offline.
            soft_reserved: ranges of RAM that the firmware keeps for a purpose (EFI_MEMORY_SP: HBM, CXL), so that they are devices
                on the bus ``dax`` and no memory blocks. Each is ``{"at": address, "size": bytes}`` or a pair of these, in
                multiples of 2 MiB; no two may touch each other.
            memory_probe: whether there is the file ``probe``, which most kernels lack.
            rules: the document, or a kernel; by name too (``"6.1"``).
            device_hotplug_lock: False takes device_hotplug_lock away, to show what it is for.
            lockdep: watch the order of locks; a :class:`~memhp.locking.Lockdep` to watch several machines, one after the
                other (see its ``next_run``).

        Raises:
            InvalidInput: a malformed value, with its place.
        """
        listed = nodes if isinstance(nodes, Sequence) and not isinstance(nodes, str | bytes) else [nodes]
        plan = plan_from_spec(
            listed,
            block_size=block_size,
            room=room,
            parameters=parameters,
            rules=Rules.of(rules),
            hypervisor=hypervisor,
            acpi_tables=acpi_tables,
            soft_reserved=soft_reserved,
            slots=slots,
            physical_bits=physical_bits,
            five_level_paging=five_level_paging,
            memory_probe=memory_probe,
        )
        if not isinstance(lockdep, bool | Lockdep):
            raise InvalidInput(lockdep, "lockdep", "true or false")
        return cls(plan, rules=rules, device_hotplug_lock=device_hotplug_lock, lockdep=lockdep)

    @classmethod
    def from_tree(
        cls,
        tree: Tree,
        *,
        rules: Rules | str = Rules.DOCUMENTED,
        device_hotplug_lock: bool = True,
        lockdep: bool | Lockdep = False,
    ) -> Machine:
        """Make the twin of a real machine from its files: ``Machine.from_tree(DirTree("/"))``.

        It has that machine's block size, blocks, states, zones, nodes and parameters; nothing of the real one is changed.

        Raises:
            InvalidInput: a file is missing or malformed, with its path.
        """
        plan = plan_from_tree(tree, rules=Rules.of(rules))
        return cls(plan, rules=rules, device_hotplug_lock=device_hotplug_lock, lockdep=lockdep)

    # -- the notifier

    @overload
    def hotplug_memory_notifier(self, callback: Callback, priority: int = 0) -> NotifierBlock: ...

    @overload
    def hotplug_memory_notifier(self, callback: None = None, priority: int = 0) -> Callable[[Callback], NotifierBlock]: ...

    def hotplug_memory_notifier(
        self, callback: Callback | None = None, priority: int = 0
    ) -> NotifierBlock | Callable[[Callback], NotifierBlock]:
        """Register a callback for changes of memory; higher priorities are called first, equals in order of registration.

        Call it (``machine.hotplug_memory_notifier(callback, 10)``) or decorate with it
        (``@machine.hotplug_memory_notifier(priority=10)``); either way you get the block, which can be called and has
        ``unregister()``.

        Raises:
            AlreadyRegistered: the same function is registered at the same priority; to run one function twice, register
                two blocks with ``machine.memory_chain.register(NotifierBlock(...))``.
            InvalidInput: a malformed priority or callback.
            DeadlockError: called from inside a callback.
        """
        if callback is None:
            return lambda function: self.hotplug_memory_notifier(function, priority)
        return self.memory_chain.register(NotifierBlock(callback, priority), unique_callback=True)

    def memory_notify(self, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        """Tell the chain something (``drivers/base/memory.c``: ``memory_notify``); gives the last callback's answer."""
        return self.memory_chain.call(action, arg)

    # -- reading memory safely

    def online_mems(self) -> ReadSide:
        """Keep memory from vanishing: ``with machine.online_mems():`` no page comes or goes. Cheap when nothing changes.

        A change waits for all such readers, and readers that come after it wait for the change. A thread that already
        reads must not wait for another reader, and a callback may not use it (its own change holds the write side). Devices
        of blocks that are offline may go all the same: Linux 6.1 deletes them before it takes the lock.
        """
        return self._online_mems

    def get_online_mems(self) -> None:
        """Begin reading; every call needs its :meth:`put_online_mems`. See :meth:`online_mems`."""
        self.locks.mem_hotplug.read_acquire()

    def put_online_mems(self) -> None:
        """End reading.

        Raises:
            LockError: this thread does not read.
        """
        self.locks.mem_hotplug.read_release()

    # -- requests

    @_request
    def add_memory(
        self, nid: int, start: int, size: int, *, name: str = SYSTEM_RAM, flags: MhpFlags | int = MhpFlags.NONE
    ) -> list[BlockId]:
        """Add memory to a node: new offline blocks, which ``auto_online_blocks`` may bring online at once.

        Args:
            nid: the node; a possible one that is offline comes online. With MhpFlags.NID_IS_MGID a memory group of ``groups``.
            start: physical address, bytes, a multiple of the block size.
            size: bytes, a multiple of the block size.
            name: the name in /proc/iomem; another than "System RAM" is that of a driver's memory, "System RAM (driver)".
            flags: how; see :class:`~memhp.kernel.add.MhpFlags`.

        Returns:
            The new blocks' ids. They exist even if bringing one of them online was refused: look at their states.

        Raises:
            HotplugError: E2BIG no range that can be mapped (size 0 too), EEXIST overlaps other memory, EINVAL not aligned,
                no such node or group, no name for a driver's memory, or on 6.1 MEMMAP_ON_MEMORY where that can't be; nothing
                was changed.
        """
        if name != SYSTEM_RAM:
            add.check_driver_name(name)
        place = (
            whole_number(nid, "nid", "the number of a node or group"),
            PhysAddr(whole_number(start, "start")),
            whole_number(size, "size"),
        )
        how = flags_of(flags)
        with self.locks.device_hotplug:
            return add.add_memory(self, *place, name, how)

    def add_memory_driver_managed(
        self, nid: int, start: int, size: int, name: str, *, flags: MhpFlags | int = MhpFlags.NONE
    ) -> list[BlockId]:
        """Add memory that a driver manages: as :meth:`add_memory`, but the next kernel of a kexec must not know of it.

        Args:
            nid: as for add_memory().
            start: as for add_memory().
            size: as for add_memory().
            name: ``System RAM (driver)``. Ranges merge (MhpFlags.MERGE_RESOURCE) only if their name is the very same
                :class:`~memhp.kernel.iomem.ResourceName`.
            flags: as for add_memory().

        Raises:
            HotplugError: EINVAL, no name for a driver's memory; and what add_memory() raises.
        """
        add.check_driver_name(name)
        return self.add_memory(nid, start, size, name=name, flags=flags)

    @_request
    def remove_memory(self, start: int, size: int) -> list[BlockId]:
        """Remove memory whose blocks are all offline; its node goes too if it has no blocks and no CPU left.

        Raises:
            HotplugError: EBUSY, a block is not offline; EINVAL, blocks that hold their own memmap would go together with
                others. Nothing was changed.
            InvalidInput: not a range of whole blocks.
        """
        with self.locks.device_hotplug:
            return add.remove_memory(self, PhysAddr(whole_number(start, "start")), whole_number(size, "size"))

    @property
    def dimms(self) -> list[Dimm]:
        """The DIMMs that are plugged in, by slot."""
        return self.acpi.dimms

    @_request
    def plug_dimm(self, node: int, size: int, start: int | None = None) -> Dimm:
        """Plug in a DIMM: the firmware tells the kernel, which adds its memory and may bring it online at once.

        Args:
            node: the node that the firmware says it is on.
            size: bytes; a kernel has use only for whole blocks.
            start: physical address, bytes; by default the first gap from the beginning of the room on, as QEMU chooses it.

        Returns:
            The DIMM. That the kernel could not add its memory is no error here, as a hypervisor isn't told of it either:
            then it has no ``blocks``, and its ``error`` says why.

        Raises:
            HotplugError: ENOSPC no free slot or not enough room, EEXIST overlaps a DIMM, EINVAL no such node, outside of the
                room, or not a multiple of 2 MiB; nothing was changed.
        """
        where = None if start is None else whole_number(start, "start")
        dimm = self.acpi.insert(whole_number(node, "node", "the number of a node"), whole_number(size, "size"), where)
        self.acpi.device_check(dimm)
        return dimm

    @_request
    def unplug_dimm(self, dimm: Dimm) -> None:
        """Ask the kernel for a DIMM: it takes the blocks offline, all or none, removes them, and lets the DIMM go.

        Blocks that it had taken offline when another one refused are brought online again, but not as they were: a plain
        ``online`` chooses the zone anew, unless a refused write to ``state`` has left another type behind.

        Raises:
            HotplugError: EBUSY a block can't go offline (the cause says why), EPERM ejecting is disabled, ENODEV it is not
                plugged in. The DIMM stays, as does its memory.
            InvalidInput: no DIMM of this machine.
        """
        self.acpi.eject(dimm, OstSource.EJECT_REQUEST)

    @_request
    def offline_and_remove_memory(self, start: int, size: int) -> list[BlockId]:
        """Take memory offline and remove it, as drivers do.

        If a block can't go, those that went offline here come online again, each to the kind of zone that it was in; blocks that
        were offline before stay offline.

        Raises:
            HotplugError: EINVAL, not whole blocks; and the first error of :meth:`device_offline` or :meth:`remove_memory`.
        """
        place = PhysAddr(whole_number(start, "start"))
        if whole_number(size, "size") < 1 or place < 0 or place % self.block_size or size % self.block_size:
            message = f"{place:#x} + {size:#x} bytes is not a range of whole blocks of {self.block_size:#x} bytes"
            raise HotplugError(errno.EINVAL, message)
        with self.locks.device_hotplug:
            return offline_and_remove_memory(self, place, size)

    @_request
    def device_online(self, block_id: int, online_type: OnlineType | str = OnlineType.ONLINE) -> int:
        """Bring a block online (``online``, ``online_kernel`` or ``online_movable``).

        Returns:
            0 when done, 1 when it was online already, as the kernel's function does.

        Raises:
            HotplugError: ENODEV no such block; the errno of whatever went wrong. The block is offline as before.
            Vetoed: a callback refused.
        """
        kind = online_type_of(online_type)
        with self.locks.device_hotplug:
            block = self.block(block_id)
            block.online_type = kind
            return device.device_online(self, block)

    @_request
    def device_offline(self, block_id: int) -> int:
        """Take a block offline, however long its pages take to leave; see :meth:`send_signal` to end that.

        Returns:
            0 when done, 1 when it was offline already, as the kernel's function does.

        Raises:
            HotplugError: ENODEV no such block, EINVAL it spans zones or has holes. The block is online as before.
            PageRefusal: EBUSY, a page can't leave.
            Vetoed: a callback refused.
            Interrupted: EINTR, a signal came while a page could not be moved.
        """
        with self.locks.device_hotplug:
            return device.device_offline(self, self.block(block_id))

    @_request
    def online_pages(self, start_pfn: int, nr_pages: int, zone: Zone) -> None:
        """Bring pages online in a zone, below the devices: block states don't follow. The caller holds the locks.

        Raises:
            LockNotHeld: mem_hotplug_lock is not held for writing; see :meth:`mem_hotplug`.
            HotplugError: as :func:`memhp.kernel.hotplug.online_pages`.
            InvalidInput: no numbers, or no zone.
        """
        core.online_pages(self, *pages_of(start_pfn, nr_pages, zone))

    @_request
    def offline_pages(self, start_pfn: int, nr_pages: int, zone: Zone) -> None:
        """Take pages offline, below the devices: block states don't follow. The caller holds the locks.

        Raises:
            LockNotHeld: mem_hotplug_lock is not held for writing; see :meth:`mem_hotplug`.
            HotplugError: as :func:`memhp.kernel.hotplug.offline_pages`.
            InvalidInput: no numbers, or no zone.
        """
        core.offline_pages(self, *pages_of(start_pfn, nr_pages, zone))

    def load_module(self, name: str, **parameters: object) -> None:
        """Load a kernel module: ``notifier-error-inject``, then ``memory-notifier-error-inject`` (``priority=``).

        The latter takes part in the notifier chain and answers with the errnos that are written to the files
        ``/sys/kernel/debug/notifier-error-inject/memory/actions/ACTION/error``. Other parameters are ignored, as in Linux.

        Raises:
            HotplugError: ENOENT no such module, or the first one is missing; EEXIST it is loaded; EINVAL or ERANGE a malformed
                priority; nothing was changed.
            DeadlockError: called from inside a callback.
        """
        self._modules.load(name, parameters)

    def unload_module(self, name: str) -> None:
        """Unload a module; waits until its callback has returned.

        Raises:
            HotplugError: ENOENT it is not loaded, EAGAIN another module needs it.
            DeadlockError: called from inside a callback.
        """
        self._modules.unload(name)

    def send_signal(self, thread: threading.Thread | Task) -> None:
        """Send a signal to a thread: if it is in the middle of an offline that waits for a page, that fails with EINTR.

        A thread that is doing something else is not affected, as a handled signal does not end a write that waits for a lock.
        """
        if not isinstance(thread, Task | threading.Thread):
            raise InvalidInput(thread, "send_signal", "a thread")
        self.pages.changed.signal(thread if isinstance(thread, Task) else task_of(thread))

    # -- locks

    def lock_named(self, name: str) -> Guardable:
        """Give a lock by its attribute in ``locks``; the guards ask for it."""
        lock: Guardable = getattr(self.locks, name)
        return lock

    def mem_hotplug(self, *, interruptible: bool = True) -> MemHotplug:
        """Hold cpu_hotplug_lock for reading and mem_hotplug_lock for writing (``mem_hotplug_begin``, ``mem_hotplug_done``)."""
        return MemHotplug(self.locks, interruptible=interruptible)

    def device_hotplug_sysfs(self) -> contextlib.AbstractContextManager[None]:
        """Hold device_hotplug_lock as a write to sysfs does; see :meth:`memhp.kernel.locks.Locks.device_hotplug_sysfs`."""
        return self.locks.device_hotplug_sysfs()

    # -- pages

    def alloc_pages(
        self, nr_pages: int, kind: PageKind | str = PageKind.MOVABLE, *, node: int | None = None, owner: str = "", **where: Any
    ) -> Allocation:
        """Allocate pages; see :meth:`memhp.kernel.pages.Pages.alloc`."""
        found = kind if isinstance(kind, PageKind) else PageKind.of(kind)
        return self.pages.alloc(nr_pages, found, node=node, owner=owner, **where)

    def free_pages(self, allocation: Holding) -> None:
        """Give pages back; see :meth:`memhp.kernel.pages.Pages.free`."""
        self.pages.free(allocation)
