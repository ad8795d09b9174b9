"""The fixture for authors of callbacks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memhp.explore import Limits, Result, Scene
from memhp.explore.strategies.chance import Chance
from memhp.locking import Mutex

Explore = Callable[..., Result]


def takers(scene: Scene, *, same_order: bool) -> None:
    a, b = Mutex("a"), Mutex("b")

    def take(first: Mutex, second: Mutex) -> None:
        with first, second:
            pass

    scene.thread("one", take, a, b)
    scene.thread("two", take, *((a, b) if same_order else (b, a)))


def ordered(scene: Scene) -> None:
    takers(scene, same_order=True)


def test_a_scene_that_holds_passes(explore: Explore) -> None:
    """And gives the result, for whoever wants to know more."""
    assert explore(ordered).executions == 2


def test_a_finding_fails_the_test_with_its_timeline_and_its_schedule(explore: Explore) -> None:
    """All that is needed to understand it, and to play it again."""
    with pytest.raises(pytest.fail.Exception) as caught:
        explore(lambda scene: takers(scene, same_order=False), name="takers")
    text = str(caught.value)
    assert "deadlock: one waits for b (acquire), held by two; two waits for a (acquire), held by one" in text
    assert "       waits: acquire b" in text
    assert "replay(..., 'mhx1:takers:0:aAbA:deadlock:" in text


def test_a_limit_fails_the_test(explore: Explore) -> None:
    """What was not looked at is not proved."""
    with pytest.raises(pytest.fail.Exception, match="bounded: 1 executions"):
        explore(ordered, limits=Limits(executions=1))


def test_who_asks_for_a_sample_gets_a_sample(explore: Explore) -> None:
    """That it proves nothing was known before."""
    assert explore(ordered, strategy=lambda: Chance(10)).executions == 10
