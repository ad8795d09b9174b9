"""What a transaction has done so far, in a file: if memhp is killed, the next run can tell what holds, and undo it.

Every write to a block is noted before it is made, and again when its outcome is known. The directory is private and lies where
a reboot empties it, as a reboot also ends what the file is about. A lock in it keeps two transactions apart; the kernel drops
it when its holder dies, so a file that is found under the lock belongs to nobody any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from memhp.errors import HostError

__all__ = ["Before", "Entry", "Journal", "default_directory", "forget", "locked", "unfinished"]

_FORMAT = 1


class Before(NamedTuple):
    """A block as it was before the transaction."""

    id: int
    node: int
    state: str
    zone: str


class Entry:
    """A transaction that was not ended, as its file has it.

    Attributes:
        path: the file.
        operation: offline or online.
        goal: what was asked for.
        pid: of the process that is gone.
        started: when it began, seconds since the epoch.
        before: the blocks that it meant to change.
        asked: blocks of which callbacks and hooks heard GOING and not yet how it ended.
        written: blocks to which it wrote, or was about to, in order.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.operation = ""
        self.goal = ""
        self.pid = 0
        self.started = 0.0
        self.before: dict[int, Before] = {}
        self.asked: list[int] = []
        self.written: list[int] = []


Directory = str | os.PathLike[str]


def default_directory() -> str:
    """Give the directory: MEMHP_STATE_DIR, or /run/memhp for root, or the user's own run-time directory."""
    if chosen := os.environ.get("MEMHP_STATE_DIR"):
        return chosen
    if os.geteuid() == 0:
        return "/run/memhp"
    home = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/memhp-{os.geteuid()}"  # noqa: S108 - it is made private
    return os.path.join(home, "memhp")


@contextlib.contextmanager
def locked(directory: Directory) -> Iterator[None]:
    """Hold the lock of the directory, which is made if it isn't there.

    Raises:
        HostError: it can't be made or isn't private, or another transaction is running (EBUSY).
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(directory)), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        found = os.stat(directory)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise HostError(str(directory), "belongs to somebody else, or others may write to it", errno=errno.EPERM)
        descriptor = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(str(directory), f"can't keep a journal there: {error.strerror}", errno=error.errno or 0) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise HostError(str(directory), "another transaction is running", errno=errno.EBUSY) from error
    try:
        yield
    finally:
        os.close(descriptor)


class Journal:
    """The file of the transaction that runs. Each note is one ``write()``, so a kill leaves whole lines but for the last."""

    def __init__(self, directory: Directory) -> None:
        self._path = os.path.join(directory, f"change-{time.time_ns()}-{os.getpid()}.jsonl")
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, what: str, **details: Any) -> None:
        """Note something."""
        os.write(self._descriptor, (json.dumps({"note": what, **details}) + "\n").encode())

    def begin(self, operation: str, goal: str) -> None:
        """Note what is about to begin."""
        self.note("begin", format=_FORMAT, operation=operation, goal=goal, pid=os.getpid(), started=time.time())

    def block(self, before: Before) -> None:
        """Note how a block is before anything is done to it."""
        self.note("block", id=before.id, node=before.node, state=before.state, zone=before.zone)

    def end(self) -> None:
        """Everything is accounted for: remove the file."""
        os.close(self._descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def unfinished(directory: Directory) -> list[Entry]:
    """Read the files of transactions that were killed, oldest first. Call it with the lock held.

    A file without a single write to a block changed nothing.
    """
    found = []
    for name in sorted(os.listdir(directory)):
        if not (name.startswith("change-") and name.endswith(".jsonl")):
            continue
        entry = Entry(os.path.join(directory, name))
        with open(entry.path, "rb") as file:
            lines = file.read().split(b"\n")[:-1]
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                _read(entry, json.loads(line))
        found.append(entry)
    return found


def _read(entry: Entry, note: dict[str, Any]) -> None:
    match note["note"]:
        case "begin":
            entry.operation, entry.goal = str(note["operation"]), str(note["goal"])
            entry.pid, entry.started = int(note["pid"]), float(note["started"])
        case "block":
            entry.before[int(note["id"])] = Before(int(note["id"]), int(note["node"]), str(note["state"]), str(note["zone"]))
        case "asked":
            entry.asked.append(int(note["id"]))
        case "told":
            with contextlib.suppress(ValueError):
                entry.asked.remove(int(note["id"]))
        case "write":
            if int(note["id"]) not in entry.written:
                entry.written.append(int(note["id"]))
        case "undone":
            with contextlib.suppress(ValueError):
                entry.written.remove(int(note["id"]))


def forget(entry: Entry) -> None:
    """Remove the file of a transaction that is accounted for."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(entry.path)
