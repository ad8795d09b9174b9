"""The mutex: one at a time, in order of arrival, and no wait without end; and the queue to wait for anything else."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import pytest

from memhp import DeadlockError, LockError
from memhp.locking import Mode, Mutex, WaitQueue, switch
from support import Running, in_thread, interrupt, until_parked


class Holder:
    """A thread that takes a lock and holds it until it is told to let go, or to end without doing so."""

    def __init__(self, mutex: Mutex, name: str = "holder") -> None:
        self._inside, self._go = threading.Event(), threading.Event()
        self._abandon = False
        self._mutex = mutex
        self.thread = in_thread(self._run, name)
        assert self._inside.wait(30)

    def _run(self) -> None:
        self._mutex.acquire()
        self._inside.set()
        assert self._go.wait(30)
        if not self._abandon:
            self._mutex.release()

    def let_go(self) -> None:
        self._go.set()
        self.thread.result()

    def let_die(self) -> None:
        self._abandon = True
        self._go.set()


def parked(thread: threading.Thread) -> bool:
    with switch.guard:
        return switch.task_of(thread).waiting is not None


def test_only_one_task_is_inside() -> None:
    """Six threads that count without care, each under the lock, lose nothing."""
    mutex, start = Mutex("m"), threading.Barrier(6)
    total = [0]

    def work() -> None:
        start.wait(30)
        for _ in range(200):
            with mutex:
                seen = total[0]
                assert mutex.held()
                total[0] = seen + 1

    for thread in [in_thread(work, f"T{n}") for n in range(6)]:
        thread.result()
    assert (total, repr(mutex)) == ([1200], "<Mutex m free>")


def test_waiters_get_it_in_the_order_in_which_they_came() -> None:
    """The lock is handed over, first come first served."""
    mutex = Mutex("m")
    log: list[str] = []

    def work(name: str) -> None:
        with mutex:
            log.append(name)

    threads = []
    with mutex:
        for name in ("first", "second", "third", "fourth"):
            threads.append(in_thread(lambda name=name: work(name), name))  # type: ignore[misc]
            until_parked(threads[-1])
        assert log == []
    for thread in threads:
        thread.result()
    assert log == ["first", "second", "third", "fourth"]


def test_a_latecomer_cannot_overtake_a_waiter() -> None:
    """A release makes the first waiter the owner at once, whether or not its thread has run yet."""
    mutex, go = Mutex("m"), threading.Event()

    def work() -> None:
        with mutex:
            assert go.wait(30)

    mutex.acquire()
    waiter = in_thread(work, "waiter")
    until_parked(waiter)
    mutex.release()
    assert (mutex.try_acquire(), repr(mutex)) == (False, "<Mutex m held by waiter>")
    go.set()
    waiter.result()


def test_it_says_who_holds_it() -> None:
    """held() is about the calling task; the text names the owner."""
    mutex = Mutex("m")
    assert (mutex.held(), repr(mutex)) == (False, "<Mutex m free>")
    holder = Holder(mutex)
    assert (mutex.held(), mutex.held(Mode.READ), repr(mutex)) == (False, False, "<Mutex m held by holder>")
    holder.let_go()
    with mutex:
        assert mutex.held()
        assert switch.current().describe_held() == ["m"]
    assert switch.current().describe_held() == []


def test_only_the_owner_releases() -> None:
    """A release by a stranger, or of a free lock, is an error that names both, and changes nothing."""
    mutex = Mutex("m")
    with pytest.raises(LockError, match=r"releases m, which it does not hold \(nobody does\)") as caught:
        mutex.release()
    assert caught.value.lock is mutex
    holder = Holder(mutex)
    with pytest.raises(LockError, match=r"MainThread releases m, which it does not hold \(holder does\)"):
        mutex.release()
    assert repr(mutex) == "<Mutex m held by holder>"
    holder.let_go()


def test_with_releases_also_after_an_exception() -> None:
    """Leaving the block gives the lock back however it is left."""
    mutex = Mutex("m")
    with pytest.raises(ZeroDivisionError), mutex:
        raise ZeroDivisionError
    assert repr(mutex) == "<Mutex m free>"


def test_taking_it_twice_is_a_deadlock_error_at_once() -> None:
    """A mutex is not recursive; the evidence says who waits for whom, and what is held stays held."""
    outer, mutex = Mutex("outer"), Mutex("m")
    with outer, mutex:
        with pytest.raises(DeadlockError) as caught:
            mutex.acquire()
        assert switch.current().describe_held() == ["outer", "m"]
    assert (caught.value.lock, caught.value.chain) == (mutex, ("MainThread waits for m (acquire), held by MainThread",))
    assert str(caught.value).splitlines()[0] == "MainThread would wait for m for ever; it holds outer, m"
    assert repr(mutex) == "<Mutex m free>"


def test_a_trylock_of_ones_own_lock_fails_without_an_error() -> None:
    """A trylock never waits, so it can't deadlock; it takes a free lock and says no to any other."""
    mutex = Mutex("m")
    assert (mutex.try_acquire(), mutex.try_acquire(), mutex.held()) == (True, False, True)
    mutex.release()
    holder = Holder(mutex)
    assert (mutex.try_acquire(), mutex.held()) == (False, False)
    holder.let_go()


