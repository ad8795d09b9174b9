"""The percpu read-write semaphore, with and without the GIL's help, and watched by lockdep: one suite for all three."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from memhp import DeadlockError, LockError
from memhp.locking import Lockdep, Mode, Mutex, PercpuRwSemaphore, switch
from support import in_thread, interrupt, until_parked

VARIANTS: dict[str, Callable[[], PercpuRwSemaphore]] = {
    "with the GIL": lambda: PercpuRwSemaphore("sem", gil=True),
    "without the GIL": lambda: PercpuRwSemaphore("sem", gil=False),
    "watched": lambda: PercpuRwSemaphore("sem", Lockdep()),
}


@pytest.fixture(params=VARIANTS)
def sem(request: pytest.FixtureRequest) -> Iterator[PercpuRwSemaphore]:
    """A semaphore, which nobody may hold or wait for in the end."""
    sem = VARIANTS[request.param]()
    yield sem
    assert repr(sem) == "<PercpuRwSemaphore sem readers=0 writer=None>"
    assert (sem.read.slow, list(sem._queue), sem._draining) == (False, [], None)


class Inside:
    """A thread that is inside of the semaphore until it is told to go."""

    def __init__(self, sem: PercpuRwSemaphore, mode: Literal["read", "write"], name: str, log: list[str] | None = None) -> None:
        self._sem, self._mode, self._log = sem, mode, log if log is not None else []
        self._inside, self._go = threading.Event(), threading.Event()
        self.thread = in_thread(self._run, name)

    def _run(self) -> None:
        with self._sem.read if self._mode == "read" else self._sem.write:
            self._log.append(threading.current_thread().name)
            self._inside.set()
            assert self._go.wait(30)

    def arrived(self) -> Inside:
        assert self._inside.wait(30)
        return self

    def waits(self) -> Inside:
        until_parked(self.thread)
        return self

    def go(self) -> Inside:
        """May leave as soon as it gets in."""
        self._go.set()
        return self

    def leave(self) -> None:
        self._go.set()
        self.thread.result()


def parked(inside: Inside) -> bool:
    with switch.guard:
        return switch.task_of(inside.thread).waiting is not None


def test_readers_read_together(sem: PercpuRwSemaphore) -> None:
    """Any number of readers is inside at once."""
    readers = [Inside(sem, "read", f"R{n}").arrived() for n in range(3)]
    with sem.read:
        assert (sem.readers(), sem.held(Mode.READ), sem.held(Mode.WRITE)) == (4, True, False)
    for reader in readers:
        reader.leave()
    assert (sem.readers(), sem.held(Mode.READ)) == (0, False)


def test_a_writer_may_also_read_what_it_protects(sem: PercpuRwSemaphore) -> None:
    """Who writes holds it in either mode, and nobody else does."""
    with sem.write:
        assert (sem.held(Mode.WRITE), sem.held(Mode.READ), switch.current().describe_held()) == (True, True, ["sem"])
        assert in_thread(lambda: (sem.held(Mode.WRITE), sem.held(Mode.READ))).result() == (False, False)
    assert (sem.held(Mode.WRITE), switch.current().describe_held()) == (False, [])


def test_a_reader_is_described_as_one(sem: PercpuRwSemaphore) -> None:
    """What a task holds names its read locks too, fast ones included, and once."""
    with sem.read:
        assert switch.current().describe_held() == ["sem (read)"]
    assert switch.current().describe_held() == []


def test_acquire_and_release_are_the_same_as_with(sem: PercpuRwSemaphore) -> None:
    """The explicit calls nest and mix with the blocks."""
    sem.read_acquire()
    sem.read_acquire()
    sem.read_release()
    with sem.read:
        assert sem.readers() == 2
    sem.read_release()
    sem.write_acquire()
    assert sem.held(Mode.WRITE)
    sem.write_release()


def test_locks_are_given_back_after_an_exception(sem: PercpuRwSemaphore) -> None:
    """Leaving a block gives the lock back however it is left."""
    with pytest.raises(ZeroDivisionError), sem.read:
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), sem.write:
        raise ZeroDivisionError
    with sem.write:
        pass


def test_a_writer_waits_for_every_reader(sem: PercpuRwSemaphore) -> None:
    """The writer gets in when the last of the readers has left, and not before."""
    log: list[str] = []
    first, second = Inside(sem, "read", "R1").arrived(), Inside(sem, "read", "R2").arrived()
    writer = Inside(sem, "write", "W", log).waits()
    first.leave()
    assert (parked(writer), log) == (True, [])
    second.leave()
    writer.arrived().leave()
    assert log == ["W"]


def test_a_pending_writer_stops_new_readers(sem: PercpuRwSemaphore) -> None:
    """Readers that come after a writer wait for it, so it is never starved."""
    log: list[str] = []
    reader = Inside(sem, "read", "R1", log).arrived()
    writer = Inside(sem, "write", "W", log).waits()
    late = Inside(sem, "read", "R2", log).waits()
    reader.leave()
    writer.arrived()
    assert parked(late)
    writer.leave()
    late.arrived().leave()
    assert log == ["R1", "W", "R2"]


def test_readers_that_waited_go_before_the_next_writer(sem: PercpuRwSemaphore) -> None:
    """Each time the lock is free a batch of readers goes in, then one writer: neither side starves."""
    log: list[str] = []
    first = Inside(sem, "write", "W1", log).arrived()
    second = Inside(sem, "write", "W2", log).waits()
    reader = Inside(sem, "read", "R", log).waits()
    first.leave()
    reader.arrived().leave()
    second.arrived().leave()
    assert log == ["W1", "R", "W2"]


def test_writers_write_in_the_order_in_which_they_came(sem: PercpuRwSemaphore) -> None:
    """Writers queue: first come, first served."""
    log: list[str] = []
    first = Inside(sem, "write", "W1", log).arrived()
    others = [Inside(sem, "write", f"W{n}", log).waits().go() for n in (2, 3, 4)]
    first.leave()
    for writer in others:
        writer.leave()
    assert log == ["W1", "W2", "W3", "W4"]


def test_reading_again_is_fine_while_no_writer_waits(sem: PercpuRwSemaphore) -> None:
    """Reads nest; the semaphore is free when the outermost has ended."""
    with sem.read, sem.read, sem.read:
        assert sem.readers() == 3
    assert sem.readers() == 0


def test_reading_again_while_a_writer_waits_is_a_deadlock_error(sem: PercpuRwSemaphore) -> None:
    """The inner read would wait for the writer, and the writer for the outer read: refused, and the outer read stays."""
    with sem.read:
        writer = Inside(sem, "write", "W").waits()
        with pytest.raises(DeadlockError) as caught:
            sem.read_acquire()
        assert (sem.readers(), sem.held(Mode.READ), parked(writer)) == (1, True, True)
    writer.arrived().leave()
    assert caught.value.chain == (
        "MainThread waits for sem (read acquire), held by W",
        "W waits for sem (wait for readers), held by MainThread",
    )
    assert str(caught.value).splitlines()[0] == "MainThread would wait for sem for ever; it holds sem (read)"


def test_writing_while_reading_is_a_deadlock_error(sem: PercpuRwSemaphore) -> None:
    """A reader can't become a writer: it would wait for itself; it goes on reading."""
    with sem.read:
        with pytest.raises(DeadlockError, match="MainThread would write sem, which it reads") as caught:
            sem.write_acquire()
        assert (caught.value.lock, sem.readers(), sem.writer) == (sem, 1, None)


