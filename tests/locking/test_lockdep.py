"""lockdep: orders that could deadlock are found in runs in which nothing did."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import pytest

from memhp import DeadlockError
from memhp.locking import Lockdep, Mutex, PercpuRwSemaphore, Report
from support import in_thread


class Locks:
    """Locks under one lockdep."""

    def __init__(self) -> None:
        self.dep = Lockdep()
        self.a, self.b, self.c, self.g, self.h = (Mutex(name, self.dep) for name in "ABCGH")
        self.r, self.s = PercpuRwSemaphore("R", self.dep), PercpuRwSemaphore("S", self.dep)

    def found(self) -> list[tuple[str, ...]]:
        """Give the classes of each report."""
        return [report.classes for report in self.dep.reports]


@pytest.fixture
def locks() -> Locks:
    return Locks()


def take(*locks: object) -> None:
    """Take locks one inside the other, and give them back."""
    if locks:
        with locks[0]:  # type: ignore[attr-defined]
            take(*locks[1:])


def a_then_b(locks: Locks) -> None:
    with locks.a:
        b_inside(locks)


def b_inside(locks: Locks) -> None:
    with locks.b:
        pass


def b_then_a(locks: Locks) -> None:
    with locks.b:
        a_inside(locks)


def a_inside(locks: Locks) -> None:
    with locks.a:
        pass


def abridged(text: str) -> list[str]:
    """Keep of each stack the functions of this file, and of the text everything else."""
    lines = [
        re.sub(r"^( +\w+\(\)) at .*", r"\1", line)
        for line in text.splitlines()
        if "() at " not in line or "test_lockdep.py" in line
    ]
    return [line for line in lines if "test_" not in line]


ABBA = """\
======================================================
WARNING: possible circular locking dependency detected
------------------------------------------------------
T2 is trying to acquire lock:
 (A){write} A, at:
       a_inside()
       b_then_a()

but task is already holding lock:
 (B){write} B, taken at:
       b_then_a()

which lock already depends on the new lock.

the existing dependency chain (in reverse order) is:

-> #1 (B){write} B, by T1 at:
       b_inside()
       a_then_b()
   while holding (A){write} A, taken at:
       a_then_b()

other info that might help us debug this:

 Possible unsafe locking scenario:

       CPU0                                    CPU1
       ----                                    ----
  lock(B);
                                          lock(A);
                                          lock(B);
  lock(A);

 Nobody gets further:

  CPU0 waits for A {write}, held by CPU1 {write}
  CPU1 waits for B {write}, held by CPU0 {write}

 *** DEADLOCK ***

locks held by T2: B
"""


def test_two_orders_are_reported_though_nothing_deadlocked(locks: Locks, caplog: pytest.LogCaptureFixture) -> None:
    """A then B in one thread, later B then A in another: the report has both stacks of both, in the kernel's words."""
    in_thread(lambda: a_then_b(locks), "T1").result()
    assert locks.dep.reports == []
    in_thread(lambda: b_then_a(locks), "T2").result()
    (report,) = locks.dep.reports
    assert abridged(str(report)) == ABBA.splitlines()
    assert (report.kind, report.classes, report.task, report.held) == ("circular", ("B", "A"), "T2", ("B",))
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        ("memhp.lockdep", logging.WARNING, str(report))
    ]


def test_one_thread_is_enough(locks: Locks) -> None:
    """The same thread may show both orders, one after the other; the functions that took the locks are named."""
    a_then_b(locks)
    b_then_a(locks)
    assert locks.found() == [("B", "A")]
    text = str(locks.dep.reports[0])
    for function in ("a_then_b", "b_inside", "b_then_a", "a_inside"):
        assert re.search(rf"^ +{function}\(\) at .*test_lockdep\.py:\d+$", text, re.MULTILINE), function


def test_one_order_is_fine_however_often(locks: Locks) -> None:
    """Nested in one order, with or without the middle lock, there is nothing to report."""
    for _ in range(3):
        take(locks.a, locks.b, locks.c)
        take(locks.a, locks.c)
        take(locks.b, locks.c)
    assert locks.found() == []


def test_locks_that_are_not_nested_have_no_order(locks: Locks) -> None:
    """A lock that was given back leads nowhere."""
    for lock in (locks.a, locks.b, locks.a):
        take(lock)
    assert locks.found() == []


def test_each_cycle_is_reported_once(locks: Locks) -> None:
    """Repeating either order, in any thread, adds nothing."""
    for name in ("T1", "T2", "T3"):
        in_thread(lambda: a_then_b(locks), name).result()
        in_thread(lambda: b_then_a(locks), name).result()
    assert locks.found() == [("B", "A")]


