"""Where a watcher hears things: the kernel's netlink socket, or a modelled machine's uevents. Each can be polled.

The plain socket is all that is needed, and pyudev would read the udev daemon's messages, which containers and guests lack.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from memhp.abi.uevent import Uevent, UeventSource
from memhp.errors import HostError, InvalidInput

__all__ = ["Feed", "NetlinkFeed", "Overrun", "SourceFeed"]

_NETLINK_KOBJECT_UEVENT = 15
_SO_RCVBUFFORCE = 33
_KERNEL = 1
"""The group that the kernel sends to; udevd's own messages go to another."""

_ROOM = 128 << 20
_MOST = 1 << 16


@dataclass(frozen=True, slots=True)
class Overrun:
    """The kernel had no room for uevents (ENOBUFS); how many is not known."""


class Feed(Protocol):
    """Something that can be waited for."""

    def fileno(self) -> int:
        """Give what ``poll()`` waits on."""

    def take(self) -> list[Uevent | Overrun]:
        """Give what has come, without waiting."""

    def close(self) -> None:
        """Hear no more."""


class NetlinkFeed:
    """Uevents of this machine's kernel; needs no root.

    The buffer is as large as udevd's where the caller may have that (CAP_NET_ADMIN), else as large as is allowed.

    Raises:
        HostError: there are no netlink sockets here.
    """

    def __init__(self, room: int = _ROOM) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
            self._socket.setblocking(False)
            for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
                with contextlib.suppress(PermissionError):
                    self._socket.setsockopt(socket.SOL_SOCKET, option, room)
                    break
            self._socket.bind((0, _KERNEL))
        except OSError as error:
            message = f"can't be opened: {error.strerror}"
            raise HostError("the netlink socket of uevents", message, errno=error.errno or 0) from error

    def fileno(self) -> int:
        """Give the socket's descriptor."""
        return self._socket.fileno()

    def take(self) -> list[Uevent | Overrun]:
        """Give what has come; messages that anybody but the kernel sent are left out."""
        found: list[Uevent | Overrun] = []
        while True:
            try:
                message, (sender, _) = self._socket.recvfrom(_MOST)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found.append(Overrun())
                continue
            if sender == 0:
                with contextlib.suppress(InvalidInput):
                    found.append(Uevent.decode(message))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class SourceFeed:
    """Uevents of a machine that calls its listeners, such as the model's ``machine.uevents``."""

    def __init__(self, source: UeventSource) -> None:
        self._heard: collections.deque[Uevent] = collections.deque()
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stop: Callable[[], None] = source.subscribe(self._hear)

    def _hear(self, event: Uevent) -> None:
        self._heard.append(event)
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes just as well
            os.write(self._writing, b"!")

    def fileno(self) -> int:
        """Give the reading end of a pipe that is written to with each uevent."""
        return self._reading

    def take(self) -> list[Uevent | Overrun]:
        """Give what has come."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reading, _MOST)
        found: list[Uevent | Overrun] = []
        while self._heard:
            found.append(self._heard.popleft())
        return found

    def close(self) -> None:
        """Listen no more."""
        self._stop()
        os.close(self._reading)
        os.close(self._writing)
