"""The watchdog: a task that blocks or computes between two steps holds up everything, so somebody else must notice."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memhp.explore.execution import Execution

__all__ = ["Stuck", "Watchdog", "watching"]

_DEBUGGERS = ("bdb", "pydevd", "_pydevd", "debugpy")
"""How the names of modules begin that are on the stack while somebody thinks at a debugger's prompt."""

_SIGNAL = signal.SIGURG
"""Ignored by default, so nobody minds if one comes late."""


class Stuck(BaseException):
    """Raised in a task that has not come to its next step for a while."""


class Watchdog:
    """Looks at the number of steps now and then.

    In the main thread a signal ends also what blocks (a sleep, a lock of another make); in other threads only Python code
    can be ended, at its next instruction.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._ended = threading.Event()
        self._execution: Execution | None = None
        self._explorer = threading.current_thread()
        self._thread = threading.Thread(target=self._watch, name="memhp explore watchdog", daemon=True)

    def look_at(self, execution: Execution | None) -> None:
        """Look at this execution from now on."""
        self._execution = execution

    def _watch(self) -> None:
        seen: tuple[Execution | None, int] = (None, -1)
        while not self._ended.wait(self._patience):
            execution = self._execution
            now = (execution, execution.beats if execution is not None else -1)
            if now == seen and _runs_code(execution):
                self._bite()
            seen = now

    def _bite(self) -> None:
        ident = self._explorer.ident
        if ident is None or _is_debugged(sys._current_frames().get(ident)):  # noqa: SLF001 - there is no other way
            return
        if self._explorer is threading.main_thread():
            signal.pthread_kill(ident, _SIGNAL)
        else:
            import ctypes  # noqa: PLC0415 - rarely needed

            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Stuck))

    def bark(self, number: int, frame: FrameType | None) -> None:
        """Raise :class:`Stuck` in the task that runs, or in the scene's own code."""
        if _runs_code(self._execution):
            raise Stuck


def _runs_code(execution: Execution | None) -> bool:
    return execution is not None and (execution.running is not None or execution.outside)


def _is_debugged(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_DEBUGGERS):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def watching(patience: float) -> Iterator[Watchdog]:
    """Have a watchdog."""
    watchdog = Watchdog(patience)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(_SIGNAL, watchdog.bark) if main else None
    watchdog._thread.start()  # noqa: SLF001 - it begins when the handler is in place
    try:
        yield watchdog
    finally:
        watchdog._ended.set()  # noqa: SLF001
        watchdog._thread.join()  # noqa: SLF001
        if main:
            signal.signal(_SIGNAL, before)
