"""Wherever output goes, or can't go: an exit code and at most a line, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trees import TreeSpec, block

COMMANDS = [
    (["list", "-a"], "memhp list: write error: "),
    (["explain"], "memhp: "),
    (["plan", "offline", "128M", "--keep-free", "0"], "memhp: "),
    (["offline", "128M", "--dry-run", "--keep-free", "0"], "memhp: "),
    (["policy"], "memhp policy: "),
    (["doctor"], "memhp doctor: "),
]
NAMES = [arguments[0] for arguments, _ in COMMANDS]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return TreeSpec(blocks={0: block(), 1: block()}).write(tmp_path / "root")


def run(arguments: list[str], root: Path, ending: str) -> tuple[int, str]:
    """Run memhp with redirections as a shell has them; gives the exit code, and what it said to standard error."""
    words = [sys.executable, "-m", "memhp.cli", *arguments, "-s", str(root)]
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {ending}', "sh", *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in COMMANDS], ids=NAMES)
@pytest.mark.parametrize("ending", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(arguments: list[str], ending: str, root: Path) -> None:
    """The exit code is that of a run whose output nobody reads."""
    assert run(arguments, root, ending) == run(arguments, root, ">/dev/null")


@pytest.mark.parametrize(("arguments", "begin"), COMMANDS, ids=NAMES)
def test_a_full_disk_is_one_line(arguments: list[str], begin: str, root: Path) -> None:
    """And exit code 1: the output is not all there."""
    assert run(arguments, root, ">/dev/full") == (1, f"{begin}No space left on device\n")


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in COMMANDS], ids=NAMES)
def test_a_reader_that_is_gone_ends_it_quietly(arguments: list[str], root: Path) -> None:
    """As the signal SIGPIPE ends other programs."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "memhp.cli", *arguments, "-s", str(root)]
    done = subprocess.run(words, check=False, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in COMMANDS if arguments[0] != "list"], ids=NAMES[1:])
def test_a_copy_that_is_not_there_is_bad_input(arguments: list[str], tmp_path: Path) -> None:
    """Rather than a kernel without memory blocks."""
    code, said = run(arguments, tmp_path / "nothing", "")
    assert code == 2
    assert said.endswith("expected a directory that has a copy of a machine's /sys and /proc\n")


@pytest.mark.parametrize("arguments", [["--version"], ["chmem", "--help"]])
@pytest.mark.parametrize(("output", "ended"), [("full", (1, "memhp: No space left on device\n")), ("gone", (141, ""))])
def test_a_help_that_nobody_can_read_ends_like_any_output(arguments: list[str], output: str, ended: tuple[int, str]) -> None:
    """Not with a traceback, nor as if it had been read."""
    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-c", "from memhp.cli import console; console()", *arguments],
        check=False,
        stdout=full if output == "full" else writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    os.close(full)
    assert (done.returncode, done.stderr) == ended


def test_ctrl_c_while_a_command_is_imported_is_one_line(tmp_path: Path) -> None:
    """Of the program, whatever part of it was there already."""
    code = "import memhp.cli as cli\ndef interrupted(name):\n raise KeyboardInterrupt\ncli._module = interrupted\ncli.console()"
    done = subprocess.run([sys.executable, "-c", code, "run", "x.yaml"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "memhp: interrupted\n")
