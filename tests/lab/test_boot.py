"""A guest to work in, before it boots: its machine, what goes into it, kernels by path, and the console."""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from cpio_reader import unpack
from memhp.errors import InvalidInput, LabError
from memhp.kernel import NodeSpec
from memhp.lab.boot import make_shape, read_node, read_soft_reserved, read_virtio, script_addition
from memhp.lab.console import relay
from memhp.lab.cpio import newc
from memhp.lab.kernels import Kernel, find_kernel, kernel_at
from memhp.lab.modules import load_order, module_tree
from memhp.lab.qemu import Shape, VirtioMem, command_line
from memhp.lab.rootfs import read_addition

MIB, GIB = 1 << 20, 1 << 30


# -- the machine


def test_a_machine_from_words() -> None:
    """Nodes and virtio-mem devices; with one of those, memory comes online by itself."""
    virtio = [read_virtio("1:4GiB,requested=256MiB,block=4MiB"), read_virtio("0:1GiB")]
    assert make_shape(
        [read_node("512MiB,cpus=2"), read_node("0")], virtio=virtio, parameters="quiet", slots=4, room="8GiB"
    ) == Shape(
        (NodeSpec(512 * MIB, 2), NodeSpec(0)),
        "quiet memhp_default_state=online_movable",
        4,
        8 * GIB,
        (VirtioMem(1, 4 * GIB, 256 * MIB, 4 * MIB, "vm0"), VirtioMem(0, GIB, name="vm1")),
    )
    assert make_shape(virtio=virtio, parameters="memhp_default_state=offline").parameters == "memhp_default_state=offline"
    assert make_shape(slots=0).room == 0


def test_virtio_mem_on_the_command_line() -> None:
    """A device with its memory; the machine's greatest size counts it."""
    line = command_line(make_shape(virtio=[VirtioMem(1, 4 * GIB, GIB, 4 * MIB)], room="1GiB"), Path("/k"), Path("/r"), Path("/d"))
    assert line[line.index("-device") - 2 : line.index("-device") + 2] == [
        *("-object", "memory-backend-ram,id=mem-vm0,size=4294967296,reserve=off"),
        *("-device", "virtio-mem-pci,id=vm0,memdev=mem-vm0,node=1,requested-size=1073741824,block-size=4194304"),
    ]
    assert line[line.index("-m") + 1] == "512M,slots=16,maxmem=5632M"


def test_soft_reserved_memory_from_words() -> None:
    """Where, and how much; by address in the end."""
    words = ["5GiB:256MiB", "0x100000000:512M"]
    shape = make_shape([NodeSpec(3 * GIB), NodeSpec(2 * GIB)], soft_reserved=[read_soft_reserved(word) for word in words])
    assert shape.soft_reserved == ((4 * GIB, 512 * MIB), (5 * GIB, 256 * MIB))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("4GiB", "--soft-reserved: '4GiB' is not valid; expected AT:SIZE, as in 4GiB:1GiB"),
        ("here:1GiB", "--soft-reserved: 'here' is not valid"),
        ("4GiB:3MiB", "--soft-reserved[0]: size: 3145728 is not valid; expected a multiple of 2 MiB"),
        ("8GiB:1GiB", "expected a range within the memory of one node"),
        ("2GiB:512MiB", "--soft-reserved: '0x80000000' is not valid; expected ranges from 4 GiB on for a guest"),
    ],
)
def test_memory_that_can_not_be_soft_reserved_in_a_guest(word: str, message: str) -> None:
    """Said with the option and the value."""
    with pytest.raises(InvalidInput) as refusal:
        make_shape([NodeSpec(3 * GIB), NodeSpec(2 * GIB)], soft_reserved=[read_soft_reserved(word)])
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("nodes", "virtio", "message"),
    [
        (["256MiB"], [], "--node: '256 MiB' is not valid; expected nodes of whole blocks of 128 MiB, from 512 MiB to 16 GiB"),
        (["600MiB"], [], "--node: '600 MiB' is not valid"),
        (["1GiB"], ["1:1GiB"], "--virtio-mem: 1 is not valid; expected a node from 0 to 0"),
        (["1GiB"], ["0:100MiB"], "--virtio-mem: '100 MiB' is not valid; expected a size of whole 128 MiB"),
        (["1GiB"], ["0:1GiB,requested=2GiB"], "--virtio-mem: requested: '2 GiB' is not valid; expected whole blocks of 2 MiB"),
        (["1GiB"], ["0:1GiB,requested=1MiB"], "--virtio-mem: requested: '1 MiB' is not valid"),
        (["1GiB"], ["0:1GiB,block=3MiB"], "--virtio-mem: block: '3 MiB' is not valid; expected a power of two"),
        (["1GiB"], ["1GiB"], "--virtio-mem: '1GiB' is not valid; expected NODE:SIZE"),
        (["1GiB"], ["0:1GiB,size=1"], "--virtio-mem: 'size=1' is not valid; expected requested=… or block=…"),
        (["1GiB,cpus=x"], [], "--node: cpus: 'x' is not valid; expected a number"),
    ],
)
def test_a_machine_that_can_not_be_built(nodes: list[str], virtio: list[str], message: str) -> None:
    """The option is named, and what would be right."""
    with pytest.raises(InvalidInput) as refusal:
        make_shape([read_node(text) for text in nodes], virtio=[read_virtio(text) for text in virtio])
    assert str(refusal.value).startswith(message)