def crossing(first: Mutex, second: Mutex, both: threading.Barrier) -> str:
    """Take two locks one after the other, with the other thread between."""
    with first:
        both.wait(30)
        with second:
            return "went through"


def test_two_threads_that_cross_get_exactly_one_deadlock_error() -> None:
    """ABBA for real: the one that would close the circle is refused and told of both; the other goes through."""
    a, b, both = Mutex("A"), Mutex("B"), threading.Barrier(2)
    threads = [
        in_thread(lambda: crossing(a, b, both), "T1"),
        in_thread(lambda: crossing(b, a, both), "T2"),
    ]
    errors, results = outcomes(threads)
    assert results == ["went through"]
    (error,) = errors
    t1 = "T1 waits for B (acquire), held by T2"
    t2 = "T2 waits for A (acquire), held by T1"
    assert error.chain in {(t1, t2), (t2, t1)}
    assert str(error).splitlines()[0] in {
        "T1 would wait for B for ever; it holds A",
        "T2 would wait for A for ever; it holds B",
    }
    assert [repr(a), repr(b)] == ["<Mutex A free>", "<Mutex B free>"]


def test_a_circle_of_three_is_found_too() -> None:
    """Whoever comes last of three in a circle is refused, with the whole circle as evidence."""
    locks, both = [Mutex("A"), Mutex("B"), Mutex("C")], threading.Barrier(3)
    threads = [in_thread(lambda n=n: crossing(locks[n], locks[(n + 1) % 3], both), f"T{n}") for n in range(3)]  # type: ignore[misc]
    errors, results = outcomes(threads)
    assert results == ["went through"] * 2
    (error,) = errors
    assert set(error.chain) == {
        "T0 waits for B (acquire), held by T1",
        "T1 waits for C (acquire), held by T2",
        "T2 waits for A (acquire), held by T0",
    }


def outcomes(threads: list[Running]) -> tuple[list[DeadlockError], list[Any]]:
    errors, results = [], []
    for thread in threads:
        try:
            results.append(thread.result())
        except DeadlockError as error:
            errors.append(error)
    return errors, results


def test_waiting_for_a_thread_that_has_ended_is_refused_at_once() -> None:
    """A lock whose owner is no more can never be had."""
    mutex = Mutex("m")
    in_thread(mutex.acquire, "gone").result()
    with pytest.raises(DeadlockError) as caught:
        mutex.acquire()
    assert caught.value.chain == ("MainThread waits for m (acquire), held by gone, whose thread has ended",)


def test_an_owner_that_ends_while_others_wait_is_noticed() -> None:
    """A waiter looks now and then whether its owner still lives, and is refused when not."""
    mutex = Mutex("m")
    holder = Holder(mutex)
    waiter = in_thread(mutex.acquire, "waiter")
    until_parked(waiter)
    holder.let_die()
    with pytest.raises(DeadlockError) as caught:
        waiter.result()
    assert caught.value.chain == ("waiter waits for m (acquire), held by holder, whose thread has ended",)