def test_two_readers_that_both_want_to_write_are_both_refused(sem: PercpuRwSemaphore) -> None:
    """Neither can go on while the other reads, so each is told at once."""
    reader = Inside(sem, "read", "R").arrived()
    with sem.read, pytest.raises(DeadlockError):
        sem.write_acquire()
    reader.leave()


@pytest.mark.parametrize(("mode", "operation"), [("read", "read acquire"), ("write", "block new readers")])
def test_any_lock_inside_ones_own_write_is_a_deadlock_error(sem: PercpuRwSemaphore, mode: str, operation: str) -> None:
    """A writer that reads or writes again would wait for itself; it stays the writer."""
    with sem.write:
        with pytest.raises(DeadlockError) as caught:
            (sem.read_acquire if mode == "read" else sem.write_acquire)()
        assert (sem.held(Mode.WRITE), sem.readers()) == (True, 0)
    assert caught.value.chain == (f"MainThread waits for sem ({operation}), held by MainThread",)


def test_a_put_without_its_get_is_an_error(sem: PercpuRwSemaphore) -> None:
    """Nobody gives back what it doesn't hold, also not for another."""
    for release in (sem.read_release, sem.write_release):
        with pytest.raises(LockError, match=r"MainThread releases sem .*, which it does not hold") as caught:
            release()
        assert caught.value.lock is sem
    reader = Inside(sem, "read", "R").arrived()
    with pytest.raises(LockError):
        sem.read_release()
    assert sem.readers() == 1
    reader.leave()
    writer = Inside(sem, "write", "W").arrived()
    with pytest.raises(LockError):
        sem.write_release()
    writer.leave()


