"""The tree of errors: as printed, with its evidence, and with messages that say what and where."""

from __future__ import annotations

import errno
import inspect
import re

import pytest

from memhp import MEM_GOING_OFFLINE, NOTIFY_OK, NotifierBlock, errors
from memhp.errors import (
    AlreadyRegistered,
    ChangeFailed,
    DeadlockError,
    DimmRefused,
    GuestFailed,
    HookFailed,
    HostError,
    HotplugError,
    Interrupted,
    InvalidInput,
    LabError,
    LabMissing,
    LockError,
    LockNotHeld,
    MemhpError,
    NoMemoryBlocks,
    NotifierError,
    NotRegistered,
    PageRefusal,
    PriorityTaken,
    ScenarioError,
    Vetoed,
    WrongAnswer,
    errno_name,
)
from memhp.locking import Mutex

LINE = re.compile(r"^    (?P<indent>[│├└─ ]*)(?P<name>\w+)(?: \((?P<also>\w+)\))?(?P<rest>.*)$")

BLOCK = NotifierBlock(lambda *_: NOTIFY_OK, 3, "balloon")
LOCK = Mutex("mem_hotplug_lock")
EXAMPLES: dict[type[MemhpError], MemhpError] = {
    type(error): error
    for error in [
        MemhpError("something"),
        InvalidInput("4GB", "nodes[0]", "a size"),
        ScenarioError("4GB", "demo.yaml", 7, "a size", "machine.nodes"),
        NotifierError("misuse", BLOCK, errno.EINVAL),
        AlreadyRegistered("twice", BLOCK),
        PriorityTaken("taken", BLOCK),
        NotRegistered("absent", BLOCK),
        WrongAnswer(BLOCK, None),
        LockError("misuse", LOCK),
        LockNotHeld("online_pages()", LOCK, "mem_hotplug_lock (write)", ["device_hotplug_lock"]),
        DeadlockError("for ever", LOCK, ["T1 waits for A", "T2 waits for B"]),
        HostError("/sys/devices/system/memory", "can't be read: Permission denied", errno=errno.EACCES, hint="be root"),
        NoMemoryBlocks("/sys/devices/system/memory", "not there", errno=errno.ENOENT),
        ChangeFailed("memory40: EBUSY; no block is changed"),
        HookFailed("/etc/memhp/hooks.d/10-db", "answered with exit status 3", status=3, said="a backup is running"),
        LabError("no room in the guest", "ask for less"),
        LabMissing(["qemu-system-x86_64"], "apt-get install qemu-system-x86"),
        DimmRefused("the guest keeps the DIMM", errno.EBUSY),
        GuestFailed("the guest panicked", ["Kernel panic - not syncing"]),
        HotplugError(errno.EBUSY, "memory32 has unmovable pages", block=32),
        Vetoed(errno.ENOMEM, "balloon refused", block=32, callback=BLOCK, action=MEM_GOING_OFFLINE),
        PageRefusal(errno.EBUSY, "a page stays", block=32, page=0x100000, kind="unmovable", owner="slab"),
        Interrupted("a signal", block=32, page=0x100000),
    ]
}


def printed_tree() -> dict[str, tuple[str | None, str | None, list[str]]]:
    """Read the tree out of the docstring: name -> parent, further base, attributes."""
    tree: dict[str, tuple[str | None, str | None, list[str]]] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if not match:
            continue
        depth = len(match["indent"])
        while stack and stack[-1][0] >= depth:
            stack.pop()
        parent = stack[-1][1] if stack else None
        tree[match["name"]] = (parent, match["also"], re.findall(r"\.(\w+)", match["rest"]))
        stack.append((depth, match["name"]))
    return tree


def real_tree() -> dict[str, tuple[str | None, str | None]]:
    """Ask the classes: name -> parent in the tree, further base that is a builtin."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if not issubclass(kind, MemhpError):
            continue
        parents = [base.__name__ for base in kind.__bases__ if issubclass(base, MemhpError)]
        others = [base.__name__ for base in kind.__bases__ if not issubclass(base, MemhpError)]
        tree[name] = (parents[0] if parents else None, others[0] if parents and others else None)
    return tree


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    """The printed tree has each class once, under its base, with the builtin that it also is."""
    assert {name: (parent, also) for name, (parent, also, _) in printed_tree().items()} == real_tree()


def test_every_error_is_public() -> None:
    """Each class of the tree stands in the module's ``__all__``."""
    assert set(printed_tree()) <= set(errors.__all__)


