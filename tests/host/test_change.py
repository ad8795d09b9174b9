"""Transactions: all that was asked for, or nothing, or an exact account; and everybody who was asked hears how it ended."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.captured import block, words
from memhp import (
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    NOTIFY_BAD,
    NOTIFY_OK,
    DirTree,
    InvalidInput,
    Machine,
    NotifyResult,
    PageKind,
    notifier_from_errno,
)
from memhp.errors import ChangeFailed, HostError
from memhp.host import Host
from memhp.host.change import Outcome, Result, Transaction
from memhp.host.plan import Plan
from memhp.host.writer import Written

Boot = Callable[..., Machine]


def states(machine: Machine) -> list[str]:
    """Each block with its state and zone, as its files say."""
    return [f"{block.id} {block.zone if block.online else block.state}" for block in Host(machine.tree).blocks()]


def listen(host: Host) -> list[str]:
    """Note what the chain of userland is told."""
    heard: list[str] = []

    def note(block: Any, action: Any, arg: Any) -> NotifyResult:
        nids = f" ({arg.status_change_nid_normal},{arg.status_change_nid})" if arg.status_change_nid >= 0 else ""
        heard.append(f"{action.name} {arg.start_pfn // 32768}{nids}")
        return NOTIFY_OK

    host.hotplug_memory_notifier(note, 100)
    return heard


@pytest.fixture
def machine(boot: Boot) -> Machine:
    """Node 0 has blocks 0 to 7, node 1 8 to 11 in ZONE_MOVABLE."""
    machine = boot(["1GiB", "512MiB"])
    for number in range(8, 12):
        machine.device_offline(number)
        machine.device_online(number, "online_movable")
    return machine


def failed(host: Host, plan: Plan, **wishes: Any) -> Outcome:
    with pytest.raises(ChangeFailed) as caught:
        host.apply(plan, **wishes)
    outcome: Outcome = caught.value.outcome
    return outcome


def test_everybody_is_asked_first_and_then_told(machine: Machine) -> None:
    """GOING of all blocks before the first write; the end of each right after its own."""
    host = Host(machine.tree)
    heard = listen(host)

    outcome = host.apply(host.plan("offline", "256M"))

    assert (outcome.result, outcome.changed, str(outcome)) == (Result.DONE, (11, 10), "memory10-11 offline")
    assert heard == ["MEM_GOING_OFFLINE 11", "MEM_GOING_OFFLINE 10", "MEM_OFFLINE 11", "MEM_OFFLINE 10"]
    assert states(machine)[8:] == ["8 Movable", "9 Movable", "10 offline", "11 offline"]


@pytest.mark.fact("2.5", "2.6")
def test_callbacks_hear_which_node_changes(machine: Machine) -> None:
    """As in the kernel: the node that loses its last memory, or gets its first."""
    host = Host(machine.tree)
    host.apply(host.plan("offline", "8-10"))
    heard = listen(host)

    host.apply(host.plan("offline", "11"))
    host.apply(host.plan("online", "8", zone="kernel"))

    assert heard == ["MEM_GOING_OFFLINE 11 (-1,1)", "MEM_OFFLINE 11 (-1,1)", "MEM_GOING_ONLINE 8 (1,1)", "MEM_ONLINE 8 (1,1)"]


def test_a_refusal_ends_it_before_anything_is_written(machine: Machine) -> None:
    """Everybody who was asked hears the cancellation; the machine heard nothing at all."""
    host = Host(machine.tree)
    heard = listen(host)
    calls: list[Any] = []
    machine.memory_chain.observe(calls.append)

    @host.hotplug_memory_notifier(priority=5)
    def guard(block: Any, action: Any, arg: Any) -> NotifyResult:
        return notifier_from_errno(-errno.ENOMEM) if action is MEM_GOING_OFFLINE and arg.start_pfn == 9 * 32768 else NOTIFY_OK

    outcome = failed(host, host.plan("offline", "8-9"))

    assert outcome.result is Result.UNCHANGED
    assert [(one.block, one.errno, one.asked) for one in outcome.attempts] == [(9, errno.ENOMEM, True)]
    assert "guard (priority 5) refused MEM_GOING_OFFLINE with ENOMEM" in outcome.reason
    assert heard == ["MEM_GOING_OFFLINE 9", "MEM_CANCEL_OFFLINE 9"]
    assert calls == []


def test_a_callback_that_raises_refuses(machine: Machine) -> None:
    """What it raised stands in the reason."""
    host = Host(machine.tree)

    def broken(block: Any, action: Any, arg: Any) -> NotifyResult:
        raise RuntimeError("no idea")

    host.hotplug_memory_notifier(broken)
    assert (
        "broken (priority 0) refused MEM_GOING_OFFLINE with NOTIFY_BAD: no idea" in failed(host, host.plan("offline", "9")).reason
    )


def test_another_block_stands_in_for_one_that_is_refused(machine: Machine) -> None:
    """For an amount any block will do."""
    host = Host(machine.tree)
    host.hotplug_memory_notifier(lambda block, action, arg: NOTIFY_BAD if arg.start_pfn == 11 * 32768 else NOTIFY_OK)

    outcome = host.apply(host.plan("offline", "256M"))

    assert (outcome.result, outcome.changed, outcome.vain) == (Result.DONE, (9, 10), 0)


def test_another_block_stands_in_for_one_that_fails(machine: Machine) -> None:
    """A page of the kernel's that came after the plan was made."""
    host = Host(machine.tree)
    plan = host.plan("offline", "256M", node=0)
    assert plan.ids == (7, 6)
    machine.pages.alloc(1, PageKind.SLAB, blocks=[7])

    outcome = host.apply(plan)

    assert (outcome.changed, outcome.vain) == ((5, 6), 1)
    assert str(outcome.attempts[0]).startswith("memory7: [EBUSY] memory7: page 0x38000")
    assert outcome.attempts[0].evidence == ("no: slab page at pfn 0x38000",)


