"""Random steps of dax devices; for :mod:`memhp.conform.generate`.

Left out is what makes the kernels crash: a range more for a device that kmem has, unbinding one of which kmem has passed over a
range whose blocks are offline (read in ``drivers/dax/kmem.c``), and unbinding the only one that says what kind of memory a node
has while other memory of the node is online (observed).
"""

from __future__ import annotations

from collections.abc import Callable

from memhp.conform.generate_steps import Ground, Maker, Step, Steps
from memhp.kernel import BlockState, Machine
from memhp.kernel.dax import DaxRegion, DevDax
from memhp.kernel.drivers import DaxKmem

__all__ = ["DaxSteps"]

_BUS, _PLATFORM = "/sys/bus/dax", "/sys/devices/platform"
_DRIVERS = ("kmem", "kmem", "kmem", "device_dax")
_MIB = 1 << 20
_BLOCK = 128 * _MIB
_NAMES = ("dax0.0", "dax0.1", "dax0.2", "dax1.0", "dax1.1", "dax7.0")
_BAD_NAMES = ("dax0", "dax00.0", " dax0.0", "dax0.0x", "dax0.0 ", "", "text", "dax0.0\n\n")
_BAD_NUMBERS = ("text", "", "-1", "1 ", "0x100000000000000000", "4096", "3145729")
_CREATES = ("1", "1", "1", "1\n", "0", "2", "-1", "text", "99999999999", "")
_ALIGNS = ("4096", "4096", "2097152", "0x200000\n", "8192", "1073741824", "text", "")
_MEMMAPS = ("1", "y", "0", "n\n", "x", "")
_DEVICE_FILES = (
    "align",
    "dev",
    "modalias",
    "numa_node",
    "resource",
    "size",
    "target_node",
    "uevent",
    "mapping0/end",
    "mapping1/start",
)
_REGION_FILES = ("align", "available_size", "create", "id", "seed", "size", "delete")
_RARELY = 0.08
_LEAK = 0.15
_WILD = 0.3


