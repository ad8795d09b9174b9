"""Steps that plug in DIMMs and pull them out, and that load the kernel's error injection."""

from __future__ import annotations

from pathlib import Path

import pytest

from memhp import ScenarioError
from memhp.scenario import load
from playing import Play

NODES = "machine: {nodes: [1GiB, 0], rules: '6.1', parameters: {memhp_default_state: offline}}\n"


def test_a_dimm_is_selected_by_its_name(play: Play) -> None:
    """Its blocks, also after ``$`` and among; the name stays when the DIMM is gone."""
    run = play(
        """
steps:
  - plug: {name: a, size: 128MiB}
  - plug: {name: b, size: 256MiB, node: 1}
    as: same
  - online: {blocks: first, among: b}
    expect: {blocks: {33: online, 34: offline}}
  - read: $b/state
  - unplug: b
    expect: {blocks: {b: absent}}
  - unplug: b
""",
        machine=NODES,
    )
    assert run.texts == ["memory32", "memory33-34", "memory33", "online"]
    assert run.results == {1: "ok", 2: "ok", 3: "ok", 4: "ok", 5: "ok", 6: "ENODEV"}
    assert run.states() == {32: "offline"}


def test_a_dimm_that_does_not_fit_is_an_errno(play: Play) -> None:
    """No slot, no room, a name that is in use; and half a block is no error to the hypervisor."""
    run = play(
        """
steps:
  - plug: {name: a, size: 64MiB}
  - plug: {name: a, size: 128MiB}
  - plug: {name: b, size: 1GiB}
  - plug: {name: b, size: 128MiB, at: 4GiB}
  - plug: {name: b, size: 128MiB, at: 0x108000000}
  - plug: {name: c, size: 128MiB}
""",
        machine="machine: {nodes: [1GiB], room: 512MiB, slots: 2}\n",
    )
    assert list(run.results.values()) == ["ok", "EEXIST", "ENOSPC", "EEXIST", "ok", "ENOSPC"]
    assert run.texts == ["no memory block", "memory33"]


def test_writing_eject_is_done_when_the_kernels_thread_rests(play: Play) -> None:
    """The eject runs in a thread of its own; the step ends when that has ended, or waits."""
    run = play(
        """
steps:
  - plug: {name: a, size: 128MiB}
  - online: {blocks: a, type: online_movable}
  - allocate: {name: held, pages: 1, blocks: a, pinned: true}
  - write: {file: /sys/bus/acpi/devices/PNP0C80:00/eject, text: "1"}
    expect: {blocks: {a: going-offline}}
  - unpin: held
    expect: {blocks: {a: absent}}
callbacks: {all: {}}
""",
        machine=NODES,
    )
    assert run.failed == []
    assert [(call["action"], call["thread"]) for call in run.of("call")] == [
        ("MEM_GOING_ONLINE", "main"),
        ("MEM_ONLINE", "main"),
        ("MEM_GOING_OFFLINE", "kacpi_hotplug"),
        ("MEM_OFFLINE", "kacpi_hotplug"),
    ]


def test_an_eject_that_never_ends_is_said(play: Play) -> None:
    """At the end of the scenario the kernel's thread still waits for the page."""
    run = play(
        """
steps:
  - plug: {name: a, size: 128MiB}
  - online: {blocks: a, type: online_movable}
  - allocate: {name: held, pages: 1, blocks: a, pinned: true}
  - write: {file: /sys/bus/acpi/devices/PNP0C80:00/eject, text: "1"}
""",
        machine=NODES,
    )
    assert [what for what, _, _ in run.failed] == ["thread kacpi_hotplug still waits for page state at the end"]


def test_modules_are_loaded_and_unloaded(play: Play) -> None:
    """With the results that insmod and rmmod have, and their uevents."""
    run = play(
        """
steps:
  - load: memory-notifier-error-inject
  - load: notifier-error-inject
  - load: {module: memory-notifier-error-inject, priority: x}
  - load: {module: memory-notifier-error-inject, priority: 0x10}
  - unload: notifier-error-inject
  - write: {file: /sys/kernel/debug/notifier-error-inject/memory/actions/MEM_GOING_OFFLINE/error, text: "-12"}
  - offline: 1
  - unload: memory-notifier-error-inject
  - offline: 1
  - unload: notifier-error-inject
""",
        machine=NODES,
    )
    assert list(run.results.values()) == ["ENOENT", "ok", "EINVAL", "ok", "EAGAIN", "ok", "ENOMEM", "ok", "ok", "ok"]
    assert [f"{event['action']}@{event['devpath']}" for event in run.of("uevent")] == [
        "add@/module/notifier_error_inject",
        "add@/module/memory_notifier_error_inject",
        "remove@/module/memory_notifier_error_inject",
        "offline@/devices/system/memory/memory1",
        "remove@/module/notifier_error_inject",
    ]
    assert {call["priority"] for call in run.of("call")} == {16}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("plug: {size: 128MiB}", "a mapping with the key name"),
        ("plug: {name: a}", "a mapping with the key size"),
        ("plug: {name: first, size: 128MiB}", "another name; first and last are places"),
        ("plug: {name: a, size: 128MiB, slot: 3}", "one of the keys name, size, node, at"),
        ("unplug: 32", "a name"),
        ("load: loop", "one of notifier-error-inject, memory-notifier-error-inject"),
        ("load: {module: notifier-error-inject, debug: 1}", "one of the keys module, priority"),
        ("unload: loop", "one of notifier-error-inject, memory-notifier-error-inject"),
    ],
)
def test_a_wrong_step_is_told(tmp_path: Path, step: str, expected: str) -> None:
    """With its line, before anything is played."""
    (tmp_path / "s.yaml").write_text(f"{NODES}steps:\n  - {step}\n")
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path / "s.yaml")
    assert (caught.value.line, expected in caught.value.expected) == (3, True)


def test_a_dimm_that_was_never_plugged_in_is_told(play: Play) -> None:
    """The scenario is wrong, not the machine."""
    with pytest.raises(ScenarioError, match="the name of a DIMM that an earlier step plugged in"):
        play("steps:\n  - unplug: a\n", machine=NODES)
