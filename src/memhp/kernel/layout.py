"""A plan from a description: RAM laid out as a PC does, and what the firmware keeps of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from memhp.errors import InvalidInput
from memhp.kernel.blocks import BlockState
from memhp.kernel.boot import BootBlock, NodeSpec, Parameters, Plan
from memhp.kernel.firmwaremap import RESERVED
from memhp.kernel.iomem import SYSTEM_RAM
from memhp.kernel.rules import Rules
from memhp.kernel.zones import ARCH_LIMITS, ZoneType
from memhp.units import PAGE_SHIFT, PAGE_SIZE, SECTION_SIZE, SUBSECTION_SIZE, BlockId, Pfn, format_size, parse_size

__all__ = ["check_ram", "default_block_size", "plan_from_spec", "room_start", "soft_ranges", "without_gaps", "zones_of"]

_GIB = 1 << 30
_HOLE_START = 3 * _GIB
_HOLE_END = 4 * _GIB
_MAX_BLOCK_SIZE = 2 * _GIB
# What a PC's firmware leaves of the first MiB: page 0 and 636 KiB..1 MiB are no System RAM.
_LEGACY_GAPS = ((0, 0x1000), (0x9F000, 0x100000))

Part = tuple[int, int, int]
"""A node, and a range of its bytes, the end exclusive."""


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


def plan_from_spec(
    nodes: Sequence[object],
    *,
    block_size: object = None,
    room: object = None,
    parameters: object = None,
    rules: Rules,
    hypervisor: bool = True,
    acpi_tables: object = 0,
    soft_reserved: object = (),
    slots: int = 16,
    physical_bits: int = 46,
    five_level_paging: bool = False,
    memory_probe: bool = False,
) -> Plan:
    """Lay out RAM as a PC does: from address 0, with a hole from 3 GiB to 4 GiB, node after node.

    ``acpi_tables`` bytes at the end of RAM below that hole are the firmware's; ``soft_reserved`` are ranges (at, size) of RAM
    that it keeps for a purpose, so that no memory block has them at boot.

    Raises:
        InvalidInput: no node, no memory, a size that is no multiple of the page size, a block size that is no power of
            two from 128 MiB on, or something else that is malformed; with its place.
    """
    specs = _node_specs(nodes)
    ranges = _lay_out(specs)
    _check_options(
        slots=slots,
        physical_bits=physical_bits,
        switches={"five_level_paging": five_level_paging, "memory_probe": memory_probe, "hypervisor": hypervisor},
    )
    _check_end(max(end for _, _, end in ranges), physical_bits, five_level_paging=five_level_paging)
    kept = soft_ranges(specs, soft_reserved)
    memory = _without(_without_tables(ranges, acpi_tables), [(start, end) for _, start, end in kept])
    size = _block_size(block_size, max(end for _, _, end in memory), hypervisor=hypervisor)
    begin = room_start(max(end for _, _, end in ranges), size)
    return Plan(
        block_size=size,
        nodes=list(specs),
        blocks=_blocks_of_ranges(memory, size),
        parameters=Parameters.of(parameters, rules),
        firmware=_map_of_pc(ranges, parse_size(acpi_tables, "acpi_tables")),
        soft_reserved=tuple(kept),
        room_start=begin,
        room_size=parse_size(room, "room") if room is not None else (1 << 46) - begin,
        cpu_ids=_number_cpus(specs),
        sockets=_empty_sockets(specs),
        slots=slots,
        physical_bits=physical_bits,
        five_level_paging=five_level_paging,
        memory_probe=memory_probe,
    )


def _node_specs(nodes: Sequence[object]) -> list[NodeSpec]:
    specs = [NodeSpec.of(node, f"nodes[{index}]") for index, node in enumerate(nodes)]
    for nid, spec in enumerate(specs):
        if spec.distances and (len(spec.distances) != len(specs) or spec.distances[nid] != 10):
            expected = f"{len(specs)} numbers, one a node, 10 to the node itself"
            raise InvalidInput(spec.distances, f"nodes[{nid}]: distances", expected)
    if not specs or not any(spec.memory for spec in specs):
        raise InvalidInput(list(nodes), "nodes", "at least one node with memory")
    return specs


def _block_size(given: object, ram_end: int, *, hypervisor: bool) -> int:
    size = default_block_size(ram_end, hypervisor=hypervisor) if given is None else parse_size(given, "block_size")
    if not SECTION_SIZE <= size <= _MAX_BLOCK_SIZE or size & (size - 1):
        expected = f"a power of two from {format_size(SECTION_SIZE)} to {format_size(_MAX_BLOCK_SIZE)}"
        raise InvalidInput(given, "block_size", expected)
    return size


def soft_ranges(specs: Sequence[NodeSpec], given: object, where: str = "soft_reserved") -> list[Part]:
    """Read ranges of RAM that are soft-reserved; gives them by address, each with its node.

    Raises:
        InvalidInput: malformed, not in multiples of 2 MiB, not in the memory of one node, or two touch each other.
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InvalidInput(given, where, "a list of ranges, such as [{at: 4GiB, size: 1GiB}]")
    ranges = _lay_out(specs)
    found = sorted((_soft_range(ranges, one, f"{where}[{index}]") for index, one in enumerate(given)), key=lambda part: part[1])
    for before, after in itertools.pairwise(found):
        if before[2] >= after[1]:
            # Two that touch would be one to the kernel, and one device.
            raise InvalidInput(f"{after[1]:#x}", where, f"ranges apart; one ends at {before[2]:#x}")
    return found


