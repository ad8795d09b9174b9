"""Changing a running guest from another process, over the second of QEMU's control sockets."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
from collections.abc import Iterator

from memhp.errors import DimmRefused, GuestFailed
from memhp.lab.boot import whole_blocks
from memhp.lab.qmp import MemoryDevice, Monitor
from memhp.lab.running import Running

__all__ = ["devices_of", "plug", "resize", "stop", "unplug"]


@contextlib.contextmanager
def _monitor(guest: Running) -> Iterator[Monitor]:
    # QEMU serves one client at a time, so the others wait for their turn here, where it can be seen (fuser).
    turn = os.open(guest.directory / "turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        monitor = Monitor(guest.control)
        try:
            yield monitor
        finally:
            monitor.close()
    finally:
        os.close(turn)


def plug(guest: Running, size: str, node: int, name: str, patience: float) -> MemoryDevice:
    """Plug in a DIMM, and wait for the guest's kernel.

    Raises:
        InvalidInput: the size is no whole number of memory blocks.
        DimmRefused: QEMU or the guest's kernel does not take it.
        GuestFailed: nobody answers.
    """
    number = whole_blocks(size)
    with _monitor(guest) as monitor:
        taken = {device.name for device in monitor.memory_devices()}
        name = name or next(word for word in map("dimm{}".format, itertools.count(1)) if word not in taken)
        monitor.plug(name, number, node, None, patience)
        return _named(monitor, name)


def unplug(guest: Running, name: str, patience: float) -> MemoryDevice:
    """Pull a DIMM out, and wait for the guest's kernel; gives what it was.

    Raises:
        DimmRefused: there is none of that name, or the guest's kernel keeps it.
        GuestFailed: nobody answers.
    """
    with _monitor(guest) as monitor:
        device = _named(monitor, name)
        monitor.unplug(name, patience)
        return device


def resize(guest: Running, size: int, name: str, patience: float) -> MemoryDevice:
    """Ask a virtio-mem device for another size; gives it as it is when the guest follows no further.

    Args:
        guest: which.
        size: bytes.
        name: of the device; the only one if not given.
        patience: seconds to wait.

    Raises:
        DimmRefused: there is no such device, or it can't have that size.
        GuestFailed: nobody answers.
    """
    with _monitor(guest) as monitor:
        if not name:
            names = [device.name for device in monitor.memory_devices() if device.kind == "virtio-mem"]
            if len(names) != 1:
                has = f"several virtio-mem devices: {', '.join(names)}; say which" if names else "no virtio-mem device"
                raise DimmRefused(f"{guest.name} has {has}")
            (name,) = names
        monitor.resize(name, size, patience)
        return _named(monitor, name)


def devices_of(guest: Running) -> list[MemoryDevice]:
    """List its DIMMs and virtio-mem devices; raises GuestFailed."""
    with _monitor(guest) as monitor:
        return monitor.memory_devices()


def stop(guest: Running, patience: float) -> None:
    """End the guest, and wait until QEMU has ended; who started it removes its files.

    Raises:
        GuestFailed: nobody answers, or QEMU does not end.
    """
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(guest.qemu)
        try:
            with _monitor(guest) as monitor:
                monitor.quit()
            if not select.select([process], [], [], patience)[0]:
                raise GuestFailed(f"QEMU of {guest.name} (process {guest.qemu}) has not ended within {patience:g} s")
        finally:
            os.close(process)


def _named(monitor: Monitor, name: str) -> MemoryDevice:
    for device in monitor.memory_devices():
        if device.name == name:
            return device
    names = ", ".join(device.name for device in monitor.memory_devices())
    raise DimmRefused(f"the guest has no memory device {name}" + (f"; it has {names}" if names else ""))
