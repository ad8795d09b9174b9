"""The examples: each plays as it says, explains itself, and prints what stands beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memhp.cli import main
from memhp.scenario import load

EXAMPLES = Path(__file__).parents[2] / "examples"
SCENARIOS = sorted(EXAMPLES.glob("*.yaml"))
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
each_scenario = pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.name)
each_program = pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)


def test_the_examples_are_all_there() -> None:
    """Each promise of the front page has its example."""
    assert {path.name for path in SCENARIOS} >= {
        "deadlock.yaml",
        "first-steps.yaml",
        "imported.yaml",
        "inversion-held.yaml",
        "inversion.yaml",
        "node.yaml",
        "pinned.yaml",
        "priorities.yaml",
        "rules-6.1.yaml",
        "rules.yaml",
        "twin.yaml",
        "veto.yaml",
    }


@each_scenario
def test_an_example_plays_as_it_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every expectation of every example holds."""
    assert main(["run", "--quiet", str(path)]) == 0
    assert capsys.readouterr() == ("", "")


@each_scenario
def test_an_example_explains_itself(path: Path) -> None:
    """An example has a title and a few lines about it, and expects something."""
    scenario = load(path)
    assert scenario.title != path.stem
    assert len(scenario.about.splitlines()) >= 3
    assert scenario.expect is not None
    assert scenario.expect.lockdep is not None


@each_scenario
def test_an_example_fits_a_terminal(path: Path) -> None:
    """No line about an example is wider than a terminal."""
    assert [line for line in load(path).about.splitlines() if len(line) > 88] == []


@pytest.mark.parametrize(("name", "rules"), [("rules.yaml", "6.1"), ("rules-6.1.yaml", "documented")])
def test_the_two_examples_of_rules_differ_in_their_rules(name: str, rules: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of the two fails under the other's rules, so that what they say is due to the rules."""
    assert main(["run", "--quiet", "--rules", rules, str(EXAMPLES / name)]) == 1
    assert "FAILED" in capsys.readouterr().out


@each_program
def test_a_program_prints_what_stands_beside_it(path: Path) -> None:
    """``program.py`` prints ``program.out``; a module without such a file is one that a scenario calls."""
    expected = path.with_suffix(".out")
    if not expected.exists():
        assert any(re.search(rf"call:.*\b{path.stem}:\w+", other.read_text(encoding="utf-8")) for other in SCENARIOS)
        return
    run = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, expected.read_text(encoding="utf-8"), "")
