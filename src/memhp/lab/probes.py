"""Hearing the notifier chain of a real kernel: kprobes, and the lines that they leave in the trace."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memhp.abi.tracing import CALL, RETURN, Line, definitions, read_lines
from memhp.errors import LabError
from memhp.events import MemoryAction, MemoryNotify
from memhp.kernel import Rules
from memhp.notifier import NotifyResult
from memhp.units import Pfn

__all__ = ["PROBES", "ChainCall", "Probes", "UeventSent", "read_trace"]

_TRACING = "/sys/kernel/tracing"
_UEVENT = "memhp_uevent"


@dataclass(frozen=True, slots=True)
class Probes:
    """How to hear the chain of one series of kernels.

    The chain's head must be told apart where the function serves every chain: in 6.12 ``memory_notify`` is inlined
    where MEM_PREPARE_ONLINE and MEM_FINISH_OFFLINE are sent (``drivers/base/memory.c``).
    """

    rules: Rules
    function: str
    first: int
    """Which argument of the function is the action; the notify structure is the next."""
    offset: int
    """Where start_pfn stands in ``struct memory_notify``."""

    symbol: str = ""
    """The chain's head, where the function serves every chain."""

    least: tuple[int, ...] = ()
    """The first release whose numbers of actions are those of the rules."""

    def check(self, version: str) -> None:
        """Say no to a release that numbers its actions otherwise, because its trace would be misread.

        Raises:
            LabError: the release is too old.
        """
        release = tuple(int(part) for part in re.findall(r"\d+", version.partition("-")[0]))
        if release < self.least:
            least = ".".join(map(str, self.least))
            message = f"Linux {version} numbers the notifier's actions otherwise than {least} and newer"
            raise LabError(message, "apt-get update, and fetch it again")

    def definitions(self, address: str) -> list[tuple[str, str]]:
        """Give what to write where, in order; ``address`` is that of the symbol, in hexadecimal."""
        names = ("start_pfn", "nr_pages", "status_change_nid_normal", "status_change_nid")
        offsets = {name: self.offset + at for name, at in zip(names, (0, 8, 16, 20), strict=True)}
        probes = [
            # kobject_uevent() itself can't be probed; this runs just before an event is sent (drivers/base/core.c).
            f"p:{_UEVENT} dev_uevent action=+0(+24($arg2)):string path=+0(+32($arg2)):string",
            *definitions(self.function, self.first, offsets, head=bool(self.symbol)),
        ]
        writes = [(f"{_TRACING}/kprobe_events", probe) for probe in probes]
        if self.symbol:
            writes += [(f"{_TRACING}/events/kprobes/{name}/filter", f"head==0x{address}") for name in (CALL, RETURN)]
        return [*writes, *((f"{_TRACING}/events/kprobes/{name}/enable", "1") for name in (_UEVENT, CALL, RETURN))]


PROBES = {
    "6.1": Probes(Rules.LINUX_6_1, "memory_notify", 1, 0),
    "6.12": Probes(Rules.LINUX_6_12, "blocking_notifier_call_chain", 2, 16, "memory_chain", (6, 12, 110)),
}


@dataclass(frozen=True, slots=True)
class ChainCall:
    """The chain was called once; ``answer`` is its raw value, None if it never returned."""

    action: MemoryAction
    arg: MemoryNotify
    answer: NotifyResult | None
    seconds: float


@dataclass(frozen=True, slots=True)
class UeventSent:
    """A uevent was about to be sent."""

    action: str
    devpath: str


def read_trace(lines: Iterable[str], rules: Rules) -> list[ChainCall | UeventSent]:
    """Read the lines of the trace in their order; those of others are left out.

    Raises:
        LabError: an action that this kernel should not have.
    """
    found = read_lines(lines)
    heard: list[ChainCall | UeventSent] = []
    for index, line in enumerate(found):
        if line.kind == _UEVENT:
            action, path = line.fields["action"].removeprefix("ACTION="), line.fields["path"].removeprefix("DEVPATH=")
            heard.append(UeventSent(action, path))
        elif line.kind == CALL:
            heard.append(_call(line, _returned(found[index + 1 :]), rules))
    return heard


def _returned(later: Sequence[Line]) -> Line | None:
    # The chain is never called from within itself, so the next return belongs to the call.
    following = next((line for line in later if line.kind != _UEVENT), None)
    return following if following and following.kind == RETURN else None


def _call(line: Line, returned: Line | None, rules: Rules) -> ChainCall:
    numbers = {rules.number(action): action for action in MemoryAction}
    fields = line.fields
    arg = MemoryNotify(Pfn(int(fields["start"])), int(fields["nr"]), int(fields["normal"]), int(fields["nid"]))
    answer = NotifyResult(int(returned.fields["answer"])) if returned else None
    number = int(fields["action"])
    if number not in numbers:
        raise LabError(f"the kernel sent the action {number}, which memhp does not know of {rules.value.title}")
    return ChainCall(numbers[number], arg, answer, returned.time - line.time if returned else 0.0)
