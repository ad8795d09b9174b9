"""What lockdep says of an order that could deadlock, in the kernel's form (``print_circular_bug``)."""

from __future__ import annotations

from collections.abc import Iterator

from memhp.locking.lockgraph import Cycle, Edge, Site, Take, behind_writer
from memhp.locking.switch import Mode

__all__ = ["Report"]


class Report:
    """One lock order that could deadlock.

    Attributes:
        kind: ``circular`` or ``recursive``.
        cycle: the edges; the first one closes it and is the acquisition that was found out.
        why: of a recursion, why it is one.
    """

    __slots__ = ("cycle", "kind", "why")

    def __init__(self, kind: str, cycle: Cycle, why: str = "") -> None:
        self.kind = kind
        self.cycle = cycle
        self.why = why

    @property
    def task(self) -> str:
        """Who was found out."""
        return self.cycle.edges[0].task

    @property
    def held(self) -> tuple[str, ...]:
        """What it held then, by name."""
        return self.cycle.edges[0].held

    @property
    def classes(self) -> tuple[str, ...]:
        """The lock classes of the cycle, in order, beginning with the one that was held."""
        return tuple(edge.before.key for edge in self.cycle.edges)

    def __str__(self) -> str:
        return "\n".join(self._circular() if self.kind == "circular" else self._recursive())

    def _circular(self) -> Iterator[str]:
        edges = self.cycle.edges
        yield from _found_out("WARNING: possible circular locking dependency detected", self.task, edges[0])
        yield ""
        yield "which lock already depends on the new lock."
        yield ""
        yield "the existing dependency chain (in reverse order) is:"
        for number, edge in reversed(list(enumerate(edges[1:], 1))):
            yield ""
            yield f"-> #{number} {_lock(edge.after)}, by {edge.task} at:"
            yield from _indent(edge.after.site)
            yield f"   while holding {_lock(edge.before)}, taken at:"
            yield from _indent(edge.before.site)
        yield ""
        yield "other info that might help us debug this:"
        yield ""
        yield from _scenario(edges)
        yield ""
        yield from _why_endless(self.cycle)
        yield ""
        yield " *** DEADLOCK ***"
        yield ""
        yield f"locks held by {self.task}: {', '.join(self.held)}"

    def _recursive(self) -> Iterator[str]:
        (edge,) = self.cycle.edges
        yield from _found_out("WARNING: possible recursive locking detected", self.task, edge)
        yield ""
        yield self.why
        yield ""
        yield " *** DEADLOCK ***"


def _found_out(title: str, task: str, edge: Edge) -> Iterator[str]:
    yield "=" * len(title)
    yield title
    yield "-" * len(title)
    yield f"{task} is trying to acquire lock:"
    yield f" {_lock(edge.after)}, at:"
    yield from _indent(edge.after.site)
    yield ""
    yield "but task is already holding lock:"
    yield f" {_lock(edge.before)}, taken at:"
    yield from _indent(edge.before.site)


def _scenario(edges: tuple[Edge, ...]) -> Iterator[str]:
    yield " Possible unsafe locking scenario:"
    yield ""
    column = "{:<40}".format
    yield "".join(column(f"       CPU{n}") for n in range(len(edges))).rstrip()
    yield "".join(column("       ----") for _ in edges).rstrip()
    takes = [(n, edge.before) for n, edge in enumerate(edges)]
    waits = [(n, edge.after) for n, edge in reversed(list(enumerate(edges)))]
    for place, take in takes + waits:
        verb = "lock" if take.mode is Mode.WRITE else "rlock"
        yield f"{'':{40 * place}}  {verb}({take.key});"


def _why_endless(cycle: Cycle) -> Iterator[str]:
    edges = cycle.edges
    yield " Nobody gets further:"
    yield ""
    for number, edge in enumerate(edges):
        holder = (number + 1) % len(edges)
        held = edges[holder].before
        line = f"  CPU{number} waits for {edge.after.key} {_tag(edge.after)}, held by CPU{holder} {_tag(held)}"
        if behind_writer(edge.after, held):
            seen = "" if held.lock_class not in cycle.unwritten else "; nobody was seen to write it"
            line += f", behind a writer that waits for CPU{holder}{seen}"
        yield line
    for number, edge in enumerate(edges):
        gates = sorted((edge.alone | edge.shared) - {edge.before.lock_class})
        if gates:
            yield f"  CPU{number} holds besides: {', '.join(gates)}"


def _lock(take: Take) -> str:
    return f"({take.key}){_tag(take)} {take.name}"


def _tag(take: Take) -> str:
    return f"{{{take.mode.value}}}"


def _indent(site: Site | None) -> Iterator[str]:
    for line in site.lines() if site is not None else ():
        yield f"       {line}"
