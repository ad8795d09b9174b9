"""A CANCEL for something that was never begun: two real drivers, one with the bug and one that guards against it."""

import logging

from memhp import (
    MEM_GOING_OFFLINE,
    NOTIFY_BAD,
    NOTIFY_OK,
    HotplugError,
    Machine,
    MemoryAction,
    MemoryNotify,
    NotifierBlock,
    NotifyResult,
)
from memhp.kernel.drivers import VirtioMem
from memhp.kernel.participants import join

logging.disable(logging.ERROR)  # the chain logs what a callback raises; here it is printed below

GIB = 1 << 30
machine = Machine.boot(["1GiB", 0], rules="6.1", parameters="memhp_default_state=online_movable")
cmm = join(machine, ["cmm"])["cmm"]  # takes a mutex at GOING_OFFLINE, gives it back at CANCEL_OFFLINE
device = VirtioMem(machine, 1, 4 * GIB, GIB)  # does so too, but remembers whether it took it
device.request(64 << 20)
print("virtio-mem:", device.work(), device.plugged >> 20, "MiB plugged")


@machine.hotplug_memory_notifier(priority=1000)
def first(block: NotifierBlock, action: MemoryAction, memory: MemoryNotify) -> NotifyResult:
    """Refuse before anybody else is asked; they all hear CANCEL_OFFLINE nevertheless."""
    return NOTIFY_BAD if action is MEM_GOING_OFFLINE else NOTIFY_OK


try:
    machine.device_offline(32)
except HotplugError as error:
    print(error)
print("cmm: faults", cmm.block.errors)
print("virtio-mem: faults", device.callback.errors)

first.unregister()
machine.device_offline(32)
print("without the refusal:", machine.block(32).state.value)
