"""memhp online and memhp offline: exit codes, what they print, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host.captured import ANON, block, ram, words, zones
from memhp import NOTIFY_BAD, NOTIFY_OK, Machine, PageKind
from memhp.cli import change, main
from memhp.host.journal import Journal

Boot = Callable[..., Machine]


@pytest.fixture
def machine(boot: Boot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A modelled machine in place of this one, and a private directory for journals."""
    machine = boot(["1GiB", "512MiB"])
    monkeypatch.setattr(change, "DirTree", lambda root, writable: machine.tree)
    monkeypatch.setattr(change, "DEFAULT_HOOKS", str(tmp_path / "none"))
    monkeypatch.setenv("MEMHP_STATE_DIR", str(tmp_path / "state"))
    return machine


def said(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def without_time(lines: list[str]) -> list[str]:
    return [line.rpartition(" (")[0] if line.endswith(" s)") else line for line in lines]


def test_done_is_0(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what was done."""
    assert main(["offline", "256M"]) == 0
    out, err = said(capsys)
    assert (without_time(out), err) == (["256 MiB offline: memory10-11"], [])

    assert main(["online", "10-11", "--zone", "movable"]) == 0
    assert without_time(said(capsys)[0]) == ["256 MiB online: memory10-11"]
    assert main(["online", "10-11"]) == 0
    assert said(capsys)[0] == ["nothing to do: all of it is online already"]


def test_nothing_changed_is_1(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """What failed, why, and that nothing is changed."""
    machine.hotplug_memory_notifier(lambda *_: NOTIFY_BAD, 7)

    assert main(["offline", "9"]) == 1
    out, err = said(capsys)
    assert out == []
    assert len(err) == 1
    assert err[0].startswith("memhp: memory9: [EPERM] memory9 [mem 0x48000000-0x4fffffff]: ")
    assert err[0].endswith("; no block is changed")


def test_partly_is_64(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """With --partial what could be done stays done."""
    machine.hotplug_memory_notifier(lambda self, action, arg: NOTIFY_BAD if arg.start_pfn == 9 * 32768 else NOTIFY_OK)

    assert main(["offline", "9-10", "--partial"]) == 64
    out, _ = said(capsys)
    assert without_time(out) == ["128 MiB offline: memory10"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["offline"], "memhp: GOAL: '' is not valid; expected how much or which memory (or --recover)"),
        (["offline", "4G", "--recover"], "memhp: GOAL: '4G' is not valid; expected nothing beside --recover and --forget"),
        (["offline", "1X"], "memhp: goal: '1X' is not valid"),
        (["offline", "99"], "memhp: blocks: 'memory99' is not valid; expected blocks that exist"),
        (["offline", "9", "--timeout", "-1"], "memhp: --timeout: -1.0 is not valid; expected a number of seconds"),
        (["offline", "9", "--timeout", "nan"], "memhp: --timeout:"),
        (["offline", "9", "--hooks", "/none/at/all"], "memhp: /none/at/all: can't be read: No such file or directory"),
    ],
)
def test_bad_input(machine: Machine, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and nothing is changed."""
    assert main(arguments) in {1, 2}
    _, err = said(capsys)
    assert len(err) == 1
    assert err[0].startswith(message)
    assert all(block.state.value == "online" for block in machine.blocks.values())


def test_a_dry_run_shows_the_plan_and_who_would_be_asked(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is changed and nobody is asked."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "10-db").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (hooks / "10-db").chmod(0o755)

    assert main(["offline", "128M", "--dry-run", "--hooks", str(hooks)]) == 0
    out, _ = said(capsys)
    assert out[0] == "Take offline 128 MiB: 1 block of 128 MiB"
    assert out[-1] == f"Would be asked: {hooks}/10-db"
    assert main(["offline", "0", "--dry-run"]) == 1
    assert not (tmp_path / "called").exists()
    assert all(block.state.value == "online" for block in machine.blocks.values())


def test_hooks_are_asked(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that refuses: exit code 1, and its reason."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "10-db").write_text("#!/bin/sh\n[ $MEMHP_PHASE = going ] || exit 0\necho not now >&2\nexit 1\n")
    (hooks / "10-db").chmod(0o755)

    assert main(["offline", "9", "--hooks", str(hooks)]) == 1
    assert "10-db answered with exit status 1: not now" in said(capsys)[1][0]


def test_json(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """All keys are there, also when it worked."""
    machine.pages.pin(machine.pages.alloc(1, PageKind.MOVABLE, blocks=[9]))

    assert main(["offline", "9-10", "--json", "--timeout", "0.05"]) == 1
    printed = json.loads(capsys.readouterr().out)
    attempt = printed["attempts"][0]
    assert attempt.pop("seconds") > 0
    assert attempt.pop("text").startswith("[EINTR] memory9")
    assert attempt == {"block": 9, "word": "offline", "errno": 4, "evidence": ["costs 1 pages"], "undo": False, "asked": False}
    assert {key: printed[key] for key in ("schema", "operation", "goal", "result", "exit_code", "changed", "undone", "vain")} == {
        "schema": 1,
        "operation": "offline",
        "goal": "9-10",
        "result": "unchanged",
        "exit_code": 1,
        "changed": [],
        "undone": [10],
        "vain": 1,
    }


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e9"])
@pytest.mark.parametrize("option", ["--timeout", "--hook-timeout"])
def test_limits_that_no_clock_has(machine: Machine, option: str, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is begun, and the option is named."""
    assert main(["offline", "128M", option, seconds]) == 2
    assert capsys.readouterr().err.startswith(f"memhp: {option}: {float(seconds)} is not valid; expected a number of seconds")


def test_ctrl_c(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was done is undone, and the account says so."""
    write = machine.tree.write

    def interrupted(path: str, data: str | bytes) -> int:
        if "memory9/" in path:
            raise KeyboardInterrupt
        return write(path, data)

    monkeypatch.setattr(machine.tree, "write", interrupted)
    assert main(["offline", "9-10", "--timeout", "0"]) == 1
    assert said(capsys)[1] == ["memhp: interrupted; no block is changed; memory10 put back"]
    assert all(block.state.value == "online" for block in machine.blocks.values())


def killed(tmp_path: Path, machine: Machine) -> None:
    """Leave what a transaction leaves that was killed after its first block."""
    from memhp.host.journal import Before, locked

    with locked(tmp_path / "state"):
        journal = Journal(tmp_path / "state")
        journal.begin("offline", "256M")
        for number in (10, 9):
            journal.block(Before(number, 1, "online", "DMA32"))
            journal.note("asked", id=number)
        journal.note("write", id=10)
    machine.tree.write("/sys/devices/system/memory/memory10/state", "offline")


def test_what_was_killed_is_reported_by_the_next_run(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is reported until somebody undoes it or says that it shall stay."""
    killed(tmp_path, machine)

    assert main(["offline", "8"]) == 0
    err = said(capsys)[1]
    assert err[0].startswith("memhp: a transaction (offline 256M, of 20")
    assert err[1:] == [
        "  memory10: was online in DMA32, is offline",
        "  memhp offline --recover undoes it, --forget leaves it as it is.",
    ]
    assert main(["offline", "--recover"]) == 0
    assert said(capsys)[0][1:] == ["  memory10: was online in DMA32, is offline", "  Everything is as it was before it."]
    assert machine.tree.read("/sys/devices/system/memory/memory10/state") == "online\n"
    assert main(["offline", "--recover"]) == 0
    assert said(capsys)[0] == ["no transaction was left behind"]


def test_what_was_killed_can_stay(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--forget accounts for it and leaves it."""
    killed(tmp_path, machine)
    assert main(["online", "--forget"]) == 0
    assert said(capsys)[0][1:] == ["  memory10: was online in DMA32, is offline"]
    assert machine.tree.read("/sys/devices/system/memory/memory10/state") == "offline\n"
    assert main(["online", "--forget"]) == 0
    assert said(capsys)[0] == ["no transaction was left behind"]


def test_what_can_t_be_undone_stays_reported(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 64, which block, and why."""
    killed(tmp_path, machine)
    machine.hotplug_memory_notifier(lambda *_: NOTIFY_BAD, 7)

    assert main(["offline", "--recover"]) == 64
    out = said(capsys)[0]
    assert out[-1].startswith("  still: memory10 was online in DMA32 and is offline: [EPERM] memory10")
    assert main(["offline", "--recover"]) == 64


def test_a_copy_is_not_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a dry run makes sense there."""
    ram(tmp_path, (0, 0x7FFFFFFF, "System RAM"))
    zones(tmp_path, (0, "Normal", 100_000, 65536, 65536))
    block(tmp_path, 1)
    words(tmp_path, {1: [(7, ANON)]})

    assert main(["offline", "1", "--sysroot", str(tmp_path)]) == 2
    assert said(capsys)[1] == [f"memhp: {tmp_path} is a copy and can't be changed; --dry-run shows the plan"]
    assert main(["offline", "1", "--sysroot", str(tmp_path), "--dry-run"]) == 0


def test_help(capsys: pytest.CaptureFixture[Any]) -> None:
    """The exit codes are in it."""
    with pytest.raises(SystemExit):
        main(["offline", "--help"])
    assert "0 done, 1 nothing is changed, 64" in " ".join(capsys.readouterr().out.split())
