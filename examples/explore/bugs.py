"""What goes wrong where a lock is missing or taken in another way: ``memhp explore examples/explore/bugs.py:NAME``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from claims import BLOCK, GIB, add_against_online, boot, write
from memhp import HotplugError
from memhp.explore import Scene

__all__ = ["reader_in_a_reader", "store_that_waits", "without_device_hotplug_lock"]


def without_device_hotplug_lock(scene: Scene) -> None:
    """The inversion that the document warns of: device_online() against add_memory()."""
    add_against_online(scene, device_hotplug_lock=False)


def store_that_waits(scene: Scene) -> None:
    """A write to a block's state waits for device_hotplug_lock, where Linux tries and restarts the system call."""
    machine = boot(scene)
    machine.add_memory(0, 4 * GIB, BLOCK)

    @contextlib.contextmanager
    def waiting() -> Iterator[None]:
        with machine.locks.device_hotplug:
            yield

    machine.device_hotplug_sysfs = waiting  # type: ignore[method-assign]

    def remove() -> None:
        with contextlib.suppress(HotplugError):
            machine.remove_memory(4 * GIB, BLOCK)

    scene.thread("storer", write, machine, 32, "online")
    scene.thread("remover", remove)


def reader_in_a_reader(scene: Scene) -> None:
    """A thread that reads mem_hotplug_lock reads it once more, while somebody waits to change memory."""
    machine = boot(scene)
    machine.add_memory(0, 4 * GIB, BLOCK)

    def read_twice() -> None:
        with machine.online_mems(), machine.online_mems():
            pass

    scene.thread("reader", read_twice)
    scene.thread("onliner", write, machine, 32, "online")
