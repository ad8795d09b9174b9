"""The searches are right: published counts, brute force on random programs, and mutants that must be caught."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from bench.peers import FAST, LONG, Peer, casrot, mpc, pi

from memhp.explore import Scene, explore
from memhp.explore import happens as happening
from memhp.explore.execution import Diverged, Execution
from memhp.explore.fibers import Step
from memhp.explore.happens import History, Race, class_of, not_after
from memhp.explore.ops import ACQUIRE, BLOCK, ORDERED, READ_ACQUIRE, RELATION, RELEASE, REVERSIBLE, TRY_OK
from memhp.explore.registry import Registry
from memhp.explore.strategies import Strategy
from memhp.explore.strategies import optimal as optimal_module
from memhp.explore.strategies.brute import Brute
from memhp.explore.strategies.optimal import Optimal
from memhp.explore.strategies.source import Source
from memhp.locking import Mutex, PercpuRwSemaphore
from random_programs import Program, family_of, program, scene_of

MOST = 1500
"""Programs with more schedules are passed over."""


@pytest.mark.parametrize("peer", FAST, ids=lambda peer: peer.name)
def test_optimal_plays_as_many_executions_as_others_published(peer: Peer) -> None:
    """One execution of each class and none in vain, on the programs by which explorers are compared."""
    result = explore(peer.build, everything=True)
    assert (result.executions, result.redundant, result.deadlocks) == (peer.classes, 0, peer.deadlocks)
    assert result.complete


# -- the oracle

Class = tuple[tuple[int, ...], ...]


def classes(build: Callable[[Scene], None], strategy: Strategy, most: int = 10**9) -> tuple[list[Class], set[Class]] | None:
    """Play everything; gives the class of each execution and those that deadlocked, None if there are too many."""
    seen: list[Class] = []
    dead: set[Class] = set()
    registry = Registry()
    for name in ("mutex0", "mutex1", "rwsem0", "rwsem1", "cell0", "cell1", "flag", "queue"):
        registry.number(name)
    while strategy.more():
        scene = Scene()
        execution = Execution(build, scene, registry)
        scene.execution = execution
        execution.run(strategy, 1000)
        if not execution.ended and not execution.at_end:
            continue  # given up as redundant
        history = History(len(execution.fibers))
        for step in execution.trace:
            history.add(step)
        seen.append(class_of(history.steps))
        if execution.at_end:
            dead.add(seen[-1])
        if len(seen) > most:
            return None
    return seen, dead


def differences(
    seeds: Iterable[int],
    make: Callable[[], Strategy],
    *,
    redundant: bool,
    scene: Callable[[Program, Scene], None] = scene_of,
) -> list[tuple[int, str]]:
    """Compare a search with brute force; gives the programs on which they differ, and how."""
    found = []
    for seed in seeds:
        build = functools.partial(scene, program(seed))
        all_of_them = classes(build, Brute(), MOST)
        if all_of_them is None:
            continue
        try:
            mine = classes(build, make(), 20 * MOST)
        except AssertionError:
            found.append((seed, "internal error"))
            continue
        assert mine is not None
        if set(mine[0]) != set(all_of_them[0]):
            found.append((seed, "classes"))
        elif mine[1] != all_of_them[1]:
            found.append((seed, "deadlocks"))
        elif not redundant and len(mine[0]) != len(set(mine[0])):
            found.append((seed, "twice"))
    return found


def test_optimal_agrees_with_brute_force() -> None:
    """Random programs over every primitive: the same classes, the same deadlocks, each class once."""
    assert differences(range(150), Optimal, redundant=False) == []


def test_source_agrees_with_brute_force() -> None:
    """The cross-check finds the same classes, some of them more than once."""
    assert differences(range(150, 250), Source, redundant=True) == []


@pytest.mark.parametrize(("make", "redundant"), [(Optimal, False), (Source, True)])
def test_they_agree_on_threads_that_start_threads_and_wait_for_them(make: Callable[[], Strategy], *, redundant: bool) -> None:
    """What a start and an end order is in the clocks: the same classes and deadlocks as by brute force."""
    assert differences(range(300, 400), make, redundant=redundant, scene=family_of) == []


@pytest.mark.parametrize(
    ("scene", "seeds", "many", "some"), [(scene_of, range(150), 50, 20), (family_of, range(300, 400), 50, 15)]
)
def test_the_oracle_has_seen_deadlocks_and_failures(
    scene: Callable[[Program, Scene], None], seeds: range, many: int, some: int
) -> None:
    """The random programs are not trivial: many have several classes, and some deadlock."""
    found = [classes(functools.partial(scene, program(seed)), Optimal()) for seed in seeds]
    several = sum(one is not None and len(one[0]) > 2 for one in found)
    dead = sum(one is not None and bool(one[1]) for one in found)
    assert (several > many, dead > some) == (True, True)


def chooser(scene: Scene) -> None:
    """A thread that another one starts chooses before anything else, and then races with a third."""
    x = scene.cell("cell0", 0)

    def child() -> None:
        x.set(1 + scene.choose(2))

    late = scene.thread_for_later("child", child)
    scene.thread("reader", x.get)
    scene.thread("parent", late.start)


def test_what_a_thread_chooses_comes_after_its_start() -> None:
    """Two numbers, two orders with the reader; the choice is never tried before there is somebody to choose."""
    found, oracle = classes(chooser, Optimal()), classes(chooser, Brute())
    assert found is not None
    assert oracle is not None
    assert (len(found[0]), set(found[0])) == (4, set(oracle[0]))


@pytest.mark.parametrize("forgotten", ["START", "JOIN"])
def test_a_thread_that_is_not_ordered_by_its_start_or_end_is_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """A search that turns round what a start or an end orders comes to a place that can't be; it gives no result."""
    monkeypatch.setattr(happening, forgotten, -7)
    with pytest.raises((AssertionError, Diverged), match=r"can't go on|diverged at step"):
        classes(functools.partial(family_of, program(333)), Optimal())


