"""Run in a guest: chmem and memhp take 1 GiB offline in turn. Prints JSON: seconds, tries in vain, and pages that moved.

Every second block of node 1 has a hole (the kernel's parameter ``memmap=64K$ADDRESS``), so it stays. The four highest of the
others are filled with a process's pages, anew for each try.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from memhp.host import Host

FULL = 4
ROUNDS = 5
MEMORY = Path("/sys/devices/system/memory")


def write(number: int, word: str) -> None:
    """Change a block without either of the two."""
    (MEMORY / f"memory{number}/state").write_text(word)


def states() -> dict[int, str]:
    """Give each block's state and zone."""
    return {int(block.id): f"{block.state} {block.zone}" for block in Host().blocks()}


def migrated() -> int:
    """Count the pages that were moved since boot."""
    found = re.search(r"pgmigrate_success (\d+)", Path("/proc/vmstat").read_text())
    return int(found[1]) if found else 0


def choose() -> list[int]:
    """Put the highest blocks that would go into ZONE_MOVABLE, where pages of processes go first."""
    good = [int(known.block.id) for known in Host().explain() if known.certain and known.node == 1][-FULL:]
    for number in good:
        write(number, "offline")
        write(number, "online_movable")
    return good


def fill() -> mmap.mmap:
    """Have pages in those blocks."""
    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.c_ulong(1 << 1)
    libc.syscall(238, 2, ctypes.byref(mask), 64)  # set_mempolicy(MPOL_BIND, node 1)
    pages = mmap.mmap(-1, FULL * 120 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, len(pages), 4096):
        pages[offset] = 1
    libc.syscall(238, 0, None, 0)
    return pages


def measured(command: list[str]) -> dict[str, Any]:
    """Run it, and put back what went."""
    pages = fill()
    before, moved = states(), migrated()
    begun = time.monotonic()
    done = subprocess.run(["/usr/bin/env", *command], capture_output=True, text=True, check=False)  # noqa: S603
    seconds = time.monotonic() - begun
    moved = migrated() - moved
    gone = [number for number, state in states().items() if state != before[number]]
    pages.close()
    for number in gone:
        write(number, "online_movable" if before[number].endswith("Movable") else "online_kernel")
    told = json.loads(done.stdout) if command[0] == "memhp" else {}
    vain = told["vain"] if told else len(re.findall("disable failed", done.stdout + done.stderr))
    return {
        "code": done.returncode,
        "seconds": seconds,
        "change": told.get("seconds"),
        "vain": vain,
        "blocks": gone,
        "moved": moved,
    }


def main() -> None:
    """Measure both in turn."""
    full = choose()
    verdicts = {int(known.block.id): known.verdict.value for known in Host().explain()}
    rounds: dict[str, list[dict[str, Any]]] = {"chmem": [], "memhp": []}
    for _ in range(ROUNDS):
        rounds["memhp"].append(measured(["memhp", "offline", "1G", "--json", "--keep-free", "0"]))
        rounds["chmem"].append(measured(["chmem", "-v", "-d", "1g"]))
    sys.stdout.write(json.dumps({"full": full, "verdicts": verdicts, **rounds}) + "\n")


main()
