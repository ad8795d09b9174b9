"""The one tree of errors, split by whose fault it is; each carries its evidence as attributes.

::

    MemhpError
    ├── InvalidInput (ValueError)       a value that a person wrote is wrong: .value .where .expected
    │   └── ScenarioError               ... in a scenario file: .file .line
    ├── NotifierError                   misuse of a notifier chain: .block .errno
    │   ├── AlreadyRegistered           EEXIST
    │   ├── PriorityTaken               EBUSY
    │   ├── NotRegistered               ENOENT
    │   └── WrongAnswer (TypeError)     a callback answered with something else: .answer
    ├── LockError                       misuse of a lock: .lock
    │   ├── LockNotHeld                 a guard failed: .needed .held
    │   └── DeadlockError               a wait that can never end: .chain
    ├── HostError                       a machine's files can't be read: .path .errno .hint
    │   └── NoMemoryBlocks              ... because it has no memory blocks
    ├── ChangeFailed                    a change of memory did not reach its goal: .outcome
    ├── HookFailed                      a program that takes part refused, hung or crashed: .path .status .said
    ├── LabError                        a real kernel could not be asked: .hint
    │   ├── LabMissing                  something that the lab needs isn't here: .missing
    │   ├── DimmRefused                 a DIMM can't be plugged in or pulled out: .errno
    │   └── GuestFailed                 the guest ended, or doesn't answer: .console
    └── HotplugError (OSError)          the request failed as a kernel would fail it: .errno .block
        ├── Vetoed                      a callback refused: .callback .action .__cause__
        ├── PageRefusal                 a page can't leave: .page .kind .owner
        └── Interrupted                 a signal ended the wait: .page
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Sequence
from typing import Any

__all__ = [
    "EHWPOISON",
    "AlreadyRegistered",
    "ChangeFailed",
    "DeadlockError",
    "DimmRefused",
    "GuestFailed",
    "HookFailed",
    "HostError",
    "HotplugError",
    "Interrupted",
    "InvalidInput",
    "LabError",
    "LabMissing",
    "LockError",
    "LockNotHeld",
    "MemhpError",
    "NoMemoryBlocks",
    "NotRegistered",
    "NotifierError",
    "PageRefusal",
    "PriorityTaken",
    "ScenarioError",
    "Vetoed",
    "WrongAnswer",
    "errno_name",
]


def errno_name(number: int) -> str:
    """Name an errno as C does (``12`` is ``ENOMEM``); a number without a name stays a number."""
    return _NAMES.get(abs(number)) or _errno.errorcode.get(abs(number), str(abs(number)))


_SHOWN = 120
EHWPOISON = 133
"""The errno of a page with a hardware error; the standard library does not name it everywhere."""
_NAMES = {_errno.EDEADLK: "EDEADLK", _errno.EOPNOTSUPP: "EOPNOTSUPP", EHWPOISON: "EHWPOISON"}
"""The kernel's names where the standard library has none, or one that kernel code does not use."""


class MemhpError(Exception):
    """Root of every error that memhp raises on purpose."""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of some thousands of digits
        text = hex(value) if isinstance(value, int) else f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class InvalidInput(MemhpError, ValueError):
    """A value is malformed; nothing was changed.

    Attributes:
        value: what was given.
        where: the place: a parameter, a path, a file and line.
        expected: what would have been right.
    """

    def __init__(self, value: object, where: str, expected: str) -> None:
        shown = _shown(value)
        super().__init__(f"{where}: {f'{shown} is not valid; ' if value != where else ''}expected {expected}")
        self.value = value
        self.where = where
        self.expected = expected


class ScenarioError(InvalidInput):
    """A scenario file is wrong at one line (0 where no line is to blame); what was played before stays played."""

    def __init__(self, value: object, file: str, line: int, expected: str, place: str = "") -> None:
        where = (f"{file}:{line}" if line else file) + (f": {place}" if place else "")
        super().__init__(value, where, expected)
        self.file = file
        self.line = line


class NotifierError(MemhpError):
    """A notifier chain was misused; the chain is unchanged.

    Attributes:
        block: the notifier block concerned.
        errno: what the kernel's function would return, positive.
    """

    def __init__(self, message: str, block: object, errno: int = 0) -> None:
        super().__init__(message)
        self.block = block
        self.errno = errno


class AlreadyRegistered(NotifierError):
    """The block is on a chain already (EEXIST)."""

    def __init__(self, message: str, block: object) -> None:
        super().__init__(message, block, _errno.EEXIST)


class PriorityTaken(NotifierError):
    """A unique priority was asked for and another block has it (EBUSY)."""

    def __init__(self, message: str, block: object) -> None:
        super().__init__(message, block, _errno.EBUSY)


class NotRegistered(NotifierError):
    """The block is not on this chain (ENOENT)."""

    def __init__(self, message: str, block: object) -> None:
        super().__init__(message, block, _errno.ENOENT)


class WrongAnswer(NotifierError, TypeError):
    """A callback returned something that is no NotifyResult; ``answer`` is what it returned."""

    def __init__(self, block: object, answer: object) -> None:
        super().__init__(
            f"callback {block} answered {answer!r} ({type(answer).__name__}); expected one of NOTIFY_DONE, "
            "NOTIFY_OK, NOTIFY_STOP, NOTIFY_BAD or notifier_from_errno(-errno)",
            block,
        )
        self.answer = answer


