"""What a scenario means on a real kernel, and what is refused, with its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memhp.errors import ScenarioError
from memhp.kernel import NodeSpec
from memhp.lab.plan import Injection, Plan, make_plan
from memhp.lab.qemu import Shape, VirtioMem
from memhp.scenario import load

GIB = 1 << 30


def plan(tmp_path: Path, text: str) -> Plan:
    file = tmp_path / "demo.yaml"
    file.write_text(text)
    return make_plan(load(file))


def test_a_whole_plan(tmp_path: Path) -> None:
    """Nodes, parameters, room, the errors to inject, and the expectations that a kernel can't answer."""
    made = plan(
        tmp_path,
        """
machine:
  nodes: [1GiB, {memory: 512MiB, cpus: 2}]
  room: 4GiB
  slots: 3
  parameters: {memhp_default_state: online, movable_node: true}
callbacks:
  guard: {priority: -5, MEM_GOING_OFFLINE: ENOMEM, MEM_GOING_ONLINE: BAD, MEM_ONLINE: OK}
steps:
  - offline: 1
    expect: {trace: [], lockdep: 0}
""",
    )

    assert made == Plan(
        Shape((NodeSpec(GIB), NodeSpec(GIB // 2, 2)), "memhp_default_state=online movable_node", slots=3, room=4 * GIB),
        Injection("guard", -5, True, (("MEM_ONLINE", 0), ("MEM_GOING_OFFLINE", 12), ("MEM_GOING_ONLINE", 1))),
        ((11, "trace"), (11, "lockdep")),
    )


def test_a_plan_with_devices(tmp_path: Path) -> None:
    """Sockets and virtio-mem devices go into the shape; only who takes a CPU out needs a thread for each."""
    text = "machine: {nodes: [{memory: 1GiB, cpus: 1, possible_cpus: 2}], virtio_mem: [{size: 1GiB}]}\nsteps: [{plug_cpu: 1}]\n"
    shape = Shape((NodeSpec(GIB, 1, possible_cpus=2),), virtio=(VirtioMem(0, GIB),))
    assert plan(tmp_path, text).shape == shape
    assert plan(tmp_path, text.replace("{plug_cpu: 1}", "{plug_cpu: 1}, {unplug_cpu: 1}")).shape == replace(
        shape, gives_cpus=True
    )


def test_a_plan_with_soft_reserved_memory(tmp_path: Path) -> None:
    """Its ranges go into the shape by address; they are a part of the nodes' memory."""
    ranges = "[{at: 5GiB, size: 256MiB}, {at: 4GiB, size: 512MiB}]"
    text = f"machine: {{nodes: [3GiB, 2GiB], soft_reserved: {ranges}}}\nsteps: []\n"
    kept = ((4 * GIB, GIB // 2), (5 * GIB, GIB // 4))
    shape = Shape((NodeSpec(3 * GIB), NodeSpec(2 * GIB)), soft_reserved=kept)
    assert plan(tmp_path, text).shape == shape
    assert str(shape) == "3 GiB + 2 GiB, 768 MiB of it soft-reserved"


MACHINE = "machine: {nodes: [1GiB, 0]}\n"


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("machine:\n  from: host\nsteps: []\n", 2, "a guest is made from a description"),
        ("machine:\n  nodes: [256MiB]\nsteps: []\n", 2, "from 512 MiB to 16 GiB"),
        ("machine:\n  nodes: [20GiB]\nsteps: []\n", 2, "from 512 MiB to 16 GiB"),
        ("machine:\n  nodes: [1GiB]\n  block_size: 256MiB\nsteps: []\n", 3, "128 MiB, as the kernel chooses"),
        ("machine:\n  nodes: [1GiB, 0, 0]\nsteps: []\n", 2, "memory or CPUs for each node but the last"),
        ("machine:\n  nodes: [1GiB]\n  acpi_tables: 64KiB\nsteps: []\n", 3, "128 KiB, as QEMU's firmware keeps it"),
        ("machine:\n  nodes: [1GiB]\n  hypervisor: false\nsteps: []\n", 3, "a guest is a VM"),
        ("machine:\n  nodes: [1GiB]\n  device_hotplug_lock: false\nsteps: []\n", 3, "always has that lock"),
        (MACHINE + "callbacks:\n  a: {}\n  b: {}\nsteps: []\n", 4, "at most one callback"),
        (MACHINE + "callbacks:\n  a:\n    call: a:b\nsteps: []\n", 4, "no Python function"),
        (MACHINE + "callbacks:\n  a:\n    priority: 1\n    MEM_ONLINE: BAD\nsteps: []\n", 5, "can inject nothing else"),
        (MACHINE + "callbacks:\n  a:\n    MEM_GOING_ONLINE: STOP\nsteps: []\n", 4, "can inject nothing else"),
        (
            MACHINE + "callbacks:\n  a:\n    MEM_GOING_ONLINE: {answer: EBUSY, times: 1}\nsteps: []\n",
            4,
            "can inject nothing else",
        ),
        (MACHINE + "steps:\n  - offline: 1\n  - signal: me\n", 4, "one of the steps plug, unplug"),
        (MACHINE + "steps:\n  - allocate: {name: a, pages: 1}\n", 3, "one of the steps plug, unplug"),
        (MACHINE + "steps:\n  - offline: 1\n    thread: admin\n", 3, "one after the other"),
        (MACHINE + "steps:\n  - add: {size: 128MiB}\n", 3, "plug, because a stock kernel is asked to add memory by a DIMM alone"),
        (MACHINE + "steps:\n  - remove: 1\n", 3, "unplug, because a stock kernel is asked to remove memory by a DIMM alone"),
        (
            MACHINE + "steps:\n  - offline_and_remove: 1\n",
            3,
            "unplug, because a stock kernel is asked to remove memory by a DIMM",
        ),
        (MACHINE + "steps:\n  - offline: 1\n  - bind: {driver: xen}\n", 4, "a guest has no such device"),
        (MACHINE + "steps:\n  - join: all\n", 3, "a real kernel brings its own participants"),
        (MACHINE + "steps:\n  - fill: build\n", 3, "what fills a guest's memory is what runs in it"),
        (MACHINE + "callbacks: {a: {}}\nsteps:\n  - unload: notifier-error-inject\n", 4, "no module beside callbacks"),
        ("machine:\n  nodes: [1GiB]\n  slots: 0\nsteps: []\n", 3, "at least one slot"),
        (
            "machine:\n  nodes: [1GiB]\n  virtio_mem: [{size: 1GiB}]\nsteps:\n  - plug: {name: vm0, size: 1GiB}\n",
            5,
            "another name: a virtio-mem device has it",
        ),
        (
            "machine:\n  nodes: [1GiB]\n  soft_reserved: [{at: 512MiB, size: 128MiB}]\nsteps: []\n",
            3,
            "ranges from 4 GiB on for a guest, because QEMU puts what it boots below",
        ),
        (MACHINE + "steps:\n  - plug_cpu: 1\n  - unplug_cpu: 1\n  - plug_cpu: 1\n", 5, "QEMU 7.2 does not survive that"),
        (MACHINE + "steps:\n  - unplug_cpu: 1\n  - plug: {name: a, size: 1GiB}\n", 4, "QEMU 7.2 does not survive that"),
        (
            MACHINE + "steps:\n  - unplug_cpu: 1\n  - write: {file: /sys/bus/acpi/devices/PNP0C80:00/eject, text: '1'}\n",
            4,
            "neither CPU nor memory plugged, unplugged or ejected once a CPU is out",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_by_line(tmp_path: Path, text: str, line: int, expected: str) -> None:
    """Before anything boots, with file, line and what would be right."""
    with pytest.raises(ScenarioError) as refusal:
        plan(tmp_path, text)

    assert refusal.value.file == str(tmp_path / "demo.yaml")
    assert refusal.value.line == line
    assert expected in refusal.value.expected
