"""QEMU's command line, from the shape of a machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from memhp.kernel import NodeSpec
from memhp.lab.qemu import Shape, command_line

GIB = 1 << 30


def words(shape: Shape) -> list[str]:
    return command_line(shape, Path("/k/vmlinuz"), Path("/t/root.cpio"), Path("/t"))


def after(option: str, line: list[str]) -> list[str]:
    return [line[index + 1] for index, word in enumerate(line) if word == option]


def test_a_whole_command_line() -> None:
    """One node with memory, one without; TCG; two serial ports and a QMP socket in the guest's directory."""
    shape = Shape((NodeSpec(GIB), NodeSpec(0)), "memhp_default_state=offline", slots=4, room=8 * GIB)

    assert words(shape) == [
        *(
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=single",
            "-machine",
            "pc,nvdimm=off,max-ram-below-4g=3G",
            "-cpu",
            "max",
            "-smp",
            "1",
        ),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-m", "1024M,slots=4,maxmem=9216M"),
        *("-object", "memory-backend-ram,id=boot0,size=1073741824", "-numa", "node,nodeid=0,cpus=0-0,memdev=boot0"),
        *("-numa", "node,nodeid=1"),
        *("-kernel", "/k/vmlinuz", "-initrd", "/t/root.cpio"),
        *("-append", "console=ttyS0 loglevel=4 panic=-1 nokaslr memhp_default_state=offline"),
        *("-serial", "file:/t/console", "-serial", "unix:/t/agent"),
        *("-qmp", "unix:/t/qmp,server=on,wait=off", "-qmp", "unix:/t/control,server=on,wait=off"),
    ]


def test_memory_is_soft_reserved_by_the_kernel_s_command_line() -> None:
    """RAM of the e820 type 1 becomes 0xefffffff; the drivers are loaded in the order in which a boot loads them."""
    shape = Shape(
        (NodeSpec(3 * GIB), NodeSpec(GIB)), "quiet", soft_reserved=((4 * GIB, GIB // 2), (5 * GIB - GIB // 4, GIB // 8))
    )
    [parameters] = after("-append", words(shape))
    assert parameters.split()[4:] == [
        "memmap=0x20000000%0x100000000-1+0xefffffff",
        "memmap=0x8000000%0x130000000-1+0xefffffff",
        "quiet",
    ]
    assert shape.drivers == ("dax_hmem", "device_dax", "kmem")
    assert replace(shape, soft_reserved=()).drivers == ()


def test_processors_are_numbered_over_the_nodes() -> None:
    """Each node gets the processors that it counts."""
    line = words(Shape((NodeSpec(GIB, 2), NodeSpec(0), NodeSpec(GIB, 3))))

    assert after("-smp", line) == ["5"]
    assert after("-numa", line) == ["node,nodeid=0,cpus=0-1,memdev=boot0", "node,nodeid=1", "node,nodeid=2,cpus=2-4,memdev=boot2"]


def test_empty_sockets_come_behind_those_of_the_processors() -> None:
    """Node after node; they are taken by sockets of one processor. Only to take one out each needs a thread of its own."""
    shape = Shape((NodeSpec(GIB, 1, possible_cpus=2), NodeSpec(0, 0, possible_cpus=2)))
    line = words(shape)

    assert after("-smp", line) == ["1,maxcpus=4,sockets=4,cores=1,threads=1"]
    assert after("-numa", line) == ["node,nodeid=0,cpus=0-0,cpus=1-1,memdev=boot0", "node,nodeid=1,cpus=2-3"]
    assert after("-accel", line) == ["tcg,thread=single"]
    assert after("-accel", words(replace(shape, gives_cpus=True))) == ["tcg,thread=multi"]


def test_linux_takes_a_machine_with_empty_sockets_for_a_guest() -> None:
    """6.12 counts them only then; it looks for a serial number of VMware's where no leaf of CPUID names a hypervisor."""
    line = words(Shape((NodeSpec(GIB, 1, possible_cpus=2),), "memhp_default_state=offline"))

    assert after("-cpu", line) == ["max,-hypervisor"]
    assert after("-smbios", line) == ["type=1,serial=VMware,product=Standard PC (i440FX,, 1996)"]
    assert after("-append", line) == ["console=ttyS0 loglevel=4 panic=-1 nokaslr lpj=10000000 memhp_default_state=offline"]


def test_distances_are_given_between_different_nodes() -> None:
    """QEMU knows that a node is 10 from itself."""
    line = words(Shape((NodeSpec(GIB, 0, (10, 17)), NodeSpec(0, 0, (17, 10)))))

    assert after("-numa", line)[2:] == ["dist,src=0,dst=1,val=17", "dist,src=1,dst=0,val=17"]
