"""Running a study: in processes of this machine, or on a Dask cluster. The rows are the same, and in the same order."""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from memhp.errors import InvalidInput, ScenarioError
from memhp.study.measure import Row, run_point
from memhp.study.plan import Point, Study

__all__ = ["run_study"]


def run_study(study: Study, *, jobs: int = 1, scheduler: str = "", done: Callable[[int, int], None] | None = None) -> list[Row]:
    """Do every run of a study.

    Args:
        study: what to run.
        jobs: how many processes; with 1, everything happens in this one.
        scheduler: the address of a Dask scheduler (``tcp://host:8786``), whose workers have memhp; jobs don't matter then.
        done: hears how many runs are done, of how many, after each.

    Raises:
        InvalidInput: no number of processes, or nobody answers at the scheduler's address.
        ScenarioError: a scenario with callbacks in Python, for a scheduler.
    """
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise InvalidInput(jobs, "jobs", "a number of processes, at least 1")
    if scheduler and study.scenario is not None:
        for spec in study.scenario.callbacks:
            if spec.call:
                expected = "no Python functions on other machines, which may not have them"
                raise ScenarioError(spec.call, str(study.scenario.file), spec.line, expected, f"callbacks: {spec.name}: call")
    points = list(study.points())
    told = done or (lambda _finished, _total: None)
    if scheduler:
        return _on_dask(points, scheduler, told)
    if jobs == 1 or len(points) == 1:
        rows = []
        for point in points:
            rows.append(run_point(point))
            told(len(rows), len(points))
        return rows
    # Not forked: this process may have threads, and a fork would have their locks as they were.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(jobs, len(points)), context, _begin) as pool:
        futures = [pool.submit(run_point, point) for point in points]
        try:
            return _collect(futures, concurrent.futures.as_completed(futures), told)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    threading.Thread(target=_end_with_parent, name="memhp study", daemon=True).start()
    # What the library logs is in the rows; the caller's own settings don't reach another process.
    log = logging.getLogger("memhp")
    log.addHandler(logging.NullHandler())
    log.propagate = False


def _end_with_parent() -> None:
    # A pool's processes wait for work for ever if the one that has it was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _collect(futures: list[Any], completed: Iterable[Any], told: Callable[[int, int], None]) -> list[Row]:
    for count, future in enumerate(completed, 1):
        future.result()
        told(count, len(futures))
    return [future.result() for future in futures]


def _on_dask(points: list[Point], scheduler: str, told: Callable[[int, int], None]) -> list[Row]:
    try:
        from distributed import Client, as_completed  # noqa: PLC0415 - an extra, and heavy
    except ImportError as error:
        raise InvalidInput(scheduler, "--scheduler", "Dask (pip install 'memhp[dask]')") from error
    try:
        client = Client(scheduler, timeout=10)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InvalidInput(scheduler, "--scheduler", f"the address of a Dask scheduler ({error})") from error
    with client:
        futures = client.map(run_point, points, pure=False)
        return _collect(futures, as_completed(futures), told)  # type: ignore[no-untyped-call]
