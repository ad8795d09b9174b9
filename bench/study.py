"""``memhp study``: two processes beside one.

The time that counts is what it would take if each process had a CPU of its own: the CPU seconds of one process, and those of the
slower one of two with what their parent does meanwhile. Start-up, imports and an uneven end are in them, and so is what the two
take from each other (caches, memory); what somebody else does on the machine is not. The clock on the wall stands beside it.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

from bench.measure import Figure, duration, heading, table
from memhp.study.plan import Study, load_study
from memhp.study.run import run_study

STUDY = """\
study: for the clock
machine: {nodes: [8GiB]}
vary: {workload: [database, build, cache, vmhost], fill: 60%, age: 1}
seeds: 1-4
"""


def run() -> list[Figure]:
    """Run the same study once in this process and once in two others."""
    heading("a study of 16 runs")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "study.yaml"
        path.write_text(STUDY)
        study = load_study(path)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    one, two = _measure(study, 1), _measure(study, 2)
    rows = [("1 process", *map(duration, one)), ("2 processes", *map(duration, two))]
    rows.append(("one / two", *(f"{before / after:.2f} x" for before, after in zip(one, two, strict=True))))
    table(("", "on a CPU each", "on the wall"), rows)
    faster = one[0] / two[0]
    return [Figure("study, two processes / one", ">= 1.7 x as fast", f"{faster:.2f} x", faster >= 1.7)]


def _measure(study: Study, jobs: int) -> tuple[float, float]:
    # Gives the CPU seconds of the longest way through, and the seconds on the wall.
    of_workers: dict[int, float] = {}

    def look(_finished: int, _total: int) -> None:
        for worker in multiprocessing.active_children():
            of_workers[worker.pid or 0] = _cpu_seconds(worker.pid or 0)

    begin, before = time.perf_counter(), time.process_time()
    run_study(study, jobs=jobs, done=look)
    own, wall = time.process_time() - before, time.perf_counter() - begin
    return own + max(of_workers.values(), default=0.0), wall


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
