"""A machine of 1 TiB in 8,192 blocks: how long it boots, what it weighs, how fast its files are read.

Each run is a process of its own, as a user would start one: the garbage collector is on. Memory is the peak of that
process by /proc/self/status (ru_maxrss of a child begins at its parent's peak).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import Figure, duration, heading, peak_memory, quiet, table
from memhp import Machine

PROCESSES = 5
READINGS = 7
MEMORY = "/sys/devices/system/memory"
BLOCKS = 8192
_MIB = 1 << 20


def run() -> list[Figure]:
    """Boot it a few times and take the medians."""
    heading("a machine of 1 TiB, 8,192 blocks of 128 MiB")
    with quiet():
        runs = [_in_a_process() for _ in range(PROCESSES)]
    value = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
    rows = [
        ("boot", duration(value["boot"])),
        ("peak memory of the process", f"{value['peak'] / _MIB:.1f} MiB"),
        ("  of it before the boot", f"{value['before'] / _MIB:.1f} MiB"),
        ("  for one block", f"{(value['peak'] - value['before']) / BLOCKS:,.0f} bytes"),
        ("read all state files", duration(value["read"])),
        ("  one of them", duration(value["read"] / BLOCKS)),
        ("list the memory directory", duration(value["list"])),
    ]
    table(("", "median"), rows)
    return [
        Figure("boot of 1 TiB", "< 0.5 s", duration(value["boot"]), value["boot"] < 0.5),
        Figure("memory of 1 TiB, whole process", "< 200 MiB", f"{value['peak'] / _MIB:.1f} MiB", value["peak"] < 200 * _MIB),
        Figure("read 8,192 state files", "< 50 ms", duration(value["read"]), value["read"] < 0.05),
    ]


def _in_a_process() -> dict[str, float]:
    command = [sys.executable, "-m", "bench.boot"]
    root = Path(__file__).resolve().parent.parent
    text = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout  # noqa: S603 - this very file
    measured: dict[str, float] = json.loads(text)
    return measured


def _measure() -> dict[str, float]:
    before = peak_memory()
    begin = time.perf_counter()
    machine = Machine.boot("1TiB", block_size="128MiB")
    booted = time.perf_counter() - begin
    peak = peak_memory()
    tree = machine.tree
    paths = [f"{MEMORY}/memory{number}/state" for number in machine.blocks]
    if len(paths) != BLOCKS:
        raise RuntimeError(f"{len(paths)} blocks, not {BLOCKS}")

    def read_all() -> None:
        for path in paths:
            tree.read(path)

    return {
        "boot": booted,
        "before": before,
        "peak": peak,
        "read": _median_time(read_all),
        "list": _median_time(lambda: tree.list(MEMORY)),
    }


def _median_time(act: Callable[[], object]) -> float:
    times = []
    for _ in range(READINGS):
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    json.dump(_measure(), sys.stdout)
    sys.stdout.flush()
    os._exit(0)
