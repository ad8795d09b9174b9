"""The text files of /proc and of nodes that count pages (``mm/vmstat.c``, ``fs/proc/meminfo.c``, ``drivers/base/node.c``).

Names, order and spacing are those of Debian's 6.1 and 6.12 kernels (observed). What the model has no notion of (swap, dirty
pages, faults, reclaim) is there and 0, as readers of these files expect each line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memhp.kernel.census import Census
from memhp.kernel.kinds import HUGE_ORDER, MAX_ORDER, MigrateType, PageKind
from memhp.kernel.watermarks import batch_of, protection_of, stat_threshold, watermarks_of
from memhp.kernel.zones import Node, NodeState, Zone
from memhp.units import PAGE_SIZE

if TYPE_CHECKING:
    from memhp.kernel.machine import Machine

__all__ = ["buddyinfo", "iomem", "meminfo", "node_meminfo", "node_numastat", "node_vmstat", "pagetypeinfo", "zoneinfo"]

_KB = PAGE_SIZE >> 10
_HUGE = 512
_ANON = (PageKind.MOVABLE, PageKind.ANONYMOUS, PageKind.THP)
_SLAB = (PageKind.SLAB, PageKind.RECLAIMABLE)
_POOL = (PageKind.HUGETLB, PageKind.HUGETLB_FREE, PageKind.HUGETLB_RESERVED)

_ZONE_COUNTERS = (
    *("nr_zone_inactive_anon", "nr_zone_active_anon", "nr_zone_inactive_file", "nr_zone_active_file", "nr_zone_unevictable"),
    *("nr_zone_write_pending", "nr_mlock", "nr_bounce", "nr_zspages", "nr_free_cma"),
)
_NUMA_COUNTERS = ("numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other")
_NODE_COUNTERS = (
    *("nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_active_file", "nr_unevictable"),
    *("nr_slab_reclaimable", "nr_slab_unreclaimable", "nr_isolated_anon", "nr_isolated_file", "workingset_nodes"),
    *("workingset_refault_anon", "workingset_refault_file", "workingset_activate_anon", "workingset_activate_file"),
    *("workingset_restore_anon", "workingset_restore_file", "workingset_nodereclaim", "nr_anon_pages", "nr_mapped"),
    *("nr_file_pages", "nr_dirty", "nr_writeback", "nr_writeback_temp", "nr_shmem", "nr_shmem_hugepages"),
    *("nr_shmem_pmdmapped", "nr_file_hugepages", "nr_file_pmdmapped", "nr_anon_transparent_hugepages", "nr_vmscan_write"),
    *("nr_vmscan_immediate_reclaim", "nr_dirtied", "nr_written", "nr_throttled_written", "nr_kernel_misc_reclaimable"),
    *("nr_foll_pin_acquired", "nr_foll_pin_released", "nr_kernel_stack", "nr_page_table_pages", "nr_sec_page_table_pages"),
)
_LATE_COUNTERS = ("nr_swapcached", "pgpromote_success", "pgpromote_candidate")


def _zone_names(machine: Machine) -> tuple[str, ...]:
    return (*_ZONE_COUNTERS, *(("nr_unaccepted",) if _newer(machine) else ()))


def _node_names(machine: Machine) -> tuple[str, ...]:
    if not _newer(machine):
        return (*_NODE_COUNTERS, *_LATE_COUNTERS)
    return (*_NODE_COUNTERS, "nr_iommu_pages", *_LATE_COUNTERS, "pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged")


def _newer(machine: Machine) -> bool:
    return machine.rules.value.counters == "6.12"


def _zone_values(used: Counter[PageKind]) -> dict[str, int]:
    return {"nr_zone_inactive_anon": sum(used[kind] for kind in _ANON), "nr_zone_inactive_file": used[PageKind.FILE]}


def _node_values(used: Counter[PageKind]) -> dict[str, int]:
    anonymous = sum(used[kind] for kind in _ANON)
    return {
        "nr_inactive_anon": anonymous,
        "nr_inactive_file": used[PageKind.FILE],
        "nr_slab_reclaimable": used[PageKind.RECLAIMABLE],
        "nr_slab_unreclaimable": used[PageKind.SLAB],
        "nr_anon_pages": anonymous,
        "nr_file_pages": used[PageKind.FILE],
        "nr_anon_transparent_hugepages": used[PageKind.THP] // _HUGE,
        "nr_page_table_pages": used[PageKind.PAGE_TABLE],
    }


# -- zoneinfo


def zoneinfo(machine: Machine, what: object = None) -> str:
    """Give /proc/zoneinfo: all zones of all online nodes; those without managed pages in short."""
    census = Census(machine)
    lines: list[str] = []
    for nid in sorted(machine.node_states[NodeState.N_ONLINE]):
        node = machine.nodes[nid]
        first = next((zone for zone in node.zones if zone.present), None)
        for zone in node.zones:
            lines.append(f"Node {nid}, zone {zone.type.label:>8}")
            if zone is first:
                lines.append("  per-node stats")
                values = _node_values(census.in_node(node))
                lines += [f"      {name:<12} {values.get(name, 0)}" for name in _node_names(machine)]
            lines += _zone_lines(machine, zone, census)
        lines += [
            f"Node {nid}, zone   Device",
            *_marks(machine, None, 0, node.device_zone.spanned),
            f"        protection: ({', '.join('00000')})",
        ]
    return "".join(f"{line}\n" for line in lines)


def _zone_lines(machine: Machine, zone: Zone, census: Census) -> Iterator[str]:
    free = census.free[zone]
    yield from _marks(machine, zone, free)
    yield f"        protection: ({', '.join(map(str, protection_of(machine, zone)))})"
    if not zone.present:
        return
    values = {"nr_free_pages": free, **_zone_values(census.used[zone])}
    for name in ("nr_free_pages", *_zone_names(machine), *_NUMA_COUNTERS):
        yield f"      {name:<12} {values.get(name, 0)}"
    yield "  pagesets"
    cpus = sorted(cpu for node in machine.nodes.values() for cpu in node.cpus) or [0]
    high = watermarks_of(machine, zone).low // max(len(machine.nodes[zone.nid].cpus), 1)
    batch = batch_of(zone)
    for cpu in cpus:
        yield f"    cpu: {cpu}"
        yield from ("              count: 0", f"              high:  {max(high, 4 * batch)}", f"              batch: {batch}")
        yield f"  vm stats threshold: {stat_threshold(zone, len(cpus))}"
    yield "  node_unreclaimable:  0"
    yield f"  start_pfn:           {zone.start_pfn}"


def _marks(machine: Machine, zone: Zone | None, free: int, spanned: int = 0) -> Iterator[str]:
    yield f"  pages free     {free}"
    marks = watermarks_of(machine, zone) if zone is not None else None
    shown = {"boost": 0, "min": marks.min if marks else 0, "low": marks.low if marks else 0, "high": marks.high if marks else 0}
    if _newer(machine):
        shown["promo"] = marks.promo if marks else 0
    for name in ("spanned", "present", "managed"):
        shown[name] = getattr(zone, name) if zone is not None else spanned if name == "spanned" else 0
    for name, value in {**shown, "cma": 0}.items():
        yield f"        {name:<8} {value}"


# -- meminfo


def meminfo(machine: Machine, what: object = None) -> str:
    """Give /proc/meminfo; sizes are of managed pages, in kB."""
    census = Census(machine)
    used: Counter[PageKind] = sum((census.in_node(node) for node in machine.nodes.values()), Counter())
    kb = _kb(used)
    free = sum(census.free_in_node(node) for node in machine.nodes.values()) * _KB
    total = machine.memory_total >> 10
    reserve = sum(watermarks_of(machine, zone).low for node in machine.nodes.values() for zone in node.zones) * _KB
    cached = kb["FilePages"] + kb["SReclaimable"]
    values = {
        **kb,
        "MemTotal": total,
        "MemFree": free,
        "MemAvailable": max(free - reserve + cached - min(cached // 2, reserve), 0),
        "Cached": kb["FilePages"],
        "CommitLimit": (total - _huge_kb(used)) // 2,
        "Committed_AS": kb["AnonPages"],
        "VmallocTotal": ((1 << 45) >> 10) - 1,
        "HardwareCorrupted": sum(len(block.poisoned) for block in machine.blocks.values()) * _KB,
        "Hugetlb": _huge_kb(used),
        "DirectMap2M": total,
    }
    lines = [f"{_column(name, values.get(name, 0))} kB" for name in _meminfo_names(machine, _MEMINFO)]
    lines += [_column(name, value) for name, value in _pool(used).items()]
    lines.append(f"{_column('Hugepagesize', _HUGE * _KB)} kB")
    lines += [f"{_column(name, values.get(name, 0))} kB" for name in ("Hugetlb", "DirectMap4k", "DirectMap2M", "DirectMap1G")]
    return "".join(f"{line}\n" for line in lines)


def node_meminfo(machine: Machine, node: Node) -> str:
    """Give a node's ``meminfo``."""
    census = Census(machine)
    used = census.in_node(node)
    total = sum(zone.managed for zone in node.zones) * _KB
    free = census.free_in_node(node) * _KB
    values = {**_kb(used), "MemTotal": total, "MemFree": free, "MemUsed": total - free}
    head = f"Node {node.nid} "
    odd = {} if _newer(machine) else {"FileHugePages": 23, "FilePmdMapped": 23}
    lines = [
        f"{head}{_column(name, values.get(name, 0), odd.get(name, 24))} kB" for name in _meminfo_names(machine, _NODE_MEMINFO)
    ]
    pool = _pool(used)
    del pool["HugePages_Rsvd"]  # a promise is of no node
    lines += [f"{head}{_column(name, value, 22)}" for name, value in pool.items()]
    return "".join(f"{line}\n" for line in lines)


