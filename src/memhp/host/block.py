"""A memory block as a machine's files have it (drivers/base/memory.c)."""

from __future__ import annotations

from collections.abc import Callable

from memhp.units import BlockId, PhysAddr

__all__ = ["NOT_READ", "Block", "read_flag", "read_words"]

NOT_READ = ("not read",)
"""The zones of a block whose file is read when somebody asks for them."""


class Block:
    """One memory block: its state as it was when the blocks were read.

    Attributes:
        id: its number, the N of ``memoryN``.
        start: physical address of its first byte.
        size: bytes.
        nodes: the NUMA nodes that have a part of it, ascending; () where the kernel has no nodes or the copy doesn't say.
        state: the word of the file: online, offline, going-offline; '' if the file can't be read.
    """

    __slots__ = ("_late", "_zones", "id", "nodes", "size", "start", "state")

    def __init__(
        self,
        id: BlockId,  # noqa: A002 - the field's name
        size: int,
        nodes: tuple[int, ...],
        state: str,
        valid_zones: tuple[str, ...] | None = NOT_READ,
        late: Callable[[str], str | None] | None = None,
    ) -> None:
        self.id = id
        self.start = PhysAddr(id * size)
        self.size = size
        self.nodes = nodes
        self.state = state
        self._zones = valid_zones
        self._late = late

    def __repr__(self) -> str:
        return f"<Block memory{self.id} {self.state or '?'} nodes {self.nodes}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Block):
            return NotImplemented
        return self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash(self._facts())

    def _facts(self) -> tuple[object, ...]:
        return self.id, self.size, self.nodes, self.state

    @property
    def valid_zones(self) -> tuple[str, ...] | None:
        """The words of the file; None if the kernel doesn't say (before 3.18).

        Of an online block: its zone, or ``none`` if it lies in several or can't go offline. Of an offline block: the zones that
        it can go to, the default first. It is read at the first question, unless the blocks were read with their zones.
        """
        if self._zones is NOT_READ:
            self._zones = read_words(self._read("valid_zones"))
        return self._zones

    @property
    def end(self) -> PhysAddr:
        """The address behind its last byte."""
        return PhysAddr(self.start + self.size)

    @property
    def online(self) -> bool:
        """Whether its state is online."""
        return self.state == "online"

    @property
    def node(self) -> int | None:
        """Its node if it has exactly one, else None."""
        return self.nodes[0] if len(self.nodes) == 1 else None

    @property
    def zone(self) -> str | None:
        """Of an online block the zone that it lies in; None if that is not one, not known, or it isn't online."""
        if self.state != "online" or not self.valid_zones or len(self.valid_zones) != 1:
            return None
        return None if self.valid_zones[0].lower() == "none" else self.valid_zones[0]

    @property
    def verdict(self) -> tuple[str, str]:
        """Whether it would go offline, as far as these files tell: offline (it is), no, or unknown; and why.

        There is no yes: what is in a block isn't in these files.
        """
        if self.state == "offline":
            return "offline", "it is offline"
        if self.valid_zones is not None and [word.lower() for word in self.valid_zones] == ["none"]:
            return "no", "it lies in several zones or nodes"
        if self.state == "going-offline":
            return "unknown", "it is on its way"
        return "unknown", self.trouble or "its pages decide"

    @property
    def trouble(self) -> str:
        """What is wrong with its state, in words; '' if it is one that the kernel has."""
        if self.state in {"online", "offline", "going-offline"}:
            return ""
        return f"its state says {self.state!r}" if self.state else "its state can't be read"

    @property
    def removable(self) -> bool | None:
        """What the file says, read when asked for; it tells nothing, as kernels say 1 for every block (``removable_show()``)."""
        return read_flag(self._read("removable"))

    @property
    def phys_device(self) -> int | None:
        """The number of the physical device, 0 except on s390. Read when asked for."""
        text = self._read("phys_device")
        return int(text) if text is not None and text.strip().isdigit() else None

    def _read(self, file: str) -> str | None:
        return self._late(f"memory{self.id}/{file}") if self._late else None


def read_words(text: str | None) -> tuple[str, ...] | None:
    """Split a file's text into words; None stays None."""
    return None if text is None else tuple(text.split())


def read_flag(text: str | None) -> bool | None:
    """Read a yes or no as the kernel's files have it; None if it is neither, or not there."""
    return {"1": True, "Y": True, "y": True, "0": False, "N": False, "n": False}.get((text or "").strip()[:1])
