"""What userland sees of a machine's memory, as one flat mapping: to compare moments, and machines.

The file goes into the lab's guests alone, so it imports the standard library only, and not memhp.
"""

import re
from collections.abc import Callable, Mapping

__all__ = ["changes", "machine_state"]

_MEMORY = "/sys/devices/system/memory"
_NODE = "/sys/devices/system/node"
_POLICY = "/sys/module/memory_hotplug/parameters"
_MASKS = ("possible", "online", "has_memory", "has_normal_memory", "has_cpu")
_CPU = "/sys/devices/system/cpu"
_CPU_MASKS = ("possible", "present", "online", "offline")
_TIERS = "/sys/devices/virtual/memory_tiering"
_DAX = "/sys/bus/dax"
_DAX_FILES = ("size", "align", "resource", "numa_node", "target_node", "memmap_on_memory")
_REGION_FILES = ("size", "available_size", "seed", "create")
_CLAIM = re.compile(r"( *)([0-9a-f]+)-[0-9a-f]+ : (System RAM.*|Soft Reserved|hmem\.\d+|dax\d+\.\d+|virtio\d+)$")
_BLOCK = re.compile(r"memory(\d+)")
_ZONE = re.compile(r"^Node (\d+), zone +(\w+)$")
_ZONE_NUMBERS = ("spanned", "present", "managed", "start_pfn")

Read = Callable[[str], str]
List = Callable[[str], list[str]]


def machine_state(read: Read, names: List) -> dict[str, str]:
    """Read the state of a machine's memory.

    Args:
        read: gives a file's text; an OSError is said in its place.
        names: gives the names in a directory, links too.

    Returns:
        ``memory32`` → ``offline 0 Normal Movable``, ``memory32/`` → its directory's names, ``node1/`` → that of its blocks and
        CPUs, ``node1 cpus`` → its ``cpulist`` and ``cpumap``, ``cpus online`` → that mask, ``cpu1`` → its ``online``,
        ``memory_tier4`` → its ``nodelist``,
        ``zone 1/Normal`` → its numbers in pages, ``dax0.0`` → that device, ``dax0`` → its region, ``iomem`` → who claims memory
        from 4 GiB on, and policies, masks, ``MemTotal`` in kB by their names.
    """

    def text(path: str) -> str:
        try:
            return read(path).strip()
        except OSError as error:
            return f"({error.strerror})"

    state = {"auto_online_blocks": text(f"{_MEMORY}/auto_online_blocks"), "memory/": _other_names(names(_MEMORY))}
    state |= {name: text(f"{_POLICY}/{name}") for name in sorted(names(_POLICY))}
    for number in _numbers(names(_MEMORY)):
        path = f"{_MEMORY}/memory{number}"
        state[f"memory{number}"] = " ".join(text(f"{path}/{name}") for name in ("state", "online", "valid_zones"))
        state[f"memory{number}/"] = " ".join(sorted(names(path)))
    state |= {mask: text(f"{_NODE}/{mask}") for mask in _MASKS}
    for node in sorted(name for name in names(_NODE) if re.fullmatch(r"node\d+", name)):
        state[f"{node}/"] = " ".join(sorted(name for name in names(f"{_NODE}/{node}") if re.fullmatch(r"(memory|cpu)\d+", name)))
        state[f"{node} cpus"] = " ".join(text(f"{_NODE}/{node}/{name}") for name in ("cpulist", "cpumap"))
    state |= {f"cpus {mask}": text(f"{_CPU}/{mask}") for mask in _CPU_MASKS}
    cpus = [name for name in names(_CPU) if re.fullmatch(r"cpu\d+", name)]
    state |= {cpu: text(f"{_CPU}/{cpu}/online") for cpu in sorted(cpus) if "online" in names(f"{_CPU}/{cpu}")}
    state |= _zones(text("/proc/zoneinfo"))
    tiers = sorted(name for name in _listed(names, _TIERS) if name.startswith("memory_tier"))
    state |= {tier: text(f"{_TIERS}/{tier}/nodelist") for tier in tiers}
    state |= _dax(text, names)
    state["iomem"] = _claims(text("/proc/iomem"))
    total = re.search(r"^MemTotal:\s+(\d+) kB", text("/proc/meminfo"), re.MULTILINE)
    state["MemTotal"] = total[1] if total else ""
    return state


def _listed(names: List, path: str) -> list[str]:
    try:
        return names(path)
    except OSError:
        return []


def _dax(text: Read, names: List) -> dict[str, str]:
    state = {}
    for device in sorted(_listed(names, f"{_DAX}/devices")):
        path = f"{_DAX}/devices/{device}"
        found = sorted(names(path))
        drivers = [driver for driver in names(f"{_DAX}/drivers") if device in names(f"{_DAX}/drivers/{driver}")]
        parts = [f"{path}/{name}" for name in found if name.startswith("mapping") and name != "mapping"]
        ranges = [f"{text(f'{part}/start')}-{text(f'{part}/end')}@{text(f'{part}/page_offset')}" for part in parts]
        files = [f"{name} {text(f'{path}/{name}')}" for name in _DAX_FILES if name in found]
        state[device] = " ".join([*drivers, *files, *ranges])
        state[f"{device}/"] = " ".join(found)
        region = " ".join(f"{name} {text(f'{path}/../dax_region/{name}')}" for name in _REGION_FILES)
        state[device.partition(".")[0]] = region
    return state


def _claims(text: str) -> str:
    # Who claims memory from 4 GiB on; below, a PC has much else.
    kept: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = _CLAIM.match(line)
        if match and int(match[2], 16) >= 4 << 30:
            kept.append((len(match[1]) // 2, line.strip()))
    least = min((depth for depth, _ in kept), default=0)
    return "; ".join(f"{'>' * (depth - least)}{claim}" for depth, claim in kept)


def _numbers(names: list[str]) -> list[int]:
    return sorted(int(match[1]) for match in map(_BLOCK.fullmatch, names) if match)


def _other_names(names: list[str]) -> str:
    return " ".join(sorted(name for name in names if not _BLOCK.fullmatch(name)))


def _zones(text: str) -> dict[str, str]:
    zones: dict[str, dict[str, str]] = {}
    numbers: dict[str, str] = {}
    for line in text.splitlines():
        match = _ZONE.match(line)
        if match:
            numbers = zones[f"zone {match[1]}/{match[2]}"] = {}
            continue
        key, _, value = line.strip().partition(" ")
        if key.rstrip(":") in _ZONE_NUMBERS:
            numbers[key.rstrip(":")] = value.strip()
    # An empty zone is said without its start.
    return {name: " ".join(f"{key} {found.get(key, '-')}" for key in _ZONE_NUMBERS) for name, found in zones.items()}


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """Say what is different in ``after``; None is gone."""
    gone = {key: None for key in before if key not in after}
    return {**{key: value for key, value in after.items() if before.get(key) != value}, **gone}
