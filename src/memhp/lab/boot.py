"""A guest to work in: programs are run in it, and its memory is changed from outside.

::

    with Session("6.1", ["512MiB", 0]) as guest:
        dimm = guest.plug("256MiB", node=1)
        done = guest.run("memhp --version; cat /sys/devices/system/memory/memory32/state")
        assert done.status == 0, done.output
        guest.unplug(dimm)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from memhp.errors import GuestFailed, InvalidInput
from memhp.kernel import NodeSpec
from memhp.lab.guest import Guest, Hears
from memhp.lab.kernels import Kernel, find_kernel, userland
from memhp.lab.qemu import Shape, VirtioMem, soft_reserved_of
from memhp.lab.rootfs import Addition, shell_root
from memhp.units import format_size, parse_size

__all__ = ["Done", "Session", "make_shape", "read_node", "read_soft_reserved", "read_virtio"]

BLOCK = 128 << 20
_LEAST, _MOST = 512 << 20, 16 << 30
_ROOM = "64GiB"
_SLOTS = 255
"""As many as QEMU's machine has (ACPI_MAX_RAM_SLOTS is 256)."""
_VIRTIO_BLOCK = 2 << 20
_SHELL = ("/bin/bash", "-c")


class Done(NamedTuple):
    """How a program in the guest ended."""

    status: int
    """Its exit status; negative is the signal that ended it."""
    output: str
    """What it wrote, standard output and standard error as they came."""


class Session:
    """A guest with a shell's programs, Python with its library, and memhp; a context manager.

    The program that enters it must do so in a thread that lives as long as the guest.

    Args:
        kernel: ``6.1``, ``6.12``, ``VMLINUZ[:MODULES_DIR]`` (a path with a slash), or a kernel.
        nodes: memory of each node at boot, as in a scenario: ``"512MiB"``, 0, or a mapping with ``memory`` and ``cpus``.
        shape: the whole machine, in place of ``nodes``, ``virtio``, ``soft_reserved`` and ``parameters``.
        virtio: its virtio-mem devices.
        soft_reserved: ranges (start, size) of its memory, from 4 GiB on, that are dax devices.
        parameters: added to the kernel's command line.
        modules: of the kernel, for ``modprobe`` in the guest.
        add: files and directories of this machine, and their paths in the guest.
        name: by which others find it while it runs.
        patience: seconds that a boot, or one request, may take.
        shell: whether a shell runs on :attr:`Guest.terminal`; its end is the guest's.
        terminal: what ``TERM`` says to that shell.

    Raises:
        InvalidInput: the machine can't be built.
        LabMissing: QEMU, the kernel or the guest's programs aren't here.
        GuestFailed: it does not come up; with the console's last lines.
    """

    def __init__(
        self,
        kernel: str | Kernel,
        nodes: Sequence[object] = ("512MiB", 0),
        *,
        shape: Shape | None = None,
        virtio: Sequence[VirtioMem] = (),
        soft_reserved: Sequence[tuple[int, int]] = (),
        parameters: str = "",
        modules: Sequence[str] = (),
        add: Iterable[Addition] = (),
        name: str = "",
        patience: float = 60.0,
        shell: bool = False,
        terminal: str = "linux",
    ) -> None:
        found = find_kernel(kernel) if isinstance(kernel, str) else kernel
        self.shape = shape or make_shape(nodes, virtio=virtio, soft_reserved=soft_reserved, parameters=parameters)
        root = shell_root(
            userland(), found, shell=shell, drivers=self.shape.drivers, modules=modules, additions=add, terminal=terminal
        )
        self.guest = Guest(found, self.shape, patience=patience, name=name, root=root, terminal=shell)
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        self.guest.__enter__()
        try:
            if self.guest.terminal is None:
                self._check_virtio()
        except BaseException:
            self.guest.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.guest.__exit__(kind, error, trace)

    def _check_virtio(self) -> None:
        if self.shape.virtio and self.run(["test", "-e", "/sys/bus/virtio/drivers/virtio_mem"]).status:
            raise GuestFailed(f"the kernel {self.guest.kernel.release} has no driver of virtio-mem")

    def run(self, command: str | Sequence[str], *, patience: float = math.inf) -> Done:
        """Run a program in the guest until it ends; a string is a line for its shell.

        Raises:
            GuestErrno: there is no such program.
            GuestFailed: the guest ended, or the program did not within ``patience`` seconds.
        """
        parts: list[bytes] = []
        status = self.stream(command, lambda name, data: parts.append(data), patience=patience)
        return Done(status, b"".join(parts).decode(errors="backslashreplace"))

    def stream(self, command: str | Sequence[str], hears: Hears, *, patience: float = math.inf) -> int:
        """As :meth:`run`; what the program writes is given to ``hears`` as it comes, with ``out`` or ``err``."""
        words = [*_SHELL, command] if isinstance(command, str) else list(command)
        return self.guest.call(words, hears, patience=patience)

    def read(self, path: str) -> str:
        """Give a file's text; raises :class:`GuestErrno` with the guest's errno."""
        return self.guest.read(path)

    def write(self, path: str, text: str) -> None:
        """Write to a file that is there with one ``write()``; raises :class:`GuestErrno` with the guest's errno."""
        self.guest.write(path, text)

    def plug(self, size: int | str, node: int = 0, *, name: str = "", at: int | None = None) -> str:
        """Plug in a DIMM; gives its name when the guest's kernel has taken it.

        Args:
            size: in whole memory blocks of 128 MiB.
            node: whose memory it is.
            name: of the DIMM; one is made if none is given.
            at: its physical address; QEMU chooses if not given.

        Raises:
            InvalidInput: the size is no whole number of blocks.
            DimmRefused: QEMU or the guest's kernel does not take it.
        """
        taken = {device.name for device in self.guest.monitor.memory_devices()}
        name = name or next(word for word in map("dimm{}".format, itertools.count(1)) if word not in taken)
        self.guest.monitor.plug(name, whole_blocks(size), node, at, self.guest.patience)
        return name

    def unplug(self, name: str) -> None:
        """Pull a DIMM out; the guest's kernel takes its memory offline by itself.

        Raises:
            DimmRefused: the guest's kernel keeps it (EBUSY where its memory can't go offline), or there is none of that name.
            GuestFailed: the guest's kernel says nothing within the guest's patience.
        """
        self.guest.monitor.unplug(name, self.guest.patience)

    def resize(self, size: int | str, name: str = "vm0") -> int:
        """Ask the driver of a virtio-mem device for a size; gives the bytes that it has when it follows no further.

        That is less, or more, than was asked for where the guest can't follow within the guest's patience.

        Raises:
            DimmRefused: there is no such device, or it can't have such a size.
        """
        return self.guest.monitor.resize(name, parse_size(size, "size"), self.guest.patience)


