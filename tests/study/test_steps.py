"""Studies of scenarios: steps on each machine of a grid, and what became of each."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from memhp.cli import main
from memhp.errors import ScenarioError
from memhp.study.measure import COLUMNS
from memhp.study.plan import load_study
from memhp.study.run import run_study
from memhp.study.steps import at_point

SCENARIO = """\
title: As it is
machine:
  nodes: [1GiB]
  rules: "6.12"
  parameters: {memhp_default_state: offline}
callbacks:
  guard: {registered: false, MEM_GOING_OFFLINE: EBUSY}
steps:
  - plug: {name: kernel, size: 256MiB}
  - plug: {name: movable, size: 256MiB}
  - online: {among: kernel, type: online_kernel}
  - online: {among: movable, type: online_movable}
  - fill: {workload: build}
  - note: the answer
  - unplug: movable
  - unplug: kernel
    expect: EBUSY
  - register: guard
  - online: 3
  - offline: 3
"""
VARY = """\
vary:
  fill: [40%, 60%]
seeds: 3-4
"""
RESULTS = ["ok", "ok", "ok", "ok", "ok", "ok", "EBUSY", "ok", "ok", "EBUSY"]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def inline(tmp_path: Path) -> Path:
    path = tmp_path / "inline.yaml"
    path.write_text(SCENARIO.replace("title: As it is", "study: which is in the way?") + VARY)
    return path


def test_each_step_has_its_result_and_what_moved_and_what_stopped_it(inline: Path) -> None:
    """And then every block is taken, where a callback goes on refusing."""
    rows = run_study(load_study(inline))
    assert [(row["fill"], row["seed"]) for row in rows] == [(0.4, 3), (0.4, 4), (0.6, 3), (0.6, 4)]
    for row in rows:
        assert [row[f"step {number}"] for number in range(1, 11)] == RESULTS
        assert 0 < row["step 6 moved"] <= 65536  # what 256 MiB can hold
        assert {row[f"step {number} moved"] for number in range(1, 11) if number != 6} == {0}
        assert row["step 7 stopped by"].partition(" of ")[0] in {"reclaimable", "slab", "page-table"}
        assert [row[f"step {number} stopped by"] for number in (1, 2, 3, 4, 5, 6, 8, 9)] == [""] * 8
        assert (row["blocks"], row["movable_blocks"], row["gone"]) == (10, 0, 0)
        assert (row["failed expectations"], row["not played"]) == (1, "")
        assert sum(row[column] for column in COLUMNS if column.startswith("stopped by")) == 10


def test_a_callback_that_refuses_is_named(tmp_path: Path) -> None:
    """In the step that it refused, and for each block afterwards."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "machine: {nodes: [1GiB]}\ncallbacks: {guard: {MEM_GOING_OFFLINE: EBUSY}}\nsteps:\n  - {offline: 3, expect: EBUSY}\n"
    )
    (row,) = run_study(load_study(path))
    assert (row["step 1"], row["step 1 stopped by"]) == ("EBUSY", "a callback of guard")
    assert (row["stopped by a callback"], row["stopped by several zones or holes"], row["most in the way"]) == (7, 1, "guard")


def test_processes_don_t_change_the_results_of_steps(inline: Path) -> None:
    """A scenario goes to other processes as it was read."""
    study = load_study(inline)
    assert run_study(study, jobs=2) == run_study(study)


def test_a_scenario_may_stand_in_a_file_of_its_own(scenario: Path, inline: Path) -> None:
    """Beside the study; the rows are the same."""
    other = scenario.with_name("other.yaml")
    other.write_text(f"study: from a file\nscenario: {scenario.name}\n{VARY}")
    assert run_study(load_study(other)) == run_study(load_study(inline))


def test_a_scenario_says_itself_what_a_study_does_not_vary(tmp_path: Path) -> None:
    """Its parameters and its step `fill` stay; the seed is always the study's."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "study: x\n"
        "machine: {nodes: [1GiB], parameters: memhp_default_state=online quiet}\n"
        "steps: [{note: x}, {fill: {workload: cache, share: 30%, age: 1}}]\n"
        "vary: {policy: [contig-zones, auto-movable], numa_aware: false, fill: 20%}\n"
        "seeds: 5\n"
    )
    study = load_study(path)
    assert study.scenario is not None
    _, second = (at_point(study.scenario, point) for point in study.points())
    assert second.machine.description == {
        "nodes": ["1GiB"],
        "parameters": "memhp_default_state=online quiet memory_hotplug.online_policy=auto-movable "
        "memory_hotplug.auto_movable_numa_aware=n",
    }
    assert [step.arguments for step in second.steps] == [{}, {"workload": "cache", "share": 0.2, "age": 1, "seed": 5}]


def test_without_a_step_that_fills_it_the_machine_is_filled_first(tmp_path: Path) -> None:
    """If the study says with what; and a mapping of parameters gets those that vary."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "study: x\nmachine: {nodes: [1GiB], parameters: {movable_node: true}}\nsteps: []\n"
        "vary: {online: online_kernel, workload: build, block_size: 256MiB}\n"
    )
    study = load_study(path)
    assert study.scenario is not None
    (only,) = (at_point(study.scenario, point) for point in study.points())
    assert only.machine.description == {
        "nodes": ["1GiB"],
        "block_size": 256 << 20,
        "parameters": {"movable_node": True, "memhp_default_state": "online_kernel"},
    }
    assert [(step.number, step.verb, step.arguments) for step in only.steps] == [
        (0, "fill", {"workload": "build", "share": 0.6, "age": 0, "seed": 1})
    ]


