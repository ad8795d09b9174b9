"""How a machine begins: a plan, and how one is made from a description."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from memhp.abi.formats import parse_bool, parse_uint, sysfs_word
from memhp.errors import InvalidInput
from memhp.kernel.blocks import BlockState, OnlineType
from memhp.kernel.firmwaremap import RESERVED
from memhp.kernel.iomem import SYSTEM_RAM
from memhp.kernel.rules import Rules
from memhp.kernel.zones import ARCH_LIMITS, ZoneType
from memhp.units import PAGE_SHIFT, PAGE_SIZE, SECTION_SIZE, BlockId, Pfn, format_size, parse_size

__all__ = [
    "BootBlock",
    "NodeSpec",
    "Parameters",
    "Plan",
    "check_ram",
    "default_block_size",
    "online_type_of",
    "parse_policy",
    "plan_from_spec",
    "room_start",
    "without_gaps",
    "zones_of",
]

_MODULE = "memory_hotplug."
_WORD = re.compile(r'(?:"[^"]*"?|[^\s"])+')
Ram = tuple[tuple[Pfn, int], ...]

_GIB = 1 << 30
_HOLE_START = 3 * _GIB
_HOLE_END = 4 * _GIB
_FLASH = 256 << 10
_MAX_BLOCK_SIZE = 2 * _GIB
_NODE_KEYS = ("memory", "cpus", "distances", "possible_cpus")
# What a PC's firmware leaves of the first MiB: page 0 and 636 KiB..1 MiB are no System RAM.
_LEGACY_GAPS = ((0, 0x1000), (0x9F000, 0x100000))


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One NUMA node of a machine to boot.

    Attributes:
        memory: bytes of RAM at boot; 0 makes a node that exists only once memory is added to it, unless it has CPUs.
        cpus: how many CPUs.
        distances: to each node, by index; 10 to itself and 20 to others if not given.
        possible_cpus: how many CPUs it can have, those at boot among them; 0 is no more than these.
    """

    memory: int = 0
    cpus: int = 0
    distances: tuple[int, ...] = ()
    possible_cpus: int = 0

    @classmethod
    def of(cls, value: object, where: str) -> NodeSpec:
        """Read a node from a NodeSpec, a size, or a mapping with the attributes as keys.

        Raises:
            InvalidInput: an unknown key, or a malformed value.
        """
        if isinstance(value, NodeSpec):
            return cls.of({name: getattr(value, name) for name in _NODE_KEYS}, where)
        if isinstance(value, str | int):
            return cls(memory=parse_size(value, where))
        if not isinstance(value, Mapping):
            raise InvalidInput(value, where, f"a size, or a mapping with {', '.join(_NODE_KEYS)}")
        unknown = set(value) - set(_NODE_KEYS)
        if unknown:
            raise InvalidInput(min(map(str, unknown)), where, f"one of the keys {', '.join(_NODE_KEYS)}")
        cpus = value.get("cpus", 0)
        if not isinstance(cpus, int) or isinstance(cpus, bool) or not 0 <= cpus <= 8192:
            raise InvalidInput(cpus, f"{where}: cpus", "a number of CPUs")
        possible = value.get("possible_cpus", 0)
        if not isinstance(possible, int) or isinstance(possible, bool) or (possible and not cpus <= possible <= 8192):
            raise InvalidInput(possible, f"{where}: possible_cpus", f"a number of CPUs, at least the {cpus} that it has at boot")
        distances = value.get("distances", ())
        if not isinstance(distances, Sequence) or not all(isinstance(d, int) and 10 <= d <= 255 for d in distances):
            raise InvalidInput(distances, f"{where}: distances", "a list of numbers from 10 to 255")
        return cls(parse_size(value.get("memory", 0), f"{where}: memory"), cpus, tuple(distances), possible)