_COMMON = ("Active", "Inactive", "Active(anon)", "Inactive(anon)", "Active(file)", "Inactive(file)", "Unevictable", "Mlocked")
_TAIL = ("AnonHugePages", "ShmemHugePages", "ShmemPmdMapped", "FileHugePages", "FilePmdMapped", "Unaccepted")
_MEMINFO = (
    *("MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapCached", *_COMMON, "SwapTotal", "SwapFree", "Dirty"),
    *("Writeback", "AnonPages", "Mapped", "Shmem", "KReclaimable", "Slab", "SReclaimable", "SUnreclaim", "KernelStack"),
    *("PageTables", "SecPageTables", "NFS_Unstable", "Bounce", "WritebackTmp", "CommitLimit", "Committed_AS", "VmallocTotal"),
    *("VmallocUsed", "VmallocChunk", "Percpu", "HardwareCorrupted", *_TAIL),
)
_NODE_MEMINFO = (
    *("MemTotal", "MemFree", "MemUsed", "SwapCached", *_COMMON, "Dirty", "Writeback", "FilePages", "Mapped", "AnonPages"),
    *("Shmem", "KernelStack", "PageTables", "SecPageTables", "NFS_Unstable", "Bounce", "WritebackTmp", "KReclaimable", "Slab"),
    *("SReclaimable", "SUnreclaim", *_TAIL),
)


