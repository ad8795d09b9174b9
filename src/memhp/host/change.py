"""Carrying out a plan as one transaction: everything that was asked for, or nothing, or an exact account of what holds.

First everybody is asked: callbacks and hooks hear GOING_* of each block, and a refusal ends it before anything was written.
Then block by block. A block that fails is replaced by the plan's next best; where blocks were named there is none. If the goal
can't be reached, what was done is undone in reverse order, each block to the zone that it had, unless a part is welcome. Each
call of GOING_* is followed by one that says how it ended.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypedDict

from memhp.abi.paths import MEMORY
from memhp.abi.proc import MEMINFO, parse_meminfo
from memhp.abi.tree import DirTree, Tree
from memhp.errors import ChangeFailed, HostError, InvalidInput
from memhp.host.evidence import KernelLog, culprits
from memhp.host.goal import Operation
from memhp.host.journal import Before, Journal
from memhp.host.outcome import KERNEL_CHOSE, Attempt, Outcome, Result, Stuck
from memhp.host.plan import Plan, Step
from memhp.host.writer import Writer, Written, writer_for

if TYPE_CHECKING:
    from os import PathLike

    from memhp.host.hooks import Hook
    from memhp.host.parties import Parties
    from memhp.notifier import NotifierChain

__all__ = ["Attempt", "Outcome", "Result", "Stuck", "Transaction", "Wishes"]

_EXPLAINED = frozenset({errno.EBUSY, errno.EINTR})

Progress = Callable[[str, dict[str, Any]], None]
"""Hears what happens: ``ask``, ``write``, ``done``, ``failed``, ``undo`` with the block's id and more."""


class Wishes(TypedDict, total=False):
    """How to carry a plan out; see :meth:`memhp.host.Host.apply`."""

    timeout: float | None
    partial: bool
    hooks: Sequence[Hook]
    journal: str | PathLike[str] | None
    progress: Progress | None


class _GiveUp(Exception):
    """The goal can't be reached."""


class _Done:
    # What a transaction has come to.
    def __init__(self) -> None:
        self.changed: list[Step] = []
        self.undone: list[int] = []
        self.stuck: list[Stuck] = []
        self.attempts: list[Attempt] = []
        self.others: list[int] = []


