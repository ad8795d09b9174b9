"""The patterns of the kernel's own test of lockdep, by kind of lock, with the verdicts that it expects.

Said in our own words after lib/locking-selftest.c: what it lists as an expected failure must be found out here, what it lists
as an expected success must not. Columns: rwlocks as the kernel takes them for the test (reads are recursive), mutexes, rwsems.
Not here: spinlocks and rt_mutexes, which are mutexes to lockdep, interrupts, ww_mutexes, wait contexts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from memhp.errors import LockError
from memhp.locking import Lockdep, LockMap, Mode, Mutex, PercpuRwSemaphore

FOUND, FINE = "found", "fine"


class Bench:
    """Locks of one kind under one lockdep, by name; X1 and X2 are of one class."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.dep = Lockdep()
        self.locks: dict[str, Any] = {}

    def lock(self, name: str, kind: str = "") -> Any:
        """Give the lock of that name, of this kind or another."""
        kind = (kind or self.kind).removeprefix("r").removeprefix("w")
        key = f"{kind} {name}"
        if key not in self.locks:
            make: Callable[..., Any] = {"lock": LockMap, "mutex": Mutex, "sem": PercpuRwSemaphore}[kind]
            self.locks[key] = make(key, self.dep, lock_class=key.rstrip("12"))
        return self.locks[key]

    def hold(self, name: str, kind: str = "") -> AbstractContextManager[Any]:
        """Give the ``with`` that holds it the way its column holds it."""
        kind = kind or self.kind
        lock = self.lock(name, kind)
        if kind == "mutex":
            return lock  # type: ignore[no-any-return]
        if kind.endswith("sem"):
            return lock.read if kind == "rsem" else lock.write  # type: ignore[no-any-return]
        return lock.holding(Mode.RECURSIVE_READ if kind == "rlock" else Mode.WRITE)  # type: ignore[no-any-return]

    def nest(self, names: str, *kinds: str) -> None:
        """Take the named locks one under another, and give them back."""
        if names:
            kind, *others = kinds or ("",)
            with self.hold(names[0], kind):
                self.nest(names[1:], *others)

    def verdict(self) -> str:
        return FOUND if self.dep.reports or self.dep.warnings else FINE


COLUMNS = ("wlock", "rlock", "mutex", "wsem", "rsem")
# Pairs of locks taken one under the other; what is taken in a recursive read alone can't be waited for.
PATTERNS = {
    "ABBA": "AB BA",
    "ABBCCA": "AB BC CA",
    "ABCABC": "AB CA BC",
    "ABBCCDDA": "AB BC CD DA",
    "ABCDBDDA": "AB CD BD DA",
    "ABCDBCDA": "AB CD BC DA",
}
EXPECTED = {"wlock": FOUND, "rlock": FINE, "mutex": FOUND, "wsem": FOUND, "rsem": FOUND}


@pytest.mark.parametrize("kind", COLUMNS)
def test_aa(kind: str) -> None:
    """Two locks of a class, one under the other; the readers of an rwlock may."""
    bench = Bench(kind)
    with bench.hold("X1"), bench.hold("X2"):
        pass
    assert bench.verdict() == EXPECTED[kind]


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_circle_is_found_when_its_last_pair_is_taken(pattern: str, kind: str) -> None:
    """In whatever order its parts come, and not before."""
    bench = Bench(kind)
    *pairs, last = PATTERNS[pattern].split()
    for pair in pairs:
        bench.nest(pair)
    assert bench.verdict() == FINE
    bench.nest(last)
    assert bench.verdict() == EXPECTED[kind]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_circle_of_rwsem_readers_is_a_warning_until_there_are_writers(pattern: str) -> None:
    """The kernel reports it at once; here it becomes a report when somebody writes each lock in it."""
    bench = Bench("rsem")
    for pair in PATTERNS[pattern].split():
        bench.nest(pair)
    assert (len(bench.dep.reports), len(bench.dep.warnings)) == (0, 1)
    for name in sorted(set(PATTERNS[pattern]) - {" "}):
        bench.nest(name, "wsem")
    assert (len(bench.dep.reports), len(bench.dep.warnings)) == (1, 0)


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_double_unlock_is_refused(kind: str) -> None:
    """The second release releases nothing that is held."""
    bench = Bench(kind)
    lock = bench.lock("A")
    with bench.hold("A"):
        pass
    release = {"rsem": "read_release", "wsem": "write_release"}.get(kind, "release")
    with pytest.raises(LockError, match="which it does not hold"):
        getattr(lock, release)()


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_held_lock_is_not_made_anew(kind: str) -> None:
    """It stays held as it was."""
    bench = Bench(kind)
    lock = bench.lock("A")
    with bench.hold("A"), pytest.raises(LockError, match="is made anew while"):
        lock.__init__("A", bench.dep)
    with bench.hold("A"):
        pass


