"""A program that takes part in memory hotplug: it hears of each change before it and after it."""

from memhp import NOTIFY_OK, Machine, MemoryAction, MemoryNotify, NotifierBlock, NotifyResult

machine = Machine.boot("4GiB")


@machine.hotplug_memory_notifier(priority=10)
def listener(block: NotifierBlock, action: MemoryAction, memory: MemoryNotify) -> NotifyResult:
    """Say what is going on; NOTIFY_BAD in place of NOTIFY_OK would refuse it."""
    print(f"{block.name}: {action.name} {memory}")
    return NOTIFY_OK


machine.device_offline(32)
print(machine)
