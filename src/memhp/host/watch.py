"""What happens to a machine's memory while it happens: uevents, what was lost of them, and calls of the notifier chain.

Uevents can be lost: the kernel drops them when a listener's buffer is full. A gap in their numbers, or ENOBUFS, shows it; then
all blocks are read again, and what is found to be different is told. Numbers may be a little out of order (the kernel numbers
uevents before it sends them, without a lock since 6.11), so a gap counts when nothing has come for a moment.
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from memhp.abi.uevent import Uevent, UeventSource
from memhp.errors import MemhpError
from memhp.events import MemoryAction
from memhp.host.feeds import Feed, NetlinkFeed, Overrun, SourceFeed
from memhp.host.inventory import Host

__all__ = ["ChainCalled", "Event", "Found", "Lost", "Tracer", "UeventSeen", "Watch"]

_MEMORY = frozenset({"memory", "node"})
_BLOCK = re.compile(r"/devices/system/memory/memory(\d+)")
_SETTLING = 0.1
"""Seconds without a uevent after which a number that is missing is lost."""

_LOOK = 1.0
"""Seconds after which to look for a call that hangs, and for a signal that came right before the wait."""


@dataclass(frozen=True, slots=True)
class UeventSeen:
    """A uevent came.

    Attributes:
        time: when it was read, in seconds since 1970.
        block: the block that it is about, None if it is another device.
    """

    time: float
    uevent: Uevent
    block: int | None


@dataclass(frozen=True, slots=True)
class Lost:
    """Uevents did not come; all blocks have been read again, and a ``Found`` follows for each that is different.

    Attributes:
        numbers: those that are missing, () if the kernel had no room and the numbers aren't known (yet).
        found: how many blocks are different. They need not be: the missing uevents may be about other devices.
    """

    time: float
    numbers: tuple[int, ...]
    found: int


@dataclass(frozen=True, slots=True)
class Found:
    """A block is not as it was known to be. ``was`` and ``now`` are states, None where there is no such block."""

    time: float
    block: int
    was: str | None
    now: str | None


@dataclass(frozen=True, slots=True)
class ChainCalled:
    """The kernel called its notifier chain.

    Attributes:
        time: when the call began.
        action: None if this kernel has an action that memhp doesn't know; ``number`` is the kernel's.
        start: physical address of the range; ``size`` in bytes.
        nodes: the nodes whose bits in N_NORMAL_MEMORY and N_MEMORY change, -1 for none; None on kernels that don't say (6.17).
        answer: the chain's raw value; None if the call hasn't returned, and then ``seconds`` is None too.
    """

    time: float
    action: MemoryAction | None
    number: int
    start: int
    size: int
    nodes: tuple[int, int] | None
    answer: int | None
    seconds: float | None


Event = UeventSeen | Lost | Found | ChainCalled


class Tracer(Protocol):
    """What a watcher needs of a tracer; :class:`memhp.host.trace.ChainTracer` is one."""

    def fileno(self) -> int:
        """Give what ``poll()`` waits on."""

    def take(self) -> list[ChainCalled]:
        """Give the calls that have returned, without waiting."""

    def hanging(self) -> ChainCalled | None:
        """Give the call that has been running for a second or more, once."""

    def close(self) -> None:
        """Remove what it put into the kernel."""


class Watch:
    """A watcher; use it in a ``with`` statement, and iterate over :meth:`events`.

    Args:
        host: the machine.
        source: its uevents; those of this machine's kernel if not given.
        tracer: hears the notifier chain too.
        every: also uevents of devices that are no memory.

    Raises:
        HostError: it can't be heard, or has no memory blocks.
    """

    def __init__(
        self,
        host: Host,
        source: UeventSource | Feed | None = None,
        *,
        tracer: Tracer | None = None,
        every: bool = False,
    ) -> None:
        self._host = host
        self._tracer = tracer
        self._every = every
        self._numbers = _Numbers()
        self._feed: Feed = _feed(source)
        try:
            self._states = self._scan()  # after the feed is open, so that nothing falls between
        except MemhpError:
            self._feed.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /) -> None:
        self.close()

    def close(self) -> None:
        """Hear no more, and leave nothing in the kernel."""
        self._feed.close()
        if self._tracer is not None:
            self._tracer.close()

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Give what happens, as it happens; ends when nothing has happened for ``timeout`` seconds."""
        poll = select.poll()
        poll.register(self._feed.fileno(), select.POLLIN)
        if self._tracer is not None:
            poll.register(self._tracer.fileno(), select.POLLIN)
        quiet_since = time.monotonic()
        while True:
            happened = list(self._next(poll, timeout))
            yield from happened
            if happened:
                quiet_since = time.monotonic()
            elif timeout is not None and time.monotonic() - quiet_since >= timeout:
                return

    def _next(self, poll: select.poll, timeout: float | None) -> Iterator[Event]:
        unsettled = bool(self._numbers.missing)
        waits = [_LOOK if timeout is None else timeout, _SETTLING if unsettled else _LOOK]
        ready = poll.poll(min(waits) * 1000)
        if ready:
            yield from self._taken()
        elif unsettled:
            yield from self._lost(self._numbers.settle())
        hanging = self._tracer.hanging() if self._tracer is not None else None
        if hanging is not None:
            yield hanging

    def _taken(self) -> Iterator[Event]:
        calls: list[Event] = [*self._tracer.take()] if self._tracer is not None else []
        heard = self._feed.take()
        if self._tracer is not None:
            calls += self._tracer.take()  # a uevent that has come was sent after the calls before it
        yield from calls
        for one in heard:
            if isinstance(one, Overrun):
                yield from self._lost(())
                continue
            if self._numbers.see(one.seqnum):
                yield from self._lost(self._numbers.settle())
            if self._every or one.subsystem in _MEMORY:
                yield self._seen(one)

    def _seen(self, uevent: Uevent) -> UeventSeen:
        match = _BLOCK.fullmatch(uevent.devpath)
        block = int(match[1]) if match else None
        if block is not None:
            if uevent.action == "remove":
                self._states.pop(block, None)
            elif uevent.action in {"online", "offline"}:
                self._states[block] = uevent.action
            elif uevent.action == "add":
                self._states.setdefault(block, "offline")
        return UeventSeen(time.time(), uevent, block)

    def _lost(self, numbers: tuple[int, ...]) -> Iterator[Event]:
        now = time.time()
        states = self._scan()
        changed = [number for number in sorted({*states, *self._states}) if states.get(number) != self._states.get(number)]
        yield Lost(now, numbers, len(changed))
        for number in changed:
            yield Found(now, number, self._states.get(number), states.get(number))
        self._states = states

    def _scan(self) -> dict[int, str]:
        return {block.id: block.state for block in self._host.blocks()}


class _Numbers:
    # Which numbers of uevents are missing.

    def __init__(self) -> None:
        self.missing: set[int] = set()
        self._last: int | None = None

    def see(self, number: int) -> bool:
        """Note a number; says whether so many are missing that waiting for them makes no sense."""
        if self._last is None or number > self._last:
            if self._last is not None:
                self.missing.update(range(self._last + 1, min(number, self._last + _FAR)))
            self._last = number
        else:
            self.missing.discard(number)
        return len(self.missing) >= _MANY

    def settle(self) -> tuple[int, ...]:
        numbers = tuple(sorted(self.missing))
        self.missing.clear()
        return numbers


_MANY = 1024
_FAR = 1 << 16
"""A gap larger than this is not counted further."""


def _feed(source: UeventSource | Feed | None) -> Feed:
    if source is None:
        return NetlinkFeed()
    subscribe = getattr(source, "subscribe", None)
    return SourceFeed(source) if subscribe is not None else source  # type: ignore[arg-type, return-value] # told apart by name
