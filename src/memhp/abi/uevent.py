"""Uevents, as the kernel broadcasts them (``lib/kobject_uevent.c``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from memhp.errors import InvalidInput

__all__ = ["Uevent", "UeventSource"]


@dataclass(frozen=True, slots=True)
class Uevent:
    """One uevent.

    Attributes:
        action: add, remove, online, offline, change, ...
        devpath: the device, below /sys.
        subsystem: memory or node.
        seqnum: counts all uevents of the system, so a gap in it shows that some were lost.
        extra: further keys, in their order.
    """

    action: str
    devpath: str
    subsystem: str
    seqnum: int
    extra: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.action}@{self.devpath}"

    def encode(self) -> bytes:
        """Give the message as it goes over netlink: a header and ``KEY=value`` strings, each ended by NUL."""
        keys = [("ACTION", self.action), ("DEVPATH", self.devpath), ("SUBSYSTEM", self.subsystem), *self.extra]
        lines = [str(self), *(f"{key}={value}" for key, value in keys), f"SEQNUM={self.seqnum}"]
        return "".join(f"{line}\0" for line in lines).encode()

    @classmethod
    def decode(cls, message: bytes) -> Uevent:
        """Read a message from netlink.

        Raises:
            InvalidInput: no uevent, or one without ACTION, DEVPATH, SUBSYSTEM or a numeric SEQNUM.
        """
        lines = message.decode(errors="replace").split("\0")
        keys = dict(line.split("=", 1) for line in lines[1:] if "=" in line)
        try:
            action, devpath = keys.pop("ACTION"), keys.pop("DEVPATH")
            return cls(action, devpath, keys.pop("SUBSYSTEM"), _seqnum(keys.pop("SEQNUM")), tuple(keys.items()))
        except (KeyError, ValueError) as error:
            raise InvalidInput(message, "uevent", f"a kernel uevent ({error} is missing or malformed)") from error


def _seqnum(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"SEQNUM {text!r}")
    return int(text)


class UeventSource(Protocol):
    """Where uevents come from: a machine, or the live host."""

    def subscribe(self, listener: Callable[[Uevent], None]) -> Callable[[], None]:
        """Call ``listener`` with each uevent from now on; gives the function that ends it."""
