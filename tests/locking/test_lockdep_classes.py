"""lockdep's classes: subclasses, order within a class, retries, waits that are no locks, graphs of several runs."""

from __future__ import annotations

import pickle
import re
import threading

import pytest

from memhp.errors import DeadlockError, InvalidInput
from memhp.locking import ActiveReference, Lockdep, LockGraph, LockMap, Mode, Mutex, PercpuRwSemaphore
from support import in_thread, until_parked


@pytest.fixture
def dep() -> Lockdep:
    return Lockdep()


def found(dep: Lockdep) -> list[tuple[str, tuple[str, ...]]]:
    return [(report.kind, report.classes) for report in dep.reports]


def device(number: int, dep: Lockdep, order: int | None = None) -> Mutex:
    return Mutex(f"dev{number}", dep, lock_class="device_lock", order=order)


# -- subclasses


def test_a_child_may_be_locked_under_its_parent_at_a_nesting_level(dep: Lockdep) -> None:
    """Parent 0, child 1: two classes to lockdep."""
    parent, child = device(1, dep), device(2, dep)
    with parent, child.nested(1):
        pass
    assert found(dep) == []
    assert [(edge.before.key, edge.after.key) for edge in dep.graph.edges()] == [("device_lock", "device_lock/1")]


def test_nesting_levels_have_an_order_like_classes(dep: Lockdep) -> None:
    """Who takes a parent under a child is found out."""
    parent, child = device(1, dep), device(2, dep)
    with parent, child.nested(1):
        pass
    with child.nested(1), parent:
        pass
    assert found(dep) == [("circular", ("device_lock/1", "device_lock"))]
    assert " (device_lock/1){write} dev2, taken at:" in str(dep.reports[0])


def test_two_locks_at_one_nesting_level_are_a_recursion(dep: Lockdep) -> None:
    """A level says nothing of the locks within it."""
    one, two = device(1, dep), device(2, dep)
    with one.nested(1), two.nested(1):
        pass
    assert found(dep) == [("recursive", ("device_lock/1",))]


@pytest.mark.parametrize("subclass", [-1, 8])
def test_a_nesting_level_out_of_range_is_refused(dep: Lockdep, subclass: int) -> None:
    """The kernel has eight."""
    with pytest.raises(InvalidInput, match=rf"subclass of dev1: {subclass}"):
        device(1, dep).acquire(subclass=subclass)


# -- order within a class


def test_locks_with_an_order_may_nest_in_ascending_order(dep: Lockdep) -> None:
    """Any number of them, with gaps."""
    first, second, third = (device(n, dep, order=n) for n in (32, 33, 40))
    with first, second, third:
        pass
    with first, third:
        pass
    assert found(dep) == []
    assert dep.graph.edges() == []


def test_descending_order_is_found_out_also_after_ascending(dep: Lockdep) -> None:
    """The order is of locks, so each pair is looked at, whatever was seen of their class before."""
    first, second = (device(n, dep, order=n) for n in (32, 33))
    with first, second:
        pass
    with second, first:
        pass
    (report,) = dep.reports
    assert (report.kind, report.classes) == ("recursive", ("device_lock",))
    assert report.why == "Locks of the class device_lock are taken in ascending order: dev32 comes before dev33."
    assert str(report).endswith(f"\n\n{report.why}\n\n *** DEADLOCK ***")


def test_each_lock_that_is_held_counts(dep: Lockdep) -> None:
    """The newest may be lower, and an older one higher."""
    first, second, third = (device(n, dep, order=n) for n in (1, 2, 3))
    with first, third, second:
        pass
    assert found(dep) == [("recursive", ("device_lock",))]


def test_a_lock_without_an_order_is_not_in_it(dep: Lockdep) -> None:
    """Both must have one."""
    with device(1, dep, order=1), device(2, dep):
        pass
    assert dep.reports[0].why == "Nothing says in which order locks of the class device_lock are taken."


def test_an_order_does_not_help_across_another_lock(dep: Lockdep) -> None:
    """dev1, A, dev2 and dev2, A: A's holder may want dev2 of somebody who wants A."""
    first, second, a = device(1, dep, order=1), device(2, dep, order=2), Mutex("A", dep)
    with first, a, second:
        pass
    assert ("circular", ("A", "device_lock")) in found(dep) or ("circular", ("device_lock", "A")) in found(dep)


# -- gates and classes


def test_a_lock_of_a_crowded_class_is_no_gate(dep: Lockdep) -> None:
    """What one device lock is held around, another may be: two orders under one device lock can meet."""
    gate, a, b = device(1, dep), Mutex("A", dep), Mutex("B", dep)
    with gate, a, b:
        pass
    with gate, b, a:
        pass
    assert found(dep) == []
    device(2, dep)
    assert found(dep) == [("circular", ("A", "B"))] or found(dep) == [("circular", ("B", "A"))]


