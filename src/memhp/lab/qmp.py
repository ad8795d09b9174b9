"""QEMU from outside: DIMMs are plugged in and pulled out through its control protocol."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import EventListener, QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from memhp.errors import DimmRefused, GuestFailed

__all__ = ["MemoryDevice", "Monitor"]

T = TypeVar("T")

_OST_PENDING = 0x84
_OST_ERRNOS = {0x80: errno.EPERM, 0x82: errno.EBUSY}
"""What the kernel's errors become as status (drivers/acpi/scan.c: ``acpi_device_hotplug``); every other one is 1."""
_OSPM_EJECT = 0x103
_REFUSALS = (
    ("no free slots", errno.ENOSPC),
    ("not enough space", errno.ENOSPC),
    ("could not find position", errno.ENOSPC),
    ("cannot set up guest memory", errno.ENOSPC),
    ("conflicts with memory device", errno.EEXIST),
    ("must be aligned", errno.EINVAL),
    ("must be multiple", errno.EINVAL),
    ("doesn't take value", errno.EINVAL),
    ("usable range for memory devices", errno.EINVAL),
    ("exceeds the number of numa nodes", errno.EINVAL),
    ("has to be multiples of", errno.EINVAL),
    ("cannot exceed the memory backend", errno.EINVAL),
    ("not found", errno.ENODEV),
)
"""What QEMU says when it does not take a DIMM, as the errno that the model has for it."""
_ANSWER = 30.0
_HELD_BACK = 1.0
_EVENTS = ("ACPI_DEVICE_OST", "DEVICE_DELETED", "MEM_UNPLUG_ERROR", "MEMORY_DEVICE_SIZE_CHANGE")


@dataclass(frozen=True, slots=True)
class MemoryDevice:
    """A DIMM, or a virtio-mem device, as QEMU sees it."""

    name: str
    kind: str
    """``dimm`` or ``virtio-mem``."""
    node: int
    address: int
    size: int
    """Bytes; of a virtio-mem device, as much as the guest has taken."""
    requested: int
    """Bytes; of a DIMM, its size."""
    most: int
    """Bytes that it can have."""


