"""Memory hotplug for Linux: a machine's memory grows and shrinks, and the programs that depend on it take part.

The house, from the bottom up; imports go down only::

    errors, units, events, locking/, notifier    the ground: what everything stands on
    abi/                                         the seam: what Linux's files say
    kernel/                                      below the seam: the modelled machine, which serves those files
    host/                                        above it: userland: list, explain, plan, change, watch
    scenario/                                    beside it: files that say what happens to a machine, and what should
    lab/                                         beside it: real kernels in QEMU play those files too
    cli/                                         the command line
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memhp.abi.tree import DirTree, Tree
    from memhp.errors import (
        AlreadyRegistered,
        DeadlockError,
        HostError,
        HotplugError,
        Interrupted,
        InvalidInput,
        LockError,
        LockNotHeld,
        MemhpError,
        NotifierError,
        NotRegistered,
        PageRefusal,
        PriorityTaken,
        ScenarioError,
        Vetoed,
        WrongAnswer,
    )
    from memhp.events import (
        MEM_CANCEL_OFFLINE,
        MEM_CANCEL_ONLINE,
        MEM_FINISH_OFFLINE,
        MEM_GOING_OFFLINE,
        MEM_GOING_ONLINE,
        MEM_OFFLINE,
        MEM_ONLINE,
        MEM_PREPARE_ONLINE,
        MemoryAction,
        MemoryNotify,
    )
    from memhp.host import Host
    from memhp.kernel import Allocation, Machine, MhpFlags, NodeSpec, OnlineType, PageKind, Rules, ZoneType
    from memhp.notifier import (
        NOTIFY_BAD,
        NOTIFY_DONE,
        NOTIFY_OK,
        NOTIFY_STOP,
        NOTIFY_STOP_MASK,
        NotifierBlock,
        NotifierChain,
        NotifyResult,
        notifier_from_errno,
        notifier_to_errno,
    )

    __version__: str

__all__ = [
    "MEM_CANCEL_OFFLINE",
    "MEM_CANCEL_ONLINE",
    "MEM_FINISH_OFFLINE",
    "MEM_GOING_OFFLINE",
    "MEM_GOING_ONLINE",
    "MEM_OFFLINE",
    "MEM_ONLINE",
    "MEM_PREPARE_ONLINE",
    "NOTIFY_BAD",
    "NOTIFY_DONE",
    "NOTIFY_OK",
    "NOTIFY_STOP",
    "NOTIFY_STOP_MASK",
    "Allocation",
    "AlreadyRegistered",
    "DeadlockError",
    "DirTree",
    "Host",
    "HostError",
    "HotplugError",
    "Interrupted",
    "InvalidInput",
    "LockError",
    "LockNotHeld",
    "Machine",
    "MemhpError",
    "MemoryAction",
    "MemoryNotify",
    "MhpFlags",
    "NodeSpec",
    "NotRegistered",
    "NotifierBlock",
    "NotifierChain",
    "NotifierError",
    "NotifyResult",
    "OnlineType",
    "PageKind",
    "PageRefusal",
    "PriorityTaken",
    "Rules",
    "ScenarioError",
    "Tree",
    "Vetoed",
    "WrongAnswer",
    "ZoneType",
    "notifier_from_errno",
    "notifier_to_errno",
]

_HOMES = {
    "memhp.abi.tree": ("DirTree", "Tree"),
    "memhp.errors": (
        "AlreadyRegistered",
        "DeadlockError",
        "HostError",
        "HotplugError",
        "Interrupted",
        "InvalidInput",
        "LockError",
        "LockNotHeld",
        "MemhpError",
        "NotifierError",
        "NotRegistered",
        "PageRefusal",
        "PriorityTaken",
        "ScenarioError",
        "Vetoed",
        "WrongAnswer",
    ),
    "memhp.events": (
        "MEM_CANCEL_OFFLINE",
        "MEM_CANCEL_ONLINE",
        "MEM_FINISH_OFFLINE",
        "MEM_GOING_OFFLINE",
        "MEM_GOING_ONLINE",
        "MEM_OFFLINE",
        "MEM_ONLINE",
        "MEM_PREPARE_ONLINE",
        "MemoryAction",
        "MemoryNotify",
    ),
    "memhp.host": ("Host",),
    "memhp.kernel": ("Allocation", "Machine", "MhpFlags", "NodeSpec", "OnlineType", "PageKind", "Rules", "ZoneType"),
    "memhp.notifier": (
        "NOTIFY_BAD",
        "NOTIFY_DONE",
        "NOTIFY_OK",
        "NOTIFY_STOP",
        "NOTIFY_STOP_MASK",
        "NotifierBlock",
        "NotifierChain",
        "NotifyResult",
        "notifier_from_errno",
        "notifier_to_errno",
    ),
}
"""Where each public name lives. Nothing is imported before it is used, because every command starts here."""

_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - it costs more than all the rest

        return version("memhp")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - only where a name is used

    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