def whole_blocks(size: int | str) -> int:
    """Read a size that must be whole memory blocks; raises InvalidInput."""
    number = parse_size(size, "SIZE")
    if number <= 0 or number % BLOCK:
        raise InvalidInput(size, "SIZE", f"whole memory blocks of {format_size(BLOCK)}")
    return number


# -- the machine


def make_shape(
    nodes: Sequence[object] = ("512MiB", 0),
    *,
    virtio: Sequence[VirtioMem] = (),
    soft_reserved: Sequence[tuple[int, int]] = (),
    parameters: str = "",
    slots: int = 16,
    room: int | str = _ROOM,
) -> Shape:
    """Check a guest's machine, and complete it.

    With a virtio-mem device and without ``memhp_default_state``, memory comes online by itself as ``online_movable``: nobody
    in the guest would do it otherwise, and the driver stops adding while much is offline (``virtio_mem_could_add_memory``).

    Raises:
        InvalidInput: it can't be built; names the argument.
    """
    specs = tuple(
        node if isinstance(node, NodeSpec) else NodeSpec.of(node, f"nodes[{number}]") for number, node in enumerate(nodes)
    )
    total = sum(node.memory for node in specs)
    if not _LEAST <= total <= _MOST or any(node.memory % BLOCK for node in specs):
        expected = f"nodes of whole blocks of {format_size(BLOCK)}, from {format_size(_LEAST)} to {format_size(_MOST)} together"
        raise InvalidInput(format_size(total), "--node", expected)
    if not 0 <= slots <= _SLOTS:
        raise InvalidInput(slots, "--slots", f"0 to {_SLOTS}")
    if slots and not parse_size(room, "--room"):
        raise InvalidInput(room, "--room", "more than nothing, as there are slots for DIMMs")
    devices = tuple(_checked(device, number, len(specs)) for number, device in enumerate(virtio))
    if devices and "memhp_default_state=" not in parameters:
        parameters = f"{parameters} memhp_default_state=online_movable".strip()
    kept = soft_reserved_of(specs, soft_reserved, "--soft-reserved")
    return Shape(specs, parameters, slots, parse_size(room, "--room") if slots else 0, devices, kept)


