"""Random small programs over every primitive, for comparing searches with brute force."""

from __future__ import annotations

import random
from collections.abc import Callable

from memhp.explore import Cell, Scene
from memhp.locking import Mutex, PercpuRwSemaphore, WaitQueue

__all__ = ["Program", "family_of", "program", "scene_of"]

Program = list[list[tuple[str, int, int]]]
"""For each thread its operations: which, on which of two objects, with which value."""

KINDS = (
    *("lock", "lock", "unlock", "try", "await"),
    *("read", "write", "swap"),
    *("read lock", "read unlock", "write lock", "write unlock", "try read"),
    *("choose", "wait", "wake"),
)


def program(seed: int) -> Program:
    """Make a program; the seed decides all of it."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    kinds = dice.sample(KINDS, dice.randint(3, 6))
    threads = dice.choice((2, 2, 3))
    objects = dice.choice((1, 1, 2))
    longest = 4 if threads == 3 else 6
    return [
        [(dice.choice(kinds), dice.randrange(objects), dice.randrange(2)) for _ in range(dice.randint(1, longest))]
        for _ in range(threads)
    ]


class Actor:
    """One thread of a program; what would be misuse of a lock is passed over, what fails skips the next operation."""

    def __init__(self, scene: Scene, shared: Shared) -> None:
        self.scene = scene
        self.shared = shared
        self.held: list[tuple[str, int]] = []

    def run(self, operations: list[tuple[str, int, int]]) -> None:
        skip = False
        for kind, which, value in operations:
            skip = False if skip else self.act(kind, which, value) is False
        while self.held:
            self.give_back(*self.held[-1])

    def act(self, kind: str, which: int, value: int) -> bool | None:
        shared = self.shared
        mutex, rwsem, cell = shared.mutexes[which], shared.rwsems[which], shared.cells[which]
        deeds: dict[str, Callable[[], bool | None]] = {
            "lock": lambda: self.take(mutex.acquire, "mutex", which),
            "try": lambda: mutex.try_acquire() and self.note("mutex", which),
            "unlock": lambda: self.give_back("mutex", which),
            "await": mutex.await_free,
            "read": lambda: cell.get() == value,
            "write": lambda: cell.set(value),
            "swap": lambda: cell.swap(value, 1 - value),
            "read lock": lambda: self.take(rwsem.read_acquire, "read", which),
            "try read": lambda: rwsem.try_read() and self.note("read", which),
            "read unlock": lambda: self.give_back("read", which),
            "write lock": lambda: self.write(rwsem, which),
            "write unlock": lambda: self.give_back("write", which),
            "choose": lambda: self.scene.choose(2) == value,
            "wait": lambda: shared.queue.wait_interruptible(lambda: shared.flag.get() == value),
            "wake": lambda: self.wake(value),
        }
        return deeds[kind]()

    def take(self, acquire: Callable[[], None], kind: str, which: int) -> None:
        acquire()
        self.note(kind, which)

    def write(self, rwsem: PercpuRwSemaphore, which: int) -> None:
        if ("read", which) not in self.held:
            self.take(rwsem.write_acquire, "write", which)

    def wake(self, value: int) -> None:
        self.shared.flag.set(value)
        self.shared.queue.wake_up()

    def note(self, kind: str, which: int) -> bool:
        self.held.append((kind, which))
        return True

    def give_back(self, kind: str, which: int) -> None:
        if (kind, which) not in self.held:
            return
        self.held.remove((kind, which))
        if kind == "mutex":
            self.shared.mutexes[which].release()
        elif kind == "read":
            self.shared.rwsems[which].read_release()
        else:
            self.shared.rwsems[which].write_release()


class Shared:
    def __init__(self, scene: Scene) -> None:
        self.mutexes = [Mutex(f"mutex{number}") for number in range(2)]
        self.rwsems = [PercpuRwSemaphore(f"rwsem{number}") for number in range(2)]
        self.cells: list[Cell[int]] = [scene.cell(f"cell{number}", 0) for number in range(2)]
        self.flag = scene.cell("flag", 0)
        self.queue = WaitQueue("queue")


def scene_of(threads: Program, scene: Scene) -> None:
    shared = Shared(scene)
    for number, operations in enumerate(threads):
        scene.thread(f"t{number}", Actor(scene, shared).run, operations)


def family_of(threads: Program, scene: Scene) -> None:
    """The same, but the first thread starts the others, one before each of its operations, and at last waits for them."""
    shared = Shared(scene)
    first, *others = threads
    children = [scene.thread_for_later(f"t{number}", Actor(scene, shared).run, one) for number, one in enumerate(others, 1)]

    def parent() -> None:
        actor = Actor(scene, shared)
        unborn = children[:]
        for operation in [*first, *(first[:1] * len(children))]:
            if unborn:
                unborn.pop(0).start()
            actor.run([operation])
        for child in children[::-1]:
            child.join()
        actor.run(first[-1:])

    scene.thread("t0", parent)
