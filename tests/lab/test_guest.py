"""A guest from start to end, with a QEMU that is only played: whatever happens, nothing of it is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpio_reader import unpack
from memhp.errors import GuestFailed, LabError, LabMissing
from memhp.kernel import NodeSpec
from memhp.lab import running
from memhp.lab.guest import Guest, missing_tools
from memhp.lab.image import INJECTORS, initramfs
from memhp.lab.kernels import Kernel, kernel_of
from memhp.lab.qemu import Shape

SHAPE = Shape((NodeSpec(1 << 30),))
PANICS = (
    """for word; do case $word in file:*) echo 'Kernel panic - not syncing: no init' > "${word#file:}";; esac; done; exit 0"""
)
HANGS = "exec 9> $ALIVE; echo up >&9; exec sleep 600"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with something of everything that a guest's root is made of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    root = tmp_path / "cache" / "memhp"
    library = "usr/lib/python3.11"
    files = ["bin/busybox", "usr/bin/python3.11", "lib/x/ld-linux-x86-64.so.2", f"{library}/os.py", f"{library}/json/__init__.py"]
    files += [f"lib/x/{name}" for name in ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1")]
    files += [f"{library}/lib-dynload/{name}.cpython-311.so" for name in ("termios", "_json")]
    files += [f"{library}/unittest/__init__.py"]
    for name in [*(f"guest/{name}" for name in files), *(f"kernels/6.1/lib/modules/r/{name}.ko" for name in INJECTORS)]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "kernels/6.1/about.json").write_text('{"release": "r", "version": "v"}')
    (root / "guest/about.json").write_text('{"libc6": "1"}')
    return root


@pytest.fixture
def kernel(cache: Path) -> Kernel:
    return kernel_of("6.1")


def play_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.fixture
def alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pipe that the QEMU which hangs holds open as long as it lives, and into which it says that it is up."""
    os.mkfifo(tmp_path / "alive")
    monkeypatch.setenv("ALIVE", str(tmp_path / "alive"))
    reading = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    yield reading
    os.close(reading)


def gone(alive: int) -> bool:
    """Wait for the end of whoever holds the pipe open."""
    while select.select([alive], [], [], 10)[0]:
        if not os.read(alive, 100):
            return True
    return False


def left(tmp_path: Path) -> list[str]:
    """List what guests left: files in the temporary directory, and directories of guests."""
    return sorted(path.name for place in (tmp_path / "tmp", tmp_path / "cache/memhp/run") for path in place.iterdir())


def test_the_root_has_what_the_agent_needs(kernel: Kernel, cache: Path) -> None:
    """Programs, libraries where the loader looks, the modules; and nothing of the library that it doesn't import."""
    names = [name for name, *_ in unpack(initramfs(cache / "guest", kernel))]

    assert {"init", "bin/busybox", "bin/python", "lib/agent.py", "lib/libc.so.6", "lib64/ld-linux-x86-64.so.2"} < set(names)
    assert {f"lib/{module}.ko" for module in INJECTORS} < set(names)
    assert "usr/lib/python3.11/json/__init__.py" in names
    assert not any("unittest" in name for name in names)
    parents = {name.rpartition("/")[0] for name in names} - {""}
    assert all(names.index(parent) < min(names.index(n) for n in names if n.startswith(f"{parent}/")) for parent in parents)


def test_a_damaged_cache_says_what_to_do(kernel: Kernel, cache: Path) -> None:
    """Rather than boot a guest that can't come up."""
    (cache / "guest/bin/busybox").unlink()
    with pytest.raises(LabError, match="has no bin/busybox; fetch it again: memhp lab fetch"):
        initramfs(cache / "guest", kernel)


def test_a_panic_is_an_error_with_the_console(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last lines of the console are in the message, and no file is left."""
    play_qemu(tmp_path, monkeypatch, PANICS)
    with pytest.raises(GuestFailed) as failed, Guest(kernel, SHAPE):
        pass

    assert str(failed.value) == ("the guest's kernel panicked; its console ended with\n  | Kernel panic - not syncing: no init")
    assert failed.value.console == ("Kernel panic - not syncing: no init",)
    assert left(tmp_path) == [".lock"]


def test_what_qemu_says_is_in_the_error(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that QEMU can't play is its own reason."""
    play_qemu(tmp_path, monkeypatch, "echo 'cannot set up guest memory' >&2; exit 1")
    with pytest.raises(GuestFailed, match=r"QEMU ended \(status 1\): cannot set up guest memory"), Guest(kernel, SHAPE):
        pass


def test_a_guest_that_hangs_is_killed(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: int) -> None:
    """After the time that was given; neither its process nor its files are left."""
    play_qemu(tmp_path, monkeypatch, HANGS)
    with pytest.raises(GuestFailed, match="QEMU does not start"), Guest(kernel, SHAPE, patience=2):
        pass
    assert gone(alive)
    assert left(tmp_path) == [".lock"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 130), (signal.SIGKILL, -9)]
)
def test_a_command_that_is_interrupted_leaves_no_guest(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: int, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and SIGTERM end the guest and remove its files; after SIGKILL the kernel ends it, and the next command cleans up."""
    play_qemu(tmp_path, monkeypatch, HANGS)
    scenario = tmp_path / "demo.yaml"
    scenario.write_text("machine: {nodes: [1GiB]}\nsteps: [{offline: 1}]\n")
    command = [sys.executable, "-m", "memhp.cli", "lab", "run", str(scenario), "--kernel", "6.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ends = os.pidfd_open(process.pid)
    ready = select.select([alive, ends], [], [], 60)[0]
    os.close(ends)
    assert ready == [alive], process.communicate()
    assert os.read(alive, 100) == b"up\n"
    process.send_signal(number)

    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert gone(alive)
    if number is signal.SIGKILL:
        assert left(tmp_path) == [".lock", "linux-6.1"]
        assert running.guests() == []
    else:
        assert said == "memhp: interrupted\n"
    assert left(tmp_path) == [".lock"]


def test_without_qemu_nothing_is_begun(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is said with the package that has it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_tools() == ["qemu-system-x86_64 (on Debian: apt-get install qemu-system-x86)"]
    with pytest.raises(LabMissing, match="missing: qemu-system-x86_64"):
        Guest(kernel, SHAPE)
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    assert missing_tools()[1:] == ["qemu.qmp (pip install 'memhp[lab]')"]
