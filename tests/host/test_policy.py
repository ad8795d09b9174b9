"""``memhp policy`` and ``memhp doctor``: who decides on new memory, and what is missing on a machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from memhp import DirTree, InvalidInput, Machine
from memhp.cli import main
from memhp.errors import HostError, NoMemoryBlocks
from memhp.host import Host
from memhp.host.doctor import examine
from memhp.host.policy import report, set_policy
from trees import FIRMWARE, MEMORY, PARAMETERS, TreeSpec, block

RULE = 'SUBSYSTEM=="memory", ACTION=="add", TEST=="state", ATTR{state}!="online", ATTR{state}="online"'

AS_ON_RHEL = """\
# Everything between the jump and its label is about memory.
SUBSYSTEM!="memory", GOTO="memory_hotplug_end"
ACTION!="add", GOTO="memory_hotplug_end"
ATTR{state}=="offline", \\
  ATTR{state}="online_movable"
LABEL="memory_hotplug_end"
ATTR{state}="online"
"""


def machine_with(root: Path, auto: str | None = "offline", **files: str) -> Host:
    spec = TreeSpec(blocks={0: block(zones="none"), 1: block(), 2: block(zones="Movable")}, files=dict(files))
    if auto is not None:
        spec.files[f"{MEMORY}/auto_online_blocks"] = auto
    return Host(DirTree(spec.write(root / "root")))


NOBODY = "nobody: /etc/udev/rules.d/40-hot.rules:1 would, but udevd does not run here; new memory stays offline"
UDEV = {"run/udev/control": "x"}


@pytest.mark.parametrize(
    ("auto", "files", "winner"),
    [
        ("offline", {}, "nobody: new memory stays offline until somebody brings it online"),
        ("online_movable", {}, "the kernel: new memory is online at once, in ZONE_MOVABLE"),
        ("online_kernel", {}, "the kernel: new memory is online at once, in a kernel zone"),
        (
            "online",
            {f"{PARAMETERS}/online_policy": "auto-movable"},
            "the kernel: new memory is online at once, where auto-movable puts it",
        ),
        (
            "offline",
            {"etc/udev/rules.d/40-hot.rules": RULE},
            NOBODY,
        ),
        (
            "offline",
            {"etc/udev/rules.d/40-hot.rules": RULE, **UDEV},
            "udev: /etc/udev/rules.d/40-hot.rules:1 brings new memory online",
        ),
        (
            "online_movable",
            {"etc/udev/rules.d/40-hot.rules": RULE, **UDEV},
            "the kernel: new memory is online at once, in ZONE_MOVABLE; /etc/udev/rules.d/40-hot.rules:1 comes too late",
        ),
        (None, {}, "not known: this kernel doesn't say whether it brings new memory online"),
    ],
)
def test_who_decides(auto: str | None, files: dict[str, str], winner: str, tmp_path: Path) -> None:
    """The kernel comes first, unless it leaves memory offline; then udev, if it runs."""
    assert report(machine_with(tmp_path, auto, **files)).winner == winner


def test_everybody_who_has_a_say_is_named(tmp_path: Path) -> None:
    """With file and line; a file in /etc hides that of the same name elsewhere; what doesn't online memory is left out."""
    files = {
        "proc/cmdline": "root=/dev/vda1 memhp_default_state=online movable_node memory_hotplug.online_policy=auto-movable quiet",
        "usr/lib/udev/rules.d/40-hot.rules": RULE,
        "etc/udev/rules.d/40-hot.rules": "# nothing here",
        "usr/lib/udev/rules.d/50-rhel.rules": AS_ON_RHEL,
        "usr/lib/udev/rules.d/60-run.rules": 'SUBSYSTEM=="cpu|memory", ACTION=="add", RUN+="/sbin/chmem -e 1G"',
        "usr/lib/udev/rules.d/70-cpu.rules": 'SUBSYSTEM=="cpu", ATTR{online}="1"',
        "usr/lib/udev/rules.d/80-look.rules": 'SUBSYSTEM=="memory", ATTR{state}=="online", TAG+="seen"',
        "etc/daxctl.conf.d/10-node.conf": "[reconfigure-device node]\nnvdimm.uuid = 1\nmode = system-ram\nonline = true",
    }
    assert [(one.who, one.where, one.what) for one in report(machine_with(tmp_path, **files)).others] == [
        ("command line", "/proc/cmdline", "memhp_default_state=online"),
        ("command line", "/proc/cmdline", "movable_node"),
        ("command line", "/proc/cmdline", "memory_hotplug.online_policy=auto-movable"),
        ("udev", "/usr/lib/udev/rules.d/50-rhel.rules:4", 'ATTR{state}=="offline",   ATTR{state}="online_movable"'),
        ("udev", "/usr/lib/udev/rules.d/60-run.rules:1", 'SUBSYSTEM=="cpu|memory", ACTION=="add", RUN+="/sbin/chmem -e 1G"'),
        ("daxctl", "/etc/daxctl.conf.d/10-node.conf:3", "mode = system-ram"),
        ("daxctl", "/etc/daxctl.conf.d/10-node.conf:4", "online = true"),
    ]


