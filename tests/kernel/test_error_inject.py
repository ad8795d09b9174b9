"""The kernel's error injection: two modules, their files, and the callback that answers what was written there."""

from __future__ import annotations

import logging
import threading

import pytest

from memhp import DeadlockError, HotplugError, Machine, MemoryAction, MemoryNotify, NotifierBlock, NotifyResult, Rules, Vetoed
from support import Boot, Log, in_thread, refusal, state, until_parked, with_node_1, write

DEBUG = "/sys/kernel/debug/notifier-error-inject"
GOING_ONLINE = f"{DEBUG}/memory/actions/MEM_GOING_ONLINE/error"
GOING_OFFLINE = f"{DEBUG}/memory/actions/MEM_GOING_OFFLINE/error"
BASE, MEMORY = "notifier-error-inject", "memory-notifier-error-inject"


def with_modules(boot: Boot, **parameters: object) -> Machine:
    machine = with_node_1(boot)
    machine.load_module(BASE)
    machine.load_module(MEMORY, **parameters)
    return machine


@pytest.mark.fact("11.1")
def test_loading_makes_the_files(boot: Boot) -> None:
    """The base module brings the directory, the other one what is in it; each announces itself."""
    machine = with_node_1(boot)
    heard: list[str] = []
    machine.uevents.subscribe(lambda event: heard.append(f"{event} {event.subsystem}"))
    assert not machine.tree.exists(DEBUG)
    machine.load_module(BASE)
    assert machine.tree.list(DEBUG) == []
    machine.load_module(MEMORY)
    assert machine.tree.list(f"{DEBUG}/memory/actions") == ["MEM_GOING_OFFLINE", "MEM_GOING_ONLINE"]
    assert (machine.tree.mode(GOING_ONLINE), machine.tree.read(GOING_ONLINE)) == (0o600, "0\n")
    assert heard == ["add@/module/notifier_error_inject module", "add@/module/memory_notifier_error_inject module"]


@pytest.mark.fact("11.4")
def test_unloading_takes_them_away(boot: Boot) -> None:
    """An empty directory stays while the base module does; a file that is open is gone."""
    machine = with_modules(boot)
    heard: list[str] = []
    machine.uevents.subscribe(lambda event: heard.append(str(event)))
    file = machine.tree.open(GOING_ONLINE, writing=True)
    machine.unload_module(MEMORY)
    assert machine.tree.list(DEBUG) == []
    assert refusal(file.write, "-1") == "ENODEV"
    machine.unload_module(BASE)
    assert not machine.tree.exists(DEBUG)
    assert heard == ["remove@/module/memory_notifier_error_inject", "remove@/module/notifier_error_inject"]
    assert machine.memory_chain.blocks == ()


# The errnos of insmod and rmmod on 6.1 and 6.12.
@pytest.mark.fact("11.1", "11.4")
def test_modules_have_an_order(boot: Boot) -> None:
    """The second needs the first, and holds it; nothing is loaded twice."""
    machine = with_node_1(boot)
    assert refusal(machine.load_module, MEMORY) == "ENOENT"
    assert refusal(machine.unload_module, BASE) == "ENOENT"
    machine.load_module(BASE)
    assert refusal(machine.load_module, BASE) == "EEXIST"
    machine.load_module("memory_notifier_error_inject")
    assert machine.tree.read("/sys/module/notifier_error_inject/refcnt") == "1\n"
    assert machine.tree.readlink("/sys/module/notifier_error_inject/holders/memory_notifier_error_inject") == (
        "../../memory_notifier_error_inject"
    )
    assert refusal(machine.unload_module, BASE) == "EAGAIN"
    assert refusal(machine.load_module, "loop") == "ENOENT"


@pytest.mark.parametrize(("text", "expected"), [("x", "EINVAL"), ("", "EINVAL"), ("5000000000", "ERANGE"), ("1 ", "EINVAL")])
@pytest.mark.fact("11.3")
def test_a_wrong_priority_is_refused(boot: Boot, text: str, expected: str) -> None:
    """Nothing is loaded then."""
    machine = with_node_1(boot)
    machine.load_module(BASE)
    with pytest.raises(HotplugError, match="priority") as caught:
        machine.load_module(MEMORY, priority=text)
    assert caught.value.errno == {"EINVAL": 22, "ERANGE": 34}[expected]
    assert machine.tree.list(DEBUG) == []
    machine.unload_module(BASE)


@pytest.mark.parametrize(("given", "priority"), [({}, 0), ({"priority": "0x10"}, 16), ({"priority": -3}, -3), ({"bogus": 3}, 0)])
@pytest.mark.fact("11.3")
def test_the_callback_has_the_priority(boot: Boot, given: dict[str, object], priority: int) -> None:
    """Unknown parameters are ignored."""
    machine = with_modules(boot, **given)
    assert [block.priority for block in machine.memory_chain.blocks] == [priority]
    assert "parameters" not in machine.tree.list("/sys/module/memory_notifier_error_inject")


# What 6.1 and 6.12 made of these, one after the other.
WRITES = [
    ("-12\0junk", "ok", -12),
    ("-00000000000000000000012", "ok", -1),
    ("-000000000000000000000012", "ok", 0),
    (" -1", "EINVAL", 0),
    ("-12\n", "ok", -12),
    ("-12\n\n", "EINVAL", -12),
    ("+5", "ok", 0),
    ("-0x10", "ok", -16),
    ("-010", "ok", -8),
    ("-2147483649", "ok", 0),
    ("-40000", "ok", -4095),
    ("-9223372036854775808", "ok", 0),
    ("-9223372036854775809", "ERANGE", 0),
    ("9223372036854775807", "ok", -1),
    ("9223372036854775808", "ERANGE", -1),
    ("4294967284", "ok", -12),
    ("-4294967308", "ok", -12),
    ("", "EINVAL", -12),
    ("-", "EINVAL", -12),
    ("\n", "EINVAL", -12),
    ("\0", "EINVAL", -12),
    ("-08", "EINVAL", -12),
    ("- 1", "EINVAL", -12),
    ("-1 ", "EINVAL", -12),
]


