"""The command line of a guest: which machine QEMU plays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memhp.errors import InvalidInput
from memhp.kernel import NodeSpec
from memhp.kernel.layout import soft_ranges
from memhp.lab.modules import DAX_DRIVERS, VIRTIO_DRIVERS
from memhp.scenario.model import VirtioMem
from memhp.units import format_size

__all__ = ["QEMU", "Shape", "VirtioMem", "command_line", "cpus_of", "sockets_of"]

QEMU = "qemu-system-x86_64"
_HIGH = 4 << 30
_BOOT = "console=ttyS0 loglevel=4 panic=-1 nokaslr"
"""A panic ends the guest (with -no-reboot) rather than leave it standing."""
_GUEST_OF_VMWARE = ("-cpu", "max,-hypervisor", "-smbios", "type=1,serial=VMware,product=Standard PC (i440FX,, 1996)")
"""What makes Linux see a hypervisor that it knows: only then does 6.12 count empty sockets (acpi_is_processor_usable()).

It does not know TCG. Where no leaf of CPUID names one, it looks at the serial number, and asks a port that QEMU has
(vmware_platform()). The product's name is shorter by as much, so that the firmware's tables are as long as ever."""
_KNOWN_DELAY = "lpj=10000000"
"""Else 6.1 measures how fast a CPU is that comes up, which takes 2 s, and fails."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The machine of a guest.

    Attributes:
        nodes: as they boot.
        parameters: what is added to the kernel's command line.
        slots: how many DIMMs can be plugged in.
        room: bytes of memory that all of them can have.
        virtio: virtio-mem devices; their sizes are not part of the room.
        soft_reserved: ranges (start, size) of the memory at boot that shall be soft-reserved.
        gives_cpus: whether a CPU will be taken out; then each CPU is emulated in a thread of its own, which is less reliable.
    """

    nodes: tuple[NodeSpec, ...]
    parameters: str = ""
    slots: int = 16
    room: int = 64 << 30
    virtio: tuple[VirtioMem, ...] = ()
    soft_reserved: tuple[tuple[int, int], ...] = ()
    gives_cpus: bool = False

    @property
    def memory(self) -> int:
        """Bytes at boot."""
        return sum(node.memory for node in self.nodes)

    @property
    def most(self) -> int:
        """Bytes that it can ever have."""
        return self.memory + self.room + sum(device.size for device in self.virtio)

    @property
    def drivers(self) -> tuple[str, ...]:
        """The kernel's modules that its devices need, in the order in which they are loaded."""
        return (*(VIRTIO_DRIVERS if self.virtio else ()), *(DAX_DRIVERS if self.soft_reserved else ()))

    def __str__(self) -> str:
        text = " + ".join([*(format_size(node.memory) for node in self.nodes), *map(_virtio_text, self.virtio)])
        kept = sum(size for _, size in self.soft_reserved)
        return f"{text}, {format_size(kept)} of it soft-reserved" if kept else text


def _virtio_text(device: VirtioMem) -> str:
    return f"virtio-mem {device.name} up to {format_size(device.size)} (node {device.node})"


def command_line(shape: Shape, kernel: Path, root: Path, directory: Path, *, terminal: bool = False) -> list[str]:
    """Give QEMU's command line.

    Args:
        shape: the machine.
        kernel: vmlinuz.
        root: the initramfs.
        directory: where the sockets and the console's text go.
        terminal: whether the console is a socket as well as a file.
    """
    cpus, empty = sum(cpus_of(shape)), sum(sockets_of(shape))
    # TCG, because it works everywhere and the same; a guest that boots and runs a few steps has no use for more speed.
    # In one thread: with a thread for each CPU, a kernel that patches itself while another CPU runs there has panicked.
    # But in one thread QEMU can't take a CPU out: it would wait for its own end.
    threads = "multi" if shape.gives_cpus else "single"
    return [
        QEMU,
        *("-accel", f"tcg,thread={threads}", "-machine", "pc,nvdimm=off,max-ram-below-4g=3G"),
        *(_sockets(cpus, empty) if empty else ("-cpu", "max", "-smp", str(cpus))),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-m", f"{shape.memory >> 20}M,slots={shape.slots},maxmem={shape.most >> 20}M"),
        *_numa(shape),
        *(word for device in shape.virtio for word in _virtio(device)),
        *("-kernel", str(kernel), "-initrd", str(root), "-append", _parameters(shape)),
        *(_terminal(directory) if terminal else ("-serial", f"file:{directory / 'console'}")),
        *("-serial", f"unix:{directory / 'agent'}"),
        # One for who started it, one for others; QEMU serves one client of each at a time.
        *(word for name in ("qmp", "control") for word in ("-qmp", f"unix:{directory / name},server=on,wait=off")),
    ]