def test_what_was_done_is_undone_in_reverse_order_to_its_zone(machine: Machine) -> None:
    """Named blocks: one of three fails, so the others come back, each to the zone that it had."""
    host = Host(machine.tree)
    plan = host.plan("offline", "5,6,11")
    assert plan.ids == (11, 6, 5)
    before = states(machine)
    machine.pages.alloc(1, PageKind.SLAB, blocks=[5])
    heard = listen(host)

    outcome = failed(host, plan)

    assert (outcome.result, outcome.changed, outcome.undone, outcome.stuck) == (Result.UNCHANGED, (), (6, 11), ())
    assert states(machine) == before
    assert heard[3:] == [
        "MEM_OFFLINE 11",
        "MEM_OFFLINE 6",
        "MEM_CANCEL_OFFLINE 5",
        "MEM_GOING_ONLINE 6",
        "MEM_ONLINE 6",
        "MEM_GOING_ONLINE 11",
        "MEM_ONLINE 11",
    ]
    assert str(outcome).endswith("; no block is changed; memory6,11 put back")


@pytest.mark.fact("6.2")
def test_a_zone_that_the_kernel_does_not_give_back_is_accounted_for(machine: Machine) -> None:
    """The zone's span ended with the block, and shrank; now the kernel puts the block elsewhere, and the outcome says so."""
    host = Host(machine.tree)
    plan = host.plan("offline", "6-7")
    machine.pages.alloc(1, PageKind.SLAB, blocks=[6])

    outcome = failed(host, plan)

    assert outcome.result is Result.PARTLY
    assert [str(one) for one in outcome.stuck] == [
        "memory7 was online in DMA32 and is online in Normal: the kernel itself chooses among its zones, by what each spans now"
    ]


def test_a_part_is_kept_if_that_is_welcome(machine: Machine) -> None:
    """The same with partial: two of three, and the result says so."""
    host = Host(machine.tree)
    plan = host.plan("offline", "6,7,11")
    machine.pages.alloc(1, PageKind.SLAB, blocks=[7])

    outcome = host.apply(plan, partial=True)

    assert (outcome.result, outcome.changed, outcome.undone) == (Result.PARTLY, (11, 6), ())


def test_a_partial_change_of_which_nothing_worked_has_failed(machine: Machine) -> None:
    """Nothing is no part."""
    host = Host(machine.tree)
    plan = host.plan("offline", "7")
    machine.pages.alloc(1, PageKind.SLAB, blocks=[7])

    assert failed(host, plan, partial=True).result is Result.UNCHANGED