class Monitor:
    """A connection to a guest's QEMU.

    Raises:
        GuestFailed: there is nobody to connect to.
    """

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("memhp")
        self._events = EventListener(names=_EVENTS)
        self._client.register_listener(self._events)
        try:
            self._do(self._client.connect(str(path)), _ANSWER)
        except (OSError, QMPError, TimeoutError) as error:
            self._loop.close()
            raise GuestFailed(f"QEMU does not answer: {error}") from error

    def _do(self, task: Coroutine[Any, Any, T], seconds: float) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(task, seconds))

    def close(self) -> None:
        """End the connection, whatever state it is in."""
        try:
            self._do(self._client.disconnect(), _ANSWER)
        except (OSError, EOFError, QMPError, TimeoutError):
            pass  # QEMU is gone, which ends the connection as well
        finally:
            self._loop.close()

    def execute(self, command: str, **arguments: object) -> object:
        """Run a command.

        Raises:
            DimmRefused: QEMU says no.
            GuestFailed: it does not answer.
        """
        try:
            return self._do(self._client.execute(command, arguments), _ANSWER)
        except ExecuteError as error:
            number = next((number for text, number in _REFUSALS if text in str(error)), 0)
            raise DimmRefused(f"QEMU refuses {command}: {error}", number) from error
        except (OSError, EOFError, QMPError, TimeoutError) as error:
            raise GuestFailed(f"QEMU does not answer to {command}: {error!r}") from error

    def plug(self, name: str, size: int, node: int, at: int | None, seconds: float) -> None:
        """Plug in a DIMM and wait until the guest's kernel has dealt with it.

        Raises:
            DimmRefused: QEMU or the guest's kernel does not take it.
            GuestFailed: nobody answers.
        """
        self._events.clear()
        self.execute("object-add", **{"qom-type": "memory-backend-ram", "id": f"mem-{name}", "size": size})
        place = {} if at is None else {"addr": at}
        try:
            self.execute("device_add", driver="pc-dimm", id=name, memdev=f"mem-{name}", node=node, **place)
        except DimmRefused:
            self.execute("object-del", id=f"mem-{name}")
            raise
        status = self._wait(_status, seconds, f"the DIMM {name} of the guest")
        if status:
            raise _refused("does not take", status)

    def unplug(self, name: str, seconds: float) -> None:
        """Ask the guest's kernel to give a DIMM back, and wait for its answer.

        Raises:
            DimmRefused: it can't; the DIMM stays.
            GuestFailed: nobody answers.
        """
        self._events.clear()
        self.execute("device_del", id=name)
        status = self._wait(_removed, seconds, f"the ejection of the DIMM {name}")
        if status:
            raise _refused("keeps", status)
        self._wait(_status, seconds, f"the end of the ejection of the DIMM {name}")
        self.execute("object-del", id=f"mem-{name}")

    def dimms(self) -> list[str]:
        """Give the names of the DIMMs that are plugged in."""
        return [device.name for device in self.memory_devices() if device.kind == "dimm"]

    def memory_devices(self) -> list[MemoryDevice]:
        """List what was plugged in and what virtio-mem devices there are, by address; raises as :meth:`execute`."""
        found = self.execute("query-memory-devices")
        listed = [_device(entry["type"], entry["data"]) for entry in found] if isinstance(found, list) else []
        return sorted(listed, key=lambda device: device.address)

    def resize(self, name: str, size: int, seconds: float) -> int:
        """Ask for another size of a virtio-mem device; gives the size that it has when the guest is there, or after ``seconds``.

        Raises:
            DimmRefused: there is no such device, or it can't have that size.
            GuestFailed: QEMU does not answer.
        """
        self.virtio_mem(name)
        end = time.monotonic() + seconds
        self._events.clear()
        self.request(name, size)
        while True:
            has = self.virtio_mem(name).size
            left = end - time.monotonic()
            if has == size or left <= 0:
                return has
            with contextlib.suppress(TimeoutError):
                # QEMU holds such events back to one a second, so what they say may be old: they only wake us.
                self._do(self._events.get(), min(left, _HELD_BACK))

    def virtio_mem(self, name: str) -> MemoryDevice:
        """Give a virtio-mem device as it is; raises DimmRefused if there is none of that name."""
        for device in self.memory_devices():
            if device.name == name and device.kind == "virtio-mem":
                return device
        raise DimmRefused(f"the guest has no virtio-mem device {name}", errno.ENODEV)

    def request(self, name: str, size: int) -> None:
        """Say which size a virtio-mem device shall have, and wait for nobody; raises as :meth:`execute`."""
        self.execute("qom-set", path=f"/machine/peripheral/{name}", property="requested-size", value=size)

    def plug_cpu(self, socket: int, seconds: float) -> None:
        """Put a CPU into an empty socket and wait until the guest's kernel has dealt with it.

        Raises:
            DimmRefused: there is no such socket, or a CPU is in it.
            GuestFailed: nobody answers.
        """
        found = self.execute("query-hotpluggable-cpus")
        places = [entry for entry in found if entry["props"]["socket-id"] == socket] if isinstance(found, list) else []
        if not places:
            raise DimmRefused(f"the guest has no socket {socket}", errno.EINVAL)
        if "qom-path" in places[0]:
            raise DimmRefused(f"there is a CPU in socket {socket} of the guest", errno.EEXIST)
        self._events.clear()
        self.execute("device_add", driver=places[0]["type"], id=_cpu_name(socket), **places[0]["props"])
        self._wait(_status, seconds, f"the CPU in socket {socket} of the guest")

    def unplug_cpu(self, socket: int, seconds: float) -> None:
        """Ask the guest's kernel for a CPU that was put in, and wait for its answer; raises as :meth:`unplug`."""
        self._events.clear()
        self.execute("device_del", id=_cpu_name(socket))
        status = self._wait(_removed, seconds, f"the ejection of the CPU in socket {socket}")
        if status:
            raise _refused("keeps", status)
        self._wait(_status, seconds, f"the end of the ejection of the CPU in socket {socket}")

    def quit(self) -> None:
        """End QEMU, and with it the guest."""
        with contextlib.suppress(GuestFailed):  # it may end before it answers
            self.execute("quit")

    def forget(self) -> None:
        """Forget what was reported so far."""
        self._events.clear()

    def ejected(self, seconds: float) -> str | None:
        """Wait until the guest's kernel has done what was written to ``eject``; gives the DIMM that left, if it did.

        Raises:
            GuestFailed: nobody answers.
        """
        left: list[str] = []

        def ended(event: dict[str, Any]) -> int | None:
            if event["event"] == "DEVICE_DELETED" and "device" in event["data"]:
                left.append(event["data"]["device"])
            status = _status(event)
            return None if status is None or event["data"]["info"]["source"] != _OSPM_EJECT else status

        self._wait(ended, seconds, "the ejection that the guest asked for")
        for name in left:
            self.execute("object-del", id=f"mem-{name}")
        return left[0] if left else None

    def _wait(self, wanted: Callable[[dict[str, Any]], int | None], seconds: float, what: str) -> int:
        async def listen() -> int:
            while True:
                found = wanted(dict(await self._events.get()))
                if found is not None:
                    return found

        try:
            return self._do(listen(), seconds)
        except TimeoutError as error:
            raise GuestFailed(f"no word of {what} within {seconds:g} s") from error


def _cpu_name(socket: int) -> str:
    return f"socket{socket}"


def _device(kind: str, data: dict[str, Any]) -> MemoryDevice:
    if kind == "virtio-mem":
        sizes = (data["size"], data["requested-size"], data["max-size"])
        return MemoryDevice(data.get("id", ""), kind, data["node"], data["memaddr"], *sizes)
    return MemoryDevice(data.get("id", ""), kind, data.get("node", 0), data.get("addr", 0), *3 * (data["size"],))


def _refused(what: str, status: int) -> DimmRefused:
    number = _OST_ERRNOS.get(status, errno.EIO)
    return DimmRefused(f"the guest's kernel {what} the DIMM: {os.strerror(number)} (_OST status {status:#x})", number)


def _status(event: dict[str, Any]) -> int | None:
    if event["event"] != "ACPI_DEVICE_OST":
        return None
    status = int(event["data"]["info"]["status"])
    return None if status == _OST_PENDING else status


def _removed(event: dict[str, Any]) -> int | None:
    if event["event"] == "DEVICE_DELETED":
        return 0
    return 1 if event["event"] == "MEM_UNPLUG_ERROR" else _status(event)
