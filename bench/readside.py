"""Uncontended reading: online_mems() and its lock against empty context managers and other locks."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from itertools import repeat
from types import TracebackType

import fasteners  # type: ignore[import-untyped, unused-ignore]
from readerwriterlock import rwlock

from bench.measure import Figure, Runner, heading, quiet, race, ratio, ratio_figure, standing
from memhp import Machine

LIMIT = 2.0


class Empty:
    """A context manager that does nothing: the floor."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class MachineLike:
    """Gives an empty context manager by the same call that Machine gives its read side by."""

    def __init__(self) -> None:
        self._empty = Empty()

    def empty(self) -> Empty:
        """As Machine.online_mems()."""
        return self._empty


def run() -> list[Figure]:
    """Race them."""
    machine = Machine.boot("4GiB")
    runners = {
        "empty, kept": _kept(Empty()),
        "empty()": _called(MachineLike()),
        "online_mems(), kept": _kept(machine.locks.mem_hotplug.read),
        "online_mems()": _online_mems(machine),
        "get/put_online_mems()": _get_put(machine),
        "RLock": _kept(threading.RLock()),
        "RWLockFair, kept": _kept(rwlock.RWLockFair().gen_rlock()),
        "RWLockFair": _fair(rwlock.RWLockFair()),
        "fasteners": _fasteners(fasteners.ReaderWriterLock()),
    }
    heading("with ...: pass, nobody else there")
    with quiet():
        results = race(runners)
    standing(results, "empty, kept")
    figures = [
        ratio_figure("online_mems() / empty()", LIMIT, ratio(results, "online_mems()", "empty()")),
        ratio_figure("online_mems() kept / empty kept", LIMIT, ratio(results, "online_mems(), kept", "empty, kept")),
    ]
    for other in ("RLock", "RWLockFair, kept", "fasteners"):
        share = ratio(results, "online_mems()", other)
        # An RLock has no readers: it is there to be looked at.
        if other != "RLock":
            figures.append(Figure(f"online_mems() / {other}", "< 1 x", f"{share:.2f} x", share < 1))
    return figures


def _kept(manager: AbstractContextManager[object]) -> Runner:
    def runner(times: int) -> None:
        for _ in repeat(None, times):
            with manager:
                pass

    return runner


def _called(machine: MachineLike) -> Runner:
    def runner(times: int) -> None:
        for _ in repeat(None, times):
            with machine.empty():
                pass

    return runner


def _online_mems(machine: Machine) -> Runner:
    def runner(times: int) -> None:
        for _ in repeat(None, times):
            with machine.online_mems():
                pass

    return runner


def _get_put(machine: Machine) -> Runner:
    def runner(times: int) -> None:
        for _ in repeat(None, times):
            machine.get_online_mems()
            machine.put_online_mems()

    return runner


def _fair(lock: rwlock.RWLockFair) -> Runner:
    def runner(times: int) -> None:
        for _ in repeat(None, times):
            with lock.gen_rlock():
                pass

    return runner


def _fasteners(lock: fasteners.ReaderWriterLock) -> Runner:
    def runner(times: int) -> None:
        for _ in repeat(None, times):
            with lock.read_lock():
                pass

    return runner
