"""What a transaction left behind that was killed: the account of it, and its undoing."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from memhp.errors import ChangeFailed
from memhp.events import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    MemoryNotify,
)
from memhp.host.block import Block
from memhp.host.change import Transaction
from memhp.host.goal import Goal, Operation
from memhp.host.hooks import Hook, registered
from memhp.host.inventory import Host
from memhp.host.journal import Before, Entry
from memhp.host.outcome import KERNEL_CHOSE, Stuck
from memhp.host.plan import Plan, Step
from memhp.units import PAGE_SIZE, Pfn

__all__ = ["account", "recover"]


def account(host: Host, entry: Entry) -> list[str]:
    """Say of each block that the transaction wrote to how it was and how it is now; () if it had written to none."""
    blocks = {int(block.id): block for block in host.blocks()}
    lines = []
    for number in entry.written:
        before, block = entry.before.get(number), blocks.get(number)
        was = _text(before.state, before.zone) if before else "unknown"
        now = _text(block.state, block.zone or "") if block else "gone"
        lines.append(f"memory{number}: {now}, as before" if was == now else f"memory{number}: was {was}, is {now}")
    return lines


def _text(state: str, zone: str) -> str:
    return f"{state} in {zone}" if state == "online" and zone else state


def recover(host: Host, entry: Entry, *, hooks: Sequence[Hook] = (), timeout: float | None = None) -> list[Stuck]:
    """Undo it: each block that is as the transaction left it goes back to the state and zone that it had.

    First those who heard GOING_* of a block, and not how it ended, hear that. A block that is neither as before nor as the
    transaction would have left it has been changed by somebody else since, and is left alone. Gives what could not be undone;
    nothing is left if all is as before.

    Raises:
        HostError: the machine's files can't be read, or may not be written.
    """
    operation = Operation(entry.operation) if entry.operation else Operation.OFFLINE
    blocks = {int(block.id): block for block in host.blocks()}
    _tell_the_end(host, entry, operation, blocks, hooks)
    steps = []
    for number in reversed(entry.written):
        before, block = entry.before.get(number), blocks.get(number)
        if before is not None and block is not None and block.state == operation.value != before.state:
            steps.append(_back(block, before))
    if not steps:
        return []
    other = Operation.ONLINE if operation is Operation.OFFLINE else Operation.OFFLINE
    plan = Plan(other, Goal(entry.goal, ids=tuple(step.block.id for step in steps)), steps[0].block.size, tuple(steps))
    transaction = Transaction(host.tree, plan, chain=lambda: host.memory_chain, timeout=timeout, partial=True, hooks=hooks)
    with contextlib.suppress(ChangeFailed):
        transaction.run()
    return _not_as_before(host, entry, plan, transaction)


def _not_as_before(host: Host, entry: Entry, plan: Plan, transaction: Transaction) -> list[Stuck]:
    blocks = {int(block.id): block for block in host.blocks()}
    failed = {attempt.block: attempt.text for attempt in (transaction.outcome.attempts if transaction.outcome else ())}
    found = []
    for number in plan.ids:
        before, block = entry.before[number], blocks.get(number)
        was, now = _text(before.state, before.zone), _text(block.state, block.zone or "") if block else "gone"
        if was != now:
            found.append(Stuck(number, was, now, failed.get(number, KERNEL_CHOSE)))
    return found


def _back(block: Block, before: Before) -> Step:
    if before.state != "online":
        return Step(block, before.node, before.zone, "offline")
    word = {"Movable": "online_movable", "": "online"}.get(before.zone, "online_kernel")
    return Step(block, before.node, before.zone, word)


def _tell_the_end(host: Host, entry: Entry, operation: Operation, blocks: dict[int, Block], hooks: Sequence[Hook]) -> None:
    done, cancel = (MEM_OFFLINE, MEM_CANCEL_OFFLINE) if operation is Operation.OFFLINE else (MEM_ONLINE, MEM_CANCEL_ONLINE)
    with registered(host.memory_chain, hooks):
        for number in entry.asked:
            block = blocks.get(number)
            if block is None:
                continue
            action: Any = done if block.state == operation.value else cancel
            for hook in hooks:
                hook.about(block, entry.before[number].node if number in entry.before else 0, block.zone or "")
            host.memory_chain.call(action, MemoryNotify(Pfn(block.start // PAGE_SIZE), block.size // PAGE_SIZE))
