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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memhp.errors import HostError

__all__ = ["Before", "Entry", "Journal", "default_directory", "forget", "locked", "unfinished"]

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Before:
    """A block as it was before the transaction."""

    id: int
    node: int
    state: str
    zone: str


@dataclass(slots=True)
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

    path: Path
    operation: str = ""
    goal: str = ""
    pid: int = 0
    started: float = 0.0
    before: dict[int, Before] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)


def default_directory() -> Path:
    """Give the directory: MEMHP_STATE_DIR, or /run/memhp for root, or the user's own run-time directory."""
    if chosen := os.environ.get("MEMHP_STATE_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/memhp")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/memhp-{os.geteuid()}") / "memhp"  # noqa: S108 - it is made private


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of the directory, which is made if it isn't there.

    Raises:
        HostError: it can't be made or isn't private, or another transaction is running (EBUSY).
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise HostError(str(directory), "belongs to somebody else, or others may write to it", errno=errno.EPERM)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"change-{time.time_ns()}-{os.getpid()}.jsonl"
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
            self._path.unlink()


def unfinished(directory: Path) -> list[Entry]:
    """Read the files of transactions that were killed, oldest first. Call it with the lock held.

    A file without a single write to a block changed nothing.
    """
    found = []
    for path in sorted(directory.glob("change-*.jsonl")):
        entry = Entry(path)
        for line in path.read_bytes().split(b"\n")[:-1]:
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
        entry.path.unlink()