@dataclass(slots=True)
class Parameters:
    """What the kernel command line and /sys/module/memory_hotplug/parameters say.

    ``movable_node`` and ``memmap_on_memory`` are as they were at boot; the others change at run time.
    """

    auto_online_blocks: OnlineType = OnlineType.OFFLINE
    movable_node: bool = False
    online_policy: str = "contig-zones"
    auto_movable_ratio: int = 301
    auto_movable_numa_aware: bool = True
    memmap_on_memory: str = "N"
    """As the file reads: N, Y, or (6.12) force."""

    @classmethod
    def of(cls, value: object, rules: Rules) -> Parameters:
        """Read parameters from a mapping with the command line's names, or from a command line.

        As in Linux, words of a command line that mean nothing here are ignored, and so is a bogus
        ``memhp_default_state``. A mapping is written on purpose, so there each name and value must be right.

        Raises:
            InvalidInput: an unknown name or a malformed value in a mapping.
        """
        parameters = cls(auto_online_blocks=rules.value.default_online_type)
        if value is None:
            return parameters
        if isinstance(value, str):
            for name, text in _command_line(value):
                # A word that means nothing here, or a bogus value, changes nothing.
                with contextlib.suppress(InvalidInput):
                    parameters._set_from_command_line(name, text, rules)
            return parameters
        if not isinstance(value, Mapping):
            raise InvalidInput(value, "parameters", "a mapping of names to values, or a kernel command line")
        for name, given in value.items():
            parameters.set(str(name), _as_text(given), rules)
        return parameters

    def _set_from_command_line(self, name: str, text: str | None, rules: Rules) -> None:
        # Dashes and underscores are the same in a name (kernel/params.c, parameq()).
        name = name.replace("-", "_")
        if name == "movable_node":  # an early parameter, whose value nobody looks at
            self.movable_node = True
        elif name == "memhp_default_state" and text is not None:
            self.set(name, text, rules)
        elif name.startswith(_MODULE) and (text is not None or name.removeprefix(_MODULE) in rules.value.bare_parameters):
            self.set(name, "y" if text is None else text, rules)

    def set(self, name: str, text: str, rules: Rules) -> None:
        """Set one parameter from text.

        Raises:
            InvalidInput: an unknown name or a malformed value.
        """
        where = f"parameters: {name}"
        short = name.removeprefix(_MODULE)
        if name == "memhp_default_state":
            self.auto_online_blocks = online_type_of(text, where)
        elif name == "movable_node":
            self.movable_node = parse_bool(text, where)
        elif short == "online_policy":
            self.online_policy = parse_policy(text, where)
        elif short == "auto_movable_ratio":
            ratio = parse_uint(text, where)
            if ratio >= 1 << 32:
                raise InvalidInput(text, where, "a number below 2^32")
            self.auto_movable_ratio = ratio
        elif short == "auto_movable_numa_aware":
            self.auto_movable_numa_aware = parse_bool(text, where)
        elif short == "memmap_on_memory":
            self.memmap_on_memory = _memmap_mode(text, where, rules)
        else:
            module = "online_policy,auto_movable_ratio,auto_movable_numa_aware,memmap_on_memory"
            raise InvalidInput(name, "parameters", f"one of memhp_default_state, movable_node, {_MODULE}{{{module}}}")


def _command_line(text: str) -> Iterator[tuple[str, str | None]]:
    # Words as kernel/params.c, next_arg() has them: quotes keep spaces together, and what follows "--" is for init.
    for match in _WORD.finditer(text):
        word = match[0].replace('"', "")
        if word == "--":
            return
        name, equals, value = word.partition("=")
        yield name, value if equals else None


def _memmap_mode(text: str, where: str, rules: Rules) -> str:
    if rules.value.memmap_force and sysfs_word(text) in {"force", "FORCE"}:
        return "force"
    return "Y" if parse_bool(text, where) else "N"


def _as_text(value: object) -> str:
    return {True: "y", False: "n"}[value] if isinstance(value, bool) else str(value)


def online_type_of(text: str, where: str) -> OnlineType:
    """Read one of the four words of ``auto_online_blocks``.

    Raises:
        InvalidInput: another word.
    """
    try:
        return OnlineType(text)
    except ValueError:
        raise InvalidInput(text, where, "offline, online, online_kernel or online_movable") from None


def parse_policy(text: str, where: str) -> str:
    """Read an ``online_policy``.

    Raises:
        InvalidInput: not one of the two.
    """
    if text not in {"contig-zones", "auto-movable"}:
        raise InvalidInput(text, where, "contig-zones or auto-movable")
    return text


@dataclass(frozen=True, slots=True)
class BootBlock:
    """A memory block that is there at boot; ``zone`` None and online means: in the zones of its addresses."""

    id: BlockId
    nid: int
    ram: Ram
    state: BlockState = BlockState.ONLINE
    zone: ZoneType | None = None
    in_several: bool = False
    """Whether the real kernel finds it in several zones or nodes, whatever its addresses say."""


@dataclass(slots=True)
class Plan:
    """Everything that a machine needs to begin; what :class:`~memhp.kernel.machine.Machine` is made of."""

    block_size: int
    nodes: list[NodeSpec | None]
    """By node id; None where the node is not possible."""
    blocks: list[BootBlock]
    parameters: Parameters
    room_start: int
    room_size: int
    slots: int = 16
    """Slots for DIMMs."""
    physical_bits: int = 46
    five_level_paging: bool = False
    cpu_ids: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """CPUs of each node, by node id."""
    sockets: dict[int, int] = field(default_factory=dict)
    """Nodes of the sockets without a CPU, by number."""
    memory_probe: bool = False
    firmware: tuple[tuple[int, int, str], ...] | None = None
    """The firmware's list of memory as (start, end, type), the end inclusive; None makes one from the blocks."""


