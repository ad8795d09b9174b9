"""The kprobes on the notifier chain, and the trace that they leave."""

from __future__ import annotations

import pytest

from memhp.errors import LabError
from memhp.events import MEM_FINISH_OFFLINE, MEM_GOING_OFFLINE, MEM_GOING_ONLINE, MEM_OFFLINE, MemoryNotify
from memhp.kernel import Rules
from memhp.lab.probes import PROBES, ChainCall, UeventSent, read_trace
from memhp.notifier import NOTIFY_OK, notifier_from_errno

FROM_6_1 = """\
kworker/u2:1-24      [000] .....     3.944977: memhp_call: (memory_notify+0x0/0x20) action=2 start=1048576 nr=32768 normal=-1 nid=1
kworker/u2:1-24      [000] .....     3.946514: memhp_return: (offline_pages+0x24d/0x7a8 <- memory_notify) answer=1
kworker/u2:1-24      [000] .....     3.949378: memhp_call: (memory_notify+0x0/0x20) action=4 start=1048576 nr=32768 normal=-1 nid=1
kworker/u2:1-24      [000] .N...     3.971934: memhp_return: (offline_pages+0x5cb/0x7a8 <- memory_notify) answer=1
kworker/u2:1-24      [000] .....     3.972271: memhp_uevent: (dev_uevent+0x0/0x2f0) action="ACTION=offline" path="DEVPATH=/devices/system/memory/memory32"
"""  # noqa: E501 - as the kernel wrote it

FROM_6_12 = """\
kworker/u4:1-29      [000] .....    39.682115: memhp_call: (blocking_notifier_call_chain+0x4/0x60) action=7 start=1048576 nr=32768 normal=0 nid=0 head=0xffffffff82ded5e0
kworker/u4:1-29      [000] .....    39.682121: memhp_return: (memory_subsys_offline+0x114/0x220 <- blocking_notifier_call_chain) answer=1 head=0xffffffff82ded5e0
"""  # noqa: E501


def test_a_trace_of_6_1() -> None:
    """Calls with their answers and times, and uevents, in the order in which they happened."""
    arg = MemoryNotify(1048576, 32768, -1, 1)  # type: ignore[arg-type]
    calls = read_trace(FROM_6_1.splitlines(), Rules.LINUX_6_1)

    assert [(call.action, call.arg, call.answer) for call in calls if isinstance(call, ChainCall)] == [
        (MEM_GOING_OFFLINE, arg, NOTIFY_OK),
        (MEM_OFFLINE, arg, NOTIFY_OK),
    ]
    assert calls[2] == UeventSent("offline", "/devices/system/memory/memory32")
    assert [round(call.seconds, 6) for call in calls if isinstance(call, ChainCall)] == [0.001537, 0.022556]


def test_the_numbers_of_6_12_are_others() -> None:
    """7 is MEM_FINISH_OFFLINE there, and there is no 7 in 6.1."""
    (call,) = read_trace(FROM_6_12.splitlines(), Rules.LINUX_6_12)
    assert isinstance(call, ChainCall)
    assert call.action is MEM_FINISH_OFFLINE


def test_a_call_that_did_not_return_has_no_answer() -> None:
    """The next return belongs to the next call."""
    first, *rest = FROM_6_1.splitlines()
    calls = read_trace([first, *rest[1:]], Rules.LINUX_6_1)
    assert [call.answer for call in calls if isinstance(call, ChainCall)] == [None, NOTIFY_OK]


def test_a_refusal_carries_its_errno() -> None:
    """The answer is the raw value of the chain."""
    refused = FROM_6_1.replace("answer=1", f"answer={int(notifier_from_errno(-16))}").replace("action=2", "action=8")
    call = read_trace(refused.splitlines(), Rules.LINUX_6_1)[0]
    assert isinstance(call, ChainCall)
    assert (call.action, call.answer) == (MEM_GOING_ONLINE, notifier_from_errno(-16))


def test_lines_of_others_are_left_out() -> None:
    """The trace may hold whatever somebody else switched on."""
    assert read_trace(["", "# tracer: nop", "sh-1 [000] ..... 1.5: sched_switch: prev=sh"], Rules.LINUX_6_1) == []


def test_where_the_function_serves_every_chain_its_head_is_filtered() -> None:
    """On 6.12 the probes sit on a function of all blocking chains."""
    tracing = "/sys/kernel/tracing"
    assert PROBES["6.12"].definitions("ffffffff82ded5e0") == [
        (f"{tracing}/kprobe_events", "p:memhp_uevent dev_uevent action=+0(+24($arg2)):string path=+0(+32($arg2)):string"),
        (
            f"{tracing}/kprobe_events",
            (
                "p:memhp_call blocking_notifier_call_chain action=$arg2:u64 start=+16($arg3):u64 nr=+24($arg3):u64 "
                "normal=+32($arg3):s32 nid=+36($arg3):s32 head=$arg1:x64"
            ),
        ),
        (f"{tracing}/kprobe_events", "r:memhp_return blocking_notifier_call_chain answer=$retval:u32 head=$arg1:x64"),
        (f"{tracing}/events/kprobes/memhp_call/filter", "head==0xffffffff82ded5e0"),
        (f"{tracing}/events/kprobes/memhp_return/filter", "head==0xffffffff82ded5e0"),
        (f"{tracing}/events/kprobes/memhp_uevent/enable", "1"),
        (f"{tracing}/events/kprobes/memhp_call/enable", "1"),
        (f"{tracing}/events/kprobes/memhp_return/enable", "1"),
    ]


def test_on_6_1_nothing_is_filtered() -> None:
    """memory_notify serves the memory chain alone."""
    texts = [text for _, text in PROBES["6.1"].definitions("")]
    assert texts[1] == (
        "p:memhp_call memory_notify action=$arg1:u64 start=+0($arg2):u64 nr=+8($arg2):u64 "
        "normal=+16($arg2):s32 nid=+20($arg2):s32"
    )
    assert not any("head" in text for text in texts)


def test_a_release_with_other_numbers_is_refused() -> None:
    """6.12 changed the numbers of its actions in a stable update (fact 2.1)."""
    PROBES["6.12"].check("6.12.117-1~deb12u1")
    PROBES["6.1"].check("6.1.192-2")
    with pytest.raises(LabError, match=r"Linux 6\.12\.48-1 numbers the notifier's actions otherwise than 6\.12\.110"):
        PROBES["6.12"].check("6.12.48-1")


def test_an_action_that_nobody_knows_is_an_error() -> None:
    """Rather than a call with a wrong name."""
    with pytest.raises(LabError, match=r"the action 3, which memhp does not know of Linux 6\.1"):
        read_trace(FROM_6_1.replace("action=2", "action=3").splitlines(), Rules.LINUX_6_1)
