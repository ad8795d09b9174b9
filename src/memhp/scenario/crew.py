"""Threads that play steps, and the moment when all of them have done what they can.

A thread is at rest when its step has ended or when it is parked in a wait. The one who wakes a parked thread marks it as
awake before it goes on itself, so "everybody is at rest" is exact and needs no pause.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from memhp.locking import switch

__all__ = ["Crew"]


class _Worker:
    def __init__(self, name: str, bell: threading.Semaphore) -> None:
        self.name = name
        self.busy = 0
        self._bell = bell
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.task = switch.task_of(self.thread)
        self.task.on_park = lambda _task: bell.release()
        self.error: BaseException | None = None
        self.thread.start()

    def give(self, job: Callable[[], None] | None) -> None:
        self.busy += 1
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # raised again by settle(), in the thread that asked
                self.error = error
            with switch.guard:
                self.busy -= 1
            self._bell.release()


class Crew:
    """Threads by name; each plays its steps in order."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._bell = threading.Semaphore(0)

    def start(self, name: str, job: Callable[[], None]) -> None:
        """Let the thread of that name do a job, after those it has."""
        worker = self._workers.get(name)
        if worker is None:
            worker = _Worker(name, self._bell)
            # A new dictionary: a thread of the crew may start another one while somebody looks at all of them.
            self._workers = {**self._workers, name: worker}
        with switch.guard:
            worker.give(job)

    def settle(self) -> None:
        """Wait until everybody is at rest; raises what a job raised."""
        while not self._at_rest():
            self._bell.acquire()
        for worker in self._workers.values():
            if worker.error is not None:
                error, worker.error = worker.error, None
                raise error

    def _at_rest(self) -> bool:
        with switch.guard:
            return all(not worker.busy or worker.task.waiting is not None for worker in self._workers.values())

    def waiting(self) -> dict[str, str]:
        """Say of each thread that is parked what it waits for."""
        with switch.guard:
            found = {name: worker.task.waiting for name, worker in self._workers.items() if worker.busy}
            return {name: waiter.lock.name for name, waiter in found.items() if waiter is not None}

    def thread(self, name: str) -> threading.Thread | None:
        """Give the thread of that name, if it has had a step."""
        worker = self._workers.get(name)
        return worker.thread if worker is not None else None

    def dismiss(self) -> None:
        """Let every thread end after its jobs."""
        for worker in self._workers.values():
            with switch.guard:
                worker.give(None)