def test_a_waiter_behind_one_that_waits_for_the_dead_is_refused_too() -> None:
    """A wait is endless also when the end is two locks away."""
    a, b = Mutex("A"), Mutex("B")
    holder = Holder(a)

    def between() -> None:
        with b, a:
            pass

    middle = in_thread(between, "middle")
    until_parked(middle)
    last = in_thread(b.acquire, "last")
    until_parked(last)
    holder.let_die()
    with pytest.raises(DeadlockError) as caught:
        middle.result()
    assert caught.value.chain == ("middle waits for A (acquire), held by holder, whose thread has ended",)
    try:
        last.result()  # middle let go of B when it was refused
    except DeadlockError as error:
        assert error.chain == (  # noqa: PT017 - either is right, by who looked first
            "last waits for B (acquire), held by middle",
            "middle waits for A (acquire), held by holder, whose thread has ended",
        )


def test_ctrl_c_while_parked_leaves_the_queue_as_if_one_had_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter that is interrupted leaves its place, and those behind it move up."""
    interrupt(monkeypatch, "victim", when_woken=False)
    mutex = Mutex("m")
    holder = Holder(mutex)
    victim = in_thread(mutex.acquire, "victim")
    with pytest.raises(KeyboardInterrupt):
        victim.result()
    behind = Following(mutex)
    holder.let_go()
    behind.thread.result()
    assert repr(mutex) == "<Mutex m free>"
    assert switch.task_of(victim).describe_held() == []


def test_ctrl_c_just_after_the_grant_passes_the_lock_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter that got the lock and is interrupted before it runs gives it to the next."""
    interrupt(monkeypatch, "victim", when_woken=True)
    mutex = Mutex("m")
    holder = Holder(mutex)
    victim = in_thread(mutex.acquire, "victim")
    until_parked(victim)
    behind = Following(mutex)
    holder.let_go()
    with pytest.raises(KeyboardInterrupt):
        victim.result()
    behind.thread.result()
    assert repr(mutex) == "<Mutex m free>"
    assert switch.task_of(victim).describe_held() == []


class Following:
    """A thread that waits for the lock, takes it and gives it back."""

    def __init__(self, mutex: Mutex) -> None:
        def work() -> None:
            with mutex:
                pass

        self.thread = in_thread(work, "behind")
        until_parked(self.thread)


@pytest.mark.usefixtures("late_waiters")
def test_a_grant_that_comes_just_when_the_waiter_looks_around_is_no_deadlock() -> None:
    """Once a second a waiter looks whether its owner lives; if the lock is its own by then, it has it."""
    mutex = Mutex("m")
    holder = Holder(mutex)

    def work() -> str:
        with mutex:
            return repr(mutex)

    waiter = in_thread(work, "waiter")
    until_parked(waiter)
    holder.let_go()
    assert (waiter.result(), repr(mutex)) == ("<Mutex m held by waiter>", "<Mutex m free>")


