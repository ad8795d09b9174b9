"""Doing what a step says, to the blocks that it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from memhp.abi.paths import MEMORY
from memhp.errors import ScenarioError
from memhp.kernel import Allocation, BlockState, Machine, MemoryBlock
from memhp.scenario.model import Selection, Step
from memhp.units import format_ids

if TYPE_CHECKING:
    from memhp.notifier import NotifierBlock
    from memhp.scenario.behaviours import Holdings
    from memhp.scenario.crew import Crew

__all__ = ["Actor"]

_ALIAS = re.compile(r"\$([A-Za-z_][\w-]*)")


class Actor:
    """Carries out steps on one machine, and remembers the names that steps gave to blocks."""

    def __init__(self, machine: Machine, holdings: Holdings, crew: Crew, callbacks: dict[str, NotifierBlock], file: Path) -> None:
        self._machine = machine
        self._holdings = holdings
        self._crew = crew
        self._callbacks = callbacks
        self._file = file
        self._aliases: dict[str, tuple[int, ...]] = {}
        self._verbs: dict[str, Callable[[Step], str | None]] = {
            "add": self._add,
            "remove": self._remove,
            "online": self._online,
            "offline": self._offline,
            "write": self._write,
            "read": self._read,
            "allocate": self._allocate,
            "free": self._free,
            "pin": self._pin,
            "unpin": self._unpin,
            "register": self._register,
            "unregister": self._unregister,
            "signal": self._signal,
        }

    def act(self, step: Step) -> str:
        """Do the step; gives what there is to say of it, such as the text that was read.

        Raises:
            MemhpError: what the machine raised.
            ScenarioError: the step asks for something that isn't there.
        """
        return self._verbs[step.verb](step) or ""

    def path(self, file: str) -> str:
        """Give the absolute path of a file; relative ones are in the memory directory, ``$name`` is a block."""
        file = _ALIAS.sub(self._first_block, file)
        return file if file.startswith("/") else f"{MEMORY}/{file}"

    def _first_block(self, match: re.Match[str]) -> str:
        ids = self._aliases.get(match[1])
        return f"memory{ids[0]}" if ids else match[0]

    def resolve(self, step: Step, selection: Selection, state: BlockState | None) -> list[int]:
        """Give the ids of the blocks that are meant; of those in ``state`` where the selection is by size or place."""
        if selection.name:
            return self._named(step, selection.name)
        if selection.ids:
            return list(selection.ids)
        among = set(self._named(step, selection.among) if selection.among else self._machine.blocks)
        blocks = [block for number, block in sorted(self._machine.blocks.items()) if number in among]
        fits = [block for block in blocks if _fits(block, selection, state)]
        if selection.size:
            count = -(-selection.size // self._machine.block_size)
            return self._exactly(step, fits, count, from_end=state is BlockState.ONLINE)
        if selection.place:
            return self._exactly(step, fits, selection.count, from_end=selection.place == "last")
        if not fits:
            raise self._bad(step, step.shown, "at least one block; none is there")
        return [block.id for block in fits]

    def _named(self, step: Step, name: str) -> list[int]:
        if name not in self._aliases:
            raise self._bad(step, name, "a name given by an earlier step with `as`")
        return list(self._aliases[name])

    def _exactly(self, step: Step, fits: list[MemoryBlock], count: int, *, from_end: bool) -> list[int]:
        if len(fits) < count:
            raise self._bad(step, step.shown, f"no more than {len(fits)} blocks, as many as there are")
        return [block.id for block in (fits[-count:][::-1] if from_end else fits[:count])]

    def _choose(self, step: Step, selection: Selection, state: BlockState | None = None) -> list[int]:
        chosen = self.resolve(step, selection, state)
        self._remember(step, chosen)
        return chosen

    def _remember(self, step: Step, ids: Iterable[int]) -> None:
        if step.alias:
            self._aliases[step.alias] = tuple(ids)

    def _bad(self, step: Step, value: object, expected: str) -> ScenarioError:
        return ScenarioError(value, str(self._file), step.line, expected, step.verb)

    # -- the verbs

    def _add(self, step: Step) -> str:
        size, at = step.arguments["size"], step.arguments["at"]
        start = self._machine.next_room(size) if at is None else at
        ids = self._machine.add_memory(step.arguments["node"], start, size)
        self._remember(step, ids)
        return f"memory{format_ids(ids)}"

    def _remove(self, step: Step) -> None:
        size = self._machine.block_size
        for part in format_ids(self._choose(step, step.arguments["blocks"])).split(","):
            first, _, last = part.partition("-")
            self._machine.remove_memory(int(first) * size, (int(last or first) - int(first) + 1) * size)

    def _online(self, step: Step) -> str:
        chosen = self._choose(step, step.arguments["blocks"], BlockState.OFFLINE)
        for block in chosen:
            self._machine.device_online(block, step.arguments["type"])
        return f"memory{format_ids(chosen)}"

    def _offline(self, step: Step) -> str:
        chosen = self._choose(step, step.arguments["blocks"], BlockState.ONLINE)
        for block in chosen:
            self._machine.device_offline(block)
        return f"memory{format_ids(chosen)}"

    def _write(self, step: Step) -> None:
        self._machine.tree.write(self.path(step.arguments["file"]), step.arguments["text"])

    def _read(self, step: Step) -> str:
        return self._machine.tree.read(self.path(step.arguments["file"]))

    def _allocate(self, step: Step) -> str:
        wanted = step.arguments["wanted"]
        blocks = self._choose(step, wanted.blocks) if wanted.blocks is not None else None
        allocation = self._holdings.take(wanted, blocks)
        return f"{allocation.nr_pages} pages in memory{format_ids(allocation.blocks)}"

    def _free(self, step: Step) -> None:
        self._held(step)
        self._holdings.free(step.arguments["name"])

    def _pin(self, step: Step) -> None:
        for allocation in self._held(step):
            self._machine.pages.pin(allocation)

    def _unpin(self, step: Step) -> None:
        for allocation in self._held(step):
            self._machine.pages.unpin(allocation)

    def _held(self, step: Step) -> list[Allocation]:
        held = self._holdings.get(step.arguments["name"])
        if not held:
            raise self._unknown_pages(step)
        return held

    def _unknown_pages(self, step: Step) -> ScenarioError:
        return self._bad(step, step.arguments["name"], "the name of pages that are allocated now")

    def _register(self, step: Step) -> None:
        self._machine.memory_chain.register(self._callbacks[step.arguments["name"]])

    def _unregister(self, step: Step) -> None:
        self._machine.memory_chain.unregister(self._callbacks[step.arguments["name"]])

    def _signal(self, step: Step) -> None:
        thread = self._crew.thread(step.arguments["name"])
        if thread is None:
            raise self._bad(step, step.arguments["name"], "a thread that has had a step")
        self._machine.send_signal(thread)


def _fits(block: MemoryBlock, selection: Selection, state: BlockState | None) -> bool:
    if selection.node is not None and block.nid != selection.node:
        return False
    if state is not None and block.state is not state:
        return False
    # A block over several zones can never leave, so nobody who asks for a size or a place means it.
    return block.state is BlockState.OFFLINE or (block.zone is not None and not block.has_holes)
