"""How a machine begins: the plan that :mod:`.layout` makes from a description, and :mod:`.twin` from files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from memhp.abi.formats import parse_bool, parse_uint, sysfs_word
from memhp.errors import InvalidInput
from memhp.kernel.blocks import BlockState, OnlineType
from memhp.kernel.rules import Rules
from memhp.kernel.zones import ZoneType
from memhp.units import BlockId, Pfn, parse_size, whole_number

__all__ = [
    "BootBlock",
    "NodeSpec",
    "Parameters",
    "Plan",
    "mappable_end",
    "online_type_of",
    "parse_policy",
]

_log = logging.getLogger(__name__)
_MODULE = "memory_hotplug."
_WORD = re.compile(r'(?:"[^"]*"?|[^\s"])+')
Ram = tuple[tuple[Pfn, int], ...]

_MOST_CPUS = 8192
"""Of a node; what NR_CPUS can be on x86-64."""
_NODE_KEYS = ("memory", "cpus", "distances", "possible_cpus")


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
        if not isinstance(cpus, int) or isinstance(cpus, bool) or not 0 <= cpus <= _MOST_CPUS:
            raise InvalidInput(cpus, f"{where}: cpus", f"a number of CPUs, at most {_MOST_CPUS}")
        possible = value.get("possible_cpus", 0)
        if not isinstance(possible, int) or isinstance(possible, bool) or (possible and not cpus <= possible <= _MOST_CPUS):
            expected = f"a number of CPUs, at least the {cpus} that it has at boot, and at most {_MOST_CPUS}"
            raise InvalidInput(possible, f"{where}: possible_cpus", expected)
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
    ignored: tuple[str, ...] = ()
    """What was wrong with words of the command line that are about memory hotplug, and changed nothing."""

    @classmethod
    def of(cls, value: object, rules: Rules) -> Parameters:
        """Read parameters from a mapping with the command line's names, or from a command line.

        As in Linux, words of a command line that mean nothing here are ignored, and so are bogus values. Of those that are
        about memory hotplug ``ignored`` and a warning in the log say what is wrong. A mapping is written on purpose, so there
        each name and value must be right.

        Raises:
            InvalidInput: an unknown name or a malformed value in a mapping.
        """
        parameters = cls(auto_online_blocks=rules.value.default_online_type)
        if value is None:
            return parameters
        if isinstance(value, str):
            for name, text in _command_line(value):
                try:
                    parameters._set_from_command_line(name, text, rules)
                except InvalidInput as error:
                    # It changes nothing, and the kernel hardly says so; nobody means it.
                    parameters.ignored += (str(error),)
            for said in parameters.ignored:
                _log.warning("kernel command line: ignored: %s", said)
            return parameters
        if not isinstance(value, Mapping):
            raise InvalidInput(value, "parameters", "a mapping of names to values, or a kernel command line")
        for name, given in value.items():
            parameters.set(_as_text(name), _as_text(given), rules)
        return parameters

    def _set_from_command_line(self, name: str, text: str | None, rules: Rules) -> None:
        # Dashes and underscores are the same in a name (kernel/params.c, parameq()).
        name = name.replace("-", "_")
        if name == "movable_node":  # an early parameter, whose value nobody looks at
            self.movable_node = True
        elif name == "memhp_default_state" or name.startswith(_MODULE):
            if text is None and name.removeprefix(_MODULE) not in rules.value.bare_parameters:
                raise InvalidInput("", f"parameters: {name}", "a value")
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
    if isinstance(value, bool):
        return "y" if value else "n"
    return str(whole_number(value, "parameters", "a number") if isinstance(value, int) else value)


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


def mappable_end(*, five_level_paging: bool) -> int:
    """Say where the addresses end that can be mapped (x86-64, by levels of page tables)."""
    return 1 << (52 if five_level_paging else 46)


@dataclass(slots=True)
class Plan:
    """Everything that a machine needs to begin; what :class:`~memhp.kernel.machine.Machine` is made of."""

    block_size: int
    nodes: list[NodeSpec | None]
    """By node id; None where the node is not possible."""
    blocks: list[BootBlock]
    parameters: Parameters
    room_start: int
    room_size: int | None = None
    """Bytes; None is as much as can be mapped."""
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
    soft_reserved: tuple[tuple[int, int, int], ...] = ()
    """What the firmware keeps for a purpose (EFI_MEMORY_SP) as (node, start, end), the end exclusive, ascending."""

    @property
    def mappable(self) -> int:
        """Where the addresses end that can be mapped (x86-64, by levels of page tables)."""
        return mappable_end(five_level_paging=self.five_level_paging)

    @property
    def room(self) -> tuple[int, int]:
        """Where there is room for new memory, and how many bytes."""
        return self.room_start, self.mappable - self.room_start if self.room_size is None else self.room_size
