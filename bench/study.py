"""``memhp study``: two processes beside one."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from bench.measure import Figure, duration, heading, table
from memhp.study.plan import load_study
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
    seconds = {}
    for jobs in (1, 2):
        begin = time.perf_counter()
        run_study(study, jobs=jobs)
        seconds[jobs] = time.perf_counter() - begin
    faster = seconds[1] / seconds[2]
    table(("", "time"), [(f"{jobs} process{'es' if jobs > 1 else ''}", duration(value)) for jobs, value in seconds.items()])
    return [Figure("study, two processes / one", ">= 1.7 x as fast", f"{faster:.2f} x", faster >= 1.7)]