def test_a_circle_of_three_is_reported(locks: Locks) -> None:
    """A then B, B then C, C then A: no two of them are wrong, all three are."""
    take(locks.a, locks.b)
    take(locks.b, locks.c)
    assert locks.found() == []
    take(locks.c, locks.a)
    (report,) = locks.dep.reports
    assert report.classes == ("C", "A", "B")
    assert (
        scenario(report)
        == """\
       CPU0                                    CPU1                                    CPU2
       ----                                    ----                                    ----
  lock(C);
                                          lock(A);
                                                                                  lock(B);
                                                                                  lock(C);
                                          lock(B);
  lock(A);
"""
    )
    assert re.findall(r"^-> #\d \(\w\)", str(report), re.MULTILINE) == ["-> #2 (C)", "-> #1 (B)"]


def scenario(report: Report) -> str:
    text = str(report).partition(" Possible unsafe locking scenario:\n\n")[2]
    return text.partition("\n Nobody gets further:")[0]


def test_a_circle_through_a_lock_in_between_is_reported(locks: Locks) -> None:
    """A, B, C nested says A before C too, so C then A closes a circle of two."""
    take(locks.a, locks.b, locks.c)
    take(locks.c, locks.a)
    assert ("C", "A") in locks.found()


def test_only_circles_that_can_happen_are_reported(locks: Locks) -> None:
    """C, A, B would need one task that holds A and another that holds A and B: only the circle of C and A is real."""
    take(locks.a, locks.b, locks.c)
    take(locks.c, locks.a)
    assert locks.found() == [("C", "A")]


def test_circles_with_a_lock_in_common_are_two(locks: Locks) -> None:
    """A and B, and A and C, are two wrong orders and two reports."""
    take(locks.a, locks.b)
    take(locks.a, locks.c)
    take(locks.b, locks.a)
    take(locks.c, locks.a)
    assert locks.found() == [("B", "A"), ("C", "A")]


# -- gates


@pytest.mark.fact("4.2")
def test_two_orders_under_one_common_lock_are_fine(locks: Locks) -> None:
    """Whoever takes A and B in either order holds G around both: they can't meet."""
    take(locks.g, locks.a, locks.b)
    take(locks.g, locks.b, locks.a)
    assert locks.found() == []


@pytest.mark.fact("4.2")
def test_the_same_orders_without_the_common_lock_are_reported(locks: Locks) -> None:
    """The gate must be held around every way round: one way without it is enough for a deadlock with another without it."""
    take(locks.g, locks.a, locks.b)
    take(locks.b, locks.a)
    assert locks.found() == [("B", "A")]


def test_an_order_that_was_gated_at_first_is_reported_when_it_no_longer_is(locks: Locks) -> None:
    """What a gate made harmless is not forgotten: the first ungated meeting is found."""
    take(locks.g, locks.a, locks.b)
    take(locks.g, locks.b, locks.a)
    take(locks.a, locks.b)
    assert locks.found() == [("A", "B")]


def test_two_different_gates_do_not_help(locks: Locks) -> None:
    """One order under G and the other under H can meet."""
    take(locks.g, locks.a, locks.b)
    take(locks.h, locks.b, locks.a)
    assert locks.found() == [("B", "A")]


def test_a_gate_among_several_is_enough(locks: Locks) -> None:
    """The two have H in common, whatever else they hold."""
    take(locks.g, locks.h, locks.a, locks.b)
    take(locks.h, locks.b, locks.a)
    assert locks.found() == []


def test_a_gate_that_is_taken_in_between_has_orders_of_its_own(locks: Locks) -> None:
    """A lock taken after the first keeps nobody from taking the first: it is itself part of the circles."""
    take(locks.a, locks.g, locks.b)
    take(locks.b, locks.g, locks.a)
    assert {("B", "G"), ("G", "A")} <= set(locks.found())


def test_two_readers_of_a_gate_are_not_kept_apart(locks: Locks) -> None:
    """A gate that both hold for reading only lets both in; one that either writes does not."""
    take(locks.r.read, locks.a, locks.b)
    take(locks.r.write, locks.b, locks.a)
    assert locks.found() == []
    take(locks.r.read, locks.b, locks.a)
    assert locks.found() == [("B", "A")]


def test_the_gate_is_the_lock_and_not_its_class(locks: Locks) -> None:
    """Two locks of one class are two gates."""
    one, two = (Mutex(name, locks.dep, lock_class="gate") for name in ("one", "two"))
    take(one, locks.a, locks.b)
    take(two, locks.b, locks.a)
    assert locks.found() == [("B", "A")]


# -- recursion


def test_taking_a_lock_twice_is_reported_as_recursion(locks: Locks) -> None:
    """The deadlock is refused, and the report names the lock and where it was taken before."""
    with locks.a, pytest.raises(DeadlockError):
        a_inside(locks)
    (report,) = locks.dep.reports
    text = abridged(str(report))
    assert (report.kind, report.classes, report.held) == ("recursive", ("A",), ("A",))
    assert text == [
        "============================================",
        "WARNING: possible recursive locking detected",
        "--------------------------------------------",
        "MainThread is trying to acquire lock:",
        " (A){write} A, at:",
        "       a_inside()",
        "",
        "but task is already holding lock:",
        " (A){write} A, taken at:",
        "",
        "MainThread would wait for itself.",
        "",
        " *** DEADLOCK ***",
    ]


