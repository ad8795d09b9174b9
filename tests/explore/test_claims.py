"""What the document claims, by complete search; and bugs put back in, each of which is found, made smaller and replayed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import bugs
import claims
from memhp.explore import Finding, Kind, Scene, Verdict, explore, replay
from memhp.kernel import hotplug
from memhp.kernel.blocks import BlockState, MemoryBlock
from memhp.kernel.locks import MemHotplug
from memhp.kernel.pages import Pages
from memhp.locking import PercpuRwSemaphore, switch
from memhp.locking.switch import Held, Mode, Op
from memhp.notifier import NotifierChain

CLAIMS: dict[str, Callable[[Scene], None]] = {
    "a: add_memory() and device_online() do not deadlock": claims.add_against_online,
    "b: add, remove, online and a CPU at once do not deadlock": claims.everybody,
    "b: eject, online, offline and a CPU at once do not deadlock": claims.eject_against_stores,
    "c: memory does not vanish under a reader": claims.readers_see_what_stays,
    "d: callbacks hear whole stories in their order": claims.callbacks_hear_whole_stories,
    "e: unregister() returns when the callback is out": claims.unregister_waits,
    "f: whatever goes wrong, no half state is left": claims.no_half_states,
}


@pytest.mark.fact("1.13", "4.1", "4.2", "4.3", "4.5")
@pytest.mark.parametrize("claim", CLAIMS)
def test_the_document_is_right(claim: str) -> None:
    """Every interleaving of the real code was played, and lockdep saw no order that could deadlock."""
    result = explore(CLAIMS[claim])
    assert str(result).splitlines()[0].endswith(": holds")
    assert (result.complete, result.redundant, result.limit, result.lock_orders) == (True, 0, "", [])


@pytest.mark.parametrize("rules", ["6.1", "6.12"])
def test_the_kernels_do_not_deadlock_either(rules: str) -> None:
    """A removal deletes the devices outside of mem_hotplug_lock in the one, inside in the other."""

    def everybody(scene: Scene) -> None:
        boot = claims.boot
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claims, "boot", lambda scene, **options: boot(scene, rules=rules, **options))
            claims.everybody(scene)

    assert explore(everybody).verdict is Verdict.HOLDS


# -- bugs


def found(scene: Callable[[Scene], None], kind: Kind) -> Finding:
    """Explore a scene with a bug: it must be found, and come again when its schedule is played."""
    result = explore(scene)
    assert result.verdict is Verdict.FAILS, result
    finding = result.findings[0]
    assert finding.kind is kind, finding.headline
    assert finding.original is None or finding.original.steps >= finding.steps
    again = replay(scene, finding.schedule).findings[0]
    assert (again.kind, again.reason) == (finding.kind, finding.reason)
    return finding


@pytest.mark.fact("4.2")
def test_without_device_hotplug_lock_the_inversion_deadlocks() -> None:
    """Each waits for what the other holds; lockdep's report of the order is confirmed with a schedule."""
    finding = found(bugs.without_device_hotplug_lock, Kind.DEADLOCK)
    assert finding.reason == (
        "adder waits for memory32/device_lock (acquire), held by onliner; "
        "onliner waits for mem_hotplug_lock (block new readers), held by adder"
    )
    assert finding.switches == 1
    (order,) = explore(bugs.without_device_hotplug_lock, smaller=False).lock_orders
    assert order.classes == ("memory_block device_lock", "mem_hotplug_lock")
    assert order.outcome.startswith("confirmed, it deadlocks: mhx1:")


@pytest.mark.fact("4.3")
def test_a_store_that_waits_for_device_hotplug_lock_deadlocks_with_a_removal() -> None:
    """That is why Linux tries, and restarts the call: the removal waits until writers have left the file."""
    finding = found(bugs.store_that_waits, Kind.DEADLOCK)
    assert finding.reason == (
        "storer waits for device_hotplug_lock (acquire), held by remover; "
        "remover waits for memory32/s_active (wait for readers), held by storer"
    )


def test_a_reader_in_a_reader_deadlocks() -> None:
    """The second read waits for the writer, who waits for the first."""
    finding = found(bugs.reader_in_a_reader, Kind.DEADLOCK)
    assert "reader waits for mem_hotplug_lock (read acquire), held by onliner" in finding.reason


