"""One write to a block's ``state``, with a time limit: the kernel may try for ever, and only a signal ends that.

A write to a real file happens in a process of its own. Its first signal makes the kernel give up with EINTR and undo the block
(mm/memory_hotplug.c, ``offline_pages``). While the write only waits for another change of memory to end it isn't heard
(drivers/base/core.c, ``lock_device_hotplug_sysfs``), so after a while that process is killed, which ends that, too. Then nothing
was changed. If memhp itself is killed, the kernel kills the writer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple, Protocol

from memhp.abi.tree import DirTree, Tree
from memhp.errors import errno_name

__all__ = ["ProcessWriter", "ThreadWriter", "Writer", "Written", "writer_for"]

GRACE = 3.0
"""Seconds that the kernel has to answer a signal."""

# It reads "path NUL word" lines and answers with an errno each. SIGINT of the terminal is not for it.
_HELPER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
class Stop(Exception): pass
writing = False
def stop(number, frame):
    if writing: raise Stop
signal.signal(signal.SIGUSR1, stop)
parent = int(sys.argv[1])
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
except Exception: pass
if os.getppid() != parent: os._exit(0)
os.write(1, b"ready\\n")
for line in sys.stdin.buffer:
    path, _, word = line.rstrip(b"\\n").partition(b"\\0")
    try:
        handle = os.open(path, os.O_WRONLY)
        try:
            writing = True
            os.write(handle, word)
            writing = False
        finally:
            writing = False
            os.close(handle)
        said = 0
    except Stop: said = 4
    except OSError as error: said = error.errno
    os.write(1, b"%d\\n" % said)
"""


class Written(NamedTuple):
    """How a write ended.

    Attributes:
        errno: 0 if it was taken.
        seconds: how long it took.
        timed_out: whether the time limit ended it.
        waited: whether, as far as one can tell, it had not begun but waited for another change of memory to end.
        text: what the tree said, if it said more than an errno.
        pending: the write could not be ended and may still happen.
    """

    errno: int
    seconds: float
    timed_out: bool = False
    waited: bool = False
    text: str = ""
    pending: bool = False

    def __str__(self) -> str:
        if self.pending:
            return f"no answer after {self.seconds:.1f} s, and it can't be ended"
        if self.waited:
            return f"another change of memory did not end within {self.seconds:.1f} s"
        limit = f" after {self.seconds:.1f} s" if self.timed_out else ""
        return f"{self.text or errno_name(self.errno)}{limit}" if self.errno else f"taken{limit}"


class Writer(Protocol):
    """Writes to the files of a tree."""

    def write(self, path: str, word: str, seconds: float | None) -> Written:
        """Write a word; with a limit in seconds, end the write after that.

        An exception in the meantime, such as Ctrl-C, ends the write, too, and goes on when it has ended.
        """

    def close(self) -> None:
        """End whatever it needs to write."""


def writer_for(tree: Tree) -> Writer:
    """Give the writer for a tree: a process for files of a real kernel, a thread for everything else."""
    return ProcessWriter(tree) if isinstance(tree, DirTree) else ThreadWriter(tree)


class ProcessWriter:
    """Writes to real files from a process of its own; it is started with the first write."""

    def __init__(self, tree: DirTree, *, grace: float = GRACE) -> None:
        self._tree = tree
        self._grace = grace
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, path: str, word: str, seconds: float | None) -> Written:
        """Write a word, as :meth:`Writer.write`."""
        if not self._tree.writable:
            return Written(errno.EROFS, 0.0)
        process = self._started()
        begun = time.monotonic()
        try:
            self._send(process, f"{self._tree.real_path(path)}\0{word}\n")
            answer = self._answer(process, seconds)
        except BaseException:
            self._end_write(process)
            raise
        if answer is not None:
            return Written(answer, time.monotonic() - begun)
        answer = self._end_write(process)
        seconds_taken = time.monotonic() - begun
        if answer is None:
            return Written(errno.EINTR, seconds_taken, timed_out=True, waited=True, pending=process.poll() is None)
        return Written(answer, seconds_taken, timed_out=True)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._grace)
            return
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._grace)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            command = [sys.executable, "-I", "-S", "-c", _HELPER, str(os.getpid())]
            process = subprocess.Popen(  # noqa: S603 - Python with the program above
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
            )
            self._process = process
            self._line(process, None)
        return self._process

    @staticmethod
    def _send(process: subprocess.Popen[bytes], text: str) -> None:
        if process.stdin is not None:
            process.stdin.write(text.encode())

    def _answer(self, process: subprocess.Popen[bytes], seconds: float | None) -> int | None:
        # None: no answer in time, or the process is gone.
        line = self._line(process, seconds)
        return int(line) if line else None

    @staticmethod
    def _line(process: subprocess.Popen[bytes], seconds: float | None) -> bytes:
        if process.stdout is None:
            return b""
        if not select.select([process.stdout], [], [], seconds)[0]:
            return b""
        return process.stdout.readline().strip()

    def _end_write(self, process: subprocess.Popen[bytes]) -> int | None:
        # A signal first; if that isn't heard, the write waits for a lock, and only a fatal one ends that.
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGUSR1)
        answer = self._answer(process, self._grace)
        if answer is None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._grace)
        return answer


class ThreadWriter:
    """Writes to a tree that lives in this process, in a thread if there is a time limit.

    A tree that can end a write has a method ``interrupt(thread)``.
    """

    def __init__(self, tree: Tree, *, grace: float = GRACE) -> None:
        self._tree = tree
        self._grace = grace

    def write(self, path: str, word: str, seconds: float | None) -> Written:
        """Write a word, as :meth:`Writer.write`."""
        begun = time.monotonic()
        outcome: list[OSError | None] = []

        def work() -> None:
            try:
                self._tree.write(path, word)
                outcome.append(None)
            except OSError as error:
                outcome.append(error)

        if seconds is None:
            work()
            return _told(outcome[0], time.monotonic() - begun)
        thread = threading.Thread(target=work, name=f"write {word}", daemon=True)
        thread.start()
        try:
            thread.join(seconds)
        except BaseException:
            self._interrupt(thread)
            raise
        timed_out = thread.is_alive()
        if timed_out:
            self._interrupt(thread)
        taken = time.monotonic() - begun
        if not outcome:
            return Written(errno.EINTR, taken, timed_out=True, waited=True, pending=True)
        return _told(outcome[0], taken, timed_out=timed_out)

    def close(self) -> None:
        """Do nothing: there is no process."""

    def _interrupt(self, thread: threading.Thread) -> None:
        interrupt = getattr(self._tree, "interrupt", None)
        if interrupt is not None:
            interrupt(thread)
        thread.join(self._grace)


def _told(error: OSError | None, seconds: float, *, timed_out: bool = False) -> Written:
    if error is None:
        return Written(0, seconds, timed_out)
    return Written(error.errno or errno.EIO, seconds, timed_out, text=str(error))
