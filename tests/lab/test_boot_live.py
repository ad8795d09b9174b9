"""Real kernels to work in: programs in the guest, DIMMs and virtio-mem from outside, and the kernel's own selftest."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from memhp.cli import main
from memhp.errors import DimmRefused, LabMissing
from memhp.lab import kernels, running
from memhp.lab.boot import Session
from memhp.lab.guest import GuestErrno
from memhp.lab.qemu import VirtioMem

pytestmark = [pytest.mark.qemu, pytest.mark.parametrize("series", tuple(kernels.SERIES), scope="module")]

GIB = 1 << 30
MIB = 1 << 20
MEMORY = "/sys/devices/system/memory"


@pytest.fixture(scope="module")
def guest(series: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A guest of two nodes, with virtio-mem in the second, and a file of ours."""
    mine = tmp_path_factory.mktemp("mine") / "mine.py"
    mine.write_text("import memhp\nprint('memhp', memhp.__version__)\n")
    with Session(
        series,
        ["512MiB", 0],
        virtio=[VirtioMem(1, 2 * GIB, 256 * MIB)],
        modules=["virtio-balloon"],
        add=[(mine, "/srv/mine.py")],
        name=f"live-{series}",
    ) as session:
        yield session


def test_programs_run_in_the_guest(guest: Session, series: str) -> None:
    """With their status and both outputs; the library, PyYAML and memhp are there."""
    assert guest.run("uname -r").output == f"{kernels.kernel_of(series).release}\n"
    assert guest.run("echo to one; echo to two >&2; exit 7") == (7, "to one\nto two\n")
    assert guest.run(["sh", "-c", "kill -9 $$"]) == (-9, "")
    assert guest.run("python3 -c 'import asyncio, ctypes, lzma, readline, yaml'") == (0, "")
    said = guest.run("python3 /srv/mine.py; memhp --version").output.splitlines()
    assert len(set(said)) == 1
    with pytest.raises(GuestErrno, match="ENOENT"):
        guest.run(["nosuch"])


def test_bytes_come_as_they_are(guest: Session) -> None:
    """Whatever a program writes."""
    heard: list[tuple[str, bytes]] = []
    assert guest.stream(["printf", r"\377\0\n@memhp {}\n"], lambda name, data: heard.append((name, data))) == 0
    assert b"".join(data for _, data in heard) == b"\xff\0\n@memhp {}\n"
    assert {name for name, _ in heard} == {"out"}


def test_a_program_in_the_background_holds_nobody_up(guest: Session) -> None:
    """Though it keeps its outputs open."""
    status, number = guest.run("sleep 600 & echo $!", patience=30)
    assert (status, guest.run(f"kill {number}")) == (0, (0, ""))


def test_modules_are_there_with_what_they_need(guest: Session) -> None:
    """For modprobe, which finds them by name."""
    assert guest.run("modprobe virtio-balloon && grep -c ^virtio_balloon /proc/modules") == (0, "1\n")
    assert guest.run("modprobe memory-notifier-error-inject priority=3 && lsmod | grep -c inject") == (0, "2\n")


def test_a_dimm_comes_and_goes(guest: Session) -> None:
    """The guest's kernel has its blocks, and then not."""
    before = set(guest.run(f"ls {MEMORY}").output.split())
    name = guest.plug("256MiB", 1)
    added = set(guest.run(f"ls {MEMORY}").output.split()) - before
    assert (name, len(added)) == ("dimm1", 2)
    assert guest.run(f"test -e {MEMORY}/{min(added)}/node1").status == 0
    guest.unplug(name)
    assert set(guest.run(f"ls {MEMORY}").output.split()) == before
    with pytest.raises(DimmRefused, match="QEMU refuses device_del: Device 'dimm1' not found"):
        guest.unplug(name)


def test_virtio_mem_grows_and_shrinks(guest: Session) -> None:
    """The driver follows; the kernel's count of the node's memory says so."""

    def total() -> int:
        text = guest.read("/sys/devices/system/node/node1/meminfo")
        return int(text.split("MemTotal:")[1].split()[0]) << 10

    assert guest.resize("256MiB") == 256 * MIB
    small = total()
    assert guest.resize("1GiB") == GIB
    assert total() - small == 768 * MIB
    assert guest.resize("256MiB") == 256 * MIB
    assert total() == small


