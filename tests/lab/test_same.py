"""The model and real kernels play the same scenarios about DIMMs: results, texts, calls, uevents and blocks are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memhp import Rules
from memhp.lab import kernels
from memhp.lab.play import LabPlayer
from memhp.scenario import Player, load

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.parametrize("series", tuple(kernels.SERIES)),
]

MACHINE = "machine: {nodes: [1GiB, 0], slots: 4, room: 1GiB, parameters: {memhp_default_state: offline}}\n"
OBSERVER = "callbacks: {all: {priority: 2147483647}}\n"
"""Hears in the model what the lab hears with its probes; it is always called first, and says OK."""

PLUG = """
steps:
  - plug: {name: a, size: 384MiB, node: 1}
  - read: memory33/firmware_node/status
  - read: memory34/valid_zones
  - plug: {name: b, size: 128MiB, node: 0}
  - online: {blocks: first 2, among: a, type: online_movable}
  - unplug: b
  - plug: {name: b, size: 256MiB, node: 1}
  - plug: {name: c, size: 128MiB, node: 1}
  - plug: {name: half, size: 64MiB, node: 1}
  - read: /sys/bus/acpi/devices/PNP0C80:03/status
  - plug: {name: d, size: 128MiB, node: 1}
  - plug: {name: a, size: 128MiB, node: 1}
  - unplug: half
  - plug: {name: d, size: 128MiB, node: 1, at: 4GiB}
  - plug: {name: d, size: 128MiB, node: 7}
  - plug: {name: d, size: 1GiB, node: 1}
  - plug: {name: d, size: 3MiB, node: 1}
  - plug: {name: d, size: 128MiB, node: 1, at: 2GiB}
  - plug: {name: d, size: 128MiB, node: 1, at: 0x108001000}
  - plug: {name: d, size: 0, node: 1}
  - unplug: a
  - unplug: a
  - plug: {name: d, size: 128MiB, node: 1}
  - unplug: b
  - unplug: c
  - unplug: d
  - write: {file: auto_online_blocks, text: online}
  - plug: {name: a, size: 256MiB, node: 1}
  - unplug: a
"""

REFUSED = """
steps:
  - plug: {name: a, size: 384MiB, node: 1}
  - online: {blocks: a, type: online_movable}
  - load: memory-notifier-error-inject
  - load: notifier-error-inject
  - load: notifier-error-inject
  - load: {module: memory-notifier-error-inject, priority: x}
  - load: {module: memory-notifier-error-inject, priority: 5}
  - unload: notifier-error-inject
  - offline: 32-33
  - write: {file: ERRORS/MEM_GOING_OFFLINE/error, text: "-16"}
  - read: ERRORS/MEM_GOING_OFFLINE/error
  - unplug: a
  - online: {blocks: 32, type: online_movable}
  - unplug: a
  - write: {file: EJECT, text: "1"}
  - write: {file: ERRORS/MEM_GOING_OFFLINE/error, text: "9"}
  - write: {file: ERRORS/MEM_GOING_ONLINE/error, text: "-12"}
  - online: 33
  - unload: memory-notifier-error-inject
  - read: ERRORS/MEM_GOING_ONLINE/error
  - unload: notifier-error-inject
  - unload: notifier-error-inject
  - unplug: a
""".replace("ERRORS", "/sys/kernel/debug/notifier-error-inject/memory/actions").replace(
    "EJECT", "/sys/bus/acpi/devices/PNP0C80:00/eject"
)

FILES = """
steps:
  - write: {file: EJECT, text: "1"}
  - write: {file: EJECT, text: "0"}
  - plug: {name: a, size: 256MiB, node: 1}
  - write: {file: EJECT, text: " 1"}
  - write: {file: ENABLED, text: "2"}
  - write: {file: ENABLED, text: "0"}
  - write: {file: EJECT, text: "1"}
  - unplug: a
  - plug: {name: b, size: 128MiB, node: 1}
  - write: {file: ENABLED, text: "1"}
  - write: {file: EJECT, text: "1junk"}
  - unplug: a
  - read: /sys/bus/acpi/devices/PNP0C80:00/status
  - read: /sys/bus/acpi/devices/PNP0C80:00/modalias
  - read: /sys/bus/acpi/devices/PNP0C80:0/modalias
  - plug: {name: a, size: 128MiB, node: 1}
  - unplug: b
  - unplug: a
""".replace("EJECT", "/sys/bus/acpi/devices/PNP0C80:00/eject").replace("ENABLED", "/sys/firmware/acpi/hotplug/memory/enabled")


def steps_of(events: list[dict[str, Any]], observer: str) -> list[list[str]]:
    """Put down each step as lines: what it was, its calls and uevents in order, its result and text."""
    found: list[list[str]] = []
    for event in events:
        kind = event["event"]
        if kind == "step":
            found.append([f"{event['number']}. {event['text']}"])
        elif kind == "call" and event["callback"] == observer:
            nids = f"({event['status_change_nid_normal']},{event['status_change_nid']})"
            found[-1].append(f"{event['action']}{nids} {event['blocks']}")
        elif kind == "uevent":
            found[-1].append(f"{event['action']}@{event['devpath']} {event['subsystem']}")
        elif kind == "result":
            found[-1].append(f"= {event['result']} {event['text'].strip()}")
    return found


def blocks_after(events: list[dict[str, Any]]) -> list[tuple[int, int, str, list[str]]]:
    (machine,) = [event for event in events if event["event"] == "machine" and event["moment"] == "after"]
    return [
        (block["id"], block["node"], block["state"], sorted(block["zones"])) for block in machine["blocks"] if block["id"] > 31
    ]


@pytest.mark.parametrize(
    "steps",
    [PLUG, REFUSED, FILES],
    ids=["plug", "refused", "files"],
)
@pytest.mark.fact("10.1", "10.1a", "10.2", "10.4", "5.13a", "11.1", "11.4")
def test_the_model_does_what_the_kernel_does(steps: str, series: str, tmp_path: Path) -> None:
    """Step by step, nothing left out."""
    (tmp_path / "model.yaml").write_text(MACHINE + OBSERVER + steps)
    (tmp_path / "kernel.yaml").write_text(MACHINE + steps)
    model: list[dict[str, Any]] = []
    kernel: list[dict[str, Any]] = []
    Player(load(tmp_path / "model.yaml"), model.append, rules=Rules.of(series)).play()
    LabPlayer(load(tmp_path / "kernel.yaml"), kernels.kernel_of(series), kernel.append).play()
    assert steps_of(model, "all") == steps_of(kernel, "memory_chain")
    assert blocks_after(model) == blocks_after(kernel)