def test_edges_do_not_grow_with_locks(dep: Lockdep) -> None:
    """Hundreds of locks of a class, taken in the same way, add what two of them add."""
    a, b = Mutex("A", dep), Mutex("B", dep)

    def use(lock: Mutex) -> int:
        with a, lock, b:
            pass
        return len(dep.graph.edges())

    counts = [use(device(number, dep)) for number in range(500)]
    assert counts[1:] == [3] * 499


# -- trying, and trying again


def spin(outer: Mutex, inner: Mutex) -> None:
    """Try twice in vain while holding another lock."""
    with outer:
        assert not inner.try_acquire()
        assert not inner.try_acquire()


def test_trying_again_without_letting_go_is_waiting(dep: Lockdep) -> None:
    """Who spins for B while holding A stops those who want A under B, as if it slept."""
    a, b = Mutex("A", dep), Mutex("B", dep)
    with b, a:
        pass
    with b:
        in_thread(lambda: spin(a, b)).result()
    assert found(dep) == [("circular", ("A", "B"))]


def test_trying_again_after_letting_go_is_not(dep: Lockdep) -> None:
    """The restart of a system call: everything is given back before the next attempt."""
    a, b = Mutex("A", dep), Mutex("B", dep)

    def restarts() -> None:
        for _ in range(2):
            with a:
                assert not b.try_acquire()

    with b, a:
        pass
    with b:
        in_thread(restarts).result()
    assert found(dep) == []


def test_a_successful_second_attempt_counts_too(dep: Lockdep) -> None:
    """That it went well this time does not make the spin harmless."""
    a, b = Mutex("A", dep), Mutex("B", dep)
    with b, a:
        pass
    failed, freed = threading.Event(), threading.Event()

    def tries_twice() -> None:
        with a:
            assert not b.try_acquire()
            failed.set()
            assert freed.wait(30)
            assert b.try_acquire()
            b.release()

    with b:
        thread = in_thread(tries_twice)
        assert failed.wait(30)
    freed.set()
    thread.result()
    assert found(dep) == [("circular", ("A", "B"))]


@pytest.mark.fact("4.3")
def test_waiting_until_a_lock_is_free_is_waiting_for_it(dep: Lockdep) -> None:
    """Holding something meanwhile is reported with that lock's class; holding nothing is the restart, and fine."""
    a, b = Mutex("A", dep), Mutex("B", dep)
    with b, a:
        pass
    b.await_free()
    assert found(dep) == []
    with a:
        b.await_free()
    assert found(dep) == [("circular", ("A", "B"))]
    assert " (B){write} B, at:" in str(dep.reports[0])


# -- modes


@pytest.fixture
def reads_then_writes(dep: Lockdep) -> str:
    """Give the report of a reader that wants what a would-be writer has."""
    r, a = PercpuRwSemaphore("R", dep), Mutex("A", dep)
    with r.read, a:
        pass
    with a, r.write:
        pass
    return str(dep.reports[0])


def test_a_report_says_modes_and_why_nobody_gets_further(reads_then_writes: str) -> None:
    """The writer waits for the reader, the reader for the writer's mutex."""
    assert reads_then_writes.partition("might help us debug this:\n\n")[2].partition("\n\n *** DEADLOCK")[0] == (
        """\
 Possible unsafe locking scenario:

       CPU0                                    CPU1
       ----                                    ----
  lock(A);
                                          rlock(R);
                                          lock(A);
  lock(R);

 Nobody gets further:

  CPU0 waits for R {write}, held by CPU1 {read}
  CPU1 waits for A {write}, held by CPU0 {write}"""
    )


def test_a_report_of_readers_says_that_writers_wait_between(dep: Lockdep) -> None:
    """And which of them were not seen."""
    r, s, g = PercpuRwSemaphore("R", dep), PercpuRwSemaphore("S", dep), Mutex("G", dep)
    with r.read, s.read:
        pass
    with g, s.read, r.read:
        pass
    with r.write:
        pass
    (warning,) = dep.warnings
    assert str(warning).partition(" Nobody gets further:\n\n")[2].partition("\n\n *** DEADLOCK")[0] == (
        """\
  CPU0 waits for S {read}, held by CPU1 {read}, behind a writer that waits for CPU1; nobody was seen to write it
  CPU1 waits for R {read}, held by CPU0 {read}, behind a writer that waits for CPU0
  CPU1 holds besides: G"""
    )
    assert dep.reports == []
    with s.write:
        pass
    assert (found(dep), dep.warnings) == ([("circular", ("S", "R"))], [])


