"""Hooks: programs are asked and told; one that refuses, hangs or crashes is a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from memhp import MEM_CANCEL_OFFLINE, MEM_GOING_OFFLINE, MEM_GOING_ONLINE, MEM_OFFLINE, NOTIFY_OK, Machine, NotifierBlock
from memhp.errors import ChangeFailed, HookFailed, HostError
from memhp.events import MemoryNotify
from memhp.host import Host
from memhp.host.change import Outcome, Result
from memhp.host.hooks import Hook, environment, hooks_in
from memhp.units import Pfn

Boot = Callable[..., Machine]
RANGE = MemoryNotify(Pfn(0x48000), 0x8000)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = tmp_path / "hooks.d"
    found.mkdir(mode=0o755)
    return found


def script(directory: Path, name: str, body: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def ask(hook: Hook) -> object:
    return hook(NotifierBlock(hook), MEM_GOING_OFFLINE, RANGE)


def test_programs_in_the_order_of_their_names(directory: Path) -> None:
    """Directories, hidden files, backups and what can't be executed are no programs."""
    for name in ("20-b", "10-a", ".hidden", "30-c~"):
        script(directory, name, "true")
    (directory / "README").write_text("see there")
    (directory / "sub").mkdir()

    assert [hook.path.name for hook in hooks_in(directory)] == ["10-a", "20-b"]


@pytest.mark.parametrize("mode", [0o757, 0o775])
def test_a_program_that_others_could_change_is_not_run(directory: Path, mode: int) -> None:
    """It would run with root's rights."""
    script(directory, "10-a", "true").chmod(mode)
    with pytest.raises(HostError, match="10-a: others could change it, so it is not run; chmod go-w"):
        hooks_in(directory)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """Whoever names one wants it."""
    with pytest.raises(HostError, match="can't be read: No such file"):
        hooks_in(tmp_path / "none")


@pytest.mark.parametrize(
    ("action", "phase", "operation"),
    [
        (MEM_GOING_OFFLINE, "going", "offline"),
        (MEM_CANCEL_OFFLINE, "cancel", "offline"),
        (MEM_OFFLINE, "done", "offline"),
        (MEM_GOING_ONLINE, "going", "online"),
    ],
)
def test_what_a_program_is_told(action: object, phase: str, operation: str) -> None:
    """Phase, operation and range."""
    found = environment(action, RANGE)  # type: ignore[arg-type]
    assert (found["MEMHP_PHASE"], found["MEMHP_OPERATION"]) == (phase, operation)
    assert (found["MEMHP_START_PFN"], found["MEMHP_NR_PAGES"]) == ("294912", "32768")


def test_exit_status_0_agrees(directory: Path) -> None:
    """Whatever it prints."""
    assert ask(Hook(script(directory, "10-a", "echo yes; echo really >&2"))) is NOTIFY_OK


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo a backup is running >&2; exit 3", "10-a answered with exit status 3: a backup is running"),
        ("kill -SEGV $$", "10-a was killed by SIGSEGV"),
        ("exec /nowhere/at/all", "10-a answered with exit status 127"),
    ],
)
def test_refusals(directory: Path, body: str, message: str) -> None:
    """Anything else refuses, and says why."""
    with pytest.raises(HookFailed) as caught:
        ask(Hook(script(directory, "10-a", body)))
    assert message in str(caught.value)


def test_a_program_that_can_t_be_started(directory: Path) -> None:
    """Its interpreter isn't there."""
    path = script(directory, "10-a", "true")
    path.write_text("#!/nowhere/sh\n")
    with pytest.raises(HookFailed, match="can't be started: No such file"):
        ask(Hook(path))


def test_a_program_that_hangs_is_killed_with_its_children(directory: Path, tmp_path: Path) -> None:
    """The deadline is for all of it."""
    hanging = script(directory, "10-a", f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(HookFailed, match=r"did not end within 0\.5 s and was killed"):
        ask(Hook(hanging, deadline=0.5))

    child = int((tmp_path / "child").read_text())
    status = Path(f"/proc/{child}/stat")
    assert not status.exists() or status.read_text().split()[2] in {"Z", "X"}


@pytest.fixture
def host(boot: Boot) -> Host:
    return Host(boot(["1GiB"]).tree)


def failed(host: Host, hooks: list[Hook]) -> Outcome:
    with pytest.raises(ChangeFailed) as caught:
        host.apply(host.plan("offline", "6"), hooks=hooks)
    outcome: Outcome = caught.value.outcome
    return outcome


def test_hooks_and_callbacks_on_one_chain(host: Host, directory: Path, tmp_path: Path) -> None:
    """Callbacks of higher priority come first, of lower priority last; programs are told block, node, zone and addresses."""
    told = tmp_path / "told"
    line = '"$MEMHP_PHASE $MEMHP_BLOCK node $MEMHP_NODE $MEMHP_ZONE $MEMHP_START-$MEMHP_END $MEMHP_SIZE"'
    script(directory, "20-b", f"echo b {line} >> {told}")
    script(directory, "10-a", f"echo a {line} >> {told}")

    def note(name: str) -> Callable[..., object]:
        def callback(block: object, action: object, arg: object) -> object:
            with told.open("a") as file:
                file.write(f"{name}\n")
            return NOTIFY_OK

        return callback

    host.hotplug_memory_notifier(note("first"), 1)  # type: ignore[arg-type]
    host.hotplug_memory_notifier(note("last"), -1)  # type: ignore[arg-type]
    host.apply(host.plan("offline", "6"), hooks=hooks_in(directory))

    where = "memory6 node 0 DMA32 0x30000000-0x37ffffff 134217728"
    assert told.read_text().splitlines() == [
        "first",
        f"a going {where}",
        f"b going {where}",
        "last",
        "first",
        f"a done {where}",
        f"b done {where}",
        "last",
    ]
    assert len(host.memory_chain.blocks) == 2  # the programs are off it again


def test_a_hook_that_refuses(host: Host, directory: Path, tmp_path: Path) -> None:
    """Nothing is written; the reason is what it printed; it hears of the cancellation itself."""
    told = tmp_path / "told"
    script(directory, "10-db", f"echo $MEMHP_PHASE >> {told}; [ $MEMHP_PHASE = going ] && echo busy >&2 && exit 1; exit 0")

    outcome = failed(host, hooks_in(directory))

    assert outcome.result is Result.UNCHANGED
    assert "10-db (priority 0) refused MEM_GOING_OFFLINE with NOTIFY_BAD" in outcome.reason
    assert outcome.reason.endswith("10-db answered with exit status 1: busy")
    assert told.read_text().split() == ["going", "cancel"]


def test_a_hook_that_crashes_afterwards_changes_nothing(host: Host, directory: Path) -> None:
    """What is done is done; the failure is logged and counted, as in the kernel."""
    script(directory, "10-db", "[ $MEMHP_PHASE = going ] || kill -KILL $$")

    assert host.apply(host.plan("offline", "6"), hooks=hooks_in(directory)).result is Result.DONE
