"""What an exploration says: every kind of finding, and what it means if there is none."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memhp import DeadlockError, InvalidInput
from memhp.explore import Finding, Kind, Limits, Scene, Verdict, declare, explore, replay
from memhp.explore.ops import CHOOSE
from memhp.explore.schedule import Schedule, encode, parse
from memhp.explore.strategies.chance import Chance
from memhp.explore.strategies.pct import Pct
from memhp.explore.timeline import timeline
from memhp.locking import Mutex, PercpuRwSemaphore, WaitQueue


def only(build: Callable[[Scene], object], **options: Any) -> Finding:
    result = explore(build, **options)
    assert result.verdict is Verdict.FAILS
    (finding,) = result.findings
    return finding


def abba(scene: Scene) -> None:
    a, b, c = Mutex("a"), Mutex("b"), Mutex("c")

    def take(first: Mutex, second: Mutex) -> None:
        with first, second:
            pass

    scene.thread("one", take, a, b)
    scene.thread("bystander", take, c, a)
    scene.thread("two", take, b, a)


def test_a_deadlock_says_who_waits_for_what_and_comes_without_bystanders() -> None:
    """Two locks in two orders: the third thread is left out, one switch is enough."""
    finding = only(abba)
    assert (finding.kind, finding.reason) == (
        Kind.DEADLOCK,
        "one waits for b (acquire), held by two; two waits for a (acquire), held by one",
    )
    assert [(one.task, one.lock, one.by, one.holds) for one in finding.blocked] == [
        ("one", "b", ("two",), ("a",)),
        ("two", "a", ("one",), ("b",)),
    ]
    assert timeline(finding, places=False).splitlines()[2:] == [
        "",
        "       one               two",
        "    1  acquire a",
        "    2                    acquire b",
        "       waits: acquire b",
        "                         waits: acquire a",
    ]
    assert finding.schedule.startswith("mhx1:abba:0:-b.aAcA:deadlock:")


def test_a_finding_shows_where_in_the_program_each_step_is() -> None:
    """The innermost frame that is not the locks' own."""
    (place, *_) = [line.place for line in only(abba).lines]
    assert place is not None
    assert (place.function, place.file) == ("abba.<locals>.take", __file__)


def test_an_exception_is_a_finding_with_its_cause() -> None:
    """An increment in two steps loses one; the thread that notices raises."""

    def lost(scene: Scene) -> None:
        x = scene.cell("x", 0)
        scene.thread("one", lambda: x.set(x.get() + 1))
        scene.thread("two", lambda: x.set(x.get() + 1))

        @scene.at_end
        def both_count() -> None:
            assert x.peek() == 2, f"x is {x.peek()}"

    finding = only(lost)
    assert (finding.kind, finding.reason) == (Kind.INVARIANT, "x is 1")
    assert [(finding.names[line.task], line.text) for line in finding.lines] == [
        ("one", "read x"),
        ("two", "read x"),
        ("two", "write x"),
        ("one", "write x"),
    ]


def test_what_a_thread_raises_is_a_finding() -> None:
    """Whatever it is; the others' locks are given back before the next execution."""

    def scene_of(scene: Scene) -> None:
        mutex = Mutex("m")

        def fail() -> None:
            with mutex:
                raise ZeroDivisionError("by nought")

        scene.thread("t", fail)

    finding = only(scene_of)
    assert (finding.kind, finding.reason) == (Kind.EXCEPTION, "t raised ZeroDivisionError: by nought")
    assert isinstance(finding.error, ZeroDivisionError)


