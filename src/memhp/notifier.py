"""The notifier chain (``kernel/notifier.c``): callbacks in order of priority, each of which may stop or refuse.

The value of a call is the *last called* callback's answer; only bit 15 stops the chain, and the errno is decoded after
it. So NOTIFY_STOP ends the chain without an error, and an earlier callback's answer is lost unless it stopped it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memhp.errors import (
    AlreadyRegistered,
    DeadlockError,
    InvalidInput,
    NotRegistered,
    PriorityTaken,
    WrongAnswer,
    errno_name,
)
from memhp.events import MemoryAction
from memhp.locking import Lockdep, Mode, PercpuRwSemaphore
from memhp.locking.switch import controlled

__all__ = [
    "NOTIFY_BAD",
    "NOTIFY_DONE",
    "NOTIFY_OK",
    "NOTIFY_STOP",
    "NOTIFY_STOP_MASK",
    "Call",
    "Callback",
    "NotifierBlock",
    "NotifierChain",
    "NotifyResult",
    "notifier_from_errno",
    "notifier_to_errno",
]

_log = logging.getLogger("memhp.notifier")
_counting = threading.Lock()

NOTIFY_STOP_MASK = 0x8000
"""The bit of an answer that ends the chain."""


class NotifyResult(int):
    """What a callback answers, and what a call of the chain gives back; an ``int`` with the kernel's values.

    Make one with the four constants or :func:`notifier_from_errno`. ``NotifyResult(-12)`` is a raw C return value, of
    use only to show what a buggy callback does: it stops the chain and refuses nothing.
    """

    callback: NotifierBlock | None = None
    """The block whose answer this is, when a call of the chain gives back something else than DONE or OK."""
    cause: BaseException | None = None
    """The exception that stood for this answer, if the callback raised one."""

    @property
    def stops(self) -> bool:
        """Whether the chain ends with this answer."""
        return bool(self & NOTIFY_STOP_MASK)

    @property
    def errno(self) -> int:
        """The errno that it carries, positive; 0 when it refuses nothing."""
        return -notifier_to_errno(self)

    def __str__(self) -> str:
        name = _NAMES.get(int(self))
        if name:
            return name
        number = self.errno
        return errno_name(number) if number > 0 and self == notifier_from_errno(-number) else f"{int(self) & 0xFFFFFFFF:#x}"

    def __repr__(self) -> str:
        return f"<NotifyResult {self}>"


NOTIFY_DONE = NotifyResult(0x0000)
"""Go on; this callback doesn't care."""
NOTIFY_OK = NotifyResult(0x0001)
"""Go on; this callback is content."""
NOTIFY_STOP = NotifyResult(0x8001)
"""End the chain here, without an error."""
NOTIFY_BAD = NotifyResult(0x8002)
"""End the chain here and refuse (EPERM)."""

_NAMES = {0: "NOTIFY_DONE", 1: "NOTIFY_OK", 0x8001: "NOTIFY_STOP", 0x8002: "NOTIFY_BAD"}


def notifier_from_errno(errno: int) -> NotifyResult:
    """Encode an errno as an answer: ``notifier_from_errno(-errno.ENOMEM)`` ends the chain and refuses with ENOMEM.

    The errno is *negative*, as in the kernel; 0 gives NOTIFY_OK. A value out of the range -4095..0 is encoded as the C
    expression would and then does not mean what it says: ``+5`` stops the chain and refuses nothing.
    """
    return NotifyResult(_as_c_int(NOTIFY_STOP_MASK | (1 - errno))) if errno else NOTIFY_OK


def notifier_to_errno(result: int) -> int:
    """Decode an answer to a negative errno, or 0 if it refuses nothing (``include/linux/notifier.h``)."""
    value = _as_c_int(result & ~NOTIFY_STOP_MASK)
    return 1 - value if value > 1 else 0


def _as_c_int(value: int) -> int:
    return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000


Callback = Callable[["NotifierBlock", Any, Any], NotifyResult]


