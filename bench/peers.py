"""Programs whose numbers of classes other explorers have published, as scenes.

The definitions are in this project's words; the sources are named beside each number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from memhp.explore import Scene, Thread
from memhp.locking import Mutex

__all__ = ["FAST", "LONG", "Peer", "philosophers"]

Build = Callable[[Scene], None]


@dataclass(frozen=True, slots=True)
class Peer:
    """One program: its scene, how many classes it has, who says so, and how many of them deadlock."""

    name: str
    build: Build
    classes: int
    source: str
    deadlocks: int = 0


def readers(count: int) -> Build:
    """One thread writes a variable, ``count`` threads read it."""

    def build(scene: Scene) -> None:
        x = scene.cell("x", 0)
        scene.thread("writer", x.set, 1)
        for number in range(count):
            scene.thread(f"reader{number}", x.get)

    return build


def lastzero(count: int) -> Build:
    """Writer j sets cell j to cell j-1 plus one; the reader looks for the last cell that is zero."""

    def build(scene: Scene) -> None:
        cells = [scene.cell(f"a{number}", 0) for number in range(count + 1)]

        def reader() -> None:
            place = count
            while cells[place].get() != 0:
                place -= 1

        def writer(number: int) -> None:
            cells[number].set(cells[number - 1].get() + 1)

        scene.thread("reader", reader)
        for number in range(1, count + 1):
            scene.thread(f"writer{number}", writer, number)

    return build


def indexer(count: int) -> Build:
    """Each thread puts four numbers into a hash table of 128 slots; they begin to collide at the twelfth thread."""

    def build(scene: Scene) -> None:
        table = [scene.cell(f"slot{number}", 0) for number in range(128)]

        def insert(thread: int) -> None:
            for number in range(1, 5):
                value = 11 * number + thread
                slot = 7 * value % 128
                while not table[slot].swap(0, value):
                    slot = (slot + 1) % 128

        for number in range(count):
            scene.thread(f"t{number}", insert, number)

    return build


def filesystem(count: int) -> Build:
    """Each thread wants a block for its inode, each of which has its lock; the fourteenth wants another's block."""

    def build(scene: Scene) -> None:
        inode_locks = [Mutex(f"inode{number}") for number in range(32)]
        block_locks = [Mutex(f"block{number}") for number in range(26)]
        inodes, busy = [0] * 32, [False] * 26

        def allocate(thread: int) -> None:
            inode = thread % 32
            with inode_locks[inode]:
                if inodes[inode]:
                    return
                block = 2 * inode % 26
                while not take(inode, block):
                    block = (block + 1) % 26

        def take(inode: int, block: int) -> bool:
            with block_locks[block]:
                if busy[block]:
                    return False
                busy[block], inodes[inode] = True, block + 1
                return True

        for number in range(count):
            scene.thread(f"t{number}", allocate, number)

    return build


def casrot(count: int) -> Build:
    """Thread k swaps k-1 for k in one variable."""

    def build(scene: Scene) -> None:
        x = scene.cell("x", 0)
        for number in range(1, count + 1):
            scene.thread(f"t{number}", x.swap, number - 1, number)

    return build


def ainc(count: int) -> Build:
    """Each thread adds one, in one step."""

    def build(scene: Scene) -> None:
        x = scene.cell("x", 0)
        for number in range(count):
            scene.thread(f"t{number}", x.update, lambda value: value + 1)

    return build


def mpat(count: int) -> Build:
    """Writer i takes mutex i; reader i takes the common mutex and then mutex i."""

    def build(scene: Scene) -> None:
        mutexes, common = [Mutex(f"a{number}") for number in range(count)], Mutex("m")

        def write(number: int) -> None:
            with mutexes[number]:
                pass

        def read(number: int) -> None:
            with common, mutexes[number]:
                pass

        for number in range(count):
            scene.thread(f"writer{number}", write, number)
            scene.thread(f"reader{number}", read, number)

    return build


def mpc(producers: int, workers: int) -> Build:
    """Producers hash into a buffer under one lock, then make a request of the worker that the hash says."""

    def build(scene: Scene) -> None:
        locks, buffer_lock = [Mutex(f"m{number}") for number in range(workers)], Mutex("p")
        requests, buffer = [0] * workers, [0]

        def work(number: int) -> None:
            for _ in range(2):
                with locks[number]:
                    requests[number] -= bool(requests[number])

        def produce(number: int) -> None:
            seen = 0
            for _ in range(2):
                with buffer_lock:
                    seen = buffer[0] = buffer[0] * producers + number
            with locks[seen % workers]:
                requests[seen % workers] += 1

        for number in range(workers):
            scene.thread(f"worker{number}", work, number)
        for number in range(producers):
            scene.thread(f"producer{number}", produce, number)

    return build


def disp(servers: int, requests: int) -> Build:
    """For each request one thread goes through the servers while the dispatcher asks which is next, serves it, and waits.

    What the dispatcher reads may be of any earlier moment, so requests get lost: the published program is meant so.
    """

    def build(scene: Scene) -> None:
        locks, choice_lock = [Mutex(f"server{number}") for number in range(servers)], Mutex("k")
        chosen, incoming, outgoing = [0], [0] * servers, [0] * servers

        def choose() -> None:
            for number in range(servers):
                with choice_lock:
                    chosen[0] = number

        def serve(number: int) -> None:
            with locks[number]:
                outgoing[number] = incoming[number] or outgoing[number]

        def dispatch() -> None:
            for chooser in choosers:
                chooser.start()
                with choice_lock:
                    number = chosen[0]
                with locks[number]:
                    incoming[number] += 1
                chooser.join()

        for number in range(servers):
            scene.thread(f"server{number}", serve, number)
        choosers = [scene.thread_for_later(f"chooser{number}", choose) for number in range(requests)]
        scene.thread("dispatcher", dispatch)

    return build