def test_every_error_has_an_example_here() -> None:
    """A class that joins the tree must join these tests."""
    assert {kind.__name__ for kind in EXAMPLES} == set(real_tree())


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_every_error_has_the_attributes_that_the_tree_promises(kind: type[MemhpError]) -> None:
    """An error has the attributes printed on its line and on the lines of those that it derives from."""
    tree = printed_tree()
    name: str | None = kind.__name__
    while name is not None:
        parent, _, attributes = tree[name]
        missing = [attribute for attribute in attributes if not hasattr(EXAMPLES[kind], attribute)]
        assert missing == [], name
        name = parent


@pytest.mark.parametrize(
    ("kind", "evidence"),
    [
        (InvalidInput, {"value": "4GB", "where": "nodes[0]", "expected": "a size"}),
        (ScenarioError, {"value": "4GB", "file": "demo.yaml", "line": 7, "where": "demo.yaml:7: machine.nodes"}),
        (NotifierError, {"block": BLOCK, "errno": 22}),
        (AlreadyRegistered, {"block": BLOCK, "errno": 17}),
        (PriorityTaken, {"block": BLOCK, "errno": 16}),
        (NotRegistered, {"block": BLOCK, "errno": 2}),
        (WrongAnswer, {"block": BLOCK, "answer": None}),
        (LockError, {"lock": LOCK}),
        (LockNotHeld, {"lock": LOCK, "needed": "mem_hotplug_lock (write)", "held": ("device_hotplug_lock",)}),
        (DeadlockError, {"lock": LOCK, "chain": ("T1 waits for A", "T2 waits for B")}),
        (HotplugError, {"errno": 16, "block": 32, "strerror": "memory32 has unmovable pages"}),
        (Vetoed, {"errno": 12, "block": 32, "callback": BLOCK, "action": MEM_GOING_OFFLINE}),
        (PageRefusal, {"errno": 16, "block": 32, "page": 0x100000, "kind": "unmovable", "owner": "slab"}),
        (Interrupted, {"errno": 4, "block": 32, "page": 0x100000}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_errors_carry_their_evidence(kind: type[MemhpError], evidence: dict[str, object]) -> None:
    """What went wrong can be asked by attribute, not only read in a text."""
    assert {name: getattr(EXAMPLES[kind], name) for name in evidence} == evidence


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (InvalidInput, "nodes[0]: '4GB' is not valid; expected a size"),
        (ScenarioError, "demo.yaml:7: machine.nodes: '4GB' is not valid; expected a size"),
        (
            WrongAnswer,
            (
                "callback balloon (priority 3) answered None (NoneType); expected one of NOTIFY_DONE, NOTIFY_OK, NOTIFY_STOP, "
                "NOTIFY_BAD or notifier_from_errno(-errno)"
            ),
        ),
        (LockNotHeld, "online_pages() needs mem_hotplug_lock (write); held: device_hotplug_lock"),
        (DeadlockError, "for ever\n  T1 waits for A\n  T2 waits for B"),
        (HotplugError, "[EBUSY] memory32 has unmovable pages (Device or resource busy)"),
        (Vetoed, "[ENOMEM] balloon refused (Cannot allocate memory)"),
        (Interrupted, "[EINTR] a signal (Interrupted system call)"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_messages_say_what_and_where(kind: type[MemhpError], text: str) -> None:
    """A message names the place and the value, or what was needed and held, or the errno in both forms."""
    assert str(EXAMPLES[kind]) == text


def test_a_guard_that_finds_nothing_held_says_so() -> None:
    """An empty list of locks reads as ``nothing``."""
    assert str(LockNotHeld("f()", LOCK, "a (read)", [])) == "f() needs a (read); held: nothing"


def test_a_scenario_error_without_a_place_names_file_and_line() -> None:
    """The place inside the scenario is optional."""
    assert ScenarioError("x", "a.yaml", 3, "y").where == "a.yaml:3"


def test_the_builtins_catch_them_too() -> None:
    """A caller who knows only Python catches ValueError, TypeError and OSError."""
    assert {name: also for name, (_, also) in real_tree().items() if also} == {
        "InvalidInput": "ValueError",
        "WrongAnswer": "TypeError",
        "HotplugError": "OSError",
    }


@pytest.mark.parametrize(
    ("number", "name"), [(12, "ENOMEM"), (-12, "ENOMEM"), (1, "EPERM"), (133, "EHWPOISON"), (4000, "4000"), (-4000, "4000")]
)
def test_an_errno_has_its_name_in_c(number: int, name: str) -> None:
    """Either sign gives the name; a number without one stays a number."""
    assert errno_name(number) == name