class NotifierBlock:
    """One registration: a callback with a priority; the first argument of each call.

    Attributes:
        callback: ``callback(self, action, arg) -> NotifyResult``.
        priority: higher ones are called first; fixed for good.
        name: what messages and traces call it; the callback's name if not given.
        errors: how many exceptions of the callback were reported rather than turned into a refusal.

    Raises:
        InvalidInput: the callback can't be called, or the priority is no C ``int``.
    """

    __slots__ = ("_callback", "_chain", "_priority", "errors", "name")

    def __init__(self, callback: Callback, priority: int = 0, name: str = "") -> None:
        if not callable(callback):
            raise InvalidInput(callback, "callback", "something that can be called with (self, action, arg)")
        if not isinstance(priority, int) or isinstance(priority, bool) or not -(2**31) <= priority < 2**31:
            raise InvalidInput(priority, "priority", "a whole number from -2147483648 to 2147483647")
        self._callback = callback
        self._priority = priority
        self.name = name or getattr(callback, "__qualname__", None) or type(callback).__qualname__
        self.errors = 0
        self._chain: NotifierChain | None = None

    def __call__(self, block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
        """Call the callback itself, so that a decorated function stays one."""
        return self.callback(block, action, arg)

    def __repr__(self) -> str:
        return f"<NotifierBlock {self.name} priority={self.priority}>"

    def __str__(self) -> str:
        return f"{self.name} (priority {self.priority})"

    @property
    def callback(self) -> Callback:
        """What is called; fixed, as the chain keeps it."""
        return self._callback

    @property
    def priority(self) -> int:
        """Its place in the chain; can't be changed, as the kernel would then insert it twice."""
        return self._priority

    @property
    def registered(self) -> bool:
        """Whether it is on a chain."""
        return self._chain is not None

    def unregister(self) -> None:
        """Take it off its chain, as :meth:`NotifierChain.unregister` does."""
        chain = self._chain
        if chain is None:
            raise NotRegistered(f"{self} is not on a chain", self)
        chain.unregister(self)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one callback, as an observer sees it.

    Attributes:
        action: what it was told.
        arg: the range.
        block: who was called.
        answer: what it answered, or None if it raised.
        error: what it raised.
        seconds: how long it took.
    """

    action: Any
    arg: Any
    block: NotifierBlock
    answer: NotifyResult | None
    error: BaseException | None
    seconds: float


class NotifierChain:
    """A blocking notifier chain.

    Calls share the chain's lock for reading, so that they run at the same time in several threads; registering and
    unregistering write it. Hence both wait until every callback now running has returned, and neither works from
    inside a callback of the same chain: that is a :class:`~memhp.errors.DeadlockError` at once.

    Args:
        name: the name of its lock in reports.
        refuses: tells for an action whether an exception in a callback is a refusal.
        dep: lockdep, if the chain's lock is to be watched.
    """

    def __init__(
        self,
        name: str = "memory_chain",
        *,
        refuses: Callable[[Any], bool] = lambda action: isinstance(action, MemoryAction) and action.asks,
        dep: Lockdep | None = None,
    ) -> None:
        self.name = name
        self.rwsem = PercpuRwSemaphore(f"{name}.rwsem", dep)
        self._refuses = refuses
        self._blocks: tuple[NotifierBlock, ...] = ()
        self._entries: tuple[tuple[Callback, NotifierBlock], ...] = ()
        self._observers: tuple[Callable[[Call], None], ...] = ()
        # The look before the lock saves time and changes nothing; a scheduler is better off without it.
        self._explored = controlled()
        self._idle = not self._explored

    def __repr__(self) -> str:
        return f"<NotifierChain {self.name}: {', '.join(map(str, self._blocks)) or 'empty'}>"

    @property
    def blocks(self) -> tuple[NotifierBlock, ...]:
        """The registered blocks in the order in which they are called."""
        return self._blocks

    def register(self, block: NotifierBlock, *, unique_priority: bool = False, unique_callback: bool = False) -> NotifierBlock:
        """Put the block behind all blocks of at least its priority; it waits for callbacks that run.

        Raises:
            AlreadyRegistered: the block is on this or another chain, or ``unique_callback`` and another block has the same
                callback and priority; nothing changed.
            PriorityTaken: ``unique_priority`` and another block has the priority.
            DeadlockError: called from inside a callback of this chain.
        """
        with self._change("register", block):
            if block._chain is not None:  # noqa: SLF001 - the chain owns that field
                raise AlreadyRegistered(f"{block} is already on {block._chain.name}", block)  # noqa: SLF001
            for other in self._blocks:
                if other.priority != block.priority:
                    continue
                if unique_priority:
                    raise PriorityTaken(f"the priority of {block} is taken by {other} on {self.name}", block)
                if unique_callback and other.callback == block.callback:
                    raise AlreadyRegistered(f"{other} is already on {self.name}", other)
            place = sum(other.priority >= block.priority for other in self._blocks)
            self._blocks = (*self._blocks[:place], block, *self._blocks[place:])
            block._chain = self  # noqa: SLF001
            self._rebuild()
        return block

    def unregister(self, block: NotifierBlock) -> None:
        """Take the block off; when this returns, its callback is not running and never will be again.

        It waits per call, not per change of memory: unregistering between MEM_GOING_ONLINE and MEM_ONLINE returns at
        once, and the block never hears MEM_ONLINE.

        Raises:
            NotRegistered: the block is not on this chain.
            DeadlockError: called from inside a callback of this chain, its own included.
        """
        with self._change("unregister", block):
            if block._chain is not self:  # noqa: SLF001
                raise NotRegistered(f"{block} is not on {self.name}", block)
            self._blocks = tuple(other for other in self._blocks if other is not block)
            block._chain = None  # noqa: SLF001
            self._rebuild()

    def observe(self, observer: Callable[[Call], None]) -> Callable[[], None]:
        """Call ``observer`` after each callback with what it was told and answered; gives the function that ends it."""
        with self._change("observe with", observer):
            self._observers = (*self._observers, observer)
            self._rebuild()

        def stop() -> None:
            with self._change("stop observing with", observer):
                self._observers = tuple(other for other in self._observers if other is not observer)
                self._rebuild()

        return stop

    def _change(self, verb: str, what: object) -> Any:
        if self.rwsem.held(Mode.READ):
            raise DeadlockError(
                f"a callback of {self.name} tries to {verb} {what} inside a call of the same chain, "
                "and would wait for its own end",
                self.rwsem,
            )
        return self.rwsem.write

    def _rebuild(self) -> None:
        if self._observers:
            self._entries = tuple((self._observed(block), block) for block in self._blocks)
        else:
            self._entries = tuple((block.callback, block) for block in self._blocks)
        self._idle = not self._entries and not self._explored

    def _observed(self, block: NotifierBlock) -> Callback:
        observers = self._observers

        def observed(this: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
            begin = time.perf_counter()
            answer: NotifyResult | None = None
            error: BaseException | None = None
            try:
                answer = _checked(this, block.callback(this, action, arg))
            except BaseException as raised:
                error = raised
                raise
            finally:
                call = Call(action, arg, block, answer, error, time.perf_counter() - begin)
                _show(observers, call)
            return answer

        return observed

    def call(self, action: Any, arg: Any) -> NotifyResult:
        """Call every block in order until one stops, and give the last one's answer (NOTIFY_DONE for an empty chain).

        A callback that raises, or answers with something that is no NotifyResult, refuses an action that can be refused
        (NOTIFY_BAD, with the exception as ``cause``); at any other action the exception is logged, counted in
        ``block.errors``, and the chain goes on. Ctrl-C and the like are raised, by the latter actions after the last callback.

        Other than DONE and OK, the answer says in ``callback`` whose it is.
        """
        if self._idle:
            return NOTIFY_DONE
        answer = NOTIFY_DONE
        block: NotifierBlock | None = None
        interrupt: BaseException | None = None
        # Called by name, not by `with`: the interpreter inlines the one and not the other.
        read = self.rwsem.read
        read.__enter__()
        try:
            entries = iter(self._entries)
            while True:
                try:
                    for function, block in entries:
                        answer = function(block, action, arg)
                        if answer is NOTIFY_OK or answer is NOTIFY_DONE:
                            continue
                        if _checked(block, answer) & NOTIFY_STOP_MASK:
                            break
                    break
                except BaseException as error:
                    if block is None or (self._refuses(action) and not isinstance(error, Exception)):
                        raise
                    if self._refuses(action):
                        return _attributed(NOTIFY_BAD, block, error)
                    # What has happened has happened: the others must hear of it before Ctrl-C takes effect.
                    interrupt = interrupt if isinstance(error, Exception) else error
                    _report(block, action, arg, error)
                    answer = NOTIFY_DONE
        finally:
            read.__exit__(None, None, None)
        if interrupt is not None:
            raise interrupt
        return answer if answer is NOTIFY_OK or answer is NOTIFY_DONE else _attributed(answer, block, None)

    def call_robust(self, up: Any, down: Any, arg: Any) -> NotifyResult:
        """Call with ``up``; if a callback stops the chain, call those before it with ``down``, in the same order.

        The value is that of the ``up`` pass. NOTIFY_STOP counts as a stop too, and so does an exception (NOTIFY_BAD with its
        cause). The memory chain does not use this: its CANCEL goes to everybody (``blocking_notifier_call_chain_robust``;
        observed on 6.1 and 6.12).
        """
        with self.rwsem.read:
            answer = NOTIFY_DONE
            for called, (function, block) in enumerate(self._entries):
                answer = _answer_of(function, block, up, arg)
                if answer & NOTIFY_STOP_MASK:
                    self._take_back(called, down, arg)
                    break
        return answer

    def _take_back(self, called: int, down: Any, arg: Any) -> None:
        for function, block in self._entries[:called]:
            if _answer_of(function, block, down, arg) & NOTIFY_STOP_MASK:
                return


def _answer_of(function: Callback, block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
    try:
        return _attributed(_checked(block, function(block, action, arg)), block, None)
    except Exception as error:
        return _attributed(NOTIFY_BAD, block, error)


def _checked(block: NotifierBlock, answer: object) -> NotifyResult:
    if isinstance(answer, NotifyResult):
        return answer
    raise WrongAnswer(block, answer)


def _attributed(answer: NotifyResult, block: NotifierBlock | None, cause: BaseException | None) -> NotifyResult:
    result = NotifyResult(answer)
    result.callback = block
    result.cause = cause
    return result


def _show(observers: tuple[Callable[[Call], None], ...], call: Call) -> None:
    for observer in observers:
        try:
            observer(call)
        except Exception:
            # An observer is no participant: what it does wrong must not look like an answer.
            _log.exception("observer %r raised", observer)


def _report(block: NotifierBlock, action: Any, arg: Any, error: BaseException) -> None:
    with _counting:
        block.errors += 1
    _log.error("callback %s raised in %s %s; the chain goes on", block, getattr(action, "name", action), arg, exc_info=error)
