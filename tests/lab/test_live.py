"""Real kernels: one short scenario on each, with the guest's answers compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memhp.cli import main
from memhp.lab import kernels

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.parametrize("series", tuple(kernels.SERIES)),
]

SCENARIO = """
title: A DIMM comes and goes
machine: {nodes: [512MiB, 0], parameters: {memhp_default_state: offline}}
callbacks:
  guard: {priority: 7, registered: false, MEM_GOING_OFFLINE: ENOMEM}
steps:
  - plug: {name: new, size: 256MiB, node: 1}
    expect:
      text: memory32-33
      blocks: {new: offline}
      uevents:
        - add@/devices/system/memory/memory32
        - add@/devices/system/memory/memory33
        - add@/devices/system/node/node1
CONTAINER
  - online: {type: online_movable, blocks: first, among: new}
    as: block
    expect: {uevents: ["online@/devices/system/memory/memory32"], files: {/sys/devices/system/node/has_memory: 0-1}}
  - online: block
  - write: {file: $new/state, text: online}
    expect: EINVAL
  - register: guard
  - offline: block
    expect: {result: ENOMEM, blocks: {32: online}}
  - unregister: guard
  - unplug: new
    expect:
      blocks: {32-33: absent}
      uevents:
        - offline@/devices/system/memory/memory32
        - remove@/devices/system/memory/memory32
        - remove@/devices/system/memory/memory33
        - remove@/devices/system/node/node1
  - read: memory32/state
    expect: ENOENT
"""

PREPARE = "MEM_PREPARE_ONLINE(0,0) memory32 OK"
FINISH = "MEM_FINISH_OFFLINE(0,0) memory32 OK"
CALLS = [
    "MEM_GOING_ONLINE(-1,1) memory32 OK",
    "MEM_ONLINE(-1,1) memory32 OK",
    "MEM_GOING_OFFLINE(-1,1) memory32 ENOMEM",
    "MEM_CANCEL_OFFLINE(-1,1) memory32 OK",
    "MEM_GOING_OFFLINE(-1,1) memory32 OK",
    "MEM_OFFLINE(-1,1) memory32 OK",
]


def shown(call: dict[str, Any]) -> str:
    nids = f"({call['status_change_nid_normal']},{call['status_change_nid']})"
    return f"{call['action']}{nids} {call['blocks']} {call['answer']}"


CONTAINER = {"6.1": "", "6.12": "        - online@/devices/system/container/PNP0A06:04"}


def test_a_dimm_comes_and_goes(series: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results, uevents, states and files are as expected, and the notifier calls are those of this kernel."""
    (tmp_path / "dimm.yaml").write_text(SCENARIO.replace("CONTAINER", CONTAINER[series]))
    code = main(["lab", "run", str(tmp_path / "dimm.yaml"), "--kernel", series, "--json", "--record", str(tmp_path / "record")])

    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event for event in events if event["event"] == "failure"] == []
    assert (code, err) == (0, "")
    assert [shown(event) for event in events if event["event"] == "call"] == {
        "6.1": CALLS,
        "6.12": [PREPARE, *CALLS, FINISH],
    }[series]
    assert (tmp_path / "record").read_text() == out
    assert next(event for event in events if event["event"] == "guest")["version"] == kernels.kernel_of(series).version


def test_a_kernel_that_panics_is_an_error(series: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 3, and the console's last lines say why."""
    text = "machine: {nodes: [512MiB]}\nsteps: [{write: {file: /proc/sysrq-trigger, text: c}}, {offline: 1}]\n"
    (tmp_path / "crash.yaml").write_text(text)
    assert main(["lab", "run", str(tmp_path / "crash.yaml"), "--kernel", series, "--quiet"]) == 3

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("memhp: the guest's kernel panicked; its console ended with\n  | ")
    assert "Kernel panic - not syncing: sysrq triggered crash" in err
