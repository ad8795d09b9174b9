"""Fixtures of the locks' tests."""

from __future__ import annotations

import pytest

from memhp.locking import switch


@pytest.fixture
def late_waiters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each waiter's second be over just before its lock is granted, so that it looks around when it has the lock already."""
    wait = switch.Waiter.wait
    looked: set[switch.Waiter] = set()

    def late(waiter: switch.Waiter) -> bool:
        while not waiter.woken:
            wait(waiter)
        again = waiter in looked
        looked.add(waiter)
        return again

    monkeypatch.setattr(switch.Waiter, "wait", late)
