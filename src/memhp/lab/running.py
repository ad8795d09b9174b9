"""Which guests run: each has a directory of its own with a lock that its owner holds as long as it lives."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memhp.errors import InvalidInput, LabError
from memhp.lab.kernels import cache_dir

__all__ = ["Place", "Running", "claim", "find", "guests", "run_dir"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_ABOUT = "about.json"
_LOCK = "lock"
_LONGEST = 107
"""Bytes of a socket's path (unix(7))."""


@dataclass(frozen=True, slots=True)
class Running:
    """A guest that runs, of this process or another."""

    name: str
    directory: Path
    release: str
    shape: str
    owner: int
    """The process of memhp that started it."""
    qemu: int
    """QEMU's process."""
    started: float
    """Seconds since 1970."""

    @property
    def control(self) -> Path:
        """QEMU's socket for others than the owner."""
        return self.directory / "control"


def run_dir() -> Path:
    """Give the directory where the guests' directories are: memhp's in ``$XDG_RUNTIME_DIR``, else ``run`` in the cache.

    Raises:
        LabError: it is somebody else's, or others can enter it.
    """
    given = os.environ.get("XDG_RUNTIME_DIR")
    root = Path(given) / "memhp" if given and os.access(given, os.W_OK) else cache_dir() / "run"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = root.stat()
    if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
        raise LabError(f"{root} is not private: owner {about.st_uid}, mode {stat.S_IMODE(about.st_mode):o}", f"chmod 700 {root}")
    return root


class Place:
    """The directory of one guest, this process's until :meth:`release`.

    The lock is one of ``flock()``, so it ends with the process, however that ends; QEMU does not inherit it.
    """

    def __init__(self, name: str, directory: Path, lock: int) -> None:
        self.name = name
        self.directory = directory
        self._lock = lock

    def note(self, *, release: str, shape: str, qemu: int) -> None:
        """Write down what runs here, for others; ``qemu`` is its process."""
        about = {
            "release": release,
            "shape": shape,
            "owner": os.getpid(),
            "qemu": qemu,
            "qemu_started": _start_time(qemu),
            "started": time.time(),
        }
        new = self.directory / f"{_ABOUT}.new"
        new.write_text(json.dumps(about), encoding="utf-8")
        new.rename(self.directory / _ABOUT)

    def release(self) -> None:
        """Remove the directory with everything in it; QEMU must have ended."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def claim(name: str = "", series: str = "") -> Place:
    """Make the directory of a new guest, and remove those of owners who are dead.

    Args:
        name: its name; if not given, ``linux-SERIES``, with a number if that is taken.
        series: of its kernel.

    Raises:
        InvalidInput: the name is none, or is taken.
        LabError: the directory isn't private, or its path is too long for a socket.
    """
    if name and not _NAME.fullmatch(name):
        raise InvalidInput(name, "--name", "up to 32 letters, digits, '.', '_' and '-'")
    root = run_dir()
    with _alone(root):
        _sweep(root)
        if name and (root / name).exists():
            raise InvalidInput(name, "--name", "a name that no running guest has (memhp lab ps)")
        directory = root / (name or _free_name(root, f"linux-{series}"))
        if len(os.fsencode(directory / "control")) > _LONGEST:
            raise LabError(f"{directory} is too long for the path of a socket", "set XDG_RUNTIME_DIR to a shorter one")
        directory.mkdir(mode=0o700)
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Place(directory.name, directory, lock)


def guests() -> list[Running]:
    """List the guests that run, by name; what dead owners left is removed."""
    root = run_dir()
    with _alone(root):
        _sweep(root)
        found = [_running(directory) for directory in sorted(root.iterdir()) if directory.is_dir()]
    return [guest for guest in found if guest is not None]


def find(name: str = "") -> Running:
    """Give the guest of that name; without one, the only guest that runs.

    Raises:
        InvalidInput: there is none, or several and no name.
    """
    running = guests()
    names = ", ".join(guest.name for guest in running)
    if not name:
        if len(running) != 1:
            expected = f"a name, because several guests run: {names}" if running else "a guest that runs (memhp lab boot)"
            raise InvalidInput("--guest", "--guest", expected)
        return running[0]
    for guest in running:
        if guest.name == name:
            return guest
    raise InvalidInput(name, "--guest", f"a guest that runs: {names or 'there is none'}")


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    # Between making a directory and locking it, it would look like one of a dead owner.
    lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _free_name(root: Path, wanted: str) -> str:
    names = [wanted, *(f"{wanted}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not (root / name).exists())


def _sweep(root: Path) -> None:
    for directory in root.iterdir():
        if directory.is_dir() and _is_dead(directory):
            _end_orphan(_about(directory))
            shutil.rmtree(directory, ignore_errors=True)


def _is_dead(directory: Path) -> bool:
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _end_orphan(about: dict[str, object]) -> None:
    # Where no setpriv tied QEMU to its owner, it may still run. Its number alone could be another process's by now.
    number = about.get("qemu")
    if isinstance(number, int) and _start_time(number) == about.get("qemu_started"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def _start_time(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return -1
    state, *fields = text.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(fields[18])


def _about(directory: Path) -> dict[str, object]:
    try:
        loaded = json.loads((directory / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _running(directory: Path) -> Running | None:
    about = _about(directory)
    if not about or _start_time(int(str(about["qemu"]))) != about["qemu_started"]:
        return None  # it is being started, or being ended
    owner, qemu, started = int(str(about["owner"])), int(str(about["qemu"])), float(str(about["started"]))
    return Running(directory.name, directory, str(about["release"]), str(about["shape"]), owner, qemu, started)
