"""Lock rules as code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memhp import LockNotHeld
from memhp.locking import Lockdep, Mode, Mutex, PercpuRwSemaphore, requires
from memhp.locking.guards import Guardable
from support import in_thread


class House:
    """Something with locks and rules."""

    def __init__(self) -> None:
        dep = Lockdep()
        self.door = Mutex("door_lock", dep)
        self.room = PercpuRwSemaphore("room_lock", dep)
        self.done: list[str] = []

    def lock_named(self, name: str) -> Guardable:
        lock: Guardable = getattr(self, name)
        return lock

    @requires("door")
    def paint(self, colour: str, *, coats: int = 1) -> int:
        """Paint the door."""
        self.done.append(f"{coats} x {colour}")
        return coats

    @requires("room", Mode.READ)
    def look(self) -> None:
        self.done.append("look")

    @requires("room")
    def build(self) -> None:
        self.done.append("build")


@pytest.fixture
def house() -> House:
    return House()


def test_a_guarded_function_runs_with_its_lock(house: House) -> None:
    """With the lock held it gets its arguments and gives its value."""
    with house.door:
        assert house.paint("red", coats=2) == 2
    assert house.done == ["2 x red"]


def test_a_guarded_function_keeps_its_name_and_docstring() -> None:
    """A guard does not hide what it guards."""
    assert (House.paint.__name__, House.paint.__doc__) == ("paint", "Paint the door.")


def test_without_its_lock_it_does_nothing_and_says_what_it_needs(house: House) -> None:
    """The error has needed and held, and nothing was done."""
    with pytest.raises(LockNotHeld) as caught:
        house.paint("red")
    assert (caught.value.needed, caught.value.held, caught.value.lock) == ("door_lock (write)", (), house.door)
    assert str(caught.value) == "paint() needs door_lock (write); held: nothing"
    assert house.done == []


def test_the_locks_held_are_named_outermost_first(house: House) -> None:
    """What the task holds instead is told, in the order in which it was taken, and how."""
    with house.door, house.room.read, pytest.raises(LockNotHeld) as caught:
        house.build()
    assert (caught.value.needed, caught.value.held) == ("room_lock (write)", ("door_lock", "room_lock (read)"))
    assert str(caught.value) == "build() needs room_lock (write); held: door_lock, room_lock (read)"


def test_fast_read_locks_are_named_in_their_place_too() -> None:
    """Also without lockdep the locks held are told outermost first."""
    house = House()
    house.door, house.room = Mutex("door_lock"), PercpuRwSemaphore("room_lock")
    with house.door, house.room.read, pytest.raises(LockNotHeld) as caught:
        house.build()
    assert caught.value.held == ("door_lock", "room_lock (read)")


def test_a_writer_may_do_what_readers_may(house: House) -> None:
    """Writing includes reading; reading does not include writing."""
    with house.room.read:
        house.look()
    with house.room.write:
        house.look()
        house.build()
    assert house.done == ["look", "look", "build"]


def test_the_lock_of_another_task_does_not_count(house: House) -> None:
    """A guard asks what the calling task holds."""
    with house.room.write, house.door:
        for call in (house.look, house.build, lambda: house.paint("red")):
            thread = in_thread(call)
            with pytest.raises(LockNotHeld):
                thread.result()
    assert house.done == []


def test_a_free_function_can_be_guarded(house: House) -> None:
    """The first argument owns the locks, whether or not it is called self."""

    @requires("room", Mode.READ)
    def count(owner: House, things: list[int]) -> int:
        return len(things)

    guarded: Callable[[House, list[int]], int] = count
    with house.room.read:
        assert guarded(house, [1, 2]) == 2
    with pytest.raises(LockNotHeld, match=r"count\(\) needs room_lock \(read\); held: nothing"):
        guarded(house, [])