def test_waiting_for_readers_is_reported_with_the_class_of_what_they_read(dep: Lockdep) -> None:
    """A writer that drains, and a reader inside that wants what the writer has: refused, and reported, by class."""
    sem, a = PercpuRwSemaphore("one", dep, lock_class="memory"), Mutex("A", dep)
    sem.read_acquire()

    def writes() -> None:
        with a, sem.write:
            pass

    writer = in_thread(writes, "writer")
    until_parked(writer)
    with pytest.raises(DeadlockError) as caught:
        a.acquire()
    assert caught.value.chain == (
        "MainThread waits for A (acquire), held by writer",
        "writer waits for one (wait for readers), held by MainThread",
    )
    sem.read_release()
    writer.result()
    assert found(dep) == [("circular", ("memory", "A"))]


def test_a_recursive_read_may_nest_and_leads_nowhere(dep: Lockdep) -> None:
    """The second read of the same lock gets in for certain, whatever was taken in between."""
    rcu, a = LockMap("rcu", dep), Mutex("A", dep)
    with rcu.holding(Mode.RECURSIVE_READ), a, rcu.holding(Mode.RECURSIVE_READ):
        pass
    with rcu.holding():
        pass
    assert (found(dep), dep.warnings) == ([], [])
    assert [(edge.before.key, edge.after.key) for edge in dep.graph.edges()] == [("rcu", "A")]


# -- what is no lock


def test_a_map_shows_a_wait_that_is_no_lock(dep: Lockdep) -> None:
    """A job needs A; who waits for the job's end while holding A waits for ever."""
    job, a = LockMap("job", dep), Mutex("A", dep)

    def work() -> None:
        with job.holding(), a:
            pass

    def flush() -> None:
        with a:
            job.acquire()
            job.release()

    work()
    flush()
    assert found(dep) == [("circular", ("A", "job"))]


def test_the_users_of_a_reference_and_its_drain_are_a_read_and_a_write(dep: Lockdep) -> None:
    """A user that wants what the drainer holds; getting the reference itself never waits."""
    files, a = ActiveReference("s_active", dep), Mutex("A", dep)
    with a:
        assert files.get()
        files.put()
    assert dep.graph.edges() == []
    assert files.get()
    with a:
        pass
    files.put()
    with a:
        files.drain()
    assert found(dep) == [("circular", ("A", "s_active"))]
    assert not files.get()


# -- several runs


def one_order(first: str, second: str) -> LockGraph:
    dep = Lockdep()
    with Mutex(first, dep), Mutex(second, dep):
        pass
    assert dep.reports == []
    return dep.graph


def sent(graph: LockGraph) -> LockGraph:
    """Give the graph as another process gets it."""
    return pickle.loads(pickle.dumps(graph))  # type: ignore[no-any-return] # noqa: S301 - it is our own


def test_orders_of_several_runs_meet_in_the_merged_graph() -> None:
    """No run has the cycle; each edge has the stacks of its acquisitions, also from another process."""
    graphs = [one_order("A", "B"), sent(one_order("B", "C")), one_order("C", "A")]
    (cycle,) = LockGraph.merged(graphs).cycles()
    assert cycle.classes == ("A", "B", "C")
    assert [(edge.before.name, edge.after.name) for edge in cycle.edges] == [("A", "B"), ("B", "C"), ("C", "A")]
    for edge in cycle.edges:
        for take in (edge.before, edge.after):
            assert take.site is not None
            assert re.fullmatch(r"one_order\(\) at .*test_lockdep_classes\.py:\d+", take.site.lines()[0])


def test_a_merged_graph_leaves_its_parts_as_they_were() -> None:
    """They can be merged again, with others."""
    parts = [one_order("A", "B"), one_order("B", "A")]
    assert len(LockGraph.merged(parts).cycles()) == 1
    assert [part.cycles() for part in parts] == [[], []]
    assert len(LockGraph.merged([LockGraph.merged(parts), one_order("B", "C")]).cycles()) == 1


def test_too_many_ways_round_are_said_to_be_too_many(caplog: pytest.LogCaptureFixture) -> None:
    """The search ends, and says that it did; it is no proof then."""
    dep = Lockdep()
    locks = [LockMap(f"L{number:02}", dep) for number in range(24)]
    for place, outer in enumerate(locks):
        for inner in locks[place + 1 :]:
            with outer.holding(), inner.holding(Mode.RECURSIVE_READ if inner is locks[-1] else Mode.WRITE):
                pass
    assert not dep.graph.truncated
    with locks[-1].holding(Mode.RECURSIVE_READ), locks[0].holding():
        pass
    assert (dep.graph.truncated, found(dep), dep.warnings) == (True, [], [])
    assert [record.getMessage() for record in caplog.records] == [
        "lockdep: there are too many ways from lock to lock; some cycles may not be found"
    ]