def test_two_locks_of_one_class_nested_are_reported(locks: Locks) -> None:
    """Nothing says in which order two locks of a class are taken, so the kernel reports it, and so do we, once."""
    one, two = (Mutex(name, locks.dep, lock_class="device_lock") for name in ("memory32", "memory33"))
    take(one, two)
    take(two, one)
    (report,) = locks.dep.reports
    assert (report.kind, report.classes) == ("recursive", ("device_lock",))
    assert " (device_lock){write} memory33, at:" in str(report)
    assert " (device_lock){write} memory32, taken at:" in str(report)


def test_locks_of_a_class_share_their_orders(locks: Locks) -> None:
    """What one device lock does speaks for all: the order is of classes."""
    one, two = (Mutex(name, locks.dep, lock_class="device_lock") for name in ("memory32", "memory33"))
    take(one, locks.a)
    take(locks.a, two)
    assert locks.found() == [("A", "device_lock")]
    assert "memory33" in str(locks.dep.reports[0])
    assert "memory32" in str(locks.dep.reports[0])


def test_reading_twice_is_reported_as_recursion(locks: Locks) -> None:
    """A nested read deadlocks as soon as a writer waits between, so it is reported though it went well."""
    take(locks.r.read, locks.r.read)
    (report,) = locks.dep.reports
    assert (report.kind, report.classes) == ("recursive", ("R",))
    assert " (R){read} R, at:" in str(report)


# -- trylocks


def trying(outer: Mutex, inner: Mutex) -> None:
    with outer:
        assert inner.try_acquire()
        inner.release()


def test_a_trylock_adds_no_order_to_itself(locks: Locks) -> None:
    """A trylock never waits, so trying B under A does not forbid A under B."""
    trying(locks.a, locks.b)
    take(locks.b, locks.a)
    assert locks.found() == []


def test_what_was_taken_by_trylock_is_held_all_the_same(locks: Locks) -> None:
    """An acquisition under a lock that was tried for depends on it."""
    assert locks.a.try_acquire()
    take(locks.b)
    locks.a.release()
    take(locks.b, locks.a)
    assert locks.found() == [("B", "A")]


def test_a_trylock_that_failed_is_not_held(locks: Locks) -> None:
    """Who did not get the lock has no order with it."""

    def tries() -> bool:
        got = locks.a.try_acquire()
        take(locks.b)
        return got

    with locks.a:
        assert in_thread(tries).result() is False
    take(locks.b, locks.a)
    assert locks.found() == []


@pytest.mark.fact("4.3")
def test_a_lock_that_was_tried_for_is_a_gate(locks: Locks) -> None:
    """device_hotplug_lock is taken by trylock from sysfs, and keeps orders apart as if it had been waited for."""
    with locks.g:
        take(locks.a, locks.b)
    assert locks.g.try_acquire()
    take(locks.b, locks.a)
    locks.g.release()
    assert locks.found() == []


# -- readers


def crossed_reads(locks: Locks) -> None:
    take(locks.r.read, locks.s.read)
    take(locks.s.read, locks.r.read)


def writes(locks: Locks, which: Iterable[str]) -> None:
    for name in which:
        take(getattr(locks, name).write)


@pytest.mark.parametrize("written", ["", "r", "s"])
def test_a_circle_of_reads_is_fine_while_a_lock_in_it_is_never_written(locks: Locks, written: str) -> None:
    """Readers stop readers only through a writer that waits between; without writers of both there is no circle."""
    writes(locks, written)
    crossed_reads(locks)
    writes(locks, written)
    assert locks.found() == []


@pytest.mark.parametrize(("before", "after"), [("rs", ""), ("r", "s"), ("s", "r"), ("", "rs")])
def test_a_circle_of_reads_is_reported_once_both_are_written(locks: Locks, before: str, after: str) -> None:
    """It does not matter whether the writers came before the readers or after them."""
    writes(locks, before)
    crossed_reads(locks)
    writes(locks, after)
    assert [set(classes) for classes in locks.found()] == [{"R", "S"}]
    assert "{read}" in str(locks.dep.reports[0])


def test_a_circle_with_a_write_in_it_is_reported(locks: Locks) -> None:
    """A reader that wants the mutex of one who wants to write is a circle."""
    take(locks.r.read, locks.a)
    take(locks.a, locks.r.write)
    assert locks.found() == [("A", "R")]
    text = str(locks.dep.reports[0])
    assert " (R){write} R, at:" in text
    assert "   while holding (R){read} R, taken at:" in text


def test_a_mutex_between_reads_waits_for_no_writer(locks: Locks) -> None:
    """A reader that takes A, and an owner of A that reads, meet harmlessly until somebody writes."""
    take(locks.r.read, locks.a)
    take(locks.a, locks.r.read)
    assert locks.found() == []
    take(locks.r.write)
    assert [set(classes) for classes in locks.found()] == [{"A", "R"}]