def test_a_writer_and_a_mutex_can_cross(sem: PercpuRwSemaphore) -> None:
    """A reader that wants the mutex of a writer that waits for it is refused: circles go through all locks."""
    mutex = Mutex("m")

    def write() -> None:
        with mutex, sem.write:
            pass

    with sem.read:
        writer = in_thread(write, "W")
        until_parked(writer)
        with pytest.raises(DeadlockError) as caught:
            mutex.acquire()
    writer.result()
    assert caught.value.chain == (
        "MainThread waits for m (acquire), held by W",
        "W waits for sem (wait for readers), held by MainThread",
    )


def test_a_reader_that_has_ended_is_never_waited_for(sem: PercpuRwSemaphore) -> None:
    """A writer that would wait for a thread that is no more is refused, with its name, and readers go on."""
    in_thread(sem.read_acquire, "gone").result()
    with pytest.raises(DeadlockError) as caught:
        sem.write_acquire()
    assert caught.value.chain == ("MainThread waits for sem (wait for readers), held by gone, whose thread has ended",)
    with sem.read:
        assert (sem.readers(), sem.writer) == (2, None)
    sem._cells.clear()  # or it could never be free again


def test_a_writer_that_has_ended_is_never_waited_for() -> None:
    """Reader and writer alike are refused when the one inside is no more."""
    for make in VARIANTS.values():
        sem = make()
        in_thread(sem.write_acquire, "gone").result()
        for acquire, operation in ((sem.read_acquire, "read acquire"), (sem.write_acquire, "block new readers")):
            with pytest.raises(DeadlockError) as caught:
                acquire()
            assert caught.value.chain == (f"MainThread waits for sem ({operation}), held by gone, whose thread has ended",)
        assert sem.readers() == 0


@pytest.mark.parametrize("when_woken", [False, True], ids=["while it waits", "just after the grant"])
@pytest.mark.parametrize("mode", ["read", "write"])
def test_ctrl_c_behind_a_writer_leaves_the_queue_consistent(
    sem: PercpuRwSemaphore,
    monkeypatch: pytest.MonkeyPatch,
    mode: Literal["read", "write"],
    when_woken: bool,  # noqa: FBT001 - one of two moments
) -> None:
    """A reader or writer that is interrupted while a writer is inside leaves no count, no flag and no place behind."""
    interrupt(monkeypatch, "victim", when_woken=when_woken)
    log: list[str] = []
    writer = Inside(sem, "write", "W", log).arrived()
    victim = Inside(sem, mode, "victim", log)
    if when_woken:
        victim.waits()
    else:
        with pytest.raises(KeyboardInterrupt):
            victim.leave()
    behind = [Inside(sem, "write", "W2", log).waits().go(), Inside(sem, "read", "R", log).waits().go()]
    writer.leave()
    if when_woken:
        with pytest.raises(KeyboardInterrupt):
            victim.leave()
    for inside in behind:
        inside.leave()
    assert (log[0], sorted(log)) == ("W", ["R", "W", "W2"])
    assert switch.task_of(victim.thread).describe_held() == []