def test_who_may_not_write_is_told_before_anybody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, rather than for each block that could stand in."""
    for number in range(3):
        block(tmp_path, number)
    words(tmp_path, {0: [], 1: [], 2: []})
    host = Host(DirTree(tmp_path, writable=True))
    heard = listen(host)
    plan = host.plan("offline", "128MiB", keep_free=0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for another user than root, whom the tests need not have

    with pytest.raises(HostError, match=r"/memory2/state: may not be written; be root") as caught:
        host.apply(plan)

    assert (caught.value.errno, heard) == (errno.EACCES, [])


@pytest.mark.fact("7.5")
def test_a_time_limit_ends_what_would_never_end(machine: Machine) -> None:
    """A pinned page: the machine gives up with EINTR, the block is online as before, and so are the others."""
    host = Host(machine.tree)
    pinned = machine.pages.alloc(3, PageKind.MOVABLE, blocks=[8], owner="rdma")
    machine.pages.pin(pinned)
    before = states(machine)

    outcome = failed(host, host.plan("offline", "8-9"), timeout=0.05)

    assert (outcome.result, outcome.undone) == (Result.UNCHANGED, (9,))
    assert [(one.block, one.errno) for one in outcome.attempts] == [(8, errno.EINTR)]
    assert outcome.attempts[0].evidence == ("costs 3 pages",)
    assert states(machine) == before


def test_bringing_online_and_undoing_it(machine: Machine) -> None:
    """What can't all come online goes offline again."""
    host = Host(machine.tree)
    host.apply(host.plan("offline", "8-11"))

    def guard(block: Any, action: Any, arg: Any) -> NotifyResult:
        return NOTIFY_BAD if action is MEM_GOING_ONLINE and arg.start_pfn == 10 * 32768 else NOTIFY_OK

    machine.hotplug_memory_notifier(guard)
    outcome = failed(host, host.plan("online", "8-11", zone="movable"))

    assert (outcome.result, outcome.undone) == (Result.UNCHANGED, (9, 8))
    assert [(one.block, one.word, one.errno) for one in outcome.attempts] == [(10, "online_movable", errno.EPERM)]
    assert states(machine)[8:] == ["8 offline", "9 offline", "10 offline", "11 offline"]

    found = host.apply(host.plan("online", "256M", zone="movable"))
    assert (found.result, found.changed) == (Result.DONE, (8, 9))
    assert states(machine)[8:] == ["8 Movable", "9 Movable", "10 offline", "11 offline"]


def test_what_can_t_be_undone_is_accounted_for(machine: Machine) -> None:
    """Somebody refuses to let it come back: the outcome says which block, how it was and how it is, and why."""
    host = Host(machine.tree)
    plan = host.plan("offline", "6,11")
    machine.pages.alloc(1, PageKind.SLAB, blocks=[6])

    def guard(block: Any, action: Any, arg: Any) -> NotifyResult:
        return NOTIFY_BAD if action is MEM_GOING_ONLINE else NOTIFY_OK

    machine.hotplug_memory_notifier(guard)
    outcome = failed(host, plan)

    assert outcome.result is Result.PARTLY
    assert [(one.block, one.before, one.now) for one in outcome.stuck] == [(11, "online in Movable", "offline")]
    assert "guard" in outcome.stuck[0].why


def test_blocks_that_somebody_else_changed_meanwhile(machine: Machine) -> None:
    """A named block is fine if somebody else has done it, and is not undone; for an amount another block is taken."""
    host = Host(machine.tree)
    named, amount = host.plan("offline", "9,11"), host.plan("offline", "128M")
    assert amount.ids == (11,)
    machine.device_offline(11)

    outcome = host.apply(named)
    assert (outcome.result, outcome.changed, outcome.others) == (Result.DONE, (9,), (11,))
    assert host.apply(amount).changed == (10,)


def test_a_block_that_is_gone(machine: Machine) -> None:
    """It was removed between plan and change."""
    machine.add_memory(1, 4 << 30, 128 << 20)
    host = Host(machine.tree)
    plan = host.plan("online", "32")
    machine.remove_memory(4 << 30, 128 << 20)

    assert failed(host, plan).reason == "memory32: somebody else changed it: it is gone now"