def test_a_machine_without_memory_blocks_has_no_policy(tmp_path: Path) -> None:
    """The error says what the kernel needs."""
    with pytest.raises(NoMemoryBlocks, match="CONFIG_MEMORY_HOTPLUG"):
        report(Host(DirTree(tmp_path)))


@pytest.mark.fact("5.8")
def test_the_policy_of_a_model_is_set(boot: Callable[..., Machine]) -> None:
    """All settings together."""
    machine = boot("1GiB")
    wanted = {"auto_online_blocks": "online_movable", "online_policy": "auto-movable", "auto_movable_ratio": "200"}
    set_policy(machine.tree, {**wanted, "auto_movable_numa_aware": "n"})
    policy = Host(machine.tree).policy()
    assert (policy.auto_online_blocks, policy.online_policy, policy.auto_movable_ratio) == ("online_movable", "auto-movable", 200)
    assert policy.auto_movable_numa_aware is False


class Refusing(DirTree):
    """Takes nothing for one file."""

    def write(self, path: str, data: str | bytes) -> int:
        if path.endswith("auto_movable_ratio"):
            raise PermissionError(13, os.strerror(13), path)
        (self.root / path.lstrip("/")).write_text(f"{data!s}\n")
        return len(data)


def test_what_can_not_be_set_together_is_not_set_at_all(tmp_path: Path) -> None:
    """What was set before the failure is as it was."""
    host = machine_with(tmp_path, **{f"{PARAMETERS}/online_policy": "contig-zones", f"{PARAMETERS}/auto_movable_ratio": "301"})
    assert isinstance(host.tree, DirTree)
    tree = Refusing(host.tree.root)
    with pytest.raises(HostError) as caught:
        set_policy(tree, {"auto_online_blocks": "online", "online_policy": "auto-movable", "auto_movable_ratio": "200"})
    assert str(caught.value) == (
        "/sys/module/memory_hotplug/parameters/auto_movable_ratio: auto_movable_ratio can't be set to 200: Permission denied; "
        "nothing is changed; be root"
    )
    assert (host.policy().auto_online_blocks, host.policy().online_policy) == ("offline", "contig-zones")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonsense", "1"),
        ("auto_online_blocks", "on"),
        ("online_policy", "auto"),
        ("auto_movable_ratio", "-1"),
        ("auto_movable_ratio", "4294967296"),
        ("auto_movable_numa_aware", "foo"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(name: str, value: str, tmp_path: Path) -> None:
    """Also what the kernel would take for something else."""
    with pytest.raises(InvalidInput):
        set_policy(DirTree(tmp_path), {name: value})


def test_the_command_shows_and_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 for done, 1 for a machine that refuses, 2 for bad input."""
    host = machine_with(tmp_path, **{"etc/udev/rules.d/40-hot.rules": RULE})
    assert isinstance(host.tree, DirTree)
    sysroot = ["--sysroot", str(host.tree.root)]
    assert main(["policy", *sysroot]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "auto_online_blocks       offline",
        "online_policy            this kernel has none",
        "auto_movable_ratio       this kernel has none",
        "auto_movable_numa_aware  this kernel has none",
        "memmap_on_memory         this kernel has none",
        "",
        f"Decides on new memory: {NOBODY}",
        "",
        "Who else has a say:",
        "  udev: /etc/udev/rules.d/40-hot.rules:1",
        f"    {RULE}",
        "",
        "udevd does not run here, so no rule of udev has any effect.",
    ]
    assert main(["policy", "--json", *sysroot, "show"]) == 0
    assert json.loads(capsys.readouterr().out)["policy"]["auto_online_blocks"] == "offline"
    assert main(["policy", *sysroot, "set", "--dry-run", "online_policy=auto-movable"]) == 1
    assert "this kernel has no such setting" in capsys.readouterr().err
    assert main(["policy", *sysroot, "set", "--dry-run", "auto_online_blocks=online_movable"]) == 0
    assert capsys.readouterr().out == "auto_online_blocks: offline -> online_movable\n"
    assert main(["policy", *sysroot, "set", "auto_online_blocks=online_movable"]) == 2
    assert capsys.readouterr().err == (
        f"memhp policy: {host.tree.root} is a copy and can't be changed; --dry-run shows what would be set\n"
    )
    assert host.tree.read("/sys/devices/system/memory/auto_online_blocks") == "offline\n"
    for words in (
        ["auto_online_blocks"],
        ["auto_online_blocks=foo"],
        ["online_policy=auto-movable", "online_policy=contig-zones"],
    ):
        assert main(["policy", *sysroot, "set", *words]) == 2
        assert capsys.readouterr().err.startswith("memhp policy: ")


def test_the_doctor_names_what_matters_on_a_machine(tmp_path: Path) -> None:
    """Each with what holds, and what to do."""
    files = {"etc/udev/rules.d/40-hot.rules": RULE, **UDEV, f"{PARAMETERS}/memmap_on_memory": "Y", f"{MEMORY}/crash_hotplug": "1"}
    host = machine_with(tmp_path, "online", **files)
    late = "/etc/udev/rules.d/40-hot.rules:1 comes too late"
    assert [(one.verdict, one.subject, one.found, one.remedy) for one in examine(host.tree)] == [
        ("ok", "memory blocks", "3 of 128 MiB, none offline", ""),
        ("ok", "NUMA", "1 node", ""),
        ("ok", "ZONE_MOVABLE", "1 of 3 blocks are in it", ""),
        ("note", "blocks in several zones", "memory0 can never go offline", ""),
        (
            "note",
            "new memory",
            f"kernel and udev both bring it online; the kernel: new memory is online at once, where the kernel puts it; {late}",
            "remove /etc/udev/rules.d/40-hot.rules:1, or set auto_online_blocks to offline (memhp policy set)",
        ),
        (
            "note",
            "choice of zone",
            "no /sys/module/memory_hotplug/parameters/online_policy",
            "Linux 5.15 or newer has auto-movable",
        ),
        ("ok", "memmap on memory", "new memory holds its own page structures", ""),
        ("ok", "kdump", "the kernel keeps the crash kernel's list of memory up to date", ""),
    ]


def test_the_doctor_of_a_machine_without_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One finding, and exit code 1."""
    (tmp_path / FIRMWARE).mkdir(parents=True)
    assert main(["doctor", "--sysroot", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "missing  memory blocks: /sys/devices/system/memory: not there; the kernel needs CONFIG_MEMORY_HOTPLUG" in out


def test_the_doctor_examines_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it finds: the exit code says whether something is missing, and nothing raises."""
    code = main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert code == int(any(one["verdict"] == "missing" for one in findings))
    assert {one["verdict"] for one in findings} <= {"ok", "missing", "note"}
    assert [one["subject"] for one in findings if one["verdict"] == "missing" and not one["remedy"]] == []