def test_a_wake_up_that_is_lost_is_a_deadlock() -> None:
    """Who looks, and is woken before it sleeps, sleeps for ever; who looks again in time does not."""

    def scene_of(scene: Scene, *, careful: bool) -> None:
        queue, flag = WaitQueue("queue"), scene.cell("flag", False)

        def careless() -> None:
            if not flag.get():
                asked = iter([False, True])
                queue.wait_interruptible(lambda: next(asked))

        def wake() -> None:
            flag.set(True)
            queue.wake_up()

        scene.thread("sleeper", (lambda: queue.wait_interruptible(flag.get)) if careful else careless)
        scene.thread("waker", wake)

    finding = only(lambda scene: scene_of(scene, careful=False), name="careless")
    assert finding.reason == "sleeper waits for queue (sleep)"
    assert explore(lambda scene: scene_of(scene, careful=True), name="careful").verdict is Verdict.HOLDS


def test_a_task_that_takes_its_own_lock_is_deadlocked() -> None:
    """Even alone."""

    def scene_of(scene: Scene) -> None:
        mutex = Mutex("m")

        def twice() -> None:
            with mutex, mutex:
                pass

        scene.thread("t", twice)

    assert only(scene_of).reason == "t waits for m (acquire), held by t"


# -- choices


def test_a_choice_is_tried_both_ways_in_every_execution() -> None:
    """Two threads with a choice of three and of two, and one race: twelve executions."""

    def scene_of(scene: Scene) -> None:
        x = scene.cell("x", 0)

        def first() -> None:
            scene.choose(3)
            x.set(1)

        def second() -> None:
            x.set(2)
            scene.choose(2)

        scene.thread("one", first)
        scene.thread("two", second)

    seen: set[tuple[int, ...]] = set()
    result = explore(scene_of)
    assert (result.verdict, result.executions, result.redundant, seen) == (Verdict.HOLDS, 12, 0, set())


def test_a_choice_stands_in_the_schedule() -> None:
    """The number is played again."""

    def scene_of(scene: Scene) -> None:
        def choose() -> None:
            assert scene.choose(3) != 2

        scene.thread("t", choose)

    finding = only(scene_of)
    assert ":aC2:" in finding.schedule
    assert replay(scene_of, finding.schedule).findings[0].reason == finding.reason


# -- invariants


class Account:
    def __init__(self) -> None:
        self.left, self.right = 100, 0


declare(Account, "left", "right", label=lambda account: "account")


def transfers(scene: Scene, *, locked: bool, watch: bool = True) -> None:
    account, mutex = Account(), Mutex("mutex")

    def move() -> None:
        with mutex:
            account.left -= 10
            account.right += 10

    def peek() -> None:
        if locked:
            with mutex:
                assert account.left + account.right == 100
        else:
            assert account.left + account.right == 100

    scene.thread("one", move)
    scene.thread("two", move)
    if not watch:
        scene.thread("peeper", peek)
    else:
        scene.invariant(mutex, lambda: account.left + account.right == 100)


def test_an_invariant_is_looked_at_where_its_lock_is_given_back() -> None:
    """Within the critical section the sum is wrong, and nobody can see it: two executions, no steps for the fields."""
    result = explore(lambda scene: transfers(scene, locked=True), name="transfers")
    assert (result.verdict, result.executions, result.shared) == (Verdict.HOLDS, 2, ())


def test_a_field_that_somebody_reads_without_the_lock_becomes_shared() -> None:
    """Nobody declared which lock guards it: that an access did not hold it is found out, and then the race."""
    result = explore(lambda scene: transfers(scene, locked=False, watch=False), name="peep")
    assert set(result.shared) >= {"Account.left", "Account.right"}
    assert result.findings[0].kind is Kind.EXCEPTION
    assert explore(lambda scene: transfers(scene, locked=True, watch=False), name="peep").verdict is Verdict.HOLDS


def test_an_invariant_of_what_its_lock_does_not_guard_is_refused() -> None:
    """It would be looked at in states that only some of the equal executions go through."""

    def scene_of(scene: Scene) -> None:
        account, mine, other = Account(), Mutex("mine"), Mutex("other")

        def move() -> None:
            with mine:
                account.left -= 10

        def unrelated() -> None:
            with other:
                pass

        scene.thread("one", move)
        scene.thread("two", move)
        scene.thread("three", unrelated)
        scene.invariant(other, lambda: account.left >= 0)

    with pytest.raises(InvalidInput, match=r"account.left \(guarded by mine\).*the lock at whose release"):
        explore(scene_of)


