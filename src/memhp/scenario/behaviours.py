"""From what a scenario says of a callback to a callback."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from memhp.errors import ScenarioError
from memhp.events import MemoryAction, MemoryNotify
from memhp.kernel import Allocation, Machine
from memhp.notifier import NOTIFY_OK, Callback, NotifierBlock, NotifyResult
from memhp.scenario.model import Allocate, CallbackSpec, Reaction

__all__ = ["Holdings", "make_callback"]


class Holdings:
    """The allocations of a scenario by name; a name that is used again holds all of them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._held: dict[str, list[Allocation]] = {}

    def take(self, wanted: Allocate, blocks: list[int] | None) -> Allocation:
        """Allocate under the name."""
        allocation = self._machine.alloc_pages(
            wanted.nr_pages, wanted.kind, node=wanted.node, blocks=blocks, owner=wanted.owner or wanted.name
        )
        if wanted.pinned:
            self._machine.pages.pin(allocation)
        with self._lock:
            self._held.setdefault(wanted.name, []).append(allocation)
        return allocation

    def get(self, name: str) -> list[Allocation]:
        """Give the allocations of that name."""
        with self._lock:
            return list(self._held.get(name, ()))

    def free(self, name: str, blocks: list[int] | None = None) -> int:
        """Give the pages of that name back, or those of its allocations that lie in ``blocks``; says how many pages."""
        with self._lock:
            held = self._held.pop(name, [])
            kept = [] if blocks is None else [one for one in held if not set(one.blocks) & set(blocks)]
            if kept:
                self._held[name] = kept
        given = [one for one in held if one not in kept]
        pages = sum(one.nr_pages for one in given)
        for one in given:
            self._machine.free_pages(one)
        return pages


def make_callback(
    spec: CallbackSpec, file: Path, machine: Machine, holdings: Holdings, did: Callable[[str, str], None]
) -> Callback:
    """Make the callback; ``did(name, what)`` hears what it does besides answering.

    Raises:
        ScenarioError: ``call`` names nothing that can be imported and called.
    """
    if spec.call:
        return _imported(spec, file)
    used: dict[MemoryAction, int] = {}

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        reaction = spec.reactions.get(action)
        if reaction is None:
            return NOTIFY_OK
        used[action] = used.get(action, 0) + 1
        if reaction.times and used[action] > reaction.times:
            return NOTIFY_OK
        return _react(spec.name, reaction, arg, machine, holdings, did)

    return callback


def _react(
    name: str, reaction: Reaction, arg: MemoryNotify, machine: Machine, holdings: Holdings, did: Callable[[str, str], None]
) -> NotifyResult:
    first = machine.block_id_of(arg.start_pfn)
    blocks = list(range(first, first + arg.nr_pages // machine.pages_per_block))
    if reaction.delay:
        time.sleep(reaction.delay)
    for held in reaction.free:
        pages = holdings.free(held, blocks)
        if pages:
            did(name, f"freed {held}, {pages} pages")
    if reaction.allocate is not None:
        allocation = holdings.take(reaction.allocate, blocks)
        did(name, f"allocated {reaction.allocate.name}, {allocation.nr_pages} {allocation.kind.value} pages")
    if reaction.raises:
        raise RuntimeError(reaction.raises)
    return reaction.answer


def _imported(spec: CallbackSpec, file: Path) -> Callback:
    module, _, function = spec.call.partition(":")
    sys.path.insert(0, str(file.resolve().parent))
    try:
        found: Callback = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a module can raise anything while it is imported, and end the program
        reason = f"{type(error).__name__}: {error}"
        raise ScenarioError(spec.call, str(file), spec.line, f"a function that can be imported ({reason})", spec.name) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ScenarioError(spec.call, str(file), spec.line, "something that can be called", spec.name)
    return found
