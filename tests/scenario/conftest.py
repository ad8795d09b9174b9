"""What the tests of scenarios share: a way to play a text."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from playing import Play, play_text


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Play a scenario from its text, without the machine unless the test gives one."""
    return functools.partial(play_text, tmp_path)
