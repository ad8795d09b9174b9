"""The page allocator: in bulk beside NumPy writing the same arrays, single pages, an offline, and machines up to 16 TiB.

What has a limit in seconds and no peer is measured in CPU time: these run in one thread, so on an idle machine it is the time
that they take, and on a busy one it is nearly so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import repeat
from pathlib import Path

import numpy as np

from bench.measure import Figure, Runner, duration, heading, median, peak_memory, quiet, race, ratio, ratio_figure, table
from memhp import Machine
from memhp.kernel.pagemap import Page, PageArray
from memhp.study import fill
from memhp.units import BlockId

NR_PAGES = (1 << 30) >> 12
SIZES = ("64GiB", "256GiB", "1TiB", "4TiB", "16TiB")
SHARE = 0.6
OFFLINES = 15
_MIB = 1 << 20


def run() -> list[Figure]:
    """Race the bulk calls against NumPy, time the others, and print how large machines grow."""
    return [*_bulk(), *_single(), *_offline(), *_large()]


# -- in bulk


def _bulk() -> list[Figure]:
    heading("allocate and free 1 GiB as pages of order 0, freed in random order")
    order = np.random.default_rng(1).permutation(NR_PAGES)
    with quiet():
        results = race({"memhp": _memhp(order), "NumPy, the same arrays once": _numpy(order)}, rounds=7)
    rows = [(name, duration(median(seconds)), f"{median(seconds) / NR_PAGES * 1e9:.1f} ns") for name, seconds in results.items()]
    table(("", "median", "a page"), rows)
    return [ratio_figure("bulk, memhp / NumPy", 5, ratio(results, "memhp", "NumPy, the same arrays once"))]


def _memhp(order: np.ndarray) -> Runner:
    pages = Machine.boot("4GiB").pages
    held = pages.alloc_pages_bulk(NR_PAGES)
    pfns = held.pfns[order]  # the allocator gives the same pages each time
    pages.free_pages_bulk(held, pfns)

    def runner(times: int) -> None:
        for _ in repeat(None, times):
            pages.free_pages_bulk(pages.alloc_pages_bulk(NR_PAGES), pfns)

    return runner


def _numpy(order: np.ndarray) -> Runner:
    kind, owner, index = np.zeros(NR_PAGES, np.uint8), np.zeros(NR_PAGES, np.uint32), np.zeros(NR_PAGES, np.uint32)
    places = np.arange(NR_PAGES, dtype=np.uint32)

    def runner(times: int) -> None:
        for _ in repeat(None, times):
            kind[order], owner[order], index[order] = 2, 7, places
            kind[order], owner[order] = 0, 0

    return runner


# -- one at a time


def _single() -> list[Figure]:
    heading("alloc_pages() and free_pages() of order 0, 10,000 in a row")
    pages = Machine.boot("4GiB").pages
    count = 10_000
    taken, given = [], []
    with quiet():
        for _ in range(15):
            begin = time.process_time()
            held = [pages.alloc_pages() for _ in repeat(None, count)]
            middle = time.process_time()
            for page in held:
                pages.free_pages(page)
            end = time.process_time()
            taken.append((middle - begin) / count)
            given.append((end - middle) / count)
    table(("", "median"), [("alloc_pages", duration(median(taken))), ("free_pages", duration(median(given)))])
    return [
        Figure(f"single {name}", "< 3 us", duration(median(values)), median(values) < 3e-6)
        for name, values in (("alloc_pages", taken), ("free_pages", given))
    ]


def _offline() -> list[Figure]:
    heading("offline of a block of 128 MiB full of movable pages of order 0")
    machine = Machine.boot("4GiB", block_size="128MiB")
    (block,) = machine.add_memory(0, machine.next_room(machine.block_size), machine.block_size)
    rows, seconds = [], []
    with quiet():
        for holders in (1, 8, 512, 32768):
            times = [_time_of_offline(machine, block, holders) for _ in range(OFFLINES)]
            seconds.append(median(times))
            rows.append((f"{holders:,}", duration(seconds[-1]), f"{seconds[-1] / 32768 * 1e9:.0f} ns"))
    table(("held by", f"median of {OFFLINES}", "a page"), rows)
    return [Figure("offline of a full block, one holder", "< 5 ms", duration(seconds[0]), seconds[0] < 5e-3)]


def _time_of_offline(machine: Machine, block: BlockId, holders: int) -> float:
    pages = machine.pages
    machine.device_online(block, "online_movable")
    if holders == 32768:
        held: list[Page | PageArray] = [pages.alloc_pages(emergency=True) for _ in range(holders)]
    else:
        held = [pages.alloc_pages_bulk(32768 // holders, emergency=True) for _ in range(holders)]
    left = pages.count_used(machine.blocks[block])
    if left != 32768:
        raise RuntimeError(f"{left} of the 32,768 pages are in {block}")
    begin = time.process_time()
    machine.device_offline(block)
    spent = time.process_time() - begin
    for one in held:
        machine.free_pages(one)
    return spent


# -- large machines


def _large() -> list[Figure]:
    heading(f"machines with blocks of 128 MiB, filled to {SHARE:.0%} by the workload `database`; a process each")
    rows, last = [], {"boot": 0.0, "fill": 0.0, "peak": 0.0}
    for size in SIZES:
        command = [sys.executable, "-m", "bench.pages", size]
        text = subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, check=True, capture_output=True, text=True)  # noqa: S603
        last = json.loads(text.stdout)
        a_block = (last["boot"] + last["fill"]) / last["blocks"]
        rows.append(
            (
                size,
                f"{last['blocks']:,.0f}",
                duration(last["boot"]),
                duration(last["fill"]),
                duration(a_block),
                f"{last['peak'] / _MIB:,.0f} MiB",
                f"{(last['peak'] - last['before']) / last['blocks'] / 1024:.1f} KiB",
                f"{last['used']:.1%}",
            )
        )
    table(("", "blocks", "boot", "fill", "a block", "peak", "a block", "in use"), rows)
    taken = last["boot"] + last["fill"]
    return [
        Figure("16 TiB, boot and fill", "< 10 s", duration(taken), taken < 10),
        Figure("16 TiB, memory of the process", "< 4 GiB", f"{last['peak'] / 2**30:.2f} GiB", last["peak"] < 4 << 30),
    ]


def _measure(size: str) -> dict[str, float]:
    before = peak_memory()
    begin = time.process_time()
    machine = Machine.boot(size, block_size="128MiB")
    booted = time.process_time()
    filled = fill(machine, "database", SHARE, seed=1)
    end = time.process_time()
    return {
        "blocks": len(machine.blocks),
        "boot": booted - begin,
        "fill": end - booted,
        "before": before,
        "peak": peak_memory(),
        "used": filled.nr_pages * 4096 / machine.memory_total,
    }


if __name__ == "__main__":
    json.dump(_measure(sys.argv[1]), sys.stdout)
    sys.stdout.flush()
    os._exit(0)
