"""Those who take part in a change: callbacks of a chain, and programs; they are asked before, and told how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from memhp.abi.proc import ZONEINFO, parse_zoneinfo
from memhp.abi.tree import Tree
from memhp.errors import InvalidInput
from memhp.events import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    NO_CHANGE,
    MemoryNotify,
)
from memhp.host.goal import Operation
from memhp.host.hooks import Hook
from memhp.host.plan import Step
from memhp.notifier import NotifierChain, NotifyResult
from memhp.units import Pfn

__all__ = ["Parties", "Refusal"]

_ACTIONS = {
    Operation.OFFLINE: (MEM_GOING_OFFLINE, MEM_OFFLINE, MEM_CANCEL_OFFLINE),
    Operation.ONLINE: (MEM_GOING_ONLINE, MEM_ONLINE, MEM_CANCEL_ONLINE),
}


class Refusal(NamedTuple):
    """Who refused, with which answer, and why; and the errno that it carries."""

    errno: int
    text: str


class Parties:
    """Everybody on a chain, and the programs among them.

    Args:
        tree: the machine.
        chain: who is asked and told; the programs are on it already.
        hooks: those programs.
        page_size: bytes.
    """

    def __init__(self, tree: Tree, chain: NotifierChain, hooks: Sequence[Hook], page_size: int) -> None:
        self._tree = tree
        self._chain = chain
        self._hooks = hooks
        self._page_size = page_size
        self._args: dict[int, MemoryNotify] = {}

    def ask(self, step: Step, operation: Operation) -> Refusal | None:
        """Call GOING_*; each call of this is to be followed by one of :meth:`tell`, also after a refusal."""
        going, _, _ = _ACTIONS[operation]
        arg = self._args[step.block.id] = self._arg(step, operation)
        answer = self._call(step, going, arg)
        if answer.errno <= 0:
            return None
        cause = f": {answer.cause}" if answer.cause is not None else ""
        return Refusal(answer.errno, f"{answer.callback} refused {going.name} with {answer}{cause}")

    def tell(self, step: Step, operation: Operation, *, happened: bool) -> None:
        """Say how it ended, with the same argument."""
        _, done, cancel = _ACTIONS[operation]
        arg = self._args.pop(step.block.id, None)
        if arg is not None:  # else it was interrupted before anybody was asked
            self._call(step, done if happened else cancel, arg)

    def _call(self, step: Step, action: Any, arg: MemoryNotify) -> NotifyResult:
        for hook in self._hooks:
            hook.about(step.block, step.node, step.zone)
        return self._chain.call(action, arg)

    def _arg(self, step: Step, operation: Operation) -> MemoryNotify:
        pages = step.block.size // self._page_size
        normal, any_memory = self._nids(step, operation, pages)
        return MemoryNotify(Pfn(step.block.start // self._page_size), pages, normal, any_memory)

    def _nids(self, step: Step, operation: Operation, pages: int) -> tuple[int, int]:
        # mm/memory_hotplug.c, node_states_check_changes_online() and _offline(), with what zoneinfo says is present.
        try:
            zones = [zone for zone in parse_zoneinfo(self._tree.read(ZONEINFO)) if zone.node == step.node]
        except (OSError, InvalidInput):
            return NO_CHANGE, NO_CHANGE
        kernel = sum(zone.present for zone in zones if zone.name not in {"Movable", "Device"})
        movable = sum(zone.present for zone in zones if zone.name == "Movable")
        in_kernel = step.zone != "Movable"
        if operation is Operation.ONLINE:
            changes = in_kernel and kernel == 0, kernel + movable == 0
        else:
            changes = in_kernel and pages >= kernel, pages >= kernel + movable
        return step.node if changes[0] else NO_CHANGE, step.node if changes[1] else NO_CHANGE
