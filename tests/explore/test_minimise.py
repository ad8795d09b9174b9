"""Findings made smaller: without threads, steps of a scenario and switches that they don't need."""

from __future__ import annotations

from pathlib import Path

import pytest

from memhp.explore import Finding, Kind, Scene, Verdict, explore, replay
from memhp.explore.fibers import Step
from memhp.explore.files import scenes
from memhp.explore.minimise import fewest_switches
from memhp.explore.ops import WRITE
from memhp.explore.timeline import counts

EXAMPLES = Path(__file__).parents[2] / "examples"

RACE = """
machine:
  nodes: [1GiB]
steps:
  - add: {{size: 128MiB, node: 0}}
    as: other
  - add: {{size: 128MiB, node: 0}}
    as: block
  - online: block
  - offline: block
    thread: worker
  - online: other
    thread: bystander
  - read: $block/state
    expect: {{{expected}}}
"""


def first(file: Path | str) -> Finding:
    (name, build), *_ = scenes(str(file)).items()
    result = explore(build, name=name)
    assert result.verdict is Verdict.FAILS
    finding = result.findings[0]
    (again,) = replay(build, finding.schedule, name=name).findings
    assert (again.kind, again.reason, again.without) == (finding.kind, finding.reason, finding.without)
    return finding


def test_steps_that_a_deadlock_does_not_need_are_left_out() -> None:
    """Who keeps the others waiting in the scenario is not needed here, nor what that takes."""
    finding = first(EXAMPLES / "deadlock.yaml")
    assert finding.without == ("step 1", "step 2", "step 3", "step 5", "step 8")
    assert finding.reason == (
        "remover waits for memory32/device_lock (acquire), held by onliner; "
        "onliner waits for mem_hotplug_lock (block new readers), held by remover"
    )
    assert counts(finding).endswith("; left out: step 1, step 2, step 3, step 5, step 8")


def race(path: Path, expected: str) -> Path:
    file = path / "race.yaml"
    file.write_text(RACE.format(expected=expected))
    return file


def test_what_a_step_expects_must_hold_in_every_order(tmp_path: Path) -> None:
    """Here the reader may be too early; the bystander and its block have nothing to do with it, and the rest is needed."""
    finding = first(race(tmp_path, "text: offline"))
    assert (finding.kind, finding.reason) == (
        Kind.EXPECTATION,
        "main: step 6 (read $block/state) gave 'online', expected 'offline'",
    )
    assert finding.without == ("step 1", "step 5")


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ("result: EBUSY", "main: step 6 (read $block/state) ended with ok, expected EBUSY"),
        (
            "files: {$block/state: offline}",
            "main: $block/state is 'going-offline' after step 6 (read $block/state), expected 'offline'",
        ),
        ("blocks: {block: offline}", "main: memory33 is going-offline after step 6 (read $block/state), expected offline"),
    ],
)
def test_each_thing_that_a_thread_can_see_is_judged(tmp_path: Path, expected: str, says: str) -> None:
    """Its result, what a file says, and in which state a block is."""
    (name, build), *_ = scenes(str(race(tmp_path, expected))).items()
    finding = explore(build, name=name, smaller=False).findings[0]
    assert (finding.kind, finding.reason) == (Kind.EXPECTATION, says)


def test_an_expectation_of_the_written_order_is_not_judged(tmp_path: Path) -> None:
    """The file says so, of one step or of all."""
    (name, build), *_ = scenes(str(race(tmp_path, "text: offline, order: written"))).items()
    assert explore(build, name=name).verdict is Verdict.HOLDS
    file = race(tmp_path, "text: offline")
    file.write_text(f"{file.read_text()}expect: {{order: written}}\n")
    (name, build), *_ = scenes(str(file)).items()
    assert explore(build, name=name).verdict is Verdict.HOLDS


def test_a_scenario_of_pages_is_explored_completely() -> None:
    """A pinned page, an allocation that fails and a signal, in every order: nothing is wrong, and nothing was left out."""
    (name, build), *_ = scenes(str(EXAMPLES / "pinned.yaml")).items()
    result = explore(build, name=name)
    assert (result.verdict, result.complete, result.redundant) == (Verdict.HOLDS, True, 0)


def test_parts_of_a_scene_of_ones_own_are_left_out() -> None:
    """Whoever asks for a part is told at the end that it isn't wanted."""

    def scene_of(scene: Scene) -> None:
        x = scene.cell("x", 0)
        noise = [name for name in ("a", "b", "c") if scene.part(name)]

        def count() -> None:
            for name in noise:
                scene.cell(name, 0).set(1)
            x.set(x.get() + 1)

        scene.thread("one", count)
        scene.thread("two", count)
        scene.at_end(lambda: x.peek() == 2)

    finding = explore(scene_of).findings[0]
    assert (finding.without, finding.steps, finding.preemptions) == (("a", "b", "c"), 4, 1)


def test_what_goes_wrong_in_every_order_without_a_part_needs_it() -> None:
    """To leave it out would show another bug."""

    def scene_of(scene: Scene) -> None:
        ready = scene.part("ready")
        x = scene.cell("x", 0)
        scene.thread("one", lambda: x.set(1 if ready else 2))
        scene.thread("two", lambda: x.set(2))
        scene.at_end(lambda: x.peek() == 1)

    assert explore(scene_of).findings[0].without == ()


def step(task: int, index: int, *clock: int) -> Step:
    made = Step(task, WRITE, -1, WRITE, index)
    made.clock = list(clock)
    return made


def test_steps_are_put_where_threads_change_least_often() -> None:
    """Only the second step of the second task had to wait for the first task: one change is enough, not three."""
    steps = [step(1, 1, 0, 1), step(0, 1, 1, 0), step(1, 2, 1, 2), step(0, 2, 2, 0)]
    assert [(one.task, one.index) for one in fewest_switches(steps, 2)] == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_an_order_that_can_not_be_another_stays() -> None:
    """Each step had to come after the one before it."""
    steps = [step(1, 1, 0, 1), step(0, 1, 1, 1), step(1, 2, 1, 2), step(0, 2, 2, 2)]
    assert fewest_switches(steps, 2) == steps