class Told:
    """A writer that does what it is told, and writes to the machine otherwise."""

    def __init__(self, machine: Machine, answers: dict[str, Any]) -> None:
        self._machine = machine
        self._answers = answers

    def write(self, path: str, word: str, seconds: float | None) -> Written:
        answer = self._answers.pop(path.split("/")[-2], "write")
        if answer in {"write", "write and interrupt"}:
            self._machine.tree.write(path, word)
        if answer in {"interrupt", "write and interrupt"}:
            raise KeyboardInterrupt
        return answer if isinstance(answer, Written) else Written(0, 0.1)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("moment", ["interrupt", "write and interrupt"])
def test_ctrl_c_in_the_middle_undoes_what_was_done(machine: Machine, moment: str) -> None:
    """Whether the write was ended or came through: the block's state decides, and everybody hears how it ended."""
    host = Host(machine.tree)
    before = states(machine)
    heard = listen(host)
    plan = host.plan("offline", "8-11")
    transaction = Transaction(machine.tree, plan, chain=lambda: host.memory_chain, writer=Told(machine, {"memory9": moment}))

    with pytest.raises(KeyboardInterrupt):
        transaction.run()

    assert transaction.outcome is not None
    assert transaction.outcome.result is Result.UNCHANGED
    assert transaction.outcome.reason == "interrupted"
    assert states(machine) == before
    assert sorted(line.split()[1] for line in heard if "GOING" in line) == sorted(
        line.split()[1] for line in heard if "GOING" not in line
    )


def test_ctrl_c_in_a_callback(machine: Machine) -> None:
    """It counts as no refusal; all hear the cancellation."""
    host = Host(machine.tree)
    heard = listen(host)

    def impatient(block: Any, action: Any, arg: Any) -> NotifyResult:
        if action is MEM_GOING_OFFLINE and arg.start_pfn == 10 * 32768:
            raise KeyboardInterrupt
        return NOTIFY_OK

    host.hotplug_memory_notifier(impatient)
    with pytest.raises(KeyboardInterrupt):
        host.apply(host.plan("offline", "10-11"))
    assert heard == ["MEM_GOING_OFFLINE 11", "MEM_GOING_OFFLINE 10", "MEM_CANCEL_OFFLINE 11", "MEM_CANCEL_OFFLINE 10"]


def test_a_write_that_is_taken_and_has_no_effect(machine: Machine) -> None:
    """The state is looked at after each write, not only the answer."""
    host = Host(machine.tree)
    plan = host.plan("offline", "8")
    writer = Told(machine, {"memory8": Written(0, 0.1)})
    with pytest.raises(ChangeFailed, match="the write was taken, but it is online: somebody changed it back"):
        Transaction(machine.tree, plan, chain=lambda: host.memory_chain, writer=writer).run()


def test_an_impossible_plan_is_refused(machine: Machine) -> None:
    """Its problems are the reason."""
    host = Host(machine.tree)
    outcome = failed(host, host.plan("offline", "0"))
    assert outcome.result is Result.UNCHANGED
    assert outcome.reason.startswith("memory0: no: it lies in several zones")


def test_nothing_to_do_is_done(machine: Machine) -> None:
    """Named blocks that are so already."""
    host = Host(machine.tree)
    assert str(host.apply(host.plan("online", "8-9"))) == "nothing to do: all of it is online already"


def test_a_copy_is_not_changed(machine: Machine, tmp_path: Any) -> None:
    """The error says which, and nothing is tried."""
    plan = Host(machine.tree).plan("offline", "8")
    with pytest.raises(HostError, match="can't be changed"):
        Host(DirTree(tmp_path)).apply(plan)


def test_a_time_limit_is_a_number_of_seconds(machine: Machine) -> None:
    """0 and less are refused."""
    with pytest.raises(InvalidInput, match="timeout: 0 is not valid"):
        Host(machine.tree).apply(Host(machine.tree).plan("offline", "8"), timeout=0)


