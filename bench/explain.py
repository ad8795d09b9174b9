"""Explaining every block of this machine against the kernel's own tool ``page-types``, which only totals the same flags.

The tool is in the kernel's sources (tools/vm or tools/mm); put it in the PATH, or name it in PAGE_TYPES. Without it, or without
root, there is nothing to compare.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess

from bench.measure import Figure, duration, heading, median, race, ratio, ratio_figure, table
from memhp.host import Host

_LIMIT = 0.85
_ROUNDS = 9


def run() -> list[Figure]:
    """Print the times; one figure, if both sides are here."""
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

    results = race({"explain": explain, "page-types": page_types}, rounds=_ROUNDS)
    rows = [[name, duration(median(times))] for name, times in results.items()]
    measured = ratio(results, "explain", "page-types")
    table(["", "all blocks"], [*rows, ["ratio", f"{measured:.2f}"]])
    return [ratio_figure("explain all blocks : page-types", _LIMIT, measured)]
