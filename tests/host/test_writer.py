"""Writers: a write has a time limit, ends with its process, and its answer is the kernel's."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memhp import DirTree, Machine, PageKind
from memhp.host.writer import ProcessWriter, ThreadWriter

STATE = "/state"


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[ProcessWriter]:
    found = ProcessWriter(DirTree(tmp_path, writable=True), grace=2.0)
    yield found
    found.close()


def test_a_write_to_a_real_file(writer: ProcessWriter, tmp_path: Path) -> None:
    """The word, and nothing behind it; the file is not made."""
    (tmp_path / "state").touch()
    assert writer.write(STATE, "offline", 5).errno == 0
    assert (tmp_path / "state").read_text() == "offline"
    assert writer.write("/none", "offline", 5).errno == errno.ENOENT
    assert not (tmp_path / "none").exists()


def test_the_answer_is_the_kernel_s(writer: ProcessWriter, tmp_path: Path) -> None:
    """Here that of /dev/full."""
    (tmp_path / "state").symlink_to("full")
    (tmp_path / "full").touch()
    (tmp_path / "full").unlink()
    os.mknod(tmp_path / "full", 0o20600, os.makedev(1, 7)) if os.geteuid() == 0 else pytest.skip("needs root to make a device")
    assert str(writer.write(STATE, "offline", 5)) == "ENOSPC"


def full_pipe(tmp_path: Path) -> int:
    os.mkfifo(tmp_path / "state")
    descriptor = os.open(tmp_path / "state", os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"x" * 4096)
    os.set_blocking(descriptor, True)
    return descriptor


def test_a_write_that_doesn_t_end_is_ended_by_a_signal(writer: ProcessWriter, tmp_path: Path) -> None:
    """A full pipe takes nothing more: EINTR, and the next write works."""
    descriptor = full_pipe(tmp_path)
    try:
        written = writer.write(STATE, "offline", 0.2)
        assert (written.errno, written.timed_out, written.waited, written.pending) == (errno.EINTR, True, False, False)
        os.read(descriptor, 1 << 20)
        assert writer.write(STATE, "offline", 5).errno == 0
    finally:
        os.close(descriptor)


def test_a_write_that_hears_no_signal_is_ended_by_force(tmp_path: Path) -> None:
    """As one that waits for another change of memory: its process is killed, and a new one makes the next write."""
    descriptor = full_pipe(tmp_path)
    writer = ProcessWriter(DirTree(tmp_path, writable=True), grace=0.3)
    deaf = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [{int(signal.SIGUSR1)}])"
    source = writer_source().replace("import os, signal, sys\n", f"import os, signal, sys\n{deaf}\n")
    writer._process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", source, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )
    assert writer._line(writer._process, None) == b"ready"
    try:
        written = writer.write(STATE, "offline", 0.2)
        assert (written.timed_out, written.waited, written.pending) == (True, True, False)
        os.read(descriptor, 1 << 20)
        assert writer.write(STATE, "offline", 5).errno == 0
    finally:
        writer.close()
        os.close(descriptor)


def writer_source() -> str:
    from memhp.host import writer

    return writer._HELPER


def test_a_writer_dies_with_its_program(tmp_path: Path) -> None:
    """A program that is killed outright leaves no write behind that goes on."""
    descriptor = full_pipe(tmp_path)
    program = f"""
import sys
from memhp import DirTree
from memhp.host.writer import ProcessWriter
writer = ProcessWriter(DirTree({str(tmp_path)!r}, writable=True))
print(writer._started().pid, flush=True)
writer.write("/state", "offline", None)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    handle = os.pidfd_open(child)
    process.kill()
    process.wait()
    process.stdout.close()
    import select

    assert select.select([handle], [], [], 10)[0] == [handle]
    os.close(handle)
    os.close(descriptor)


def test_a_read_only_copy_is_not_written_to(tmp_path: Path) -> None:
    """EROFS, and no process is started."""
    writer = ProcessWriter(DirTree(tmp_path))
    assert writer.write(STATE, "offline", 1).errno == errno.EROFS
    assert writer._process is None


def test_a_modelled_machine_is_interrupted_too() -> None:
    """The same limit, through the tree."""
    machine = Machine.boot(["1GiB"])
    machine.pages.pin(machine.pages.alloc(1, PageKind.MOVABLE, blocks=[6]))
    written = ThreadWriter(machine.tree).write("/sys/devices/system/memory/memory6/state", "offline", 0.05)
    assert (written.errno, written.timed_out, written.pending) == (errno.EINTR, True, False)


def test_a_machine_that_can_t_be_interrupted_is_reported() -> None:
    """The write waits for a lock that somebody holds: it can't be ended, and may still happen."""
    machine = Machine.boot(["1GiB"])
    with machine.locks.device_hotplug:
        written = ThreadWriter(machine.tree, grace=0.05).write("/sys/devices/system/memory/memory6/state", "offline", 0.05)
    assert written.pending
    assert str(written).endswith("and it can't be ended")