class LockError(MemhpError):
    """A lock was misused (released by a task that does not hold it, taken twice)."""

    def __init__(self, message: str, lock: object) -> None:
        super().__init__(message)
        self.lock = lock


class LockNotHeld(LockError):
    """A function ran without the lock that it needs.

    Attributes:
        needed: name and mode of the lock.
        held: names and modes of what the task holds, outermost first.
    """

    def __init__(self, function: str, lock: object, needed: str, held: Sequence[str]) -> None:
        super().__init__(f"{function} needs {needed}; held: {', '.join(held) or 'nothing'}", lock)
        self.needed = needed
        self.held = tuple(held)


class DeadlockError(LockError):
    """This wait could never end, so it was not begun; the locks held are as before the call.

    Attributes:
        chain: one line per task of the cycle: who waits for what, and who holds it.
    """

    def __init__(self, message: str, lock: object, chain: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {line}" for line in chain)]), lock)
        self.chain = tuple(chain)


class HostError(MemhpError):
    """A machine's files can't be read, or don't say what they should; nothing was changed.

    Attributes:
        path: the file or directory.
        errno: that of the system call, 0 if none failed.
        hint: what to do about it, '' if nobody knows.
    """

    def __init__(self, path: str, message: str, *, errno: int = 0, hint: str = "") -> None:
        super().__init__(f"{path}: {message}" + (f"; {hint}" if hint else ""))
        self.path = path
        self.errno = errno
        self.hint = hint


class ChangeFailed(MemhpError):
    """A change of memory did not reach its goal; ``outcome`` says exactly what holds now."""

    def __init__(self, outcome: object) -> None:
        super().__init__(str(outcome))
        self.outcome: Any = outcome


class HookFailed(MemhpError):
    """A program that takes part in a change refused, hung, crashed or could not be started.

    Attributes:
        path: the program.
        status: its exit status, or minus the signal that killed it; None if there is none.
        said: what it printed to standard error.
        seconds: how long it ran, where that is what was wrong.
    """

    def __init__(self, path: object, message: str, *, status: int | None = None, said: str = "", seconds: float = 0.0) -> None:
        super().__init__(f"{path} {message}" + (f": {said}" if said else ""))
        self.path = path
        self.status = status
        self.said = said
        self.seconds = seconds


class NoMemoryBlocks(HostError):
    """The machine, or the copy of one, has no memory blocks at all."""


class LabError(MemhpError):
    """A real kernel could not be asked; nothing of this machine was changed.

    Attributes:
        hint: what to do about it, '' if nobody knows.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.hint = hint


class LabMissing(LabError):
    """Something that the lab needs isn't here; ``missing`` lists what."""

    def __init__(self, missing: Sequence[str], hint: str) -> None:
        super().__init__(f"missing: {', '.join(missing)}", hint)
        self.missing = tuple(missing)


class DimmRefused(LabError):
    """A DIMM can't be plugged in or pulled out; ``errno`` is that of the guest's kernel, 0 if QEMU refused."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class GuestFailed(LabError):
    """The guest ended, panicked or does not answer; it is gone now. ``console`` has the last lines of its console."""

    def __init__(self, message: str, console: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  | {line}" for line in console)]))
        self.console = tuple(console)


class HotplugError(MemhpError, OSError):
    """A request to change memory failed, and what it had begun is undone.

    Attributes:
        errno: positive, as ``OSError`` has it.
        block: id of the memory block concerned, or None.
    """

    def __init__(self, errno: int, message: str, *, block: int | None = None) -> None:
        super().__init__(errno, message)
        self.block = block

    def __str__(self) -> str:
        number = self.errno or 0
        return f"[{errno_name(number)}] {self.strerror} ({os.strerror(number)})"


class Vetoed(HotplugError):
    """A callback refused the change; every callback has heard the CANCEL.

    Attributes:
        callback: the notifier block whose answer decided.
        action: the action that it refused.
        undone: whether everything is as before. False only where MEM_ONLINE was refused and somebody did not give back
            pages of the memory, which therefore stays online.
    """

    def __init__(
        self, errno: int, message: str, *, block: int | None, callback: object, action: object, undone: bool = True
    ) -> None:
        super().__init__(errno, message, block=block)
        self.callback = callback
        self.action = action
        self.undone = undone


class PageRefusal(HotplugError):
    """A page can't leave its block.

    Attributes:
        page: its pfn.
        kind: what it is, by name.
        owner: who allocated it, '' if nobody said.
    """

    def __init__(self, errno: int, message: str, *, block: int | None, page: int, kind: str, owner: str) -> None:
        super().__init__(errno, message, block=block)
        self.page = page
        self.kind = kind
        self.owner = owner


class Interrupted(HotplugError):
    """A signal ended an offline that could not finish (EINTR); ``page`` is the pfn that held it up, or None."""

    def __init__(self, message: str, *, block: int | None, page: int | None) -> None:
        super().__init__(_errno.EINTR, message, block=block)
        self.page = page