def _column(name: str, value: int, width: int = 24) -> str:
    return f"{name}:{value:>{width - len(name) - 1}}"


def _meminfo_names(machine: Machine, names: tuple[str, ...]) -> list[str]:
    missing = set() if machine.rules.value.memory_failure else {"HardwareCorrupted"}
    if not _newer(machine):
        missing.add("Unaccepted")
    return [name for name in names if name not in missing]


def _kb(used: Counter[PageKind]) -> dict[str, int]:
    anonymous, file = sum(used[kind] for kind in _ANON) * _KB, used[PageKind.FILE] * _KB
    reclaimable, slab = used[PageKind.RECLAIMABLE] * _KB, used[PageKind.SLAB] * _KB
    return {
        "Inactive": anonymous + file,
        "Inactive(anon)": anonymous,
        "Inactive(file)": file,
        "FilePages": file,
        "AnonPages": anonymous,
        "AnonHugePages": used[PageKind.THP] * _KB,
        "PageTables": used[PageKind.PAGE_TABLE] * _KB,
        "KReclaimable": reclaimable,
        "SReclaimable": reclaimable,
        "SUnreclaim": slab,
        "Slab": slab + reclaimable,
    }


def _huge_kb(used: Counter[PageKind]) -> int:
    return sum(used[kind] for kind in _POOL) * _KB