# -- what can't be explored


def test_a_task_that_never_ends_is_cut_off() -> None:
    """It is a finding with a schedule of its beginning, and the search is not complete."""

    def scene_of(scene: Scene) -> None:
        flag = scene.cell("flag", False)

        def spin() -> None:
            while not flag.get():
                pass

        scene.thread("spinner", spin)
        scene.thread("setter", flag.set, True)

    result = explore(scene_of, limits=Limits(steps=500))
    assert (result.findings[0].kind, result.complete) == (Kind.NEVER_ENDS, False)
    assert result.findings[0].reason == "spinner is still at it after 500 steps of the execution"
    assert result.scope.startswith("bounded: 500 steps of one execution; ")


def test_spinning_on_a_lock_is_no_endless_loop_if_it_awaits_it() -> None:
    """Try, and await its freedom: the form of a restarted system call."""

    def scene_of(scene: Scene) -> None:
        mutex = Mutex("m")

        def spin() -> None:
            while not mutex.try_acquire():
                mutex.await_free()
            mutex.release()

        scene.thread("one", spin)
        scene.thread("two", spin)

    result = explore(scene_of)
    assert (result.verdict, result.executions) == (Verdict.HOLDS, 4)


STUCK: dict[str, Callable[[], object]] = {
    "sleeps": lambda: time.sleep(3600),
    "blocks": lambda: threading.Semaphore(0).acquire(),
    "computes": lambda: [None for _ in itertools.count()],
}


@pytest.mark.parametrize("how", STUCK)
def test_a_task_that_does_not_come_back_is_named(how: str) -> None:
    """Whether it sleeps, blocks on another make of lock, or computes: an answer, not a hang."""

    def scene_of(scene: Scene) -> None:
        mutex = Mutex("m")

        def task() -> None:
            with mutex:
                STUCK[how]()

        scene.thread("worker", task)

    result = explore(scene_of, limits=Limits(patience=0.2))
    assert (result.findings[0].kind, result.complete) == (Kind.STUCK, False)
    assert result.findings[0].reason.startswith("worker did not come to its next step within 0.2 s: it blocks outside of the")


def test_a_scene_that_is_not_the_same_twice_is_found_out() -> None:
    """State that outlives an execution changes what the same schedule does."""
    played: list[int] = []

    def scene_of(scene: Scene) -> None:
        played.append(1)
        mutex, odd = Mutex("m"), len(played) % 2

        def task() -> None:
            if odd:
                with mutex:
                    pass

        scene.thread("t", task)

    finding = only(scene_of)
    assert finding.kind is Kind.NONDETERMINISM
    assert finding.reason.startswith("the same schedule diverged at step 1: expected t to acquire, got it has ended")


def test_a_limit_is_never_a_pass() -> None:
    """Not of executions, nor of seconds; and drawing some executions proves nothing either."""

    def scene_of(scene: Scene) -> None:
        x = scene.cell("x", 0)
        for number in range(5):
            scene.thread(f"t{number}", x.set, number)

    bounded = explore(scene_of, limits=Limits(executions=10))
    assert (bounded.verdict, bounded.scope) == (Verdict.UNDECIDED, "bounded: 10 executions; 10 executions, 50 steps")
    timed = explore(scene_of, limits=Limits(seconds=0.0))
    assert (timed.verdict, timed.limit) == (Verdict.UNDECIDED, "0 seconds")
    sampled = explore(scene_of, strategy=lambda: Chance(20))
    assert (sampled.verdict, sampled.scope) == (Verdict.UNDECIDED, "sampled (random): 20 executions, 100 steps")
    few = explore(scene_of, strategy="bounded")
    assert (few.verdict, few.scope.split(":")[0]) == (Verdict.UNDECIDED, "bounded (at most 2 preemptions)")


