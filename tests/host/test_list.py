"""``memhp list`` against what util-linux 2.42 printed, and its own shapes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memhp.cli import main, table
from memhp.host.scan import human
from record_lsmem import RECORDED, SHAPES, TREES, ask, split
from trees import MEMORY, PARAMETERS, TreeSpec, block

RECORDING: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
RUNS = [(name, line) for name, lines in RECORDING["runs"].items() for line in lines]

Said = tuple[str, str, int]


def listed(root: Path, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Run ``memhp list`` in this process, under the name of lsmem."""
    variables, words = split(line)
    with monkeypatch.context() as patch:
        for name in ("LSMEM_COLUMNS", "POSIXLY_CORRECT"):
            patch.delitem(posix_environment(), name.encode(), raising=False)
        for name, text in variables.items():
            patch.setitem(posix_environment(), name.encode(), text.encode())
        code = main(["list", "-s", str(root), *words])
    captured = capsys.readouterr()
    return captured.out, captured.err.replace("memhp list", "lsmem").replace(str(root), "ROOT"), code


def posix_environment() -> dict[bytes, bytes]:
    import posix

    return posix.environ


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: spec.write(tmp_path_factory.mktemp("trees") / name) for name, spec in TREES.items()}


@pytest.mark.parametrize(("tree", "line"), RUNS, ids=[f"{name}:{line}" for name, line in RUNS])
def test_it_prints_what_lsmem_printed(
    tree: str, line: str, roots: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option, right and wrong, on machines of several kinds: the same bytes, messages and exit code as lsmem 2.42."""
    expected = RECORDING["runs"][tree][line]
    out, err, code = listed(roots[tree], line, capsys, monkeypatch)
    assert out == expected["out"]
    assert code == expected["code"]
    if tree in {"none", "no-size"}:  # what lsmem says behind the last colon is the errno of some other call
        assert err.rpartition(":")[0].split(": ")[1] == expected["err"].rpartition(":")[0].split(": ")[1]
    else:
        assert err == expected["err"]


CAPTURED = sorted((RECORDED.parent.parent / "trees").glob("*.json"))


@pytest.mark.parametrize("path", CAPTURED, ids=lambda path: path.stem)
def test_captured_machines_are_listed_as_their_own_lsmem_did(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM, and guests with DIMMs in two nodes; the lsmem there was Debian's 2.38, whose JSON, pairs and raw are the same."""
    captured = json.loads(path.read_text(encoding="utf-8"))
    root = TreeSpec.of(captured["tree"]).write(tmp_path / "root")
    assert {line: listed(root, line, capsys, monkeypatch) for line in captured["lsmem"]} == {
        line: (said, "", 0) for line, said in captured["lsmem"].items()
    }


def test_the_recording_is_of_the_trees_that_are_compared() -> None:
    """Nobody changes a tree or a command without asking the real lsmem again."""
    assert {
        name: set(SHAPES.strip("\n").split("\n")) <= set(lines) for name, lines in RECORDING["runs"].items()
    } == dict.fromkeys(TREES, True)
    assert RECORDING["version"].startswith("lsmem from util-linux 2.42")


STATES = st.sampled_from(["online", "online", "online", "offline", "going-offline", "odd"])
ZONES = st.sampled_from(
    ["Normal", "Normal", "Movable", "none", "None", "DMA32", "Normal Movable", "Movable Normal", "Strange", ""]
)
NODES = st.sampled_from([(0,), (0,), (0,), (1,), (2,), (0, 1), ()])
BLOCKS = st.builds(block, STATES, ZONES, st.sampled_from(["1", "1", "0", "2", "x", " 1 y"]), NODES)
SPECS = st.builds(
    TreeSpec,
    block_size=st.sampled_from(["8000000", "10000000", "40000000", "1000000", "80000000", "8000000000"]),
    blocks=st.dictionaries(st.one_of(st.integers(0, 12), st.integers(0, 3000)), BLOCKS, min_size=1, max_size=14),
    node_links=st.booleans(),
    firmware=st.one_of(
        st.just({}),
        st.dictionaries(
            st.integers(0, 12),
            st.fixed_dictionaries({"config": st.sampled_from("01"), "memmap_on_memory": st.sampled_from("01")}),
        ).map(lambda found: {0: {"config": "1", "memmap_on_memory": "0"}, **found}),
    ),
    files=st.sampled_from([{}, {f"{PARAMETERS}/memmap_on_memory": "Y"}, {f"{PARAMETERS}/memmap_on_memory": "N"}]),
)


@pytest.mark.lsmem
@settings(max_examples=int(os.environ.get("MEMHP_EXAMPLES", "25")), deadline=None)
@given(spec=SPECS)
def test_it_prints_what_a_real_lsmem_prints(spec: TreeSpec, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On any mixture of states, zones, nodes, holes and sizes, in every shape."""
    for number, facts in spec.firmware.items():
        if facts["config"] == "1":  # a block that is configured exists
            spec.blocks.setdefault(number, block())
    root = spec.write(tmp_path_factory.mktemp("any") / "root")
    for line in ["", *SHAPES.strip("\n").split("\n")]:
        expected = ask(shlex.split(os.environ["MEMHP_LSMEM"]), root, line)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["list", "-s", str(root), *line.split()])
        assert {"out": out.getvalue(), "err": err.getvalue(), "code": code} == expected, line


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1K"),
        (128 << 20, "128M"),
        (3 << 30, "3G"),
        ((1 << 30) + (256 << 20), "1.3G"),
        ((1 << 30) + (103 << 20), "1.1G"),
        ((1 << 40) - (1 << 20), "1024G"),
        (5 << 60, "5E"),
    ],
)
def test_sizes_are_rounded_as_util_linux_rounds_them(size: int, text: str) -> None:
    """One letter, at most one decimal, half up; the values are lsmem's."""
    assert human(size) == text


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (0, "SIZE SIZE\n  6G   6G\n"),
        (80, " SIZE  SIZE\n   6G    6G\n"),
        (11, " SIZE  SIZE\n   6G    6G\n"),
        (10, "SIZE  SIZE\n  6G    6G\n"),
        (9, "SIZE SIZE\n  6G   6G\n"),
        (4, "SIZE SIZE\n  6G   6G\n"),
    ],
)
def test_on_a_terminal_sizes_get_room_if_there_is_some(width: int, text: str) -> None:
    """As lsmem 2.42 printed them on terminals of these widths; 0 is no terminal."""
    assert table.aligned([table.Column("SIZE", ["6G"], hint=5)] * 2, terminal=width) == text