# -- mutants: the known ways of losing executions, each of which is caught


def count(build: Callable[[Scene], None], make: Callable[[], Strategy] = Optimal) -> int:
    return explore(build, strategy=make, everything=True).executions


def test_a_wakeup_sequence_that_ends_at_the_second_step_loses_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must be built of the whole execution: small programs don't notice, Mpc(3,5) does if threads go on in their order."""

    monkeypatch.setattr(Optimal, "_in_order", lambda self, execution, able: able)
    assert count(mpc(3, 5)) == 2958

    def truncated(self: Optimal, history: History, race: Race) -> None:
        node = self._stack[race.first]
        end = next((n for n, step in enumerate(history.steps) if step is race.second), len(history.steps))
        sequence = [*not_after(history.steps[:end], race.first), race.second.announced()]
        if all(happening.absorb(step, sequence) is None for step in node.asleep):
            optimal_module.insert(node.branches, sequence)

    monkeypatch.setattr(Optimal, "_turn_round", truncated)
    assert count(mpc(3, 5)) == 2958 - 78


@pytest.mark.parametrize(("threads", "lost"), [(4, 13), (5, 37), (6, 116)])
def test_a_failed_swap_taken_for_a_read_loses_classes(monkeypatch: pytest.MonkeyPatch, threads: int, lost: int) -> None:
    """What fails here might succeed elsewhere: a step that is moved counts as the most that it could be."""
    monkeypatch.setattr(Step, "announced", lambda self: Step(self.task, self.kind, self.obj, self.kind, self.index, self.choice))
    assert optimistic(casrot(threads)) == lost


def optimistic(build: Callable[[Scene], None]) -> int:
    # The mutant's announcements are not what tasks announce; only the count matters.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "same", lambda self, other: self.task == other.task and self.obj == other.obj)
        return count(build)


def relation(*changes: tuple[int, int, int]) -> tuple[tuple[int, ...], ...]:
    table = [list(row) for row in RELATION]
    for first, second, value in changes:
        table[first][second] = value
    return tuple(map(tuple, table))


def use(monkeypatch: pytest.MonkeyPatch, table: tuple[tuple[int, ...], ...]) -> None:
    both = tuple(
        tuple(bool(a or b) for a, b in zip(row, column, strict=True))
        for row, column in zip(table, zip(*table, strict=True), strict=True)
    )
    monkeypatch.setattr(happening, "RELATION", table)
    monkeypatch.setattr(happening, "DEPENDENT", both)


def trier(scene: Scene) -> None:
    mutex = Mutex("mutex0")

    def hold() -> None:
        with mutex:
            pass

    def attempt() -> None:
        if mutex.try_acquire():
            mutex.release()

    scene.thread("holder", hold)
    scene.thread("trier", attempt)


def test_a_try_that_does_not_race_with_the_release_before_it_loses_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the release it would have failed: three classes, not two."""
    assert count(trier) == 3
    use(monkeypatch, relation((RELEASE, TRY_OK, ORDERED)))
    assert count(trier) < 3


def test_turning_round_what_can_only_be_waited_for_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release before an acquisition can't come after it; a search that tries says so, and gives no result."""
    use(monkeypatch, relation((RELEASE, ACQUIRE, REVERSIBLE)))
    with pytest.raises(AssertionError, match="was picked and can't go on"):
        count(pi(3))


LOSERS = (7, 27, 74)
"""Random programs in which a blocked thread's next step begins a race that nothing else shows."""


def test_forgetting_those_who_wait_at_the_end_loses_deadlocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that a blocked task would make next takes part in races."""
    monkeypatch.setattr(Execution, "waiting", lambda self: [])
    assert differences(LOSERS, Optimal, redundant=False) == [(seed, "classes") for seed in LOSERS]
    assert differences(LOSERS, Source, redundant=True) == [(seed, "classes") for seed in LOSERS]


def reader_and_writer(scene: Scene) -> None:
    rwsem = PercpuRwSemaphore("rwsem0")

    def read() -> None:
        with rwsem.read:
            pass

    def write() -> None:
        with rwsem.write:
            pass

    scene.thread("reader", read)
    scene.thread("writer", write)


def test_a_missing_pair_loses_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the conflict of a reader that comes and a writer that stops readers, one of three classes is left."""
    assert count(reader_and_writer, Brute) > count(reader_and_writer) == 2
    use(monkeypatch, relation((READ_ACQUIRE, BLOCK, 0), (BLOCK, READ_ACQUIRE, 0)))
    assert count(reader_and_writer) < 2


def test_the_documentation_has_the_published_numbers() -> None:
    """Each program stands in the table with the number that is tested here, or measured by the benchmark."""
    page = (Path(__file__).parents[2] / "docs" / "explore.md").read_text(encoding="utf-8")
    rows = [f"| {peer.name} | {peer.classes:,} | {peer.source} | {peer.classes:,} |" for peer in (*FAST, *LONG)]
    assert [row for row in rows if row not in page.splitlines()] == []