class InterruptedGuard:
    """The guard, whose acquisition Ctrl-C interrupts once in one thread, as a wait for any lock can be in the main thread."""

    def __init__(self, victim: str) -> None:
        self._lock = threading.RLock()
        self._victim = victim
        self.armed = False

    def acquire(self) -> bool:
        if self.armed and threading.current_thread().name == self._victim:
            self.armed = False
            raise KeyboardInterrupt
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def test_ctrl_c_on_the_way_out_of_a_wait_does_not_break_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The woken task must take the guard again; Ctrl-C may arrive in just that moment, and is all that it gets."""
    guard = InterruptedGuard("victim")
    monkeypatch.setattr(switch, "guard", guard)
    mutex = Mutex("m")
    holder = Holder(mutex)
    victim = in_thread(mutex.acquire, "victim")
    until_parked(victim)
    guard.armed = True
    holder.let_go()
    with pytest.raises(KeyboardInterrupt):
        victim.result()
    assert in_thread(mutex.try_acquire, "next").result() is True


def test_await_free_waits_without_taking() -> None:
    """It returns at once from a free lock, else when the lock is free, and holds nothing then."""
    mutex = Mutex("m")
    mutex.await_free()
    holder = Holder(mutex)
    waits = in_thread(mutex.await_free, "waits")
    until_parked(waits)
    holder.let_go()
    waits.result()
    assert (repr(mutex), switch.task_of(waits).describe_held()) == ("<Mutex m free>", [])


def test_await_free_stands_behind_those_who_want_the_lock() -> None:
    """A release that hands the lock over leaves it held, so who awaits its freedom waits on."""
    mutex, go = Mutex("m"), threading.Event()

    def work() -> None:
        with mutex:
            assert go.wait(30)

    mutex.acquire()
    waits = in_thread(mutex.await_free, "waits")
    until_parked(waits)
    takes = in_thread(work, "takes")
    until_parked(takes)
    mutex.release()
    assert parked(waits)
    go.set()
    takes.result()
    waits.result()


def test_awaiting_the_freedom_of_ones_own_lock_is_a_deadlock_error() -> None:
    """It could never become free for the caller."""
    mutex = Mutex("m")
    with mutex, pytest.raises(DeadlockError) as caught:
        mutex.await_free()
    assert caught.value.chain == ("MainThread waits for m (await free), held by MainThread",)


# -- the queue to wait in for anything else


@pytest.fixture
def queue() -> Iterator[WaitQueue]:
    queue = WaitQueue("pages")
    yield queue
    assert (list(queue._queue), queue._asleep) == ([], set())


def test_a_condition_that_holds_needs_no_wait(queue: WaitQueue) -> None:
    """Who finds its condition true goes on at once."""
    assert queue.wait_interruptible(lambda: True) is True


def test_a_wake_up_makes_waiters_look_again(queue: WaitQueue) -> None:
    """A waiter goes on when it is woken and its condition holds; woken too early it waits on."""
    free: collections.deque[int] = collections.deque()
    waits = in_thread(lambda: queue.wait_interruptible(lambda: bool(free)), "waits")
    until_parked(waits)
    again = threading.Event()
    task = switch.task_of(waits)
    task.on_park = lambda _: again.set()
    queue.wake_up()
    assert again.wait(30)
    free.append(1)
    queue.wake_up()
    assert waits.result() is True


def test_a_signal_ends_an_interruptible_wait(queue: WaitQueue) -> None:
    """A signal that comes while waiting, or has come before, ends the wait with False; it stays pending."""
    waits = in_thread(lambda: [queue.wait_interruptible(lambda: False) for _ in range(2)], "waits")
    until_parked(waits)
    queue.signal(switch.task_of(waits))
    assert waits.result() == [False, False]


def test_a_signal_reaches_one_task_only(queue: WaitQueue) -> None:
    """The others in the queue wait on."""
    done = threading.Event()
    one = in_thread(lambda: queue.wait_interruptible(done.is_set), "one")
    other = in_thread(lambda: queue.wait_interruptible(done.is_set), "other")
    until_parked(one)
    until_parked(other)
    queue.signal(switch.task_of(one))
    assert one.result() is False
    assert parked(other)
    done.set()
    queue.wake_up()
    assert other.result() is True


@pytest.mark.parametrize("when_woken", [False, True])
def test_ctrl_c_in_a_queue_leaves_nothing_behind(
    queue: WaitQueue,
    monkeypatch: pytest.MonkeyPatch,
    when_woken: bool,  # noqa: FBT001 - one of two moments
) -> None:
    """An interrupted waiter is in no queue any more."""
    interrupt(monkeypatch, "victim", when_woken=when_woken)
    victim = in_thread(lambda: queue.wait_interruptible(lambda: False), "victim")
    if when_woken:
        until_parked(victim)
        queue.wake_up()
    with pytest.raises(KeyboardInterrupt):
        victim.result()
    assert not parked(victim)