# -- what goes in


def test_files_go_where_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else into /root, by their own name."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    assert read_addition("mine.py:/srv/other.py") == (Path("mine.py"), "/srv/other.py")
    assert read_addition("mine.py") == (Path("mine.py"), "/root/mine.py")
    with pytest.raises(InvalidInput, match="--add: 'nosuch' is not valid"):
        read_addition("nosuch")
    with pytest.raises(InvalidInput, match="expected an absolute path in the guest"):
        read_addition("mine.py:srv")


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("a.py", "print()", ["python3", "/root/a.py"]),
        ("a.sh", "#!/usr/bin/env python3\n", ["/usr/bin/env", "python3", "/root/a.sh"]),
        ("a", "echo", ["bash", "/root/a"]),
    ],
)
def test_a_script_runs_as_it_says(tmp_path: Path, name: str, text: str, command: list[str]) -> None:
    """Python by its name, else its first line, else the shell."""
    (tmp_path / name).write_text(text)
    assert script_addition(str(tmp_path / name)) == ((tmp_path / name, f"/root/{name}"), command)


# -- kernels


def image(path: Path, said: str) -> Path:
    """Write as much of a bzImage as says what it is."""
    data = bytearray(0x400)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    data[0x300 : 0x300 + len(said)] = said.encode()
    path.write_bytes(data)
    return path


def test_a_kernel_says_what_it_is(tmp_path: Path) -> None:
    """Release, series, and the version of its package if it has one."""
    debian = image(tmp_path / "a", "6.1.0-30-amd64 (x@debian.org) #1 SMP PREEMPT_DYNAMIC Debian 6.1.124-1 (2025-01-12)")
    (tmp_path / "modules/kernel").mkdir(parents=True)
    found = find_kernel(f"{debian}:{tmp_path / 'modules'}")
    assert (found.series, found.release, found.version) == ("6.1", "6.1.0-30-amd64", "6.1.124-1")
    assert (found.image, found.module_dir) == (debian, tmp_path / "modules")
    own = kernel_at(image(tmp_path / "b", "6.18.2 (me@here) #3"))
    assert (own.series, own.version, own.module_dir) == ("6.18", "6.18.2", Path("/lib/modules/6.18.2"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nosuch/vmlinuz", r"expected a kernel that can be read \(No such file or directory\)"),
        ("./text", "expected a bzImage"),
        ("./image:nosuch", "'nosuch' is not valid; expected the modules of 6.1.2"),
        ("./odd", "expected a kernel that says its release"),
        ("7", r"expected 6.1 or 6.12, or VMLINUZ\[:MODULES_DIR\], a path with a slash"),
    ],
)
def test_what_is_no_kernel(word: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused with the reason."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no kernel")
    image(Path("image"), "6.1.2 ")
    image(Path("odd"), "who knows")
    with pytest.raises(InvalidInput, match=f"--kernel: .*{message}"):
        find_kernel(word)