class DaxSteps(Steps):
    """Makes steps of dax devices; ``follow`` says what has to follow at once."""

    def __init__(self, ground: Ground, follow: Callable[[list[Maker]], None]) -> None:
        super().__init__(ground)
        machines = ground.machines
        self._follow = follow
        self._stay = {nid for _, nid in machines[0].boot_nodes}
        """Nodes that never lose all of their memory."""
        if machines[0].dax.regions:
            self.kinds = (
                (12, self._bind),
                (16, self._unbind),
                (8, self._new_id),
                (2, self._remove_id),
                (9, self._size),
                (4, self._create),
                (8, self._cut),
                (3, self._delete),
                (12, self._mapping),
                (2, self._align),
                (2, self._memmap),
                (1, self._probe),
                (2, self._read),
                (1, self._uevent),
            )

    # -- what is there

    def _name(self, *, bound: bool | None = None) -> str:
        if self.random.random() < _RARELY:
            return self.random.choice(_NAMES)
        devices = list(self._machines[self.random.randrange(len(self._machines))].dax)
        fitting = [device.name for device in devices if bound is None or bool(device.driver) == bound]
        return self.random.choice(fitting or [device.name for device in devices])

    def _each(self, name: str) -> list[DevDax]:
        return [device for machine in self._machines if (device := machine.dax.find(name)) is not None]

    def _region(self) -> DaxRegion:
        return self.random.choice(self._machines[0].dax.regions)

    def _written(self, file: str, text: str, *, adds: bool = False) -> Step:
        with self._marked(adds=adds):
            return self._write(file, text)

    # -- drivers

    def _bind(self) -> Step:
        driver, name = self.random.choice(_DRIVERS), self._name(bound=False)
        bus = self.random.choice(self._machines).dax
        idle = [device for device in bus if not device.driver]
        pairs = [(one.name, device.name) for one in bus.drivers.values() for device in idle if one.matches(device)]
        if pairs and self.random.random() > _WILD:
            # Rather kmem, which takes only what it was told of on 6.1.
            driver, name = self.random.choice([pair for pair in pairs if pair[0] == "kmem"] or pairs)
        return self._written(f"{_BUS}/drivers/{driver}/bind", self._worded(name), adds=True)

    def _unbind(self) -> Step | None:
        return self._unbind_of(self._name(bound=True))

    def _unbind_of(self, name: str) -> Step | None:
        bound = [device for device in self._each(name) if device.driver]
        driver = self.random.choice(bound).driver if bound and self.random.random() > _RARELY else self.random.choice(_DRIVERS)
        if any(self._crashes(machine, name) for machine in self._machines):
            return None
        if (held := self._held(name)) and self.random.random() > _LEAK:
            # There is little left to do with a device that has leaked.
            leaving = [block for block in held if block not in self._used]
            return self._written(f"memory{self.random.choice(leaving)}/state", "offline") if leaving else None
        if held:
            take = [f"{_BUS}/drivers/device_dax/{file}" for file in ("new_id", "bind", "bind")]
            self._follow([lambda path=path: self._written(path, name, adds=True) for path in take])  # type: ignore[misc]
        return self._written(f"{_BUS}/drivers/{driver}/unbind", self._worded(name))

    def _crashes(self, machine: Machine, name: str) -> bool:
        device = machine.dax.find(name)
        if device is None or not isinstance(device.bound, DaxKmem):
            return False
        if device.bound.crashes_unbind():
            return True
        if device.region.target_node in self._stay:
            return False
        return not _online_blocks(machine, name) and machine.tiers.forgets_used(device.region.target_node)

    def _held(self, name: str) -> list[int]:
        return sorted({block for machine in self._machines for block in _online_blocks(machine, name)})

    def _new_id(self) -> Step:
        driver, name = self.random.choice(_DRIVERS), self._name(bound=False if self.random.random() > _WILD else None)
        return self._written(f"{_BUS}/drivers/{driver}/new_id", self._worded(name), adds=True)

    def _remove_id(self) -> Step:
        return self._written(f"{_BUS}/drivers/{self.random.choice(_DRIVERS)}/remove_id", self._worded(self._name()))

    def _worded(self, name: str) -> str:
        if self.random.random() < _RARELY:
            return self.random.choice(_BAD_NAMES)
        return name if self.random.random() > _RARELY else f"{name}\n"

    def _probe(self) -> Step:
        return self._written(f"{_BUS}/drivers_probe", self._worded(self._name()), adds=True)

    # -- devices and regions

    def _size(self) -> Step:
        name = self._name(bound=False)
        devices = self._each(name)
        has, region = (devices[0].size, devices[0].region.size) if devices else (0, _BLOCK)
        sizes = (0, region, _BLOCK, 2 * _BLOCK, has + _BLOCK, has - _BLOCK, has + 2 * _MIB, has - 6 * _MIB, region // 2)
        text = hex(max(0, self.random.choice(sizes)))
        return self._written(f"{_BUS}/devices/{name}/size", self._number(text))

    def _number(self, text: str) -> str:
        return self.random.choice(_BAD_NUMBERS) if self.random.random() < _RARELY else text

    def _create(self) -> Step:
        return self._written(f"{_PLATFORM}/{self._region().name}/dax_region/create", self.random.choice(_CREATES))

    def _cut(self, *, unbinds: bool = True) -> Step | None:
        # The first device gives of its memory to a new one, and more of it later, which that one takes as well, or in part.
        region = self._region()
        first = region.devices[0].name
        if any(device.size < 3 * _BLOCK for device in self._each(first)):
            return None
        if any(device.driver for device in self._each(first)):
            if not unbinds:  # what is bound still may be so forever
                return None
            unbind = [lambda: self._unbind_of(first), lambda: self._unbind_of(first)]
            self._follow([*unbind, lambda: self._cut(unbinds=False)])
            return self._unbind_of(first)
        size, half = f"{_BUS}/devices/{{}}/size", max(_BLOCK, region.size // 2 // _BLOCK * _BLOCK)
        second = _BLOCK // 2 if self.random.random() < _WILD else _BLOCK

        def youngest(text: str) -> Step | None:
            device = region.youngest
            return self._written(size.format(device.name), text) if device is not None else None

        self._follow(
            [
                lambda: self._written(f"{_PLATFORM}/{region.name}/dax_region/create", "1"),
                lambda: youngest(hex(second)),
                lambda: self._written(size.format(first), hex(half - second)),
                lambda: youngest(hex(second + self.random.choice((_BLOCK, 6 * _MIB)))),
                self._bind if self.random.random() < _WILD else lambda: self._take(region),
            ]
        )
        return self._written(size.format(first), hex(half))

    def _take(self, region: DaxRegion) -> Step | None:
        device, driver = region.youngest, self.random.choice(_DRIVERS)
        return None if device is None else self._written(f"{_BUS}/drivers/{driver}/new_id", device.name, adds=True)

    def _delete(self) -> Step:
        return self._written(f"{_PLATFORM}/{self._region().name}/dax_region/delete", self._worded(self._name(bound=False)))

    def _mapping(self) -> Step | None:
        names = {device.name for machine in self._machines for device in machine.dax}
        idle = sorted(name for name in names if not any(device.driver for device in self._each(name)))
        if not idle:
            return None
        name = self.random.choice(idle)
        region = self._each(name)[0].region
        start = region.start + self.random.randrange(0, region.size, 2 * _MIB)
        if self.random.random() < 0.7:
            start = -(-region.start // _BLOCK) * _BLOCK + _BLOCK * self.random.randrange(4)
        length = self.random.choice((_BLOCK, _BLOCK, 2 * _BLOCK, 2 * _MIB, 64 * _MIB, 4096))
        text = f"{start:x}-{start + length - 1:x}"
        return self._written(
            f"{_BUS}/devices/{name}/mapping", self.random.choice((text, text, text, f"0x{text}", f"{text}\n", "text"))
        )

    def _align(self) -> Step:
        return self._written(f"{_BUS}/devices/{self._name(bound=False)}/align", self.random.choice(_ALIGNS))

    def _memmap(self) -> Step:
        return self._written(f"{_BUS}/devices/{self._name()}/memmap_on_memory", self.random.choice(_MEMMAPS))

    def _read(self) -> Step:
        if self.random.random() < 0.4:
            return {"read": f"{_PLATFORM}/{self._region().name}/dax_region/{self.random.choice(_REGION_FILES)}"}
        return {"read": f"{_BUS}/devices/{self._name()}/{self.random.choice(_DEVICE_FILES)}"}

    def _uevent(self) -> Step:
        return self._written(f"{_BUS}/devices/{self._name()}/uevent", self.random.choice(("change", "add", "bogus")))


def _online_blocks(machine: Machine, name: str) -> list[int]:
    # What would leak at unbind.
    device = machine.dax.find(name)
    if device is None or not isinstance(device.bound, DaxKmem):
        return []
    blocks = [block for claim in device.bound.claims for block in machine.blocks_within(claim.start, claim.size)]
    return [block.id for block in blocks if block.state is not BlockState.OFFLINE]
