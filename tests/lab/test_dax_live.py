"""dax/kmem in real kernels, on memory that ``memmap=`` keeps as persistent, and the same on the model."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from memhp import HotplugError, Machine, Rules
from memhp.errors import errno_name
from memhp.kernel.drivers import DaxKmem
from memhp.lab import kernels
from memhp.lab.boot import Session

pytestmark = [pytest.mark.qemu, pytest.mark.parametrize("series", tuple(kernels.SERIES))]

GIB = 1 << 30
MIB = 1 << 20
MEMORY = "/sys/devices/system/memory"
DAX = "/sys/bus/dax/drivers"
NVDIMM = "/sys/bus/nd/devices/dax0.0"

# The region's first 2 MiB say that it is for dax; the device is what is behind them.
MAKE_DEVICE = f"""\
for module in nd_e820 device_dax dax_pmem kmem; do modprobe $module; done
cat /proc/sys/kernel/random/uuid > {NVDIMM}/uuid
echo ram > {NVDIMM}/mode
echo {2 * MIB} > {NVDIMM}/align
echo namespace0.0 > {NVDIMM}/namespace
echo dax0.0 > /sys/bus/nd/drivers/dax_pmem/bind
ls /sys/bus/dax/drivers/device_dax/dax0.0 >/dev/null
echo dax0.0 > {DAX}/device_dax/unbind
cat /sys/bus/dax/devices/dax0.0/resource /sys/bus/dax/devices/dax0.0/size
"""
WRITE = "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), sys.argv[2].encode())"
BLOCKS = f"cd {MEMORY}; for b in memory3[2-5]; do [ -e $b ] && echo $b $(cat $b/state $b/valid_zones); done; :"
SHOWN = re.compile(r"\S+ : (?:dax0\.0|System RAM \(kmem\))")

FREE: list[str] = []
BOUND = ["108000000-11fffffff : dax0.0", "108000000-11fffffff : System RAM (kmem)"]
OFFLINE = [f"memory{number} offline Normal Movable" for number in (33, 34, 35)]
STORY = [
    ("bind", "ok", OFFLINE, BOUND),
    ("unbind", "ok", [], FREE),
    ("bind", "ok", OFFLINE, BOUND),
    ("memory34 online_movable", "ok", [OFFLINE[0], "memory34 online Movable", OFFLINE[2]], BOUND),
    ("unbind", "ok", [OFFLINE[0], "memory34 online Movable", OFFLINE[2]], BOUND),
    ("bind", "EBUSY", [OFFLINE[0], "memory34 online Movable", OFFLINE[2]], BOUND),
    ("memory34 offline", "ok", OFFLINE, BOUND),
    ("bind", "EBUSY", OFFLINE, BOUND),
]
"""What is done, how it ends, the blocks then, and the lines of /proc/iomem."""

DEVICE_ZONE = re.compile(r"zone +Device\n(?: +(?:pages )?\w+ +\d+\n)+")
EMPTY = ["pages free 0", "boost 0", "min 0", "low 0", "high 0", "spanned 131072", "present 0", "managed 0", "cma 0"]
"""What /proc/zoneinfo says while the driver device_dax has the device, and since: the span never shrinks."""

Happened = list[tuple[str, str, list[str], list[str]]]


@pytest.mark.fact("10.5")
def test_the_driver_s_memory_comes_goes_and_leaks_as_on_the_model(series: str) -> None:
    """A part of a block is not used; a range with an online block at unbind stays until the next boot, and so does its claim."""
    assert on_the_model(Rules.of(series)) == STORY
    assert in_a_guest(series) == STORY


def device_zone(zoneinfo: str) -> list[str]:
    """Give the lines of the one ZONE_DEVICE, but for ``promo``, which 6.12 has."""
    [found] = DEVICE_ZONE.findall(zoneinfo)
    return [" ".join(line.split()) for line in found.splitlines()[1:] if "promo" not in line]


def on_the_model(rules: Rules) -> Happened:
    machine = Machine.boot(["3GiB"], rules=rules, parameters={"memhp_default_state": "offline"})
    mapped = machine.device_memory.memremap_pages(0, 4 * GIB, 512 * MIB)
    assert device_zone(machine.tree.read("/proc/zoneinfo")) == EMPTY
    machine.device_memory.memunmap_pages(mapped)
    assert device_zone(machine.tree.read("/proc/zoneinfo")) == EMPTY
    device = DaxKmem(machine, 0, [(4 * GIB + 2 * MIB, 510 * MIB)])

    def do(what: str) -> str:
        block, _, word = what.partition(" ")
        act: Callable[[], object] = {"bind": device.probe, "unbind": device.unbind}.get(
            what, lambda: machine.tree.write(f"{MEMORY}/{block}/state", word)
        )
        try:
            act()
        except HotplugError as error:
            return errno_name(error.errno or 0)
        return "ok"

    def blocks() -> list[str]:
        found = (number for number in range(32, 36) if machine.tree.exists(f"{MEMORY}/memory{number}"))
        files = ("state", "valid_zones")
        return [
            " ".join([f"memory{n}", *(machine.tree.read(f"{MEMORY}/memory{n}/{file}").strip() for file in files)]) for n in found
        ]

    return [(what, do(what), blocks(), SHOWN.findall(machine.tree.read("/proc/iomem"))) for what, *_ in STORY]


def in_a_guest(series: str) -> Happened:
    modules = ["nd_e820", "device_dax", "dax_pmem", "kmem"]
    # 3 GiB are below 4 GiB; the last 512 MiB are at 4 GiB.
    with Session(series, ["3584MiB"], parameters="memhp_default_state=offline memmap=512M!4G", modules=modules) as guest:
        assert guest.run(MAKE_DEVICE) == (0, f"{4 * GIB + 2 * MIB:#x}\n{510 * MIB}\n")
        assert device_zone(guest.run("cat /proc/zoneinfo").output) == EMPTY
        # The driver takes a device whose name it has been told, at once.
        paths = iter(["kmem/new_id", *["kmem/bind"] * len(STORY)])

        def do(what: str) -> str:
            if what in {"bind", "unbind"}:
                words = [f"{DAX}/{next(paths) if what == 'bind' else 'kmem/unbind'}", "dax0.0"]
            else:
                block, word = what.split()
                words = [f"{MEMORY}/{block}/state", word]
            status, said = guest.run(["python3", "-c", WRITE, *words])
            return "ok" if not status else errno_name(int(re.findall(r"\[Errno (\d+)\]", said)[0]))

        return [
            (what, do(what), guest.run(BLOCKS).output.splitlines(), SHOWN.findall(guest.run("cat /proc/iomem").output))
            for what, *_ in STORY
        ]
