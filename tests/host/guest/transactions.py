"""Run in a guest: memhp takes memory offline and online, with pages in the way, and is interrupted and killed; prints JSON."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

MEMORY = Path("/sys/devices/system/memory")
FIRST = 17
"""The first of six blocks of node 1 in ZONE_MOVABLE; the node's first and last have pages of the kernel's."""


def states() -> dict[str, str]:
    """Each block of node 1 with its state, or its zone if it is online."""
    found = {}
    for number in range(FIRST, FIRST + 6):
        block = MEMORY / f"memory{number}"
        state = (block / "state").read_text().strip()
        found[block.name] = (block / "valid_zones").read_text().strip() if state == "online" else state
    return found


def memhp(*words: str) -> dict[str, Any]:
    """Run the command; give its exit code, and what it printed."""
    done = subprocess.run(["/usr/bin/env", "memhp", *words], capture_output=True, text=True, check=False)
    return {"code": done.returncode, "out": done.stdout.splitlines(), "err": done.stderr.splitlines(), "states": states()}


def start(pfn: int, *words: str) -> subprocess.Popen[str]:
    """Start the command, and wait until the kernel says that it tries in vain to move that page (mm/memory_hotplug.c)."""
    with open("/dev/kmsg", "rb", buffering=0) as log:
        log.seek(0, os.SEEK_END)
        process = subprocess.Popen(["/usr/bin/env", "memhp", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while b"migrating pfn %x failed" % pfn not in log.read(8192):
            pass  # each read waits for the next message
    return process


def adopt_orphans() -> None:
    """Become the parent of processes whose own one dies, so that their end can be waited for."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for it; the same as :func:`memhp`."""
    out, err = process.communicate()
    return {"code": process.returncode, "out": out.splitlines(), "err": err.splitlines(), "states": states()}


def pin() -> tuple[object, int]:
    """Have a page of node 1 in a pipe, from where it can't move; give it and its pfn."""
    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.c_ulong(1 << 1)
    libc.syscall(238, 2, ctypes.byref(mask), 64)  # set_mempolicy(MPOL_BIND, node 1)
    pages = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages[0] = 1
    libc.syscall(238, 0, None, 0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    reading, writing = os.pipe()
    vector = (ctypes.c_size_t * 2)(address, 4096)
    libc.vmsplice(writing, ctypes.byref(vector), 1, 0)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(address // 4096 * 8)
        pfn = int.from_bytes(file.read(8), "little") & ((1 << 55) - 1)
    return (pages, reading, writing), pfn


def main() -> None:
    """Do one thing after the other."""
    blocks = f"{FIRST}-{FIRST + 5}"
    memhp("offline", blocks, "--keep-free", "0")
    memhp("online", blocks, "--zone", "movable")
    results: dict[str, Any] = {"release": os.uname().release, "begin": states()}
    results["amount"] = memhp("offline", "256M", "--node", "1", "--keep-free", "0")
    results["back"] = memhp("online", "256M", "--node", "1", "--zone", "movable")
    kept, pfn = pin()
    pinned = pfn // 32768
    other = FIRST if pinned != FIRST else FIRST + 1
    results["pinned"], results["pfn"], results["other"] = pinned, pfn, other
    both = f"{other},{pinned}"
    results["timeout"] = memhp("offline", both, "--timeout", "2", "--keep-free", "0")
    process = start(pfn, "offline", both, "--keep-free", "0")
    process.send_signal(signal.SIGINT)
    results["interrupted"] = ended(process)
    adopt_orphans()
    process = start(pfn, "offline", both, "--timeout", "0", "--keep-free", "0")
    process.kill()
    process.communicate()
    os.wait()  # for the process that writes, which the kernel kills then: its write has ended
    results["killed"] = states()
    third = FIRST + 2 if pinned != FIRST + 2 else FIRST + 3
    results["next run"] = memhp("offline", f"{third}", "--keep-free", "0")
    results["recovered"] = memhp("offline", "--recover")
    results["again"] = memhp("online", f"{third}", "--zone", "movable")
    results["end"] = states()
    sys.stdout.write(json.dumps({**results, "kept": kept is not None}) + "\n")


main()