def _checked(device: VirtioMem, number: int, nodes: int) -> VirtioMem:
    block = device.block or _VIRTIO_BLOCK
    if not 0 <= device.node < nodes:
        raise InvalidInput(device.node, "--virtio-mem", f"a node from 0 to {nodes - 1}")
    if block < 1 << 20 or block & (block - 1):
        raise InvalidInput(format_size(block), "--virtio-mem: block", "a power of two of at least 1 MiB")
    if device.size <= 0 or device.size % max(block, BLOCK):
        raise InvalidInput(format_size(device.size), "--virtio-mem", f"a size of whole {format_size(max(block, BLOCK))}")
    if not 0 <= device.requested <= device.size or device.requested % block:
        expected = f"whole blocks of {format_size(block)}, at most {format_size(device.size)}"
        raise InvalidInput(format_size(device.requested), "--virtio-mem: requested", expected)
    return VirtioMem(device.node, device.size, device.requested, device.block, f"vm{number}")


def read_node(text: str) -> NodeSpec:
    """Read ``SIZE[,cpus=N]``.

    Raises:
        InvalidInput: it is not of that form.
    """
    size, options = _split(text, "--node", ("cpus",))
    cpus = options.get("cpus", "0")
    if not cpus.isdecimal():
        raise InvalidInput(cpus, "--node: cpus", "a number")
    return NodeSpec(parse_size(size, "--node"), int(cpus))


def read_virtio(text: str) -> VirtioMem:
    """Read ``NODE:SIZE[,requested=SIZE][,block=SIZE]``.

    Raises:
        InvalidInput: it is not of that form.
    """
    place, options = _split(text, "--virtio-mem", ("requested", "block"))
    node, colon, size = place.partition(":")
    if not colon or not node.isdecimal():
        raise InvalidInput(text, "--virtio-mem", "NODE:SIZE[,requested=SIZE][,block=SIZE], as in 1:4GiB,requested=1GiB")
    sizes = {name: parse_size(value, f"--virtio-mem: {name}") for name, value in options.items()}
    return VirtioMem(int(node), parse_size(size, "--virtio-mem"), sizes.get("requested", 0), sizes.get("block", 0))


def read_soft_reserved(text: str) -> tuple[int, int]:
    """Read ``AT:SIZE``.

    Raises:
        InvalidInput: it is not of that form.
    """
    place, colon, size = text.partition(":")
    if not colon:
        raise InvalidInput(text, "--soft-reserved", "AT:SIZE, as in 4GiB:1GiB")
    return parse_size(place, "--soft-reserved"), parse_size(size, "--soft-reserved")


def _split(text: str, where: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    first, *others = text.split(",")
    options: dict[str, str] = {}
    for other in others:
        name, equals, value = other.partition("=")
        if name not in known or not equals or name in options:
            raise InvalidInput(other, where, f"{' or '.join(f'{word}=…' for word in known)}, each at most once")
        options[name] = value
    return first, options


def shell_line(words: Sequence[str]) -> str | list[str]:
    """Give the words after ``--`` as something to run: one word alone is a line for the shell."""
    return words[0] if len(words) == 1 else list(words)


def script_addition(path: str) -> tuple[Addition, list[str]]:
    """Give what brings a script into the guest, and what runs it there: Python for ``.py``, else as its first line says.

    Raises:
        InvalidInput: there is no such file.
    """
    source = Path(path)
    if not source.is_file():
        raise InvalidInput(path, "--run", "a file that is there")
    inside = f"/root/{source.name}"
    first = source.read_bytes().partition(b"\n")[0].decode(errors="replace")
    program = ["python3"] if source.suffix == ".py" else first[2:].split() if first.startswith("#!") else ["bash"]
    return (source, inside), [*program, inside]