def pol(threads: int, rounds: int) -> Build:
    """Threads set a flag each; in each round one thread moves an index, another clears the flag that it points at."""

    def build(scene: Scene) -> None:
        locks, index_lock = [Mutex(f"a{number}") for number in range(threads)], Mutex("i")
        flags, index, cleared = [0] * threads, [0], [0]

        def set_flag(number: int) -> None:
            with locks[number]:
                flags[number] = 1

        def move() -> None:
            for number in range(1, threads):
                with index_lock:
                    index[0] = number

        def clear() -> None:
            with index_lock:
                number = index[0]
            with locks[number]:
                cleared[0] += flags[number]
                flags[number] = 0

        def main() -> None:
            for pair in pairs:
                for thread in pair:
                    thread.start()
                join(pair)
            join(setters)

        setters = [scene.thread(f"setter{number}", set_flag, number) for number in range(threads)]
        pairs = [
            (scene.thread_for_later(f"mover{number}", move), scene.thread_for_later(f"clearer{number}", clear))
            for number in range(rounds)
        ]
        scene.thread("main", main)
        scene.at_end(lambda: sum(flags) + cleared[0] == threads)

    return build


def join(threads: Iterable[Thread]) -> None:
    """Wait until every one has ended."""
    for thread in threads:
        thread.join()


def pi(count: int) -> Build:
    """Each thread has one critical section of the same mutex."""

    def build(scene: Scene) -> None:
        mutex = Mutex("m")

        def section() -> None:
            with mutex:
                pass

        for number in range(count):
            scene.thread(f"t{number}", section)

    return build


def philosophers(count: int) -> Build:
    """Each thread takes the mutex of its number and then the next one."""

    def build(scene: Scene) -> None:
        forks = [Mutex(f"fork{number}") for number in range(count)]

        def eat(number: int) -> None:
            with forks[number], forks[(number + 1) % count]:
                pass

        for number in range(count):
            scene.thread(f"p{number}", eat, number)

    return build


_GENMC = "GenMC"
_DPU = "DPU, CAV 2018"
_OWN = "2^n - 1"

FAST = (
    *(Peer(f"readers({n})", readers(n), 2**n, _GENMC) for n in (2, 4, 8)),
    Peer("lastzero(5)", lastzero(5), 64, f"{_GENMC}, Concuerror"),
    Peer("lastzero(10)", lastzero(10), 3328, _GENMC),
    Peer("indexer(12)", indexer(12), 8, _GENMC),
    Peer("filesystem(14)", filesystem(14), 2, "2^(n-13)"),
    Peer("filesystem(16)", filesystem(16), 8, "Concuerror"),
    Peer("filesystem(19)", filesystem(19), 64, _GENMC),
    *(Peer(f"casrot({n})", casrot(n), c, _GENMC) for n, c in zip(range(2, 8), (2, 5, 14, 43, 144, 523), strict=True)),
    *(Peer(f"ainc({n})", ainc(n), c, _GENMC) for n, c in zip(range(2, 7), (2, 6, 24, 120, 720), strict=True)),
    Peer("Mpat(4)", mpat(4), 384, _DPU),
    Peer("Mpc(2,5)", mpc(2, 5), 60, _DPU),
    Peer("Mpc(3,5)", mpc(3, 5), 2958, _DPU),
    *(Peer(f"Pi({n})", pi(n), c, _DPU) for n, c in ((5, 120), (6, 720))),
    *(Peer(f"Disp(5,{n})", disp(5, n), c, _DPU) for n, c in ((2, 137), (3, 1482))),
    Peer("Pol(7,3)", pol(7, 3), 2440, _DPU),
    *(Peer(f"philosophers({n})", philosophers(n), 2**n - 1, _OWN, 1) for n in (3, 4, 5)),
)
"""Seconds in all."""

LONG = (
    Peer("readers(13)", readers(13), 8192, _GENMC),
    Peer("lastzero(15)", lastzero(15), 147_456, _GENMC),
    Peer("indexer(15)", indexer(15), 4096, _GENMC),
    *(Peer(f"casrot({n})", casrot(n), c, _GENMC) for n, c in ((8, 2048), (9, 8597))),
    Peer("ainc(7)", ainc(7), 5040, _GENMC),
    Peer("Mpat(5)", mpat(5), 3840, _DPU),
    Peer("Mpat(6)", mpat(6), 46_080, _DPU),
    Peer("Mpc(4,5)", mpc(4, 5), 314_064, _DPU),
    *(Peer(f"Pi({n})", pi(n), c, _DPU) for n, c in ((7, 5040), (8, 40_320))),
    *(Peer(f"Disp(5,{n})", disp(5, n), c, _DPU) for n, c in ((4, 15_282), (5, 151_032))),
    *(Peer(f"Pol({n},3)", pol(n, 3), c, _DPU) for n, c in zip(range(8, 13), (3700, 5332, 7384, 9904, 12_940), strict=True)),
)
"""Minutes in all."""
