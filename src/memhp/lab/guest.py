"""A running guest: started, asked, and gone in the end, however it ends."""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import json
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from memhp.errors import GuestFailed, LabMissing, errno_name
from memhp.lab.agent import MARK, encode
from memhp.lab.image import initramfs
from memhp.lab.kernels import Kernel, userland
from memhp.lab.qemu import QEMU, Shape, command_line
from memhp.lab.running import Place, claim

if TYPE_CHECKING:
    from memhp.lab.qmp import Monitor

__all__ = ["Channel", "Guest", "GuestErrno", "missing_tools"]

_CONSOLE_LINES = 15
_ALL = 10_000
_POLL = 0.2

Hears = Callable[[str, bytes], object]
"""Is called with ``out`` or ``err`` and what a program in the guest wrote there."""


def missing_tools() -> list[str]:
    """List what a guest needs and this machine doesn't have, each with how to get it."""
    return [*([] if shutil.which(QEMU) else [f"{QEMU} (on Debian: apt-get install qemu-system-x86)"]), *_missing_library()]


def _missing_library() -> list[str]:
    try:
        importlib.import_module("qemu.qmp")
    except ImportError:
        return ["qemu.qmp (pip install 'memhp[lab]')"]
    return []


class GuestErrno(OSError):
    """A system call in the guest failed; ``errno`` and ``strerror`` are the guest's."""

    def __str__(self) -> str:
        return f"{errno_name(self.errno or 0)}: {self.strerror}"


class Channel:
    """Requests and answers over a stream; one at a time.

    Args:
        stream: the connected socket.
        alive: says what is wrong with the other side, or ''.
    """

    def __init__(self, stream: socket.socket, alive: Any = lambda: "") -> None:
        self._stream = stream
        self._alive = alive
        self._rest = b""
        self._number = 0

    def wait(self, number: int, seconds: float, hears: Hears | None = None) -> Any:
        """Wait for the answer with that number; ``hears`` gets what a program writes meanwhile.

        Raises:
            GuestErrno: the answer is an errno.
            GuestFailed: there is no answer in time, or nobody to give one.
        """
        end = time.monotonic() + seconds
        while True:
            line = self._line(end)
            if line is None:
                raise GuestFailed(f"the guest did not answer within {seconds:g} s")
            answer = _message(line)
            if answer is None or answer.get("id") != number:
                continue
            if "stream" in answer:
                if hears is not None:
                    hears(str(answer["stream"]), str(answer["data"]).encode("latin-1"))
                continue
            if "errno" in answer:
                raise GuestErrno(int(answer["errno"]), str(answer.get("message", "")))
            return answer.get("value")

    def ask(self, verb: str, seconds: float, hears: Hears | None = None, **given: object) -> Any:
        """Ask for something and wait for the answer; raises as :meth:`wait` does."""
        self._number += 1
        try:
            self._stream.sendall(encode({"id": self._number, "do": verb, **given}))
        except OSError as error:
            raise GuestFailed(self._alive() or "the guest is gone") from error
        return self.wait(self._number, seconds, hears)

    def _line(self, end: float) -> bytes | None:
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0:
                return None
            ready = select.select([self._stream], [], [], min(left, _POLL))[0]
            got = self._receive() if ready else None
            if got == b"" or (got is None and self._alive()):
                raise GuestFailed(self._alive() or "the guest ended")
            self._rest += got or b""
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _receive(self) -> bytes:
        try:
            return self._stream.recv(1 << 16)
        except ConnectionError:
            return b""


def _message(line: bytes) -> dict[str, Any] | None:
    # What is no message is somebody else's output on the port.
    _, mark, text = line.decode(errors="replace").rpartition(MARK)
    with contextlib.suppress(ValueError):
        loaded = json.loads(text) if mark else None
        return loaded if isinstance(loaded, dict) else None
    return None


