"""Studies: files, runs in one and several processes and on Dask, and what is written."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from memhp.cli import main
from memhp.errors import InvalidInput, ScenarioError
from memhp.study.measure import COLUMNS, run_point
from memhp.study.output import groups_of
from memhp.study.plan import load_study
from memhp.study.run import run_study

SMALL = """\
study: a small one
machine:
  nodes: [512MiB]
added: 512MiB
vary:
  workload: [database, build]
  online: [online_kernel, online_movable]
  fill: 40%
seeds: 1-2
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_a_study_is_each_combination_with_each_seed(small: Path) -> None:
    """In the order of the axes, seeds innermost."""
    points = list(load_study(small).points())
    assert [(point["workload"], point["online"], point["seed"]) for point in points] == [
        (workload, online, seed)
        for workload in ("database", "build")
        for online in ("online_kernel", "online_movable")
        for seed in (1, 2)
    ]
    assert {(point["fill"], point["added"], point["block_size"]) for point in points} == {(0.4, 512 << 20, 128 << 20)}


def test_a_run_counts_every_block_once(small: Path) -> None:
    """Gone, or stopped by one reason; and the movable half is in ZONE_MOVABLE."""
    point = next(point for point in load_study(small).points() if point["online"] == "online_movable")
    row = run_point(point)
    assert tuple(row) == COLUMNS
    stopped = sum(row[column] for column in COLUMNS if column.startswith("stopped by"))
    assert row["gone"] + stopped == row["blocks"] == 8
    assert row["movable_blocks"] == 4
    assert row["gone"] <= row["isolable"]
    assert row["share"] == row["gone"] / 8
    assert row["stopped by several zones or holes"] == 1  # block 0


def test_huge_pages_of_the_pool_do_not_move_and_those_that_are_promised_stay(tmp_path: Path) -> None:
    """Of three blocks of them the one that nobody was promised goes: its pages are dissolved."""
    path = tmp_path / "pool.yaml"
    path.write_text("""study: pool
machine: {nodes: [1GiB], rules: "6.1"}
steps:
  - allocate: {name: a, size: 128MiB, kind: hugetlb-reserved, blocks: 5}
  - allocate: {name: b, size: 128MiB, kind: hugetlb-free, blocks: 6}
  - allocate: {name: c, size: 128MiB, kind: hugetlb-reserved, blocks: 7}
seeds: 1
""")
    (point,) = load_study(path).points()
    row = run_point(point)
    # The free ones go with the first block, so that nothing is left that could keep the other promises.
    assert (row["blocks"], row["gone"], row["moved_pages"]) == (8, 5, 0)
    assert {name: row[name] for name in row if name.startswith("stopped by") and row[name]} == {
        "stopped by several zones or holes": 1,
        "stopped by hugetlb-reserved": 2,
    }


def test_zone_movable_lets_more_blocks_go(small: Path) -> None:
    """What it is for: the blocks that hold nothing unmovable are more."""
    study = load_study(small)
    groups = {group.label: group.mean("isolable") for group in groups_of(study, run_study(study))}
    assert groups["build, online_movable"] > groups["build, online_kernel"]
    assert groups["database, online_movable"] > groups["database, online_kernel"]


def test_processes_don_t_change_the_results(small: Path) -> None:
    """The same rows in the same order; and each run is heard of."""
    study = load_study(small)
    told: list[tuple[int, int]] = []
    assert run_study(study, jobs=2, done=lambda *counts: told.append(counts)) == run_study(study)
    assert told == [(number, 8) for number in range(1, 9)]


def test_processes_end_with_the_one_that_started_them(small: Path) -> None:
    """It is killed after the first run; then nobody holds its output open any more."""
    program = small.with_name("killed.py")
    program.write_text(
        "import os, signal, sys\nfrom memhp.study.plan import load_study\nfrom memhp.study.run import run_study\n"
        "if __name__ == '__main__':\n"
        "    study = load_study(sys.argv[1])\n"
        "    run_study(study, jobs=2, done=lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    killed = subprocess.run([sys.executable, program, small], stdout=subprocess.PIPE, timeout=300, check=False)
    assert (killed.returncode, killed.stdout) == (-9, b"")


def test_dask_doesn_t_change_the_results(small: Path) -> None:
    """A scheduler and a worker on this machine; a scenario's steps travel there, too."""
    stepped = small.with_name("stepped.yaml")
    stepped.write_text("study: x\nmachine: {nodes: [1GiB]}\nsteps: [{fill: build}, {offline: last 2}]\nseeds: 1-2\n")
    studies = [load_study(small), load_study(stepped)]
    script = (
        "import sys\nfrom distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:\n"
        "        print(cluster.scheduler_address, flush=True)\n        sys.stdin.read()\n"
    )
    program = small.with_name("cluster.py")
    program.write_text(script)
    with subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        rows = [run_study(study, scheduler=address) for study in studies]
        assert process.stdin is not None
        process.stdin.close()
    assert rows == [run_study(study) for study in studies]


def test_the_command_writes_what_is_asked_for(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people, and files for programs; CSV and Parquet say the same."""
    out = tmp_path / "out"
    assert main(["study", str(small), "--jobs", "1", "--out", str(out), "--format", "csv,parquet,png,svg"]) == 0
    names = ["results.csv", "results.parquet", "gone.png", "stopped.png", "gone.svg", "stopped.svg"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["a small one", "8 runs, 2 for each line"]
    assert [line.split(" ")[0] for line in lines[4:8]] == ["database,", "database,", "build,", "build,"]
    assert lines[-6:] == [f"wrote {out / name}" for name in names]
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(out / "results.parquet").to_pylist()
    assert [{name: str(value) for name, value in row.items()} for row in table] == rows
    assert (out / "gone.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "stopped.svg").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("online_movable]", "sideways]"), r"small\.yaml:7: .*'sideways'.*online, online_kernel, online_movable"),
        (("database", "mining"), r"small\.yaml:6: .*'mining'.*database, build, cache, vmhost"),
        (("[database, build]", "[build, build]"), r"small\.yaml:6: .*each value once"),
        (("fill: 40%", "fill: 140%"), r"small\.yaml:8: .*'140%'.*a share above 0 and below 1"),
        (("fill: 40%", "weather: fine"), r"small\.yaml:8.*'weather'.*one of the keys"),
        (("512MiB]", "12 apples]"), r"small\.yaml.*'12 apples'"),
        (("added: 512MiB", "added: 500MiB"), r"small\.yaml.*a multiple of the block size"),
        (("seeds: 1-2", "seeds: 2-1"), r"small\.yaml:9: .*'2-1'"),
        (("study: a small one", "title: a small one"), r"small\.yaml:1.*'title'"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    small: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    """Unknown words, shares beyond 100 %, sizes that are none: exit code 2, one line, no traceback."""
    small.write_text(SMALL.replace(*change))
    with pytest.raises(ScenarioError, match=message):
        load_study(small)
    assert main(["study", str(small)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_mistakes_on_the_command_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No such format, process count or file, and nothing is written."""
    out = str(tmp_path / "out")
    for words in (["--format", "xlsx"], ["--jobs", "0"]):
        assert main(["study", str(small), "--out", out, *words]) == 2
    assert main(["study", str(tmp_path / "none.yaml")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["xlsx" in errors[0], "0" in errors[1], "none.yaml" in errors[2], len(errors)] == [True, True, True, 3]
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInput, match="a number of processes"):
        run_study(load_study(small), jobs=True)
