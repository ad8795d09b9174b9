"""The switch point: a controlled scheduler sees every operation, and nothing blocks behind its back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from memhp.locking import Mode, Mutex, Op, PercpuRwSemaphore, Task, WaitQueue, control, current, switch
from memhp.locking.switch import Waitable, ending_request


class Script:
    """A driver that lets everything pass and writes it down; the test says who runs."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str, bool]] = []
        self.tasks = {name: Task(name) for name in ("T1", "T2")}
        self.running = self.tasks["T1"]

    def current(self) -> Task:
        return self.running

    def point(self, op: Op, lock: Waitable) -> None:
        self.log.append((self.running.name, op.value, lock.name, lock.ready(self.running, op)))

    def run(self, name: str) -> None:
        self.running = self.tasks[name]

    def take(self) -> list[tuple[str, str, str, bool]]:
        log, self.log = self.log, []
        return log


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    with control(script):
        yield script


def test_a_scheduler_sees_each_operation_of_a_mutex_in_order(script: Script) -> None:
    """Taking, trying, awaiting and giving back are announced before they happen, with whether they could."""
    mutex = Mutex("m")
    with mutex:
        script.run("T2")
        assert mutex.try_acquire() is False
        script.run("T1")
    mutex.await_free()
    assert mutex.try_acquire() is True
    mutex.release()
    assert script.log == [
        ("T1", "acquire", "m", True),
        ("T2", "try acquire", "m", True),
        ("T1", "release", "m", True),
        ("T1", "await free", "m", True),
        ("T1", "try acquire", "m", True),
        ("T1", "release", "m", True),
    ]


def test_a_scheduler_sees_each_operation_of_a_percpu_rwsem_in_order(script: Script) -> None:
    """A write is two steps, stopping new readers and waiting for the old ones; a read is one."""
    sem = PercpuRwSemaphore("sem")
    with sem.read:
        script.run("T2")
        sem.read_acquire()
        sem.read_release()
        script.run("T1")
    with sem.write:
        pass
    assert script.log == [
        ("T1", "read acquire", "sem", True),
        ("T2", "read acquire", "sem", True),
        ("T2", "read release", "sem", True),
        ("T1", "read release", "sem", True),
        ("T1", "block new readers", "sem", True),
        ("T1", "wait for readers", "sem", True),
        ("T1", "write release", "sem", True),
    ]


def test_a_scheduler_sees_a_wait_queue(script: Script) -> None:
    """Waiting and waking are operations as well; a wait is ready when its condition holds or a signal is pending."""
    queue = WaitQueue("pages")
    assert queue.wait_interruptible(lambda: True) is True
    queue.wake_up()
    script.running.signals = 1
    assert queue.wait_interruptible(lambda: False) is False
    assert script.log == [("T1", "wait", "pages", True), ("T1", "wake", "pages", True), ("T1", "wait", "pages", True)]


def test_each_task_of_a_scheduler_has_its_own_holds(script: Script) -> None:
    """All tasks run in one thread, yet each holds what it took itself."""
    mutex, sem = Mutex("m"), PercpuRwSemaphore("sem")
    with mutex, sem.read:
        script.run("T2")
        assert (mutex.held(), sem.held(Mode.READ), current().describe_held()) == (False, False, [])
        sem.read_acquire()
        assert (sem.readers(), sem.held(Mode.READ)) == (2, True)
        script.run("T1")
        assert current().describe_held() == ["m", "sem (read)"]
    script.run("T2")
    sem.read_release()
    assert sem.readers() == 0


Locks = tuple[Mutex, PercpuRwSemaphore]
BLOCKED: dict[str, tuple[Callable[[Locks], object], Callable[[Locks], object], Callable[[Locks], object], str]] = {
    "acquire": (
        lambda locks: locks[0].acquire(),
        lambda locks: locks[0].acquire(),
        lambda locks: locks[0].release(),
        "acquire of m",
    ),
    "await free": (
        lambda locks: locks[0].acquire(),
        lambda locks: locks[0].await_free(),
        lambda locks: locks[0].release(),
        "await free of m",
    ),
    "read": (
        lambda locks: locks[1].write_acquire(),
        lambda locks: locks[1].read_acquire(),
        lambda locks: locks[1].write_release(),
        "read acquire of sem",
    ),
    "write behind a writer": (
        lambda locks: locks[1].write_acquire(),
        lambda locks: locks[1].write_acquire(),
        lambda locks: locks[1].write_release(),
        "block new readers of sem",
    ),
    "write behind a reader": (
        lambda locks: locks[1].read_acquire(),
        lambda locks: locks[1].write_acquire(),
        lambda locks: locks[1].read_release(),
        "wait for readers of sem",
    ),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_nothing_blocks_under_a_scheduler(script: Script, case: str) -> None:
    """A driver that lets a task run into a wait has erred: RuntimeError says where, and the locks stay consistent."""
    take, block, give, where = BLOCKED[case]
    locks = (Mutex("m"), PercpuRwSemaphore("sem"))
    take(locks)
    script.run("T2")
    with pytest.raises(RuntimeError, match=f"T2 would block in {where} under a scheduler"):
        block(locks)
    assert script.log[-1][3] is False  # it was announced, and not ready
    script.run("T1")
    give(locks)
    script.run("T2")
    with locks[0], locks[1].write:
        assert script.running.describe_held() == ["m", "sem"]
    assert script.running.describe_held() == []


def test_one_scheduler_at_a_time(script: Script) -> None:
    """A second one is refused, and the first stays."""
    with pytest.raises(RuntimeError, match="at work already"), control(Script()):
        pass
    assert switch.controlled()
    assert current() is script.running


def test_a_scheduler_is_gone_after_its_block() -> None:
    """Also after an error threads are tasks again, and operations are not announced."""
    script = Script()
    with pytest.raises(ZeroDivisionError), control(script):
        raise ZeroDivisionError
    with Mutex("m"):
        assert current().name == "MainThread"
    assert (switch.controlled(), script.log) == (False, [])


def test_a_thread_is_one_task_for_good() -> None:
    """A thread asks twice and is the same task, which carries its name."""
    assert current() is current()
    assert (current().name, current().alive) == ("MainThread", True)


def test_an_interrupt_waits_for_the_end_of_the_outermost_request() -> None:
    """Of a request that is made of others, none of them looks as if it had failed; afterwards nothing is left of it."""
    ended: list[str] = []
    with pytest.raises(KeyboardInterrupt), ending_request():  # noqa: PT012 - what happens inside is the point
        with ending_request():
            current().deferred = KeyboardInterrupt()
        ended.append("first")
        with ending_request():
            pass
        ended.append("second")
    assert (ended, current().deferred, current().requests) == (["first", "second"], None, 0)


def test_an_interrupt_takes_the_place_of_the_request_s_own_error() -> None:
    """Also of one that comes from within; the error is its context."""
    with pytest.raises(KeyboardInterrupt) as caught, ending_request(), ending_request():  # noqa: PT012 - as above
        current().deferred = KeyboardInterrupt()
        raise ZeroDivisionError
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
