"""Playing a scenario: a stream of events, each a dictionary as ``memhp run --json`` prints it (docs/run-json.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from memhp.abi.state import changes, machine_state
from memhp.abi.uevent import Uevent
from memhp.errors import DeadlockError, HotplugError, InvalidInput, MemhpError, NotifierError, ScenarioError, errno_name
from memhp.events import MEM_FINISH_OFFLINE, MEM_PREPARE_ONLINE
from memhp.kernel import Machine, Rules
from memhp.locking import Lockdep
from memhp.notifier import NOTIFY_OK, Call, NotifierBlock
from memhp.scenario.act import Actor
from memhp.scenario.begin import make_machine
from memhp.scenario.behaviours import Holdings, make_callback
from memhp.scenario.crew import Crew
from memhp.scenario.devices import devices_of
from memhp.scenario.model import Expectations, Scenario, Selection, Step, answer_name
from memhp.scenario.select import nobody
from memhp.scenario.verdict import failure, same_result
from memhp.units import format_ids

__all__ = ["CHAIN", "Event", "Outcome", "Player"]

Event = dict[str, Any]

CHAIN = "memory_chain"
"""The callback that stands for the chain as a whole."""

_MAIN = "main"
_PREPARING = (MEM_PREPARE_ONLINE, MEM_FINISH_OFFLINE)
_NEVER_ENDS = "the step never ends; give it a thread of its own (thread: NAME), and end its wait later (signal: NAME)"
_READER = "(expectations)"
"""The thread that reads files for expectations: no step can have this name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended.

    Attributes:
        step: the step.
        result: ``ok``, or the name of an errno.
        message: what the machine said, if that is an error.
        text: what the step had to say.
        error: what the machine raised.
    """

    step: Step
    result: str
    message: str
    text: str
    error: MemhpError | None = None


class Player:
    """Plays one scenario on a modelled machine.

    Args:
        scenario: what to play.
        sink: called with each event, one at a time, in order.
        rules: in place of the scenario's own.
        watch: tell also what a real kernel can be asked: each call of the chain as a whole (of the callback
            ``memory_chain``, which agrees), and an event ``state`` with what userland sees, first and after each step.
        impatient: a step without a thread that waits for pages gets a signal, so that it ends with EINTR and the run goes on.
    """

    def __init__(
        self,
        scenario: Scenario,
        sink: Callable[[Event], None],
        *,
        rules: Rules | None = None,
        watch: bool = False,
        impatient: bool = False,
    ) -> None:
        self._scenario = scenario
        self._sink = sink
        self._watch = watch
        self._impatient = impatient
        self._state: dict[str, str] = {}
        self._rules = rules or scenario.machine.rules
        self._emitting = threading.Lock()
        self._crew = Crew()
        self.machine: Machine
        """The machine, from the moment when the first event comes."""
        self._begun: list[Step] = []
        self._ended: dict[int, Outcome] = {}
        self._unsaid: list[Outcome] = []
        self._trace: list[str] = []
        self._uevents: list[str] = []
        self._marks = (0, 0)
        self._reports = 0
        self._calls = 0
        self.failures = 0
        """How many expectations did not hold."""

    def play(self) -> int:
        """Play everything; gives the number of expectations that did not hold.

        Raises:
            ScenarioError: a step asks for what this machine doesn't have; with file and line.
            InvalidInput: the machine can't be made (a wrong tree).
        """
        self._begin()
        try:
            for step in self._scenario.steps:
                if not self._play_step(step):
                    break
            self._end()
        finally:
            self._signal_everybody()
            self._crew.dismiss()
        return self.failures

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """How each step ended, by number; those that have not are missing."""
        return dict(self._ended)

    # -- begin and end

    def _begin(self) -> None:
        scenario = self._scenario
        self.machine, self._source = make_machine(scenario, self._rules, Lockdep())
        machine = self.machine
        devices = devices_of(scenario, machine)
        holdings = Holdings(machine)
        if self._watch:
            machine.memory_chain.register(NotifierBlock(lambda *_: NOTIFY_OK, 2**31 - 1, CHAIN))
        machine.memory_chain.observe(self._note_call)
        machine.uevents.subscribe(self._note_uevent)
        blocks = {
            spec.name: NotifierBlock(
                make_callback(spec, scenario.file, machine, holdings, self._note_deed), spec.priority, spec.name
            )
            for spec in scenario.callbacks
        }
        machine.acpi.run = self._crew.start
        self._actor = Actor(machine, holdings, self._crew, blocks, scenario.file, devices)
        self._emit("scenario", title=scenario.title, about=scenario.about, file=str(scenario.file), rules=self._rules.text)
        for line, text in self._warnings():
            self._emit("warning", line=line, text=text)
        self._emit("machine", moment="before", source=self._source, **_picture(machine))
        for spec in scenario.callbacks:
            if spec.registered:
                machine.memory_chain.register(blocks[spec.name])
        listed = [{"name": block.name, "priority": block.priority} for block in machine.memory_chain.blocks]
        self._emit("callbacks", registered=listed)
        self._note_state()

    def _warnings(self) -> Iterator[tuple[int, str]]:
        for said in self.machine.parameters.ignored:
            yield self._scenario.machine.parameters_line, f"the kernel ignores a word of its command line: {said}"
        for spec in () if self._rules.value.prepares else self._scenario.callbacks:
            for action in _PREPARING:
                if action in spec.reactions:
                    yield (
                        spec.line,
                        f"{spec.name} never hears {action.name}, not sent under the rules {self._rules.text}",
                    )

    def _end(self) -> None:
        waiting = self._waiting()
        steps = {name: self._step_of(name) for name in waiting}
        self._release_everybody()
        self._say_results(compare=False)
        self._fail_for_waiting(waiting, steps)
        self._note_lockdep()
        self._emit("machine", moment="after", source=self._source, **_picture(self.machine))
        if self._scenario.expect is not None:
            self._check(self._scenario.expect, list(self._trace), list(self._uevents))
        self._emit("end", steps=len(self._ended), calls=self._calls, failures=self.failures)

    def _step_of(self, thread: str) -> Step | None:
        # The step at which a thread waits; those that it was given later have not begun.
        return next((step for step in self._begun if (step.thread or _MAIN) == thread and step.number not in self._ended), None)

    def _fail_for_waiting(self, waiting: dict[str, str], steps: dict[str, Step | None]) -> None:
        # What the signal made the step say names the page that it waited for, and the page's owner.
        for name, lock in waiting.items():
            step, what = steps[name], f"thread {name} still waits for {lock} at the end"
            waits = f"{name} waits for {lock}"
            if name == _MAIN:
                what = _NEVER_ENDS
                waits = ", ".join(f"{other} waits for {its}" for other, its in waiting.items())
            outcome = None if step is None else self._ended.get(step.number)
            wanted = "an end" if name == _MAIN else "nobody waits"
            self._fail(0 if step is None else step.line, what, wanted, waits, "" if outcome is None else outcome.message)

    def _release_everybody(self) -> None:
        # A signal ends one wait for pages; the same step, or who waited for a lock behind it, may then wait for other pages.
        while self.machine.pages.changed.name in self._crew.waiting().values():
            self._signal_everybody()
            self._crew.settle()

    def _signal_everybody(self) -> None:
        for name in self._crew.waiting():
            thread = self._crew.thread(name)
            if thread is not None:
                self.machine.send_signal(thread)

    def _waiting(self) -> dict[str, str]:
        return {name: lock for name, lock in self._crew.waiting().items() if name != _READER}

    # -- one step

    def _play_step(self, step: Step) -> bool:
        self._marks = len(self._trace), len(self._uevents)
        if step.verb == "note":
            self._emit("note", line=step.line, text=step.shown)
            if step.expect is not None:
                self._check(step.expect, [], [], step)
            return True
        self._emit("step", number=step.number, line=step.line, verb=step.verb, thread=step.thread or _MAIN, text=step.shown)
        self._begun.append(step)
        self._crew.start(step.thread or _MAIN, lambda: self._perform(step))
        self._crew.settle()
        self._say_results()
        self._note_lockdep()
        self._note_state()
        if self._impatient and not step.thread and step.number not in self._ended:
            self._interrupt_main()
        if not step.thread and step.number not in self._ended:
            return False
        if step.expect is not None:
            self._check(step.expect, self._trace[self._marks[0] :], self._uevents[self._marks[1] :], step)
        return True

    def _interrupt_main(self) -> None:
        thread = self._crew.thread(_MAIN)
        while thread is not None and self._crew.waiting().get(_MAIN) == self.machine.pages.changed.name:
            self.machine.send_signal(thread)
            self._crew.settle()
        self._say_results()

    def _perform(self, step: Step) -> None:
        try:
            outcome = Outcome(step, "ok", "", self._actor.act(step))
        except ScenarioError:
            raise
        except MemhpError as error:
            outcome = Outcome(step, _result_of(error), getattr(error, "strerror", None) or str(error), "", error)
            self._actor.selector.lose(step, outcome.result)
        self._ended[step.number] = outcome
        self._unsaid.append(outcome)

    def _say_results(self, *, compare: bool = True) -> None:
        # Said when everybody is at rest and in the order of the steps, so that a scenario always reads the same.
        outcomes, self._unsaid = self._unsaid, []
        for outcome in sorted(outcomes, key=lambda outcome: outcome.step.number):
            step, result, message = outcome.step, outcome.result, outcome.message
            self._emit(
                "result",
                number=step.number,
                thread=step.thread or _MAIN,
                result=result,
                message=message,
                text=outcome.text,
            )
            wanted = step.expect.result if step.expect is not None and step.expect.result is not None else "ok"
            if compare and not same_result(result, wanted):
                self._fail(step.line, f"step {step.number}: {step.shown}", wanted, result, message)

    # -- what is noted

    def _emit(self, event: str, /, **fields: Any) -> None:
        with self._emitting:
            self._sink({"event": event, **fields})

    def _note_call(self, call: Call) -> None:
        blocks = self._name_range(call.arg.start_pfn, call.arg.nr_pages)
        answer = answer_name(call.answer) if call.answer is not None else f"raised {type(call.error).__name__}"
        nids = f"({call.arg.status_change_nid_normal},{call.arg.status_change_nid})"
        if call.block.name != CHAIN:
            self._trace.append(f"{call.action.name}{nids} {blocks} {call.block.name}: {answer}")
        self._calls += 1
        self._emit(
            "call",
            action=call.action.name,
            blocks=blocks,
            start_pfn=call.arg.start_pfn,
            nr_pages=call.arg.nr_pages,
            status_change_nid_normal=call.arg.status_change_nid_normal,
            status_change_nid=call.arg.status_change_nid,
            callback=call.block.name,
            priority=call.block.priority,
            answer=answer,
            error=str(call.error) if call.error is not None else None,
            seconds=round(call.seconds, 9),
            thread=threading.current_thread().name,
        )

    def _name_range(self, start_pfn: int, nr_pages: int) -> str:
        first = start_pfn // self.machine.pages_per_block
        last = (start_pfn + nr_pages - 1) // self.machine.pages_per_block
        return f"memory{first}" if first == last else f"memory{first}-{last}"

    def _note_uevent(self, uevent: Uevent) -> None:
        self._uevents.append(str(uevent))
        self._emit("uevent", action=uevent.action, devpath=uevent.devpath, subsystem=uevent.subsystem, seqnum=uevent.seqnum)

    def _note_deed(self, callback: str, what: str) -> None:
        self._emit("deed", callback=callback, text=what)

    def _note_state(self) -> None:
        if self._watch:
            tree = self.machine.tree
            now = machine_state(tree.read, tree.list)
            self._emit("state", changes=changes(self._state, now))
            self._state = now

    def _note_lockdep(self) -> None:
        reports = self.machine.dep.reports if self.machine.dep is not None else []
        for report in reports[self._reports :]:
            self._emit("lockdep", kind=report.kind, classes=list(report.classes), text=str(report))
        self._reports = len(reports)

    # -- what should be

    def _check(self, expect: Expectations, trace: list[str], uevents: list[str], step: Step | None = None) -> None:
        if expect.trace is not None and list(expect.trace) != trace:
            self._fail(expect.line, "trace", list(expect.trace), trace)
        if expect.uevents is not None and list(expect.uevents) != uevents:
            self._fail(expect.line, "uevents", list(expect.uevents), uevents)
        if expect.text is not None and step is not None:
            self._check_text(expect, step, expect.text.strip())
        for path, text in expect.files:
            self._check_file(expect, path, text)
        for selection, state in expect.blocks:
            self._check_blocks(expect, selection, state)
        if expect.lockdep is not None and expect.lockdep != self._reports:
            self._fail(expect.line, "lockdep reports", str(expect.lockdep), str(self._reports))

    def _check_text(self, expect: Expectations, step: Step, text: str) -> None:
        outcome = self._ended.get(step.number)
        found = "" if outcome is None else outcome.text.strip()
        if found != text:
            self._fail(expect.line, f"text of step {step.number}", text, found)

    def _check_file(self, expect: Expectations, path: str, text: str) -> None:
        found: list[str] = []
        # In a thread, because `online` can't be read while its block changes: its reader waits for the block's lock.
        self._crew.start(_READER, lambda: found.append(self._text_of(expect, path)))
        self._crew.settle()
        said = found[0] if found else f"no answer: its reader waits for {self._crew.waiting().get(_READER)}"
        if said != text.strip():
            self._fail(expect.line, path, text.strip(), said)

    def _text_of(self, expect: Expectations, path: str) -> str:
        try:
            return self.machine.tree.read(self._actor.selector.path(nobody(expect, "files"), path)).strip()
        except HotplugError as error:
            return _result_of(error)

    def _check_blocks(self, expect: Expectations, selection: Selection, state: str) -> None:
        try:
            chosen = self._actor.selector.resolve(nobody(expect, "blocks"), selection, None)
        except HotplugError as error:
            self._fail(expect.line, "expect: blocks", state, str(error.strerror))
            return
        for block_id in chosen:
            block = self.machine.blocks.get(block_id)
            found = "absent" if block is None else block.state.value
            if found != state:
                self._fail(expect.line, f"state of memory{block_id}", state, found)

    def _fail(self, line: int, what: str, expected: str | list[str], actual: str | list[str], message: str = "") -> None:
        self.failures += 1
        self._emit("failure", **failure(str(self._scenario.file), line, what, expected, actual, message))


def _result_of(error: MemhpError) -> str:
    if isinstance(error, HotplugError):
        return errno_name(error.errno or 0)
    if isinstance(error, NotifierError) and error.errno:
        return errno_name(error.errno)
    return {DeadlockError: "EDEADLK", InvalidInput: "EINVAL"}.get(type(error), type(error).__name__)


def _picture(machine: Machine) -> Event:
    blocks = [
        {
            "id": block.id,
            "node": block.nid,
            "state": block.state.value,
            "zones": sorted({zone.type.label for zone, _, _ in block.present}),
            "used_pages": machine.pages.count_used(block),
        }
        for block in sorted(machine.blocks.values(), key=lambda block: block.id)
    ]
    return {
        "block_size": machine.block_size,
        "memory": machine.memory_total,
        "nodes": {state.value: format_ids(ids) for state, ids in machine.node_states.items()},
        "blocks": blocks,
    }