def default_block_size(ram_end: int, *, hypervisor: bool = True) -> int:
    """Choose the block size as x86-64 does (``arch/x86/mm/init_64.c``: ``probe_memory_block_size``), in bytes.

    128 MiB while RAM ends below 64 GiB; else 2 GiB on bare metal, and on a hypervisor the largest power of two up to that
    which divides the end of RAM.
    """
    if ram_end < 64 * _GIB:
        return SECTION_SIZE
    size = _MAX_BLOCK_SIZE
    while hypervisor and size > SECTION_SIZE and ram_end % size:
        size //= 2
    return size


def room_start(ram_end: int, block_size: int) -> int:
    """Say where the room for new memory begins: above RAM and above 4 GiB, on a GiB and a block (as QEMU has it)."""
    unit = max(_GIB, block_size)
    return max(_HOLE_END, -(-ram_end // unit) * unit)


# -- from a spec


def plan_from_spec(
    nodes: Sequence[object],
    *,
    block_size: object = None,
    room: object = None,
    parameters: object = None,
    rules: Rules,
    hypervisor: bool = True,
    acpi_tables: object = 0,
    slots: int = 16,
    physical_bits: int = 46,
    five_level_paging: bool = False,
    memory_probe: bool = False,
) -> Plan:
    """Lay out RAM as a PC does: from address 0, with a hole from 3 GiB to 4 GiB, node after node.

    ``acpi_tables`` bytes at the end of RAM below that hole are the firmware's.

    Raises:
        InvalidInput: no node, no memory, a size that is no multiple of the page size, a block size that is no power of
            two from 128 MiB on, or something else that is malformed; with its place.
    """
    specs = [NodeSpec.of(node, f"nodes[{index}]") for index, node in enumerate(nodes)]
    for nid, spec in enumerate(specs):
        if spec.distances and (len(spec.distances) != len(specs) or spec.distances[nid] != 10):
            expected = f"{len(specs)} numbers, one a node, 10 to the node itself"
            raise InvalidInput(spec.distances, f"nodes[{nid}]: distances", expected)
    if not specs or not any(spec.memory for spec in specs):
        raise InvalidInput(list(nodes), "nodes", "at least one node with memory")
    ranges = _lay_out(specs)
    ram_end = max(end for _, _, end in ranges)
    size = default_block_size(ram_end, hypervisor=hypervisor) if block_size is None else parse_size(block_size, "block_size")
    if not SECTION_SIZE <= size <= _MAX_BLOCK_SIZE or size & (size - 1):
        expected = f"a power of two from {format_size(SECTION_SIZE)} to {format_size(_MAX_BLOCK_SIZE)}"
        raise InvalidInput(block_size, "block_size", expected)
    begin = room_start(ram_end, size)
    plan = Plan(
        block_size=size,
        nodes=list(specs),
        blocks=_blocks_of_ranges(_without_tables(ranges, acpi_tables), size),
        parameters=Parameters.of(parameters, rules),
        firmware=_map_of_pc(ranges, parse_size(acpi_tables, "acpi_tables")),
        room_start=begin,
        room_size=parse_size(room, "room") if room is not None else (1 << 46) - begin,
        cpu_ids=_number_cpus(specs),
        sockets=_empty_sockets(specs),
        slots=slots,
        physical_bits=physical_bits,
        five_level_paging=five_level_paging,
        memory_probe=memory_probe,
    )
    _check_options(plan, hypervisor=hypervisor)
    return plan


def _check_options(plan: Plan, *, hypervisor: bool) -> None:
    if not isinstance(plan.slots, int) or isinstance(plan.slots, bool) or not 0 <= plan.slots <= 256:
        raise InvalidInput(plan.slots, "slots", "a number from 0 to 256")
    if not isinstance(plan.physical_bits, int) or not 36 <= plan.physical_bits <= 52:
        raise InvalidInput(plan.physical_bits, "physical_bits", "a number from 36 to 52")
    switches = {"five_level_paging": plan.five_level_paging, "memory_probe": plan.memory_probe, "hypervisor": hypervisor}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidInput(value, name, "true or false")


def check_ram(plan: Plan) -> None:
    """See that the CPU reaches all memory.

    Raises:
        InvalidInput: it ends beyond what the CPU can address.
    """
    last = max((start + nr for block in plan.blocks for start, nr in block.ram), default=0)
    end = 1 << min(plan.physical_bits, 52 if plan.five_level_paging else 46)
    if last << PAGE_SHIFT > end:
        raise InvalidInput(format_size(last << PAGE_SHIFT), "nodes: end of memory", f"at most {format_size(end)} on this CPU")


def _lay_out(specs: Sequence[NodeSpec]) -> list[tuple[int, int, int]]:
    ranges: list[tuple[int, int, int]] = []
    place = 0
    for nid, spec in enumerate(specs):
        if spec.memory % PAGE_SIZE:
            raise InvalidInput(spec.memory, f"nodes[{nid}]: memory", f"a multiple of the page size {PAGE_SIZE}")
        missing = spec.memory
        while missing:
            place = _HOLE_END if _HOLE_START <= place < _HOLE_END else place
            part = min(missing, _HOLE_START - place) if place < _HOLE_START else missing
            ranges.append((nid, place, place + part))
            place += part
            missing -= part
    return ranges


def _map_of_pc(ranges: list[tuple[int, int, int]], tables: int) -> tuple[tuple[int, int, str], ...] | None:
    # What QEMU's firmware tells of a PC, as its guests list it in /sys/firmware/memmap; only whoever asks for its tables has it.
    if not tables:
        return None
    low = max(end for _, _, end in ranges if end <= _HOLE_START)
    high = [(start, end) for start, end in _joined(ranges) if start >= _HOLE_END]
    kept = [
        (0x9FC00, 0xA0000),
        (0xF0000, 0x100000),
        (low - tables, low),
        (_HOLE_END - (256 << 10), _HOLE_END),
        (0xFD << 32, 1 << 40),
    ]
    ram = [(0, 0x9FC00), (0x100000, low - tables), *high]
    return tuple(sorted([(a, b - 1, SYSTEM_RAM) for a, b in ram] + [(a, b - 1, RESERVED) for a, b in kept]))


def _joined(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    # The firmware does not tell nodes apart.
    joined: list[tuple[int, int]] = []
    for _, start, end in sorted(ranges, key=lambda part: part[1]):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _without_tables(ranges: list[tuple[int, int, int]], given: object) -> list[tuple[int, int, int]]:
    size = parse_size(given, "acpi_tables")
    low = max(end for _, _, end in ranges if end <= _HOLE_START)
    if size % PAGE_SIZE or size >= SECTION_SIZE or size >= low:
        raise InvalidInput(given, "acpi_tables", f"a multiple of the page size {PAGE_SIZE} below {format_size(SECTION_SIZE)}")
    return [(nid, start, end - size if end == low else end) for nid, start, end in ranges]


def _blocks_of_ranges(ranges: list[tuple[int, int, int]], size: int) -> list[BootBlock]:
    parts: dict[int, list[tuple[int, int, int]]] = {}
    for nid, start, end in ranges:
        for number in range(start // size, -(-end // size)):
            parts.setdefault(number, []).append((nid, max(start, number * size), min(end, (number + 1) * size)))
    blocks = []
    for number, inside in sorted(parts.items()):
        if len({nid for nid, _, _ in inside}) > 1:
            raise InvalidInput(format_size(size), "block_size", f"nodes that begin on a block boundary (block {number} has two)")
        ram = tuple((Pfn(a >> PAGE_SHIFT), (b - a) >> PAGE_SHIFT) for _, a, b in without_gaps(inside) if b > a)
        blocks.append(BootBlock(BlockId(number), inside[0][0], ram))
    return blocks


def without_gaps(parts: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Cut out of (node, start, end) ranges what a PC's firmware keeps of the first MiB."""
    for gap_start, gap_end in _LEGACY_GAPS:
        cut = []
        for nid, start, end in parts:
            cut += [(nid, start, min(end, gap_start)), (nid, max(start, gap_end), end)]
        parts = [part for part in cut if part[2] > part[1]]
    return parts


def _number_cpus(specs: Sequence[NodeSpec]) -> dict[int, tuple[int, ...]]:
    numbered: dict[int, tuple[int, ...]] = {}
    first = 0
    for nid, spec in enumerate(specs):
        numbered[nid] = tuple(range(first, first + spec.cpus))
        first += spec.cpus
    return numbered


def _empty_sockets(specs: Sequence[NodeSpec]) -> dict[int, int]:
    # Behind the sockets of those that are there, node after node.
    nodes = [nid for nid, spec in enumerate(specs) for _ in range(spec.possible_cpus - spec.cpus)]
    return dict(enumerate(nodes, sum(spec.cpus for spec in specs)))


def zones_of(block: BootBlock) -> list[tuple[ZoneType, Pfn, int]]:
    """Say which pages of a block are in which zone at boot."""
    if block.state is not BlockState.ONLINE:
        return []
    if block.zone is not None:
        return [(block.zone, start, nr) for start, nr in block.ram]
    found = []
    for kind, (low, high) in ARCH_LIMITS.items():
        for start, nr in block.ram:
            first, end = max(start, low), min(start + nr, high)
            if first < end:
                found.append((kind, Pfn(first), end - first))
    return found
