"""Following a guest's driver of virtio-mem: it works in a thread of its own, and the trace says when nothing is left to do."""

from __future__ import annotations

from memhp.lab.guest import Guest
from memhp.lab.modules import VIRTIO_DRIVERS, load_order

__all__ = ["load_driver", "resize", "settle"]

_WORK = "virtio_mem_run_wq"
_EVENTS = ("workqueue_queue_work", "workqueue_execute_end")
_TRACING = "/sys/kernel/tracing/events/workqueue"


def load_driver(guest: Guest) -> None:
    """Load the driver, and wait until it has done what is requested of its devices; its work is in the trace from now on."""
    guest.ask("begin")
    for event in _EVENTS:
        guest.write(f"{_TRACING}/{event}/enable", "1")
    for module in load_order(guest.kernel, VIRTIO_DRIVERS):
        guest.insmod(module)
    settle(guest, least=len(guest.shape.virtio))
    [line] = guest.ask("grep", path="/proc/kallsyms", pattern=rf" {_WORK}\t")
    for event in _EVENTS:
        guest.write(f"{_TRACING}/{event}/filter", f"function == 0x{line.split()[0]}")


def settle(guest: Guest, *, least: int = 0) -> None:
    """Wait until all work of the driver that was queued since the step began, at least so much, is done.

    What it tries again after 50 s or more is not waited for.

    Raises:
        GuestFailed: it works for longer than the guest's patience.
    """
    guest.ask("settle", work=_WORK, queue=_EVENTS[0], end=_EVENTS[1], least=least)


def resize(guest: Guest, name: str, size: int) -> int:
    """Ask a device for another size and let the driver follow; gives the bytes that it has then.

    Raises:
        DimmRefused: there is no such device, or it can't have that size.
        GuestFailed: nobody answers.
    """
    guest.monitor.virtio_mem(name)
    guest.monitor.request(name, size)
    settle(guest, least=1)  # QEMU tells the driver also if the size is as before
    return guest.monitor.virtio_mem(name).size
