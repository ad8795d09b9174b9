"""Playing a scenario on a real kernel: the same stream of events as :mod:`memhp.scenario.play` gives for the model."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from typing import Any

from memhp.abi.paths import MEMORY
from memhp.abi.state import changes
from memhp.abi.uevent import Uevent
from memhp.errors import DimmRefused, HotplugError, InvalidInput, errno_name
from memhp.lab import virtio
from memhp.lab.guest import Guest, GuestErrno
from memhp.lab.image import INJECTORS
from memhp.lab.kernels import Kernel
from memhp.lab.modules import DAX_DRIVERS, load_order
from memhp.lab.plan import Injection, Plan, ejects, make_plan
from memhp.lab.probes import PROBES, ChainCall, Probes, UeventSent, read_trace
from memhp.scenario.model import Expectations, Scenario, Step, answer_name
from memhp.scenario.play import CHAIN
from memhp.scenario.select import BlockView, Selector, nobody
from memhp.scenario.verdict import failure, same_result
from memhp.units import format_ids, format_size, parse_ids

__all__ = ["LabPlayer", "hear"]

Event = dict[str, Any]
Block = dict[str, Any]

_PRESENT = "/sys/devices/system/cpu/present"
_ERRORS = "/sys/kernel/debug/notifier-error-inject/memory/actions"
_INJECTORS = re.compile(r"/module/(memory_)?notifier_error_inject$")
"""Their uevents, where they stand for a callback, are not of what a scenario says: shown, and not compared."""
_QUIET = 0.3
"""Seconds without a uevent after which a DIMM is dealt with: the kernel does that in a thread of its own."""


def hear(guest: Guest, probes: Probes) -> None:
    """Set the probes of a guest that has just come up."""
    address = ""
    if probes.symbol:
        lines = guest.ask("grep", path="/proc/kallsyms", pattern=rf" {probes.symbol}$")
        address = lines[0].split()[0] if lines else "0"
    for path, text in probes.definitions(address):
        guest.write(path, text, append=True)
    if guest.shape.virtio:
        virtio.load_driver(guest)
    if guest.shape.soft_reserved:
        for module in load_order(guest.kernel, DAX_DRIVERS):
            guest.insmod(module)


class LabPlayer:
    """Plays one scenario on one real kernel.

    Args:
        scenario: what to play.
        kernel: what it is played on.
        sink: called with each event, in order.
        patience: seconds that the boot, or one request, may take.
        watch: tell also what userland sees, first and after each step (event ``state``).

    Attributes:
        plan: what the scenario means on a real kernel.

    Raises:
        ScenarioError: something in the scenario has no meaning on a real kernel.
        LabError: the kernel is one whose trace would be misread.
    """

    def __init__(
        self,
        scenario: Scenario,
        kernel: Kernel,
        sink: Callable[[Event], None],
        *,
        patience: float = 60.0,
        watch: bool = False,
    ) -> None:
        self._watch = watch
        self._state: dict[str, str] = {}
        self._scenario = scenario
        self._kernel = kernel
        self._sink = sink
        self._patience = patience
        self.plan: Plan = make_plan(scenario)
        self._probes = PROBES[kernel.series]
        self._probes.check(kernel.version)
        self._selector = Selector(self._views, lambda: self._block_size, scenario.file)
        self._dimms: dict[str, tuple[int, ...]] = {}
        self._gone: set[str] = set()
        self._for_callbacks = False
        self._uevents: list[str] = []
        self._all_uevents: list[str] = []
        self._calls = self._steps = 0
        self.failures = 0
        """How many expectations did not hold."""
        self._verbs: dict[str, Callable[[Step], str]] = {
            "plug": self._plug,
            "unplug": self._unplug,
            "resize": self._resize,
            "plug_cpu": self._plug_cpu,
            "unplug_cpu": self._unplug_cpu,
            "load": self._load,
            "unload": self._unload,
            "online": self._online,
            "offline": self._offline,
            "write": self._write,
            "read": self._read,
            "register": self._register,
            "unregister": self._unregister,
        }

    def play(self) -> int:
        """Boot, play everything, and end the guest; gives the number of expectations that did not hold.

        Raises:
            ScenarioError: a step asks for what this machine doesn't have; with file and line.
            LabError: the guest can't be started, or fails.
        """
        with Guest(self._kernel, self.plan.shape, patience=self._patience) as guest:
            hear(guest, self._probes)
            return self.play_in(guest)

    def play_in(self, guest: Guest) -> int:
        """Play everything in a guest that is up, of the plan's shape, and heard (:func:`hear`); gives what :meth:`play` does."""
        scenario = self._scenario
        self._guest = guest
        self._emit("scenario", title=scenario.title, about=scenario.about, file=str(scenario.file), rules=self._probes.rules.text)
        self._begin()
        for step in scenario.steps:
            self._play_step(step)
        self._end()
        return self.failures

    # -- begin and end

    def _begin(self) -> None:
        kernel = self._kernel
        self._emit("guest", release=kernel.release, version=kernel.version, boot_seconds=round(self._guest.boot_seconds, 3))
        machine = self._picture("before")
        self._block_size = machine["block_size"]
        if self.plan.injection is not None and self.plan.injection.registered:
            self._inject(self.plan.injection)
        if self.plan.unseen:
            first = self.plan.unseen[0][0]
            names = sorted({name for _, name in self.plan.unseen})
            lines = ", ".join(str(line) for line in sorted({line for line, _ in self.plan.unseen}))
            text = f"Not compared on a real kernel: expectations of {' and '.join(names)} (line {lines})."
            self._emit("note", line=first, text=text)
        self._note_state()

    def _picture(self, moment: str) -> Event:
        machine = self._guest.ask("machine")
        blocks = [{**block, "zones": _zones(block), "used_pages": 0} for block in machine["blocks"]]
        event = {"source": "guest", **machine, "blocks": blocks}
        event.pop("release")
        self._emit("machine", moment=moment, **event)
        return event

    def _note_state(self) -> None:
        if self._watch:
            now: dict[str, str] = self._guest.ask("state")
            self._emit("state", changes=changes(self._state, now))
            self._state = now

    def _end(self) -> None:
        self._picture("after")
        if self._scenario.expect is not None:
            self._check(self._scenario.expect, self._all_uevents)
        self._emit("end", steps=self._steps, calls=self._calls, failures=self.failures)

    # -- one step

    def _play_step(self, step: Step) -> None:
        self._uevents = []
        if step.verb == "note":
            self._emit("note", line=step.line, text=step.shown)
            if step.expect is not None:
                self._check(step.expect, [])
            return
        self._emit("step", number=step.number, line=step.line, verb=step.verb, thread="main", text=step.shown)
        self._guest.ask("begin")
        result, message, text = self._perform(step)
        self._say_heard(step)
        self._steps += 1
        self._emit("result", number=step.number, thread="main", result=result, message=message, text=text)
        self._note_state()
        wanted = (step.expect.result if step.expect is not None else None) or "ok"
        if not same_result(result, wanted):
            self._fail(step.line, f"step {step.number}: {step.shown}", wanted, result, message)
        if step.expect is not None:
            self._check(step.expect, self._uevents, step, text)

    def _perform(self, step: Step) -> tuple[str, str, str]:
        try:
            return "ok", "", self._verbs[step.verb](step)
        except (GuestErrno, HotplugError) as error:
            result, message = errno_name(error.errno or 0), str(error.strerror)
        except DimmRefused as error:
            result, message = errno_name(error.errno) if error.errno else type(error).__name__, str(error)
        self._selector.lose(step, result)
        return result, message, ""

    def _say_heard(self, step: Step) -> None:
        self._for_callbacks = step.verb in {"register", "unregister"}
        slow = step.verb in {"plug", "unplug", "plug_cpu", "unplug_cpu"} or ejects(step)
        if self._guest.shape.virtio:
            virtio.settle(self._guest)
        heard = self._guest.ask("end", quiet=_QUIET if slow else 0.0)
        waiting = [uevent for uevent in map(_decode, heard["uevents"]) if uevent is not None]
        for entry in read_trace(heard["trace"], self._probes.rules):
            if isinstance(entry, ChainCall):
                self._say_call(entry)
            else:
                self._say_sent(entry, waiting)
        for uevent in waiting:
            self._say_uevent(uevent)

    def _say_sent(self, sent: UeventSent, waiting: list[Uevent]) -> None:
        # The trace says when, the socket says what; what was filtered away came only as far as the trace.
        for uevent in waiting:
            if (uevent.action, uevent.devpath) == (sent.action, sent.devpath):
                waiting.remove(uevent)
                self._say_uevent(uevent)
                return

    def _say_uevent(self, uevent: Uevent) -> None:
        if not (self._for_callbacks and _INJECTORS.match(uevent.devpath)):
            self._uevents.append(str(uevent))
            self._all_uevents.append(str(uevent))
        self._emit("uevent", action=uevent.action, devpath=uevent.devpath, subsystem=uevent.subsystem, seqnum=uevent.seqnum)

    def _say_call(self, call: ChainCall) -> None:
        self._calls += 1
        self._emit(
            "call",
            action=call.action.name,
            blocks=self._name_range(call.arg.start_pfn, call.arg.nr_pages),
            start_pfn=call.arg.start_pfn,
            nr_pages=call.arg.nr_pages,
            status_change_nid_normal=call.arg.status_change_nid_normal,
            status_change_nid=call.arg.status_change_nid,
            callback=CHAIN,
            priority=None,
            answer="none" if call.answer is None else answer_name(call.answer),
            error=None,
            seconds=round(call.seconds, 6),
            thread="main",
        )

    def _name_range(self, start_pfn: int, nr_pages: int) -> str:
        pages = self._block_size >> 12
        first, last = start_pfn // pages, (start_pfn + nr_pages - 1) // pages
        return f"memory{first}" if first == last else f"memory{first}-{last}"

    # -- the verbs

    def _plug(self, step: Step) -> str:
        name, size, node, at = (step.arguments[key] for key in ("name", "size", "node", "at"))
        if name in self._dimms:
            raise GuestErrno(errno.EEXIST, f"{name} is plugged in")
        before = {block["id"] for block in self._blocks()}
        self._guest.monitor.plug(name, size, node, at, self._patience)
        ids = self._dimms[name] = tuple(block["id"] for block in self._blocks() if block["id"] not in before)
        self._selector.name(name, ids)
        self._selector.remember(step, ids)
        return f"memory{format_ids(ids)}" if ids else "no memory block"

    def _unplug(self, step: Step) -> str:
        name = step.arguments["name"]
        if name in self._gone and name not in self._dimms:
            raise GuestErrno(errno.ENODEV, f"{name} is not plugged in")
        if name not in self._dimms:
            raise self._selector.unknown(step, name, "the name of a DIMM that an earlier step plugged in")
        self._guest.monitor.unplug(name, self._patience)
        self._left(name)
        return ""

    def _left(self, name: str | None) -> None:
        if name is not None:
            del self._dimms[name]
            self._gone.add(name)

    def _resize(self, step: Step) -> str:
        return format_size(virtio.resize(self._guest, step.arguments["name"], step.arguments["size"]))

    def _plug_cpu(self, step: Step) -> str:
        before = self._guest.read(_PRESENT)
        self._guest.monitor.plug_cpu(step.arguments["socket"], self._patience)
        new = set(parse_ids(self._guest.read(_PRESENT))) - set(parse_ids(before))
        return f"cpu{format_ids(new)}" if new else "no CPU"

    def _unplug_cpu(self, step: Step) -> str:
        self._guest.monitor.unplug_cpu(step.arguments["socket"], self._patience)
        return ""

    def _load(self, step: Step) -> str:
        parameters = step.arguments["parameters"]
        self._guest.insmod(step.arguments["module"], *(f"{name}={value}" for name, value in parameters.items()))
        return ""

    def _unload(self, step: Step) -> str:
        self._guest.rmmod(step.arguments["module"])
        return ""

    def _online(self, step: Step) -> str:
        return self._change(step, "offline", step.arguments["type"].value)

    def _offline(self, step: Step) -> str:
        return self._change(step, "online", "offline")

    def _change(self, step: Step, state: str, word: str) -> str:
        chosen = self._selector.choose(step, step.arguments["blocks"], state)
        states = {block["id"]: block["state"] for block in self._blocks()}
        for number in chosen:
            if number in states and states[number] != state:
                # As device_online(), which is content with a block that is there already; the file `state` is not.
                self._guest.write(f"{MEMORY}/memory{number}/online", "0" if word == "offline" else "1")
            elif number in states:
                self._guest.write(f"{MEMORY}/memory{number}/state", word)
            else:
                raise GuestErrno(errno.ENODEV, f"there is no memory{number}")
        return f"memory{format_ids(chosen)}"

    def _write(self, step: Step) -> str:
        path = self._selector.path(step, step.arguments["file"])
        if ejects(step):
            self._guest.monitor.forget()
        self._guest.write(path, step.arguments["text"])
        if ejects(step):
            self._left(self._guest.monitor.ejected(self._patience))
        return ""

    def _read(self, step: Step) -> str:
        return self._guest.read(self._selector.path(step, step.arguments["file"]))

    def _register(self, step: Step) -> str:
        if self.plan.injection is not None:
            self._inject(self.plan.injection)
        return ""

    def _unregister(self, step: Step) -> str:
        for module in reversed(INJECTORS):
            self._guest.rmmod(module)
        return ""

    def _inject(self, injection: Injection) -> None:
        base, module = INJECTORS
        self._guest.insmod(base)
        self._guest.insmod(module, f"priority={injection.priority}")
        for action, number in injection.errors:
            if number:
                self._guest.write(f"{_ERRORS}/{action}/error", str(-number))
        self._emit("callbacks", registered=[{"name": injection.name, "priority": injection.priority}])

    # -- which blocks, which file

    def _blocks(self) -> list[Block]:
        return list(self._guest.ask("blocks"))

    def _views(self) -> Iterator[BlockView]:
        for block in self._blocks():
            yield BlockView(block["id"], block["node"], block["state"], block["state"] == "offline" or bool(_zones(block)))

    # -- what should be

    def _check(self, expect: Expectations, uevents: list[str], step: Step | None = None, text: str = "") -> None:
        if expect.uevents is not None and list(expect.uevents) != uevents:
            self._fail(expect.line, "uevents", list(expect.uevents), uevents)
        if expect.text is not None and step is not None and text.strip() != expect.text.strip():
            self._fail(expect.line, f"text of step {step.number}", expect.text.strip(), text.strip())
        for path, wanted in expect.files:
            found = self._text_of(expect, path)
            if found != wanted.strip():
                self._fail(expect.line, path, wanted.strip(), found)
        states = {block["id"]: block["state"] for block in self._blocks()} if expect.blocks else {}
        for selection, state in expect.blocks:
            try:
                chosen = self._selector.resolve(nobody(expect, "blocks"), selection, None)
            except HotplugError as error:
                self._fail(expect.line, "expect: blocks", state, str(error.strerror))
                continue
            for number in chosen:
                found = states.get(number, "absent")
                if found != state:
                    self._fail(expect.line, f"state of memory{number}", state, found)

    def _text_of(self, expect: Expectations, path: str) -> str:
        try:
            return self._guest.read(self._selector.path(nobody(expect, "files"), path)).strip()
        except (GuestErrno, HotplugError) as error:
            return errno_name(error.errno or 0)

    def _fail(self, line: int, what: str, expected: str | list[str], actual: str | list[str], message: str = "") -> None:
        self.failures += 1
        self._emit("failure", **failure(str(self._scenario.file), line, what, expected, actual, message))

    def _emit(self, event: str, /, **fields: Any) -> None:
        self._sink({"event": event, **fields})


def _zones(block: Block) -> list[str]:
    return [] if block["state"] == "offline" else [zone for zone in block["zones"] if zone != "none"]


def _decode(message: str) -> Uevent | None:
    try:
        return Uevent.decode(message.encode())
    except InvalidInput:
        return None