def test_a_writer_in_one_step_would_hide_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in which a writer waits without stopping readers first has no such deadlock: two steps are needed."""

    def write_acquire(self: PercpuRwSemaphore) -> None:
        task = switch.current()
        switch.point(Op.WRITE_DRAIN, self)
        self.writer = task
        self.read.slow = True
        task.held.append(Held(self, Mode.WRITE, None))

    monkeypatch.setattr(PercpuRwSemaphore, "write_acquire", write_acquire)
    assert all(finding.kind is not Kind.DEADLOCK for finding in explore(bugs.reader_in_a_reader).findings)


def test_a_writer_that_does_not_wait_for_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops new readers and forgets those inside: memory changes under one."""

    def write_acquire(self: PercpuRwSemaphore) -> None:
        task = switch.current()
        switch.point(Op.WRITE_BLOCK, self)
        self.writer = task
        self.read.slow = True
        task.held.append(Held(self, Mode.WRITE, None))

    monkeypatch.setattr(PercpuRwSemaphore, "write_acquire", write_acquire)
    finding = found(claims.readers_see_what_stays, Kind.EXCEPTION)
    assert "memory changed under a reader" in finding.reason


def test_a_reader_that_forgets_its_lock() -> None:
    """The machine is right and its user is not: he counts without online_mems()."""

    def scene_of(scene: Scene) -> None:
        machine = claims.boot(scene)
        machine.add_memory(0, 4 * claims.GIB, claims.BLOCK)

        def read() -> None:
            assert machine.memory_total == machine.memory_total

        scene.thread("onliner", claims.write, machine, 32, "online")
        scene.thread("reader", read)

    assert found(scene_of, Kind.EXCEPTION).reason.startswith("reader raised AssertionError")


def test_two_locks_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """mem_hotplug_lock before cpu_hotplug_lock: a CPU that comes, and then wants its node's memory, waits in a circle."""

    def enter(self: MemHotplug) -> None:
        self._locks.mem_hotplug.write_acquire()
        self._locks.cpu_hotplug.read_acquire()

    def leave(self: MemHotplug, *_: object) -> None:
        self._locks.cpu_hotplug.read_release()
        self._locks.mem_hotplug.write_release()

    def scene_of(scene: Scene) -> None:
        machine = claims.boot(scene)

        def cpu() -> None:
            with machine.locks.cpu_hotplug.write, machine.online_mems():
                pass

        scene.thread("adder", machine.add_memory, 0, 4 * claims.GIB, claims.BLOCK)
        scene.thread("cpu", cpu)

    assert explore(scene_of).verdict is Verdict.HOLDS
    monkeypatch.setattr(MemHotplug, "_enter", enter)
    monkeypatch.setattr(MemHotplug, "__exit__", leave)
    assert found(scene_of, Kind.DEADLOCK).reason == (
        "adder waits for cpu_hotplug_lock (read acquire), held by cpu; "
        "cpu waits for mem_hotplug_lock (read acquire), held by adder"
    )


def test_a_request_without_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping mem_hotplug_lock is noticed by the guard of the function that needs it."""
    monkeypatch.setattr(MemHotplug, "_enter", lambda self: None)
    monkeypatch.setattr(MemHotplug, "__exit__", lambda self, *_: None)
    finding = found(claims.everybody, Kind.EXCEPTION)
    assert "needs mem_hotplug_lock (write)" in finding.reason


def test_a_registration_that_does_not_wait_for_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """unregister() without the chain's lock returns while the callback runs."""

    @contextlib.contextmanager
    def change(self: NotifierChain, verb: str, what: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(NotifierChain, "_change", change)
    finding = found(claims.unregister_waits, Kind.EXCEPTION)
    assert finding.reason == "onliner raised AssertionError: the callback was called after it was unregistered"


Patch = tuple[object, str, Callable[..., Any]]
_unisolate = Pages.unisolate


def _stays_isolated(self: Pages, blocks: list[MemoryBlock]) -> None:
    if blocks[0].state is not BlockState.GOING_OFFLINE:
        _unisolate(self, blocks)


FORGOTTEN: dict[str, Patch] = {
    "the zone's span after a refused online": (hotplug, "_remove_from_zone", lambda zone, blocks: None),
    "the isolation after a refused offline": (Pages, "unisolate", _stays_isolated),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_step_back_that_is_forgotten(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed request leaves a half state, which the claim (f) names."""
    owner, name, mutant = FORGOTTEN[what]
    monkeypatch.setattr(owner, name, mutant)
    finding = found(claims.no_half_states, Kind.EXCEPTION)
    assert " left " in finding.reason


def test_callbacks_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain that calls its lowest priority first."""
    rebuild = NotifierChain._rebuild

    def backwards(self: NotifierChain) -> None:
        rebuild(self)
        self._entries = self._entries[::-1]

    monkeypatch.setattr(NotifierChain, "_rebuild", backwards)
    assert "was heard in the order [-10" in found(claims.callbacks_hear_whole_stories, Kind.INVARIANT).reason


def test_a_lock_that_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one who wants it waits for ever, and the finding says who has it."""

    def leave(self: MemHotplug, *_: object) -> None:
        self._locks.mem_hotplug.write_release()

    monkeypatch.setattr(MemHotplug, "__exit__", leave)
    finding = found(claims.everybody, Kind.DEADLOCK)
    assert "cpu_hotplug_lock (wait for readers)" in finding.reason
