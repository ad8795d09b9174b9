"""A transaction that is killed at any step is accounted for by the next run, and can be undone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from host.captured import block, ram, words, zones
from host.filetree import FileTree
from memhp.errors import HostError
from memhp.host import Host
from memhp.host.hooks import hooks_in
from memhp.host.journal import forget, locked, unfinished
from memhp.host.recover import account, recover

TESTS = Path(__file__).parents[1]
KILLED = -9


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A machine of four blocks in ``root``, a directory for journals, and a hook that writes down what it hears."""
    root = tmp_path / "root"
    ram(root_made(root), (0, 0x7FFFFFFF, "System RAM"))
    zones(root, (0, "Normal", 60_000, 65536, 65536), (0, "Movable", 60_000, 65536, 65536))
    for number in range(4):
        block(root, number, zones="Normal" if number < 2 else "Movable")
    words(root, {number: [] for number in range(4)})
    hooks = tmp_path / "hooks"
    hooks.mkdir(mode=0o755)
    hook = hooks / "10-listen"
    hook.write_text(f'#!/bin/sh\necho "$MEMHP_ACTION $MEMHP_BLOCK" >> {tmp_path}/heard\n')
    hook.chmod(0o755)
    (tmp_path / "heard").touch()
    return tmp_path


def root_made(root: Path) -> Path:
    root.mkdir()
    return root


def run(place: Path, goal: str, step: int) -> int:
    command = [
        sys.executable,
        "-m",
        "host.filetree",
        *(str(place / name) for name in ("root", "state", "hooks")),
        goal,
        str(step),
    ]
    return subprocess.run(command, cwd=TESTS, check=False, env={**os.environ, "PYTHONPATH": str(TESTS)}).returncode


def now(place: Path) -> dict[str, str]:
    return {
        f"memory{found.id}": f"online in {found.zone}" if found.online else found.state
        for found in Host(FileTree(place / "root")).blocks()
    }


@pytest.mark.parametrize("stays", ["", "memory1"])
def test_every_step(place: Path, stays: str) -> None:
    """Killed before and after each note and each write: the account is true, undoing restores all, and each GOING has an end."""
    (place / "root/stays").write_text(stays)
    before = now(place)
    end = before if stays else dict.fromkeys(before, "offline")
    step = 0
    while True:
        step += 1
        (place / "heard").write_text("")
        if run(place, "0-3", step) != KILLED:
            break
        host = Host(FileTree(place / "root"))
        killed_in = now(place)
        with locked(place / "state"):
            left = unfinished(place / "state")
            if not left:  # not begun, or ended
                assert killed_in in (before, end)
                restore(place)
            for entry in left:
                accounted = dict(line.split(": ", 1) for line in account(host, entry))
                changed = {name: state for name, state in killed_in.items() if state != before[name]}
                assert (
                    changed.items()
                    == {
                        name: text.rpartition("is ")[2] for name, text in accounted.items() if not text.endswith("as before")
                    }.items()
                )
                assert recover(host, entry, hooks=hooks_in(place / "hooks")) == []
                forget(entry)
            assert unfinished(place / "state") == []
        assert now(place) == before, f"step {step}"
        heard = (place / "heard").read_text().split("\n")
        assert open_questions(heard) == [], f"step {step}"
    assert step > 40
    assert now(place) == end
    assert list((place / "state").glob("change-*")) == []


def open_questions(heard: list[str]) -> list[str]:
    """Blocks of which somebody was asked and never heard how it ended."""
    asked: list[str] = []
    for line in filter(None, heard):
        action, name = line.split()
        if "GOING" in action:
            asked.append(name)
        elif name in asked:  # a hook may hear of the end twice, if the kill came between hearing and noting
            asked.remove(name)
    return asked


def test_what_somebody_else_changed_since_is_left_alone(place: Path) -> None:
    """Only blocks that are as the transaction left them are undone."""
    steps = iter(range(1, 200))
    while run(place, "0-3", next(steps)) == KILLED and sum(state == "offline" for state in now(place).values()) < 2:
        for path in (place / "state").glob("change-*"):
            path.unlink()
        restore(place)
    tree = FileTree(place / "root")
    gone = [name for name, state in now(place).items() if state == "offline"]
    assert gone == ["memory2", "memory3"]
    tree.write("/sys/devices/system/memory/memory3/state", "online_kernel")

    (entry,) = unfinished(place / "state")
    assert account(Host(tree), entry) == [
        "memory3: was online in Movable, is online in Normal",
        "memory2: was online in Movable, is offline",
    ]
    assert recover(Host(tree), entry) == []
    assert now(place)["memory2"] == "online in Movable"
    assert now(place)["memory3"] == "online in Normal"


def restore(place: Path) -> None:
    tree = FileTree(place / "root")
    for number in range(4):
        tree.write(f"/sys/devices/system/memory/memory{number}/state", "online_kernel" if number < 2 else "online_movable")


def test_two_transactions_don_t_run_at_once(tmp_path: Path) -> None:
    """The second is refused, and says why; a lock whose holder is gone is none."""
    with locked(tmp_path / "state"), pytest.raises(HostError, match="another transaction is running"), locked(tmp_path / "state"):
        pass
    with locked(tmp_path / "state"):
        pass


def test_the_directory_must_be_private(tmp_path: Path) -> None:
    """Who may write a journal may have memory changed."""
    open_to_all = tmp_path / "state"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(HostError, match="others may write to it"), locked(open_to_all):
        pass


@pytest.mark.parametrize("text", ["", '{"note": "beg', "[]\n", '{"note": "write", "id": 3}\n', "\0\0\n"])
def test_a_torn_journal_is_no_trouble(place: Path, text: str) -> None:
    """The last line may be half a line; without a first one nothing is known but the writes."""
    with locked(place / "state"):
        (place / "state/change-1-2.jsonl").write_text(text)
        (entry,) = unfinished(place / "state")
        host = Host(FileTree(place / "root"))
        assert account(host, entry) in ([], ["memory3: was unknown, is online in Movable"])
        assert recover(host, entry) == []
