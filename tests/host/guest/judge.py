"""Run in a guest: fill its memory with all kinds of pages, explain every block, then try every block, and print both as JSON."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import sys
from pathlib import Path

from memhp.host import Host

MEMORY = "/sys/devices/system/memory"
MIB = 1 << 20
SHM = Path("/dev/shm")  # noqa: S108 - the guest's own
MAP_HUGETLB = 0x40000
ALARM = 20
PAGES = 32768
"""Pages of a block."""


def fill() -> list[object]:
    """Take memory of each kind; what is returned keeps it."""
    kept: list[object] = []
    anonymous = mmap.mmap(-1, 200 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, len(anonymous), 4096):
        anonymous[page] = 1
    kept.append(anonymous)
    (SHM / "file").write_bytes(os.urandom(MIB) * 150)
    for number in range(20_000):  # dentries and inodes: slab
        (SHM / f"{number}").touch()
    Path("/proc/sys/vm/nr_hugepages").write_text("40\n")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    huge = libc.mmap(None, 16 * MIB, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB, -1, 0)
    ctypes.memset(huge, 1, 16 * MIB)
    return kept


def pin() -> tuple[object, int]:
    """Have a page of this process in a pipe, from where it can't move; give it and its pfn."""
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[0] = 1
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    reading, writing = os.pipe()
    vector = (ctypes.c_size_t * 2)(address, len(page))
    spliced = ctypes.CDLL(None, use_errno=True).vmsplice(writing, ctypes.byref(vector), 1, 0)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(address // 4096 * 8)
        pfn = int.from_bytes(file.read(8), "little") & ((1 << 55) - 1)
    return (page, reading, writing, spliced), pfn


class Alarm(Exception):
    """Time is up."""


def attempt(number: int, word: str) -> str:
    """Write to the block's state; the errno's name, or ''."""

    def ring(*_: object) -> None:
        raise Alarm

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(ALARM)
    try:
        descriptor = os.open(f"{MEMORY}/memory{number}/state", os.O_WRONLY)
        try:
            os.write(descriptor, word.encode())
        finally:
            os.close(descriptor)
    except Alarm:
        return "EINTR"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    finally:
        signal.alarm(0)
    return ""


def main() -> None:
    """Print one JSON object."""
    for block in Host().blocks():
        if block.state == "offline":
            attempt(int(block.id), "online_movable")
    kept = fill()
    pin_kept, pfn = pin()
    kept.append(pin_kept)
    found = []
    for number in [int(block.id) for block in Host().blocks()]:
        known = Host().explain([number])[0]
        came = attempt(number, "offline")
        if not came:
            attempt(number, "online_movable" if known.block.zone == "Movable" else "online_kernel")
        kinds = {kind.label: pages for kind, pages in (known.pages or {}).items()}
        found.append(
            {
                "id": number,
                "zone": known.block.zone,
                "verdict": known.verdict.value,
                "said": known.sentence,
                "pages": kinds,
                "came": came,
            }
        )
    sys.stdout.write(
        json.dumps({"release": os.uname().release, "kept": len(kept), "pinned": pfn // PAGES, "blocks": found}) + "\n"
    )


main()