@pytest.mark.parametrize("when_woken", [False, True], ids=["while it waits", "just after the grant"])
def test_ctrl_c_while_a_writer_waits_for_readers_lets_readers_in_again(
    sem: PercpuRwSemaphore,
    monkeypatch: pytest.MonkeyPatch,
    when_woken: bool,  # noqa: FBT001 - as above
) -> None:
    """A writer that gives up takes its flag down, and those who waited for it go on."""
    interrupt(monkeypatch, "victim", when_woken=when_woken)
    log: list[str] = []
    reader = Inside(sem, "read", "R1", log).arrived()
    victim = Inside(sem, "write", "victim", log)
    if when_woken:
        victim.waits()
        late = Inside(sem, "read", "R2", log).waits()
        reader.leave()
        with pytest.raises(KeyboardInterrupt):
            victim.leave()
    else:
        with pytest.raises(KeyboardInterrupt):
            victim.leave()
        late = Inside(sem, "read", "R2", log).arrived()
        reader.leave()
    late.arrived().leave()
    with sem.write:
        log.append("W")
    assert log == ["R1", "R2", "W"]


@pytest.mark.usefixtures("late_waiters")
def test_a_grant_that_comes_just_when_the_waiter_looks_around_is_no_deadlock(sem: PercpuRwSemaphore) -> None:
    """Once a second a waiter looks whether those it waits for live; if it was let in by then, it is in."""
    log: list[str] = []
    first = Inside(sem, "write", "W1", log).arrived()
    second = Inside(sem, "write", "W2", log).waits()
    reader = Inside(sem, "read", "R", log).waits()
    first.leave()
    reader.arrived().leave()
    second.arrived().leave()
    assert log == ["W1", "R", "W2"]


@pytest.fixture
def restless() -> Iterator[None]:
    """Let the interpreter switch threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless")
def test_readers_never_see_a_half_done_change(sem: PercpuRwSemaphore) -> None:
    """Four readers and one writer, counted rounds: what the writer changes in two steps always looks whole."""
    left, right = [0], [0]
    start = threading.Barrier(5)
    torn: list[tuple[int, int]] = []

    def read() -> int:
        start.wait(30)
        last = 0
        for _ in range(1500):
            with sem.read:
                a, b = left[0], right[0]
                if a != b or a < last:
                    torn.append((a, b))
                last = a
        return last

    def write() -> None:
        start.wait(30)
        for _ in range(300):
            with sem.write:
                left[0] += 1
                right[0] += 1

    threads = [in_thread(read, f"R{n}") for n in range(4)] + [in_thread(write, "W")]
    for thread in threads:
        thread.result(60)
    assert (torn, left, right) == ([], [300], [300])


@pytest.mark.usefixtures("restless")
def test_writers_exclude_each_other_and_readers(sem: PercpuRwSemaphore) -> None:
    """Three writers that count without care, among two readers, lose nothing."""
    total = [0]
    start = threading.Barrier(5)

    def write() -> None:
        start.wait(30)
        for _ in range(100):
            with sem.write:
                seen = total[0]
                total[0] = seen + 1

    def read() -> bool:
        start.wait(30)
        stable = True
        for _ in range(300):
            with sem.read:
                stable = stable and total[0] == total[0]
        return stable

    writers = [in_thread(write, f"W{n}") for n in range(3)]
    readers = [in_thread(read, f"R{n}") for n in range(2)]
    assert [thread.result(60) for thread in writers + readers] == [None, None, None, True, True]
    assert total == [300]


def read_once(sem: PercpuRwSemaphore) -> None:
    with sem.read:
        pass


def test_threads_that_ended_leave_nothing_once_somebody_wrote(sem: PercpuRwSemaphore) -> None:
    """A write forgets the counts of threads that are no more."""
    for n in range(20):
        in_thread(lambda: read_once(sem), f"R{n}").result()
    with sem.write:
        pass
    assert [cell.task.name for cell in sem._cells if cell.task.name != "MainThread"] == []


def test_threads_that_ended_leave_nothing_though_nobody_writes(sem: PercpuRwSemaphore) -> None:
    """A server that reads in a thousand short threads, and never sees a hotplug, keeps no count for each of them."""
    for n in range(200):
        in_thread(lambda: read_once(sem), f"R{n}").result()
    with sem.read:
        kept = len(sem._cells)
    assert kept < 100