def _soft_range(ranges: list[Part], given: object, where: str) -> Part:
    if isinstance(given, Mapping) and set(given) == {"at", "size"}:
        given = (given["at"], given["size"])
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        raise InvalidInput(given, where, "a range with at and size")
    start, size = parse_size(given[0], f"{where}: at"), parse_size(given[1], f"{where}: size")
    for name, value in (("at", start), ("size", size)):
        if value % SUBSECTION_SIZE or value < SUBSECTION_SIZE:
            # The first MiB is not RAM throughout.
            expected = f"a multiple of {format_size(SUBSECTION_SIZE)}, at least that much"
            raise InvalidInput(given[name == "size"], f"{where}: {name}", expected)
    for nid, first, end in ranges:
        if first <= start and start + size <= end:
            return nid, start, start + size
    there = ", ".join(f"{nid}: {first:#x}-{end - 1:#x}" for nid, first, end in ranges)
    raise InvalidInput(f"{start:#x} + {size:#x}", where, f"a range within the memory of one node ({there})")


def _check_options(*, slots: object, physical_bits: object, switches: Mapping[str, object]) -> None:
    if not isinstance(slots, int) or isinstance(slots, bool) or not 0 <= slots <= 256:
        raise InvalidInput(slots, "slots", "a number from 0 to 256")
    if not isinstance(physical_bits, int) or not 36 <= physical_bits <= 52:
        raise InvalidInput(physical_bits, "physical_bits", "a number from 36 to 52")
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidInput(value, name, "true or false")


def check_ram(plan: Plan) -> None:
    """See that the CPU reaches all memory.

    Raises:
        InvalidInput: it ends beyond what the CPU can address.
    """
    last = max((start + nr for block in plan.blocks for start, nr in block.ram), default=0)
    _check_end(last << PAGE_SHIFT, plan.physical_bits, five_level_paging=plan.five_level_paging)


def _check_end(last: int, physical_bits: int, *, five_level_paging: bool) -> None:
    # Of a description, before its blocks are made: there could be more of them than fit into any memory.
    end = 1 << min(physical_bits, 52 if five_level_paging else 46)
    if last > end:
        raise InvalidInput(format_size(last), "nodes: end of memory", f"at most {format_size(end)} on this CPU")


def _lay_out(specs: Sequence[NodeSpec]) -> list[Part]:
    ranges: list[Part] = []
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


def _map_of_pc(ranges: list[Part], tables: int) -> tuple[tuple[int, int, str], ...] | None:
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


def _joined(ranges: list[Part]) -> list[tuple[int, int]]:
    # The firmware does not tell nodes apart.
    joined: list[tuple[int, int]] = []
    for _, start, end in sorted(ranges, key=lambda part: part[1]):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _without_tables(ranges: list[Part], given: object) -> list[Part]:
    size = parse_size(given, "acpi_tables")
    low = max(end for _, _, end in ranges if end <= _HOLE_START)
    if size % PAGE_SIZE or size >= SECTION_SIZE or size >= low:
        raise InvalidInput(given, "acpi_tables", f"a multiple of the page size {PAGE_SIZE} below {format_size(SECTION_SIZE)}")
    return [(nid, start, end - size if end == low else end) for nid, start, end in ranges]


def _blocks_of_ranges(ranges: list[Part], size: int) -> list[BootBlock]:
    parts: dict[int, list[Part]] = {}
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


def without_gaps(parts: list[Part]) -> list[Part]:
    """Cut out of (node, start, end) ranges what a PC's firmware keeps of the first MiB."""
    return _without(parts, _LEGACY_GAPS)


def _without(parts: list[Part], gaps: Iterable[tuple[int, int]]) -> list[Part]:
    for gap_start, gap_end in gaps:
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
