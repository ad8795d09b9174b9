"""What a scenario says, decoded: a machine, callbacks, steps and expectations."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memhp.errors import EHWPOISON
from memhp.events import MemoryAction
from memhp.kernel import PageKind, Rules
from memhp.notifier import NOTIFY_BAD, NOTIFY_DONE, NOTIFY_OK, NOTIFY_STOP, NotifyResult, notifier_from_errno

__all__ = [
    "ANSWERS",
    "Allocate",
    "CallbackSpec",
    "Expectations",
    "MachineSpec",
    "Reaction",
    "Scenario",
    "Selection",
    "Step",
    "VirtioMem",
    "answer_name",
    "parse_answer",
]

ANSWERS = {"DONE": NOTIFY_DONE, "OK": NOTIFY_OK, "STOP": NOTIFY_STOP, "BAD": NOTIFY_BAD}


def parse_answer(word: str) -> NotifyResult | None:
    """Read an answer: DONE, OK, STOP, BAD, or the name of an errno; None if it is none of them."""
    short = word.removeprefix("NOTIFY_")
    if short in ANSWERS:
        return ANSWERS[short]
    number = errno_number(word)
    return notifier_from_errno(-number) if number else None


def answer_name(answer: NotifyResult) -> str:
    """Write an answer the way scenarios do: ``OK``, ``BAD``, ``ENOMEM``."""
    return str(answer).removeprefix("NOTIFY_")


def errno_number(word: str) -> int:
    """Give the number of an errno by name, second names such as EDEADLK and EOPNOTSUPP too, or 0."""
    if word == "EHWPOISON":
        return EHWPOISON
    number = getattr(errno, word, 0) if word.isupper() else 0
    return number if isinstance(number, int) else 0


@dataclass(frozen=True, slots=True)
class VirtioMem:
    """A virtio-mem device: memory of one node whose size the hypervisor asks for, and the guest's driver follows.

    Attributes:
        node: whose memory it is.
        size: bytes that it can have.
        requested: bytes that the guest is asked to take at boot.
        block: bytes of the smallest part that comes or goes; QEMU's choice, 2 MiB, if 0.
        name: of the device.
    """

    node: int
    size: int
    requested: int = 0
    block: int = 0
    name: str = "vm0"


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What machine to begin with: a description, or where to read one."""

    description: dict[str, Any] = field(default_factory=dict)
    """Arguments of :meth:`memhp.Machine.boot`; with ``source``, what to boot if that has no memory blocks."""
    source: str = ""
    """``host``, or a directory with a captured /sys."""
    rules: Rules = Rules.DOCUMENTED
    device_hotplug_lock: bool = True
    virtio: tuple[VirtioMem, ...] = ()
    source_line: int = field(default=0, compare=False)
    """Where the file names the source."""
    parameters_line: int = field(default=0, compare=False)
    """Where it has the kernel's parameters."""
    virtio_line: int = field(default=0, compare=False)
    """Where it names the devices."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which blocks a step means: by number, by a name given earlier, by size, or by place."""

    ids: tuple[int, ...] = ()
    name: str = ""
    size: int = 0
    place: str = ""
    """``first`` or ``last``, with ``count``."""
    count: int = 1
    among: str = ""
    """A name given earlier: only blocks of it."""
    node: int | None = None


@dataclass(frozen=True, slots=True)
class Allocate:
    """Pages to take, under a name by which they are freed."""

    name: str
    nr_pages: int
    kind: PageKind
    owner: str
    node: int | None = None
    blocks: Selection | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Reaction:
    """What a callback does and answers at one action."""

    answer: NotifyResult = NOTIFY_OK
    raises: str = ""
    delay: float = 0.0
    """Seconds."""
    free: tuple[str, ...] = ()
    allocate: Allocate | None = None
    times: int = 0
    """Only the first so many times, then NOTIFY_OK; 0 is always."""


@dataclass(frozen=True, slots=True)
class CallbackSpec:
    """One who takes part."""

    name: str
    line: int
    priority: int = 0
    registered: bool = True
    reactions: dict[MemoryAction, Reaction] = field(default_factory=dict)
    call: str = ""
    """``module:function`` in place of reactions."""


@dataclass(frozen=True, slots=True)
class Expectations:
    """What must hold after a step, or in the end; None is not looked at."""

    line: int
    result: str | None = None
    """``ok``, or the name of an errno."""
    text: str | None = None
    trace: tuple[str, ...] | None = None
    uevents: tuple[str, ...] | None = None
    files: tuple[tuple[str, str], ...] = ()
    blocks: tuple[tuple[Selection, str], ...] = ()
    lockdep: int | None = None
    as_written: bool = False
    """Whether it is meant for the order in which the steps are written, and for no other."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens."""

    number: int
    line: int
    verb: str
    arguments: dict[str, Any]
    thread: str
    shown: str
    """The step in words."""
    alias: str = ""
    expect: Expectations | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole scenario."""

    file: Path
    title: str
    about: str
    machine: MachineSpec
    callbacks: tuple[CallbackSpec, ...]
    steps: tuple[Step, ...]
    expect: Expectations | None
