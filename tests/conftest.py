"""What the tests share: machines that are watched by lockdep, and the mark of tests that need QEMU."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memhp import Machine
from memhp.lab import kernels
from memhp.lab.guest import missing_tools


def pytest_configure(config: pytest.Config) -> None:
    # Shells let what they start in the background ignore Ctrl-C, and so would every program that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "fact(*numbers): the facts of docs/linux-behaviour.md that the test shows")
    config.addinivalue_line("markers", "qemu: boots a real kernel; needs QEMU, and what `memhp lab fetch` gets")
    config.addinivalue_line(
        "markers", "lsmem: compares with a real lsmem 2.42, MEMHP_LSMEM; tests/data/README.md says how to get it"
    )


NO_LAB = pytest.StashKey[str]()
NO_LSMEM = pytest.StashKey[str]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    without_lsmem = [item for item in items if item.get_closest_marker("lsmem")] if "MEMHP_LSMEM" not in os.environ else []
    if without_lsmem:
        config.stash[NO_LSMEM] = f"{len(without_lsmem)} tests beside a real lsmem were left out: MEMHP_LSMEM names none"
        items[:] = [item for item in items if item not in without_lsmem]
        config.hook.pytest_deselected(items=without_lsmem)
    live = [item for item in items if item.get_closest_marker("qemu")]
    missing = ", ".join(missing_for_the_lab()) if live else ""
    if not missing:
        return
    if os.environ.get("MEMHP_REQUIRE_QEMU"):
        raise pytest.UsageError(f"MEMHP_REQUIRE_QEMU is set, and there is missing: {missing}")
    config.stash[NO_LAB] = f"{len(live)} tests on real kernels were left out. Missing: {missing}"
    items[:] = [item for item in items if item not in live]
    config.hook.pytest_deselected(items=live)


def missing_for_the_lab() -> list[str]:
    found = {kernel.series for kernel in kernels.installed()}
    absent = [f"Linux {series}" for series in kernels.SERIES if series not in found]
    return [*missing_tools(), *([f"{' and '.join(absent)} (memhp lab fetch)"] if absent else [])]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for key in (NO_LAB, NO_LSMEM):
        if key in config.stash:
            terminalreporter.write_line(config.stash[key], yellow=True)


@pytest.fixture
def boot() -> Iterator[Callable[..., Machine]]:
    """Boot machines with lockdep on; in the end none may have a report, nor a task a lock."""
    machines: list[Machine] = []

    def make(*args: Any, **kwargs: Any) -> Machine:
        machine = Machine.boot(*args, **{"lockdep": True, **kwargs})
        machines.append(machine)
        return machine

    yield make
    for machine in machines:
        assert machine.dep is None or [str(report) for report in machine.dep.reports] == []
