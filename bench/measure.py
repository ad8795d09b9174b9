"""How the figures are taken.

The garbage collector is off and the process stays on one CPU, competitors run in turn (A B C A B C ...), a value is the
median of the rounds, and a ratio is the median of the rounds' ratios: so a machine that drifts, or that others use too,
moves both sides alike. Numbers include the loop around what is measured (about 6 ns).
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 11
ROUND_SECONDS = 0.03
"""About how long one competitor runs in one round."""

Runner = Callable[[int], None]
"""Does the thing that is measured so many times."""

Rounds = dict[str, list[float]]
"""Seconds for one time, by competitor and round."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table at the end."""

    name: str
    target: str
    measured: str
    met: bool


def ratio_figure(name: str, limit: float, measured: float) -> Figure:
    """Make the line of a ratio that may be at most ``limit``."""
    return Figure(name, f"<= {limit:.2f} x", f"{measured:.2f} x", measured <= limit)


def peak_memory() -> float:
    """Give the most memory that this process has had, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn the garbage collector off and stay on one CPU, if that is allowed; for code with one thread."""
    cpus = _pin()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if cpus:
            os.sched_setaffinity(0, cpus)


def _pin() -> set[int]:
    try:
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cpus)})
    except (AttributeError, OSError):
        return set()
    return cpus


def race(runners: Mapping[str, Runner], *, rounds: int = ROUNDS, seconds: float = ROUND_SECONDS) -> Rounds:
    """Run the competitors in turn, each about ``seconds`` a round."""
    times = {name: _calibrate(runner, seconds) for name, runner in runners.items()}
    results: Rounds = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            results[name].append(_timed(runner, times[name]) / times[name])
    return results


def _timed(runner: Runner, times: int) -> float:
    begin = time.perf_counter()
    runner(times)
    return time.perf_counter() - begin


def _calibrate(runner: Runner, seconds: float) -> int:
    times = 1
    while (taken := _timed(runner, times)) < seconds / 4:
        times *= 2
    return max(1, int(times * seconds / taken))


def median(values: Sequence[float]) -> float:
    """Give the median."""
    return statistics.median(values)


def ratio(results: Rounds, one: str, other: str) -> float:
    """Give how many times as long ``one`` takes as ``other``: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(results[one], results[other], strict=True))


def duration(seconds: float) -> str:
    """Write a time with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def heading(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n{'-' * len(text)}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        first, *others = (
            f"{cell:<{width}}" if n == 0 else f"{cell:>{width}}" for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def standing(results: Rounds, base: str) -> None:
    """Print each competitor's median and its ratio to ``base``."""
    rows = [(name, duration(median(values)), f"{ratio(results, name, base):.2f}") for name, values in results.items()]
    table(("", "median", f"x {base}"), rows)


def verdict(figures: Sequence[Figure]) -> None:
    """Print the table of figures."""
    heading("Figures")
    rows = [(figure.name, figure.target, figure.measured, "met" if figure.met else "MISSED") for figure in figures]
    table(("figure", "target", "measured", ""), rows)
    missed = sum(not figure.met for figure in figures)
    print(f"\n{len(figures) - missed} of {len(figures)} met")