def _sockets(cpus: int, empty: int) -> list[str]:
    return [*_GUEST_OF_VMWARE, "-smp", f"{cpus},maxcpus={cpus + empty},sockets={cpus + empty},cores=1,threads=1"]


def _parameters(shape: Shape) -> str:
    delay = _KNOWN_DELAY if any(sockets_of(shape)) else ""
    return " ".join(filter(None, (_BOOT, delay, *_soft_reserved(shape), shape.parameters)))


def _terminal(directory: Path) -> tuple[str, ...]:
    text = f"socket,id=console,path={directory / 'tty'},logfile={directory / 'console'}"
    return ("-chardev", text, "-serial", "chardev:console")


def _soft_reserved(shape: Shape) -> list[str]:
    # As UEFI firmware would tell: e820 type 1, RAM, becomes 0xefffffff, soft reserved (arch/x86/kernel/e820.c).
    return [f"memmap={size:#x}%{start:#x}-1+0xefffffff" for start, size in shape.soft_reserved]


def _virtio(device: VirtioMem) -> list[str]:
    text = f"virtio-mem-pci,id={device.name},memdev=mem-{device.name},node={device.node},requested-size={device.requested}"
    if device.block:
        text += f",block-size={device.block}"
    return ["-object", f"memory-backend-ram,id=mem-{device.name},size={device.size},reserve=off", "-device", text]


def soft_reserved_of(nodes: Sequence[NodeSpec], given: object, where: str = "soft_reserved") -> tuple[tuple[int, int], ...]:
    """Give the ranges (start, size) of a guest's memory that are to be soft-reserved, by address.

    Raises:
        InvalidInput: as :func:`memhp.kernel.layout.soft_ranges`; or one is below 4 GiB, where QEMU puts what it boots.
    """
    kept = tuple((start, end - start) for _, start, end in soft_ranges(nodes, given, where))
    if kept and kept[0][0] < _HIGH:
        expected = (
            "ranges from 4 GiB on for a guest, because QEMU puts what it boots below (RAM is there if it has more than 3 GiB)"
        )
        raise InvalidInput(f"{kept[0][0]:#x}", where, expected)
    return kept


def cpus_of(shape: Shape) -> list[int]:
    """Give the CPUs of each node; every machine has one, whether its description counts any or not."""
    counts = [node.cpus for node in shape.nodes]
    return counts if any(counts) else [1, *counts[1:]]


def sockets_of(shape: Shape) -> list[int]:
    """Give the empty sockets of each node."""
    return [max(0, node.possible_cpus - count) for node, count in zip(shape.nodes, cpus_of(shape), strict=True)]


def _numa(shape: Shape) -> list[str]:
    words: list[str] = []
    first, empty = 0, sum(cpus_of(shape))
    for number, (node, count, sockets) in enumerate(zip(shape.nodes, cpus_of(shape), sockets_of(shape), strict=True)):
        has = f"node,nodeid={number}{_range(first, count)}{_range(empty, sockets)}"
        first, empty = first + count, empty + sockets
        if node.memory:
            words += ["-object", f"memory-backend-ram,id=boot{number},size={node.memory}"]
            has += f",memdev=boot{number}"
        words += ["-numa", has]
    return [*words, *_distances(shape.nodes)]


def _range(first: int, count: int) -> str:
    return f",cpus={first}-{first + count - 1}" if count else ""


def _distances(nodes: Sequence[NodeSpec]) -> list[str]:
    given = [
        (source, target, distance)
        for source, node in enumerate(nodes)
        for target, distance in enumerate(node.distances)
        if source != target
    ]
    return [word for triple in given for word in ("-numa", "dist,src={},dst={},val={}".format(*triple))]