def test_without_threads_there_is_nothing_to_explore() -> None:
    """A scene must start one."""
    with pytest.raises(InvalidInput, match="at least one thread"):
        explore(lambda scene: None, name="empty")


def test_two_threads_can_not_have_one_name() -> None:
    """Names are what findings and schedules speak of."""

    def scene_of(scene: Scene) -> None:
        scene.thread("t", lambda: None)
        scene.thread("t", lambda: None)

    with pytest.raises(InvalidInput, match="that no other thread of the scene has"):
        explore(scene_of)


def test_a_wait_outside_of_threads_is_an_error() -> None:
    """Nobody could end it: what the scene's function itself does must not block."""

    def scene_of(scene: Scene) -> None:
        mutex = Mutex("m")
        mutex.acquire()
        mutex.acquire()

    with pytest.raises(RuntimeError, match="acquire of m outside of the threads would wait for ever"):
        explore(scene_of)


def test_locks_that_refuse_endless_waits_by_themselves_do_so_here() -> None:
    """To write what one reads is an error at once, and as such a finding."""

    def scene_of(scene: Scene) -> None:
        rwsem = PercpuRwSemaphore("rwsem")

        def both() -> None:
            with rwsem.read, rwsem.write:
                pass

        scene.thread("t", both)

    assert isinstance(only(scene_of).error, DeadlockError)


# -- replay


def test_a_replay_gives_the_same_finding() -> None:
    """The string alone says it."""
    finding = only(abba)
    again = replay(abba, finding.schedule)
    assert (again.executions, again.findings[0].reason) == (1, finding.reason)
    assert again.findings[0].schedule == finding.schedule


def test_a_replay_stops_where_the_code_has_changed() -> None:
    """It says at which step, what was expected and what came."""

    def changed(scene: Scene) -> None:
        a, b = Mutex("a"), Mutex("b")
        scene.thread("one", a.acquire)
        scene.thread("bystander", lambda: None)
        scene.thread("two", b.try_acquire)

    result = replay(changed, only(abba).schedule, name="abba")
    assert (result.findings[0].kind, result.findings[0].headline) == (
        Kind.DIVERGED,
        "diverged at step 2: expected two to acquire, got try, succeeded b",
    )


def test_a_replay_says_that_the_bug_is_gone() -> None:
    """The steps are possible, and what was wrong at their end is not any more."""

    def mended(scene: Scene) -> None:
        a, b = Mutex("a"), Mutex("b")
        scene.thread("one", a.acquire)
        scene.thread("bystander", lambda: None)
        scene.thread("two", b.acquire)

    result = replay(mended, only(abba).schedule, name="abba")
    assert result.findings[0].reason == (
        "diverged at step 3: expected the end (deadlock), got an execution in which nothing is wrong"
    )


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("mhx2:abba:0:aAcA:deadlock:0", "version: 'mhx2' is not valid; expected mhx1"),
        ("mhx1:other:0:aAcA:deadlock:0", "scene: 'other' is not valid; expected abba"),
        ("mhx1:abba:0:aAcA", "expected a schedule string as memhp explore prints it"),
        ("mhx1:abba:xyz:aAcA:deadlock:0", "shared fields: 'xyz' is not valid; expected a hexadecimal number"),
        ("mhx1:abba:0:aA?:deadlock:0", r"steps: 'aA\?' is not valid"),
        ("", "expected a schedule string"),
    ],
)
def test_a_string_that_is_no_schedule_of_this_scene_is_refused(schedule: str, message: str) -> None:
    """Of another version, of another scene, or none at all."""
    with pytest.raises(InvalidInput, match=message):
        replay(abba, schedule)


# -- strategies


