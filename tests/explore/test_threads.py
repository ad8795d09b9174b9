"""Threads that start threads, and wait for their end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memhp.explore import Finding, Kind, Scene, Verdict, declare, explore, replay
from memhp.explore.timeline import timeline
from memhp.locking import Mutex


class Parcel:
    def __init__(self) -> None:
        self.content = ""


declare(Parcel, "content", label=lambda parcel: "parcel")


def handed_on(scene: Scene, *, wait: bool) -> None:
    """One fills a parcel, starts another who adds to it, waits for the end of that, and looks."""
    parcel = Parcel()

    def add() -> None:
        parcel.content += "sugar"

    def send() -> None:
        parcel.content = "tea and "
        adder.start()
        if wait:
            adder.join()
        assert parcel.content == "tea and sugar", parcel.content

    adder = scene.thread_for_later("adder", add)
    scene.thread("sender", send)


def test_start_and_end_order_what_comes_before_and_after() -> None:
    """Nothing is shared without order, though there is no lock: one execution."""
    result = explore(lambda scene: handed_on(scene, wait=True), name="waits")
    assert (result.verdict, result.executions, result.shared) == (Verdict.HOLDS, 1, ())


def test_who_does_not_wait_may_be_too_early() -> None:
    """The start orders what comes before it, not what comes after."""
    finding = found(lambda scene: handed_on(scene, wait=False))
    assert (finding.kind, finding.reason) == (Kind.EXCEPTION, "sender raised AssertionError: tea and ")
    assert [(finding.names[line.task], line.text) for line in finding.lines] == [
        ("sender", "write parcel.content"),
        ("sender", "start adder"),
        ("sender", "read parcel.content"),
        ("sender", "read parcel.content"),
        ("adder", "read parcel.content"),
        ("adder", "write parcel.content"),
    ]


def found(build: Callable[[Scene], None]) -> Finding:
    result = explore(build, name="scene")
    assert result.verdict is Verdict.FAILS
    again = replay(build, result.findings[0].schedule, name="scene")
    assert again.findings[0].reason == result.findings[0].reason
    return result.findings[0]


def test_a_thread_that_waits_for_one_who_waits_for_it_is_deadlocked() -> None:
    """It holds what the other needs to come to its end."""

    def scene_of(scene: Scene) -> None:
        mutex = Mutex("m")

        def work() -> None:
            with mutex:
                pass

        def main() -> None:
            with mutex:
                worker.start()
                worker.join()

        worker = scene.thread_for_later("worker", work)
        scene.thread("main", main)

    finding = found(scene_of)
    assert finding.reason == "worker waits for m (acquire), held by main; main waits for worker (join)"
    assert timeline(finding, places=False).splitlines()[3:] == [
        "       worker            main",
        "    1                    acquire m",
        "    2                    start worker",
        "       waits: acquire m",
        "                         waits: join worker",
    ]
    assert ":bAE:deadlock:" in finding.schedule


def test_a_thread_that_nobody_starts_never_ends() -> None:
    """Who waits for it waits for ever; if nobody does, it is as if it weren't there."""

    def scene_of(scene: Scene, *, wait: bool) -> None:
        idle = scene.thread_for_later("idle", lambda: None)
        scene.thread("main", idle.join if wait else lambda: None)

    assert found(lambda scene: scene_of(scene, wait=True)).reason == "main waits for idle (join)"
    assert explore(lambda scene: scene_of(scene, wait=False), name="alone").verdict is Verdict.HOLDS


def test_a_thread_can_be_started_once() -> None:
    """As in Python's own."""

    def scene_of(scene: Scene) -> None:
        child = scene.thread_for_later("child", lambda: None)

        def main() -> None:
            child.start()
            child.start()

        scene.thread("main", main)

    assert found(scene_of).reason == "main raised RuntimeError: child can only be started once"


def test_the_scene_itself_starts_nothing() -> None:
    """Its function makes things; only threads have steps."""

    def scene_of(scene: Scene) -> None:
        scene.thread("t", lambda: None).join()

    with pytest.raises(RuntimeError, match=r"^a thread can only be waited for by another one of its scene$"):
        explore(scene_of)
