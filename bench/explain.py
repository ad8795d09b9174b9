"""Explaining every block of this machine against the kernel's own tool ``page-types``, which only totals the same flags.

Both read /proc/kpageflags, and what the kernel does for a page is nearly all of either's time. The tool reads it from the first
page frame to the last in one thread, and starts as a process, which takes a millisecond. explain reads the frames of the blocks
that are online, shares them out among the CPUs, and judges each block besides. So there are two comparisons: how long one waits,
and how much CPU time it takes, which the threads don't make less.

The tool is in the kernel's sources (tools/vm or tools/mm); put it in the PATH, or name it in PAGE_TYPES. Without it, or without
root, there is nothing to compare.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess

from bench.measure import Figure, Rounds, Runner, duration, heading, median, race, ratio, ratio_figure, table
from memhp.host import Host

_LIMIT = 0.85
_ROUNDS = 9


def run() -> list[Figure]:
    """Print the times; a figure, if both sides are here."""
    heading("explain of every block of this machine, warm, against page-types (whole process)")
    tool = os.environ.get("PAGE_TYPES") or shutil.which("page-types")
    if tool is None or not os.access("/proc/kpageflags", os.R_OK):
        print("left out: needs root, and page-types of the kernel's sources in the PATH or in PAGE_TYPES")
        return []
    importlib.import_module("numpy")  # warm: as in a program that runs
    host = Host()
    host.explain()

    def explain(times: int) -> None:
        for _ in range(times):
            host.explain()

    def page_types(times: int) -> None:
        for _ in range(times):
            subprocess.run([tool], stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - the tool that was asked for

    runners = {"explain": explain, "explain on one CPU": _on_one_cpu(explain), "page-types": page_types}
    waited, worked = race(runners, rounds=_ROUNDS), _cpu_times(runners)
    rows = [[name, duration(median(waited[name])), duration(median(worked[name]))] for name in runners]
    table(["", "all blocks", "CPU time"], rows)
    print(f"CPU time of explain : page-types {ratio(worked, 'explain', 'page-types'):.2f} x")
    return [ratio_figure("explain all blocks : page-types", _LIMIT, ratio(waited, "explain", "page-types"))]


def _on_one_cpu(runner: Runner) -> Runner:
    def on_one(times: int) -> None:
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cpus)})
        try:
            runner(times)
        finally:
            os.sched_setaffinity(0, cpus)

    return on_one


def _cpu_times(runners: dict[str, Runner]) -> Rounds:
    results: Rounds = {name: [] for name in runners}
    for _ in range(_ROUNDS):
        for name, runner in runners.items():
            before = os.times()
            runner(1)
            results[name].append(sum(os.times()[:4]) - sum(before[:4]))
    return results
