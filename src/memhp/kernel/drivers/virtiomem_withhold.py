"""virtio-mem: one online-page callback serves all devices of a machine (``register_virtio_mem_device``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memhp.units import PAGE_SHIFT, Pfn

if TYPE_CHECKING:
    from memhp.kernel.drivers.virtiomem import VirtioMem
    from memhp.kernel.holdings import Allocation

__all__ = ["discharge", "enlist"]


def enlist(device: VirtioMem) -> None:
    """Let a device say what of its memory is kept back; the first one sets the callback.

    Raises:
        HotplugError: EINVAL, another driver has it.
    """
    place = device.machine.online_page
    with place.sharing:
        withholder = place.callback
        if not isinstance(withholder, _Withholder):
            withholder = _Withholder()
            place.set(withholder)
        withholder.devices = [*withholder.devices, device]


def discharge(device: VirtioMem) -> None:
    """Ask a device no more; the last one gives the callback back."""
    place = device.machine.online_page
    with place.sharing:
        withholder = place.callback
        if isinstance(withholder, _Withholder):
            withholder.devices = [other for other in withholder.devices if other is not device]
            if not withholder.devices:
                place.restore(withholder)


class _Withholder:
    def __init__(self) -> None:
        self.devices: list[VirtioMem] = []
        # Replaced and never changed, so that who reads it is undisturbed.

    def __call__(self, start: Pfn, nr_pages: int) -> list[tuple[Pfn, int, Allocation]]:
        first, size = start << PAGE_SHIFT, nr_pages << PAGE_SHIFT
        own = [device for device in self.devices if device.start < first + size and first < device.start + device.size]
        return [part for device in own for part in device.mode.withheld(first, size)]
