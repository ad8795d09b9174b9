"""Shortening what shows a difference."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from memhp.conform.shrink import shrink


@given(st.lists(st.integers(0, 99), min_size=1, max_size=60, unique=True), st.data())
def test_nothing_stays_but_what_is_needed(steps: list[int], data: st.DataObject) -> None:
    """Where some steps show it together, they and only they are left, in their order."""
    needed = set(data.draw(st.lists(st.sampled_from(steps), min_size=1, unique=True)))
    assert shrink(steps, lambda rest: needed <= set(rest)) == [step for step in steps if step in needed]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_no_step_of_the_result_can_be_left_out_alone(steps: list[int]) -> None:
    """Whatever the reason is: here, that the sum of the steps is large enough."""

    def shows(rest: Sequence[int]) -> bool:
        return sum(rest) >= sum(steps) / 2

    short = shrink(steps, shows)
    assert shows(short)
    assert not any(shows(short[:n] + short[n + 1 :]) for n in range(len(short))) or sum(steps) == 0
