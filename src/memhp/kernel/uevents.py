"""The machine's uevents: numbered, remembered for a while, and passed on to listeners."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Iterator

from memhp.abi.uevent import Uevent
from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.zones import Node

__all__ = ["Uevents"]

_KEPT = 4096
_log = logging.getLogger("memhp.kernel")


class Uevents:
    """A source of uevents; iterate over it for the last 4,096."""

    def __init__(self) -> None:
        # Reentrant, so that a listener that causes another one gets it rather than a deadlock.
        self._lock = threading.RLock()
        self._seqnum = 0
        self._kept: collections.deque[Uevent] = collections.deque(maxlen=_KEPT)
        self._listeners: tuple[Callable[[Uevent], None], ...] = ()

    def __iter__(self) -> Iterator[Uevent]:
        with self._lock:
            return iter(tuple(self._kept))

    @property
    def seqnum(self) -> int:
        """The number of the last one."""
        return self._seqnum

    def subscribe(self, listener: Callable[[Uevent], None]) -> Callable[[], None]:
        """Call ``listener`` with each uevent from now on, in order; gives the function that ends it.

        It is called in the middle of the change, with its locks held: it should only take note.
        """
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def stop() -> None:
            with self._lock:
                self._listeners = tuple(other for other in self._listeners if other is not listener)

        return stop

    def emit(
        self,
        action: str,
        device: MemoryBlock | Node | str,
        extra: tuple[tuple[str, str], ...] = (),
        *,
        subsystem: str = "",
    ) -> None:
        """Send one for a device, or for a path below /sys of ``subsystem``."""
        devpath, subsystem = _address(device, subsystem)
        with self._lock:
            self._seqnum += 1
            event = Uevent(action, devpath, subsystem, self._seqnum, extra)
            self._kept.append(event)
            for listener in self._listeners:
                try:
                    listener(event)
                except Exception:
                    # The change has happened; a listener's fault must not undo half of it.
                    _log.exception("listener %r raised at %s", listener, event)


def _address(device: MemoryBlock | Node | str, subsystem: str) -> tuple[str, str]:
    if isinstance(device, MemoryBlock):
        return f"/devices/system/memory/{device.name}", "memory"
    if isinstance(device, Node):
        return f"/devices/system/node/node{device.nid}", "node"
    return device, subsystem
