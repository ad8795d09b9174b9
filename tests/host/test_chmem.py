"""``memhp chmem`` against what util-linux 2.42 did: messages, exit codes, and the writes in their order."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memhp import NOTIFY_BAD, NOTIFY_OK, Machine
from memhp.abi.tree import DirTree
from memhp.cli import chmem
from memhp.events import MemoryAction
from memhp.units import PAGE_SIZE
from record_chmem import LINES, RECORDED, TREES, split

RECORDING: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
RUNS = [(name, line) for name, lines in RECORDING["runs"].items() for line in lines]


class Noted(DirTree):
    """Notes each write, and refuses the one that is to fail, as strace did."""

    def __init__(self, root: Path, fail: str) -> None:
        super().__init__(root, writable=True)
        at, _, self.name = fail.partition(":")
        self.at = int(at or 0)
        self.writes: list[list[str]] = []

    def write(self, path: str, data: str | bytes) -> int:
        refused = len(self.writes) + 1 == self.at
        self.read(path)  # raises if there is no such file, which strace didn't see either
        self.writes.append([path.removeprefix("/sys/"), str(data), self.name if refused else ""])
        if refused:
            number = getattr(errno, self.name)
            raise OSError(number, os.strerror(number), path)
        return super().write(path, data)


@pytest.mark.parametrize(("tree", "line"), RUNS, ids=[f"{name}:{line}" for name, line in RUNS])
def test_it_does_what_chmem_did(tree: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option, right and wrong, with writes that fail, on a machine with and without a firmware's list."""
    fail, words = split(line)
    noted = Noted(TREES[tree].write(tmp_path / "root"), fail)
    code = chmem.main(words, "chmem", noted)
    said = capsys.readouterr()
    assert {"out": said.out, "err": said.err, "code": code, "writes": noted.writes} == RECORDING["runs"][tree][line]


def test_the_recording_is_complete() -> None:
    """Every command was asked of the real chmem."""
    assert {name: list(lines) for name, lines in RECORDING["runs"].items()} == {
        name: lines.strip().split("\n") for name, lines in LINES.items()
    }
    assert RECORDING["version"].startswith("chmem from util-linux 2.42")


def test_on_the_model_a_callback_refuses(boot: Callable[..., Machine], capsys: pytest.CaptureFixture[str]) -> None:
    """From the high end down; the block that is refused is named, and the next one is taken."""
    machine = boot("2GiB")
    asked: list[int] = []

    @machine.hotplug_memory_notifier
    def guard(block: object, action: MemoryAction, memory: Any) -> Any:
        asked.append(memory.start_pfn * PAGE_SIZE >> 27)
        return NOTIFY_BAD if memory.start_pfn == 15 << 15 and action is MemoryAction.MEM_GOING_OFFLINE else NOTIFY_OK

    assert chmem.main(["-d", "256M", "-v"], "chmem", machine.tree) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Memory Block 15 (0x0000000078000000-0x000000007fffffff) disable failed",
        "Memory Block 14 (0x0000000070000000-0x0000000077ffffff) disabled",
        "Memory Block 13 (0x0000000068000000-0x000000006fffffff) disabled",
    ]
    assert list(dict.fromkeys(asked)) == [15, 14, 13]
    assert chmem.main(["-d", "-b", "14-15"], "chmem", machine.tree) == 64
    assert capsys.readouterr().err == (
        "chmem: Memory Block 15 (0x0000000078000000-0x000000007fffffff) disable failed: Operation not permitted\n"
    )
    assert chmem.main(["-e", "-b", "13-15"], "chmem", machine.tree) == 0
    zones = [machine.tree.read(f"/sys/devices/system/memory/memory{number}/valid_zones") for number in (13, 14)]
    assert zones == ["Movable\n", "Movable\n"]


def test_a_machine_without_memory_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It can't be read; help can."""
    assert chmem.main(["-e", "128M"], "chmem", DirTree(tmp_path)) == 1
    assert capsys.readouterr().err == "chmem: Failed to read /sys/devices/system/memory: No such file or directory\n"
    assert chmem.main(["--help"], "chmem", DirTree(tmp_path)) == 0
    assert "Supported zones:\n DMA\n DMA32\n Normal\n Highmem\n Movable\n Device\n" in capsys.readouterr().out


def test_a_block_whose_zones_are_not_known_is_of_no_zone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """chmem 2.42 takes the zones of the block before; a block that is just configured and has no files yet must not get those."""
    noted = Noted(TREES["s390"].write(tmp_path / "root"), "")
    assert chmem.main(["-z", "Movable", "-e", "-b", "5-6"], "chmem", noted) == 64
    assert noted.writes == [
        ["devices/system/memory/memory5/state", "online_movable", ""],
        ["firmware/memory/memory6/config", "1", ""],
    ]
    message = "chmem: Memory Block 6 (0x0000000060000000-0x000000006fffffff) enable failed: Zone mismatch\n"
    assert capsys.readouterr().err == message


def test_ctrl_c_says_what_was_done(boot: Callable[..., Machine], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is undone, as with chmem, but it is said."""
    machine = boot("2GiB")

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(machine.tree, name)

        def write(self, path: str, data: str | bytes) -> int:
            if "memory13" in path:
                raise KeyboardInterrupt
            return machine.tree.write(path, data)

    assert chmem.main(["-d", "1G"], "chmem", Interrupted()) == 130
    assert capsys.readouterr().err == "chmem: interrupted; 2 files were written to, and stay as they are now\n"


def test_nothing_is_written_without_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every block that can't be written to is named."""
    tree = DirTree(TREES["plain"].write(tmp_path / "root"))  # read-only
    assert chmem.main(["-d", "-b", "2-3"], "chmem", tree) == 1
    assert capsys.readouterr().err.splitlines() == [
        "chmem: Memory Block 2 (0x0000000010000000-0x0000000017ffffff) disable failed: Read-only file system",
        "chmem: Memory Block 3 (0x0000000018000000-0x000000001fffffff) disable failed: Read-only file system",
    ]