def test_the_floor_holds_while_it_runs(machine: Machine) -> None:
    """Somebody took much memory after the plan was made."""
    host = Host(machine.tree)
    plan = host.plan("offline", "256M", node=1, keep_free=900 << 20)
    assert plan.feasible
    machine.pages.alloc(100_000, PageKind.ANONYMOUS, node=0)

    assert "the floor would be passed" in failed(host, plan).reason


BLOCKS = range(8, 14)


@settings(deadline=None, max_examples=60)
@given(
    goal=st.one_of(st.sampled_from(["128M", "384M", "640M"]), st.sets(st.sampled_from(BLOCKS), min_size=1).map(list)),
    stays=st.sets(st.sampled_from(BLOCKS)),
    refused=st.sets(st.sampled_from(BLOCKS)),
    kernel_refuses=st.sets(st.sampled_from(BLOCKS)),
    movable=st.sets(st.sampled_from(BLOCKS)),
    partial=st.booleans(),
)
def test_all_or_nothing_or_exactly_a_part(
    goal: Any, stays: set[int], refused: set[int], kernel_refuses: set[int], movable: set[int], *, partial: bool
) -> None:
    """Whoever refuses and whatever stays: the goal is reached, or all is as before; each GOING has one end; nothing is lost."""
    machine = Machine.boot(["1GiB", "768MiB"])
    for number in sorted(movable):
        machine.device_offline(number)
        machine.device_online(number, "online_movable")
    host = Host(machine.tree)
    text = goal if isinstance(goal, str) else ",".join(map(str, sorted(goal)))
    plan = host.plan("offline", text, node=1 if isinstance(goal, str) else None, keep_free=0)
    before = states(machine)
    for number in sorted(stays - movable):
        machine.pages.alloc(1, PageKind.SLAB, blocks=[number])
    heard = listen(host)
    host.hotplug_memory_notifier(
        lambda block, action, arg: NOTIFY_BAD if action is MEM_GOING_OFFLINE and arg.start_pfn // 32768 in refused else NOTIFY_OK
    )
    machine.hotplug_memory_notifier(
        lambda block, action, arg: (
            NOTIFY_BAD if action is MEM_GOING_OFFLINE and arg.start_pfn // 32768 in kernel_refuses else NOTIFY_OK
        )
    )
    try:
        outcome = host.apply(plan, partial=partial)
    except ChangeFailed as error:
        outcome = error.outcome
    good = set(BLOCKS) - refused - kernel_refuses - (stays - movable)
    wanted = set(plan.ids) if plan.exact else None
    number = len(plan.steps)

    possible = wanted <= good if wanted is not None else len(good) >= number
    assert (outcome.result is Result.DONE) == possible
    if outcome.result is Result.UNCHANGED:
        assert states(machine) == before
    else:
        assert set(outcome.changed) <= good
        now = {f"{number}": "offline" for number in outcome.changed}
        now |= {f"{one.block}": one.now.removeprefix("online in ") for one in outcome.stuck}
        assert states(machine) == [f"{line.split()[0]} {now.get(line.split()[0], line.split()[1])}" for line in before]
        assert {one.now for one in outcome.stuck} <= {"online in Normal"}  # fact 6.2
    if partial and not possible and not plan.problems:
        assert set(outcome.changed) == (wanted & good if wanted is not None else good)
    asked = [line.split()[1] for line in heard if "GOING" in line]
    ended = [line.split()[1] for line in heard if "GOING" not in line]
    assert sorted(asked) == sorted(ended)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 600))
def test_an_interrupt_at_any_line_is_accounted_for(line: int) -> None:
    """Ctrl-C before any line of the transaction's own code: nothing is changed that the outcome doesn't name."""
    import sys

    machine = Machine.boot(["1GiB", "512MiB"])
    host = Host(machine.tree)
    before = states(machine)
    transaction = host.transaction(host.plan("offline", "8-10"))
    left = [line]

    def trace(frame: Any, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.endswith("host/change.py") or frame.f_code.co_name == "_concluded":
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        transaction.run()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    outcome = transaction.outcome
    if outcome is None:
        assert states(machine) == before
        return
    now = {f"{number}": "offline" for number in outcome.changed}
    now |= {f"{one.block}": one.now.removeprefix("online in ") for one in outcome.stuck}
    assert states(machine) == [f"{text.split()[0]} {now.get(text.split()[0], text.split()[1])}" for text in before]
