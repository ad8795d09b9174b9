"""Four threads that read in a loop, and one that writes now and then: how long does each wait?

A wait here includes the wait for the GIL, whose holder lets go after 5 ms (``sys.getswitchinterval()``) and then to any
of the others: "no lock" shows how much of it that is. Several short runs in turn, because some of these locks have a good
and a bad rhythm and keep the one that they fall into.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import fasteners  # type: ignore[import-untyped, unused-ignore]
from readerwriterlock import rwlock

from bench.measure import Figure, duration, heading, table
from memhp.locking import PercpuRwSemaphore

READERS = 4
WRITES = 300
ROUNDS = 4
SECONDS = 0.6
"""When a round ends at the latest, however few writes there were."""
INSIDE = 0.0002
BETWEEN = 0.001
TARGET = 1e-3

Enter = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A lock: how the reader of a number enters it, and how the writer does."""

    reader: Callable[[int], Enter]
    writer: Enter


@dataclass(slots=True)
class Run:
    """One contender's run and what came of it."""

    contender: Contender
    go: threading.Event = field(default_factory=threading.Event)
    end: float = 0.0
    done: bool = False
    reads: list[int] = field(default_factory=list)
    longest: list[float] = field(default_factory=list)
    writer_waits: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def play(self) -> None:
        """Run readers and writer until there were enough writes, or it has taken too long."""
        threads = [threading.Thread(target=self._read, args=(number,)) for number in range(READERS)]
        for thread in threads:
            thread.start()
        begin = time.perf_counter()
        self.end = begin + SECONDS
        self.go.set()
        self._write()
        self.done = True
        for thread in threads:
            thread.join()
        self.seconds = time.perf_counter() - begin

    def _read(self, number: int) -> None:
        enter = self.contender.reader(number)
        reads, longest, before = 0, 0.0, 0.0
        self.go.wait()
        while not self.done and before < self.end:
            before = time.perf_counter()
            with enter():
                waited = time.perf_counter() - before
            reads += 1
            longest = max(longest, waited)
        self.reads.append(reads)
        self.longest.append(longest)

    def _write(self) -> None:
        # A starved writer gets in once the readers have come to the end.
        before = 0.0
        while len(self.writer_waits) < WRITES // ROUNDS and before < self.end:
            time.sleep(BETWEEN)
            before = time.perf_counter()
            with self.contender.writer():
                self.writer_waits.append(time.perf_counter() - before)
                time.sleep(INSIDE)


def run() -> list[Figure]:
    """Let the locks have their runs in turn."""
    heading(f"{READERS} readers in a loop, {WRITES} writes or {ROUNDS * SECONDS:.1f} s, whichever comes first")
    runs: dict[str, list[Run]] = {}
    for _ in range(ROUNDS):
        for name, contender in _contenders().items():
            outcome = Run(contender)
            outcome.play()
            runs.setdefault(name, []).append(outcome)
    header = ("", "writes", "writer waits, median", "worst round's median", "max", "readers wait, max", "reads/s")
    table(header, [(name, *_row(outcomes)) for name, outcomes in runs.items()])
    mine = _median_wait(runs["memhp"])
    return [Figure("writer's median wait, 4 readers", f"< {duration(TARGET)}", duration(mine), mine < TARGET)]


def _median_wait(outcomes: list[Run]) -> float:
    return statistics.median(_waits(outcomes))


def _waits(outcomes: list[Run]) -> list[float]:
    return [wait for outcome in outcomes for wait in outcome.writer_waits]


def _row(outcomes: list[Run]) -> tuple[str, ...]:
    waits = _waits(outcomes)
    rate = sum(sum(outcome.reads) for outcome in outcomes) / sum(outcome.seconds for outcome in outcomes)
    worst = max(statistics.median(outcome.writer_waits) for outcome in outcomes)
    longest = max(max(outcome.longest) for outcome in outcomes)
    times = (_median_wait(outcomes), worst, max(waits), longest)
    return (str(len(waits)), *map(duration, times), f"{rate / 1000:,.0f} k")


def _contenders() -> dict[str, Contender]:
    memhp = PercpuRwSemaphore("bench")
    fair = rwlock.RWLockFair()
    queued = fasteners.ReaderWriterLock()
    lock = threading.Lock()
    nothing = contextlib.nullcontext()
    return {
        "no lock": Contender(lambda number: _same(nothing), _same(nothing)),
        "memhp": Contender(lambda number: _same(memhp.read), _same(memhp.write)),
        "a lock per reader": _big_reader(),
        "RWLockFair": Contender(lambda number: _same(fair.gen_rlock()), _same(fair.gen_wlock())),
        "fasteners": Contender(lambda number: queued.read_lock, queued.write_lock),
        "one Lock": Contender(lambda number: _same(lock), _same(lock)),
    }


def _same(manager: AbstractContextManager[object]) -> Enter:
    return lambda: manager


def _big_reader() -> Contender:
    locks = [threading.RLock() for _ in range(READERS)]

    @contextlib.contextmanager
    def write() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            yield

    return Contender(lambda number: lambda: locks[number], write)
