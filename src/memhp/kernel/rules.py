"""What differs between the document and the kernels: one table of decisions, asked by name where it matters."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from memhp.errors import InvalidInput
from memhp.events import MemoryAction
from memhp.kernel.blocks import OnlineType

__all__ = ["RuleSet", "Rules"]

_FLAGS = {action: action.value for action in MemoryAction}
_ENUM = {
    MemoryAction.MEM_ONLINE: 0,
    MemoryAction.MEM_GOING_OFFLINE: 1,
    MemoryAction.MEM_OFFLINE: 2,
    MemoryAction.MEM_GOING_ONLINE: 3,
    MemoryAction.MEM_CANCEL_ONLINE: 4,
    MemoryAction.MEM_CANCEL_OFFLINE: 5,
    MemoryAction.MEM_PREPARE_ONLINE: 6,
    MemoryAction.MEM_FINISH_OFFLINE: 7,
}
_BARE_6_12 = frozenset({"auto_movable_numa_aware"})
_BARE_6_1 = _BARE_6_12 | {"memmap_on_memory"}


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The decisions of one kernel, or of the document."""

    title: str
    done_can_refuse: bool
    """NOTIFY_BAD at MEM_ONLINE and MEM_OFFLINE undoes the change. The document says so; kernels ignore that answer."""
    prepares: bool
    """MEM_PREPARE_ONLINE and MEM_FINISH_OFFLINE are sent around the others (``memory_block_online``)."""
    removes_devices_under_lock: bool
    """remove_memory deletes the block devices inside mem_hotplug_lock, not before it."""
    memory_failure: bool
    """CONFIG_MEMORY_FAILURE: poisoned pages are counted per block, and keep it from coming online again."""
    crash_hotplug: bool
    """CONFIG_CRASH_HOTPLUG: the file ``crash_hotplug``."""
    rescans_container: bool
    """A DIMM that comes lets ACPI scan its whole container: that sends the uevent ``online`` for the container, and DIMMs that
    could not be added are tried again (``acpi_scan_device_check``)."""
    memmap_each_block: bool
    """MHP_MEMMAP_ON_MEMORY gives every block of a range its own memmap, and is left out where that can't be.

    Without this it works for a single block only, and asking for it elsewhere is EINVAL."""
    memmap_force: bool
    """The parameter ``memmap_on_memory`` knows ``force``."""
    machine_checks: bool
    """CONFIG_X86_MCE: a CPU's device of that kind comes and goes with it."""
    numbers_sockets: bool
    """A socket that is empty at boot has a number for its CPU (``topology_init_possible_cpus``), else gets one with the first."""
    bare_parameters: frozenset[str]
    """Parameters of the module that need no value on the command line (those of the type bool)."""
    drivers_since_6_12: bool
    """Drivers as they are in 6.12: DLPAR and dax/kmem use memmap_on_memory, virtio-mem tries a removal that failed again."""
    default_online_type: OnlineType
    """Boot value of ``auto_online_blocks`` (Debian's cloud kernels)."""
    counters: str
    """Which kernel's counters and page flags /proc shows: ``6.1`` or ``6.12``."""
    action_numbers: dict[MemoryAction, int]
    """The numbers of the actions in this release's ``include/linux/memory.h``."""


class Rules(enum.Enum):
    """Whose rules the machine follows; ``Rules.of(text)`` reads the names that the command line knows."""

    DOCUMENTED = RuleSet(
        "as documented",
        done_can_refuse=True,
        prepares=False,
        removes_devices_under_lock=False,
        memory_failure=False,
        crash_hotplug=False,
        rescans_container=False,
        memmap_each_block=False,
        memmap_force=False,
        machine_checks=False,
        numbers_sockets=False,
        bare_parameters=_BARE_6_1,
        drivers_since_6_12=False,
        default_online_type=OnlineType.OFFLINE,
        counters="6.1",
        action_numbers=_FLAGS,
    )
    """What core-api/memory-hotplug says, with Linux 6.1 where it says nothing."""
    LINUX_6_1 = RuleSet(
        "Linux 6.1",
        done_can_refuse=False,
        prepares=False,
        removes_devices_under_lock=False,
        memory_failure=False,
        crash_hotplug=False,
        rescans_container=False,
        memmap_each_block=False,
        memmap_force=False,
        machine_checks=False,
        numbers_sockets=False,
        bare_parameters=_BARE_6_1,
        drivers_since_6_12=False,
        default_online_type=OnlineType.OFFLINE,
        counters="6.1",
        action_numbers=_FLAGS,
    )
    """Debian's 6.1.192 cloud kernel, as observed."""
    LINUX_6_12 = RuleSet(
        "Linux 6.12",
        done_can_refuse=False,
        prepares=True,
        removes_devices_under_lock=True,
        memory_failure=True,
        crash_hotplug=True,
        rescans_container=True,
        memmap_each_block=True,
        memmap_force=True,
        machine_checks=True,
        numbers_sockets=True,
        bare_parameters=_BARE_6_12,
        drivers_since_6_12=True,
        default_online_type=OnlineType.ONLINE,
        counters="6.12",
        action_numbers=_ENUM,
    )
    """Debian's 6.12.117 cloud kernel, as observed."""

    @classmethod
    def of(cls, value: Rules | str) -> Rules:
        """Give rules by their name (:attr:`text`), or as they are.

        Raises:
            InvalidInput: another name.
        """
        for rules in cls:
            if value is rules or value == rules.text:
                return rules
        raise InvalidInput(value, "rules", "documented, 6.1 or 6.12")

    def number(self, action: MemoryAction) -> int:
        """Give the number that stands for ``action`` in this release (MEM_ONLINE is 0 in 6.12.117)."""
        return self.value.action_numbers[action]

    @property
    def text(self) -> str:
        """The name used on the command line and in scenario files: ``documented``, ``6.1``, ``6.12``."""
        return {Rules.DOCUMENTED: "documented", Rules.LINUX_6_1: "6.1", Rules.LINUX_6_12: "6.12"}[self]