def test_columns_of_firmware_are_left_out_where_there_is_no_firmware(
    roots: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they stand: lsmem 2.42 leaves them out too if they are the last, and else ends with "cannot allocate memory"."""
    out, err, code = listed(roots["arm64-16k"], "-o CONFIGURED,RANGE,MEMMAP-ON-MEMORY,NODE --summary=never", capsys, monkeypatch)
    lines = ["RANGE                                 NODE"]
    lines += ["0x0000000080000000-0x00000000efffffff    0", "0x00000000f8000000-0x000000017fffffff    0"]
    assert (out.splitlines(), err, code) == (lines, "", 0)


def test_our_json_has_every_key_and_null_for_what_is_not_known(
    roots: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are in bytes; removable is the file's; there is no verdict "yes", because these files can't know."""
    out, err, code = listed(roots["mixed"], "--format json", capsys, monkeypatch)
    document = json.loads(out)
    assert (err, code) == ("", 0)
    blocks = document.pop("blocks")
    policy = dict.fromkeys(["auto_online_blocks", "online_policy", "auto_movable_ratio", "auto_movable_numa_aware"])
    assert document == {
        "schema": "memhp.list/1",
        "block_size": 134217728,
        "online_bytes": 13 * 134217728,
        "offline_bytes": 5 * 134217728,
        "nodes": [0, 1, 3],
        "policy": {**policy, "memmap_on_memory": "N"},
        "deconfigured": [],
    }
    shown = {entry["id"]: entry for entry in blocks}
    known = {"removable": True, "phys_device": 0, "size": 134217728}
    assert shown[0] == {
        "id": 0,
        "start": 0,
        "state": "online",
        "online": True,
        "nodes": [0],
        "zone": None,
        "valid_zones": ["none"],
        "verdict": "no",
        "why": "it lies in several zones or nodes",
        **known,
    }
    assert shown[39] == {
        "id": 39,
        "start": 39 * 134217728,
        "state": "offline",
        "online": False,
        "nodes": [1],
        "zone": None,
        "valid_zones": ["Normal", "Movable"],
        "verdict": "offline",
        "why": "it is offline",
        **known,
    }
    assert [shown[number]["verdict"] for number in (3, 41, 42, 1000)] == ["unknown"] * 4
    listed_none = json.loads(listed(roots["torn"], "--format json", capsys, monkeypatch)[0])["blocks"][0]
    assert {name for name, value in listed_none.items() if value is None} == {
        "state",
        "online",
        "zone",
        "valid_zones",
        "removable",
        "phys_device",
    }


def test_the_map_shows_nodes_zones_and_states(
    roots: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row ends at a hole; a block of two nodes is shown apart."""
    assert listed(roots["mixed"], "--map", capsys, monkeypatch)[0].splitlines() == [
        "2304 MiB in 18 blocks of 128 MiB, 1664 MiB online",
        "",
        "node 0: 1280 MiB, all online",
        "  memory0        !333",
        "  memory32       NNNNNN",
        "",
        "node 0-1: 128 MiB, all online",
        "  memory38       N",
        "",
        "node 1: 640 MiB, 256 MiB online",
        "  memory39       ..>MM",
        "",
        "node 3: 256 MiB, 0 B online",
        "  memory1000     ??",
        "",
        "  one sign is one block of 128 MiB",
        "  3  online in DMA32",
        "  N  online in Normal",
        "  M  online in Movable",
        "  !  online, and can't go offline: it lies in several zones or nodes",
        "  >  going offline",
        "  .  offline",
        "  ?  its state can't be read",
    ]


def test_a_large_machine_fits_on_the_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sign stands for several blocks, ~ if they differ."""
    blocks = {number: block("offline" if number == 100 else "online") for number in range(6000)}
    out = listed(TreeSpec(blocks=blocks).write(tmp_path / "root"), "--map", capsys, monkeypatch)[0]
    assert out.splitlines()[3] == f"  memory0        {'N' * 50}~{'N' * 13}"
    assert "  one sign is 2 blocks of 128 MiB" in out


def test_the_picture_has_each_block(
    roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its facts as a tooltip."""
    file = tmp_path / "machine.svg"
    assert listed(roots["mixed"], f"--svg {file}", capsys, monkeypatch) == ("", "", 0)
    text = file.read_text(encoding="utf-8")
    assert text.count("<title>memory") == 18
    assert (
        "memory41 [0x148000000-0x14fffffff] going-offline, zones Movable/Normal; goes offline: unknown, it is on its way" in text
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--format xml", "lsmem: unsupported --format argument: xml; there is json\n"),
        ("--map -J", "lsmem: options --map and --json cannot be combined\n"),
        ("--svg /no/such/file", "lsmem: cannot write /no/such/file: No such file or directory\n"),
        ("--ma", "lsmem: unrecognized option '--ma'\nTry 'lsmem --help' for more information.\n"),
    ],
)
def test_what_is_wrong_with_our_own_options_is_said(
    line: str, said: str, roots: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They aren't abbreviated, so that abbreviations mean what they mean to lsmem."""
    assert listed(roots["mixed"], line, capsys, monkeypatch) == ("", said, 1)


def test_a_machine_without_memory_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lsmem's words; for this machine also what is missing."""
    said = "lsmem: cannot open /sys/devices/system/memory: No such file or directory\n"
    assert listed(tmp_path, "", capsys, monkeypatch) == ("", said, 1)
    (tmp_path / MEMORY).mkdir(parents=True)
    assert listed(tmp_path, "", capsys, monkeypatch) == ("", "lsmem: This system does not support memory blocks\n", 1)


def test_it_is_lsmem_under_the_name_of_lsmem(roots: dict[str, Path], tmp_path: Path) -> None:
    """A link to memhp is enough; it speaks under that name."""
    link = tmp_path / "lsmem"
    link.symlink_to(Path(sys.executable).parent / "memhp")
    done = subprocess.run([link, "-s", roots["mixed"], "--foo"], check=False, capture_output=True, text=True)
    assert done.stderr == "lsmem: unrecognized option '--foo'\nTry 'lsmem --help' for more information.\n"
    done = subprocess.run([link, "-s", roots["mixed"]], check=False, capture_output=True, text=True)
    assert done.stdout == RECORDING["runs"]["mixed"][""]["out"]


def test_a_full_disk_and_a_closed_pipe_are_no_traceback(roots: dict[str, Path]) -> None:
    """As lsmem: a message and 1; and silence."""
    program = [sys.executable, "-m", "memhp.cli", "list", "-s", str(roots["large"]), "-a"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(program, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.stderr, done.returncode) == ("memhp list: write error: No space left on device\n", 1)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(program, check=False, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.stderr, done.returncode) == ("", 141)