# -- reads in reads, and reads mixed with writes


@pytest.mark.parametrize("second", ["X1", "X2"])
@pytest.mark.parametrize(("kind", "expected"), [("rlock", FINE), ("rsem", FOUND)])
def test_a_read_in_a_read(kind: str, expected: str, second: str) -> None:
    """Of one lock, or of two of a class: the reader of an rwsem may meet a writer that waits."""
    bench = Bench(kind)
    with bench.hold("X1"), bench.hold(second):
        pass
    assert bench.verdict() == expected


@pytest.mark.parametrize("kinds", [("rlock", "wlock"), ("wlock", "rlock")])
def test_reading_and_writing_rwlocks_of_one_class_is_found(kinds: tuple[str, str]) -> None:
    """A write in a read, and a read in a write."""
    bench = Bench("")
    with bench.hold("X1", kinds[0]), bench.hold("X2", kinds[1]):
        pass
    assert bench.verdict() == FOUND


@pytest.mark.parametrize("kinds", [("rsem", "wsem"), ("wsem", "rsem")])
def test_reading_and_writing_rwsems_of_one_class_is_found(kinds: tuple[str, str]) -> None:
    """A write in a read, and a read in a write."""
    bench = Bench("")
    with bench.hold("X1", kinds[0]), bench.hold("X2", kinds[1]):
        pass
    assert bench.verdict() == FOUND


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("rlock", "wlock", FOUND),
        ("rlock", "rlock", FINE),
        ("wlock", "wlock", FOUND),
        ("rsem", "wsem", FOUND),
        ("rsem", "rsem", FOUND),
        ("wsem", "wsem", FOUND),
    ],
)
def test_a_mutex_taken_under_one_mode_and_around_another(outer: str, inner: str, expected: str) -> None:
    """A mutex inside of X as ``outer``, and then X as ``inner`` inside of the mutex."""
    bench = Bench("")
    bench.nest("XY", outer, "mutex")
    bench.nest("YX", "mutex", inner)
    assert bench.verdict() == expected


def test_the_cache_of_chains_knows_reads_from_writes() -> None:
    """A harmless read under the mutex comes first; the write at the same place is another chain."""
    bench = Bench("")
    bench.nest("XY", "rlock", "mutex")
    bench.nest("YX", "mutex", "rlock")
    assert bench.verdict() == FINE
    bench.nest("YX", "mutex", "wlock")
    assert bench.verdict() == FOUND


STRONG = {
    "WaRb WbRc WcRa": FOUND,
    "WaWb RbRc WcRa": FOUND,
    "WaWb RbRc RcWa": FINE,
    "WaRb RbRc WcWa": FINE,
}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=lambda order: "".join(str(n + 1) for n in order))
@pytest.mark.parametrize("pattern", STRONG)
def test_only_strong_circles_of_rwlocks_are_found(pattern: str, order: tuple[int, ...]) -> None:
    """A reader that comes recursively waits only for who writes; in every order in which the three can be seen."""
    bench = Bench("")
    steps = pattern.split()
    for number in order:
        step = steps[number]
        bench.nest(step[1] + step[3], f"{step[0].lower()}lock", f"{step[2].lower()}lock")
    assert bench.verdict() == STRONG[pattern]