@pytest.mark.parametrize(
    "make", ["optimal", "source", "brute", "bounded", lambda: Chance(200, seed=1), lambda: Pct(200, seed=1, depth=2)]
)
def test_every_strategy_finds_the_deadlock(make: Any) -> None:
    """And it comes out the same: made smaller, played again."""
    finding = only(abba, strategy=make)
    assert finding.schedule.startswith("mhx1:abba:0:-b.")
    assert finding.steps == 2


@pytest.mark.parametrize("make", [Chance, Pct])
def test_a_seed_gives_the_same_executions_each_time(make: Any) -> None:
    """What is drawn is drawn by the seed alone."""
    traces = []
    for _ in range(2):
        seen: list[str] = []
        explore(abba, strategy=lambda: make(30, seed=7), everything=True, smaller=False)
        traces.append(explore(abba, strategy=lambda: make(30, seed=7), everything=True, smaller=False).steps)
        seen.clear()
    assert traces[0] == traces[1]


# -- lockdep


def one_after_the_other(scene: Scene, *, wait: bool) -> None:
    dep = scene.lockdep()
    a, b, queue, flag = Mutex("a", dep), Mutex("b", dep), WaitQueue("queue"), scene.cell("done", False)

    def first() -> None:
        with a, b:
            pass
        flag.set(True)
        queue.wake_up()

    def second() -> None:
        if wait:
            queue.wait_interruptible(flag.get)
        with b, a:
            pass

    scene.thread("first", first)
    scene.thread("second", second)


def test_a_lock_order_that_deadlocks_is_confirmed() -> None:
    """lockdep saw the two orders, the search has the schedule."""
    result = explore(lambda scene: one_after_the_other(scene, wait=False), name="at once", everything=True)
    (order,) = result.lock_orders
    assert set(order.classes) == {"a", "b"}
    assert order.outcome == f"confirmed, it deadlocks: {order.schedule}"
    assert order.schedule.startswith("mhx1:at once:0:")


def test_a_lock_order_that_can_not_deadlock_here_is_not_reproduced() -> None:
    """The second thread waits for the first: lockdep can't know, and it is a failure all the same until somebody says so."""
    result = explore(lambda scene: one_after_the_other(scene, wait=True), name="in turn")
    (order,) = result.lock_orders
    assert (result.verdict, result.findings, order.schedule) == (Verdict.FAILS, [], "")
    assert order.outcome.startswith("not reproduced, complete (optimal): ")


def test_lockdep_sees_orders_of_different_executions_together() -> None:
    """No single execution has both: which order the one thread takes depends on who came first."""

    def scene_of(scene: Scene) -> None:
        dep = scene.lockdep()
        a, b, flag = Mutex("a", dep), Mutex("b", dep), scene.cell("flag", False)

        def either() -> None:
            first, second = (b, a) if flag.get() else (a, b)
            with first, second:
                pass

        scene.thread("either", either)
        scene.thread("setter", flag.set, True)

    result = explore(scene_of)
    assert [(set(order.classes), order.outcome.split(",")[0]) for order in result.lock_orders] == [({"a", "b"}, "not reproduced")]


# -- schedule strings


@given(
    shared=st.frozensets(st.integers(0, 80)),
    left_out=st.frozensets(st.integers(0, 800)),
    left_parts=st.frozensets(st.integers(0, 80)),
    turns=st.lists(
        st.tuples(st.integers(0, 800), st.integers(0, CHOOSE - 1), st.just(-1))
        | st.tuples(st.integers(0, 800), st.just(CHOOSE), st.integers(0, 99))
    ),
)
def test_a_schedule_is_read_as_it_was_written(
    shared: frozenset[int], left_out: frozenset[int], left_parts: frozenset[int], turns: list[tuple[int, int, int]]
) -> None:
    """Whatever threads, steps and choices there are."""
    text = encode("scene", shared, (left_out, left_parts), turns, "never ends", "0123abcd")
    assert parse(text, "scene") == Schedule("scene", shared, left_out, left_parts, tuple(turns), "never ends", "0123abcd")
    assert " " not in text
