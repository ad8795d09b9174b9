"""Whatever is taken in whatever order, lockdep finds the cycles that a naive enumeration finds, and no others."""

from __future__ import annotations

import itertools
import pickle
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from memhp.locking import Lockdep, LockGraph, LockMap, Mode


class Step(NamedTuple):
    """One acquisition, nested in those before it."""

    lock: str
    mode: Mode
    tries: bool

    @property
    def lock_class(self) -> str:
        return self.lock[0]


# D has two locks, the others one each.
STEPS = st.builds(
    Step, st.sampled_from(["A", "B", "C", "D1", "D2"]), st.sampled_from(list(Mode)), st.sampled_from([False] * 4 + [True])
)
CHAINS = st.lists(st.lists(STEPS, min_size=1, max_size=4), min_size=1, max_size=6)


def watched(chains: list[list[Step]]) -> Lockdep:
    """Take the chains one after the other under a lockdep of their own."""
    dep, locks = Lockdep(), dict[str, LockMap]()
    for chain in chains:
        take(dep, locks, chain)
    return dep


def take(dep: Lockdep, locks: dict[str, LockMap], chain: list[Step]) -> None:
    """Take the locks of a chain one under the other, and give all back."""
    for step in chain:
        if step.lock not in locks:
            locks[step.lock] = LockMap(step.lock, dep, lock_class=step.lock_class)
        lock = locks[step.lock]
        if step.tries:
            lock.try_acquire(step.mode)
        else:
            lock.acquire(step.mode)
    for step in reversed(chain):
        locks[step.lock].release()


# -- the naive enumeration

Wait = tuple[Step, Step, tuple[Step, ...]]
"""What is held, what is waited for, and all that is held."""


def waits(chains: list[list[Step]]) -> set[Wait]:
    """List who waits for what while holding what."""
    found: set[Wait] = set()
    for chain in chains:
        for place, step in enumerate(chain):
            held = tuple(chain[:place])
            if step.tries or gets_in(step, held):
                continue
            found |= {(outer, step, held) for outer in held if outer.lock_class != step.lock_class}
    return found


def gets_in(step: Step, held: tuple[Step, ...]) -> bool:
    return step.mode is Mode.RECURSIVE_READ and any(one.lock == step.lock and one.mode is not Mode.WRITE for one in held)


def stands_in_the_way(there: Step, comes: Step, written: set[str]) -> bool:
    """Say whether the holder of a lock stops the one who comes."""
    if Mode.WRITE in (there.mode, comes.mode):
        return True
    return comes.mode is Mode.READ and comes.lock_class in written


def together(one: Wait, other: Wait, single: set[str]) -> bool:
    """Say whether two tasks can be there at the same time."""
    return not any(
        a.lock_class == b.lock_class and a.lock_class in single and Mode.WRITE in (a.mode, b.mode)
        for a in one[2]
        for b in other[2]
    )


def circles(chains: list[list[Step]], written: set[str]) -> set[tuple[str, ...]]:
    """Try every choice of one wait for each class around every circle of classes."""
    steps = {step for chain in chains for step in chain}
    classes = {step.lock_class for step in steps}
    single = {name for name in classes if len({step.lock for step in steps if step.lock_class == name}) == 1}
    known = waits(chains)
    found = set()
    for length in range(2, len(classes) + 1):
        for circle in itertools.permutations(sorted(classes), length):
            if circle[0] != min(circle):
                continue
            ways = [
                [wait for wait in known if (wait[0].lock_class, wait[1].lock_class) == pair]
                for pair in zip(circle, (*circle[1:], circle[0]), strict=True)
            ]
            if any(
                all(stands_in_the_way(b[0], a[1], written) for a, b in zip(choice, (*choice[1:], choice[0]), strict=True))
                and all(together(a, b, single) for a, b in itertools.combinations(choice, 2))
                for choice in itertools.product(*ways)
            ):
                found.add(circle)
    return found


def written_in(chains: list[list[Step]]) -> set[str]:
    """Classes that somebody waits to write, but for trying."""
    return {step.lock_class for chain in chains for step in chain if step.mode is Mode.WRITE and not step.tries}


def recursions(chains: list[list[Step]]) -> set[str]:
    """Classes of which one lock is waited for under another, unless both are read and the second recursively."""
    return {
        step.lock_class
        for chain in chains
        for place, step in enumerate(chain)
        for outer in chain[:place]
        if outer.lock_class == step.lock_class
        and not step.tries
        and not gets_in(step, tuple(chain[:place]))
        and (step.mode is not Mode.RECURSIVE_READ or outer.mode is Mode.WRITE)
    }


# -- the properties


@settings(max_examples=300, deadline=None)
@given(CHAINS)
def test_reports_and_warnings_are_the_strong_circles(chains: list[list[Step]]) -> None:
    """Reports have all the writers they need; warnings lack one; recursions are told apart."""
    dep = watched(chains)
    real = circles(chains, written_in(chains))
    possible = circles(chains, set("ABCD"))
    circular = [report.cycle.classes for report in dep.reports if report.kind == "circular"]
    recursive = [report.classes[0] for report in dep.reports if report.kind == "recursive"]
    assert sorted(circular) == sorted(real)
    assert sorted(report.cycle.classes for report in dep.warnings) == sorted(possible - real)
    assert sorted(recursive) == sorted(recursions(chains))
    assert {cycle.classes: bool(cycle.unwritten) for cycle in dep.graph.cycles()} == {
        classes: classes not in real for classes in possible
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(CHAINS, min_size=2, max_size=3))
def test_merged_graphs_have_the_circles_of_all_runs_together(runs: list[list[list[Step]]]) -> None:
    """What crosses two runs is found too: each with a lockdep and locks of its own, over a pickle, or all with one lockdep."""
    graphs = [pickle.loads(pickle.dumps(watched(chains).graph)) for chains in runs]  # noqa: S301 - they are our own
    everything = [chain for chains in runs for chain in chains]
    # Two locks of a class in one run make it crowded; one lock in each of two runs is one role.
    crowded = any({"D1", "D2"} <= {step.lock for chain in chains for step in chain} for chains in runs)
    if not crowded:
        everything = [[step._replace(lock=step.lock_class) for step in chain] for chain in everything]
    whole = LockGraph.merged(graphs)
    one = Lockdep()
    for chains in runs:
        one.next_run()
        locks: dict[str, LockMap] = {}
        for chain in chains:
            take(one, locks, chain)
    assert {cycle.classes for cycle in one.graph.cycles()} == {cycle.classes for cycle in whole.cycles()}
    real = circles(everything, written_in(everything))
    assert sorted(report.cycle.classes for report in one.reports if report.kind == "circular") == sorted(real)
    assert {cycle.classes for cycle in whole.cycles()} == circles(everything, set("ABCD"))
    assert {cycle.classes for cycle in whole.cycles() if not cycle.unwritten} == real
    assert set(whole.recursions) == set().union(*(recursions(chains) for chains in runs))


@settings(max_examples=100, deadline=None)
@given(CHAINS)
def test_every_edge_of_a_cycle_says_what_was_held_and_what_was_taken(chains: list[list[Step]]) -> None:
    """The edges of a cycle follow each other, and each is an acquisition that was made."""
    dep = watched(chains)
    made = {(a.lock, a.mode, b.lock, b.mode) for a, b, _ in waits(chains)}
    for cycle in dep.graph.cycles():
        for edge, following in zip(cycle.edges, (*cycle.edges[1:], cycle.edges[0]), strict=True):
            assert edge.after.key == following.before.key
            assert (edge.before.name, edge.before.mode, edge.after.name, edge.after.mode) in made
