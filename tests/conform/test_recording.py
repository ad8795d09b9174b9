"""What is kept of a real kernel's run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memhp.conform import Observed, Recording
from memhp.conform.recording import fingerprint
from memhp.errors import InvalidInput

WORDS = st.text('ab é\n"\\', max_size=5)
STATES = st.dictionaries(WORDS, WORDS, max_size=4)
STEPS = st.builds(Observed, st.integers(1, 9), st.integers(1, 9), WORDS, WORDS, WORDS, st.lists(WORDS, max_size=3), STATES)


@given(STATES, st.lists(STEPS, max_size=4))
def test_what_is_saved_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, str], steps: list[Observed]
) -> None:
    """Also states that lose what they had."""
    path = tmp_path_factory.mktemp("recordings") / "6.1" / "x.json"
    recording = Recording("6.1.0-56-cloud-amd64", "6.1.192-2", "0123", (Observed(0, state=first), *steps))
    recording.save(path)
    assert Recording.load(path) == recording


def test_a_recording_is_a_line_a_step(tmp_path: Path) -> None:
    """So that a difference between two of them is a difference of lines."""
    path = tmp_path / "x.json"
    before = {"memory32": "offline 0 Normal Movable", "online": "0"}
    steps = (
        Observed(0, state=before),
        Observed(1, 5, "read", "ok", "x", ["a"], before),
        Observed(2, 6, "go", "EBUSY", state={"online": "0"}),
    )
    Recording("R", "V", "F", steps).save(path)
    assert path.read_text() == (
        '{"head": {"format": 1, "release": "R", "version": "V", "scenario": "F"},\n'
        '"steps": [\n'
        '{"number": 0, "line": 0, "shown": "the machine at the beginning", '
        '"state": {"memory32": "offline 0 Normal Movable", "online": "0"}},\n'
        '{"number": 1, "line": 5, "shown": "read", "result": "ok", "text": "x", "heard": ["a"]},\n'
        '{"number": 2, "line": 6, "shown": "go", "result": "EBUSY", "state": {"memory32": null}}\n'
        "]}\n"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"head": {}}', '{"head": {"format": 9}, "steps": []}'])
def test_a_file_that_is_no_recording_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    """Not a traceback, and not an empty run."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        Recording.load(path)
    assert caught.value.where == str(path)


def test_a_scenario_that_has_changed_has_another_fingerprint(tmp_path: Path) -> None:
    """So that nobody compares with a recording of something else."""
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("steps: []\n")
    b.write_text("steps: [1]\n")
    assert fingerprint(a) != fingerprint(b)
    b.write_text("steps: []\n")
    assert fingerprint(a) == fingerprint(b)
