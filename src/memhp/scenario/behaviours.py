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
    """The allocations of a scenario by name."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._held: dict[str, Allocation] = {}

    def take(self, wanted: Allocate, blocks: list[int] | None) -> Allocation:
        """Allocate under the name; what it held before stays allocated under nobody's name."""
        allocation = self._machine.alloc_pages(
            wanted.nr_pages, wanted.kind, node=wanted.node, blocks=blocks, owner=wanted.owner or wanted.name
        )
        if wanted.pinned:
            self._machine.pages.pin(allocation)
        with self._lock:
            self._held[wanted.name] = allocation
        return allocation

    def get(self, name: str) -> Allocation | None:
        """Give the allocation of that name if it is held."""
        with self._lock:
            return self._held.get(name)

    def free(self, name: str) -> Allocation | None:
        """Give the pages of that name back; None if there are none."""
        with self._lock:
            allocation = self._held.pop(name, None)
        if allocation is not None:
            self._machine.free_pages(allocation)
        return allocation


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
        allocation = holdings.get(held)
        if allocation is not None and set(allocation.blocks) & set(blocks):
            pages = allocation.nr_pages
            holdings.free(held)
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
    except Exception as error:  # a module can raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ScenarioError(spec.call, str(file), spec.line, f"a function that can be imported ({reason})", spec.name) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ScenarioError(spec.call, str(file), spec.line, "something that can be called", spec.name)
    return found