def test_from_outside_by_name(guest: Session, series: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process needs no more than the name; each command says how it ended."""
    name = ["--guest", f"live-{series}"]
    assert main(["lab", "plug", "256MiB", "--node", "1", "--name", "mine", *name]) == 0
    assert main(["lab", "plug", "256MiB", "--node", "1", "--name", "mine", *name]) == 1
    assert main(["lab", "resize", "512MiB", *name]) == 0
    assert main(["lab", "resize", "3GiB", *name]) == 1
    assert main(["lab", "resize", "1GiB", "--device", "vm7", *name]) == 1
    assert main(["lab", "ps"]) == 0
    assert main(["lab", "unplug", "mine", *name]) == 0
    assert main(["lab", "unplug", "mine", *name]) == 1

    out, err = capsys.readouterr()
    place = "256 MiB in node 1, memory"
    lines = out.splitlines()
    assert lines[0].startswith(f"plugged mine into live-{series}: {place}")
    assert lines[1] == f"resized vm0 of live-{series}: 512 MiB of 2 GiB in node 1"
    shown = lines.index(next(line for line in lines if line.startswith(f"live-{series}")))
    assert kernels.kernel_of(series).release in lines[shown]
    assert lines[shown + 1].split()[:2] == ["vm0", "virtio-mem:"]
    assert lines[shown + 2].startswith(f"  mine       dimm: {place}")
    assert lines[-1].startswith(f"unplugged mine from live-{series}: {place}")
    taken, large, absent, gone = err.splitlines()
    assert "mine" in taken
    assert "requested-size" in large
    assert absent == "memhp: the guest has no virtio-mem device vm7"
    assert gone == "memhp: the guest has no memory device mine; it has vm0"


def test_a_kernel_that_keeps_its_memory(series: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unplug that the guest's kernel refuses says so, with the errno; the DIMM stays."""
    with Session(series, ["512MiB", 0], parameters="memhp_default_state=offline", name="keeper") as session:
        session.plug("128MiB", 1, name="kept")
        session.run("modprobe memory-notifier-error-inject")
        session.write("/sys/kernel/debug/notifier-error-inject/memory/actions/MEM_GOING_OFFLINE/error", "-12")
        session.write(f"{MEMORY}/memory32/state", "online_movable")
        assert main(["lab", "unplug", "kept", "--guest", "keeper"]) == 1
        assert session.read(f"{MEMORY}/memory32/state") == "online\n"
    said = capsys.readouterr().err
    assert said.startswith("memhp: the guest's kernel keeps the DIMM: ")


def test_a_command_in_a_guest(series: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its status is that of the command, its outputs are ours."""
    script = tmp_path / "look.py"
    script.write_text("import os, sys\nprint(os.cpu_count())\nsys.exit(5)\n")
    machine = ["--kernel", series, "--node", "512MiB,cpus=2", "--node", "0"]
    assert main(["lab", "boot", *machine, "--run", str(script)]) == 5
    assert capfd.readouterr() == ("2\n", "")


def test_a_kernel_by_path(series: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The same kernel, found by the paths of its files."""
    kernel = kernels.kernel_of(series)
    word = f"{kernel.image}:{kernel.module_dir}"
    assert main(["lab", "boot", "--kernel", word, "--", "uname", "-r"]) == 0
    assert capfd.readouterr().out == f"{kernel.release}\n"


def test_another_process_stops_a_guest(series: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Who started it hears that it is gone."""
    with Session(series, name="stopped") as session:
        assert main(["lab", "stop", "stopped"]) == 0
        assert "stopped" not in [guest.name for guest in running.guests()]
        assert session.guest.alive is False
    assert capsys.readouterr().out == "stopped stopped\n"


def test_the_kernels_own_selftest_passes(series: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The script of the kernel's source runs to its end, and both errors are injected."""
    try:
        kernels.selftest_script()
    except LabMissing as missing:
        if os.environ.get("MEMHP_REQUIRE_QEMU"):
            raise
        pytest.skip(str(missing))
    assert main(["lab", "selftest", "--kernel", series]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "\t Test with memory notifier error injection" in lines
    assert any("Injecting error (-12) to MEM_GOING_OFFLINE" in line for line in lines if line.startswith("  | "))
    assert lines[-1] == "ok 1 memory-hotplug: mem-on-off-test.sh"


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("exit\r", 0, ""),
        ("echo c > /proc/sysrq-trigger\r", 3, "memhp: the guest's kernel panicked; its console ended with"),
        (signal.SIGTERM, 130, "memhp: interrupted"),
        ("\x1d", 0, ""),
    ],
    ids=["exit", "panic", "SIGTERM", "Ctrl-]"],
)
def test_a_shell_in_a_guest(series: str, ending: str | signal.Signals, code: int, said: str) -> None:
    """Keys reach it, Ctrl-C too; however it ends, the terminal is as before, and nothing is left."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "memhp.cli", "lab", "boot", "--kernel", series, "--name", f"shell-{series}"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    try:
        use_shell(Console(ours), ours, process, ending, said)
        assert process.wait(30) == code
    finally:
        process.kill()
        process.wait()
    assert termios.tcgetattr(theirs) == before
    assert f"shell-{series}" not in [guest.name for guest in running.guests()]
    assert not (running.run_dir() / f"shell-{series}").exists()
    for descriptor in (ours, theirs):
        os.close(descriptor)


def use_shell(console: Console, keys: int, process: subprocess.Popen[bytes], ending: str | signal.Signals, said: str) -> None:
    console.wait_for(b"memhp:~# ")
    os.write(keys, b"sh -c 'tty; exec cat'\r")  # one process group, so that Ctrl-C reaches it whenever it comes
    console.wait_for(b"\n/dev/ttyS0")
    os.write(keys, b"\x03")  # its echo may be lost: the terminal throws away what waits to be shown
    console.wait_for(b"memhp:~# ")
    os.write(keys, b"echo $((6 * 7))\r")
    console.wait_for(b"\n42\r\n")
    if isinstance(ending, signal.Signals):
        process.send_signal(ending)
    else:
        os.write(keys, ending.encode())
    if said:
        console.wait_for(said.encode())


class Console:
    """What a terminal shows, up to the words that are waited for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._shown = b""

    def wait_for(self, words: bytes) -> None:
        while words not in self._shown:
            assert select.select([self._descriptor], [], [], 60)[0], self._shown
            self._shown += os.read(self._descriptor, 1 << 12)
        self._shown = self._shown.partition(words)[2]


def test_a_scenario_on_a_kernel_by_path(series: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its series is that of its release."""
    kernel = kernels.kernel_of(series)
    (tmp_path / "a.yaml").write_text("machine: {nodes: [512MiB]}\nsteps: [{read: memory0/state, expect: {text: online}}]\n")
    assert main(["lab", "run", str(tmp_path / "a.yaml"), "--kernel", f"{kernel.image}:{kernel.module_dir}", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
