"""The model and real kernels play the same scenarios about DIMMs: results, texts, calls, uevents and blocks are equal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memhp.conform.compare import differences
from memhp.conform.observation import observe
from memhp.conform.play import RealKernel, play_model
from memhp.lab import kernels
from memhp.scenario import Player, load

pytestmark = pytest.mark.qemu

MACHINE = "machine: {nodes: [1GiB, 0], slots: 4, room: 1GiB, parameters: {memhp_default_state: offline}}\n"
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


ROLLBACK = """
steps:
  - plug: {name: a, size: 256MiB, node: 0}
  - online: 32
  HELD
  - online: {blocks: 33, type: online_movable}
  - write: {file: memory33/state, text: online_movable}
  - unplug: a
  - read: memory33/valid_zones
  - unplug: a
  - read: memory33/valid_zones
"""
HELD = "- allocate: {name: slab, pages: 1, kind: unmovable, blocks: 32}"
HELD_THERE = '- write: {file: /sys/kernel/tracing/buffer_size_kb, text: "4096"}'
"""Pages that can't move: a larger trace buffer is from node 0, and there from ZONE_NORMAL first, all of which is this block."""

GUEST = MACHINE.replace("nodes:", "physical_bits: 40, five_level_paging: true, acpi_tables: 128KiB, nodes:").replace(
    "[1GiB,", "[{memory: 1GiB, cpus: 1},"
)


@pytest.fixture(scope="module", params=tuple(kernels.SERIES))
def kernel(request: pytest.FixtureRequest) -> Iterator[RealKernel]:
    """A real kernel, which plays one scenario after the other in one guest."""
    with RealKernel(kernels.kernel_of(request.param)) as kernel:
        yield kernel


@pytest.mark.parametrize("steps", [FILES, PLUG, REFUSED], ids=["files", "plug", "refused"])
@pytest.mark.fact("10.1", "10.1a", "10.2", "10.4", "5.13a", "11.1", "11.4")
def test_the_model_does_what_the_kernel_does(steps: str, kernel: RealKernel, tmp_path: Path) -> None:
    """Step by step: results, texts, calls and uevents in their order, blocks, nodes and zones."""
    (tmp_path / "dimms.yaml").write_text(MACHINE + steps)
    scenario = load(tmp_path / "dimms.yaml")
    found = differences(play_model(scenario, kernel.rules), kernel.record(scenario).steps)
    assert [str(difference) for difference in found] == []


@pytest.mark.fact("10.3", "3.3", "3.42")
def test_a_rollback_obeys_a_type_that_was_left_and_else_forgets_the_zone(kernel: RealKernel, tmp_path: Path) -> None:
    """Block 32 has a page that can't move. Block 33 comes back Movable as long as a refused write asks for it, then Normal."""
    (tmp_path / "kernel.yaml").write_text(MACHINE + ROLLBACK.replace("HELD", HELD_THERE))
    (tmp_path / "model.yaml").write_text(GUEST + ROLLBACK.replace("HELD", HELD))
    events: list[dict[str, Any]] = []
    Player(load(tmp_path / "model.yaml"), events.append, rules=kernel.rules, watch=True).play()
    model, real = observe(events), list(kernel.record(load(tmp_path / "kernel.yaml")).steps)
    assert real[3].result == "ok"
    del model[3], real[3]
    assert [step.text for step in real if step.shown.startswith("read")] == ["Movable", "Normal"]
    assert [str(difference) for difference in differences(model, real)] == []