def test_modules_come_with_what_they_need(tmp_path: Path) -> None:
    """In the order of depmod; what is built in is left out, and names with - and _ are the same."""
    tree = tmp_path / "lib/modules/r/kernel"
    tree.mkdir(parents=True)
    for name, needs in {"top-most": "middle,low", "middle": "low,built_in", "low": ""}.items():
        (tree / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0retpoline=Y\0")
    (tmp_path / "lib/modules/r/modules.builtin").write_text("kernel/built-in.ko\n")
    kernel = Kernel("6.1", "r", "v", tmp_path)

    found = {name: data for name, _, data, _ in unpack(newc(module_tree(kernel, ["top_most", "built-in"], "usr/lib")))}
    assert sorted(found) == [
        *("usr/lib/modules", "usr/lib/modules/r"),
        *(f"usr/lib/modules/r/{name}" for name in ("low.ko", "middle.ko", "modules.dep", "top_most.ko")),
    ]
    assert sorted(found["usr/lib/modules/r/modules.dep"].decode().splitlines()) == [
        "low.ko:",
        "middle.ko: low.ko",
        "top_most.ko: middle.ko low.ko",
    ]
    assert load_order(kernel, ["top_most", "built-in", "low"]) == ["low", "middle", "top_most"]
    assert load_order(kernel, ["middle", "top_most"]) == ["low", "middle", "top_most"]
    with pytest.raises(LabError, match="the kernel r has no module other"):
        list(module_tree(kernel, ["other"], "lib"))


# -- the console


def test_a_console_on_a_terminal() -> None:
    """Keys go in as they are, output comes out, and the terminal is as before when the guest has ended."""
    ours, theirs = pty.openpty()
    guest, console = socket.socketpair()
    before = termios.tcgetattr(theirs)
    sizes: list[tuple[int, int]] = []
    ended: list[bool] = []
    done, was_raw = os.pipe(), threading.Event()

    def resized(columns: int, rows: int) -> None:
        sizes.append((columns, rows))
        assert not termios.tcgetattr(theirs)[3] & termios.ICANON
        was_raw.set()

    def be_the_guest() -> None:
        was_raw.wait(30)
        os.write(ours, b"\x03\r")
        got = b""
        while len(got) < 2:
            got += guest.recv(10)
        guest.sendall(got.hex().encode())
        guest.close()

    player = threading.Thread(target=be_the_guest)
    player.start()
    ended.append(relay(console, resized, theirs, done[1]))
    player.join(30)

    assert ended == [True]
    assert os.read(done[0], 100) == b"030d"
    assert len(sizes) == 1
    assert termios.tcgetattr(theirs) == before
    console.close()
    for descriptor in (ours, theirs, *done):
        os.close(descriptor)


def test_the_key_that_ends_a_guest() -> None:
    """Ctrl-] is no key of the guest's."""
    ours, theirs = pty.openpty()
    guest, console = socket.socketpair()
    before = termios.tcgetattr(theirs)
    assert (
        relay(console, lambda columns, rows: os.write(ours, b"\x1d") and None, theirs, os.open(os.devnull, os.O_WRONLY)) is False
    )
    assert termios.tcgetattr(theirs) == before
    for end in (guest, console):
        end.close()
    for descriptor in (ours, theirs):
        os.close(descriptor)


def test_the_commands_say_what_they_take() -> None:
    """Help is there without QEMU, and without its library."""
    program = "import sys; sys.modules['qemu.qmp'] = None; from memhp.cli import main; main(['lab', 'boot', '--help'])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert set(re.findall(r"--[a-z-]+", ran.stdout)) >= {
        "--kernel",
        "--node",
        "--virtio-mem",
        "--append",
        "--name",
        "--add",
        "--run",
    }
