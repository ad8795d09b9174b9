"""What the tests share: machines that are watched by lockdep, and a recorder of what callbacks hear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memhp import Machine


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fact(*numbers): the facts of docs/linux-behaviour.md that the test shows")


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