class Guest:
    """A guest, as a context manager: it is up inside, and neither a process nor a file of it is left outside.

    Args:
        kernel: what it boots.
        shape: its machine.
        patience: seconds that a boot, or one request, may take.
        name: by which others find it while it runs; one is made if none is given.
        root: the archive that its kernel unpacks; the small one of scenarios if not given.
        terminal: whether the console is connected to :attr:`terminal` as well as written down.

    It must be entered in a thread that lives as long as the guest: the kernel kills the guest when that thread ends.

    Raises:
        LabMissing: QEMU, or what runs in the guest, isn't here.
        InvalidInput: the name is none, or is taken.
        GuestFailed: it does not come up; with the console's last lines.
    """

    def __init__(
        self,
        kernel: Kernel,
        shape: Shape,
        *,
        patience: float = 60.0,
        name: str = "",
        root: bytes | None = None,
        terminal: bool = False,
    ) -> None:
        missing = missing_tools()
        if missing:
            raise LabMissing(missing, "")
        self.kernel = kernel
        self.shape = shape
        self.patience = patience
        self.boot_seconds = 0.0
        """From the start of QEMU to the agent's first word."""
        self.name = name
        self.terminal: socket.socket | None = None
        """The console of the guest, if it was asked for."""
        self._wants_terminal = terminal
        self._archive = initramfs(userland(), kernel, shape.drivers) if root is None else root
        self._process: subprocess.Popen[bytes] | None = None
        self._place: Place | None = None
        self._stream: socket.socket | None = None
        self.monitor: Monitor

    def __enter__(self) -> Self:
        atexit.register(self.stop)
        try:
            self._start()
            if not self._wants_terminal:
                self.wait_for_agent()
        except BaseException as error:
            self._explain(error)
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._explain(error)
        self.stop()

    def _start(self) -> None:
        begun = time.monotonic()
        place = self._place = claim(self.name, self.kernel.series)
        self.name, directory = place.name, place.directory
        sockets = ("agent", "tty") if self._wants_terminal else ("agent",)
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(_listen(directory / name)) for name in sockets]
            # A file without a name, which QEMU inherits: however all this ends, nothing of it is left.
            root = stack.enter_context(tempfile.TemporaryFile())
            root.write(self._archive)
            root.flush()
            path = Path(f"/proc/self/fd/{root.fileno()}")
            self._launch(
                command_line(self.shape, self.kernel.image, path, directory, terminal=self._wants_terminal), root.fileno()
            )
            self._stream, *others = [self._accept(listener) for listener in listeners]
        self.terminal = others[0] if others else None
        self._archive = b""
        self.channel = Channel(self._stream, self._trouble)
        from memhp.lab.qmp import Monitor  # noqa: PLC0415 - its library is an extra

        self.monitor = Monitor(directory / "qmp")
        self._begun = begun

    def _launch(self, command: list[str], root: int) -> None:
        # If memhp is killed outright, the kernel kills the guest.
        tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (self._under() / "qemu").open("wb") as said:
            process = self._process = subprocess.Popen(  # noqa: S603 - QEMU with arguments that were made here
                [*tied, *command], stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True, pass_fds=[root]
            )
        if self._place is not None:
            self._place.note(release=self.kernel.release, shape=str(self.shape), qemu=process.pid)

    def _accept(self, listener: socket.socket) -> socket.socket:
        if self._process is None:
            raise GuestFailed("the guest is gone")
        ends = os.pidfd_open(self._process.pid)
        try:
            ready = select.select([listener.fileno(), ends], [], [], self.patience)[0]
        finally:
            os.close(ends)
        if listener.fileno() not in ready:
            self._process.poll()
            raise GuestFailed(self._trouble() or "QEMU does not start")
        return listener.accept()[0]

    def wait_for_agent(self) -> None:
        """Wait until the guest answers; entering the guest does, unless its console is wanted.

        Raises:
            GuestFailed: it does not come up.
        """
        if not self.boot_seconds:
            self.channel.wait(0, self.patience)
            self.boot_seconds = time.monotonic() - self._begun

    def _under(self) -> Path:
        if self._place is None:
            raise GuestFailed("the guest is gone")
        return self._place.directory

    def _trouble(self) -> str:
        if self._process is None or self._process.poll() is None:
            return ""
        said = _last_lines(self._under() / "qemu", 3)
        return f"QEMU ended (status {self._process.returncode})" + (f": {'; '.join(said)}" if said else "")

    @property
    def console(self) -> list[str]:
        """The last lines of the guest's console; that of a panic comes first, wherever it stood."""
        lines = [] if self._place is None else _last_lines(self._place.directory / "console", _CONSOLE_LINES)
        return [*(line for line in self._panic() if line not in lines), *lines]

    def _explain(self, error: BaseException | None) -> None:
        # A guest that failed says why on its console, which is gone when the error is read.
        if isinstance(error, GuestFailed) and not error.console:
            what = "the guest's kernel panicked" if self.panicked else error.args[0]
            again = GuestFailed(f"{what}; its console ended with", self.console)
            error.args, error.console = again.args, again.console

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def panicked(self) -> bool:
        """Whether its kernel panicked."""
        return bool(self._panic())

    def _panic(self) -> list[str]:
        lines = [] if self._place is None else _last_lines(self._place.directory / "console", _ALL)
        return [line for line in lines if "Kernel panic" in line][:1]

    def stop(self) -> None:
        """End the guest and remove its files; does nothing the second time."""
        atexit.unregister(self.stop)
        with contextlib.suppress(AttributeError):
            monitor = self.monitor
            del self.monitor
            monitor.close()
        for stream in (self._stream, self.terminal):
            if stream is not None:
                stream.close()
        self._kill()
        if self._place is not None:
            self._place.release()
            self._place = None

    def _kill(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    # -- what can be asked of it

    def ask(self, verb: str, **given: object) -> Any:
        """Ask the agent.

        Raises:
            GuestErrno: the guest's kernel refused.
            GuestFailed: no answer.
        """
        return self.channel.ask(verb, self.patience, None, **given)

    def call(self, command: Sequence[str], hears: Hears, *, patience: float = math.inf) -> int:
        """Run a program in the guest until it ends, and give its exit status (negative: the signal that ended it).

        Raises:
            GuestErrno: it can't be started.
            GuestFailed: the guest ended, or the program did not within ``patience`` seconds; the guest can do nothing else then.
        """
        return int(self.channel.ask("call", patience, hears, command=list(command)))

    def read(self, path: str) -> str:
        """Give a file's text; raises as :meth:`ask`."""
        return str(self.ask("read", path=path))

    def write(self, path: str, text: str, *, append: bool = False) -> None:
        """Write to a file with one ``write()``; raises as :meth:`ask`."""
        self.ask("write", path=path, text=text, append=append)

    def insmod(self, name: str, *parameters: str) -> None:
        """Load one of the modules of the image; raises as :meth:`ask`."""
        self._busybox("insmod", f"/lib/{name}.ko", *parameters)

    def rmmod(self, name: str) -> None:
        """Unload a module; raises as :meth:`ask`."""
        self._busybox("rmmod", name)

    def _busybox(self, *words: str) -> None:
        done = self.ask("run", command=["/bin/busybox", *words])
        if done["status"]:
            said = done["said"].strip()
            raise GuestErrno(_errno_of(said), f"{' '.join(words)}: {said}")


def _errno_of(said: str) -> int:
    # busybox says errnos in words, and one of them in words of its own.
    reason = said.rpartition(": ")[2]
    if reason.startswith("unknown symbol in module"):
        return errno.ENOENT
    return next((number for number in errno.errorcode if os.strerror(number) == reason), errno.EIO)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _last_lines(path: Path, count: int) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.replace("\r", "").splitlines() if line.strip()][-count:]