def _pool(used: Counter[PageKind]) -> dict[str, int]:
    total, free, reserved = (
        sum(used[kind] for kind in kinds) // _HUGE for kinds in (_POOL, _POOL[1:], (PageKind.HUGETLB_RESERVED,))
    )
    return {"HugePages_Total": total, "HugePages_Free": free, "HugePages_Rsvd": reserved, "HugePages_Surp": 0}


# -- a node's counters


def node_vmstat(machine: Machine, node: Node) -> str:
    """Give a node's ``vmstat``."""
    census = Census(machine)
    used = census.in_node(node)
    values = {"nr_free_pages": census.free_in_node(node), **_zone_values(used), **_node_values(used)}
    names = ("nr_free_pages", *_zone_names(machine), *_NUMA_COUNTERS, *_node_names(machine))
    return "".join(f"{name} {values.get(name, 0)}\n" for name in names)


def node_numastat(machine: Machine, node: Node) -> str:
    """Give a node's ``numastat``."""
    names = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
    return "".join(f"{name} 0\n" for name in names)


# -- free chunks


def _populated(node: Node) -> list[Zone]:
    return [zone for zone in node.zones if zone.present]


def _online(machine: Machine) -> list[Node]:
    return [machine.nodes[nid] for nid in sorted(machine.node_states[NodeState.N_ONLINE])]


def buddyinfo(machine: Machine, what: object = None) -> str:
    """Give /proc/buddyinfo: free chunks of each order in each zone."""
    lines = []
    with machine.pages.lock:
        for node in _online(machine):
            for zone in _populated(node):
                totals = machine.pages.buddy.totals(zone)
                counts = [sum(by_order[order] for by_order in totals) for order in range(MAX_ORDER + 1)]
                lines.append(f"Node {node.nid}, zone {zone.type.label:>8} {''.join(f'{count:6} ' for count in counts)}\n")
    return "".join(lines)


def pagetypeinfo(machine: Machine, what: object = None) -> str:
    """Give /proc/pagetypeinfo: free chunks of each migratetype, and how many pageblocks are of which."""
    orders = "".join(f"{order:6} " for order in range(MAX_ORDER + 1))
    parts = []
    with machine.pages.lock:
        for node in _online(machine):
            zones = _populated(node)
            if not zones:
                continue
            blocks = {zone: _pageblocks(machine, zone) for zone in zones}
            # CONFIG_CMA is off in Debian's cloud kernels; its column is there once something is reserved.
            kinds = [kind for kind in MigrateType if kind is not MigrateType.CMA or any(found[kind] for found in blocks.values())]
            parts.append(f"Page block order: {HUGE_ORDER}\nPages per block:  {1 << HUGE_ORDER}\n\n")
            parts.append(f"{'Free pages count per migrate type at order':<44}{orders}\n")
            for zone in zones:
                totals = machine.pages.buddy.totals(zone)
                for kind in kinds:
                    counts = "".join(f"{count:6} " for count in totals[kind])
                    parts.append(f"Node {node.nid:4}, zone {zone.type.label:>8}, type {kind.label:>12} {counts}\n")
            parts.append(f"\n{'Number of blocks type':<23}{''.join(f'{kind.label:>12} ' for kind in kinds)}\n")
            for zone in zones:
                counts = "".join(f"{blocks[zone][kind]:12} " for kind in kinds)
                parts.append(f"Node {node.nid}, zone {zone.type.label:>8} {counts}\n")
    return "".join(parts)


def _pageblocks(machine: Machine, zone: Zone) -> Counter[MigrateType]:
    found: Counter[MigrateType] = Counter()
    for block in dict.fromkeys(zone.ascending()):
        for section in machine.pages.buddy.sections_of(block):
            for other, bits in section.parts:
                if other is zone:
                    places = range(0, bits.bit_length(), 1 << HUGE_ORDER)
                    inside = [place for place in places if bits >> place & ((1 << (1 << HUGE_ORDER)) - 1)]
                    for place in inside if section.types is not None and not block.isolated else ():
                        found[section.type_at(place)] += 1
                    if block.isolated or section.types is None:
                        found[MigrateType.ISOLATE if block.isolated else MigrateType.MOVABLE] += len(inside)
    return found


def iomem(machine: Machine, what: object = None) -> str:
    """Give /proc/iomem: who claims which physical addresses, as far as it is memory."""
    return str(machine.iomem)