def test_a_run_that_can_t_go_on_says_why(tmp_path: Path) -> None:
    """What one machine of many does not have is no mistake of the study; the steps up to there count."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "study: x\nmachine: {nodes: [2GiB]}\nvary: {block_size: [128MiB, 512MiB]}\n"
        "steps:\n  - offline: last 2\n  - offline: first 6\n  - online: 3\n"
    )
    small, large = run_study(load_study(path))
    assert [small[f"step {number}"] for number in (1, 2, 3)] == ["ok", "ok", "ok"]
    assert [large[f"step {number}"] for number in (1, 2, 3)] == ["ok", "", ""]
    assert (small["failed expectations"], small["not played"]) == (0, "")
    assert large["not played"] == (
        f"{path}:6: offline: 'offline first 6' is not valid; expected no more than 1 blocks, as many as there are"
    )


def test_a_step_that_waits_for_a_page_is_interrupted(tmp_path: Path) -> None:
    """Nobody is there to wait for: it ends with EINTR, block after block, and the run goes on."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "machine: {nodes: [1GiB], parameters: {memhp_default_state: online_movable}}\n"
        "steps:\n  - plug: {name: stick, size: 256MiB}\n"
        "  - allocate: {name: one, pages: 1, blocks: 32, pinned: true, owner: rdma}\n"
        "  - allocate: {name: two, pages: 1, blocks: 33, pinned: true, owner: rdma}\n"
        "  - unplug: stick\n  - offline: 33\n  - offline: 3\n"
    )
    (row,) = run_study(load_study(path))
    assert [row[f"step {number}"] for number in range(1, 7)] == ["ok", "ok", "ok", "EBUSY", "EINTR", "ok"]
    assert [row[f"step {number} stopped by"] for number in (4, 5)] == ["pinned of rdma"] * 2
    assert (row["blocks"], row["gone"], row["stopped by pinned"]) == (9, 6, 2)


def test_the_command_plays_a_scenario_with_so_many_seeds(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how each step ended, but for those that just worked; all of it stands in the files."""
    out = tmp_path / "out"
    assert main(["study", str(scenario), "--seeds", "2", "--jobs", "1", "--out", str(out), "--format", "csv,parquet,svg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["As it is", "2 runs, 2 for each line"]
    assert lines[4].startswith("as it is      10 ")
    assert [line.partition(":")[0] for line in lines[6:11]] == [
        "as it is",
        "  6. unplug movable",
        "  7. unplug kernel",
        "  10. offline 3",
        "  expectations did not hold in 2 of 2 runs",
    ]
    assert [line.partition(";")[0].partition(": ")[2] for line in lines[7:10]] == ["ok", "EBUSY", "EBUSY"]
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [[row[f"step {number}"] for number in range(1, 11)] for row in rows] == [RESULTS, RESULTS]


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        (f"study: x\nscenario: none.yaml\n{VARY}", 0, "a file that can be read"),
        ("study: x\nscenario: scenario.yaml\nsteps: []\n", 3, "either a scenario's file or its parts"),
        ("study: x\nsteps: []\n", 1, "a mapping with the key machine"),
        ("study: x\nmachine: {nodes: [1GiB]}\nsteps: []\nadded: 1GiB\n", 4, "one of the keys study, scenario, vary"),
        ("study: x\nmachine: {from: host}\nsteps: []\n", 2, "whose machine is described with `nodes`"),
        ("study: x\nmachine: {nodes: [1GiB]}\nsteps:\n  - onlin: 3\n", 4, "did you mean that?"),
        ("study: x\nmachine: {nodes: [1GiB]}\nsteps: []\nvary:\n  block_size: [1GiB, 3GiB]\n", 5, "a power of two"),
    ],
)
def test_a_mistake_in_a_study_of_steps_is_named_with_its_line(scenario: Path, text: str, line: int, expected: str) -> None:
    """Whether it is the study's or the scenario's."""
    path = scenario.with_name("study.yaml")
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        load_study(path)
    assert caught.value.line == line
    assert expected in caught.value.expected


def test_python_callbacks_stay_on_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A scheduler's workers may not have the file; nor is a negative number of seeds any."""
    path = tmp_path / "s.yaml"
    path.write_text('machine: {nodes: [1GiB]}\ncallbacks: {a: {call: "m:f"}}\nsteps: []\n')
    with pytest.raises(ScenarioError, match="no Python functions on other machines"):
        run_study(load_study(path), scheduler="tcp://127.0.0.1:1")
    assert main(["study", str(path), "--seeds", "-1"]) == 2
    assert capsys.readouterr().err == "memhp: --seeds: -1 is not valid; expected a number of seeds, at least 1\n"
