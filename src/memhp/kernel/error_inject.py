"""Errors on demand: the modules that let a callback of the memory chain refuse (``lib/memory-notifier-error-inject.c``).

They work on every kernel that has them, without a compiler: what is written to a file in debugfs is what the callback answers.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from memhp.errors import HotplugError, InvalidInput
from memhp.events import MEM_GOING_OFFLINE, MEM_GOING_ONLINE, MemoryAction, MemoryNotify
from memhp.kernel.attributes import Attribute, Directory, uevent_of
from memhp.kernel.kstrtox import kstrtoint
from memhp.locking import Mutex
from memhp.notifier import NotifierBlock, NotifyResult, notifier_from_errno

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["Modules"]

_log = logging.getLogger("memhp.kernel")

_BASE, _MEMORY = "notifier_error_inject", "memory_notifier_error_inject"
_NEEDS = {_BASE: (), _MEMORY: (_BASE,)}
_DEBUGFS = "/sys/kernel/debug/notifier-error-inject"
_ACTIONS = (MEM_GOING_ONLINE, MEM_GOING_OFFLINE)
_MAX_ERRNO = 4095
_BUFFER = 23
"""Bytes of a write that are looked at (``simple_attr_write``; observed)."""


class _Module:
    removed = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "coming"
        self.holders: set[str] = set()
        self.leave: Callable[[], None] = lambda: None


class _Errors:
    # What the callback answers, per action; 0 lets pass.

    removed = False

    def __init__(self) -> None:
        self.values = dict.fromkeys(_ACTIONS, 0)

    def __call__(self, block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        number = self.values.get(action, 0)
        if number:
            _log.info("Injecting error (%d) to %s", number, action.name)
        return notifier_from_errno(number)


class Modules:
    """The loadable modules of a machine: ``notifier-error-inject`` and ``memory-notifier-error-inject``, which needs it.

    A name may be written with - or _, as for modprobe.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = Mutex("module_mutex")
        self._loaded: dict[str, _Module] = {}

    def load(self, name: str, parameters: dict[str, object]) -> None:
        """Load a module; raises as :meth:`memhp.Machine.load_module`."""
        module = self._come(name)
        try:
            module.leave = self._begin(module.name, parameters)
        except BaseException:
            self._forget(module)
            raise
        module.state = "live"
        self._machine.tree.mount(_directories(module))
        self._machine.uevents.emit("add", f"/module/{module.name}", subsystem="module")

    def unload(self, name: str) -> None:
        """Unload a module; raises as :meth:`memhp.Machine.unload_module`."""
        module = self._go(name)
        try:
            module.leave()
        except BaseException:
            module.state = "live"
            raise
        module.removed = True
        self._machine.tree.unmount(f"/sys/module/{module.name}")
        self._forget(module)
        self._machine.uevents.emit("remove", f"/module/{module.name}", subsystem="module")

    def _come(self, name: str) -> _Module:
        known = _known_as(name)
        with self._lock:
            if known not in _NEEDS:
                raise HotplugError(errno.ENOENT, f"there is no module {name!r}; there are {', '.join(_NEEDS)}")
            if known in self._loaded:
                raise HotplugError(errno.EEXIST, f"{name} is loaded already")
            for needed in _NEEDS[known]:
                if needed not in self._loaded or self._loaded[needed].state != "live":
                    raise HotplugError(errno.ENOENT, f"{name} has unknown symbols; load {needed} first")
            module = self._loaded[known] = _Module(known)
            for needed in _NEEDS[known]:
                self._loaded[needed].holders.add(known)
            return module

    def _go(self, name: str) -> _Module:
        with self._lock:
            module = self._loaded.get(_known_as(name))
            if module is None:
                raise HotplugError(errno.ENOENT, f"{name} is not loaded")
            if module.holders:
                raise HotplugError(errno.EAGAIN, f"{name} is in use by {', '.join(sorted(module.holders))}")
            if module.state != "live":
                raise HotplugError(errno.EBUSY, f"{name} is {module.state}")
            module.state = "going"
            return module

    def _forget(self, module: _Module) -> None:
        with self._lock:
            del self._loaded[module.name]
            for needed in _NEEDS[module.name]:
                self._loaded[needed].holders.discard(module.name)

    # -- what the modules do

    def _begin(self, name: str, parameters: dict[str, object]) -> Callable[[], None]:
        tree = self._machine.tree
        priority = _take_parameters(name, parameters)
        if name == _BASE:
            tree.mount({_DEBUGFS: lambda machine: _listing(["memory"] if _MEMORY in self._loaded else [])})
            return lambda: tree.unmount(_DEBUGFS)
        errors = _Errors()
        block = self._machine.memory_chain.register(NotifierBlock(errors, priority, "memory-notifier-error-inject"))
        tree.mount(_error_files(errors))

        def leave() -> None:
            block.unregister()
            errors.removed = True
            tree.unmount(f"{_DEBUGFS}/memory")

        return leave


def _known_as(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidInput(name, "module", "the name of a kernel module")
    return name.replace("-", "_")


def _take_parameters(name: str, parameters: dict[str, object]) -> int:
    priority = 0
    for parameter, value in parameters.items():
        if name == _MEMORY and parameter == "priority":
            priority = kstrtoint(str(value), "priority")
        else:
            _log.warning("%s: unknown parameter %r ignored", name, parameter)
    return priority


# -- the files


def _listing(names: list[str], files: dict[str, Attribute] | None = None, what: object = None) -> Directory:
    return Directory(what, files or {}, lambda: dict.fromkeys(names))


def _error_files(errors: _Errors) -> dict[str, Callable[[Machine], Directory]]:
    made: dict[str, Callable[[Machine], Directory]] = {
        f"{_DEBUGFS}/memory": lambda machine: _listing(["actions"]),
        f"{_DEBUGFS}/memory/actions": lambda machine: _listing([action.name for action in _ACTIONS]),
    }
    for action in _ACTIONS:
        files = {"error": _error_file(action)}
        made[f"{_DEBUGFS}/memory/actions/{action.name}"] = lambda machine, files=files: _listing([], files, errors)  # type: ignore[misc]
    return made


def _error_file(action: MemoryAction) -> Attribute:
    def store(machine: Machine, errors: _Errors, text: str) -> None:
        number = kstrtoint(text[:_BUFFER], "error", 64)
        # Cut to an int first, then kept within 0 and the largest errno: 4294967284 is -12.
        number = (number + (1 << 31)) % (1 << 32) - (1 << 31)
        errors.values[action] = max(-_MAX_ERRNO, min(0, number))

    return Attribute(0o600, lambda machine, errors: f"{errors.values[action]}\n", store, takes_nothing=True)


def _directories(module: _Module) -> dict[str, Callable[[Machine], Directory]]:
    # Left out: coresize, initsize, notes and sections, which say how that kernel was built.
    path = f"/sys/module/{module.name}"
    files = {
        "initstate": Attribute(0o444, lambda machine, module: f"{module.state}\n"),
        "refcnt": Attribute(0o444, lambda machine, module: f"{len(module.holders)}\n"),
        "taint": Attribute(0o444, lambda machine, module: "\n"),
        "uevent": uevent_of(f"/module/{module.name}", "module"),
    }
    return {
        path: lambda machine: _listing(["holders"], files, module),
        f"{path}/holders": lambda machine: Directory(
            module, {}, dict, lambda: {name: f"../../{name}" for name in sorted(module.holders)}
        ),
    }