@pytest.mark.fact("11.2")
def test_the_error_file_reads_numbers_as_the_kernel_does(boot: Boot) -> None:
    """Base auto, cut to 23 characters and to an int, kept within -4095 and 0."""
    machine = with_modules(boot)
    found = []
    for text, expected, _ in WRITES:
        if expected == "ok":
            assert machine.tree.write(GOING_ONLINE, text) == len(text)
        else:
            assert refusal(machine.tree.write, GOING_ONLINE, text) == expected
        found.append(int(machine.tree.read(GOING_ONLINE)))
    assert found == [value for _, _, value in WRITES]
    assert machine.tree.read(GOING_OFFLINE) == "0\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18446744073709551616x", "ERANGE"),
        ("-18446744073709551616x", "ERANGE"),
        ("18446744073709551615x", "EINVAL"),
        ("-18446744073709551615", "ERANGE"),
        ("-+1", "EINVAL"),
        ("+-1", "EINVAL"),
    ],
)
def test_what_overflows_is_found_before_what_follows_it(boot: Boot, text: str, expected: str) -> None:
    """Of a signed number too (lib/kstrtox.c)."""
    assert refusal(with_modules(boot).tree.write, GOING_ONLINE, text) == expected


@pytest.mark.fact("11.3")
def test_the_callback_answers_what_was_written(boot: Boot) -> None:
    """At its priority, and for its two actions only."""
    machine = with_modules(boot, priority=5)
    log = Log()
    machine.hotplug_memory_notifier(log.callback("above"), 6)
    machine.hotplug_memory_notifier(log.callback("below"), 4)
    machine.tree.write(GOING_ONLINE, "-4095")
    with pytest.raises(Vetoed, match=r"memory-notifier-error-inject \(priority 5\) refused MEM_GOING_ONLINE") as caught:
        write(machine, "memory32/state", "online")
    assert caught.value.errno == 4095
    assert log.take() == ["above GOING_ONLINE(1,1)", "above CANCEL_ONLINE(1,1)", "below CANCEL_ONLINE(1,1)"]
    machine.tree.write(GOING_ONLINE, "0")
    write(machine, "memory32/state", "online")
    assert log.take() == [f"{who} {action}(1,1)" for action in ("GOING_ONLINE", "ONLINE") for who in ("above", "below")]


@pytest.mark.fact("11.3")
def test_what_it_injects_is_logged(boot: Boot, caplog: pytest.LogCaptureFixture) -> None:
    """In the words of the kernel, and only where it injects."""
    machine = with_modules(boot)
    machine.tree.write(GOING_ONLINE, "-12")
    with caplog.at_level(logging.INFO):
        assert refusal(write, machine, "memory32/state", "online") == "ENOMEM"
    assert [record.message for record in caplog.records] == ["Injecting error (-12) to MEM_GOING_ONLINE"]


@pytest.mark.fact("11.4", "1.13")
def test_unloading_waits_for_callbacks_that_run(boot: Boot) -> None:
    """Whose they are does not matter; the files stay until then."""
    machine = with_modules(boot)
    inside, leave = threading.Event(), threading.Event()

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        inside.set()
        leave.wait(30)
        return NotifyResult(1)

    machine.hotplug_memory_notifier(callback)
    change = in_thread(lambda: write(machine, "memory32/state", "online"), "change")
    assert inside.wait(30)
    unload = in_thread(lambda: machine.unload_module(MEMORY), "unload")
    until_parked(unload)
    assert machine.tree.read("/sys/module/memory_notifier_error_inject/initstate") == "going\n"
    leave.set()
    assert (change.result(), unload.result()) == (6, None)
    assert machine.tree.list(DEBUG) == []


def test_6_12_is_not_refused_where_it_prepares(boot: Boot) -> None:
    """There is no file for MEM_PREPARE_ONLINE, and that action passes."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    machine.load_module(BASE)
    machine.load_module(MEMORY)
    machine.tree.write(GOING_OFFLINE, "-16")
    write(machine, "memory32/state", "online")
    assert refusal(write, machine, "memory32/state", "offline") == "EBUSY"


def test_a_module_can_not_go_from_inside_a_callback(boot: Boot) -> None:
    """It would wait for itself; it stays as it is."""
    machine = with_node_1(boot, lockdep=False)
    machine.load_module(BASE)
    machine.load_module(MEMORY)
    caught: list[BaseException] = []

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        with pytest.raises(DeadlockError) as error:
            machine.unload_module(MEMORY)
        caught.append(error.value)
        return NotifyResult(1)

    own = machine.hotplug_memory_notifier(callback, 9)
    write(machine, "memory32/state", "online")
    own.unregister()
    assert (len(caught), state(machine, 32)) == (2, "online")
    assert machine.tree.read("/sys/module/memory_notifier_error_inject/initstate") == "live\n"
    machine.tree.write(GOING_OFFLINE, "-12")
    assert refusal(write, machine, "memory32/state", "offline") == "ENOMEM"
    machine.unload_module(MEMORY)
