"""``memhp conform`` on the command line: what it says, and its exit codes. Real kernels: tests/conform/test_live.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from memhp.cli import main
from memhp.cli.conform import LIBRARY

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A scenario with its recording of 6.1, in a directory of one's own."""
    shutil.copy(LIBRARY / "rapid.yaml", tmp_path)
    shutil.copytree(
        LIBRARY / "recorded" / "6.1", tmp_path / "recorded" / "6.1", ignore=lambda _, names: set(names) - {"rapid.json"}
    )
    return tmp_path / "rapid.yaml"


def test_a_scenario_that_agrees_is_exit_code_0(scenario: Path, capsys: Captured) -> None:
    """A line for the scenario, and the sums."""
    assert main(["conform", str(scenario), "--kernel", "6.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["agrees", "6.1", "rapid", "26", "steps", "(recorded", "6.1.192-2)"]
    assert lines[1].startswith("1 scenarios played on 6.1, 26 steps in ")
    assert lines[1].endswith(" s: 0 differences")


def test_a_difference_is_exit_code_1_with_the_step_and_both_sides(scenario: Path, capsys: Captured) -> None:
    """A recording of another kernel than the model's rules."""
    path = scenario.parent / "recorded" / "6.1" / "rapid.json"
    path.write_text(path.read_text().replace('"result": "ok", "text": "memory32"', '"result": "EBUSY", "text": ""', 1))
    assert main(["conform", str(scenario), "--kernel", "6.1"]) == 1
    assert capsys.readouterr().out.splitlines()[:7] == [
        "DIFFERS 6.1   rapid                                  26 steps  (recorded 6.1.192-2)",
        "  step 1 (line 7), plug dimm, 128 MiB on node 1: result",
        "    model  ok",
        "    real   EBUSY",
        "  step 1 (line 7), plug dimm, 128 MiB on node 1: text",
        "    model  memory32",
        "    real   (nothing)",
    ]


def test_a_name_that_is_neither_a_file_nor_of_the_library_is_told_so(capsys: Captured) -> None:
    """Both are allowed, and the name that was meant is guessed."""
    assert main(["conform", "auto-onlin"]) == 2
    said = capsys.readouterr().err
    assert "'auto-onlin' is not valid; expected a file, or a name of memhp's own library (" in said
    assert said.endswith("did you mean auto-online?\n")


def test_a_program_gets_json(scenario: Path, capsys: Captured) -> None:
    """A line a scenario and kernel, and one with the sums."""
    assert main(["conform", str(scenario), "--json"]) == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [
        {"kernel": "6.1", "scenario": "rapid", "steps": 26, "how": "recorded 6.1.192-2", "differences": [], "drift": []},
        {"kernel": "6.12", "scenario": "rapid", "steps": None, "how": "not recorded"},
    ]
    assert lines[2].pop("seconds") >= 0
    assert lines[2] == {"scenarios": 1, "steps": 26, "differences": 0, "drifted": 0, "unrecorded": 1}


def test_a_scenario_that_was_never_recorded_is_exit_code_3(scenario: Path, capsys: Captured) -> None:
    """Not agreement: nobody has asked that kernel."""
    assert main(["conform", str(scenario), "--kernel", "6.12"]) == 3
    out = capsys.readouterr().out
    assert out.startswith("missing 6.12  rapid ")
    assert "make one with --live" in out


def test_a_recording_of_an_older_scenario_is_bad_input(scenario: Path, capsys: Captured) -> None:
    """Comparing with something else would say nothing."""
    scenario.write_text(scenario.read_text() + "  - read: memory0/state\n")
    assert main(["conform", str(scenario), "--kernel", "6.1"]) == 2
    assert "a recording of the scenario as it is now; record it again with --live" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kernel", "5.10"], "'5.10' is not valid; expected one of 6.1, 6.12"),
        (["--generate", "-1"], "-1 is not valid; expected a number from 0 on"),
        (["--generate", "1", "--steps", "0"], "0 is not valid; expected a number from 1 on"),
        (["--seed", "-3"], "-3 is not valid; expected a number from 0 on"),
        (["--accept"], "expected --live beside it"),
        (["--generate", "1", "x.yaml"], "expected either scenarios or --generate"),
        (["--live", "--patience", "0"], "expected a number of seconds above 0"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], said: str, capsys: Captured) -> None:
    """The value, and what was expected, in one line."""
    assert main(["conform", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_what_has_no_meaning_on_a_real_kernel_is_refused_by_line(tmp_path: Path, capsys: Captured) -> None:
    """Before anything is played or booted."""
    file = tmp_path / "s.yaml"
    file.write_text("machine: {nodes: [512MiB, 0]}\nsteps:\n  - add: {size: 128MiB, node: 1}\n")
    assert main(["conform", str(file), "--live", "--kernel", "6.1"]) == 2
    assert "s.yaml:3: " in capsys.readouterr().err
