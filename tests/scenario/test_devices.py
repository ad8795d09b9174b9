"""Scenarios with virtio-mem devices and CPUs: how they are read, and what the modelled machine does."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from memhp import HotplugError, Machine, ScenarioError
from memhp.scenario import load
from memhp.scenario.devices import Devices
from memhp.scenario.model import VirtioMem
from playing import Play

MIB = 1 << 20
ONLINE = "parameters: {memhp_default_state: online_movable}, rules: '6.12'"
DEVICE = f"machine: {{nodes: [1GiB, 0], virtio_mem: [{{size: 1GiB, node: 1}}], {ONLINE}}}\n"
SOCKETS = "machine: {nodes: [{memory: 1GiB, cpus: 1}, {possible_cpus: 2}], rules: '%s'}\n"


def machine(tmp_path: Path, text: str) -> tuple[VirtioMem, ...]:
    file = tmp_path / "s.yaml"
    file.write_text(f"machine:\n  nodes: [1GiB, 0]\n  virtio_mem:\n{text}steps: []\n")
    return load(file).machine.virtio


def test_devices_have_what_is_given_and_else_what_qemu_gives(tmp_path: Path) -> None:
    """Names count from vm0 on; 2 MiB blocks stand as 0, which is QEMU's choice."""
    text = "  - {size: 256MiB}\n  - {name: big, size: 1GiB, node: 1, block: 256MiB, requested: 512MiB}\n  - {size: 1GiB}\n"
    assert machine(tmp_path, text) == (
        VirtioMem(0, 256 * MIB),
        VirtioMem(1, 1024 * MIB, 512 * MIB, 256 * MIB, "big"),
        VirtioMem(0, 1024 * MIB, name="vm2"),
    )


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("{size: 200MiB}", "a size of whole 128 MiB"),
        ("{size: 0}", "a size of whole 128 MiB"),
        ("{size: 768MiB, block: 512MiB}", "a size of whole 512 MiB"),
        ("{size: 1GiB, block: 3MiB}", "a power of two of at least 1 MiB"),
        ("{size: 1GiB, block: 64KiB}", "a power of two of at least 1 MiB"),
        ("{size: 1GiB, node: 2}", "a node from 0 to 1"),
        ("{size: 1GiB, requested: 2GiB}", "whole blocks of 2 MiB, at most 1 GiB"),
        ("{size: 1GiB, requested: 3MiB}", "whole blocks of 2 MiB, at most 1 GiB"),
        ("{size: 1GiB, name: a b}", "a name: letters, digits, _ and -"),
        ("{size: 1GiB, name: vm0}\n  - {size: 1GiB, name: vm0}", "a name for each device, and no two the same"),
        ("{node: 1}", "size"),
    ],
)
def test_a_device_that_can_not_be_is_told(tmp_path: Path, device: str, expected: str) -> None:
    """With the line, and what would be right."""
    with pytest.raises(ScenarioError) as refusal:
        machine(tmp_path, f"  - {device}\n")
    assert refusal.value.line == 4
    assert expected in refusal.value.expected


def test_devices_lie_where_their_blocks_allow(play: Play) -> None:
    """A block of 256 MiB begins at a multiple of that, so there is room between it and what is below."""
    devices = "[{size: 128MiB, requested: 128MiB}, {size: 512MiB, block: 256MiB, requested: 256MiB}]"
    run = play("steps: []\n", machine=f"machine: {{nodes: [1GiB], virtio_mem: {devices}, {ONLINE}}}\n")
    assert run.states() == dict.fromkeys([32, 34, 35], "online")


def test_a_size_need_not_be_of_whole_sub_blocks(play: Play) -> None:
    """It is of the device's own blocks; the driver plugs 2 MiB at once, and leaves the rest."""
    device = "{size: 128MiB, node: 1, block: 1MiB, requested: 3MiB}"
    steps = "steps:\n  - resize: 5MiB\n  - resize: 2MiB\n  - resize: 1MiB\n"
    run = play(steps, machine=f"machine: {{nodes: [1GiB, 0], virtio_mem: [{device}], {ONLINE}}}\n")
    assert run.texts == ["4 MiB", "2 MiB", "2 MiB"]


def test_a_hypervisor_that_always_says_eagain_does_not_hold_up_everything() -> None:
    """The driver tries again at once, but not for ever; when the answer is another one, it goes on."""
    machine = Machine.boot(["1GiB"])
    devices = Devices(machine, [VirtioMem(0, 1024 * MIB)])
    answers = [errno.EAGAIN] * 150
    devices.drivers["vm0"]._answer = lambda what, start, size: answers.pop() if answers else 0
    with pytest.raises(HotplugError, match=r"virtio0: the hypervisor has answered EAGAIN 100 times") as caught:
        devices.resize("vm0", 64 * MIB)
    assert caught.value.errno == errno.EAGAIN
    devices.settle()
    assert devices.drivers["vm0"].plugged == 64 * MIB


def test_devices_that_find_no_room_are_told(tmp_path: Path) -> None:
    """Before anything is played."""
    file = tmp_path / "s.yaml"
    file.write_text("machine:\n  nodes: [1GiB]\n  room: 1GiB\n  virtio_mem: [{size: 2GiB}]\nsteps: []\n")
    with pytest.raises(ScenarioError, match=r"s\.yaml:4: .*no room for 2 GiB"):
        load(file)


def test_a_driver_follows_before_a_step_ends(play: Play) -> None:
    """The text is what is plugged; an unknown device is ENODEV, a size that it can't have EINVAL."""
    run = play(
        """
steps:
  - resize: 160MiB
  - resize: {name: vm0, size: 64MiB}
  - resize: {name: vm1, size: 64MiB}
  - resize: 1MiB
  - resize: 2GiB
""",
        machine=DEVICE,
    )
    assert run.results == {1: "ok", 2: "ok", 3: "ENODEV", 4: "EINVAL", 5: "EINVAL"}
    assert run.texts == ["160 MiB", "64 MiB"]
    assert run.states() == {32: "online"}


def test_a_driver_goes_on_when_a_step_of_somebody_else_lets_it(play: Play) -> None:
    """8 blocks may be offline; when 4 of them are online, it adds 4 more, in the same step."""
    steps = "".join(f"  - write: {{file: memory{number}/state, text: online_movable}}\n" for number in range(32, 36))
    run = play(
        f"steps:\n  - write: {{file: auto_online_blocks, text: offline}}\n  - resize: 2GiB\n{steps}",
        machine=DEVICE.replace("1GiB, node: 1", "2GiB, node: 1"),
    )
    assert run.texts[0] == "1 GiB"
    assert run.states() == dict.fromkeys(range(32, 36), "online") | dict.fromkeys(range(36, 44), "offline")


def test_a_cpu_is_put_in_and_taken_out(play: Play) -> None:
    """It is named by the socket; the text is the number that it got: on 6.12 that of the socket."""
    steps = "steps:\n  - plug_cpu: 2\n  - plug_cpu: 2\n  - plug_cpu: 9\n  - unplug_cpu: 1\n  - unplug_cpu: 2\n"
    run = play(steps, machine=SOCKETS % "6.1")
    assert run.results == {1: "ok", 2: "EEXIST", 3: "EINVAL", 4: "ENODEV", 5: "ok"}
    assert run.texts == ["cpu1"]
    assert play(steps, machine=SOCKETS % "6.12").texts == ["cpu2"]
