"""The machine's locks, outermost first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

from memhp.locking import Lockdep, Mode, Mutex, PercpuRwSemaphore, current

__all__ = ["Locks", "MemHotplug", "RestartSyscall"]


class RestartSyscall(Exception):
    """A write to sysfs must let go of its file and begin anew, once ``lock`` is free (``restart_syscall``)."""

    def __init__(self, lock: Mutex | _NoLock) -> None:
        super().__init__(f"{lock.name} is taken")
        self.lock = lock


class _NoLock:
    """Stands for device_hotplug_lock on a machine that deliberately has none: it orders nothing and is always "held"."""

    name = "device_hotplug_lock (switched off)"
    owner = None

    def held(self, mode: Mode = Mode.WRITE) -> bool:
        return True

    def acquire(self) -> None:
        pass

    def try_acquire(self) -> bool:
        return True

    def await_free(self) -> None:
        pass

    def release(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class Locks:
    """The locks that serialise hotplug.

    The order: device_hotplug_lock, acpi_scan_lock where the firmware asks, a block's device_lock, cpu_hotplug_lock (read),
    mem_hotplug_lock (write), on the way offline pcp_batch_high_lock, and last the notifier chain's rwsem.

    A CPU that comes or goes takes device_hotplug_lock, its device_lock, cpu_add_remove_lock and cpu_hotplug_lock (write). Device
    memory takes cpu_hotplug_lock (read) and mem_hotplug_lock (write) alone.

    Only add and remove take a device_lock inside mem_hotplug_lock; device_hotplug_lock keeps that reverse order harmless.
    """

    def __init__(self, dep: Lockdep | None, *, device_hotplug_lock: bool) -> None:
        self.device_hotplug = Mutex("device_hotplug_lock", dep) if device_hotplug_lock else _NoLock()
        self.acpi_scan = Mutex("acpi_scan_lock", dep)
        self.cpu_add_remove = Mutex("cpu_add_remove_lock", dep)
        self.cpu_hotplug = PercpuRwSemaphore("cpu_hotplug_lock", dep)
        self.mem_hotplug = PercpuRwSemaphore("mem_hotplug_lock", dep)
        self.mf = Mutex("mf_mutex", dep)
        self.pcp_batch_high = Mutex("pcp_batch_high_lock", dep)

    @contextlib.contextmanager
    def device_hotplug_sysfs(self) -> Iterator[None]:
        """Hold device_hotplug_lock as a write to sysfs does: try, and restart the call when somebody has it.

        For the handlers of files only. Waiting for it in one would deadlock with a removal, which holds it and waits for
        writers to leave the file (``lock_device_hotplug_sysfs``).

        Raises:
            RestartSyscall: somebody has it; the file lets go of the device, waits, and calls the handler again.
        """
        lock = self.device_hotplug
        if not lock.try_acquire():
            raise RestartSyscall(lock)
        try:
            yield
        finally:
            lock.release()


class MemHotplug:
    """``with`` it, cpu_hotplug_lock is held for reading and mem_hotplug_lock for writing, in this order.

    Not ``interruptible``, Ctrl-C waits for the end of the request: a part of it is done that can't be undone.
    """

    __slots__ = ("_interruptible", "_locks")

    def __init__(self, locks: Locks, *, interruptible: bool = True) -> None:
        self._locks = locks
        self._interruptible = interruptible

    def __enter__(self) -> None:
        while True:
            try:
                return self._enter()
            except Exception:
                raise
            except BaseException as interrupt:
                if self._interruptible:
                    raise
                current().deferred = interrupt

    def _enter(self) -> None:
        self._locks.cpu_hotplug.read_acquire()
        try:
            self._locks.mem_hotplug.write_acquire()
        except BaseException:
            self._locks.cpu_hotplug.read_release()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._locks.mem_hotplug.write_release()
        self._locks.cpu_hotplug.read_release()