class Transaction:
    """One plan being carried out; :meth:`run` once.

    Args:
        tree: the machine.
        plan: what to do.
        chain: gives the chain of those who are asked and told; None while there is nobody.
        timeout: seconds for each write; None waits for ever.
        partial: whether a part of the goal is welcome.
        hooks: programs to ask and tell, after those of the chain with a priority of at least 0 that are there already.
        journal: the directory to note it in, None: nowhere.
        progress: hears what happens.
        explain: says of a block why it did not go; None: not asked.
        writer: writes; made for the tree if not given.

    Raises:
        InvalidInput: a limit that is no number of seconds.
    """

    def __init__(
        self,
        tree: Tree,
        plan: Plan,
        *,
        chain: Callable[[], NotifierChain | None],
        timeout: float | None = None,
        partial: bool = False,
        hooks: Sequence[Hook] = (),
        journal: str | PathLike[str] | None = None,
        progress: Progress | None = None,
        explain: Callable[[int], str] | None = None,
        writer: Writer | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise InvalidInput(timeout, "timeout", "a number of seconds above 0")
        self.tree = tree
        self.plan = plan
        self._chain = chain
        self._timeout = timeout
        self._partial = partial
        self._hooks = tuple(hooks)
        self._directory = journal
        self._journal: Journal | None = None
        self._progress = progress or (lambda what, details: None)
        self._explain = explain
        self._writer = writer or writer_for(tree)
        self._log = KernelLog(tree)
        self._done = _Done()
        self._begun: float | None = None
        self._seconds = 0.0
        self._reason = ""
        self._asked: dict[int, tuple[Step, Operation, Parties | None]] = {}
        self._taking_part: Parties | None = None
        self._flying: tuple[Step, Operation, bool] | None = None  # a write whose outcome is not noted yet

    def run(self) -> Outcome:
        """Carry it out; what came of it is also in ``outcome``, whatever happens.

        Raises:
            ChangeFailed: the goal isn't reached, and a part of it isn't welcome or there is none; ``outcome`` says what holds.
            HostError: the tree is a copy, or may not be written; nobody was asked.
            BaseException: Ctrl-C and the like, after what was done is undone.
        """
        _check_writable(self.tree, self.plan)
        self._begun = time.monotonic()
        if self.plan.problems:
            self._reason = "; ".join(self.plan.problems)
            raise ChangeFailed(self.outcome)
        try:
            self._begin()
            with self._registered():
                self._reason = self._carry_out()
        finally:
            self._seconds = time.monotonic() - self._begun
            self._writer.close()
            self._log.close()
            if self._journal is not None:
                self._journal.end()
        outcome = self._concluded()
        if outcome.result is Result.DONE or (outcome.result is Result.PARTLY and self._partial and not outcome.stuck):
            return outcome
        raise ChangeFailed(outcome)

    @property
    def outcome(self) -> Outcome | None:
        """What came of it so far, also after an exception; None if it has not begun."""
        return None if self._begun is None else self._concluded()

    # -- the way there, and back

    @property
    def _reached(self) -> bool:
        done = len(self._held()) + (len(self._done.others) if self.plan.exact else 0)
        return done >= len(self.plan.steps)

    def _held(self) -> list[Step]:
        # What is changed and neither undone nor stuck.
        settled = {*self._done.undone, *(block.block for block in self._done.stuck)}
        return [step for step in self._done.changed if step.block.id not in settled]

    def _begin(self) -> None:
        if self._directory is None:
            return
        self._journal = Journal(self._directory)
        self._journal.begin(self.plan.operation.value, self.plan.goal.text)
        for step in self.plan.steps:
            self._journal.block(_before(step))

    def _registered(self) -> AbstractContextManager[None]:
        chain = self._chain() if self._hooks else None
        if chain is None:
            return nullcontext()
        from memhp.host.hooks import registered  # noqa: PLC0415 - only where there are programs

        return registered(chain, self._hooks)

    def _carry_out(self) -> str:
        # Gives why the goal wasn't reached, or ''.
        try:
            self._forward()
        except _GiveUp as why:
            self._backward()
            return str(why)
        except BaseException:
            self._backward()
            raise
        return ""

    def _forward(self) -> None:
        spare = iter(self.plan.spare)
        operation = self.plan.operation
        ready = [step if self._ask(step, operation) else self._another(spare) for step in self.plan.steps]
        for step in ready:
            chosen = step
            while chosen is not None and not self._change(chosen):
                chosen = self._another(spare)
        if not self._reached:
            raise _GiveUp(self._last_words())

    def _another(self, spare: Iterator[Step]) -> Step | None:
        # The next best block that nobody objects to.
        if self.plan.exact:
            if self._partial:
                return None
            raise _GiveUp(self._last_words())
        for step in spare:
            if self._journal is not None:
                self._journal.block(_before(step))
            if self._ask(step, self.plan.operation):
                return step
        if self._partial:
            return None
        raise _GiveUp(self._last_words())

    def _last_words(self) -> str:
        return str(self._done.attempts[-1]) if self._done.attempts else "the goal can't be reached"

    def _backward(self) -> None:
        self._land()
        for number in list(self._asked):
            self._tell(number, happened=False)
        if self._partial:
            return
        for step in reversed(self._done.changed):
            try:
                self._undo(step)
            except BaseException:
                self._land()
                for left in reversed(self._held()):
                    self._account(left, "putting it back was interrupted")
                raise

    def _undo(self, step: Step) -> None:
        back = _reverse(step, self.plan.operation)
        other = Operation.ONLINE if self.plan.operation is Operation.OFFLINE else Operation.OFFLINE
        self._progress("undo", {"block": step.block.id})
        came = self._ask(back, other, undo=True) and self._write(back, other, undo=True)
        self._account(step, KERNEL_CHOSE if came else self._done.attempts[-1].text)

    def _account(self, step: Step, why: str) -> None:
        now = self._describe(step.block.id)
        if now == _was(step):
            self._done.undone.append(step.block.id)
            self._note("undone", step)
        else:
            self._done.stuck.append(Stuck(step.block.id, _was(step), now, why))

    # -- one block

    def _ask(self, step: Step, operation: Operation, *, undo: bool = False) -> bool:
        number = step.block.id
        parties = self._parties()
        self._asked[number] = step, operation, parties
        self._note("asked", step)
        self._progress("ask", {"block": number})
        refusal = parties.ask(step, operation) if parties is not None else None
        if refusal is None:
            return True
        self._tell(number, happened=False)
        self._fail(Attempt(number, step.word, refusal.errno, refusal.text, undo=undo, asked=True))
        return False

    def _tell(self, number: int, *, happened: bool) -> None:
        step, operation, parties = self._asked.pop(number)
        try:
            if parties is not None:
                parties.tell(step, operation, happened=happened)
        finally:
            self._note("told", step)

    def _parties(self) -> Parties | None:
        chain = self._chain()
        if chain is None:
            return None
        if self._taking_part is None:
            from memhp.host.parties import Parties  # noqa: PLC0415 - mostly nobody takes part

            self._taking_part = Parties(self.tree, chain, self._hooks, self.plan.page_size)
        return self._taking_part

    def _change(self, step: Step) -> bool:
        number = step.block.id
        if number not in self._asked:
            return False
        if self.plan.operation is Operation.OFFLINE and (short := self._too_little()):
            self._tell(number, happened=False)
            self._fail(Attempt(number, step.word, errno.ENOMEM, short, asked=True))
            raise _GiveUp(short)
        state = self._state(number)
        if state != self.plan.operation.from_state:
            there = state == self.plan.operation.value
            self._tell(number, happened=there)
            if there:
                self._done.others.append(number)
            self._fail(
                Attempt(number, step.word, errno.EBUSY, f"somebody else changed it: it is {state or 'gone'} now", asked=True)
            )
            return there and self.plan.exact
        return self._write(step, self.plan.operation)

    def _write(self, step: Step, operation: Operation, *, undo: bool = False) -> bool:
        number = step.block.id
        self._note("write", step)
        self._progress("write", {"block": number, "word": step.word})
        self._log.new()
        self._flying = step, operation, undo
        written = self._writer.write(f"{MEMORY}/memory{number}/state", step.word, self._timeout)
        return self._judge(step, operation, written, undo=undo)

    def _land(self) -> None:
        # An exception came between a write and the note of what came of it: the block itself says that.
        if self._flying is None:
            return
        (step, operation, undo), self._flying = self._flying, None
        happened = self._state(step.block.id) == operation.value
        if happened and not undo:
            self._done.changed.append(step)
        if step.block.id in self._asked:
            self._tell(step.block.id, happened=happened)

    def _judge(self, step: Step, operation: Operation, written: Written, *, undo: bool) -> bool:
        number = step.block.id
        state = self._state(number)
        happened = state == operation.value
        if happened and not undo:
            self._done.changed.append(step)
        self._flying = None
        self._tell(number, happened=happened)
        if happened:
            self._progress("done", {"block": number, "seconds": written.seconds})
            return True
        text = str(written) if written.errno else f"the write was taken, but it is {state or 'gone'}: somebody changed it back"
        if written.pending:
            text += f"; it is {state} and may still change"
        evidence = self._evidence(step, written) if operation is Operation.OFFLINE else ()
        self._fail(Attempt(number, step.word, written.errno, text, written.seconds, evidence, undo))
        return False

    def _evidence(self, step: Step, written: Written) -> tuple[str, ...]:
        pages = step.block.size // self.plan.page_size
        found = culprits(self._log.new(), step.block.start // self.plan.page_size, pages)[:3]
        if not found and self._explain is not None and written.errno in _EXPLAINED and not written.waited:
            found = [self._explain(step.block.id)]
        return tuple(found)

    # -- looking

    def _state(self, number: int) -> str:
        try:
            return self.tree.read(f"{MEMORY}/memory{number}/state").strip()
        except OSError:
            return ""

    def _describe(self, number: int) -> str:
        state = self._state(number)
        if state != "online":
            return state or "gone"
        try:
            zone = self.tree.read(f"{MEMORY}/memory{number}/valid_zones").strip()
        except OSError:
            return state
        return f"{state} in {zone}"

    def _too_little(self) -> str:
        # Somebody may have taken memory since the plan was made.
        if self.plan.floor is None:
            return ""
        try:
            available = parse_meminfo(self.tree.read(MEMINFO)).get("MemAvailable")
        except OSError:
            return ""
        if available is None or available - self.plan.block_size >= self.plan.floor:
            return ""
        return "only so little memory is available by now that the floor would be passed"

    # -- noting

    def _note(self, what: str, step: Step) -> None:
        if self._journal is not None:
            self._journal.note(what, id=step.block.id)

    def _fail(self, attempt: Attempt) -> None:
        self._done.attempts.append(attempt)
        self._progress("failed", {"block": attempt.block, "text": str(attempt)})

    def _concluded(self) -> Outcome:
        done = self._done
        changed = tuple(int(step.block.id) for step in self._held())
        reason = self._reason
        if self._reached and not self.plan.problems and not done.stuck:
            result, reason = Result.DONE, ""
        else:
            result = Result.PARTLY if changed or done.stuck else Result.UNCHANGED
            reason = reason or "interrupted"
        return Outcome(
            plan=self.plan,
            result=result,
            changed=changed,
            undone=tuple(done.undone),
            stuck=tuple(done.stuck),
            attempts=tuple(done.attempts),
            others=tuple(done.others),
            seconds=self._seconds,
            reason=reason,
        )


def _check_writable(tree: Tree, plan: Plan) -> None:
    if not isinstance(tree, DirTree):
        return
    if not tree.writable:
        raise HostError(str(tree.root), "a copy, or a machine that is only looked at, can't be changed", errno=errno.EROFS)
    # What isn't allowed for one block is for none: trying all of them, and asking everybody before, would be of no use.
    for path in (tree.real_path(f"{MEMORY}/memory{step.block.id}/state") for step in plan.steps[:1]):
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise HostError(path, "may not be written", errno=errno.EACCES, hint="be root")


def _before(step: Step) -> Before:
    return Before(int(step.block.id), step.node, step.block.state, step.block.zone or "")


def _was(step: Step) -> str:
    block = step.block
    return f"online in {block.zone}" if block.online and block.zone else block.state


def _reverse(step: Step, operation: Operation) -> Step:
    if operation is Operation.ONLINE:
        return step._replace(word="offline")
    word = {"Movable": "online_movable", "": "online"}.get(step.block.zone or "", "online_kernel")
    return step._replace(word=word, zone=step.block.zone or "")
